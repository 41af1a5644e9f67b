"""How quick are the native kernels, against torch's and against the processor and the memory themselves?

    python -m bench.kernels
    python -m bench.kernels --only linear --matrices qkv,down_q4_k --rows 1,3 --threads 1
    python -m bench.kernels --only decode --depths 4096 --seconds 2

linear: products of few rows with Qwen2.5-Coder-0.5B's packed matrices (random contents, in the forms of its q4_k_m
file), activations rounded to 14 bits (exact) or 8 (coarse); torch multiplies in float32. prefill: a causal chunk of 512
tokens after each depth, decode: single queries over each store; 14 heads over 2 kv heads of 64 (Qwen2.5-0.5B); torch
runs `torch_ops.attention` in the keys' dtype, and has nothing for packed ones.

Candidates take turns on copies that together exceed five times the last-level cache; the least time counts (of the
thread for one thread, on the wall for more, where a busy machine shows). Rate: GB/s of what is read, GFLOP/s of a
prefill, and its share of what reading a large buffer, or a large product in the same dtype, reaches in the same run.
Error: the largest relative to the largest output, against float64.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.common.machine import clock, last_level_cache, least, memory_gb_s, products_gflop_s
from bench.common.report import command, numbers, parser, show
from minimemo.errors import InputError
from minimemo.kernels import PackedSource, Source, native, torch_ops
from minimemo.kernels.native.attention import attention
from minimemo.models.weights import dense_dtype


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
HEADS, KV_HEADS, DIM, CHUNK = 14, 2, 64, 512  # tokens of a prefill
SCALE = DIM**-0.5
COLUMNS = (
    ("kernel", "<8"), ("of", "<10"), ("depth", "6"), ("rows", "4"), ("ms", "9.3f"), ("rate", "7.1f"), ("share", "6.2f"),
    ("error", "8.1e"), ("torch_ms", "9.3f"), ("gain", "6.1f"),
)  # fmt: skip
Work = Callable[[int], Any]


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.kernels")
    made.add_argument("--only", choices=("linear", "prefill", "decode"))
    made.add_argument("--matrices", default=",".join(MATRICES))
    made.add_argument("--rows", type=numbers, default=[1, 3, 8, 16], help="of a product; up to 3 of them of a decode")
    made.add_argument("--depths", type=numbers, default=[0, 4096, 16384], help="tokens that attention looks back on")
    made.add_argument("--seconds", type=float, default=1.0, help="for each line of the table")
    return command(made.parse_args(arguments), "bench.kernels", _run)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if reason := native.unavailable():
        raise InputError(f"no native kernels: {reason}")
    memory = memory_gb_s(max(args.seconds, 1.0))
    dtypes = sorted(
        {"float32", str(dense_dtype()).removeprefix("torch.")}
    )  # a processor without bfloat16 is slow in it
    peaks = {name: products_gflop_s(getattr(torch, name), args.seconds) for name in dtypes}
    products = ", ".join(f"{peak:.0f} in {name}" for name, peak in peaks.items())
    print(f"memory {memory:.1f} GB/s; GFLOP/s of products: {products}; {torch.get_num_threads()} threads")
    few = [count for count in args.rows if count <= 3]
    made: dict[str, Iterator[dict[str, Any]]] = {
        "linear": (row for name in args.matrices.split(",") for row in _linear(name, args.rows, memory, args.seconds)),
        "prefill": (_prefill(name, depth, peak, args.seconds) for name, peak in peaks.items() for depth in args.depths),
        "decode": (
            row
            for at in args.depths
            if at
            for store in (*dtypes, "packed8", "packed4")
            for row in _decode(store, at, few, memory, args.seconds)
        ),
    }
    rows = show(COLUMNS, chain.from_iterable(made[kernel] for kernel in ([args.only] if args.only else made)))
    return {"memory_gb_s": memory, "products_gflop_s": peaks, "kernels": rows}


def _row(work: float, ceiling: float, seconds: float, torch_seconds: float | None = None, **of: Any) -> dict[str, Any]:
    """work: GB or GFLOP."""
    found = {**of, "ms": seconds * 1e3, "rate": work / seconds, "share": work / seconds / ceiling}
    return (
        found if torch_seconds is None else found | {"torch_ms": torch_seconds * 1e3, "gain": torch_seconds / seconds}
    )


def _least(candidates: Sequence[Work], seconds: float) -> list[float]:
    return least(candidates, seconds, clock(torch.get_num_threads()))


def _linear(name: str, counts: Sequence[int], memory: float, seconds: float) -> Iterator[dict[str, Any]]:
    if name not in MATRICES:
        raise InputError(f"--matrices {name}: choose from {','.join(MATRICES)}")
    cache = 5 * last_level_cache()
    first = native.concatenate([_random(rows, MATRICES[name].columns, form) for rows, form in MATRICES[name].parts])
    copy = native.PackedMatrix.from_buffers
    packed = [first, *(copy([b.clone() for b in first.buffers]) for _ in range(2 * cache // first.nbytes))]  # for two
    dense = [_dense(first)]
    dense += [dense[0].clone() for _ in range(cache // dense[0].nbytes)]
    for count in counts:
        x = torch.randn(count, first.in_features, generator=torch.Generator().manual_seed(count))

        def product(i: int, x: Tensor = x, exact: bool = True) -> Tensor:
            return native.packed_linear(x, packed[(i + (0 if exact else len(packed) // 2)) % len(packed)], exact=exact)

        def peer(i: int, x: Tensor = x) -> Tensor:
            return F.linear(x, dense[i % len(dense)])

        *ours, theirs = _least([product, partial(product, exact=False), peer], seconds)
        expected = x.double() @ dense[0][:CHECKED_ROWS].double().T
        for exact, spent in zip((True, False), ours, strict=True):
            error = _error(native.packed_linear(x, first, exact=exact)[:, :CHECKED_ROWS], expected)
            of = {"kernel": "linear" if exact else "coarse", "of": name, "rows": count, "error": error}
            yield _row(first.nbytes / 1e9, memory, spent, theirs, **of)


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


def _dense(matrix: native.PackedMatrix) -> Tensor:
    out, first = torch.empty(matrix.shape), 0
    for buffer in matrix.buffers:
        part = native.PackedMatrix.from_buffers([buffer])
        native.expand_into(part, out[first : first + part.out_features])
        first += part.out_features
    return out


def _expected(q: Tensor, source: Source | PackedSource) -> Tensor:
    """Attends in float64 on torch."""
    if isinstance(source, Source):
        source = replace(source, keys=source.keys.double(), values=source.values.double())
    return torch_ops.attention(q.double(), [source], SCALE)


def _prefill(dtype: str, depth: int, peak: float, seconds: float) -> dict[str, Any]:
    tokens = depth + CHUNK
    k, v = _keys(tokens, dtype)
    q = torch.randn(HEADS, CHUNK, DIM, generator=torch.Generator().manual_seed(1)).to(k.dtype)
    wide, sources = q.float(), [Source(k, v, 0, CHUNK, depth)]
    ours = lambda i: attention(wide, sources, SCALE)[0]  # noqa: E731
    times = _least([ours, lambda i: torch_ops.attention(q, sources, SCALE)], seconds)
    last = slice(CHUNK - 16, CHUNK)
    expected = _expected(wide[:, last], Source(k, v, 0, 16, tokens - 16))
    flops = 4e-9 * HEADS * DIM * sum(range(depth + 1, tokens + 1))
    of = {"kernel": "prefill", "of": dtype, "depth": depth, "rows": CHUNK, "error": _error(ours(0)[:, last], expected)}
    return _row(flops, peak, *times, **of)


def _decode(store: str, depth: int, counts: Sequence[int], memory: float, seconds: float) -> Iterator[dict[str, Any]]:
    first, size = _source(store, depth)
    copies = [first, *(_source(store, depth)[0] for _ in range(5 * last_level_cache() // size))]
    for count in counts:
        q = torch.randn(HEADS, count, DIM, generator=torch.Generator().manual_seed(count))
        sources = [replace(source, count=count) for source in copies]

        def ours(i: int, q: Tensor = q, sources: list[Any] = sources) -> Tensor:
            return attention(q, [sources[i % len(sources)]], SCALE)[0]

        def peer(i: int, q: Tensor = q, sources: list[Any] = sources) -> object:
            source = sources[(i + len(sources) // 2) % len(sources)]
            return torch_ops.attention(q.to(source.keys.dtype), [source], SCALE)

        times = _least([ours, peer] if isinstance(first, Source) else [ours], seconds)
        error = _error(ours(0), _expected(q, sources[0]))
        of = {"kernel": "decode", "of": store, "depth": depth, "rows": count, "error": error}
        yield _row(size / 1e9, memory, *times, **of)


def _keys(tokens: int, dtype: str) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(tokens)
    k, v = (torch.randn(KV_HEADS, tokens, DIM, generator=random).to(getattr(torch, dtype)) for _ in range(2))
    return k, v


def _source(store: str, tokens: int) -> tuple[Source | PackedSource, int]:
    """A source and its bytes."""
    if not store.startswith("packed"):
        k, v = _keys(tokens, store)
        return Source(k, v, 0, 1), k.nbytes + v.nbytes
    packed = torch_ops.pack_kv(*_keys(tokens, "float32"), int(store[-1]))
    tensors = (packed.key_codes, packed.key_scale, packed.key_low)
    tensors += (packed.value_codes, packed.value_scale, packed.value_low)
    return PackedSource(packed, 0, 1), sum(tensor.nbytes for tensor in tensors)


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    sys.exit(main())
