"""How a decoder runs on this machine: the one set of options that the command line and the library pass through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minimemo.errors import InputError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "int8")
KV_DTYPES = ("float32", "bfloat16", "int8", "int4")
_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """None: what this machine does best. Raises InputError for names and numbers that are not offered.

    dtype: of large products and dense weights; int8: activations of products with quantized weights are rounded to 8
    bits. kv_dtype: of keys and values at work; None: that of dense products; int8 and int4: of an opened memory, with
    what is read and written beside it in that of dense products. threads: of torch and of native kernels, in the whole
    process. device: as torch names it.
    """

    dtype: str | None = None
    kv_dtype: str | None = None
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, value, known in (("dtype", self.dtype, DTYPES), ("kv-dtype", self.kv_dtype, KV_DTYPES)):
            if value is not None and value not in known:
                raise InputError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be 1 or more, not {self.threads}")

    def limit_threads(self) -> None:
        """Makes this process compute on `threads` threads from here on, where that is given."""
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def product_dtype(self) -> torch.dtype:
        """Of products of many rows."""
        from minimemo.models.weights import preferred_dtype

        return _torch_dtype(self.dtype) if self.dtype else preferred_dtype(self.device)

    def cache_dtype(self) -> torch.dtype:
        """Of dense caches, which is also what a memory is built from."""
        from minimemo.models.weights import dense_dtype

        if self.kv_dtype in ("float32", "bfloat16"):
            return _torch_dtype(self.kv_dtype)
        return _torch_dtype(self.dtype) if self.dtype not in (None, "int8") else dense_dtype(self.device)

    def memory_bits(self) -> int | None:
        """Of a number of an opened memory; None: it is dense."""
        return _BITS.get(self.kv_dtype or "")


DEFAULT_OPTIONS = RunOptions()


def _torch_dtype(name: str | None) -> torch.dtype:
    import torch

    found = getattr(torch, str(name))
    assert isinstance(found, torch.dtype)
    return found
