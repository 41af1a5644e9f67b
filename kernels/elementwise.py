"""These functions do what lies between a decoder's products. Each picks the kernel that serves a call: Triton's on a
GPU, a native one for norms of a few rows on a CPU, where a torch operation wakes a team of threads, else torch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native, torch_ops, triton
from .formats import MAX_DIM
from .native.library import library

_NATIVE_ROWS = 16  # norms of more are worth several threads


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scales x (..., C) to unit root mean square, times weight (C,). arXiv 1910.07467."""
    if triton.serves(x, weight) and x.shape[-1] <= triton.MAX_WIDTH:
        from .triton import elementwise as on_gpu

        return on_gpu.rms_norm(x, weight, eps)
    if _native_serves(x, weight):
        return _native_rms_norm(x, weight, eps)
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def gated_mlp_activation(gate_up: Tensor, activation: str) -> Tensor:
    """Takes gate_up (..., 2I) to act(gate) * up (..., I); activation "silu" or "gelu_tanh". arXiv 2002.05202."""
    if triton.serves(gate_up):
        from .triton import elementwise as on_gpu

        return on_gpu.gated_mlp_activation(gate_up, activation)
    return torch_ops.gated_mlp_activation(gate_up, activation)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x (..., N, D) by cos, sin (N, D) float32; dimension i pairs with i + D/2. arXiv 2104.09864.

    Computed in float32 and rounded once to x.dtype, element by element: the same key gives the same bits whatever it
    is batched with, which is what lets a restored exact memory equal the cache it came from.
    """
    if triton.serves(x) and x.dim() == 3 and x.shape[2] <= MAX_DIM:
        from .triton import rope

        return rope.apply_rope(x, cos.contiguous(), sin.contiguous())
    return torch_ops.apply_rope(x, cos, sin)


def rope_store(
    keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, cache_keys: Tensor, cache_values: Tensor, start: int
) -> None:
    """Rotates keys (G, n, D) by cos, sin (n, D) float32 and writes them and values (G, n, D) into one layer's cache
    (G, capacity, D) from token `start` on, rounded to its dtype. Raises ValueError where they do not fit."""
    end = start + keys.shape[1]
    if not 0 <= start <= end <= cache_keys.shape[1]:
        raise ValueError(f"start: {start} with {keys.shape[1]} tokens in a cache of {cache_keys.shape[1]}")
    if triton.serves(keys, values) and triton.serves(cache_keys, cache_values) and keys.shape[2] <= MAX_DIM:
        from .triton import rope

        rope.store_launch(keys, values, cos.contiguous(), sin.contiguous(), cache_keys, cache_values, start).run()
        return
    if _stores_natively(keys, values, cos, sin, cache_keys, cache_values) and native.unavailable() is None:
        _store_natively(keys, values, cos, sin, cache_keys[:, start:end], cache_values[:, start:end])
        return
    cache_keys[:, start:end] = torch_ops.apply_rope(keys, cos, sin)
    cache_values[:, start:end] = values


def rope_qkv(
    qkv: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    out: Tensor,
    cache_keys: Tensor,
    cache_values: Tensor,
    start: int,
    raw_keys: Tensor | None = None,
) -> bool:
    """Does in one kernel, where one serves, what lies between a layer's first product and its attention; says whether
    it did.

    qkv: (n, H + 2G, D). norms: RMSNorm weights of each head of queries and of keys. out: (H, n, D), the queries turned
    by cos, sin (n, D). Keys, turned, and values go into one layer's cache (G, capacity, D) from token `start` on; the
    keys before they are turned into raw_keys (G, n, D).
    """
    floats = [qkv, out, cache_keys, cache_values, *(norms or ()), *([] if raw_keys is None else [raw_keys])]
    if not triton.serves(*floats) or qkv.shape[2] > MAX_DIM:
        return False
    from .triton import rope

    rope.qkv_launch(qkv, norms, eps, cos, sin, out, cache_keys, cache_values, start, raw_keys).run()
    return True


def rope_rows(
    qkv: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    tables: tuple[Tensor, Tensor],
    positions: Tensor,
    slots: Tensor,
    out: Tensor,
    cache_keys: Tensor,
    cache_values: Tensor,
    spacing: int,
) -> None:
    """Does as `rope_qkv` on a GPU for n rows of one token each, every row with a cache of its own, `spacing` numbers
    after the one before; positions, whose cos and sin are looked up in the tables (P, D), and slots are (n,) int32."""
    from .triton import rope

    rows = (positions, slots, spacing)
    rope.qkv_launch(qkv, norms, eps, *tables, out, cache_keys, cache_values, 0, None, rows=rows).run()


def _stores_natively(*given: Tensor) -> bool:
    """Whether keys, values, cos, sin and two caches are what `_store_natively` takes."""
    keys, values, cos, sin, cache_keys, cache_values = given
    fits = values.shape == keys.shape and cos.shape == sin.shape == keys.shape[1:]
    fits &= cache_keys.shape == cache_values.shape == (keys.shape[0], cache_keys.shape[1], keys.shape[2])
    laid = cache_keys.stride() == cache_values.stride() and cache_keys.stride()[1:] == (keys.shape[2], 1)
    typed = cos.dtype == sin.dtype == torch.float32 and cache_keys.dtype == cache_values.dtype
    known = cache_keys.dtype in (torch.float32, torch.bfloat16)
    return fits and laid and typed and known and all(x.is_cpu for x in given)


def _store_natively(keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, to_keys: Tensor, to_values: Tensor) -> None:
    """As `rope_store`, into these places."""
    opened, (heads, tokens, dim) = library(), keys.shape
    keys, values = (x.float() if x[0].is_contiguous() else x.float().contiguous() for x in (keys, values))
    cos, sin = cos.contiguous(), sin.contiguous()
    opened.minimemo_store_turned(
        opened.variant, keys.data_ptr(), keys.stride(0), values.data_ptr(), values.stride(0), cos.data_ptr(),
        sin.data_ptr(), heads, tokens, dim, to_keys.data_ptr(), to_values.data_ptr(), to_keys.stride(0),
        to_keys.dtype == torch.bfloat16, torch.get_num_threads(),
    )  # fmt: skip


def _native_serves(x: Tensor, weight: Tensor) -> bool:
    few = weight.shape == x.shape[-1:] != (0,) and x.numel() // x.shape[-1] <= _NATIVE_ROWS
    alike = x.dtype == weight.dtype == torch.float32 and x.is_cpu and weight.is_cpu
    return few and alike and native.unavailable() is None


def _native_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norms float32 rows on the caller's thread."""
    rows, weight, columns = x.contiguous(), weight.contiguous(), x.shape[-1]
    out, opened = torch.empty_like(rows), library()
    opened.minimemo_rms_norm(
        opened.variant, rows.data_ptr(), weight.data_ptr(), eps, rows.numel() // columns, columns, out.data_ptr()
    )
    return out
