"""The decoder: token ids through L layers to logits. No files, no sampling, no text.

One forward pass serves every use. Its rows are sequences, each with its own cache; they may share one read-only
prefix (a memory), whose attention is computed once for all rows and merged with each row's own tail by log-sum-exp
(arXiv 2402.05099). A single prompt is one row without a prefix.

Letters: L layers, H query heads, G kv heads, N tokens of this pass over all rows, D head dim, C hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minimemo.kernels import PackedSource, Source, apply_rope, attend, rms_norm, rope_qkv, rope_rows, triton
from minimemo.kernels.formats import MAX_DIM
from minimemo.kernels.native.library import has_tiles
from minimemo.kernels.native.shortlist import largest_linear
from minimemo.models.config import ModelConfig
from minimemo.models.layers import FEW_ROWS, DecoderWeights, PackedLinear, Projection, project
from minimemo.models.native import most_tokens, native_stack
from minimemo.models.places import MAX_GROUP, Cache, Places, Row, spacing
from minimemo.models.rope import RopeTable


class Decoder:
    """Llama, Mistral, SmolLM2, Qwen2, Qwen3 and Gemma 3 text, told apart only by their ModelConfig."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights
        self.rope = RopeTable(config)
        self._stack = native_stack(config, weights, self.rope.kind)
        self._most_tokens = most_tokens(weights)

    @property
    def dtype(self) -> torch.dtype:
        """The number type of what flows between the products."""
        return self.weights.norm.dtype

    @property
    def device(self) -> torch.device:
        return self.weights.norm.device

    @property
    def rows_are_alone(self) -> bool:
        """Whether a row's numbers do not depend on which other rows, FEW_ROWS at most, are in the pass: true of packed
        matrices, while torch's products of one row and of several add in other orders."""
        return self._stack is not None and isinstance(self.weights.head, PackedLinear)

    @property
    def rows_are_cheap(self) -> bool:
        """Whether a pass of a few rows more costs little more: where tiles multiply, a sixth of a pass of one row."""
        return self.rows_are_alone and has_tiles()

    @torch.inference_mode()
    def forward(
        self,
        ids: Tensor,
        rows: Sequence[Row],
        *,
        prefix: Cache | None = None,
        raw_keys: Tensor | None = None,
        inputs: list[Tensor] | None = None,
        logits: str = "last",
    ) -> Tensor:
        """Runs ids (N,), the rows' new tokens one row after the other, and appends them to the rows' caches.

        raw_keys: (L, G, N, D), filled with the keys before RoPE. inputs: takes every layer's input (N, C). logits:
        "last" (rows, V) of each row's last token, "likeliest", the same where only the largest needs to be right
        (native/shortlist.py), "all" (N, V), or "none" (empty). Returned in float32.
        """
        counts = [row.count for row in rows]
        if ids.shape != (sum(counts),):
            raise ValueError(f"decoder: {tuple(ids.shape)} ids for rows of {counts}")
        for row in rows:
            row.cache.require(row.count)
        if raw_keys is None and counts.count(1) == len(ids) and self.steps_on_gpu(rows, prefix):
            found = self.step(ids, rows, prefix, Places.of(rows, prefix, self.rope, self.device))
            for row in rows:
                row.cache.advance(1)
            return found
        shared = prefix.length if prefix else 0
        rotations = self.rope.of_spans([(shared + row.cache.length, row.count) for row in rows], self.device)

        x = self._embedded(ids)
        if self._stack is not None and len(ids) <= self._most_tokens and inputs is None:
            caches = [(row.cache, row.count) for row in rows]
            self._stack.run(x, rotations, caches, prefix, raw_keys, exact=len(ids) <= FEW_ROWS)
        else:
            for index in range(self.config.num_layers):
                if inputs is not None:
                    inputs.append(x.clone())
                x = self._layer(index, x, rows, prefix, rotations, raw_keys)
        for row in rows:
            row.cache.advance(row.count)

        if logits == "none":
            return x.new_empty((0, self.config.vocab_size), dtype=torch.float32)
        if logits in ("last", "likeliest"):
            x = x if counts.count(1) == len(x) else x[torch.tensor(counts).cumsum(0).sub_(1).to(self.device)]
        elif logits != "all":
            raise ValueError(f"decoder: logits must be last, likeliest, all or none, got {logits!r}")
        x = rms_norm(x, self.weights.norm, self.config.norm_eps)
        if logits == "likeliest" and self.weights.shortlist is not None and len(x) <= FEW_ROWS:
            return largest_linear(x, self.weights.shortlist)
        return project(self.weights.head, x, wide=True)

    def steps_on_gpu(self, rows: Sequence[Row], prefix: Cache | None) -> bool:
        """Whether `step` serves these rows of one token each."""
        caches = [row.cache.keys for row in rows] + ([prefix.keys] if prefix else [])
        group = self.config.num_heads // self.config.num_kv_heads
        served = triton.serves(self.weights.norm, *caches) and self.config.head_dim <= MAX_DIM and group <= MAX_GROUP
        return served and spacing(rows) is not None and (len(rows) == 1 or all(r.cache.packed is None for r in rows))

    @torch.inference_mode()
    def step(self, ids: Tensor, rows: Sequence[Row], prefix: Cache | None, places: Places) -> Tensor:
        """One token of each row, ids (N,), through all layers on a GPU; logits (N, V) float32. Writes keys and values
        into the rows' caches and leaves their lengths to the caller.

        Whatever changes from one step to the next it reads from `ids` and `places`, on the device: it asks for the same
        launches on the same memory each time, waits for nothing, and so can be captured once and replayed.
        """
        x = self._embedded(ids)
        for index in range(self.config.num_layers):
            x = self._layer(index, x, rows, prefix, places.rotations, None, places)
        return project(self.weights.head, rms_norm(x, self.weights.norm, self.config.norm_eps), wide=True)

    def _embedded(self, ids: Tensor) -> Tensor:
        x = self.weights.embedding.rows(ids, self.dtype)
        return x * self.config.embedding_scale if self.config.embedding_scale != 1.0 else x

    @torch.inference_mode()
    def resume(self, x: Tensor, first: int, cache: Cache) -> Tensor:
        """Runs the layers from `first` on, whose input is x (N, C), for tokens that would continue the cache, whose
        length stays: logits (N, V) after each, float32. The layers before are not asked again."""
        rows, x = [Row(cache, len(x))], x.clone()
        rotations = self.rope.of_spans([(cache.length, len(x))], self.device)
        for index in range(first, self.config.num_layers):
            x = self._layer(index, x, rows, None, rotations, None)
        return project(self.weights.head, rms_norm(x, self.weights.norm, self.config.norm_eps), wide=True)

    def _layer(
        self,
        index: int,
        x: Tensor,
        rows: Sequence[Row],
        prefix: Cache | None,
        rotations: Sequence[tuple[Tensor, Tensor]],
        raw_keys: Tensor | None,
        places: Places | None = None,
    ) -> Tensor:
        """(N, C) -> (N, C)."""
        config, eps, layer = self.config, self.config.norm_eps, self.weights.layers[index]
        rotation = rotations[self.rope.kind[index]]
        heads, kv_heads, dim, n = config.num_heads, config.num_kv_heads, config.head_dim, x.shape[0]

        qkv = project(layer.qkv, x, norm=(layer.attention_norm, eps)).view(n, heads + 2 * kv_heads, dim)
        if places is not None:
            q = self._turned_rows(index, qkv, rotation, rows, places)
            mixed = attend(q, places.sources(index, rows, prefix, config.windows[index]), config.query_scale)
        else:
            q = self._turned(index, qkv, rotation, rows, raw_keys)
            mixed = self._attend(index, q, rows, prefix)  # (H, N, D)
        x = _added(layer.out, mixed.transpose(0, 1).reshape(n, heads * dim), x, layer.post_attention_norm, eps)
        fed = project(layer.gate_up, x, norm=(layer.mlp_norm, eps), gate=config.activation)
        return _added(layer.down, fed, x, layer.post_mlp_norm, eps)

    def _turned_rows(
        self, index: int, qkv: Tensor, tables: tuple[Tensor, Tensor], rows: Sequence[Row], places: Places
    ) -> Tensor:
        """As `_turned`, of rows of one token each, all in one launch."""
        layer, cache, (n, _, dim) = self.weights.layers[index], rows[0].cache, qkv.shape
        q = qkv.new_empty((n, self.config.num_heads, dim)).transpose(0, 1)
        norms = None if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm)
        rope_rows(
            qkv, norms, self.config.norm_eps, tables, places.positions, places.slots, q, cache.keys[index],
            cache.values[index], places.spacing,
        )  # fmt: skip
        return q

    def _turned(
        self, index: int, qkv: Tensor, rotation: tuple[Tensor, Tensor], rows: Sequence[Row], raw_keys: Tensor | None
    ) -> Tensor:
        """Gives queries (H, N, D) after RoPE, with keys and values in the rows' caches: by one kernel a row where there
        is one for these tensors."""
        layer, (cos, sin), (n, _, dim) = self.weights.layers[index], rotation, qkv.shape
        eps = self.config.norm_eps
        q = qkv.new_empty((n, self.config.num_heads, dim)).transpose(0, 1)
        norms = None if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm)
        first = 0
        for row in rows:
            span, cache = slice(first, first + row.count), row.cache
            raw = None if raw_keys is None else raw_keys[index, :, span]
            slot, keys, values = cache.length - cache.start, cache.keys[index], cache.values[index]
            if not rope_qkv(qkv[span], norms, eps, cos[span], sin[span], q[:, span], keys, values, slot, raw):
                return self._turned_apart(index, qkv, rotation, rows, raw_keys)
            first += row.count
        return q

    def _turned_apart(
        self, index: int, qkv: Tensor, rotation: tuple[Tensor, Tensor], rows: Sequence[Row], raw_keys: Tensor | None
    ) -> Tensor:
        """As `_turned`, operation by operation."""
        config, layer, (cos, sin) = self.config, self.weights.layers[index], rotation
        sizes = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        q, k, v = qkv.transpose(0, 1).split(sizes)  # (H, N, D), (G, N, D), (G, N, D)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = rms_norm(q, layer.q_norm, config.norm_eps), rms_norm(k, layer.k_norm, config.norm_eps)
        v = v.to(rows[0].cache.dtype)
        if raw_keys is not None or k.dtype != torch.float32:
            k = k.to(rows[0].cache.dtype)  # before RoPE: as a memory will hold them
        if raw_keys is not None:
            raw_keys[index] = k
        first = 0
        for row in rows:
            last = first + row.count
            row.cache.write(index, k[:, first:last], v[:, first:last], cos[first:last], sin[first:last])
            first = last
        return apply_rope(q, cos, sin)

    def _attend(self, index: int, q: Tensor, rows: Sequence[Row], prefix: Cache | None) -> Tensor:
        """Mixes: each row over its own tail, all rows over the shared prefix."""
        window = self.config.windows[index]
        shared = prefix.length if prefix is not None else 0
        sources: list[Source | PackedSource] = []
        first = 0
        if prefix is not None and window is None:  # all of it precedes every query: no mask, one product for all rows
            sources += _sources(prefix, index, shared, 0, q.shape[1], None, None)
        for row in rows:
            last, length = first + row.count, row.cache.length
            sources += _sources(row.cache, index, length + row.count, first, row.count, length, window)
            if prefix is not None and window is not None:
                sources += _sources(prefix, index, shared, first, row.count, shared + length, window)
            first = last
        return attend(q, sources, self.config.query_scale)


def _added(matrix: Projection, x: Tensor, residual: Tensor, post_norm: Tensor | None, eps: float) -> Tensor:
    """The residual (N, C), which may be overwritten, plus the product, normed where there is a norm after it."""
    if post_norm is None:
        return project(matrix, x, residual=residual)
    return residual + rms_norm(matrix(x), post_norm, eps)


def _sources(
    cache: Cache, layer: int, tokens: int, first: int, count: int, last_seen: int | None, window: int | None
) -> Iterator[Source | PackedSource]:
    """The first `tokens` of a cache, packed ones and dense ones; the other arguments as in Source."""
    heads, start = cache.keys.shape[1], cache.start
    if cache.packed is not None:  # without a window every query sees all of them
        packed = cache.packed.part(slice(layer * heads, (layer + 1) * heads), start)
        yield PackedSource(packed, first, count, last_seen if window is not None else None, window)
    if tokens > start:
        keys, values = cache.keys[layer, :, : tokens - start], cache.values[layer, :, : tokens - start]
        yield Source(keys, values, first, count, None if last_seen is None else last_seen - start, window)
