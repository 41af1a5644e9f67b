"""Processes that build memos side by side: each loads the models once and takes one document after the other.

They are told by lines of JSON what to build, and tell by lines what became of it. One that is killed fails the document
that it was at, and another takes its place. None outlives the process that started it: its input ends, and it ends as
if it were killed, which a build goes on from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Queue
from threading import Lock, Thread
from typing import Any

from minimemo.errors import InputError, MinimemoError
from minimemo.events import Event, Listener, silent
from minimemo.runtime import RunOptions

END = 5.0  # seconds that a process has to end when its input has
_WORKER = [sys.executable, "-c", "from minimemo.scale.workers import work; work()"]


def build_in_processes(
    pairs: Iterable[tuple[Path, Path]], jobs: int, options: RunOptions, settings: Mapping[str, Any],
    on_event: Listener = silent,
) -> Generator[tuple[Path, str], None, None]:  # fmt: skip
    """Makes memos of documents, (document, place) each, in `jobs` processes that share out the threads; gives each
    document when it is done, with why it failed or "". settings: what else `build` is told, JSON-able; `prompts` is a
    file. on_event gets the notes of all processes, from several threads."""
    threads = max(1, (options.threads or _cores()) // jobs)
    run = {"dtype": options.dtype, "kv_dtype": options.kv_dtype, "threads": threads, "device": options.device}
    start = json.dumps({**settings, "options": run})
    waiting, lock, done = iter(pairs), Lock(), Queue[tuple[Path, str] | BaseException | None]()
    running: list[subprocess.Popen[str]] = []

    def serve() -> None:
        process = None
        try:
            while True:
                with lock:
                    if (pair := next(waiting, None)) is None:
                        break
                    if process is None or process.poll() is not None:
                        process = _started(start, threads)
                        running.append(process)
                done.put((pair[0], _built(process, pair, on_event)))
        except BaseException as error:
            done.put(error)
        finally:
            if process is not None:
                _end(process)
            done.put(None)

    for _ in range(jobs):
        Thread(target=serve, daemon=True).start()
    left = jobs
    try:
        while left:
            told = done.get()
            if isinstance(told, BaseException):
                raise told
            if told is None:
                left -= 1
            else:
                yield told
    finally:
        with lock:
            waiting = iter(())  # nothing more is begun
        for process in running:
            _end(process)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _started(settings: str, threads: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        _WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment,
        start_new_session=True,  # Ctrl-C is for the process that hands out the work
    )  # fmt: skip
    _tell(process, settings)
    return process


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it is gone, which its output says
        process.stdin.write(f"{line}\n")
        process.stdin.flush()


def _built(process: subprocess.Popen[str], pair: tuple[Path, Path], on_event: Listener) -> str:
    """Why a document could not be built in a process, or ""."""
    assert process.stdout is not None
    _tell(process, json.dumps([str(path) for path in pair]))
    for line in process.stdout:
        told = json.loads(line)
        if "note" in told:
            on_event(Event(told["note"], 1, 1, "note"))
        else:
            return str(told["error"])
    code = process.wait()
    how = f"by signal {-code}: too little memory?" if code < 0 else f"with {code}"
    return f"the process that built it ended {how}"


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process: at once where it has nothing to do, else by its input's end."""
    with suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()
    try:
        process.wait(END)
    except subprocess.TimeoutExpired:
        process.kill()


def work() -> None:
    """What a worker does, to the end of its standard input."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints
    lines: Queue[str] = Queue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # whoever gave the work is gone, or has none any longer

    settings = json.loads(sys.stdin.readline())
    Thread(target=listen, daemon=True).start()

    from minimemo.ask import PROMPTS, load_prompts
    from minimemo.memo.build import build

    def tell(**told: str) -> None:
        out.write(json.dumps(told) + "\n")
        out.flush()

    def listener(event: Event) -> None:
        if event.unit == "note":
            tell(note=event.stage)

    options, prompts = RunOptions(**settings.pop("options")), settings.pop("prompts", None)
    run: dict[str, Any] = {
        **settings, "options": options, "on_event": listener, "prompts": load_prompts(prompts) if prompts else PROMPTS
    }  # fmt: skip
    while True:
        document, memo = json.loads(lines.get())
        try:
            opened = build(document, memo, **run)
            run |= {"model": opened.runtime.model, "embedder": opened.runtime.embedder}  # loaded once for all
            tell(error="")
        except MinimemoError as error:
            tell(error=str(error) or type(error).__name__)
        except MemoryError:
            tell(error="too little memory is free; take fewer --jobs")


def check_jobs(jobs: int) -> int:
    """Raises InputError for a number of processes that makes no sense here."""
    if not 1 <= jobs <= 4 * _cores():
        raise InputError(f"--jobs {jobs}: this machine has {_cores()} cores; take 1 to {4 * _cores()}")
    return jobs
