"""`minimemo ask` through a server of the same user: the same answer and the same output as without one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import minimemo.server.client
from minimemo.ask import Answer, Found
from minimemo.cli.arguments import main
from minimemo.errors import InputError, MinimemoError
from minimemo.server.client import ServedMemos, running
from minimemo.server.run import socket_path
from tests.commands import Command
from tests.conftest import TinyModels
from tests.helpers import until
from tests.server.conftest import Served

QUESTION = "What did user 3 say?"


def _both(served: Served, monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> str:
    """Runs a command through the server and without it; gives what both printed."""
    monkeypatch.chdir(served.folder)
    code = main([*arguments])
    through = capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(minimemo.server.client, "running", lambda: None)
        assert main([*arguments]) == code
    alone = capsys.readouterr()
    told = re.compile(r'"timings": {[^}]*}')
    assert told.sub("", through.out) == told.sub("", alone.out) and through.err == alone.err
    return str(through.out + through.err)


def test_the_output_is_the_same(served: Served, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shown = _both(served, monkeypatch, capsys, "ask", "doc.memo", QUESTION, "--max-tokens", "8")
    assert "The user number" in shown
    ask = "ask", "doc.memo", "notes.memo", QUESTION, "--json", "--max-tokens", "4"
    as_json = _both(served, monkeypatch, capsys, *ask)
    assert json.loads(as_json)["question"] == QUESTION
    _both(served, monkeypatch, capsys, "summarize", "notes.memo", "--max-tokens", "8", "--show-clues")


@pytest.mark.parametrize("words", [("ask", "nosuch.memo", "Who?"), ("ask", "doc.memo", "???"), ("ask", ".", "Who?")])
def test_so_are_mistakes(served: Served, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: tuple[str, ...]) -> None:
    assert _both(served, monkeypatch, capsys, *words).startswith("minimemo: ")


def test_it_says_so_when_asked(served: Served, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(served.folder)
    assert main(["ask", "doc.memo", QUESTION, "--max-tokens", "2", "-v"]) == 0
    assert f"the server at {socket_path()} answers" in capsys.readouterr().err


def _doc(served: Served) -> ServedMemos:
    address = running()
    assert address is not None
    return ServedMemos(address, [served.folder / "doc.memo"])


def test_a_conversation_leans_on_what_was_asked_before(served: Served) -> None:
    talk = _doc(served).chat()
    talk.ask(QUESTION, max_tokens=4)
    answer = talk.ask("And why?", max_tokens=4)
    assert answer.question == "And why?" and answer.asked.startswith(QUESTION)


def test_the_socket_is_the_users_alone(served: Served) -> None:
    path = socket_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_steps_left_half_read_are_left_by_the_server_too(served: Served) -> None:
    steps = _doc(served).stream("Describe what the users said.", max_tokens=200)
    assert isinstance(next(steps), Found)
    steps.close()
    until(lambda: not served.service.desk.waiting, 5)


def test_no_server_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket, a file, a socket that nobody listens at, one of another program."""
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path))
    path = socket_path()
    assert running() is None
    path.parent.mkdir(parents=True)
    path.write_text("")
    assert running() is None
    path.unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        assert running() is None
        dead.listen()
        monkeypatch.setattr("minimemo.server.client._AT_ONCE", 0.1)
        assert running() is None


def test_a_server_that_breaks_off_is_told_in_a_line(tmp_path: Path, served: Served) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        steps = ServedMemos(path, [served.folder / "doc.memo"]).stream(QUESTION)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                asked = b""
                while not asked.endswith(b"}"):  # its head and its body come apart
                    asked += connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
                connection.sendall(b'event: piece\ndata: {"text": "a"}\n\n')

        threading.Thread(target=answer, daemon=True).start()
        next(steps)
        with pytest.raises(MinimemoError, match="broke off"):
            next(steps)


def test_an_answer_survives_json(served: Served) -> None:
    *_, answer = _doc(served).stream(QUESTION, max_tokens=4)
    assert isinstance(answer, Answer)
    assert Answer.from_dict(json.loads(json.dumps({**answer.to_dict(), "of_later": 1}))) == answer
    with pytest.raises(InputError):
        Answer.from_dict({"text": "a"})


def test_a_terminated_server_leaves_nothing_and_a_killed_one_is_followed(
    shelf_folder: Path, tmp_path: Path, tiny_models: TinyModels
) -> None:
    """The command itself: it says its address, answers, and ends by SIGTERM with its socket gone. After kill -9 the
    next one takes the socket over."""
    environment = {**os.environ, "MINIMEMO_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    socket_of = tmp_path / "run" / "server.sock"

    def serving() -> Command:
        return Command(["serve", "--port", "0", str(shelf_folder)], tmp_path, environment)

    def says(command: Command) -> str:
        command.until(lambda: command.out.endswith("\n"), 90)
        return command.out

    with serving() as command:
        assert "2 documents at http://127.0.0.1:" in says(command) and socket_of.is_socket()
        command.send(signal.SIGKILL)
        command.end(20)
    with serving() as command:
        says(command)
        command.send(signal.SIGTERM)
        assert command.end(60) == 0 and not socket_of.exists()


def test_a_build_has_a_process_that_ends_in_peace(tmp_path: Path, tiny_models: TinyModels) -> None:
    """It once aborted at its end, as a thread of it waited for stdin with the lock that Python takes when it ends."""
    (tmp_path / "new.txt").write_text("The user said hello. " * 20, encoding="utf-8")
    options = {"model": str(tiny_models.decoder), "embedder": str(tiny_models.embedder), "memory": "int4"}
    command = [sys.executable, "-m", "minimemo.server.builder", str(tmp_path / "new.txt"), json.dumps(options)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        told = [json.loads(line) for line in child.stdout]
        assert child.wait(60) == 0, child.stderr.read()
    assert Path(told[-1]["memo"]).name == "new.memo" and {"embed", "read"} <= {row.get("stage") for row in told}
