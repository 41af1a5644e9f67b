"""BERT and XLM-R encoders: their configuration, and token ids in, one vector a token out. Knows no text, no pooling.

Shapes: B texts, T tokens, C hidden size, H heads, D = C / H. Method: Devlin et al., arXiv:1810.04805 (post-norm
layers, erf GELU); Conneau et al., arXiv:1911.02116 (positions counted from past the padding index).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minimemo.errors import ModelError
from minimemo.models.config import read_json
from minimemo.models.weights import TensorFiles
from minimemo.threads import check_fork

_PREFIXES = ("", "bert.", "roberta.")
# Settings that would change the arithmetic; only the values named here are implemented, anything else is refused.
_ONLY = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Shapes and constants of a bidirectional post-norm encoder, checked when read."""

    num_layers: int
    num_heads: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int  # rows of the position table
    type_vocab_size: int
    layer_norm_eps: float
    position_offset: int  # row of the first token: 0 for BERT, padding index + 1 for the RoBERTa family

    @property
    def max_tokens(self) -> int:
        """The longest input, special tokens included."""
        return self.max_positions - self.position_offset

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], source: str = "config.json") -> EncoderConfig:
        """Reads the fields of a Hugging Face config.json; `source` names the file in errors.

        Raises ModelError for an unknown model type, a missing field or a setting that is not implemented.
        """
        kind = fields.get("model_type")
        if kind not in ("bert", "roberta", "xlm-roberta"):
            raise ModelError(f"{source}: model_type {kind!r} is not an encoder known here (bert, roberta, xlm-roberta)")
        for name, only in _ONLY.items():
            if fields.get(name, only) != only:
                raise ModelError(f"{source}: {name} {fields[name]!r} is not supported (only {only!r})")
        try:
            config = cls(
                num_layers=int(fields["num_hidden_layers"]),
                num_heads=int(fields["num_attention_heads"]),
                hidden_size=int(fields["hidden_size"]),
                intermediate_size=int(fields["intermediate_size"]),
                vocab_size=int(fields["vocab_size"]),
                max_positions=int(fields["max_position_embeddings"]),
                type_vocab_size=int(fields["type_vocab_size"]),
                layer_norm_eps=float(fields["layer_norm_eps"]),
                position_offset=0 if kind == "bert" else int(fields["pad_token_id"]) + 1,
            )
        except KeyError as error:
            raise ModelError(f"{source}: field {error} is missing; is this an encoder's config?") from error
        except (TypeError, ValueError) as error:
            raise ModelError(f"{source}: a field has the wrong type ({error})") from error
        for name in ("num_layers", "num_heads", "hidden_size", "intermediate_size", "vocab_size", "type_vocab_size"):
            if getattr(config, name) < 1:
                raise ModelError(f"{source}: {name} must be at least 1, not {getattr(config, name)}")
        hidden, heads = config.hidden_size, config.num_heads
        if hidden % heads:
            raise ModelError(f"{source}: hidden_size {hidden} is not a multiple of num_heads {heads}")
        if config.max_tokens < 1 or config.position_offset < 0:
            offset = config.position_offset
            raise ModelError(f"{source}: {config.max_positions} positions leave no room past offset {offset}")
        if not config.layer_norm_eps > 0:
            raise ModelError(f"{source}: layer_norm_eps must be positive, not {config.layer_norm_eps}")
        return config


@dataclass(frozen=True, slots=True)
class _Affine:
    """Weight and bias of a linear layer (out, in), (out,) or of a layer norm (C,), (C,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: _Affine  # (3C, C): one product instead of three
    attention_out: _Affine
    attention_norm: _Affine
    up: _Affine
    down: _Affine
    norm: _Affine


class Encoder:
    """A text encoder for inference. Products run in `dtype`; norms and what they carry from layer to layer are float32.

    The word table stays as stored, its rows are cast on lookup.
    """

    def __init__(self, config: EncoderConfig, get: Callable[[str, tuple[int, ...]], Tensor], dtype: torch.dtype):
        """`get(name, shape)` returns the tensor of that Hugging Face name, unprefixed, on the wanted device."""
        self.config = config
        self.dtype = dtype
        C, I = config.hidden_size, config.intermediate_size  # noqa: E741

        def affine(name: str, *shape: int) -> _Affine:
            to = dtype if len(shape) == 2 else torch.float32
            return _Affine(get(f"{name}.weight", shape).to(to), get(f"{name}.bias", shape[:1]).to(to))

        self._words = get("embeddings.word_embeddings.weight", (config.vocab_size, C))
        positions = get("embeddings.position_embeddings.weight", (config.max_positions, C)).float()
        types = get("embeddings.token_type_embeddings.weight", (config.type_vocab_size, C)).float()
        # Every text here is a first segment, so its type vector is part of each position vector.
        self._positions = positions[config.position_offset :] + types[0]
        self._embedding_norm = affine("embeddings.LayerNorm", C)
        self._layers: list[_Layer] = []
        for i in range(config.num_layers):
            at = f"encoder.layer.{i}"
            parts = [affine(f"{at}.attention.self.{name}", C, C) for name in ("query", "key", "value")]
            self._layers.append(
                _Layer(
                    qkv=_Affine(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])),
                    attention_out=affine(f"{at}.attention.output.dense", C, C),
                    attention_norm=affine(f"{at}.attention.output.LayerNorm", C),
                    up=affine(f"{at}.intermediate.dense", I, C),
                    down=affine(f"{at}.output.dense", C, I),
                    norm=affine(f"{at}.output.LayerNorm", C),
                )
            )

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Encoder:
        """Reads config.json and the memory-mapped weights of a Hugging Face folder.

        Names may carry a `bert.` or `roberta.` prefix. Raises ModelError naming the file and what is wrong with it.
        """
        check_fork()
        config = EncoderConfig.from_hf(read_json(folder / "config.json"), str(folder / "config.json"))
        with TensorFiles(folder) as files:
            prefix = next((p for p in _PREFIXES if f"{p}embeddings.word_embeddings.weight" in files), None)
            if prefix is None:
                raise ModelError(f"{folder}: holds no BERT or XLM-R word embeddings")
            return cls(config, lambda name, shape: files.numbers(prefix + name, *shape).to(device), dtype)

    @property
    def device(self) -> torch.device:
        return self._positions.device

    @torch.inference_mode()
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encodes ids (B, T) -> (B, T, C); vectors at padded places are meaningless.

        mask: (B, T), true on real tokens, padding on the right; None: no padding. Too many tokens raise ModelError.
        """
        B, T = ids.shape
        longest = self.config.max_tokens
        if longest < T:
            raise ModelError(f"{T} tokens are more than the encoder's {longest}")
        H, eps = self.config.num_heads, self.config.layer_norm_eps
        D = self.config.hidden_size // H

        def norm(x: Tensor, a: _Affine) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], a.weight, a.bias, eps)

        def product(x: Tensor, a: _Affine) -> Tensor:
            return F.linear(x.to(self.dtype), a.weight, a.bias)

        visible = None if mask is None else mask.bool()[:, None, None, :]  # (B, 1, 1, T), broadcast over heads and rows
        x = norm(F.embedding(ids, self._words).float() + self._positions[:T], self._embedding_norm)
        for layer in self._layers:
            q, k, v = product(x, layer.qkv).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
            x = norm(x + product(mixed.transpose(1, 2).reshape(B, T, H * D), layer.attention_out), layer.attention_norm)
            x = norm(x + product(F.gelu(product(x, layer.up)), layer.down), layer.norm)
        return x
