"""What the benches of readers and drafts count."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from bench.lookup import Batch, _passes
from bench.slots import asked
from bench.soak import _growth
from minimemo.errors import MinimemoError


def test_memory_grows_from_its_first_quarter_after_the_first_minute_to_its_last() -> None:
    sizes = [(float(at), 100 + (at if at < 60 else 60 + at // 100)) for at in range(460)]
    assert _growth(sizes) == pytest.approx(4 / 161 - 1 / 161)
    assert _growth(sizes[:62]) is None, "too short to tell"


def test_drafts_are_replayed_as_an_engine_checks_them() -> None:
    copied, other = [5, 6, 7, 8, 9, 10], [20, 21, 22]
    batch = Batch([[5, 6, 7, 8, 9, 10, 11]], [copied], 7)
    assert _passes(batch, 1) == {1: 6}
    assert _passes(batch, 4) == {1: 2, 4: 1}, "a step for 5, one for 6 with 7, 8 and 9, one for 10"
    both = Batch([[5, 6, 7, 8, 9, 10, 11], [1]], [copied, other], 7)
    assert _passes(both, 1) == {2: 3, 1: 3}


def test_slots_of_a_peer_are_asked_at_once_and_again(tmp_path: Path) -> None:
    """A stand-in takes a program's options; each prompt costs it .2 seconds when it is new."""
    program = tmp_path / "llama-server"
    program.write_text(f"#!{sys.executable}\n{PEER}")
    program.chmod(0o755)
    told = asked(program, Path("model.gguf"), 2, "A long document.", ["Who?", "When?"])
    assert told["slots"] == len(told["first"]) == 2
    assert told["first"][0] >= 0.2 > told["again"]
    with pytest.raises(MinimemoError, match="did not start"):
        asked(Path(shutil.which("false") or ""), Path("model.gguf"), 2, "A document.", ["Who?"])


PEER = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

options, seen = dict(zip(sys.argv[1:], sys.argv[2:])), set()
assert options["-np"] in "12" and int(options["-c"]) >= 1024 * int(options["-np"])

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        assert prompt.startswith("A long document.")
        if prompt not in seen:
            time.sleep(0.2)
        seen.add(prompt)
        self.send_response(200)
        self.end_headers()
        for content in (None, "The", " end"):
            told = json.dumps({"choices": [{"delta": {"content": content}}]})
            self.wfile.write(f"data: {told}\\n\\n".encode())
        self.wfile.write(b"data: [DONE]\\n\\n")

    def log_message(self, *told):
        pass

ThreadingHTTPServer(("127.0.0.1", int(options["--port"])), Handler).serve_forever()
"""
