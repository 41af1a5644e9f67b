"""These kernels serve a transform codec on the CPU: `Basis` multiplies with its orthonormal basis, in both directions;
`round_symbols` gives what is coded (native/src/transform.cpp); `unpack_symbols` reads symbols out of their streams
(native/src/symbols.cpp); `along_tokens` turns tokens to frequencies and back (native/src/frequencies.cpp).

Natively (from AVX2 on) both products of `Basis` are taken with 8-bit integers, or in tiles forwards with bfloat16.
Rounding the basis and the inputs adds errors of 0.8 % forwards and 0.5 % backwards of the numbers' root mean square,
alike in all components. Elsewhere, and where that is too much, torch multiplies in float32. Either way the same bits
come out of any number of threads.

Letters: r rows of the basis (components), C numbers of a token, n tokens, L layers, G kv heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, byref, c_char_p, c_int64, c_void_p, sizeof
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from . import native
from .native.library import fields, has_tiles, library
from .ranges import LARGEST

_GROUP, _COLUMNS, _MAX_TOKENS = 256, 32, 256  # kComponents, kColumns, kMaxTokens of native/src/transform.h
_BLOCK = 32  # columns that share a scale in a packed matrix


class Basis:
    """rows (r, C) float16, orthonormal. dense: how many of the first components are mostly not zero; with those the
    inverse multiplies whole vectors, of the others it takes nonzero symbols one by one. exact: float32 everywhere. What
    products need is made at the first one.
    """

    def __init__(self, rows: Tensor, dense: int, *, exact: bool = False) -> None:
        if rows.dtype != torch.float16 or rows.dim() != 2 or not 0 <= dense <= len(rows):
            raise ValueError(f"basis: {rows.dtype} {tuple(rows.shape)} with {dense} dense rows")
        self.rows = rows.contiguous()
        self.dense = dense
        self.exact = exact

    def components(self, x: Tensor) -> Tensor:
        """Multiplies x (n, C) float32 with rows.T -> (n, r) float32."""
        if self._matrix is not None:
            return native.packed_linear(x, self._matrix, exact=False)
        return x @ self._wide.T

    def inverse(self, symbols: Tensor, step: float, mean: Tensor, scale: Tensor, out: Tensor) -> None:
        """Writes (symbols.T * step @ rows + mean) * scale into out, (heads, n, D) float32 with C = heads * D, whose
        heads may lie apart.

        symbols (r, n) int16; mean (C,), scale (heads,) float32. Raises ValueError for what does not fit.
        """
        heads, tokens, dim = out.shape
        shapes = symbols.shape == (len(self.rows), tokens) and mean.shape == (heads * dim,) and scale.shape == (heads,)
        kinds = symbols.dtype == torch.int16 and all(x.dtype == torch.float32 for x in (mean, scale, out))
        if not (shapes and kinds and heads * dim == self.rows.shape[1]):
            raise ValueError(
                f"basis {tuple(self.rows.shape)}: symbols {symbols.dtype} {tuple(symbols.shape)}, mean "
                f"{tuple(mean.shape)}, scale {tuple(scale.shape)} and out {out.dtype} {tuple(out.shape)} do not fit"
            )
        fits = dim % _COLUMNS == 0 and 0 < tokens <= _MAX_TOKENS and out.stride()[1:] == (dim, 1)
        if fits and not self.exact and _inverts():
            self._inverse_natively(symbols.contiguous(), step, mean.contiguous(), scale.contiguous(), out)
            return
        active = symbols.any(1).nonzero()[:, 0]
        x = (symbols[active].float() * step).T @ self._wide[active]
        out.copy_((x + mean).view(tokens, heads, dim).transpose(0, 1) * scale[:, None, None])

    def _inverse_natively(self, symbols: Tensor, step: float, mean: Tensor, scale: Tensor, out: Tensor) -> None:
        opened = library()
        codes, scales = self._packed
        job = _InverseTransform(
            symbols.data_ptr(), len(self.rows), self.dense, out.shape[1], self.rows.shape[1], out.shape[2], step,
            codes.data_ptr(), scales.data_ptr(), self.rows.data_ptr(), mean.data_ptr(), scale.data_ptr(),
            out.data_ptr(), out.stride(0),
        )  # fmt: skip
        threads = torch.get_num_threads()
        if opened.minimemo_inverse_transform(opened.variant, byref(job), sizeof(job), threads):
            raise MemoryError("no memory for the inverse transform")

    @cached_property
    def _wide(self) -> Tensor:
        return self.rows.float()

    @cached_property
    def _matrix(self) -> native.PackedMatrix | None:
        """The rows as `components` multiplies with them."""
        rows, columns = self.rows.shape
        if self.exact or rows == 0 or columns % _BLOCK or native.unavailable() is not None:
            return None
        if library().variant == 0:  # portable: 6 times slower than torch here
            return None
        codes = torch.empty(rows, columns, dtype=torch.int8)
        scales = torch.empty(rows, columns // _BLOCK)
        for at in range(0, rows, _GROUP):
            part = slice(at, at + _GROUP)
            rounded, scales[part] = _rounded(self.rows[part].float().unflatten(1, (-1, _BLOCK)), 2)
            codes[part] = rounded.flatten(1)
        return native.pack_weights(codes, scales)

    @cached_property
    def _packed(self) -> tuple[Tensor, Tensor]:
        """Codes and scales of the dense rows for the inverse, as native/src/transform.h has them."""
        groups, tiles = -(-self.dense // _GROUP), self.rows.shape[1] // _COLUMNS
        codes = torch.zeros(tiles, groups, _GROUP // 4, _COLUMNS, dtype=torch.int32)  # four of a byte each
        scales = torch.empty(tiles, groups, _COLUMNS)
        for group in range(groups):
            part = self.rows[group * _GROUP : min((group + 1) * _GROUP, self.dense)].float()
            rounded, steps = _rounded(part, 0)
            whole = torch.nn.functional.pad(rounded.add_(128).int(), (0, 0, 0, -len(part) % 4)).unflatten(0, (-1, 4))
            quads = whole[:, 0] | whole[:, 1] << 8 | whole[:, 2] << 16 | whole[:, 3] << 24
            codes[:, group, : len(quads)] = quads.view(-1, tiles, _COLUMNS).transpose(0, 1)
            scales[:, group] = steps.view(tiles, _COLUMNS)
        return codes, scales


def _rounded(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Rounds x to whole numbers up to 127, and returns them and the scale of each slice along `dim`, without that
    dimension; both float32."""
    scales = x.abs().amax(dim) / 127
    return (x / scales.clamp_min(1e-30).unsqueeze(dim)).round_(), scales


def _inverts() -> bool:
    if native.unavailable() is not None:
        return False
    return bool(library().minimemo_inverts(library().variant))


class _InverseTransform(Structure):
    """InverseTransform of native/src/transform.h."""

    _fields_ = fields(
        "pointer symbols; int64 rows dense tokens columns dim; float step; pointer packed scales basis mean scale out; "
        "int64 out_head"
    )


# By the library's return value.
FAULTS = (
    "",
    "a block's stream of symbols is damaged",
    "a block's stream of gaps is damaged",
    "a block holds fewer remainders than its symbols ask for",
    "a block holds more remainders than its symbols ask for",
    "a block holds a symbol out of range",
    "a block's large numbers are of another count than their marks",
)


def unpack_symbols(
    streams: Sequence[bytes], rows: Sequence[int], widths: Sequence[int], packed: Sequence[int]
) -> np.ndarray:
    """Unpacks streams of bands of `rows` rows of `widths` symbols, `packed` symbols a byte (0: gaps), then remainders
    and large numbers -> int16, band after band. Raises ValueError, one of FAULTS, when they are not the streams of so
    many symbols."""
    count = len(rows)
    if len(streams) != count + 2 or not len(packed) == len(widths) == count:
        raise ValueError(f"{len(streams)} streams for {count} bands")
    out = np.empty(sum(row * width for row, width in zip(rows, widths, strict=True)), dtype=np.int16)
    fault = library().minimemo_unpack_symbols(
        (c_char_p * (count + 2))(*streams),
        (c_int64 * (count + 2))(*map(len, streams)),
        (c_int64 * count)(*rows),
        (c_int64 * count)(*widths),
        (c_int64 * count)(*packed),
        count,
        out.ctypes.data_as(c_void_p),
    )
    if fault:
        raise ValueError(FAULTS[fault])
    return out


def loud_from() -> float:
    """From which standard deviation of their symbols on the inverse is quicker with whole vectors of components: 0.3,
    where 1 symbol in 11 is not zero, or, in tiles (AMX), 0.08, where 1 in 7,000 is not."""
    return 0.08 if has_tiles() else 0.3


def round_symbols(components: Tensor, step: float, up: float, places: Tensor | None = None) -> Tensor:
    """Rounds components (n, r) float32 to whole steps, away from zero from the fraction `up` on -> int16, at most
    LARGEST: (r, n), or, with places (N,) int32, which lie in (n, r), those."""
    if components.is_cpu and places is not None and native.unavailable() is None:
        out = torch.empty(len(places), dtype=torch.int16)
        opened, components = library(), components.contiguous()
        opened.minimemo_round_symbols(
            opened.variant, components.data_ptr(), places.data_ptr(), len(places), step, 1 - up, out.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return out
    chosen = components.T if places is None else components.flatten()[places.long()]
    sizes = (chosen.abs() / step).add_(1 - up).floor_().clamp_max_(LARGEST)
    return sizes.copysign_(chosen).to(torch.int16).contiguous()


MAX_GROUP = 64  # kMaxGroup of native/src/loops.h


def along_tokens(matrix: Tensor, x: Tensor) -> None:
    """Multiplies every group of tokens with one matrix, in place: x[p, j g + k] = sum over t of matrix[k, t] *
    x[p, j g + t], added in the order of t, the same bits on every machine.

    matrix (g, g) float32, g at most MAX_GROUP; x (planes, m g, columns) float32, whose planes may lie apart. Raises
    ValueError for what does not fit.
    """
    group, (planes, tokens, columns) = len(matrix), x.shape
    fits = matrix.shape == (group, group) and 0 < group <= MAX_GROUP and tokens % group == 0
    if not (fits and matrix.dtype == x.dtype == torch.float32 and x.stride()[1:] == (columns, 1)):
        raise ValueError(f"along_tokens: matrix {tuple(matrix.shape)} and x {x.dtype} {tuple(x.shape)} do not fit")
    if native.unavailable() is None:
        opened, factors = library(), matrix.contiguous()
        opened.minimemo_frequencies(
            opened.variant, factors.data_ptr(), group, x.data_ptr(), planes, x.stride(0), tokens // group, columns,
            torch.get_num_threads(),
        )  # fmt: skip
        return
    grouped = x.unflatten(1, (-1, group))
    sums = torch.zeros_like(grouped)
    for t in range(group):
        sums += matrix[:, t, None] * grouped[:, :, t, None]
    x.copy_(sums.flatten(1, 2))
