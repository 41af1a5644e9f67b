"""The blueprint of a BERT or XLM-R style text encoder, read from a Hugging Face config.json and checked when made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimemo.errors import ModelError

# Settings that would change the arithmetic; only the values named here are implemented, anything else is refused.
_ONLY = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Shapes and constants of a bidirectional post-norm encoder (BERT, arXiv:1810.04805; XLM-R, arXiv:1911.02116)."""

    model_type: str  # "bert", "roberta" or "xlm-roberta"
    num_layers: int
    num_heads: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int  # rows of the position table
    type_vocab_size: int
    layer_norm_eps: float
    position_offset: int  # row of the first token: 0 for BERT, padding index + 1 for the RoBERTa family

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_heads", "hidden_size", "intermediate_size", "vocab_size", "type_vocab_size"):
            if getattr(self, name) < 1:
                raise ModelError(f"encoder config: {name} must be at least 1, not {getattr(self, name)}")
        if self.hidden_size % self.num_heads:
            raise ModelError(
                f"encoder config: hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if not 0 <= self.position_offset < self.max_positions:
            raise ModelError(
                f"encoder config: {self.max_positions} positions leave no room past offset {self.position_offset}"
            )
        if not self.layer_norm_eps > 0:
            raise ModelError(f"encoder config: layer_norm_eps must be positive, not {self.layer_norm_eps}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def max_tokens(self) -> int:
        """Longest input, special tokens included."""
        return self.max_positions - self.position_offset

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], source: str = "config.json") -> EncoderConfig:
        """Read the fields of a Hugging Face config.json; `source` names the file in errors.

        Raises ModelError for an unknown model type, a missing field or a setting that is not implemented.
        """
        model_type = fields.get("model_type")
        if model_type not in ("bert", "roberta", "xlm-roberta"):
            raise ModelError(
                f"{source}: model_type {model_type!r} is not an encoder known here (bert, roberta, xlm-roberta)"
            )
        for name, only in _ONLY.items():
            if fields.get(name, only) != only:
                raise ModelError(f"{source}: {name} {fields[name]!r} is not supported (only {only!r})")
        try:
            pad = 0 if model_type == "bert" else int(fields["pad_token_id"]) + 1
            return cls(
                model_type=model_type,
                num_layers=int(fields["num_hidden_layers"]),
                num_heads=int(fields["num_attention_heads"]),
                hidden_size=int(fields["hidden_size"]),
                intermediate_size=int(fields["intermediate_size"]),
                vocab_size=int(fields["vocab_size"]),
                max_positions=int(fields["max_position_embeddings"]),
                type_vocab_size=int(fields["type_vocab_size"]),
                layer_norm_eps=float(fields["layer_norm_eps"]),
                position_offset=pad,
            )
        except KeyError as error:
            raise ModelError(f"{source}: field {error} is missing; is this an encoder's config?") from error
        except (TypeError, ValueError) as error:
            raise ModelError(f"{source}: a field has the wrong type ({error})") from error

    @classmethod
    def load(cls, path: Path) -> EncoderConfig:
        """Read a config.json file."""
        return cls.from_hf(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must hold one object. Raises ModelError naming the file."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; a model folder in Hugging Face layout is expected") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path}: holds a {type(fields).__name__}, not a JSON object")
    return fields
