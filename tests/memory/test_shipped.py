"""The profile that comes with the package: packed, found by the model's fingerprint, the same everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zstandard
from safetensors.torch import load

from minimemo.memory import shipped
from minimemo.memory.profile import Opening, Profile, Statistics, load_profile, save_profile
from minimemo.memory.shipped import described, shipped_profile, unpacked
from minimemo.runtime import locate_model
from tools.ship_profile import FOLDER, packed

NAME = "qwen2.5-coder-0.5b"


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    halves = []
    for seed in (1, 2):
        x = torch.randn(400, 64, generator=torch.Generator().manual_seed(seed)) * torch.linspace(5, 0.1, 64)
        x[:, 3] += x[:, 2]
        statistics = Statistics(64)
        statistics.add(x)
        halves.append([statistics.transform(torch.tensor([1.0, 2.0, 0.5, 1.0]))])
    opening = Opening(torch.arange(3, dtype=torch.int32), torch.randn(2, 4, 2, 3, 8))
    return save_profile("f" * 64, *halves, tmp_path, [opening])


def test_packed_and_unpacked(profile: Profile) -> None:
    content = zstandard.ZstdDecompressor().decompress(packed(profile))
    assert described(content) == {"model": "f" * 64}
    keys, values, (opening,) = unpacked(load(content))
    for (found,), (exact,), rows, levels in ((keys, profile.keys, 39, 44), (values, profile.values, 42, 18)):
        assert found.fits and len(found.basis) == rows
        assert torch.equal(found.mean, exact.mean) and torch.equal(found.weight, exact.weight)
        assert torch.equal(found.deviation, exact.deviation[:rows])
        off = (found.basis.float() - exact.basis[:rows].float()).abs()  # a row's root mean square is 1/8
        assert float(off.max()) <= 0.51 / levels / 8 + 1e-3 and float(off.max()) > 0.2 / levels / 8
    assert torch.allclose(opening.kv.float(), profile.openings[0].kv, atol=2e-3)


def test_found_by_the_fingerprint(profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "model.profile").write_bytes(packed(profile))
    monkeypatch.setattr(shipped.resources, "files", lambda _: tmp_path / "package")
    home = tmp_path / "home"
    found = shipped_profile("f" * 64, home)
    assert found is not None and shipped_profile("e" * 64, home) is None
    again = load_profile(found.hash, home)
    assert torch.equal(again.keys[0].basis, found.keys[0].basis) and again.model == "f" * 64
    assert shipped_profile("f" * 64, home).hash == found.hash and len(list(home.iterdir())) == 1  # type: ignore[union-attr]


def test_the_file_in_the_package() -> None:
    file = FOLDER / f"{NAME}.profile"
    assert file.stat().st_size <= 12_000_000
    content = zstandard.ZstdDecompressor().decompress(file.read_bytes())
    keys, values, openings = unpacked(load(content))
    assert len(described(content)["model"]) == 64 and len(openings) == 2
    assert all(half.fits for half in (*keys, *values))


@pytest.mark.real
def test_it_is_of_the_model_that_the_catalogue_has(tmp_path: Path) -> None:
    """A converter that writes another folder gives another fingerprint: then the file has to be packed anew."""
    assert shipped_profile(locate_model(NAME).fingerprint, tmp_path) is not None
