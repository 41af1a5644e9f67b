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
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from bench.common.machine import least
from bench.common.report import command, parser, show
from bench.common.shapes import bytes_held, engine
from minimemo.errors import InputError
from minimemo.kernels import triton as served
from minimemo.models.decoder import Row

if TYPE_CHECKING:
    from minimemo.engine.steps import DeviceSteps

COLUMNS = (("pass", "<36"), ("launches", "9.0f"), ("ms", "8.2f"), ("us_a_launch", "12.1f"))


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.nogpu")
    made.add_argument("--seconds", type=float, default=2.0, help="for each pass")
    return command(made.parse_args(arguments), "bench.nogpu", run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if not served.installed():
        raise InputError("triton is not installed: pip install 'minimemo[gpu]' on Linux")

    def row(name: str, work: Callable[[], object]) -> dict[str, Any]:
        work()
        before = count()
        work()
        launches = count() - before
        (best,) = least([lambda _: work()], args.seconds, time.thread_time)
        return {"pass": name, "launches": launches, "ms": best * 1e3, "us_a_launch": best / launches * 1e6}

    with nothing_launched() as count:
        rows = show(COLUMNS, (row(*one) for one in _passes().items()))
        compiled, later = _compiled()
        besides = min(_besides(256) for _ in range(5)) * 1e3
        print(f"besides its graph a step takes {besides:.3f} ms: locks, 4 bytes read one step late, ends of replies")
    print(f"{compiled} kernels are compiled when a model is loaded, {later} after that")
    weights = {}
    for name in ("0.5B", "7B"):
        held, file = bytes_held(name)
        weights[name] = {"bytes_held": held, "of_the_file": held / file}
        print(f"weights of a {name} in q4_k_m: {held / 1e6:.0f} MB held, {held / file:.3f} times what the file takes")
    counts = {"compiled_at_load": compiled, "compiled_later": later}
    return {"passes": rows, "ms_besides_a_graph": besides, "weights": weights, **counts}


def _passes() -> dict[str, Callable[[], object]]:
    from minimemo.engine.steps import DeviceSteps

    made = engine()
    memory, tails, chunk = made.new_cache(16384), made.new_caches(3, 64), list(range(made.chunk))
    memory.length = 5000
    one, three = DeviceSteps(made.decoder, [memory], None), DeviceSteps(made.decoder, tails, memory)

    def read() -> None:
        made._forward(chunk, [Row(memory, len(chunk))], logits="none")
        memory.length = 5000

    return {
        "a step of one row, computed": one._compute,
        "the same, recorded": one._step,
        "three rows over a memory, computed": three._compute,
        "the same three rows, recorded": three._step,
        f"a chunk of {made.chunk} tokens that is read": read,
    }


def _compiled() -> tuple[int, int]:
    """Kernels that `Engine.warm` compiles, and those that chunks, prompts and steps of many lengths add."""
    from minimemo.engine.steps import DeviceSteps
    from minimemo.kernels.triton import launch

    def count() -> int:
        return len({id(kernel) for kernel, _ in launch._known.values()})

    def computed(*given: Any) -> DeviceSteps:
        steps = DeviceSteps(*given)
        steps._compute()
        return graphed(steps)

    made = engine()
    with (
        patch.object(launch, "_known", {}),
        patch("minimemo.engine.engine._likeliest", lambda logits: [0] * len(logits)),
    ):
        with patch("minimemo.engine.steps.DeviceSteps", computed):
            made.warm()
        first = count()
        cache, tails = made.new_cache(8192), made.new_caches(4, 64)
        for past in (0, 17, 3000):
            for tokens in (5, 20, 60, 300, 1500, 4096):
                cache.length = past
                made.extend(cache, list(range(tokens)))
        DeviceSteps(made.decoder, [cache], None)._compute()
        for some in (tails[:2], tails):
            DeviceSteps(made.decoder, some, cache)._compute()
        return first, count() - first


def graphed(steps: DeviceSteps) -> DeviceSteps:
    """Makes steps such that their graph does nothing, and what a GPU leaves to be read is there at once."""
    nothing: Any = SimpleNamespace(replay=lambda: None, record=lambda: None, synchronize=lambda: None)
    steps._events = [nothing] * len(steps._read)
    steps._ids = torch.zeros(steps._ids.shape, dtype=torch.int32)
    steps._graph, steps._step = nothing, lambda: None  # type: ignore[method-assign]
    return steps


def _besides(tokens: int) -> float:
    """Seconds of the processor that a token of a reply of one row takes besides its graph."""
    from minimemo.engine.steps import DeviceSteps

    made = engine()
    cache = made.new_cache(8192)
    cache.length = 5000
    with patch("minimemo.engine.steps.DeviceSteps", lambda *given: graphed(DeviceSteps(*given))):
        following = made._follow(cache, 5, tokens + 1, {7, 8})
        next(following)
        start = time.thread_time()
        assert sum(1 for _ in following) == tokens
        return (time.thread_time() - start) / tokens


class _Driver:
    """Stands for Triton's driver of a GPU of capability 9.0."""

    launches = 0

    def __init__(self) -> None:
        from triton.backends.nvidia.driver import CudaLauncher

        self.launcher_cls, self.utils = CudaLauncher, self

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def build_signature_metadata(self, signature: object) -> bytes:
        return b""

    def launch(self, *_: object) -> None:
        self.launches += 1


@contextmanager
def nothing_launched() -> Iterator[Callable[[], int]]:
    """Kernels are dispatched by Triton, and neither compiled nor launched; gives the number of launches so far."""
    import triton
    import triton.backends.nvidia.driver as nvidia
    from triton.compiler.compiler import CompiledKernel

    driver = _Driver()

    class Compiled(CompiledKernel):  # type: ignore[misc]
        """A kernel without code."""

        def __init__(self, src: Any, **_: object) -> None:
            self.src, self.module, self.function, self.packed_metadata, self._run = src, None, 0, (), None
            self.metadata = SimpleNamespace(
                global_scratch_size=0, global_scratch_align=1, profile_scratch_size=0, profile_scratch_align=1,
                launch_cooperative_grid=False, launch_pdl=False, instrumentation_mode="",
            )  # fmt: skip
            self.name = src.fn.__name__

        def _init_handles(self) -> None:
            self._run = self._run or driver.launcher_cls(self.src, self.metadata)

        def result(self) -> Compiled:
            return self

    with (
        patch.object(served, "DEVICE", "meta"),
        patch.object(triton.compiler, "compile", Compiled),
        patch.object(triton.runtime.driver, "_active", driver),
        patch.object(nvidia, "annotate_arguments", lambda signature: ()),
    ):
        yield lambda: driver.launches


if __name__ == "__main__":
    sys.exit(main())
