"""Reading in fixed memory: against a reference with a mask and positions of its own, and restored in between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimemo.engine.engine import Engine
from minimemo.engine.reading import Reading, Window
from minimemo.models.rope import RopeTable
from tests.helpers import assert_close
from tests.kernels import reference
from tests.tiny import dense, tiny_config, tiny_decoder, tiny_engine

IDS = [(7 * i * i + 3 * i) % 64 for i in range(150)]


def _whole(reading: Reading, ids: list[int]) -> tuple[Tensor, Tensor]:
    """All keys before RoPE and values (L, G, n, D), as they are handed over."""
    pieces = [(piece.keys, piece.values.clone()) for piece in reading.read(ids)]
    return torch.cat([k for k, _ in pieces], 2), torch.cat([v for _, v in pieces], 2)


def _sees(window: Window, chunk: int, query: int) -> list[int]:
    """The tokens that token `query` sees, by counting: a list of those held, cut when the next chunk does not fit."""
    held: list[int] = []
    for at in range(0, query + 1, chunk):
        new = range(at, min(at + chunk, len(IDS)))
        if len(held) + len(new) > window.capacity:
            held = held[: window.sinks] + held[-window.tokens :]
        held += new
    return [token for token in held if token <= query]


def _reference(engine: Engine, window: Window) -> tuple[Tensor, Tensor]:
    """Layer by layer over the whole sequence at once, in float64; each query turns the keys that it sees itself."""
    c, weights = engine.config, engine.decoder.weights
    rope = RopeTable(c)
    x = dense(weights.embedding).weight[IDS].double()
    all_keys, all_values = [], []
    for index, layer in enumerate(weights.layers):
        normed = reference.rms_norm(x, layer.attention_norm.double(), c.norm_eps)
        qkv = normed @ dense(layer.qkv).weight.double().T + dense(layer.qkv).bias.double()  # type: ignore[union-attr]
        q, k, v = (
            qkv.view(len(IDS), -1, c.head_dim).transpose(0, 1).split((c.num_heads, c.num_kv_heads, c.num_kv_heads))
        )
        all_keys.append(k)
        all_values.append(v)
        mixed = torch.empty(len(IDS), c.num_heads, c.head_dim, dtype=torch.float64)
        for query in range(len(IDS)):
            seen = _sees(window, engine.chunk, query)
            cos, sin = (t.double() for t in rope.of_spans([(0, len(seen))], k.device)[rope.kind[index]])
            keys = reference.apply_rope(k[:, seen], cos, sin).repeat_interleave(c.num_heads // c.num_kv_heads, 0)
            own = reference.apply_rope(q[:, query : query + 1], cos[-1:], sin[-1:])
            scores = (own @ keys.transpose(1, 2))[:, 0] * c.query_scale
            values = v[:, seen].repeat_interleave(c.num_heads // c.num_kv_heads, 0)
            mixed[query] = (scores.softmax(-1)[:, None] @ values)[:, 0]
        x = x + mixed.flatten(1) @ dense(layer.out).weight.double().T
        normed = reference.rms_norm(x, layer.mlp_norm.double(), c.norm_eps)
        fed = reference.gated_mlp_activation(normed @ dense(layer.gate_up).weight.double().T, c.activation)
        x = x + fed @ dense(layer.down).weight.double().T
    return torch.stack(all_keys), torch.stack(all_values)


@pytest.mark.parametrize(
    ("window", "chunk"),
    [
        (Window(4, 24, 8), 8),
        (Window(3, 17, 11), 7),
        (Window(0, 1, 5), 5),
        (Window(5, 40, 30), 10),
        (Window(4, 200, 8), 8),
    ],
)
def test_a_window_equals_the_reference(window: Window, chunk: int) -> None:
    engine = tiny_engine(chunk=chunk)
    reading = Reading(engine, len(IDS), window)
    keys, values = _whole(reading, IDS)
    expected_keys, expected_values = _reference(engine, window)
    assert_close(keys, expected_keys, "keys")
    assert_close(values, expected_values, "values")
    assert reading.position == len(IDS) == engine.prefilled


def test_what_fits_is_read_whole() -> None:
    """Up to the window's capacity a token sees all before it: the same bits as with no window at all."""
    window = Window(4, 100, 46)
    with_window, without = (Reading(tiny_engine(chunk=16), len(IDS), w) for w in (window, None))
    for one, two in zip(_whole(with_window, IDS), _whole(without, IDS), strict=True):
        assert torch.equal(one, two)


def test_memory_does_not_grow_with_the_sequence() -> None:
    """3,000 tokens through a model of context 128, in 40 slots."""
    engine = tiny_engine(chunk=8, max_context=128)
    reading = Reading(engine, 3000, Window(4, 20, 16))
    ids = [i % 64 for i in range(3000)]
    longest = max(reading._cache.length for _ in reading.read(ids))
    assert longest <= reading._cache.capacity == 40 and reading.position == 3000
    assert reading._cache.keys.shape[2] == 40 and len(engine.decoder.rope._tables[0][0]) <= 2048


@pytest.mark.parametrize("window", [None, Window(4, 24, 16), Window(3, 30, 21), Window(0, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_in_between_gives_the_same_bits(window: Window | None, dtype: torch.dtype) -> None:
    """At every chunk, also right at a slide, from parts that are cut anyhow."""
    engine = Engine(tiny_decoder(), kv_dtype=dtype, chunk=8)
    keys, values = _whole(Reading(engine, len(IDS), window), IDS)
    for position in range(0, len(IDS), 8):
        again = Reading(engine, len(IDS), window)
        held = [t for span in again.kept(position) for t in span]
        assert position == 0 or held
        first = min(again.kept(position)[1], default=0)
        begins = sorted({0, *range(first - first % 10, position, 10)})
        again.restore(
            position, ((b, keys[:, :, b : b + 10][:, :, : position - b], values[:, :, b : b + 10]) for b in begins)
        )
        rest = _whole(again, IDS[position:])
        assert torch.equal(rest[0], keys[:, :, position:]) and torch.equal(rest[1], values[:, :, position:])


def test_sliding_changes_nothing_where_the_model_itself_sees_less() -> None:
    """As Gemma's local layers do; other positions, hence other rounding of the rotations."""
    from dataclasses import replace

    config = replace(tiny_config(), windows=(6, 6))
    engine = Engine(tiny_decoder(config), chunk=8)
    slid = _whole(Reading(engine, len(IDS), Window(4, 24, 16)), IDS)
    whole = _whole(Reading(engine, len(IDS)), IDS)
    for one, two in zip(slid, whole, strict=True):
        assert_close(one, two.double(), "slid against whole", within=1e-5)


def test_what_cannot_be_is_said() -> None:
    engine = tiny_engine(chunk=8, max_context=64)
    with pytest.raises(ValueError, match="exceed the model's context of 64"):
        Reading(engine, 65)
    with pytest.raises(ValueError, match="exceed the model's context of 64"):
        Reading(engine, 10, Window(4, 60, 8))
    assert Reading(engine, 10, Window(4, 20, 7)).chunk == 7  # no more than the window slides by
    reading = Reading(engine, 10, Window(4, 20, 8))
    empty = torch.empty(2, 2, 0, 16)
    with pytest.raises(ValueError, match="cannot go on at 7"):
        reading.restore(7, [])
    with pytest.raises(ValueError, match="0 of 8 tokens were given"):
        reading.restore(8, [(0, empty, empty)])
