"""How quick are the Triton kernels on this GPU, against its memory, its tensor cores, and torch?

    python -m bench.gpu
    python -m bench.gpu --only decode --seconds 1

Shapes of a model with 32 query heads on 8 kv heads of 128, in bfloat16, and of Qwen2.5-0.5B's matrices. Candidates take
turns on copies that together exceed five times the L2 cache; the median counts. Shares are of what a copy and a large
product reach in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.common.report import command, parser, show
from minimemo.errors import InputError
from minimemo.kernels import PackedSource, Source, empty_packed, pack_into
from minimemo.kernels.formats import quantized_matrix

HEADS, KV_HEADS, DIM = 32, 8, 128
SCALE = DIM**-0.5
COLUMNS = (
    ("kernel", "<34"), ("ms", "9.3f"), ("gb_s", "7.0f"), ("gb_share", "6.0%"), ("tflop_s", "7.1f"),
    ("tflop_share", "6.0%"), ("torch_ms", "9.3f"), ("gain", "6.2f"),
)  # fmt: skip
Work = Callable[[int], object]  # runs on the copy with this number


@dataclass(frozen=True, slots=True)
class Case:
    """nbytes: read and written by one run; flops of one run; peer: torch doing the same, where it can."""

    name: str
    run: Work
    nbytes: int
    flops: int = 0
    peer: Work | None = None
    copies: int = 1


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.gpu")
    made.add_argument("--only", default="", metavar="TEXT", help="kernels whose name holds TEXT")
    made.add_argument("--seconds", type=float, default=0.3, help="for each candidate")
    return command(made.parse_args(arguments), "bench.gpu", _run)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise InputError("torch finds no CUDA device")
    device = torch.cuda.get_device_properties(0)
    cache = 5 * getattr(device, "L2_cache_size", 64 << 20)
    source, square = torch.empty(1 << 30, dtype=torch.uint8, device="cuda"), _random(8192, 8192)
    target = torch.empty_like(source)
    copy, product = _milliseconds([lambda i: target.copy_(source), lambda i: square @ square], args.seconds)
    bandwidth, arithmetic = 2 * source.numel() / copy / 1e6, 2 * 8192**3 / product / 1e9
    print(f"{device.name}, copies past {cache >> 20} MiB, copy {bandwidth:.0f} GB/s, product {arithmetic:.0f} TFLOP/s")

    def row(case: Case) -> dict[str, Any]:
        run = [lambda i, w=work: w(i % case.copies) for work in (case.run, case.peer) if work]
        ms, *theirs = _milliseconds(run, args.seconds)
        gb_s, tflop_s = case.nbytes / ms / 1e6, case.flops / ms / 1e9
        told = {"kernel": case.name, "ms": ms, "gb_s": gb_s, "gb_share": gb_s / bandwidth, "tflop_s": tflop_s}
        told |= {"tflop_share": tflop_s / arithmetic}
        return told | ({"torch_ms": theirs[0], "gain": theirs[0] / ms} if theirs else {})

    cases = chain(_attention_cases(cache), _store_cases(), _row_cases(cache))
    rows = show(COLUMNS, (row(case) for case in cases if args.only in case.name))
    return {"device": device.name, "copy_gb_s": bandwidth, "product_tflop_s": arithmetic, "kernels": rows}


def _milliseconds(candidates: Sequence[Work], seconds: float) -> list[float]:
    """Median milliseconds of each candidate; they take turns."""
    for work in candidates:
        work(0)  # compiles
        work(1)
    torch.cuda.synchronize()
    spent: list[list[float]] = [[] for _ in candidates]
    end, turn = time.monotonic() + seconds * len(candidates), 0
    while time.monotonic() < end or turn < 5:
        for work, times in zip(candidates, spent, strict=True):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(1_000_000)  # meanwhile the launch is queued: its cost on the host does not count
            start.record()
            work(turn)
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop))
        turn += 1
    return [statistics.median(times) for times in spent]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def _copies(cache: int, nbytes: int) -> int:
    return max(1, min(64, 1 + cache // max(nbytes, 1)))


def _attention_cases(cache: int) -> Iterator[Case]:
    from minimemo.kernels.triton.attention import attention

    shapes = [(512, past) for past in (0, 4096, 16384)]
    for rows, past in shapes + [(rows, past) for past in (4096, 16384, 65536) for rows in (1, 3)]:
        chunk = rows == 512  # a causal chunk, else a decode step over what is past
        tokens, span = (past + rows, (0, rows, past)) if chunk else (past, (0, rows))
        size = 4 * KV_HEADS * tokens * DIM
        shape = (_copies(cache, size), KV_HEADS, tokens, DIM)
        q, k, v = _random(HEADS, rows, DIM), _random(*shape), _random(*shape)
        flops = 4 * HEADS * DIM * (rows * past + (rows * (rows + 1) // 2 if chunk else 0))
        mask = torch.ones(rows, tokens, dtype=torch.bool, device="cuda").tril(past) if chunk and past else None
        causal = {"attn_mask": mask, "is_causal": chunk and not past, "enable_gqa": True}

        def dense(i: int, q=q, k=k, v=v, span=span) -> object:
            return attention(q, [Source(k[i], v[i], *span)], SCALE)

        def peer(i: int, q=q, k=k, v=v, causal=causal) -> object:
            return F.scaled_dot_product_attention(q[None], k[None, i], v[None, i], **causal)

        name, beside = f"{'prefill' if chunk else 'decode'} {rows} rows over {past}", 4 * q.numel() if chunk else 0
        yield Case(name, dense, size + beside, flops, peer, len(k))
        for bits in (8, 4):
            packed = [empty_packed(KV_HEADS, tokens, DIM, bits, "cuda") for _ in k]
            for i, room in enumerate(packed):
                pack_into(room, 0, k[i], v[i])
            sources = [PackedSource(room, *span) for room in packed]
            narrow = lambda i, q=q, sources=sources: attention(q, [sources[i]], SCALE)  # noqa: E731
            yield Case(f"{name}, {bits} bits", narrow, size * bits // 16 + beside, flops, None, len(k))


def _store_cases() -> Iterator[Case]:
    from minimemo.kernels.triton import rope

    tokens = 8192
    k, v = _random(KV_HEADS, tokens, DIM), _random(KV_HEADS, tokens, DIM)
    for bits in (8, 4):
        packed = empty_packed(KV_HEADS, tokens, DIM, bits, "cuda")
        pack = lambda i, packed=packed: pack_into(packed, 0, k, v)  # noqa: E731
        yield Case(f"pack {tokens} tokens, {bits} bits", pack, 4 * k.numel() + k.numel() * bits // 4)
    table = torch.randn(tokens, DIM, device="cuda")
    to_k, to_v = torch.empty_like(k), torch.empty_like(v)
    store = lambda i: rope.store_launch(k, v, table, table, to_k, to_v, 0).run()  # noqa: E731
    yield Case(f"rope store {tokens} tokens", store, 8 * k.numel())


def _row_cases(cache: int) -> Iterator[Case]:
    from minimemo.kernels.triton import elementwise, linear

    x, weight = _random(512, 4096), _random(4096)
    norm = lambda i: elementwise.rms_norm(x, weight, 1e-6)  # noqa: E731
    yield Case("rms norm 512 x 4096", norm, 4 * x.numel(), 0, lambda i: F.rms_norm(x, (4096,), weight, 1e-6))
    for outputs, columns in ((9728, 896), (896, 4864), (151936, 896)):
        count = _copies(cache, outputs * columns)
        dense = [_random(outputs, columns) for _ in range(count)]
        scales = torch.rand(outputs, columns // 32, device="cuda").half()
        for bits in (8, 4):
            codes = torch.randint(-8, 8, (outputs, columns), device="cuda", dtype=torch.int8)
            codes = codes if bits == 8 else codes + 8
            packed = [quantized_matrix(codes.clone(), scales, bits=bits) for _ in range(count)]
            for rows in (1, 3):
                y = _random(rows, columns)

                def run(i: int, y: Tensor = y, packed: list = packed) -> object:
                    return linear.quantized_linear(y, packed[i])

                def peer(i: int, y: Tensor = y, dense: list = dense) -> object:
                    return F.linear(y, dense[i])

                name = f"matmul {outputs} x {columns}, {rows} rows, {bits} bits"
                nbytes = outputs * columns * bits // 8 + 2 * scales.numel()
                yield Case(name, run, nbytes, 2 * rows * outputs * columns, peer, count)


if __name__ == "__main__":
    sys.exit(main())
