"""Readers ask a server for minutes while it builds: is every answer the one that a reader alone gets?

`python -m bench.serve --soak MINUTES` runs it. The server is a process of its own, which readers speak HTTP with. Some
leave in the middle of an answer, one reads slowly; documents are built and deleted all the time.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from bench.common.machine import rss_bytes
from minimemo.errors import MinimemoError

LEAVERS = 200  # clients that leave in the middle, spread over the time
SLOW = 0.05  # seconds that the slow reader waits before each line
WARM = 60.0  # seconds after which memory is to grow no more
_WAIT = 600.0  # seconds that an answer may take


@contextmanager
def serving(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Runs a server, told to listen at a free port, from when it is well until it is ended as a service is. Raises
    MinimemoError where it does not start."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, env=env)
    server, end = Server(port, process), time.monotonic() + 120
    try:
        while server.request("GET", "/health") is None:
            if process.poll() is not None or time.monotonic() > end:
                raise MinimemoError(f"{command[0]}: the server did not start")
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(60)


@dataclass(frozen=True, slots=True)
class Server:
    """A process that serves HTTP."""

    port: int
    process: subprocess.Popen[bytes]

    def request(self, method: str, path: str, body: bytes | None = None) -> Any:
        """What a request gets, JSON; None where nothing answers, or not yet."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_WAIT)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return None if response.status == 503 else json.loads(response.read() or b"{}")
        except OSError:
            return None
        finally:
            connection.close()

    def events(self, body: dict[str, Any], slow: float = 0.0) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of a question, as they come. The connection is closed when nobody goes on with them."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_WAIT)
        try:
            connection.request("POST", "/api/ask", json.dumps(body).encode(), {"Content-Type": "application/json"})
            response, name = connection.getresponse(), ""
            while line := response.readline():
                time.sleep(slow)
                field, _, value = line.rstrip().decode().partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)
        finally:
            connection.close()


def soak(
    memo: Path, bodies: Sequence[dict[str, Any]], built: str, minutes: float, readers: int, options: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Soaks a server of one memo. bodies: what is asked. built: the text that is built again and again. Gives a row
    every half minute, the last one with the `growth` of memory after WARM."""
    with serving([sys.executable, "-m", "minimemo", "serve", str(memo), *options]) as server:
        alone = [_answer(server, body) for body in bodies]
        counts, waits, lock = Counter[str](), list[float](), threading.Lock()
        ended, sizes = threading.Event(), list[tuple[float, int]]()
        begun = time.monotonic()
        end = begun + 60 * minutes

        def add(*names: str) -> None:
            with lock:
                counts.update(names)

        def asking(number: int) -> None:
            pick, slow = random.Random(number), SLOW if number == 0 else 0.0
            while not ended.is_set():
                which, asked = pick.randrange(len(bodies)), time.monotonic()
                try:
                    text = _answer(server, bodies[which], slow)
                except (OSError, ValueError, MinimemoError):
                    add("lost")
                    continue
                add("answers", *["wrong"] * (text != alone[which]))
                waits.append(time.monotonic() - asked)

        def due() -> float:
            return begun + 60 * minutes * counts["left"] / LEAVERS

        def leaving(number: int) -> None:
            pick = random.Random(99 + number)
            while not ended.wait(due() - time.monotonic()) and counts["left"] < LEAVERS:
                with suppress(OSError, ValueError):
                    for count, _ in enumerate(server.events(pick.choice(bodies))):
                        if count >= pick.randrange(1, 8):
                            break
                    add("left")

        def building() -> None:
            while not ended.is_set():
                path = f"/api/documents?name=built-{counts['builds']}.txt"
                job = (server.request("POST", path, built.encode()) or {}).get("job")
                while job and job["state"] in ("waiting", "running") and not ended.wait(0.2):
                    job = server.request("GET", f"/api/jobs/{job['id']}")
                if job and job["state"] == "done":
                    add("builds")
                    server.request("DELETE", f"/api/documents/{job['document']}")
                elif not ended.wait(1):
                    add("failed")

        left = (lambda n=n: leaving(n) for n in range(2))  # one alone, which waits for first events, is too few
        jobs = [*(lambda n=n: asking(n) for n in range(readers)), *left, building]
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        told = begun
        while (now := time.monotonic()) < end and server.process.poll() is None:
            sizes.append((now - begun, rss_bytes(server.process.pid)))
            if now - told >= 30:
                told = now
                yield _row(counts, waits, sizes)
            time.sleep(0.5)
        ended.set()
        for thread in threads:
            thread.join(_WAIT)
    yield {**_row(counts, waits, sizes), "growth": _growth(sizes)}


def _growth(sizes: Sequence[tuple[float, int]]) -> float | None:
    """The share by which memory grew after WARM: the median of the last quarter to that of the first."""
    warm = [size for at, size in sizes if at >= WARM]
    quarter = len(warm) // 4
    if not quarter:
        return None
    return sorted(warm[-quarter:])[quarter // 2] / sorted(warm[:quarter])[quarter // 2] - 1


def _row(counts: Counter[str], waits: Sequence[float], sizes: Sequence[tuple[float, int]]) -> dict[str, Any]:
    waits = sorted(waits) or [0.0]
    return {
        "minutes": sizes[-1][0] / 60,
        **{name: counts[name] for name in ("answers", "wrong", "lost", "left", "builds", "failed")},
        "whole_p50": waits[len(waits) // 2],
        "whole_p95": waits[int(0.95 * len(waits))],
        "rss_mb": sizes[-1][1] / 1e6,
    }


def _answer(server: Server, body: dict[str, Any], slow: float = 0.0) -> str:
    """The text of an answer. Raises MinimemoError where none came."""
    for name, told in server.events(body, slow):
        if name == "answer":
            return str(told["text"])
        if name == "error":
            raise MinimemoError(str(told))
    raise MinimemoError("no answer came")
