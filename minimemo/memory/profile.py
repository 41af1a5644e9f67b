"""A profile holds what a transform codec knows of one model before it sees a document; all documents share it.

All layers and heads of a token are one vector, for keys (before RoPE) and for values: neighbours in depth repeat each
other, and one orthonormal basis over all of them needs a quarter of the bits of one a layer (KVTC, arXiv 2511.01815,
section 3). Models of many layers are cut into groups, each with bases of its own.

What stands before every document (the opening of the turn) is the same for all of them, and its special tokens have to
be exact: so a profile also holds the keys and values of openings, and a memo need not.

Letters: L layers, G kv heads, D head dim; C = layers of a group * G * D; r components.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from minimemo.errors import MemoError, MinimemoError, ModelError
from minimemo.files import content_hash, is_running, parse_json, put

MAX_JOINT = 4608  # numbers of a token that share a basis; eigenvectors of more take minutes
_FORMAT = "minimemo profile 2"
_ROWS_AT_ONCE, _COLUMNS_AT_ONCE = 1024, 256  # of a text, for its statistics


@dataclass(frozen=True, slots=True)
class Transform:
    """Keys, or values, of one group of layers: components = ((x - mean) * weight) @ basis.T.

    mean (C,) float32; weight (layers,) float32, by which a layer's numbers are scaled so that an error costs the same
    in each; basis (r, C) float16, rows orthonormal, largest variance first; deviation (r,) float32 of the components.
    """

    mean: Tensor
    weight: Tensor
    basis: Tensor
    deviation: Tensor

    @property
    def fits(self) -> bool:
        """Whether shapes and dtypes are those of a profile: a file may come from a stranger."""
        tensors = self.mean, self.weight, self.basis, self.deviation
        if [x.dim() for x in tensors] != [1, 1, 2, 1] or not len(self.weight):
            return False
        dtypes = [x.dtype for x in tensors] == [torch.float32, torch.float32, torch.float16, torch.float32]
        shapes = self.basis.shape == (len(self.deviation), len(self.mean)) and len(self.deviation) <= len(self.mean)
        shapes &= len(self.mean) % len(self.weight) == 0
        return dtypes and shapes and bool((self.weight > 0).all() and self.deviation.isfinite().all())


@dataclass(frozen=True, slots=True)
class Opening:
    """Tokens at the very beginning of a sequence, and what the model makes of them.

    ids (n,) int32; kv (2, L, G, n, D): keys before RoPE and values, in the dtype of the cache that they came from.
    """

    ids: Tensor
    kv: Tensor

    @property
    def fits(self) -> bool:
        """Whether the shapes are those of a profile."""
        return self.ids.dim() == 1 and self.kv.dim() == 5 and self.kv.shape[3] == len(self.ids)


_Part = TypeVar("_Part", Transform, Opening)


@dataclass(frozen=True, slots=True)
class Profile:
    """model: fingerprint. keys, values: a Transform for each group of layers, in order. hash: of its file."""

    model: str
    keys: tuple[Transform, ...]
    values: tuple[Transform, ...]
    openings: tuple[Opening, ...]
    hash: str

    @property
    def layers(self) -> int:
        return sum(len(half.weight) for half in self.keys)


def groups(num_layers: int, width: int) -> list[range]:
    """Layers in as few even groups as keep each group's joint dimension within MAX_JOINT; width: G * D."""
    count = -(-num_layers // max(1, MAX_JOINT // width))
    edges = [num_layers * at // count for at in range(count + 1)]
    return [range(first, last) for first, last in pairwise(edges)]


def joint(x: Tensor) -> Tensor:
    """(layers, G, n, D) -> (n, layers G D) float32: a token's numbers as one vector."""
    return x.permute(2, 0, 1, 3).flatten(1).float()


class Statistics:
    """Mean and covariance of what passes by; double precision, C * C numbers whatever the length of the text."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._products = torch.zeros(dim, dim, dtype=torch.float64)
        self._waiting: list[Tensor] = []  # adding products up costs as much as a few hundred rows

    def add(self, x: Tensor) -> None:
        """x (n, C) float32, which is kept for a while."""
        self.count += len(x)
        self._waiting.append(x)
        if sum(map(len, self._waiting)) >= _ROWS_AT_ONCE:
            self._take()

    def _take(self) -> None:
        if self._waiting:
            x = torch.cat(self._waiting)
            self._waiting.clear()
            self._sum += x.sum(0, dtype=torch.float64)
            for first in range(0, x.shape[1], _COLUMNS_AT_ONCE):  # the other half is the same, see `_covariance`
                columns = slice(first, first + _COLUMNS_AT_ONCE)
                self._products[columns, first:] += x[:, columns].T @ x[:, first:]

    def mean(self) -> Tensor:
        self._take()
        return self._sum / self.count

    def transform(self, weight: Tensor, *, rough: bool = False) -> Transform:
        """The basis of the data scaled by weight (layers,). rough: in single precision, in half the time.
        Raises ModelError for too little or unusable data."""
        mean = self.mean()
        if self.count < len(mean):
            raise ModelError(f"calibration: {self.count} tokens for {len(mean)} dimensions; give it more text")
        wide = weight.double().repeat_interleave(len(mean) // len(weight))
        variance, vectors = torch.linalg.eigh(self._covariance(mean, wide, torch.float32 if rough else torch.float64))
        basis = vectors.flip(1).T.contiguous()
        # The sign of an eigenvector is the solver's whim: fix it, so that one text gives one profile.
        largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
        deviation = variance.flip(0).clamp_min(0).sqrt()
        return Transform(mean.float(), weight.float(), (basis * largest.sign()).half(), deviation.float())

    def _covariance(self, mean: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """(C, C) of the data times scale (C,): no more than one such matrix besides what is kept."""
        found = torch.empty(self._products.shape, dtype=dtype)
        for first in range(0, len(mean), _COLUMNS_AT_ONCE):
            rows = slice(first, first + _COLUMNS_AT_ONCE)
            part = self._products[rows, first:] / self.count - torch.outer(mean[rows], mean[first:])
            part *= torch.outer(scale[rows], scale[first:])
            found[rows, first:], found[first:, rows] = part, part.T
        return found

    def deviation(self, layers: int) -> Tensor:
        """(layers,) standard deviation of each layer's numbers around their means, float64."""
        mean = self.mean()
        variance = self._products.diagonal() / self.count - mean**2
        return variance.view(layers, -1).mean(1).clamp_min(0).sqrt()


def save_profile(
    model: str, keys: Sequence[Transform], values: Sequence[Transform], folder: Path, openings: Sequence[Opening] = ()
) -> Profile:
    """Writes a profile into `folder`, named by model and hash, whole or not at all; MinimemoError if it cannot."""
    kinds: dict[str, Sequence[Transform | Opening]] = {"keys": keys, "values": values, "openings": openings}
    tensors = {
        f"{kind}.{at}.{name}": getattr(part, name).contiguous()
        for kind, parts in kinds.items()
        for at, part in enumerate(parts)
        for name in (field.name for field in fields(part))
    }
    content = save(tensors, {"profile": json.dumps([_FORMAT, model])})  # one entry: their order is not fixed
    hash_ = hashlib.sha256(content).hexdigest()[:32]
    with _writing(folder) as temporary:
        temporary.write_bytes(content)
        put(temporary, folder / f"{model[:16]}-{hash_}.safetensors")
    return Profile(model, tuple(keys), tuple(values), tuple(openings), hash_)


def check_writable(folder: Path) -> None:
    """Raises MinimemoError when no profile can be saved in `folder`."""
    with _writing(folder) as temporary:
        temporary.touch()


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """Gives a hidden place for a file in `folder`, and leaves nothing there, nor what a killed process left."""
    temporary = folder / f".{os.getpid()}-{secrets.token_hex(8)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".*.tmp"):
            if not is_running(stale.name[1:].split("-")[0]):
                stale.unlink(missing_ok=True)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise MinimemoError(
            f"{folder}: cannot be written ({error.strerror}), and profiles of models are kept there: free some space, "
            "set MINIMEMO_HOME to another place, or build with `memory=int4`, which needs none"
        ) from None


def profile_of(model: str, folder: Path) -> str | None:
    """The hash of the newest profile of a model (by fingerprint), None when it has none."""
    files = folder.glob(f"{model[:16]}-*.safetensors")
    newest = max(files, key=lambda path: path.stat().st_mtime_ns, default=None)
    return newest.stem.split("-")[1] if newest else None


def profile_file(hash_: str, *folders: Path) -> Path:
    """The file of the profile of that hash, in the first of the folders that has it. Raises MemoError for none."""
    for folder in folders:
        for path in folder.glob(f"*-{hash_}.safetensors") if hash_.isalnum() else ():
            return path
    raise MemoError(
        f"profile {hash_} is not in {folders[0]}: on the machine that built the memo, minimemo export makes one that "
        "carries it; or build the memo again"
    )


def load_profile(hash_: str, *folders: Path) -> Profile:
    """The profile of that hash. Raises MemoError when it is missing, damaged or not of the shape a profile has."""
    path = profile_file(hash_, *folders)
    if content_hash(path)[:32] != hash_:
        raise MemoError(f"{path}: damaged (checksum); calibrate again and build the memo again")
    try:
        with safe_open(path, framework="pt") as file:
            described = parse_json((file.metadata() or {}).get("profile", "[]"))
            keys, values = (_parts(file, kind, Transform) for kind in ("keys", "values"))
            openings = _parts(file, "openings", Opening)
    except (SafetensorError, OSError, ValueError) as error:
        raise MemoError(f"{path}: cannot be read ({error})") from None
    ours = isinstance(described, list) and len(described) == 2 and described[0] == _FORMAT
    if not ours or len(keys) != len(values) or not keys:
        raise MemoError(f"{path}: no profile that this minimemo reads")
    parts: tuple[Transform | Opening, ...] = (*keys, *values, *openings)
    if not all(part.fits for part in parts):
        raise MemoError(f"{path}: its tensors do not fit together")
    return Profile(str(described[1]), keys, values, openings, hash_)


def _parts(file: safe_open, kind: str, form: type[_Part]) -> tuple[_Part, ...]:
    """The tensors KIND.0.NAME, KIND.1.NAME ... of a file, whatever their shapes."""
    stored, names, parts = set(file.keys()), [field.name for field in fields(form)], list[_Part]()
    while f"{kind}.{len(parts)}.{names[0]}" in stored:
        parts.append(form(*(file.get_tensor(f"{kind}.{len(parts)}.{name}") for name in names)))
    return tuple(parts)
