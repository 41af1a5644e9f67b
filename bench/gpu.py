"""How quick are the Triton kernels on this GPU, against its memory, its tensor cores, and torch?

    python -m bench.gpu [--json] [--only decode] [--seconds 0.3]

Shapes of a model with 32 query heads on 8 kv heads of 128, in bfloat16, and of Qwen2.5-0.5B's matrices. Candidates take
turns on copies that together exceed five times the L2 cache; the median counts. Shares are of what a copy and a large
product reach in the same run. Columns: milliseconds, GB/s and its share, TFLOP/s and its share, torch's milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minimemo.kernels import PackedKV, PackedSource, Source, empty_packed, pack_into
from minimemo.kernels.formats import quantized_matrix

HEADS, KV_HEADS, DIM = 32, 8, 128
Work = Callable[[int], object]  # runs on the copy with this number


@dataclass(frozen=True, slots=True)
class Case:
    """nbytes: read and written by one run; flops of one run; peer: torch doing the same, where it can."""

    name: str
    run: Work
    nbytes: int
    flops: int = 0
    peer: Work | None = None


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    ms: float
    gb_s: float
    gb_share: float
    tflop_s: float
    tflop_share: float
    torch_ms: float | None


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.gpu", description="the Triton kernels on this GPU")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name holds TEXT")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each candidate")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.gpu: torch finds no CUDA device", file=sys.stderr)
        return 1
    device = torch.cuda.get_device_properties(0)
    cache = 5 * getattr(device, "L2_cache_size", 64 << 20)
    bandwidth, arithmetic = _ceilings(options.seconds)
    print(f"{device.name}, copies past {cache >> 20} MiB, copy {bandwidth:.0f} GB/s, product {arithmetic:.0f} TFLOP/s")
    print(f"{'kernel':34} {'ms':>9} {'GB/s':>7} {'share':>6} {'TFLOP/s':>8} {'share':>6} {'torch ms':>9} {'gain':>6}")
    results = []
    for case in cases(cache):
        if options.only in case.name:
            results.append(_measure(case, bandwidth, arithmetic, options.seconds))
            print(_line(results[-1]), flush=True)
    if options.json:
        head = {"device": device.name, "torch": torch.__version__, "copy_gb_s": bandwidth, "tflop_s": arithmetic}
        print(json.dumps(head | {"kernels": [asdict(result) for result in results]}))
    return 0


def cases(cache: int) -> Iterator[Case]:
    """One after the other, so that one case's tensors are freed before the next one's are made."""
    yield from _prefill_cases(cache)
    yield from _decode_cases(cache)
    yield from _store_cases(cache)
    yield from _row_cases(cache)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def _copies(cache: int, nbytes: int) -> int:
    return max(1, min(64, 1 + cache // max(nbytes, 1)))


def _prefill_cases(cache: int) -> Iterator[Case]:
    from minimemo.kernels.triton.attention import attention

    rows = 512
    q = _random(HEADS, rows, DIM)
    for past in (0, 4096, 16384):
        tokens = past + rows
        count = _copies(cache, 4 * KV_HEADS * tokens * DIM)
        k, v = _random(count, KV_HEADS, tokens, DIM), _random(count, KV_HEADS, tokens, DIM)
        flops = 4 * HEADS * DIM * (rows * past + rows * (rows + 1) // 2)
        nbytes = 4 * KV_HEADS * tokens * DIM + 4 * q.numel()

        def dense(i: int, k: Tensor = k, v: Tensor = v, past: int = past) -> object:
            return attention(q, [Source(k[i], v[i], 0, rows, past)], DIM**-0.5)

        def peer(i: int, k: Tensor = k, v: Tensor = v, past: int = past) -> object:
            mask = None
            if past:
                mask = torch.ones(rows, past + rows, dtype=torch.bool, device="cuda").tril(past)
            return F.scaled_dot_product_attention(
                q[None], k[None, i], v[None, i], attn_mask=mask, is_causal=not past, enable_gqa=True
            )

        yield Case(f"prefill {rows} rows over {past}", _over(dense, count), nbytes, flops, _over(peer, count))
        for bits in (8, 4):
            packed = [_packed(k[i], v[i], bits) for i in range(count)]

            def narrow(i: int, packed: list = packed, past: int = past) -> object:
                return attention(q, [PackedSource(packed[i], 0, rows, past)], DIM**-0.5)

            size = nbytes - 4 * KV_HEADS * tokens * DIM * (16 - bits) // 16
            yield Case(f"prefill {rows} rows over {past}, {bits} bits", _over(narrow, count), size, flops)


def _decode_cases(cache: int) -> Iterator[Case]:
    from minimemo.kernels.triton.attention import attention

    for tokens in (4096, 16384, 65536):
        size = 4 * KV_HEADS * tokens * DIM
        count = _copies(cache, size)
        k, v = _random(count, KV_HEADS, tokens, DIM), _random(count, KV_HEADS, tokens, DIM)
        for rows in (1, 3):
            q = _random(HEADS, rows, DIM)
            flops = 4 * HEADS * DIM * rows * tokens

            def dense(i: int, q: Tensor = q, k: Tensor = k, v: Tensor = v) -> object:
                return attention(q, [Source(k[i], v[i], 0, q.shape[1])], DIM**-0.5)

            def peer(i: int, q: Tensor = q, k: Tensor = k, v: Tensor = v) -> object:
                return F.scaled_dot_product_attention(q[None], k[None, i], v[None, i], enable_gqa=True)

            yield Case(f"decode {rows} rows over {tokens}", _over(dense, count), size, flops, _over(peer, count))
            for bits in (8, 4):
                packed = [_packed(k[i], v[i], bits) for i in range(count)]

                def narrow(i: int, q: Tensor = q, packed: list = packed) -> object:
                    return attention(q, [PackedSource(packed[i], 0, q.shape[1])], DIM**-0.5)

                name = f"decode {rows} rows over {tokens}, {bits} bits"
                yield Case(name, _over(narrow, count), size * bits // 16, flops)


def _store_cases(cache: int) -> Iterator[Case]:
    from minimemo.kernels.triton import pack as kernels
    from minimemo.kernels.triton import rope

    tokens = 8192
    k, v = _random(KV_HEADS, tokens, DIM), _random(KV_HEADS, tokens, DIM)
    for bits in (8, 4):
        packed = empty_packed(KV_HEADS, tokens, DIM, bits, "cuda")

        def pack(i: int, packed: PackedKV = packed) -> object:
            return kernels.pack_into(packed, 0, k, v)

        yield Case(f"pack {tokens} tokens, {bits} bits", pack, 4 * k.numel() + k.numel() * bits // 4)
    table = torch.randn(tokens, DIM, device="cuda")
    to_k, to_v = torch.empty_like(k), torch.empty_like(v)
    store = lambda i: rope.rope_store(k, v, table, table, to_k, to_v, 0)  # noqa: E731
    yield Case(f"rope store {tokens} tokens", store, 8 * k.numel())


def _packed(k: Tensor, v: Tensor, bits: int) -> PackedKV:
    packed = empty_packed(*k.shape, bits, "cuda")
    pack_into(packed, 0, k, v)
    return packed


def _row_cases(cache: int) -> Iterator[Case]:
    from minimemo.kernels.triton import elementwise, linear

    x, weight = _random(512, 4096), _random(4096)
    yield Case(
        "rms norm 512 x 4096",
        lambda i: elementwise.rms_norm(x, weight, 1e-6), 4 * x.numel(), 0,
        lambda i: F.rms_norm(x, (4096,), weight, 1e-6),
    )  # fmt: skip
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
                yield Case(name, _over(run, count), nbytes, 2 * rows * outputs * columns, _over(peer, count))


def _over(work: Work, count: int) -> Work:
    return lambda i: work(i % count)


def _milliseconds(candidates: list[Work], seconds: float) -> list[float]:
    """Median milliseconds of each candidate; they take turns."""
    for work in candidates:
        work(0)  # compiles
        work(1)
    torch.cuda.synchronize()
    found: list[list[float]] = [[] for _ in candidates]
    end, turn = time.monotonic() + seconds * len(candidates), 0
    while time.monotonic() < end or turn < 5:
        for work, times in zip(candidates, found, strict=True):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(
                1_000_000
            )  # while the GPU sleeps the launch is queued: its cost on the host does not count
            start.record()
            work(turn)
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop))
        turn += 1
    return [statistics.median(times) for times in found]


def _ceilings(seconds: float) -> tuple[float, float]:
    """GB/s that a copy moves, reads and writes counted; TFLOP/s of a large bfloat16 product."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = _milliseconds([lambda i: target.copy_(source)], seconds)[0]
    a, b = _random(8192, 8192), _random(8192, 8192)
    product = _milliseconds([lambda i: a @ b], seconds)[0]
    return 2 * source.numel() / copy / 1e6, 2 * 8192**3 / product / 1e9


def _measure(case: Case, bandwidth: float, arithmetic: float, seconds: float) -> Result:
    times = _milliseconds([case.run, *([case.peer] if case.peer else [])], seconds)
    gb_s, tflop_s = case.nbytes / times[0] / 1e6, case.flops / times[0] / 1e9
    torch_ms = times[1] if case.peer else None
    return Result(case.name, times[0], gb_s, gb_s / bandwidth, tflop_s, tflop_s / arithmetic, torch_ms)


def _line(r: Result) -> str:
    peer = f"{r.torch_ms:9.3f} {r.torch_ms / r.ms:6.2f}" if r.torch_ms else ""
    return (
        f"{r.name:34} {r.ms:9.3f} {r.gb_s:7.0f} {r.gb_share:6.0%} {r.tflop_s:8.1f} {r.tflop_share:6.0%} {peer}".rstrip()
    )


if __name__ == "__main__":
    sys.exit(main())
