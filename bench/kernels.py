"""How quick are the products of few rows with packed matrices, against torch's float32 and the memory itself?

    python -m bench.kernels [--json] [--matrices qkv,down_q4_k] [--rows 1,3,8,16] [--threads 1,2] [--seconds 1]

Matrices of Qwen2.5-Coder-0.5B with random contents, in the forms of its q4_k_m file. Candidates take turns, on
copies that together exceed five times the last-level cache; the least time counts (of the thread for one thread, on the
wall for more, where a busy machine shows). Columns: GB/s of packed bytes and its share of what a sum over float32
reads in the same run (1.0: the memory is the limit); rounds to 14 bits (exact) and to 8 (coarse); GFLOP/s; the largest
error relative to the largest output, against float64.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minimemo.kernels import native


class Shape(NamedTuple):
    columns: int
    parts: tuple[tuple[int, str], ...]  # rows and format


MATRICES = {
    "qkv": Shape(896, ((1024, "q5_0"), (128, "q8_0"))),
    "out": Shape(896, ((896, "q5_0"),)),
    "gate_up": Shape(896, ((9728, "q5_0"),)),
    "down_q4_k": Shape(4864, ((896, "q4_k"),)),
    "down_q6_k": Shape(4864, ((896, "q6_k"),)),
    "head": Shape(896, ((151936, "q8_0"),)),
}
FORMATS = {"q4_k": (4, 0, 32), "q5_0": (5, 16, 32), "q6_k": (6, 32, 16), "q8_0": (8, 128, 32)}  # bits, zero, group
CHECKED_ROWS = 4096  # of large matrices, against float64


def main() -> None:
    parser = argparse.ArgumentParser(description="products of few rows with packed matrices")
    parser.add_argument("--matrices", default=",".join(MATRICES))
    parser.add_argument("--rows", default="1,3,8,16")
    parser.add_argument("--threads", default=f"1,{os.cpu_count()}")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line of the table")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    if reason := native.unavailable():
        raise SystemExit(f"bench: no native kernels: {reason}")
    threads = sorted({int(count) for count in args.threads.split(",")})
    cache = 5 * _last_level_cache()
    print(f"load {os.getloadavg()[0]:.1f}, variant {native.variants()[-1]}, rotating past {cache >> 20} MiB")
    ceiling = {count: _bandwidth(count, args.seconds) for count in threads}
    print("memory, GB/s: " + ", ".join(f"{value:.1f} with {count} threads" for count, value in ceiling.items()))
    print(
        f"{'matrix':10} {'rows':>4} {'thr':>3} | {'exact ms':>9} {'GB/s':>6} {'share':>6} {'GFLOP/s':>8} {'error':>8}",
        end="",
    )
    print(f" | {'coarse ms':>9} {'share':>6} {'error':>8} | {'float32 ms':>10} {'gain':>6}")
    rows = []
    for name in args.matrices.split(","):
        rows += _measure(name, [int(n) for n in args.rows.split(",")], threads, args.seconds, cache, ceiling)
    if args.json:
        found = {"cpu": _processor(), "torch": torch.__version__, "variant": native.variants()[-1]}
        print(json.dumps(found | {"load": os.getloadavg()[0], "memory_gb_s": ceiling, "packed_linear": rows}))


def _measure(
    name: str, counts: Sequence[int], threads: Sequence[int], seconds: float, cache: int, ceiling: dict[int, float]
) -> list[dict[str, Any]]:
    shape = MATRICES[name]
    first = native.concatenate([_random(rows, shape.columns, form) for rows, form in shape.parts])
    packed = [first, *(_copy(first) for _ in range(2 * cache // first.nbytes))]  # two candidates read them
    dense = [_dense(first)]
    dense += [dense[0].clone() for _ in range(cache // dense[0].nbytes)]
    found = []
    for count in counts:
        x = torch.randn(count, shape.columns, generator=torch.Generator().manual_seed(count))
        errors = {exact: _error(x, first, dense[0], exact) for exact in (True, False)}
        for used in threads:
            torch.set_num_threads(used)
            exact, coarse, float32 = _least(
                [
                    lambda i, x=x: native.packed_linear(x, packed[i % len(packed)]),
                    lambda i, x=x: native.packed_linear(x, packed[(i + len(packed) // 2) % len(packed)], exact=False),
                    lambda i, x=x: F.linear(x, dense[i % len(dense)]),
                ],
                seconds,
                wall=used > 1,
            )
            speed, flops = first.nbytes / 1e9, 2e-9 * count * first.out_features * first.in_features
            share = speed / ceiling[used]
            print(
                f"{name:10} {count:4} {used:3} | {exact * 1e3:9.3f} {speed / exact:6.1f} {share / exact:6.2f}"
                f" {flops / exact:8.0f} {errors[True]:8.1e} | {coarse * 1e3:9.3f} {share / coarse:6.2f}"
                f" {errors[False]:8.1e} | {float32 * 1e3:10.3f} {float32 / exact:6.1f}",
                flush=True,
            )
            found.append(
                {
                    "matrix": name,
                    "bytes": first.nbytes,
                    "rows": count,
                    "threads": used,
                    "exact_ms": exact * 1e3,
                    "coarse_ms": coarse * 1e3,
                    "float32_ms": float32 * 1e3,
                    "exact_gb_s": speed / exact,
                    "exact_share": share / exact,
                    "exact_gflop_s": flops / exact,
                    "exact_error": errors[True],
                    "coarse_error": errors[False],
                }
            )
    return found


def _random(rows: int, columns: int, form: str) -> native.PackedMatrix:
    bits, zero, group = FORMATS[form]
    generator = torch.Generator().manual_seed(rows + columns)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.int16).sub_(zero).to(torch.int8)

    def parameters() -> Tensor:
        groups = columns // group
        if not form.endswith("k"):
            return (torch.rand(rows, groups, generator=generator) * 0.01).half().float()
        factors = (torch.rand(rows, columns // 256, generator=generator) * 1e-3).half().float()
        return factors.repeat_interleave(256 // group, 1) * torch.randint(1, 64, (rows, groups), generator=generator)

    return native.pack_weights(codes, parameters(), parameters() if form == "q4_k" else None)


def _copy(matrix: native.PackedMatrix) -> native.PackedMatrix:
    return native.PackedMatrix.from_buffers([buffer.clone() for buffer in matrix.buffers])


def _dense(matrix: native.PackedMatrix) -> Tensor:
    out, first = torch.empty(matrix.shape), 0
    for buffer in matrix.buffers:
        part = native.PackedMatrix.from_buffers([buffer])
        native.expand_into(part, out[first : first + part.out_features])
        first += part.out_features
    return out


def _error(x: Tensor, matrix: native.PackedMatrix, dense: Tensor, exact: bool) -> float:
    expected = x.double() @ dense[:CHECKED_ROWS].double().T
    found = native.packed_linear(x, matrix, exact=exact)[:, :CHECKED_ROWS]
    return float((found - expected).abs().max() / expected.abs().max())


def _least(candidates: Sequence[Callable[[int], Any]], seconds: float, *, wall: bool) -> list[float]:
    """Least seconds of each candidate, over runs of five calls in turn: the call after another's runs slower."""
    clock = time.perf_counter if wall else time.thread_time
    least, turn, end = [float("inf")] * len(candidates), 0, time.perf_counter() + seconds
    while turn < 5 or time.perf_counter() < end:
        for which, candidate in enumerate(candidates):
            for call in range(5):
                start = clock()
                candidate(turn + call)
                least[which] = min(least[which], clock() - start)
        turn += 5
    return least


def _bandwidth(threads: int, seconds: float) -> float:
    """GB/s that a sum over float32 reads."""
    torch.set_num_threads(threads)
    blocks = [torch.ones(32 << 20) for _ in range(4)]
    return blocks[0].nbytes / 1e9 / _least([lambda i: blocks[i % 4].sum()], max(seconds, 1.0), wall=threads > 1)[0]


def _last_level_cache() -> int:
    """Bytes, as Linux tells them, else 32 MiB."""
    try:
        return int(Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 32 << 20


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
