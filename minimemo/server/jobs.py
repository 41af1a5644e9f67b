"""Builds that a server has going: one at a time, each in a process of its own, so that questions go on beside it.

An upload that waits or is being read is noted in a file, SERVER-JOB, which goes when its build has ended. The notes of
a server that was stopped or killed, whose lock nobody has, are taken over by the next one.
"""

from __future__ import annotations

import json
import os
import queue
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from minimemo.errors import InputError
from minimemo.files import parse_json, private_folder, write_whole
from minimemo.memo.folder import sweep
from minimemo.server.desk import Busy

KEPT = 100  # So many jobs that have ended are remembered.
END = 5.0  # seconds that a build has to end when it was told to
PASSWORD = "MINIMEMO_DOCUMENT_PASSWORD"  # of the environment of a build
WAITING = 500  # So many builds of one owner may wait; more are sent away.
_SLOW = {"read", "calibrate", "embed"}  # stages that take the time


class Job:
    """One document on its way to a memo. state: waiting, running, done, failed or cancelled."""

    def __init__(self, source: Path, options: Mapping[str, Any], owner: str = "") -> None:
        self.owner = owner
        self.id = secrets.token_hex(6)
        self.source = source
        self.options = dict(options)
        self.password: str = self.options.pop("password", "")  # never written, nor on a command line
        self.state = "waiting"
        self.stage, self.done, self.total, self.unit = "", 0, 0, ""
        self.error = ""
        self.memo: Path | None = None
        self.notes: list[str] = []
        self.cancelled = threading.Event()
        self.child: subprocess.Popen[str] | None = None
        self._since = time.monotonic()

    def facts(self) -> dict[str, Any]:
        """JSON-able. eta_s: seconds that the stage takes on, at its pace so far; None where nothing can be said."""
        took, eta = time.monotonic() - self._since, None
        if self.state == "running" and self.stage in _SLOW and 0 < self.done < self.total and took > 2:
            eta = took / self.done * (self.total - self.done)
        return {
            "id": self.id, "name": self.source.name, "state": self.state, "stage": self.stage, "done": self.done,
            "total": self.total, "unit": self.unit, "eta_s": eta, "error": self.error, "notes": self.notes,
        }  # fmt: skip

    def hear(self, fact: Mapping[str, Any]) -> None:
        """Takes a line of the builder's."""
        if fact.get("unit") == "note":
            self.notes.append(fact["stage"])
        elif "stage" in fact:
            if fact["stage"] != self.stage:
                self._since = time.monotonic()
            self.stage, self.done, self.total, self.unit = fact["stage"], fact["done"], fact["total"], fact["unit"]
        elif "memo" in fact:
            self.memo = Path(fact["memo"])
        else:
            self.error = fact.get("error", "")


class Jobs:
    """The line of builds. An upload whose build failed or was cancelled is deleted, with all that was read of it.

    models: `model` and `embedder` to build with, where those are not the defaults.
    """

    def __init__(self, uploads: Path, models: Mapping[str, Any] | None = None) -> None:
        self._uploads = uploads
        self._models = {name: str(model) for name, model in (models or {}).items() if model is not None}
        self._owner = ""
        self._jobs: dict[str, Job] = {}
        self._line: queue.Queue[Job | None] = queue.Queue()
        self._closing = threading.Event()
        self._notes = uploads.with_name("builds")
        self._server = secrets.token_hex(6)
        self._lock = FileLock(self._notes / f"{self._server}.lock", timeout=0, thread_local=False)
        self._take_over()
        self._thread = threading.Thread(target=self._work, name="builds", daemon=True)
        self._thread.start()

    def of(self, owner: str) -> Jobs:
        """The same line, in which one sees the builds alone that were begun through it."""
        part = copy(self)
        part._owner = owner
        return part

    def check(self) -> None:
        """Raises Busy where so many builds wait that one more would wait too long."""
        if sum(job.state == "waiting" for job in self.all()) >= WAITING:
            raise Busy(f"{WAITING} builds wait already: wait for some of them")

    def submit(self, source: Path, options: Mapping[str, Any]) -> Job:
        """Puts a build into the line. Raises Busy."""
        self.check()
        return self._put(Job(source, {**self._models, **options}, self._owner))

    def _put(self, job: Job) -> Job:
        ended = [one for one in list(self._jobs.values()) if one.state not in ("waiting", "running")]
        for old in ended[:-KEPT]:
            del self._jobs[old.id]
        if self._is_upload(job):
            private_folder(self._notes)
            if not self._lock.is_locked:
                self._lock.acquire()
            note = {"source": str(job.source), "options": job.options, "owner": job.owner}
            write_whole(self._note(job), json.dumps(note).encode(), private=True)
        self._jobs[job.id] = job
        self._line.put(job)
        return job

    def _is_upload(self, job: Job) -> bool:
        return self._uploads in job.source.parents

    def _note(self, job: Job) -> Path:
        return self._notes / f"{self._server}-{job.id}"

    def _take_over(self) -> None:
        """Puts the uploads into the line that servers had in theirs which run no longer."""
        entries = self._notes.iterdir() if self._notes.is_dir() else ()
        for server in {re.split("[-.]", entry.name)[0] for entry in entries if not entry.name.startswith(".")}:
            lock = self._notes / f"{server}.lock"
            with suppress(Timeout), FileLock(lock, timeout=0):  # else it runs
                for note in sorted(self._notes.glob(f"{server}-*"), key=lambda note: note.stat().st_mtime_ns):
                    with suppress(ValueError, KeyError, TypeError):  # a file that is no note
                        told = parse_json(note.read_bytes())
                        job = Job(Path(told["source"]), told["options"], told["owner"])
                        if self._is_upload(job) and job.source.is_file():
                            self._put(job)
                    note.unlink()
                lock.unlink()

    def all(self) -> list[Job]:
        return [job for job in list(self._jobs.values()) if self._owner in ("", job.owner)]

    def job(self, id: str) -> Job:
        if id not in self._jobs or self._owner not in ("", self._jobs[id].owner):
            raise InputError(f"no job {id!r} here: /api/jobs lists them")
        return self._jobs[id]

    def cancel(self, id: str) -> Job:
        job = self.job(id)
        job.cancelled.set()
        if job.state == "waiting":
            job.state = "cancelled"
        if (child := job.child) is not None:
            child.terminate()
        return job

    def close(self) -> None:
        """Stops the build that is going; the same build goes on from where it was, that of an upload and those behind
        it in the next server."""
        self._closing.set()
        self._line.put(None)
        for job in self.all():
            if (child := job.child) is not None:
                child.terminate()
        self._thread.join(END)
        if self._lock.is_locked:
            self._lock.release()

    def _work(self) -> None:
        while (job := self._line.get()) is not None and not self._closing.is_set():
            if not job.cancelled.is_set():
                self._build(job)
            if self._is_upload(job):
                if job.memo is None and not job.cancelled.is_set() and self._closing.is_set():
                    return
                with suppress(OSError):
                    if job.memo is None:
                        sweep(job.source.with_suffix(".memo"))
                        job.source.unlink()
                    self._note(job).unlink()

    def _build(self, job: Job) -> None:
        command = [sys.executable, "-m", "minimemo.server.builder", str(job.source), json.dumps(job.options)]
        secret = {PASSWORD: job.password} if job.password else {}
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8", env={**os.environ, **secret}
        ) as child:
            job.child, job.state = child, "running"
            if job.cancelled.is_set() or self._closing.is_set():
                child.terminate()
            errors: list[str] = []
            listener = threading.Thread(target=lambda: errors.extend(child.stderr or ()), daemon=True)
            listener.start()
            assert child.stdout is not None
            for line in child.stdout:
                with suppress(ValueError, KeyError):
                    job.hear(json.loads(line))
            code = child.wait()
            listener.join(1)
        job.child = None
        job.state = "cancelled" if job.cancelled.is_set() else "done" if job.memo and code == 0 else "failed"
        if job.state == "failed" and not job.error:
            last = errors[-1].strip() if errors else f"exit code {code}"
            job.error = f"{job.source.name}: the build ended by itself ({last}); try it with `minimemo build`"
