"""llama-server as the peer of `bench.serve`: slots of one server, each of which reads the document for itself."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from socket import create_server
from statistics import median
from typing import Any

from bench.speed.peer import environment
from minimemo.errors import MinimemoError

_WAIT = 3600.0  # seconds that an answer may take
_TOKENS = 8  # of an answer
_CHARACTERS = 3.0  # of a document in a token, at least


@contextmanager
def _server(program: Path, model: Path, threads: int, slots: int, tokens: int) -> Iterator[int]:
    """Its port. Each slot has room for `tokens`; caches of prompts, flash attention and one cache for all slots are
    on."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {"-m": model, "-t": threads, "-c": tokens * slots, "-np": slots, "-fa": "on", "--port": port}
    command = [str(program), *(str(word) for pair in options.items() for word in pair), "--kv-unified", "--no-webui"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment(program))
    try:
        end = time.monotonic() + 120
        while not _healthy(port):
            if process.poll() is not None or time.monotonic() > end:
                raise MinimemoError(f"{program}: the server did not start")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _healthy(port: int) -> bool:
    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def asked(program: Path, model: Path, threads: int, document: str, texts: Sequence[str]) -> dict[str, Any]:
    """Puts questions of one document at once, a slot each, to a server that has not read it, and each once more to the
    slots that have. Returns seconds: `first` of each slot, in the order in which they came; `again`, the median first
    token of the second round."""
    tokens = int(len(document) / _CHARACTERS) + 1024
    with _server(program, model, threads, len(texts), tokens) as port, ThreadPoolExecutor(len(texts)) as pool:
        prompts = [f"{document}\n\n{text}" for text in texts]
        first, again = (list(pool.map(lambda prompt: _first_token(port, prompt), prompts)) for _ in range(2))
    return {"slots": len(texts), "first": sorted(first), "again": median(again)}


def _first_token(port: int, prompt: str) -> float:
    """Seconds to the first text; the answer is read to its end."""
    begin = time.perf_counter()
    connection = HTTPConnection("127.0.0.1", port, timeout=_WAIT)
    body = {"messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": _TOKENS}
    body |= {"temperature": 0, "cache_prompt": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response, first = connection.getresponse(), 0.0
    if response.status != 200:
        raise MinimemoError(f"llama-server: {response.status} {response.read(300).decode(errors='replace')}")
    for line in response:
        if not first and line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
            first = time.perf_counter() - begin
    return first or time.perf_counter() - begin
