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
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from minimemo.kernels import PackedSource, Source, native, reference, torch_ops
from minimemo.kernels.native.attention import attention, attention_variants

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
    variant = attention_variants()[-1]
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
    wide, source = q.float(), Source(k, v, 0, chunk, depth)
    times = _least(
        [lambda i: attention(wide, [source], SCALE), lambda i: torch_ops.attention(q, [source], SCALE)],
        seconds,
        wall=threads > 1,
    )
    last = slice(chunk - 16, chunk)
    expected = reference.attention(wide[:, last].double(), [Source(k, v, 0, 16, tokens - 16)], SCALE)[0]
    found = attention(wide, [source], SCALE)[0][:, last]
    flops = 4e-9 * HEADS * DIM * sum(range(depth + 1, tokens + 1))
    return _line("prefill", dtype, depth, chunk, threads, times, flops, peak, _error(found, expected))


def _decode(
    store: str, depth: int, counts: Sequence[int], threads: int, seconds: float, memory: float
) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    sources = [_source(store, depth)]
    size = sum(tensor.nbytes for tensor in _tensors(sources[0]))
    sources += [_source(store, depth) for _ in range(5 * _last_level_cache() // size)]
    lines = []
    for count in counts:
        q = torch.randn(HEADS, count, DIM, generator=torch.Generator().manual_seed(count))
        turns = [replace(source, count=count) for source in sources]
        candidates: list[Callable[[int], object]] = [
            lambda i, q=q, turns=turns: attention(q, [turns[i % len(turns)]], SCALE)  # type: ignore[misc]
        ]
        expected = reference.attention(q.double(), turns[:1], SCALE)[0]
        error = _error(attention(q, turns[:1], SCALE)[0], expected)
        if isinstance(turns[0], Source):
            narrow = q.to(turns[0].keys.dtype)

            def on_torch(i: int, q: Tensor = narrow, turns: list[Any] = turns) -> object:
                return torch_ops.attention(q, [turns[(i + len(turns) // 2) % len(turns)]], SCALE)

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


def _source(store: str, tokens: int) -> Source | PackedSource:
    if not store.startswith("packed"):
        return Source(*_keys(tokens, store), 0, 1)
    return PackedSource(reference.pack_kv(*_keys(tokens, "float32"), int(store[-1])), 0, 1)


def _tensors(source: Source | PackedSource) -> list[Tensor]:
    parts = source if isinstance(source, Source) else source.packed
    values = (getattr(parts, field.name) for field in fields(parts))
    return [value for value in values if isinstance(value, Tensor)]


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _peak(dtype: str, threads: int, seconds: float) -> float:
    """GFLOP/s of a square matrix product."""
    torch.set_num_threads(threads)
    matrix = torch.randn(2048, 2048).to(getattr(torch, dtype))
    return 2e-9 * 2048**3 / _least([lambda i: matrix @ matrix], seconds, wall=threads > 1)[0]


if __name__ == "__main__":
    main()
