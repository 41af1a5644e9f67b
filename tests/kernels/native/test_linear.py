"""Products with packed matrices against float64, on every instruction set that this processor runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from minimemo.kernels import native
from minimemo.kernels.native import library

VARIANTS = native.variants() if native.unavailable() is None else ("portable",)
needs_library = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))


class Form(NamedTuple):
    """Codes of `bits` bits from -zero on; scales as the format of that name has them."""

    name: str
    bits: int
    zero: int
    group: int
    offsets: bool
    scales: str


FORMS = [
    Form("q4_0", 4, 8, 32, False, "half"),
    Form("q4_1", 4, 0, 32, True, "half"),
    Form("q4_k", 4, 0, 32, True, "two-level"),
    Form("q5_0", 5, 16, 32, False, "half"),
    Form("q5_k", 5, 0, 32, True, "two-level"),
    Form("q6_k", 6, 32, 16, False, "two-level"),
    Form("q8_0", 8, 128, 32, False, "half"),
    Form("any", 8, 128, 16, True, "float"),
]
SHAPES = [(1, 32), (17, 96), (33, 288), (50, 544)]  # rows and columns; past one tile, past one run of 256 columns
EXACT_STEPS, COARSE_STEPS = 8127, 127  # integers from zero to the largest activation of 32


class Weights(NamedTuple):
    codes: Tensor
    scales: Tensor
    offsets: Tensor | None
    wide: Tensor  # float64


def _weights(form: Form, rows: int, columns: int) -> Weights:
    generator = torch.Generator().manual_seed(rows + columns + form.bits)
    groups = columns // form.group

    def parameters() -> Tensor:
        values = torch.rand(rows, groups, generator=generator) * 0.02 - 0.01
        if form.scales == "half":
            return values.half().float()
        if form.scales == "two-level":
            factors = values[:, :: 256 // form.group].half().float().repeat_interleave(256 // form.group, 1)[:, :groups]
            return factors * torch.randint(-128, 128, factors.shape, generator=generator)
        return values

    codes = torch.randint(0, 2**form.bits, (rows, columns), generator=generator).sub(form.zero).to(torch.int8)
    scales, offsets = parameters(), parameters() if form.offsets else None
    wide = codes.double() * scales.double().repeat_interleave(form.group, 1)
    if offsets is not None:
        wide += offsets.double().repeat_interleave(form.group, 1)
    return Weights(codes, scales, offsets, wide)


def _inputs(rows: int, columns: int) -> Tensor:
    """Normal values whose blocks differ in size, as those of a model do."""
    generator = torch.Generator().manual_seed(rows + columns)
    x = torch.randn(rows, columns, generator=generator)
    return x * torch.rand(rows, columns // 32, generator=generator).mul(5).exp().repeat_interleave(32, 1)


def _bound(x: Tensor, wide: Tensor, steps: int) -> Tensor:
    """The largest error allowed, (rows, out): each activation is half a step off at most, plus float32's own sums."""
    step = x.double().abs().unflatten(-1, (-1, 32)).amax(-1) / steps
    weights = wide.abs().unflatten(-1, (-1, 32)).sum(-1)
    return 0.5001 * step @ weights.T + 2e-6 * x.double().abs() @ wide.abs().T


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The environment may be changed; the library is looked up anew."""
    library._opened.cache_clear()
    yield monkeypatch
    library._opened.cache_clear()


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, use: pytest.MonkeyPatch) -> str:
    use.setenv("MINIMEMO_NATIVE", request.param)
    return request.param


@needs_library
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_against_float64(form: Form, shape: tuple[int, int], variant: str) -> None:
    weights = _weights(form, *shape)
    matrix = native.pack_weights(*weights[:3])
    bias = torch.linspace(-1, 1, shape[0])
    for rows in (0, 1, 2, 3, 4, 16) if shape != SHAPES[2] else (8, 65):
        x = _inputs(rows, shape[1])
        expected = x.double() @ weights.wide.T
        for exact, steps in ((True, EXACT_STEPS), (False, COARSE_STEPS)):
            found = native.packed_linear(x, matrix, bias, exact=exact)
            assert found.shape == expected.shape and found.dtype == torch.float32
            error = (found.double() - bias.double() - expected).abs()
            assert bool((error <= _bound(x, weights.wide, steps) + 1e-7).all()), f"{rows} rows, exact={exact}"


@needs_library
@pytest.mark.parametrize(("exact", "most"), [(True, 2e-4), (False, 1e-2)])
def test_root_mean_square_error(exact: bool, most: float) -> None:
    """Relative to the outputs: 0.9e-4 and 0.6e-2 are measured for normal activations."""
    weights = _weights(FORMS[3], 256, 896)
    x = torch.randn(16, 896, generator=torch.Generator().manual_seed(0))
    expected = x.double() @ weights.wide.T
    found = native.packed_linear(x, native.pack_weights(*weights[:3]), exact=exact)
    assert float((found - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()) < most


@needs_library
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_same_bits_everywhere(form: Form, use: pytest.MonkeyPatch) -> None:
    """A row's result depends on nothing but the row: not on other rows, threads, or the instruction set."""
    weights = _weights(form, 50, 544)
    matrix = native.pack_weights(*weights[:3])
    for exact, last in ((True, 69), (False, 15)):
        x = _inputs(last + 1, 544)
        torch.set_num_threads(1)
        expected = native.packed_linear(x, matrix, exact=exact)
        for name in VARIANTS:
            use.setenv("MINIMEMO_NATIVE", name)
            library._opened.cache_clear()
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                assert torch.equal(native.packed_linear(x, matrix, exact=exact), expected)
            for row in (0, 1, last):
                assert torch.equal(native.packed_linear(x[row], matrix, exact=exact), expected[row])
            for some in (slice(3, 6), slice(2, 10)):
                assert torch.equal(native.packed_linear(x[some], matrix, exact=exact), expected[some])
    torch.set_num_threads(1)
    assert torch.equal(native.pack_weights(*weights[:3]).buffers[0], matrix.buffers[0])


@needs_library
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_many_rows_do_not_depend_on_each_other(form: Form, variant: str) -> None:
    """Nor on threads; 300 are more than any variant takes at once."""
    weights = _weights(form, 170, 800)
    matrix = native.pack_weights(*weights[:3])
    x, bias = _inputs(300, 800), torch.linspace(-1, 1, 170)
    expected = native.packed_linear(x, matrix, bias, exact=False)
    error = (expected.double() - bias.double() - x.double() @ weights.wide.T).abs()
    halves = 2**-8 * x.double().abs() @ weights.wide.abs().T  # both factors in bfloat16
    assert bool((error <= halves.maximum(_bound(x, weights.wide, COARSE_STEPS)) + 1e-7).all())
    for threads, some in ((1, slice(0, 300)), (2, slice(7, 40)), (3, slice(283, 300))):
        torch.set_num_threads(threads)
        assert torch.equal(native.packed_linear(x[some], matrix, bias, exact=False), expected[some])
    assert bool(
        native.packed_linear(x.clone().index_fill_(0, torch.tensor([5]), torch.nan), matrix, exact=False)[5]
        .isnan()
        .all()
    )


@needs_library
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_packing_loses_nothing(form: Form, variant: str) -> None:
    for rows, columns in SHAPES:
        weights = _weights(form, rows, columns)
        matrix = native.pack_weights(*weights[:3])
        expected = weights.codes.float() * weights.scales.repeat_interleave(form.group, 1)
        if weights.offsets is not None:
            expected += weights.offsets.repeat_interleave(form.group, 1)
        out = torch.full((rows, columns), torch.nan)
        native.expand_into(matrix, out)
        assert torch.equal(out, expected)
        half = torch.full((rows, columns), torch.nan, dtype=torch.bfloat16)
        native.expand_into(matrix, half)
        assert torch.equal(half, expected.bfloat16())
        native.expand_into(matrix, out[: rows - rows // 3], rows // 3)
        assert torch.equal(out[: rows - rows // 3], expected[rows // 3 :])
        ids = torch.tensor([[rows - 1, 0], [rows // 2, rows - 1]])
        assert torch.equal(native.expand_rows(matrix, ids), expected[ids])


@needs_library
def test_narrow_forms_are_chosen() -> None:
    """Bits a weight of large matrices: the codes' own, and no more than 8 for scales of 32, 13 of 16 (q6_k: 10)."""
    most = {"q4_0": 4.5, "q4_1": 5, "q4_k": 4.75, "q5_0": 5.5, "q5_k": 5.75, "q6_k": 6.63, "q8_0": 8.5, "any": 12}
    for form in FORMS:
        matrix = native.pack_weights(*_weights(form, 160, 1024)[:3])
        assert matrix.nbytes * 8 / (160 * 1024) < most[form.name] + 0.02, form.name
        assert matrix.shape == (160, 1024)


@needs_library
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_do_not_saturate(form: Form, sign: int, variant: str) -> None:
    """All codes and all activations at their largest together."""
    high, low = 2**form.bits - 1 - form.zero, -form.zero
    codes = torch.full((16, 256), high, dtype=torch.int8)
    codes[::2] = low
    scales = torch.ones(16, 256 // form.group)
    matrix = native.pack_weights(codes, scales)
    for rows in (1, 4):
        x = torch.full((rows, 256), 3.0 * sign)
        for exact in (True, False):
            found = native.packed_linear(x, matrix, exact=exact)
            expected = x.double() @ codes.double().T
            assert float((found - expected).abs().max()) <= 3e-7 * 3 * 256 * 128


@needs_library
def test_parts_keep_their_own_form(variant: str) -> None:
    every = [_weights(form, rows, 288) for form, rows in zip(FORMS, (5, 16, 33, 1, 17, 64, 48, 3), strict=True)]
    matrix = native.concatenate([native.pack_weights(*weights[:3]) for weights in every])
    x, bias = _inputs(3, 288), torch.randn(187, generator=torch.Generator().manual_seed(0))
    assert matrix.shape == (187, 288)
    found = native.packed_linear(x, matrix, bias)
    single = [native.packed_linear(x, native.pack_weights(*weights[:3])) for weights in every]
    assert torch.equal(found, torch.cat(single, dim=1) + bias)
    with pytest.raises(ValueError, match="one part, this one has 8"):
        native.expand_rows(matrix, torch.tensor([0]))


@needs_library
def test_unusual_values(variant: str) -> None:
    matrix = native.pack_weights(*_weights(FORMS[3], 17, 96)[:3])
    x = torch.zeros(5, 96)
    x[1, 40] = 1e-38  # its inverse would overflow
    x[2, 40] = torch.inf
    x[3, 40] = torch.nan
    x[4, 40] = 1e30
    out = native.packed_linear(x, matrix)
    assert not out[0].any() and float(out[1].abs().max()) < 1e-35
    assert not out[2].isfinite().any() and not out[3].isfinite().any()
    assert bool(out[4].isfinite().all()) and bool((out[4] != 0).any())
    strided = _inputs(3, 192)[:, ::2]
    assert torch.equal(native.packed_linear(strided, matrix), native.packed_linear(strided.contiguous(), matrix))
    empty = native.pack_weights(torch.zeros(0, 32, dtype=torch.int8), torch.zeros(0, 1))
    assert native.packed_linear(torch.ones(2, 32), empty).shape == (2, 0)
    assert native.packed_linear(torch.ones(2, 3, 96), matrix).shape == (2, 3, 17)


@needs_library
def test_stored_buffers_are_checked() -> None:
    buffer = native.pack_weights(*_weights(FORMS[2], 33, 288)[:3]).buffers[0]
    x = _inputs(2, 288)
    again = native.PackedMatrix.from_buffers([buffer.clone()])
    assert torch.equal(
        native.packed_linear(x, again), native.packed_linear(x, native.PackedMatrix.from_buffers([buffer]))
    )
    unaligned = torch.cat((buffer[:1], buffer))[1:]
    assert torch.equal(
        native.packed_linear(x, native.PackedMatrix.from_buffers([unaligned])), native.packed_linear(x, again)
    )
    for at in (*range(20), *range(21, 56)):  # every field of the header but the zero, which may be anything
        damaged = buffer.clone()
        damaged[at] ^= 0x41
        with pytest.raises(ValueError, match="buffer 0: not a packed matrix"):
            native.PackedMatrix.from_buffers([damaged])
    for wrong in (buffer[:-1], buffer[:10], buffer[:0], torch.cat((buffer, buffer))):
        with pytest.raises(ValueError, match="not a packed matrix"):
            native.PackedMatrix.from_buffers([wrong.clone()])
    with pytest.raises(ValueError, match=r"buffer 0: torch.int8, expected torch.uint8"):
        native.PackedMatrix.from_buffers([buffer.view(torch.int8)])
    other = native.pack_weights(*_weights(FORMS[2], 33, 544)[:3]).buffers[0]
    with pytest.raises(ValueError, match="different widths"):
        native.PackedMatrix.from_buffers([buffer, other])


@needs_library
def test_errors_name_the_argument() -> None:
    weights = _weights(FORMS[3], 17, 96)
    matrix = native.pack_weights(*weights[:3])
    with pytest.raises(ValueError, match=r"codes: torch\.float32, expected torch\.int8"):
        native.pack_weights(weights.codes.float(), weights.scales)
    with pytest.raises(ValueError, match="scales: 2 groups of 96 columns, expected groups of 16 or 32"):
        native.pack_weights(weights.codes, weights.scales[:, :2])
    with pytest.raises(ValueError, match=r"offsets: shape \(3, 3\), expected \(17, 3\)"):
        native.pack_weights(weights.codes, weights.scales, weights.scales[:3])
    with pytest.raises(ValueError, match=r"takes float32 \(..., 96\)"):
        native.packed_linear(torch.zeros(1, 95), matrix)
    with pytest.raises(ValueError, match="takes float32"):
        native.packed_linear(torch.zeros(1, 96, dtype=torch.bfloat16), matrix)
    with pytest.raises(ValueError, match=r"bias: shape \(3,\), expected \(17\)"):
        native.packed_linear(torch.zeros(1, 96), matrix, torch.zeros(3))
    with pytest.raises(IndexError, match=r"0 \.\. 16"):
        native.expand_rows(matrix, torch.tensor([17]))
    with pytest.raises(ValueError, match="10 rows from 8 on, of a matrix of 17"):
        native.expand_into(matrix, torch.zeros(10, 96), 8)
    with pytest.raises(ValueError, match=r"out: shape \(17, 32\), expected"):
        native.expand_into(matrix, torch.zeros(17, 32))
    with pytest.raises(ValueError, match=r"out: torch.float64, expected"):
        native.expand_into(matrix, torch.zeros(17, 96).double())
    with pytest.raises(ValueError, match="out: strides"):
        native.expand_into(matrix, torch.zeros(17, 192)[:, :96])


@needs_library
def test_callers_at_once() -> None:
    """Helpers serve one caller at a time; another computes alone, and neither mixes with the other."""
    matrix = native.pack_weights(*_weights(FORMS[3], 400, 544)[:3])
    inputs = [_inputs(rows, 544) for rows in (1, 2, 3, 17)]
    expected = [native.packed_linear(x, matrix) for x in inputs]

    def repeat(which: int) -> bool:
        for step in range(100):
            torch.set_num_threads(1 + step % 3)  # of this caller alone
            if not torch.equal(native.packed_linear(inputs[which], matrix), expected[which]):
                return False
        return True

    with ThreadPoolExecutor(len(inputs)) as pool:
        assert all(pool.map(repeat, range(len(inputs))))


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes() -> None:
    """The parent's threads are not in the child; waiting for them would hang it."""
    matrix = native.pack_weights(*_weights(FORMS[3], 400, 544)[:3])
    x = _inputs(3, 544)
    expected = native.packed_linear(x, matrix)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(native.packed_linear(x, matrix), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("off", "turned off by MINIMEMO_NATIVE=off"), ("sse9", "MINIMEMO_NATIVE=sse9: expected off or one of portable")],
)
def test_turned_off(choice: str, reason: str, use: pytest.MonkeyPatch) -> None:
    use.setenv("MINIMEMO_NATIVE", choice)
    assert reason in str(native.unavailable())
    with pytest.raises(native.NativeUnavailable, match=reason):
        native.pack_weights(torch.zeros(1, 32, dtype=torch.int8), torch.ones(1, 1))
