"""Products with a basis in both directions, natively and by torch, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimemo.kernels import Basis, native, transform
from minimemo.kernels.native.library import library

HEADS, DIM = 3, 64  # C = 192
NATIVE = native.unavailable() is None and transform._inverts()
PATHS = ["torch", pytest.param("native", marks=pytest.mark.skipif(not NATIVE, reason="needs AVX2"))]


@pytest.fixture
def basis_rows() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(192, 192, generator=generator))[0].half()


def _use(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "torch":
        monkeypatch.setattr(transform, "_inverts", lambda: False)
        monkeypatch.setattr(Basis, "_matrix", None)


def _symbols(rows: int, tokens: int) -> Tensor:
    """Loud first, quiet last, with a few beyond a byte anywhere."""
    generator = torch.Generator().manual_seed(rows + tokens)
    spread = torch.logspace(1.3, -1, rows)[:, None]
    found = torch.randn(rows, tokens, generator=generator).mul(spread).round().to(torch.int16)
    if rows and tokens:
        found[0, 0], found[rows // 2, tokens // 2], found[-1, -1] = 32767, -300, -32767
    return found


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tokens", [0, 1, 13, 14, 67, 256])
@pytest.mark.parametrize(("rows", "dense"), [(0, 0), (1, 1), (5, 0), (192, 100), (191, 191), (66, 3)])
def test_inverse(
    basis_rows: Tensor, path: str, rows: int, dense: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(path, monkeypatch)
    symbols, mean, scale = _symbols(rows, tokens), torch.randn(192), torch.rand(HEADS) + 0.5
    whole = torch.full((HEADS, tokens + 2, DIM), torch.nan)
    out = whole[:, 2:]
    Basis(basis_rows[:rows], dense).inverse(symbols, 0.3, mean, scale, out)
    exact = symbols.double().T * 0.3 @ basis_rows[:rows].double() + mean
    expected = exact.view(tokens, HEADS, DIM).transpose(0, 1) * scale.double()[:, None, None]
    assert bool(whole[:, :2].isnan().all())
    # a code of the basis is off by 1/254 of the largest in its column at most, a byte's symbol is at most 127
    bytes_ = symbols[:dense].double().abs().clamp_max(127).sum(0).max() if dense and tokens else 0
    rounding = 0.3 * float(bytes_) * float(basis_rows.abs().max()) / 254 if path == "native" else 0
    assert ((out - expected).abs() <= (1e-5 * expected.abs() + 1e-2 + rounding) * 1.5).all()


def test_exact_products_stay_exact(basis_rows: Tensor) -> None:
    symbols, out, x = _symbols(192, 256), torch.empty(HEADS, 256, DIM), torch.randn(256, 192)
    basis = Basis(basis_rows, 100, exact=True)
    basis.inverse(symbols, 0.3, torch.zeros(192), torch.ones(HEADS), out)
    exact = (symbols.double().T * 0.3 @ basis_rows.double()).view(256, HEADS, DIM).transpose(0, 1)
    assert torch.allclose(out.double(), exact, rtol=1e-5, atol=1e-2)
    assert torch.allclose(basis.components(x).double(), x.double() @ basis_rows.double().T, atol=1e-5)


@pytest.mark.skipif(not NATIVE, reason="needs AVX2")
def test_rounding_the_basis_costs_little(basis_rows: Tensor) -> None:
    """More than 256 rows (groups of scales), as a codec has them: noise below a hundredth of what is coded."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.linalg.qr(torch.randn(512, 512, generator=generator))[0].half()
    symbols = torch.randn(512, 256, generator=generator).mul(torch.logspace(1, -1, 512)[:, None]).round()
    out = torch.empty(8, 256, 64)
    Basis(rows, 300).inverse(symbols.to(torch.int16), 1.0, torch.zeros(512), torch.ones(8), out)
    exact = (symbols.double().T @ rows.double()).view(256, 8, 64).transpose(0, 1)
    assert (out - exact).square().mean().sqrt() < 0.01 * exact.square().mean().sqrt()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tokens", [1, 100])
def test_components(basis_rows: Tensor, path: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(path, monkeypatch)
    x = torch.randn(tokens, 192)
    found = Basis(basis_rows[:150], 10).components(x)
    exact = x.double() @ basis_rows[:150].double().T
    assert (found - exact).square().mean().sqrt() < (0.02 if path == "native" else 1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_the_same_bits_from_any_number_of_threads(
    basis_rows: Tensor, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(path, monkeypatch)
    basis, symbols, x = Basis(basis_rows, 100), _symbols(192, 256), torch.randn(256, 192)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = torch.empty(HEADS, 256, DIM)
            basis.inverse(symbols, 0.1, torch.ones(192), torch.ones(HEADS), out)
            found.append((out, basis.components(x)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_heads_of_any_size(basis_rows: Tensor) -> None:
    """Heads that the native kernel does not take."""
    symbols, out = _symbols(192, 9), torch.empty(24, 9, 8)
    Basis(basis_rows, 50).inverse(symbols, 0.5, torch.zeros(192), torch.ones(24), out)
    exact = (symbols.double().T * 0.5 @ basis_rows.double()).view(9, 24, 8).transpose(0, 1)
    assert torch.allclose(out.double(), exact, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("change", ["symbols", "dtype", "mean", "scale", "out"])
def test_what_does_not_fit_is_refused(basis_rows: Tensor, change: str) -> None:
    arguments = [_symbols(192, 4), torch.zeros(192), torch.ones(HEADS), torch.empty(HEADS, 4, DIM)]
    at = ["symbols", "mean", "scale", "out"].index(change) if change != "dtype" else 0
    arguments[at] = arguments[0].int() if change == "dtype" else arguments[at][:-1]
    with pytest.raises(ValueError, match="do not fit"):
        Basis(basis_rows, 1).inverse(arguments[0], 1.0, *arguments[1:])
    with pytest.raises(ValueError, match="basis"):
        Basis(basis_rows.float(), 1)
    with pytest.raises(ValueError, match="basis"):
        Basis(basis_rows, 193)


TILED = native.unavailable() is None and "amx" in native.variants()


@pytest.mark.skipif(not TILED, reason="needs AMX")
@pytest.mark.parametrize(("tokens", "dense"), [(1, 1), (15, 64), (31, 65), (33, 300), (240, 257), (256, 300)])
def test_tiles_give_the_bits_of_vectors(tokens: int, dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.linalg.qr(torch.randn(512, 512, generator=generator))[0][:300].half()
    basis, found = Basis(rows, dense), []
    for number in (2, 3):
        monkeypatch.setattr(library(), "variant", number)
        out = torch.full((8, tokens, 64), torch.nan)
        basis.inverse(_symbols(300, tokens), 0.3, torch.ones(512), torch.full((8,), 0.7), out)
        found.append(out)
    assert torch.equal(*found)


@pytest.mark.parametrize("number", range(len(native.variants()) if native.unavailable() is None else 1))
def test_rounding_of_symbols(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant as torch: ties, both signs, what is too large."""
    if native.unavailable() is None:
        monkeypatch.setattr(library(), "variant", number)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(70, 33, generator=generator) * 3
    x[0, :6] = torch.tensor([0.25, -0.25, 1e9, -1e9, 0.0, -0.0])
    places = torch.randperm(70 * 33, generator=generator)[:2000].to(torch.int32)
    everything = transform.round_symbols(x, 0.5, 0.5)
    assert everything.shape == (33, 70) and everything[:6, 0].tolist() == [1, -1, 32767, -32767, 0, 0]
    for up in (0.45, 0.5):
        found = transform.round_symbols(x, 0.5, up, places)
        assert torch.equal(found, transform.round_symbols(x, 0.5, up).T.flatten()[places.long()])
