"""The command line as its users meet it: in a process of its own, on tiny models. Bad input is one line and exit 2."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minimemo.cli import commands
from minimemo.cli.arguments import main, parser
from minimemo.cli.arguments import run as cli_run
from minimemo.cli.screen import _OPTIONS, _cut, as_options
from tests.commands import Command, run
from tests.conftest import TinyModels

ROOT = Path(__file__).resolve().parents[2]
TEXT = "\n\n".join(f"The user number {i} said Hello world, be brief. 你好{i}。" for i in range(12))


@pytest.fixture(scope="module")
def desk(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with doc.txt and doc.memo."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "doc.txt").write_text(TEXT, encoding="utf-8")
    _run(folder, tiny_models, "build", "doc.txt")
    return folder


def _environment(models: TinyModels) -> dict[str, str]:
    return {
        **os.environ, "MINIMEMO_MODEL": str(models.decoder), "MINIMEMO_EMBEDDER": str(models.embedder),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def _run(
    folder: Path, models: TinyModels, *arguments: str, stdin: str = "", code: int = 0
) -> subprocess.CompletedProcess[str]:
    done = run(arguments, folder, _environment(models), stdin)
    assert done.returncode == code, f"exit {done.returncode}: {done.stderr}"
    return done


def test_build_ask_inspect_verify_list(desk: Path, tiny_models: TinyModels) -> None:
    told = json.loads(_run(desk, tiny_models, "inspect", "doc.memo", "--json").stdout)
    assert told["document"]["name"] == "doc.txt" and told["memory"]["ratio_to_fp16"] > 2
    size = (desk / "doc.memo/memory.bin").stat().st_size
    assert sum(told["memory"]["parts"].values()) == told["memory"]["bytes"] == size
    assert "codec klt" in _run(desk, tiny_models, "inspect", "doc.memo").stdout
    assert "every checksum is right" in _run(desk, tiny_models, "verify", "doc.memo").stdout
    listed = json.loads(_run(desk, tiny_models, "list", "--json").stdout)
    assert [Path(m["path"]).name for m in listed["memos"]] == ["doc.memo"]
    assert {m["name"] for m in listed["models"]} >= {"qwen2.5-coder-0.5b", "multilingual-e5-small"}

    asked = _run(desk, tiny_models, "ask", "doc.memo", "What did user 3 say?", "--json", "--max-tokens", "4")
    answer: dict[str, Any] = json.loads(asked.stdout)
    assert answer["mode"] == "memorag" and answer["passages"] and asked.stderr == ""
    for passage in answer["passages"]:
        assert TEXT[passage["start"] : passage["end"]] == passage["text"]
    asked = _run(desk, tiny_models, "ask", "doc.memo", "-", "--mode", "rag", "--max-tokens", "4", stdin="What?\n")
    shown = asked.stdout
    assert re.search(r"^  [ *] \[\d+-\d+\] The user number", shown, re.MULTILINE)


def test_a_prompt_asks_question_after_question(desk: Path, tiny_models: TinyModels) -> None:
    """A bad question in between is one line, also of JSON, and the next one is still answered."""
    done = _run(
        desk, tiny_models, "ask", "doc.memo", "--mode", "rag", "--json", "--max-tokens", "3",
        stdin="What did user 3 say?\n\n???\nWhat did user 4 say?\n", code=2,
    )  # fmt: skip
    first, wrong, second, last = map(json.loads, done.stdout.splitlines())
    assert [first["question"], second["question"]] == ["What did user 3 say?", "What did user 4 say?"]
    assert {told["version"] for told in (first, wrong, second, last)} == {1}
    assert wrong["error"]["kind"] == "InputError" and "question is empty" in wrong["error"]["message"]
    assert last["error"]["message"] == "1 questions were not answered"
    assert done.stderr.count("question is empty") == 1


def test_nothing_in_a_text_commands_a_terminal(tiny_models: TinyModels, tmp_path: Path) -> None:
    evil = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\u202e The user said Hello world.\r\x9b1m\n\n"
    (tmp_path / "doc.txt").write_text(evil * 5, newline="")
    _run(tmp_path, tiny_models, "build", "doc.txt", "--memory", "int4")
    ask = ("ask", "doc.memo", "What did the user say?", "--mode", "rag", "--max-tokens", "4")
    shown = _run(tmp_path, tiny_models, *ask).stdout
    assert "\u241b]52;c;ZXZpbA==\u2407" in shown and not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
    told = json.loads(_run(tmp_path, tiny_models, *ask, "--json").stdout)
    assert told["passages"][0]["text"] in evil * 5
    missing = _run(tmp_path, tiny_models, "inspect", "\x1b[31mred", code=1)
    assert missing.stderr.startswith("minimemo: \u241b[31mred: no such memo")


@pytest.mark.parametrize(
    ("line", "columns", "shown"),
    [
        ("short", 80, "short"),
        ("abcdefghij", 10, "abcdefghij"),
        ("abcdefghijk", 10, "abcdefghi…"),
        ("你好世界你好世界", 9, "你好世界…"),
        ("e\u0301" * 9, 9, "e\u0301" * 8 + "…"),
    ],
)
def test_lines_fit_the_terminal(line: str, columns: int, shown: str) -> None:
    assert _cut(line, columns) == shown


def test_questions_at_a_prompt_are_a_conversation(desk: Path, tiny_models: TinyModels) -> None:
    """One that leans on another is asked with it, until that is forgotten; /clues and /sources tell of the last."""
    lines = [
        "/clues",
        "What did user 3 say?",
        "And why?",
        "/clues",
        "/sources 1",
        "/sources 9",
        "/help",
        "new",
        "Why?",
        "exit",
        "Who?",
    ]
    asked = ["ask", "doc.memo", "--mode", "rag", "--json", "--max-tokens", "3", "--show-clues"]
    done = _run(desk, tiny_models, *asked, stdin="\n".join(lines), code=2)
    shown = done.stdout.splitlines()
    answers = [json.loads(line) for line in shown if line.startswith("{") and '"question"' in line]
    assert [answer["question"] for answer in answers] == ["What did user 3 say?", "And why?", "Why?"]
    assert [answer["asked"] == answer["question"] for answer in answers] == [True, False, True]
    whole = answers[1]["asked"]
    assert whole.startswith("What did user 3 say?") and whole.endswith(" And why?")
    assert f"[question] {whole}" in shown and f"[question] {whole}" in done.stderr
    assert answers[1]["passages"][0]["text"].strip() in done.stdout.replace(json.dumps(answers[1]), "")
    assert "ask something first" in done.stderr and "passages: /sources N" in done.stderr
    assert "/help: unknown here; there are new, /clues" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no terminals to pretend")
def test_history_is_kept_for_nobody_else_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readline = pytest.importorskip("readline")
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "home"))
    remember = commands._history()
    assert remember
    readline.clear_history()
    readline.add_history("Who lit the lamp?")
    remember()
    path = tmp_path / "home" / "history"
    assert path.stat().st_mode & 0o777 == 0o600 and "Who lit the lamp?" in path.read_text(encoding="utf-8")
    readline.clear_history()
    commands._history()
    assert readline.get_history_item(1) == "Who lit the lamp?"


def test_bytes_and_characters_that_an_encoding_does_not_know(desk: Path, tiny_models: TinyModels) -> None:
    """A terminal that cannot show a character, a question that is no UTF-8: marked, no reason to stop."""
    ascii = _environment(tiny_models) | {"PYTHONIOENCODING": "ascii", "COLUMNS": "110"}
    ask = ["ask", "doc.memo", "--mode", "rag", "--max-tokens", "3"]
    done = run(ask, desk, ascii, b"\xff who?\nWho?\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\\u4f60\\u597d") > 1
    told = run([*ask, "caf\u00e9?", "--json"], desk, ascii)
    assert json.loads(told.stdout)["question"] == "caf\u00e9?"


def test_summarize_and_standard_input(desk: Path, tiny_models: TinyModels) -> None:
    _run(desk, tiny_models, "build", "-", "-o", "piped.memo", stdin=TEXT)
    done = _run(desk, tiny_models, "summarize", "piped.memo", "--json", "--max-tokens", "4")
    assert json.loads(done.stdout)["mode"] == "summarize"
    shutil.rmtree(desk / "piped.memo")


def test_arguments_of_the_library_are_told_as_options() -> None:
    """No message of the library names an option, and every argument that one names is an option here."""
    assert as_options("`encoding=gb18030`, `out` or `Endpoint.model`; `ls`") == (
        "--encoding gb18030, -o or --generator-model; `ls`"
    )
    options = " ".join(_help())
    for path in sorted((ROOT / "minimemo").glob("*/*.py")):
        if path.parent.name in ("cli", "server", "scale", "hub"):
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            if '"' in line and not line.lstrip().startswith("#"):
                assert not re.search(r" (--[a-z]|-o\b)", line.split("#")[0]), f"{path}: {line}"
    assert all(option in options for option in _OPTIONS.values())


def _help() -> list[str]:
    commands = parser().commands.choices.values()
    return [command.format_help() for command in commands]


_OF_MEMOS = ("no such memo", "is a file, not a memo", "has no manifest.json", "damaged")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "missing.txt"], "missing.txt: no such file"),
        (["build", "empty.txt"], "the document is empty"),
        (["build", "binary.txt"], "a binary file"),
        (["build", "doc.txt", "--model", "no-such-model"], "no such model"),
        (["build", "doc.txt", "--embedder", "no-such-model"], "no such model"),
        (["build", "doc.txt", "-o", "doc.txt"], "exists and is no memo"),
        (["calibrate", "no-such-model", "--text", "gbk.txt"], "not utf-8 at byte 0; it looks like"),
        (["calibrate", "no-such-model", "--text", "gbk.txt", "--encoding", "gb18030"], "no such model"),
        (["calibrate", "--text", "doc.txt", "doc.txt", "no-such-model"], "no such model"),
        (["calibrate", "--text", "doc.txt"], "name a model"),
        (["ask", "missing.memo", "Who?"], "no such memo; make one: minimemo build DOCUMENT"),
        (["ask", "gbk.txt", "Who?"], "is a file, not a memo; make one: minimemo build gbk.txt"),
        (["ask", "doc.txt", "Who?"], "is a file, not a memo; there is doc.memo"),
        (["ask", "doc", "Who?"], "no such memo; there is doc.memo"),
        (["ask", ".", "Who?"], "has no manifest.json"),
        (["ask", "doc.memo", ""], "question is empty"),
        (["ask", "doc.memo", "--in", "x", "Who?"], "--all and --in take one question and no memos, not 2 words"),
        (["ask", "doc.memo", "Who", "said", "Hello"], 'minimemo ask doc.memo "Who said Hello"'),
        (["ask", "doc.memo", "Who?", "--generator", "localhost:8080"], "begin an address with http:// or https://"),
        (["ask", "doc.memo", "Who?", "--generator", "http://example.com/v1"], "--plain-http"),
        (["ask", "doc.memo", "why " * 25000], "tokens long, and at most"),
        (["ask", "doc.memo", "Who?", "--prompts", "missing.json"], "missing.json"),
        (["verify", "damaged.memo"], "damaged"),
        (["inspect", "damaged.memo"], "damaged"),
    ],
)
def test_mistakes_are_one_line(
    desk: Path, tiny_models: TinyModels, arguments: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (desk / "empty.txt").write_text("")
    (desk / "binary.txt").write_bytes(bytes(range(256)) * 4)
    (desk / "gbk.txt").write_bytes("你好，世界。".encode("gb18030"))
    if not (desk / "damaged.memo").exists():
        shutil.copytree(desk / "doc.memo", desk / "damaged.memo")
        memory = bytearray((desk / "damaged.memo/memory.bin").read_bytes())
        memory[30] ^= 1
        (desk / "damaged.memo/memory.bin").write_bytes(memory)
    monkeypatch.chdir(desk)
    for name, value in _environment(tiny_models).items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == (1 if message.split(";")[0] in _OF_MEMOS else 2)
    errors = capsys.readouterr().err
    assert message in errors and errors.startswith("minimemo: ") and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ask book.memo"),
        (["rm"], "memo"),
        (["build", "doc.txt", "--memory", "int3"], "choose from"),
        (["buld", "doc.txt"], "did you mean build?"),
        (["build", "doc.txt", "--memory", "balancd"], "did you mean balanced?"),
        (["ask", "m", "q", "--max-token", "9"], "--max-token 9; did you mean --max-tokens?"),
        (["ask", "m", "q", "--max-tokens", "0"], "a whole number from 1 on, not '0'"),
        (["ask", "m", "q", "--threads", "two"], "a whole number from 1 on, not 'two'"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "take --kv-dtype int8, or a smaller model"),
        (MemoryError(), 1, "memory: too little is free here"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "memory: too little is free here"),
        (OSError(errno.EMFILE, "Too many open files"), 1, "raise the limit (ulimit -n)"),
        (OSError(errno.ENOTDIR, "Not a directory", "/x/collections"), 1, "/x/collections: Not a directory; name a"),
        (OSError(errno.EROFS, "Read-only file system", b"/x"), 1, "/x: Read-only file system; check its permissions"),
        (RuntimeError("unable to open shared memory: Too many open files (24)"), 1, "raise the limit (ulimit -n)"),
        (RuntimeError("can't start new thread"), 1, "take --threads 1"),
    ],
)
def test_limits_of_the_machine_are_one_line(
    error: Exception, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(_: argparse.Namespace) -> None:
        raise error

    assert cli_run(argparse.Namespace(run=command)) == code
    said = capsys.readouterr().err
    assert message in said and said.startswith("minimemo: ") and said.count("\n") == 1


def test_no_name_and_no_place_is_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names longer than a file system takes, in every command that takes one, and a home that is a file."""
    long = "x" * 300
    (tmp_path / "a.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    for words in (
        ["inspect", long], ["verify", long], ["rm", f"{long}.memo"], ["import", long], ["build", long],
        ["export", long, "y"], ["sync", long, "--name", "x"],
    ):  # fmt: skip
        assert main(words) in (1, 2), words
        assert "File name too long" in capsys.readouterr().err, words
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "a.txt"))
    for words in (["sync", str(tmp_path)], ["forget", "x"], ["status", "x"]):
        assert main(words) in (1, 2) and capsys.readouterr().err.startswith("minimemo: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_a_full_disk_behind_the_output_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "minimemo", "list", "--json"], stdout=full, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "MINIMEMO_HOME": str(tmp_path)},
        )  # fmt: skip
    assert done.returncode == 1 and done.stderr == "minimemo: No space left on device; free some space\n"


def test_a_fault_of_the_program_is_no_line_but_a_traceback() -> None:
    def command(_: argparse.Namespace) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        cli_run(argparse.Namespace(run=command))


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ("ask a.memo --json Who?", {"words": ["a.memo", "Who?"], "json": True}),
        ("ask --json a.memo b.memo --mode rag Who? -q", {"words": ["a.memo", "b.memo", "Who?"], "mode": "rag"}),
        ("ask a.memo --max-tokens 9 -", {"words": ["a.memo", "-"], "max_tokens": 9}),
        ("ask a.memo -- -5?", {"words": ["a.memo", "-5?"]}),
        ("summarize a.memo --json b.memo", {"memo": ["a.memo", "b.memo"], "json": True}),
        ("build --window 512 a.txt -o b.memo", {"document": ["a.txt"], "window": 512, "out": "b.memo"}),
        ("calibrate m --text a b", {"model": "m", "text": ["a", "b"]}),
    ],
)
def test_options_stand_anywhere_among_the_words(line: str, parsed: dict[str, object]) -> None:
    arguments = vars(parser().parse_args(line.split()))
    assert {name: arguments[name] for name in parsed} == parsed


def test_a_shell_completes_commands_options_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    with pytest.raises(SystemExit) as left:
        main(["--print-completion", "bash"])
    assert left.value.code == 0
    (tmp_path / "completion.sh").write_text(capsys.readouterr().out)
    (tmp_path / "novel.txt").touch()

    def completed(*words: str) -> list[str]:
        line = (
            f'COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_minimemo; echo "${{COMPREPLY[@]}}"'
        )
        shell = [bash, "-c", f"source ./completion.sh; {line}"]
        return subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()

    assert completed("minimemo", "su") == ["summarize"]
    assert "--max-tokens" in completed("minimemo", "ask", "--max")
    assert completed("minimemo", "build", "nov") == ["novel.txt"]


def test_help_shows_commands_that_parse() -> None:
    examples = [line.split("  ")[1] for line in parser().format_help().splitlines() if line.startswith("  minimemo ")]
    assert len(examples) == 10
    for example in examples:
        parser().parse_args(shlex.split(example)[1:])


def test_a_build_goes_on_after_ctrl_c(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted in the middle: exit 130, one line, no half memo; the same command goes on, and gives the bytes of a
    build in one go."""
    from tests.tiny import write_model

    slow = write_model(tmp_path / "slow", max_context=600_000)
    folder = tmp_path / "desk"
    folder.mkdir()
    (folder / "doc.txt").write_text(TEXT * 12, encoding="utf-8")
    build = ["build", "doc.txt", "--model", str(slow), "--memory", "int4"]
    part = folder / ".doc.memo.building/memo/memory.bin.part"
    with Command(build, folder, _environment(tiny_models)) as command:
        command.until(lambda: part.exists() and part.stat().st_size > 50_000)  # more than a chunk is written
        command.send(signal.SIGINT)
        assert command.end() == 130, command.err
        said = command.err
    assert said.strip().endswith("interrupted; the same command goes on from here") and "Traceback" not in said
    assert sorted(p.name for p in folder.iterdir()) == [".doc.memo.building", "doc.txt"]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MINIMEMO_EMBEDDER", str(tiny_models.embedder))
    assert main(build) == 0 and "goes on at token" in capsys.readouterr().err
    assert main([*build, "-o", "fresh.memo"]) == 0
    for path in (folder / "fresh.memo").iterdir():
        assert path.read_bytes() == (folder / "doc.memo" / path.name).read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["doc.memo", "doc.txt", "fresh.memo"]


def test_ctrl_c_while_asking(desk: Path, tiny_models: TinyModels) -> None:
    """In the middle of a session of questions: exit 130, no traceback, the memo untouched."""
    ask = ["ask", "doc.memo", "--max-tokens", "4000", "--mode", "rag"]
    with Command(ask, desk, _environment(tiny_models), "What did user 3 say?\n") as command:
        command.until(lambda: bool(command.out))  # the answer has begun
        command.send(signal.SIGINT)
        assert command.end() == 130 and "Traceback" not in command.err, command.err
    _run(desk, tiny_models, "verify", "doc.memo")


@pytest.mark.parametrize("room", [300, 1500, 20000])  # index.bin, chunks.json, memory.bin
def test_a_full_disk_is_one_line(tiny_models: TinyModels, desk: Path, room: int) -> None:
    """RLIMIT_FSIZE stands for a full disk: writes fail with an OSError in one file after the other.

    The message names what the user named, not the hidden folder that the memo grows in.
    """
    done = run(["build", "doc.txt", "-o", "full.memo"], desk, _environment(tiny_models), largest=room)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert re.match(r"minimemo: full\.memo: cannot be written \(.+\); free some space", done.stderr), done.stderr
    assert not list(desk.glob("*full*")) and not list(desk.glob(".*full*"))
