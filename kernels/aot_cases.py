"""The launches that aot.py compiles: every kernel in each dtype, head dim and bit width that models use.

Tensors are on torch's meta device: shapes, dtypes and strides without memory. Launches come from the launchers
themselves, so block sizes and compiled-in constants are those of a real run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .triton_attention import dense_plan, tail_launch
from .triton_launch import Launch
from .triton_matmul import QuantizedMatrix, matmul_launch
from .triton_merge import merge_parts_launch, merge_two_launch, new_parts, new_result
from .triton_norm import gate_launch, norm_launch
from .triton_pack import empty_packed, pack_launch, unpack_launch
from .triton_packed import packed_plan
from .triton_rope import Rotations, inverse_launch, store_launch
from .triton_rule import Rule

_SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Case:
    """products: whether the kernel multiplies matrices, so that its code must hold tensor core instructions."""

    name: str
    launch: Launch
    products: bool


def cases() -> list[Case]:
    """Every case, in a fixed order."""
    return [*_attention_cases(), *_merge_cases(), *_packed_cases(), *_rope_cases(), *_row_cases()]


def _meta(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention_cases() -> Iterator[Case]:
    positions = _meta(512, dtype=torch.int64)
    causal, everything = Rule(0.1, positions, 0, None, 0, None), Rule(0.1, None, 0, None, 0, None)
    variants = [(dim, torch.bfloat16) for dim in (64, 80, 96, 128, 256)]
    for dim, dtype in (*variants, (128, torch.float16), (128, torch.float32), (256, torch.float32)):
        label, products = f"{_SHORT[dtype]} D={dim}", dtype != torch.float32
        q, k = _meta(16, 512, dim, dtype=dtype), _meta(4, 8192, dim, dtype=dtype)
        yield Case(f"prefill {label}", dense_plan(q, k, k, causal, 1).launches[0], products)
        yield Case(f"decode {label}", dense_plan(q[:, :3], k, k, everything, 32).launches[0], products)
    for dim in (128, 256):
        for queries in (8, 16):  # 32 and 64 rows
            q, k = _meta(16, queries, dim, dtype=torch.bfloat16), _meta(4, 8192, dim, dtype=torch.bfloat16)
            yield Case(
                f"{queries} queries bf16 D={dim}",
                dense_plan(q, k, k, Rule(0.1, 8000, 0, None, 0, None), 8).launches[0],
                True,
            )
    q, k = _meta(16, 512, 128), _meta(4, 8192, 128)
    rule = Rule(0.1, positions, 0, 1024, 4, 30.0)
    yield Case("prefill window sinks cap fp16 D=128", dense_plan(q, k, k, rule, 1).launches[0], True)
    tail = _meta(3, 4, 256, 128)
    plan = dense_plan(q[:, :3], k, k, everything, 32, extra=1)
    starts, lengths = _meta(4, dtype=torch.int32), _meta(3, dtype=torch.int32)
    launch = tail_launch(q[:, :3], tail, tail, starts, lengths, 1, 8192, everything, plan.part(32))
    yield Case("tails fp16 D=128", launch, True)


def _merge_cases() -> Iterator[Case]:
    q = _meta(16, 3, 256, dtype=torch.bfloat16)
    out, lse = new_result(q)
    yield Case("merge parts bf16 D=256", merge_parts_launch(*new_parts(q, 32), out, lse), False)
    yield Case("merge two bf16 D=256", merge_two_launch(out, lse, out, lse, out, lse), False)


def _packed_cases() -> Iterator[Case]:
    positions = _meta(512, dtype=torch.int64)
    causal, everything = Rule(0.1, positions, 0, None, 0, None), Rule(0.1, None, 0, None, 0, None)
    for bits in (8, 4):
        for dim in (64, 96, 128, 256) if bits == 8 else (64, 128, 256):
            label = f"{bits} bits bf16 D={dim}"
            packed, q = empty_packed(4, 8192, dim, bits, "meta"), _meta(16, 512, dim, dtype=torch.bfloat16)
            yield Case(f"packed prefill {label}", packed_plan(q, packed, causal, 1).launches[0], True)
            yield Case(f"packed decode {label}", packed_plan(q[:, :3], packed, everything, 32).launches[0], True)
        for dim in (128, 256):
            q, packed = _meta(16, 16, dim, dtype=torch.bfloat16), empty_packed(4, 8192, dim, bits, "meta")
            launch = packed_plan(q, packed, Rule(0.1, 8000, 0, None, 0, None), 8).launches[0]
            yield Case(f"packed 16 queries {bits} bits bf16 D={dim}", launch, True)
        x, table = _meta(4, 512, 128, dtype=torch.bfloat16), _meta(512, 128, dtype=torch.float32)
        packed = empty_packed(4, 8192, 128, bits, "meta")
        launch = pack_launch(x, x, packed, 64, (table, table), _meta(2, 4, 8, dtype=torch.int32))
        yield Case(f"rope and pack {bits} bits bf16 D=128", launch, False)
        yield Case(
            f"unpack {bits} bits bf16 D=128", unpack_launch(packed, _meta(4, 8192, 128), _meta(4, 8192, 128)), False
        )


def _rope_cases() -> Iterator[Case]:
    for dim in (128, 256):
        x, table = _meta(4, 512, dim, dtype=torch.bfloat16), _meta(512, dim, dtype=torch.float32)
        cache = _meta(4, 8192, dim, dtype=torch.bfloat16)
        yield Case(f"rope store bf16 D={dim}", store_launch(x, x, table, table, cache, cache, 100), False)
    yield _inverse_case(64, 0, torch.int8, torch.float16)
    yield _inverse_case(128, 0, torch.int16, torch.float32)
    for dim in (128, 256):
        for bits, codes in ((0, torch.int16), (4, torch.int8), (8, torch.int16)):
            yield _inverse_case(dim, bits, codes, torch.float16)


def _inverse_case(dim: int, bits: int, codes: torch.dtype, basis: torch.dtype) -> Case:
    layers, heads, tokens, kept = 24, 2, 256, 512
    width, tables = layers * heads * dim, _meta(2, tokens, dim, dtype=torch.float32)
    rotations = Rotations(tables, tables, _meta(layers, dtype=torch.int32))
    place: dict = {"dense": _meta(layers, heads, 8192, dim, dtype=torch.bfloat16)}
    if bits:
        refused = _meta(layers * heads, 4, dtype=torch.int32)
        place = {"packed": (empty_packed(layers * heads, 8192, dim, bits, "meta"), False, refused)}
    launch = inverse_launch(
        _meta(tokens, kept, dtype=codes), 0.1, _meta(kept, width, dtype=basis), _meta(width, dtype=torch.float32),
        _meta(layers, dtype=torch.float32), rotations, 64, **place,
    )  # fmt: skip
    name = f"inverse {str(codes)[6:]} {_SHORT[basis]} to {f'{bits} bits' if bits else 'bf16'} D={dim}"
    return Case(name, launch, basis != torch.float32)


def _row_cases() -> Iterator[Case]:
    for width in (896, 16384):
        x, weight = _meta(512, width, dtype=torch.bfloat16), _meta(width, dtype=torch.bfloat16)
        yield Case(f"add and rms norm bf16 C={width}", norm_launch(x, x, weight, 1e-6, x, x), False)
    for activation in ("silu", "gelu_tanh"):
        gate_up, out = _meta(512, 9728, dtype=torch.bfloat16), _meta(512, 4864, dtype=torch.bfloat16)
        yield Case(f"{activation} bf16", gate_launch(gate_up, activation, out), False)
    for bits, codes in ((8, torch.int8), (4, torch.uint8)):
        for outputs, columns, group in ((896, 4864, 32), (4864, 896, 64), (151936, 896, 128)):
            grid = _meta(outputs, columns // group)
            matrix = QuantizedMatrix(bits, _meta(outputs, columns * bits // 8, dtype=codes), grid, grid)
            x, out = _meta(3, columns, dtype=torch.bfloat16), _meta(3, outputs, dtype=torch.bfloat16)
            yield Case(f"matmul {bits} bits bf16 out={outputs} g{group}", matmul_launch(x, matrix, None, out), True)
