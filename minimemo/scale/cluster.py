"""Memos built on many machines: a Ray cluster whose actors keep models loaded, one document at a time each.

A document travels to an actor and its memo back, so machines need no common folder: minimemo and the models on each are
enough. Nothing of it stays there. What is lost with a machine is built once more elsewhere: builds are deterministic,
so it does not matter who built which. The process that hands out the work may be killed: sync goes on from what it has.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minimemo.ask import PROMPTS, load_prompts
from minimemo.errors import InputError, MemoError, MinimemoError
from minimemo.files import content_hash, profiles_dir, write_whole
from minimemo.memo.build import build
from minimemo.memo.folder import MEMO, staging
from minimemo.memo.library import portable_files, remove
from minimemo.memo.manifest import FILES, NAME
from minimemo.memo.registry import remember_all
from minimemo.runtime import RunOptions
from minimemo.text.document import file_bytes

CORES = 4  # of an actor, where --threads does not say
LOOK = 5.0  # seconds after which machines that came or went are looked for
TRIES = 3  # of a document whose actors die


class Builder:
    """What an actor is: builds documents one after the other with models that stay loaded."""

    def __init__(self, options: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        prompts = settings.get("prompts")
        self._run: dict[str, Any] = {**settings, "options": RunOptions(**options)}
        self._run["prompts"] = load_prompts(prompts) if prompts else PROMPTS

    def ready(self) -> None:  # reached by: ray
        """Says that it is there."""

    def build(self, name: str, content: bytes) -> dict[str, bytes] | str:  # reached by: ray
        """The files of the document's memo, but for the profile, of which there is the name; or why there is none."""
        with tempfile.TemporaryDirectory(prefix="minimemo-") as scratch:
            document, memo = Path(scratch) / name, Path(scratch) / "memo.memo"
            document.write_bytes(content)
            try:
                opened = build(document, memo, **self._run)
                self._run |= {"model": opened.runtime.model, "embedder": opened.runtime.embedder}
                files = portable_files(memo)
                made = {file.name: file.read_bytes() if file.name in (NAME, *FILES) else b"" for file in files}
                remove(memo)  # with all else that a build keeps here
                return made
            except MinimemoError as error:
                return str(error).removeprefix(f"{document}: ") or type(error).__name__

    def profile(self, name: str) -> bytes:  # reached by: ray
        """A profile that this machine has."""
        return (profiles_dir() / name).read_bytes()


def build_on_cluster(
    tasks: Iterable[tuple[Path, Path, str]], address: str, options: RunOptions, settings: Mapping[str, Any]
) -> Generator[tuple[Path, str], None, None]:
    """Makes memos of documents, (document, place, SHA-256) each, on the machines of a Ray cluster; gives each document
    when it is done, with why it failed or "". settings: what else `build` is told, JSON-able.

    Raises InputError where ray is not installed, or nothing answers at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(f"--ray needs ray: pip install 'minimemo[ray]' ({error})") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0][:200]
        raise InputError(f"--ray {address}: no cluster answers; begin one with ray start --head ({why})") from None
    try:
        yield from _handed_out(ray, tasks, options, settings)
    finally:
        ray.shutdown()  # its actors end with it


def _handed_out(
    ray: Any, tasks: Iterable[tuple[Path, Path, str]], options: RunOptions, settings: Mapping[str, Any]
) -> Generator[tuple[Path, str], None, None]:
    sizes = _cores(ray)
    cores = max(1, min(options.threads or CORES, *sizes)) if sizes else CORES
    run = {**asdict(options), "threads": cores}
    kind = ray.remote(num_cpus=cores)(Builder)
    coming, again = iter(tasks), deque[tuple[Path, Path, str, int]]()
    starting: dict[Any, Any] = {}  # A worker gets a document when it has said that it is there: none may come to be.
    idle: list[Any] = []
    busy: dict[Any, tuple[Any, tuple[Path, Path, str, int]]] = {}
    arrived = deque[tuple[dict[str, bytes] | str, Path, Path, Any]]()
    capacity, looked = 0, -LOOK
    while True:
        if time.monotonic() - looked >= LOOK:
            capacity, looked = sum(size // cores for size in _cores(ray)), time.monotonic()
        for _ in range(capacity - len(starting) - len(idle) - len(busy)):
            actor = kind.remote(run, settings)
            starting[actor.ready.remote()] = actor
        while idle:
            if again:
                task = again.popleft()
            elif (new := next(coming, None)) is not None:
                task = (*new, 1)
            else:
                break
            document, _, sha256, _ = task
            try:
                content = file_bytes(document, sha256)[0]
            except MinimemoError as error:
                yield document, str(error).removeprefix(f"{document}: ")
                continue
            actor = idle.pop()
            busy[actor.build.remote(document.name, content)] = actor, task
        while arrived:  # while the workers are at the next ones
            made, document, memo, actor = arrived.popleft()
            try:
                if not isinstance(made, str):
                    _arrive(made, document, memo, lambda name, actor=actor: ray.get(actor.profile.remote(name)))
                yield document, made if isinstance(made, str) else ""
            except MinimemoError as error:
                yield document, str(error)
            except OSError as error:  # the document is gone by now, perhaps
                yield document, f"cannot be read ({error.strerror or error})"
        if idle and not busy:
            return
        if not capacity:
            raise MinimemoError("the cluster has no machine left; start it again, and the same sync goes on")
        ready, _ = ray.wait([*busy, *starting], timeout=LOOK)
        for reference in [one for one in ready if one in starting]:
            actor = starting.pop(reference)
            try:
                ray.get(reference)
                idle.append(actor)
            except ray.exceptions.ActorDiedError as error:
                looked = -LOOK
                if error.actor_init_failed:
                    raise MinimemoError(f"workers cannot start: {str(error).strip().splitlines()[-1]}") from None
            except ray.exceptions.RayError:
                looked = -LOOK  # its machine went before it came; another one is begun
        for reference in [one for one in ready if one in busy]:
            actor, (document, memo, sha256, tries) = busy.pop(reference)
            try:
                arrived.append((ray.get(reference), document, memo, actor))
                idle.append(actor)
            except ray.exceptions.RayError as error:
                looked = -LOOK
                with suppress(Exception):  # most often it is dead already
                    ray.kill(actor)
                if tries < TRIES:
                    again.append((document, memo, sha256, tries + 1))
                else:
                    yield document, f"{TRIES} workers ended while they built it ({type(error).__name__})"


def _arrive(made: Mapping[str, bytes], document: Path, memo: Path, profile: Any) -> None:
    """Gives a memo that came from elsewhere its place, whole or not at all, and keeps the profile that it needs."""
    stamp = {"document": content_hash(document), "built": "elsewhere"}
    with staging(memo, stamp, document.stat().st_mode) as folder:
        for name, content in made.items():
            if name == NAME or name in FILES:
                (folder / MEMO / name).write_bytes(content)
            elif not (profiles_dir() / name).is_file():
                if Path(name).name != name or not name.endswith(".safetensors"):
                    raise MemoError(f"{name}: is no profile")
                write_whole(profiles_dir() / name, profile(name))
    remember_all([memo])


def _cores(ray: Any) -> list[int]:
    """Cores of each machine that is there."""
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
