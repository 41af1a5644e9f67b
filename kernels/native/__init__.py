"""This folder is Python's side of the native kernels for a CPU, the C++ in src/: an operation a file.

The library is optional: it is built with the package where a C++ compiler is at hand. `unavailable()` says why it
cannot be used. MINIMEMO_NATIVE=off turns it off, MINIMEMO_NATIVE=portable (avx2, avx512, amx) picks a variant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .library import NativeUnavailable, unavailable, variants

if TYPE_CHECKING:
    from .linear import PackedMatrix, concatenate, expand_into, expand_rows, pack_weights, packed_linear

__all__ = [
    "NativeUnavailable", "PackedMatrix", "concatenate", "expand_into", "expand_rows", "pack_weights", "packed_linear",
    "unavailable", "variants",
]  # fmt: skip


if not TYPE_CHECKING:  # to a type checker the names above are all there are

    def __getattr__(name: str) -> object:
        """Names of linear.py, which needs torch."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(".linear", __name__), name)
        return value
