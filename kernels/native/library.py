"""This file finds the library that the C++ in src/ compiles to, opens it once and types its functions."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

_ABI = 15
_AGAIN = "run: pip install --no-cache-dir --force-reinstall --no-deps minimemo"  # pip keeps wheels without it
_VARIANTS = ("portable", "avx2", "avx512", "amx")  # by number, best last
_FUNCTIONS = {
    "abi": (c_int, []),
    "start": (None, [c_void_p]),
    "variant": (c_char_p, [c_int]),
    "plan": (c_int64, [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int, c_char_p, c_int]),
    "pack": (None, [c_char_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int]),
    "check": (c_int, [c_void_p, c_int64]),
    "linear": (c_int, [c_int, POINTER(c_void_p), c_int, c_void_p, c_int64, c_void_p, c_void_p, c_int, c_int]),
    "attention_variant": (c_char_p, [c_int]),
    "attention": (c_int, [c_int, c_void_p, c_int64, c_int]),
    "pack_kv": (c_int, [c_void_p, c_void_p, c_int, c_int64, c_int, c_int]),
    "rms_norm": (None, [c_int, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p]),
    "stack": (c_int, [c_int, c_int, c_void_p, c_void_p]),
    "inverts": (c_int, [c_int]),
    "unpack_symbols": (c_int, [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_void_p]),
    "pack_ranges": (None, [c_int, c_void_p, c_int64, c_int]),
    "unpack_ranges": (None, [c_int, c_void_p, c_int64, c_int]),
    "round_symbols": (None, [c_int, c_void_p, c_void_p, c_int64, c_float, c_float, c_void_p, c_int]),
    "inverse_transform": (c_int, [c_int, c_void_p, c_int64, c_int]),
    "frequencies": (c_int, [c_int, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int64, c_int64, c_int]),
    "store_turned": (
        None, [c_int, c_void_p, c_int64, c_void_p, c_int64, *[c_void_p] * 2, *[c_int64] * 3, *[c_void_p] * 2, c_int64,
               *[c_int] * 2],
    ),
    "coarsen": (c_double, [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int, c_void_p, c_void_p, c_int]),
    "shortlist": (c_int, [c_int, c_void_p, c_void_p, c_float, c_void_p, c_int64, c_void_p, c_int]),
    "expand": (None, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int, c_int64, c_int]),
}  # fmt: skip  # results and arguments of minimemo_*, as src/ has them


_KINDS = {"pointer": c_void_p, "bytes": c_char_p, "int32": c_int32, "int64": c_int64, "float": c_float}


def fields(declared: str) -> tuple[tuple[str, type], ...]:
    """Returns the fields of a C structure that are declared as "int64 rows columns; pointer x"."""
    groups = (group.split() for group in declared.split(";"))
    return tuple((name, _KINDS[kind]) for kind, *names in groups for name in names)


class NativeUnavailable(RuntimeError):
    """The native library cannot be used here; the message says why."""


class Library(ctypes.CDLL):
    """The functions of src/, which let go of the interpreter's lock while they run.

    variant: of products. attention_variant: the best that attention may take; it has one more, for AVX-512 with BF16.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self, f"minimemo_{name}")
            function.restype, function.argtypes = result, arguments
        self.variant = self.attention_variant = 0
        self.started = False


def unavailable() -> str | None:
    """Says why the native library cannot be used, or None when it can."""
    result = _opened()
    return result if isinstance(result, str) else None


def variants() -> tuple[str, ...]:
    """Names the instruction sets that this processor runs, best last."""
    opened = _found()
    return tuple(name for number, name in enumerate(_VARIANTS) if opened.minimemo_variant(number))


def has_tiles() -> bool:
    """Whether products take tiles here."""
    return unavailable() is None and library().variant == _VARIANTS.index("amx")


def library() -> Library:
    """Returns the library, which computes with torch's threads, or raises NativeUnavailable."""
    opened = _found()
    if not opened.started:
        opened.minimemo_start(_openmp_entry())
        opened.started = True
    return opened


def _found() -> Library:
    if isinstance(result := _opened(), str):
        raise NativeUnavailable(result)
    return result


@lru_cache(maxsize=1)
def _opened() -> Library | str:
    """Returns the library, or why there is none: it is looked for once, whatever comes of it."""
    try:
        return _open()
    except NativeUnavailable as reason:
        return str(reason)


def _open() -> Library:
    choice = os.environ.get("MINIMEMO_NATIVE", "")
    if choice not in ("", "off", *_VARIANTS):
        raise NativeUnavailable(f"MINIMEMO_NATIVE={choice}: expected off or one of {', '.join(_VARIANTS)}")
    if choice == "off":
        raise NativeUnavailable("turned off by MINIMEMO_NATIVE=off")
    # .pyd: on Windows
    files = sorted(path for path in Path(__file__).parents[1].glob("_native*") if path.suffix in (".so", ".pyd"))
    if not files:
        raise NativeUnavailable(f"not built: installing minimemo found no C++17 compiler; get one and {_AGAIN}")
    try:
        opened = Library(files[0])
    except (OSError, AttributeError) as error:
        raise NativeUnavailable(f"{files[0].name} does not load ({error}); {_AGAIN}") from None
    if opened.minimemo_abi() != _ABI:
        raise NativeUnavailable(f"{files[0].name} is of another version; {_AGAIN}")
    runnable = [number for number in range(len(_VARIANTS)) if opened.minimemo_variant(number)]
    opened.variant = _VARIANTS.index(choice) if choice else runnable[-1]
    if opened.variant not in runnable:
        raise NativeUnavailable(f"MINIMEMO_NATIVE={choice}: this processor does not run it")
    opened.attention_variant = opened.variant + (opened.variant >= 2)
    return opened


def _openmp_entry() -> int | None:
    """Finds GOMP_parallel of the OpenMP library that torch computes on (src/threads.h says what for), through torch's
    own library: several may be loaded. None where torch uses another."""
    torch = find_spec("torch")
    folder = Path(torch.origin).parent if torch is not None and torch.origin else Path()
    for path in sorted((folder / "lib").glob("libtorch_cpu.*")):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
