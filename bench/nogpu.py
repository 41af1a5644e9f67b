"""What does a step on a GPU cost the processor that asks for it, and how many bytes do its weights take? No GPU needed.

    python -m bench.nogpu
    python -m bench.nogpu --seconds 5

Qwen2.5-0.5B's shapes in q4_k_m on torch's meta device, the decoder and Triton's dispatch as on a GPU, and in place of
Triton's driver and compiler ones that do nothing: what is left is the work of the processor. A CUDA launch itself, some
3 microseconds each, and torch's own on a device come on top. Processor time of the best of many passes counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from bench.common.report import command, heading, line, parser
from bench.common.shapes import bytes_held, engine
from minimemo.errors import InputError
from minimemo.kernels import triton as served

COLUMNS = (("pass", "<36"), ("launches", "9.0f"), ("ms", "8.2f"), ("us_a_launch", "12.1f"))


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.nogpu")
    made.add_argument("--seconds", type=float, default=2.0, help="for each pass")
    return command(made.parse_args(arguments), "bench.nogpu", run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if not served.installed():
        raise InputError("triton is not installed: pip install 'minimemo[gpu]' on Linux")
    rows = []
    print(heading(COLUMNS))
    with nothing_launched() as count:
        for name, work in _passes().items():
            work()
            before = count()
            work()
            launches, best = count() - before, float("inf")
            end, turns = time.monotonic() + args.seconds, 0
            while time.monotonic() < end or turns < 5:
                start = time.thread_time()
                work()
                best, turns = min(best, time.thread_time() - start), turns + 1
            rows.append({"pass": name, "launches": launches, "ms": best * 1e3, "us_a_launch": best / launches * 1e6})
            print(line(COLUMNS, rows[-1]), flush=True)
    weights = {}
    for name in ("0.5B", "7B"):
        held, file = bytes_held(name)
        weights[name] = {"bytes_held": held, "of_the_file": held / file}
        print(f"weights of a {name} in q4_k_m: {held / 1e6:.0f} MB held, {held / file:.3f} times what the file takes")
    return {"passes": rows, "weights": weights}


def _passes() -> dict[str, Callable[[], object]]:
    from minimemo.engine.steps import DeviceSteps

    made = engine()
    memory, tails = made.new_cache(8192), made.new_caches(3, 64)
    memory.length = 5000
    one, three = DeviceSteps(made.decoder, [memory], None), DeviceSteps(made.decoder, tails, memory)

    return {
        "a step of one row, without a graph": one._step,
        "of three rows over a memory": three._step,
    }


class _Compiled:
    """Stands for a compiled kernel: launching it counts."""

    launches = 0
    function = packed_metadata = None

    def __init__(self, *_: object, **__: object) -> None: ...

    def launch_metadata(self, *_: object) -> None: ...

    def result(self) -> _Compiled:
        return self

    def run(self, *_: object) -> None:
        _Compiled.launches += 1


class _Driver:
    """Stands for Triton's driver of a GPU of capability 9.0."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def nothing_launched() -> Iterator[Callable[[], int]]:
    """Kernels are dispatched by Triton, and neither compiled nor launched; gives the number of launches so far."""
    import triton
    import triton.compiler

    with (
        patch.object(served, "DEVICE", "meta"),
        patch.object(triton.compiler, "compile", _Compiled),
        patch.object(triton.runtime.driver, "_active", _Driver()),
    ):
        yield lambda: _Compiled.launches


if __name__ == "__main__":
    sys.exit(main())
