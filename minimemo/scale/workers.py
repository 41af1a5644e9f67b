"""Processes that build memos side by side, one document after the other each.

One process loads the models, on one thread, and splits (fork) into those that build: what is loaded lies in memory once
for all of them. On a GPU, which does not outlive a split, and where fork is not safe after loading, each of them loads
the models for itself. Who is killed fails the document that it was at, and another takes its place. None outlives the
process that handed out the work: its connection ends, and it ends as if it were killed, which a build goes on from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, cast

from minimemo.errors import InputError, MinimemoError
from minimemo.events import Event, Listener, silent
from minimemo.runtime import RunOptions, Runtime
from minimemo.threads import forked_on_one_thread

END = 5.0  # seconds that processes have to end when their connection has
_WORKER = [sys.executable, "-c", "import sys; from minimemo.scale.workers import work; work(int(sys.argv[1]))"]


def build_in_processes(
    tasks: Iterable[tuple[Path, Path, str]], jobs: int, options: RunOptions, settings: Mapping[str, Any],
    on_event: Listener = silent,
) -> Generator[tuple[Path, str], None, None]:  # fmt: skip
    """Makes memos of documents, (document, place, SHA-256) each, in `jobs` processes that share out the threads; gives
    each document when it is done, with why it failed or "". settings: what else `build` is told, JSON-able; `prompts`
    is a file. on_event gets the notes of all processes."""
    threads = max(1, (options.threads or _cores()) // jobs)
    run = {"dtype": options.dtype, "kv_dtype": options.kv_dtype, "threads": threads, "device": options.device}
    start = {**settings, "options": run}
    waiting, busy = iter(tasks), dict[str, Path]()
    process, connection = None, None
    try:
        while True:
            while len(busy) < jobs and (task := next(waiting, None)) is not None:
                if process is None or connection is None:
                    process, connection = _started(start, threads)
                document, memo, sha256 = task
                busy[str(document)] = document
                _tell(connection, [str(document), str(memo), sha256])
            if not busy or process is None or connection is None:
                return
            try:
                told = json.loads(connection.recv_bytes())
            except (EOFError, OSError):
                why = _how(process.wait())
                process = None
                while busy:
                    yield busy.popitem()[1], why
                continue
            if "note" in told:
                on_event(Event(told["note"], 1, 1, "note"))
            else:
                yield busy.pop(told["document"]), str(told["error"])
    finally:
        if process is not None and connection is not None:
            _end(process, connection)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _started(settings: Mapping[str, Any], threads: int) -> tuple[subprocess.Popen[bytes], Connection]:
    """The process that loads the models, and the connection to it."""
    own, its = Pipe()
    environment = {"TOKENIZERS_PARALLELISM": "false", **os.environ, "OMP_NUM_THREADS": str(threads)}
    with its:
        process = subprocess.Popen(
            [*_WORKER, str(its.fileno())], stdin=subprocess.DEVNULL, stdout=2, env=environment, pass_fds=[its.fileno()],
            start_new_session=True,  # Ctrl-C is for the process that hands out the work
        )  # fmt: skip
    _tell(own, settings)
    return process, own


def _tell(connection: Connection, what: Any) -> None:
    with suppress(OSError):  # whoever listened is gone, which the connection's end says
        connection.send_bytes(json.dumps(what).encode())


def _how(code: int | None) -> str:
    how = f"by signal {-code}: too little memory?" if code is not None and code < 0 else f"with {code}"
    return f"the process that built it ended {how}"


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    try:
        process.wait(END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def work(descriptor: int) -> None:
    """What the process does that others are split off from, until its connection ends."""
    from minimemo.memo.build import build

    parent = Connection(descriptor)
    run = _loaded(json.loads(parent.recv_bytes()), parent)
    processes: dict[Connection, tuple[BaseProcess, str]] = {}  # each with the document that it is at, or ""
    while True:
        for ready in cast(list[Connection], wait([parent, *processes])):
            try:
                told = json.loads(ready.recv_bytes())
            except (EOFError, OSError):
                if ready is parent:
                    for process, _ in processes.values():
                        process.kill()
                    return
                process, document = processes.pop(ready)
                process.join()
                if document:
                    _tell(parent, {"document": document, "error": _how(process.exitcode)})
                continue
            if ready is parent:
                worker = next((one for one, (_, document) in processes.items() if not document), None)
                if worker is None:
                    worker, its = Pipe()
                    others = [parent, worker, *processes]
                    process = get_context("fork").Process(target=_build_all, args=(build, its, run, others))
                    process.start()
                    its.close()
                else:
                    process, _ = processes[worker]
                processes[worker] = process, told[0]
                _tell(worker, told)
            else:
                if "error" in told:
                    processes[ready] = processes[ready][0], ""
                _tell(parent, told)


def _loaded(settings: dict[str, Any], parent: Connection) -> dict[str, Any]:
    """What `build` is told, with the models, loaded, where they can be shared."""
    import torch

    from minimemo.ask import PROMPTS, load_prompts

    options, prompts = RunOptions(**settings.pop("options")), settings.pop("prompts", None)
    run = {**settings, "options": options, "prompts": load_prompts(prompts) if prompts else PROMPTS}
    torch.set_num_threads(1)  # a thread would be missing after the split
    if sys.platform == "linux" and _on_cpu(options):
        with suppress(MinimemoError, MemoryError):  # each document says it once more
            one = replace(options, threads=1)
            models = Runtime(settings.get("model"), settings.get("embedder"), one, _notes(parent))
            run |= {"model": models.decoder(), "embedder": models.opened_embedder()}
    return run


def _on_cpu(options: RunOptions) -> bool:
    """Whether models run on the CPU; asked in a process of its own, as whoever has looked for a GPU cannot split."""

    def look() -> None:
        with suppress(MinimemoError):
            os._exit(options.place().name != "cpu")
        os._exit(1)

    process = get_context("fork").Process(target=look)
    process.start()
    process.join()
    return process.exitcode == 0


def _notes(connection: Connection) -> Listener:
    def listener(event: Event) -> None:
        if event.unit == "note":
            _tell(connection, {"note": event.stage})

    return listener


def _build_all(
    build: Callable[..., Any], connection: Connection, run: dict[str, Any], others: Iterable[Connection]
) -> None:
    """Builds one document after the other, to the end of the connection."""
    for other in others:
        other.close()
    forked_on_one_thread()
    tasks: Queue[list[str]] = Queue()

    def listen() -> None:
        with suppress(EOFError, OSError):
            while True:
                tasks.put(json.loads(connection.recv_bytes()))
        os._exit(0)  # whoever gave the work is gone, or has none any longer

    Thread(target=listen, daemon=True).start()
    run["on_event"] = _notes(connection)
    while True:
        document, memo, sha256 = tasks.get()
        error = ""
        try:
            opened = build(document, memo, sha256=sha256, **run)
            run |= {"model": opened.runtime.model, "embedder": opened.runtime.embedder}  # loaded once for all
        except MinimemoError as failed:
            error = str(failed) or type(failed).__name__
        except MemoryError:
            error = "too little memory is free; take fewer --jobs"
        _tell(connection, {"document": document, "error": error})


def check_jobs(jobs: int) -> int:
    """Raises InputError for a number of processes that makes no sense here."""
    if not 1 <= jobs <= 4 * _cores():
        raise InputError(f"--jobs {jobs}: this machine has {_cores()} cores; take 1 to {4 * _cores()}")
    return jobs
