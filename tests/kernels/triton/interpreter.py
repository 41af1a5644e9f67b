"""What Triton's interpreter lacks, for tests: bfloat16 as a GPU computes it, and a look at where programs store.

The interpreter keeps bfloat16 as bit patterns and multiplies those. Here casts go by way of float32, rounded to the
nearest, ties to even, products of bfloat16 are taken exactly and summed in float32, and arithmetic in bfloat16 itself,
which no kernel asks for, is refused.

It also patches triton.language anew at every call of a function within a kernel, tl.sum among them, and looks through
all of its names each time. Here each part of the language is patched once a launch, by the names found once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import (
    GridExecutor,
    InterpretedFunction,
    InterpreterBuilder,
    InterpreterError,
    TensorHandle,
    _get_np_dtype,
)

from minimemo.kernels.triton.launch import Launch

_stores: list[tuple[Any, np.ndarray]] | None = None  # of a launch that is watched: (program, addresses of bytes)


def install() -> None:
    """Mends the interpreter, for good; a second call changes nothing."""
    if getattr(InterpreterBuilder, "mended", False):
        return
    InterpreterBuilder.mended = True
    cast, dot, binary = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot, InterpreterBuilder.binary_op
    store, to_float = InterpreterBuilder.create_masked_store, InterpreterBuilder.create_fp_to_fp

    def cast_impl(self: Any, src: Any, to: Any) -> Any:
        if tl.bfloat16 not in (src.dtype.scalar, to.scalar):
            return cast(self, src, to)
        wide = _wide(src.data) if src.dtype.scalar == tl.bfloat16 else src.data.astype(np.float32)
        return TensorHandle(_rounded(wide) if to.scalar == tl.bfloat16 else wide.astype(_get_np_dtype(to)), to.scalar)

    def create_fp_to_fp(self: Any, src: Any, to: Any, rounding: Any) -> Any:
        if tl.bfloat16 in (src.dtype.scalar, to.scalar):
            return cast_impl(self, src, to)
        return to_float(self, src, to, rounding)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        a, b = (TensorHandle(_wide(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, d, *rest)

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if tl.bfloat16 in (lhs.dtype.scalar, rhs.dtype.scalar):
            raise NotImplementedError("arithmetic in bfloat16: cast to float32 first")
        return binary(self, lhs, rhs, op)

    def create_masked_store(self: Any, ptrs: Any, value: Any, mask: Any, policy: Any) -> Any:
        if _stores is not None:
            first = np.broadcast_to(ptrs.data, value.data.shape)[np.broadcast_to(mask.data, value.data.shape)]
            _stores.append((self.grid_idx, np.unique(first.astype(np.uint64))))
        return store(self, ptrs, value, mask, policy)

    launch, patched = GridExecutor.__call__, set[tuple[int, ...]]()
    parts = (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base)
    builtins = {part: [pair for pair in inspect.getmembers(part) if tl.core.is_builtin(pair[1])] for part in parts}

    def patch_builtin(part: Any, builder: Any, scope: Any) -> None:
        for name, member in builtins[part]:
            interpreter._patch_attr(part, name, member, builder, scope)

    def launched(self: Any, *arguments: Any, **named: Any) -> None:
        patched.clear()
        launch(self, *arguments, **named)

    def called(self: Any, *arguments: Any, **named: Any) -> Any:
        language = tuple(id(value) for value in self.fn.__globals__.values() if value is tl or value is tl.core)
        if language not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(language)
        try:
            return self.rewrite()(*arguments, **named)
        except Exception as error:
            raise InterpreterError(repr(error)) from error

    GridExecutor.__call__, InterpretedFunction.__call__ = launched, called
    interpreter._patch_builtin = patch_builtin
    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast_impl, create_dot
    InterpreterBuilder.create_fp_to_fp, InterpreterBuilder.binary_op = create_fp_to_fp, binary_op
    InterpreterBuilder.create_masked_store = create_masked_store


def watched(run: Callable[[Launch], None]) -> Callable[[Launch], None]:
    """Launch.run that fails where two programs of a launch store to one address: on a GPU one of both would win."""

    def checked(launch: Launch) -> None:
        global _stores
        _stores = found = []
        try:
            run(launch)
        finally:
            _stores = None
        by_program: dict[Any, list[np.ndarray]] = {}
        for program, addresses in found:
            by_program.setdefault(program, []).append(addresses)
        sets = [np.unique(np.concatenate(parts)) for parts in by_program.values()]
        if sets:
            merged = np.sort(np.concatenate(sets))
            clashes = int((merged[1:] == merged[:-1]).sum())
            assert not clashes, f"{launch.kernel.__name__}: {clashes} addresses are stored to by several programs"

    return checked


def _wide(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounded(wide: np.ndarray) -> np.ndarray:
    """float32 -> bits of bfloat16, to the nearest, ties to even."""
    bits = np.ascontiguousarray(wide).view(np.uint32)
    nearest = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(wide), np.uint16(0x7FC0), nearest)
