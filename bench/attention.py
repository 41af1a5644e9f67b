"""How quick is native attention, against torch's and against the processor and the memory themselves?

    python -m bench.attention [--json] [--depths 0,4096,16384] [--rows 1,3] [--chunk 512] [--threads 2] [--seconds 2]

The shape of Qwen2.5-0.5B: 14 heads over 2 kv heads of 64. Prefill: a causal chunk at each depth, bfloat16 and float32,
GFLOP/s and their share of a bfloat16 (float32) matrix product of torch. Decode: each store at each depth, GB/s and
their share of what a sum over float32 reads; buffers rotate past five times the last-level cache. Candidates take
turns in one process; the least time counts: of the thread for one thread, on the wall for more, where a busy machine
shows. Error: of the largest output, against float64 over the same keys; torch runs `torch_ops.attention` in the keys'
dtype, and has nothing for packed ones.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minimemo.kernels import native, native_attention, reference, torch_ops

from .kernels import _bandwidth, _last_level_cache, _least, _processor

HEADS, KV_HEADS, DIM = 14, 2, 64
SCALE = DIM**-0.5
STORES = ("float32", "bfloat16", "packed8", "packed4")
HEADER = (
    f"{'kernel':9} {'keys':8} {'depth':>6} {'rows':>4} {'thr':>3} | {'ms':>8} {'rate':>6} {'share':>6} {'error':>8} |"
)
HEADER += f" {'torch ms':>8} {'gain':>6}"


def main() -> None:
    parser = argparse.ArgumentParser(description="attention of chunks and of single queries")
    parser.add_argument("--depths", default="0,4096,16384")
    parser.add_argument("--rows", default="1,3", help="of a decode step")
    parser.add_argument("--chunk", type=int, default=512, help="queries of a prefill step")
    parser.add_argument("--threads", default=str(os.cpu_count()))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line of the table")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    if reason := native.unavailable():
        raise SystemExit(f"bench: no native kernels: {reason}")
    depths, rows = ([int(n) for n in text.split(",")] for text in (args.depths, args.rows))
    variant = native_attention.attention_variants()[-1]
    print(f"load {os.getloadavg()[0]:.1f}, variant {variant}, {HEADS} heads over {KV_HEADS} of {DIM}")
    found: list[dict[str, Any]] = []
    ceilings = {}
    for threads in sorted({int(count) for count in args.threads.split(",")}):
        memory = _bandwidth(threads, args.seconds)
        peaks = {dtype: _peak(dtype, threads, args.seconds) for dtype in ("bfloat16", "float32")}
        ceilings[threads] = {"memory_gb_s": memory, "gflop_s": peaks}
        print(f"{threads} threads: memory {memory:.1f} GB/s, bfloat16 {peaks['bfloat16']:.0f} and float32", end=" ")
        print(f"{peaks['float32']:.0f} GFLOP/s\n{HEADER}")
        for dtype, peak in peaks.items():
            found += [_prefill(dtype, depth, args.chunk, threads, args.seconds, peak) for depth in depths]
        for depth in (depth for depth in depths if depth):
            for store in STORES:
                found += _decode(store, depth, rows, threads, args.seconds, memory)
    if args.json:
        about = {"cpu": _processor(), "torch": torch.__version__, "variant": variant, "load": os.getloadavg()[0]}
        print(json.dumps(about | {"ceilings": ceilings, "attention": found}))


def _prefill(dtype: str, depth: int, chunk: int, threads: int, seconds: float, peak: float) -> dict[str, Any]:
    torch.set_num_threads(threads)
    tokens = depth + chunk
    k, v = _keys(tokens, dtype)
    q = torch.randn(HEADS, chunk, DIM, generator=torch.Generator().manual_seed(1)).to(k.dtype)
    where, wide = torch.arange(depth, tokens), q.float()
    times = _least(
        [
            lambda i: native_attention.attention(wide, k, v, scale=SCALE, query_positions=where, threads=threads),
            lambda i: torch_ops.attention(q, k, v, scale=SCALE, query_positions=where),
        ],
        seconds,
        wall=threads > 1,
    )
    last = slice(chunk - 16, chunk)
    expected = reference.attention(
        wide[:, last].double(), k.double(), v.double(), scale=SCALE, query_positions=where[last]
    )
    found = native_attention.attention(wide, k, v, scale=SCALE, query_positions=where)[0][:, last]
    flops = 4e-9 * HEADS * DIM * sum(range(depth + 1, tokens + 1))
    return _line("prefill", dtype, depth, chunk, threads, times, flops, peak, _error(found, expected[0]))


def _decode(
    store: str, depth: int, counts: Sequence[int], threads: int, seconds: float, memory: float
) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    first, size = _segment(store, depth)
    segments = [first, *(_segment(store, depth)[0] for _ in range(5 * _last_level_cache() // size))]
    lines = []
    for count in counts:
        q = torch.randn(HEADS, count, DIM, generator=torch.Generator().manual_seed(count))
        candidates = [
            lambda i, q=q: native_attention.segment_attention(
                q, [segments[i % len(segments)]], scale=SCALE, threads=threads
            )
        ]
        k, v = _held(first)
        expected = reference.attention(q.double(), k.double(), v.double(), scale=SCALE)[0]
        error = _error(native_attention.segment_attention(q, [first], scale=SCALE)[0], expected)
        if isinstance(first, native_attention.DenseSegment):
            own = q.to(first.keys.dtype)

            def on_torch(i: int, own: Tensor = own) -> object:
                segment = segments[(i + len(segments) // 2) % len(segments)]
                return torch_ops.attention(own, segment.keys, segment.values, scale=SCALE)

            candidates.append(on_torch)
        times = _least(candidates, seconds, wall=threads > 1)
        lines.append(_line("decode", store, depth, count, threads, times, size / 1e9, memory, error))
    return lines


def _line(
    kernel: str,
    store: str,
    depth: int,
    rows: int,
    threads: int,
    times: Sequence[float],
    work: float,
    ceiling: float,
    error: float,
) -> dict[str, Any]:
    """Prints and returns; work in GFLOP or GB."""
    native_ms, rate = times[0] * 1e3, work / times[0]
    line = f"{kernel:9} {store:8} {depth:6} {rows:4} {threads:3} | {native_ms:8.3f} {rate:6.1f} {rate / ceiling:6.2f}"
    line += f" {error:8.1e} |"
    result = {"kernel": kernel, "keys": store, "depth": depth, "rows": rows, "threads": threads, "ms": native_ms}
    result |= {"gflop_s" if kernel == "prefill" else "gb_s": rate, "share": rate / ceiling, "error": error}
    if len(times) > 1:
        line += f" {times[1] * 1e3:8.3f} {times[1] / times[0]:6.1f}"
        result["torch_ms"] = times[1] * 1e3
    print(line, flush=True)
    return result


def _keys(tokens: int, dtype: str) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(tokens)
    k, v = (torch.randn(KV_HEADS, tokens, DIM, generator=random).to(getattr(torch, dtype)) for _ in range(2))
    return k, v


def _segment(store: str, tokens: int) -> tuple[Any, int]:
    """A segment and its bytes."""
    if not store.startswith("packed"):
        k, v = _keys(tokens, store)
        return native_attention.DenseSegment(k, v), k.nbytes + v.nbytes
    packed = reference.pack_kv(*_keys(tokens, "float32"), int(store[-1]))
    tensors = (packed.key_codes, packed.key_scale, packed.key_low)
    tensors += (packed.value_codes, packed.value_scale, packed.value_low)
    return native_attention.PackedSegment(packed), sum(tensor.nbytes for tensor in tensors)


def _held(segment: Any) -> tuple[Tensor, Tensor]:
    if isinstance(segment, native_attention.DenseSegment):
        return segment.keys, segment.values
    return reference.unpack_kv(segment.packed)


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _peak(dtype: str, threads: int, seconds: float) -> float:
    """GFLOP/s of a square matrix product."""
    torch.set_num_threads(threads)
    matrix = torch.randn(2048, 2048).to(getattr(torch, dtype))
    return 2e-9 * 2048**3 / _least([lambda i: matrix @ matrix], seconds, wall=threads > 1)[0]


if __name__ == "__main__":
    main()
