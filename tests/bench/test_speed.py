"""bench.speed on a tiny model: by depth with a script in the place of llama-bench, a document, another checkout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType

import minimemo
from bench.common import machine, report
from bench.speed import document, engine, turn, versus
from bench.speed.__main__ import main
from bench.speed.engine import kv_bytes_read
from minimemo.errors import InputError
from minimemo.kernels import native
from tests.conftest import TinyModels
from tests.hub.test_converted import _tensors, _write_gguf
from tests.tiny import kv_bytes_per_token, matmul_parameters, tiny_config, tiny_decoder

CONFIG = replace(tiny_config(vocab_size=400), intermediate_size=64)  # at least the tokens of the tiny tokenizer
TEXT = "".join(f"The user number {i} said Hello world, be brief about room {i * 7}. 你好{i}。\n\n" for i in range(12))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file all of whose matrices are quantized."""
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    _write_gguf(path, CONFIG, _tensors(tiny_decoder(CONFIG), False), "qwen2", kind=GGMLQuantizationType.Q8_0)
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The ceiling of a machine that is known, few tokens, and torch's threads as they were."""
    monkeypatch.setattr(machine, "memory_gb_s", lambda: 20.0)
    monkeypatch.setattr(engine, "CHUNK", 40)
    monkeypatch.setattr(engine, "STEPS", 4)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _llama_bench(folder: Path, body: str = "") -> Path:
    """Writes a script that notes its calls and answers like llama-bench: the number of the call is its speed."""
    folder.mkdir(exist_ok=True)
    script = folder / "llama-bench"
    script.write_text(
        f"""#!/bin/sh
{body}
echo "$LD_LIBRARY_PATH|$*" >> {folder}/calls
speed=$(wc -l < {folder}/calls).0
while [ $# -gt 0 ]; do [ "$1" = -d ] && depth=$2; shift; done
echo 'not json'
for shape in '"n_prompt": 40, "n_gen": 0' '"n_prompt": 0, "n_gen": 4'; do
  echo '{{"build_number": 7, "build_commit": "abc",' "$shape, \\"n_depth\\": $depth, \\"avg_ts\\": $speed}}"
done
"""
    )
    script.chmod(0o755)
    return script


def _main(model: Path, *more: str) -> int:
    return main(["--model", str(model), "--depths", "9,0", "--threads", "1", *more])


def _json(text: str) -> dict[str, Any]:
    return json.loads(text.splitlines()[-1])


def test_against_the_peer(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "libx.so").touch()  # a library beside the program
    script = _llama_bench(tmp_path)
    assert _main(model, "--peer", "llamacpp", "--llama-bench", str(script), "--repeat", "3") == 0
    out = capsys.readouterr().out
    result = _json(out)

    calls = (tmp_path / "calls").read_text().splitlines()
    options = f"-m {model} -t 1 -fa 1 -p 40 -n 4 -d {{}} -r 1 -o jsonl"
    assert [call.split("|")[1] for call in calls] == [options.format(depth) for depth in (0, 9) * 3]
    assert all(call.split("|")[0].split(":")[0] == str(tmp_path) for call in calls)

    assert result["peer"] == "llama.cpp 7 (abc)" and [row["depth"] for row in result["depths"]] == [0, 9]
    for row, theirs in zip(result["depths"], (3.0, 4.0), strict=True):  # medians of 1, 3, 5 and of 2, 4, 6
        assert row["peer_prefill"] == row["peer_decode"] == theirs
        for ratio, ours in (("ratio_prefill", "prefill"), ("ratio_decode", "decode"), ("ratio_mean", "decode_mean")):
            assert row[ratio] == pytest.approx(row[ours] / theirs) and row[ours] > 0
        assert row["batch3_ratio"] == pytest.approx(row["batch3"] / row["decode"])
        assert f"{row['ratio_prefill']:.2f}" in next(s for s in out.splitlines() if s.split()[0] == str(row["depth"]))
    assert (result["model"], result["threads"], result["torch"]) == (str(model), 1, torch.__version__)


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_share_of_the_ceiling(model: Path, kv_dtype: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--kv-dtype", kv_dtype, "--depths", "128"] if kv_dtype else []  # two groups of 64 tokens
    assert _main(model, "--repeat", "1", *more) == 0
    result = _json(capsys.readouterr().out)
    assert result["peer"] is None and result["weight_bytes"] >= matmul_parameters(CONFIG)  # 8-bit codes and scales
    # A packed number: a byte, two halves for 64 numbers of a channel's keys and two for the 16 of a token's values.
    element = 1 + (4 / 64 + 4 / 16) / 2 if kv_dtype else getattr(torch, result["kv_dtype"]).itemsize
    assert result["kv_dtype"] == (kv_dtype or result["kv_dtype"]) and result["peak_rss_bytes"] > 50e6
    for row in result["depths"]:
        read = result["weight_bytes"] + (row["depth"] + 1 + 2 + 1) * kv_bytes_per_token(CONFIG, 1) * element
        assert row["ceiling_share"] == pytest.approx(read * row["decode"] / 20e9)


def test_a_window_bounds_what_is_read() -> None:
    config = replace(tiny_config(), windows=(8, None))
    assert kv_bytes_read(config, 99, 2) == 2 * 2 * 16 * 2 * (8 + 100)
    assert kv_bytes_read(config, 3, 2) == 2 * 2 * 16 * 2 * (4 + 4)


def test_the_variant_is_the_one_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.unavailable():
        pytest.skip("no native kernels")
    monkeypatch.delenv("MINIMEMO_NATIVE", raising=False)
    assert report.variant() == native.variants()[-1]
    monkeypatch.setenv("MINIMEMO_NATIVE", "portable")
    assert report.variant() == "portable"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "no-such-model"], "no-such-model: no such model"),
        (["--peer", "llamacpp", "--llama-bench", "no-such-program"], "no-such-program: no such program; give --llama"),
        (["--peer", "llamacpp"], "llama-bench: no such program; give"),
        (["--vs", "no-such-folder"], "--vs no-such-folder: no .venv/bin/python there"),
    ],
)
def test_mistakes_are_one_line(
    model: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["--model", str(model), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"bench.speed: {says}") and captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--depths", "0,x"], ["--repeat", "0"], ["--threads", "-1"]])
def test_numbers_that_are_none(model: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        _main(model, *arguments)
    assert f"argument {arguments[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("echo warning >&2; echo 'no memory' >&2; exit 3", "failed (3): no memory"),
        ("exit 0", "no results of a prefill"),
    ],
)
def test_a_peer_that_fails(
    model: Path, tmp_path: Path, body: str, says: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    program = _llama_bench(tmp_path / "peer", body)
    assert _main(model, "--peer", "llamacpp", "--llama-bench", str(program)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and says in captured.err.splitlines()[-1]


def test_the_peer_needs_a_gguf_file(tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tiny_models.decoder), "--peer", "llamacpp", "--llama-bench", sys.executable]) == 2
    assert "needs a GGUF file" in capsys.readouterr().err


def test_the_ceilings_are_of_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes read and operations made, over the seconds of the quickest try."""
    monkeypatch.undo()
    runs: list[object] = []

    def least(candidates: Any, seconds: float, clock: object) -> list[float]:
        runs.extend(run(0) for run in candidates)
        return [3.0, 2.0][-len(candidates) :]

    monkeypatch.setattr(machine, "least", least)
    monkeypatch.setattr(machine, "last_level_cache", lambda: 1)
    assert machine.memory_gb_s() == (256 << 20) / 2e9
    assert runs == [256 << 18, 1]  # the sum and the maximum of ones
    assert machine.products_gflop_s(torch.float32) == pytest.approx(2048**3 / 1e9)


def test_a_document(
    tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build in a process of its own; the question here, where it takes no second start."""
    (tmp_path / "doc.txt").write_text(TEXT, encoding="utf-8")
    child, inspected = document.child, dict[str, Any]()

    def some_here(what: str, options: dict[str, Any]) -> dict[str, Any]:
        if what == "build":
            return child(what, options)
        inspected.update(minimemo.open(options["memo"]).inspect())
        asked = document.ask(**options)
        assert asked["moments"]["open_s"] <= asked["moments"]["first_token_s"]
        return {**asked, **asked["moments"], "peak_mb": 70.0}

    monkeypatch.setattr(document, "child", some_here)
    command = ["--embedder", str(tiny_models.embedder), "--doc", str(tmp_path / "doc.txt"), "--repeat", "1"]
    assert _main(tiny_models.decoder, *command) == 0
    (row,) = _json(capsys.readouterr().out)["documents"]
    assert row["tokens"] == inspected["memory"]["tokens"] and row["memo_mb"] == inspected["bytes"] / 1e6
    assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["build_s"])
    assert 0 < row["warm_token_s"] <= row["warm_answer_s"]
    assert row["build_peak_mb"] > 50 and row["ask_peak_mb"] == 70


def test_a_turn_measures_what_both_trees_have(
    tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("PREFILL", 96), ("DEEP", 512), ("STEPS", 3), ("LOADS", 1)):
        monkeypatch.setattr(turn, name, value)
    (tmp_path / "doc.txt").write_text(TEXT, encoding="utf-8")
    files = (str(tiny_models.decoder), str(tiny_models.embedder), str(tmp_path / "doc.txt"), str(tmp_path / "memo"))
    turn.main("build", *files, "1")
    turn.main("measure", *files, "1")
    figures = _json(capsys.readouterr().out)
    assert figures["package"] == str(Path(minimemo.__file__).parent) and figures["load_blocks"] > 0
    names = [figure.replace("4096", "512") for figure in versus.FIGURES]
    assert all(figures[name] > 0 for name in names)


def test_two_checkouts_take_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one's interpreter is a script that is twice as slow; both are given the same file and folder."""
    answer = dict.fromkeys(versus.FIGURES, 4.0)
    for name, package, factor in (("here", str(Path(minimemo.__file__).parent), 1), ("there", "/other/minimemo", 2)):
        folder = tmp_path / name / ".venv" / "bin"
        folder.mkdir(parents=True)
        slower = {k: v * factor if k.endswith("_s") else v / factor for k, v in answer.items()} | {"package": package}
        (folder / "python").write_text(
            f"#!/bin/sh\necho {name} $3 $1 $2 >> {tmp_path}/calls\necho '{json.dumps(slower)}'"
        )
        (folder / "python").chmod(0o755)
    monkeypatch.setattr(versus.sys, "executable", str(tmp_path / "here/.venv/bin/python"))
    assert main(["--model", "tiny", "--vs", str(tmp_path / "there"), "--repeat", "3"]) == 0
    result = _json(capsys.readouterr().out)
    calls = [call.split(" ", 2) for call in (tmp_path / "calls").read_text().splitlines()]
    assert [tuple(call[:2]) for call in calls] == [
        ("here", "build"), ("there", "build"), ("here", "measure"), ("there", "measure"), ("there", "measure"),
        ("here", "measure"), ("here", "measure"), ("there", "measure"),
    ]  # fmt: skip
    assert {call[2] for call in calls} == {f"-I {turn.__file__}"}
    assert all(row["speed"] == row["low"] == row["high"] == 2 and row["spread_here"] == 0 for row in result["rows"])
    with pytest.raises(InputError, match="not each its own tree"):
        versus.compare(tmp_path / "here", "tiny", None, None, 1)
