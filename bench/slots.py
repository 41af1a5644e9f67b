"""llama-server as the peer of `bench.serve`: slots of one server, each of which reads the document for itself."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

from bench.soak import serving
from bench.speed.peer import environment
from minimemo.errors import MinimemoError

_WAIT = 3600.0  # seconds that an answer may take
_TOKENS = 8  # of an answer
_CHARACTERS = 3.0  # of a document in a token, at least


def asked(program: Path, model: Path, threads: int, document: str, texts: Sequence[str]) -> dict[str, Any]:
    """Puts questions of one document at once, a slot each, to a server that has not read it, and each once more to the
    slots that have. Returns seconds: `first` of each slot, in the order in which they came; `again`, the median first
    token of the second round."""
    count, tokens = len(texts), int(len(document) / _CHARACTERS) + 1024  # of a slot
    # Caches of prompts, flash attention and one cache for all slots are on.
    options = {"-m": model, "-t": threads, "-c": tokens * count, "-np": count, "-fa": "on"}
    command = [str(program), *(str(word) for pair in options.items() for word in pair)]
    command += ["--kv-unified", "--no-webui", "--log-disable"]
    with serving(command, environment(program)) as server, ThreadPoolExecutor(count) as pool:
        prompts = [f"{document}\n\n{text}" for text in texts]
        first, again = (list(pool.map(lambda prompt: _first_token(server.port, prompt), prompts)) for _ in range(2))
    return {"slots": count, "first": sorted(first), "again": median(again)}


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
