"""A document from its text to an answer: seconds, memory and bytes of each step, each step a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import minimemo
from bench.common.machine import RSS_UNIT
from bench.common.report import show
from minimemo.errors import InputError, MinimemoError

ASKED = {"en": "Who is named first in this document?", "zh": "最先出现的人物叫什么名字？"}
COLUMNS = (
    ("document", "<20"), ("tokens", "7,"), ("build_s", "7.1f"), ("tokens_per_s", "6.0f"), ("open_s", "6.1f"),
    ("first_token_s", "6.1f"), ("warm_token_s", "6.1f"), ("warm_answer_s", "6.1f"), ("build_peak_mb", "6.0f"),
    ("ask_peak_mb", "6.0f"), ("memo_mb", "7.1f"),
)  # fmt: skip


def measure(documents: Sequence[Path], options: dict[str, Any], repeat: int) -> dict[str, Any]:
    """Builds a memo of each document and asks it `repeat` times, each time in a process of its own, and takes medians.

    Seconds until a memo is open (models and passages ready) and until the first token count from the start of a cold
    process, imports included; warm: the same question again in that process. Peaks are as the kernel counted them
    (getrusage(2)): the mapped weights are in them.
    """

    def row(number: int, document: Path) -> dict[str, Any]:
        memo = f"{scratch}/{number}.memo"
        built = child("build", {**options, "document": str(document), "memo": memo})
        asked = {**options, "memo": memo, "question": ASKED[built.pop("language")]}
        answers = [child("ask", asked) for _ in range(repeat)]
        medians = {key: statistics.median(one[key] for one in answers) for key in answers[0]}
        peaks = {"build_peak_mb": built.pop("peak_mb"), "ask_peak_mb": medians.pop("peak_mb")}
        return {"document": document.name, **built, **peaks, **medians}

    with tempfile.TemporaryDirectory() as scratch:
        return {"documents": show(COLUMNS, (row(*one) for one in enumerate(documents)))}


def child(what: str, options: dict[str, Any]) -> dict[str, Any]:
    """Runs one step in a process of its own; moments that it gives count from here on."""
    began = time.time()
    command = [sys.executable, "-m", "bench.speed.document", what, json.dumps(options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise InputError(f"{what}: failed, see above")
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    moments = {key: moment - began for key, moment in result.pop("moments", {}).items()}
    return {**result, **moments, "peak_mb": used.ru_maxrss * RSS_UNIT / 1e6}


# -- in a child --------------------------------------------------------------------------------------------------------


def build(document: str, memo: str, **options: Any) -> dict[str, Any]:
    begin = time.perf_counter()
    with patch("minimemo.memo.build.kept_tails", return_value=[]):  # all of it is read, whatever was read before
        told = minimemo.build(document, memo, **_run_options(options)).inspect()
    seconds = time.perf_counter() - begin
    return {
        "language": told["document"]["language"],
        "characters": told["document"]["characters"],
        "tokens": told["memory"]["tokens"],
        "build_s": seconds,
        "tokens_per_s": told["memory"]["tokens"] / seconds,
        "memory_mb": told["memory"]["bytes"] / 1e6,
        "memo_mb": told["bytes"] / 1e6,
    }


def ask(memo: str, question: str, **options: Any) -> dict[str, Any]:
    options.pop("memory"), options.pop("window")
    opened = minimemo.open(memo, **_run_options(options))
    opened.session()
    ready = time.time()
    token, _ = _answer(opened, question)
    again = time.time()
    warm_token, warm_end = _answer(opened, question)
    moments = {"open_s": ready, "first_token_s": token}
    return {"moments": moments, "warm_token_s": warm_token - again, "warm_answer_s": warm_end - again}


def _answer(memo: minimemo.Memo, question: str) -> tuple[float, float]:
    """When the first piece of an answer came, and its end."""
    moments = [time.time() for step in memo.stream(question) if not isinstance(step, minimemo.Found)]
    return moments[0], moments[-1]


def _run_options(options: dict[str, Any]) -> dict[str, Any]:
    run = {name: options.pop(name) for name in ("kv_dtype", "threads")}
    return {**options, "options": minimemo.RunOptions(**run)}


if __name__ == "__main__":
    try:
        print(json.dumps({"build": build, "ask": ask}[sys.argv[1]](**json.loads(sys.argv[2]))))
    except MinimemoError as error:
        sys.exit(f"bench.speed: {error}")
