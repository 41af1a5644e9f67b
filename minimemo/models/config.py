"""The decoder's blueprint: a validated, frozen description read from a Hugging Face `config.json`.

Rule of this file: it knows no weights and no tensors. Whatever it does not understand it refuses by name,
because a silently ignored field means silently wrong text. GGUF metadata is first turned into the same
`config.json` form (hub/gguf.py), so there is one parser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimemo.errors import ModelError
from minimemo.files import parse_json

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
_MAX_LAYERS = 10_000
_REFUSED = (
    "mlp_bias", "attn_logit_softcapping", "final_logit_softcapping", "quantization_config",
    "use_bidirectional_attention",
)  # fmt: skip
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding (RoFormer, arXiv 2104.09864) and how its frequencies are stretched.

    scaling: "none", "linear" (arXiv 2306.15595), "llama3" (Llama 3.1 release), "yarn" (arXiv 2309.00071)
    or "factors" (a divisor for each pair of dimensions, as GGUF files state the llama3 rule).
    """

    base: float
    scaling: str = "none"
    factor: float = 1.0
    original_context: int = 0  # tokens the model was trained on before stretching: llama3, yarn
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 1.0  # yarn: multiplies cos and sin
    truncate: bool = True  # yarn: ramp limits rounded to whole dimensions
    factors: tuple[float, ...] = ()  # factors: D/2 of them


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything the decoder needs to know before it sees a weight.

    Letters used throughout: L layers, H query heads, G kv heads, T tokens, D head dim, C hidden size.
    """

    vocab_size: int
    hidden_size: int  # C
    intermediate_size: int
    num_layers: int  # L
    num_heads: int  # H
    num_kv_heads: int  # G
    head_dim: int  # D
    max_context: int  # tokens
    norm_eps: float
    rope: RopeConfig
    local_rope: RopeConfig | None = None  # for layers with a window, when it differs
    windows: tuple[int | None, ...] = ()  # per layer: keys a query sees, itself included; None: all
    activation: str = "silu"
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    sandwich_norms: bool = False  # norms after attention and MLP as well (Gemma)
    norm_offset: float = 0.0  # added to every norm weight when loaded (Gemma stores w - 1)
    embedding_scale: float = 1.0
    query_scale: float = 0.0  # multiplies q.k; 0: 1/sqrt(D)
    tied_head: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            if getattr(self, name) <= 0:
                raise ModelError(f"{name} must be positive, found {getattr(self, name)}")
        if self.head_dim <= 0 or self.head_dim % 2:
            raise ModelError(f"head_dim must be positive and even, found {self.head_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"{self.num_heads} query heads do not divide into {self.num_kv_heads} kv heads")
        if not self.windows:
            object.__setattr__(self, "windows", (None,) * self.num_layers)
        if len(self.windows) != self.num_layers:
            raise ModelError(f"{len(self.windows)} layer types for {self.num_layers} layers")
        for rope in (self.rope, self.local_rope):
            if rope and rope.scaling == "factors" and len(rope.factors) != self.head_dim // 2:
                raise ModelError(f"{len(rope.factors)} rope factors for {self.head_dim // 2} dimension pairs")
        if not self.query_scale:
            object.__setattr__(self, "query_scale", self.head_dim**-0.5)

    def layer_rope(self, layer: int) -> RopeConfig:
        """The rotary settings that `layer` uses."""
        return self.local_rope if self.local_rope and self.windows[layer] is not None else self.rope

    @classmethod
    def from_directory(cls, directory: Path) -> ModelConfig:
        """Reads `config.json` of a Hugging Face directory. Raises ModelError for anything not understood."""
        path = Path(directory) / "config.json"
        return parse_config(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that must hold one object. Raises ModelError naming the file."""
    try:
        fields = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; a model directory in Hugging Face layout is needed") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error}); download it again") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path}: holds no JSON object; download it again")
    return fields


def parse_config(raw: Mapping[str, Any], origin: str = "config.json") -> ModelConfig:
    """Reads a Hugging Face configuration. Raises ModelError, which names `origin`, for what is not known here."""
    try:
        return _parse(raw)
    except ModelError as error:
        raise ModelError(f"{origin}: {error}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:  # one thing in another's place
        raise ModelError(f"{origin}: not a model's configuration ({error})") from None


def _parse(raw: Mapping[str, Any]) -> ModelConfig:
    if raw.get("model_type") == "gemma3" and "text_config" in raw:
        raw = {**raw["text_config"], "model_type": "gemma3_text"}
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ModelError(f"model_type {family!r} is not supported; known: {', '.join(FAMILIES)}")
    gemma = family == "gemma3_text"
    for name in _REFUSED:
        if raw.get(name):
            raise ModelError(f"{name}={raw[name]!r} is not supported")
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(f"partial_rotary_factor {raw['partial_rotary_factor']} is not supported")
    activation = raw.get("hidden_activation") or raw.get("hidden_act") or ("gelu_pytorch_tanh" if gemma else "silu")
    if activation not in _ACTIVATIONS:
        raise ModelError(f"activation {activation!r} is not supported; known: {', '.join(_ACTIVATIONS)}")

    def integer(name: str) -> int:
        value = raw.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ModelError(f"{name} must be a positive integer, found {value!r}")
        return value

    layers, heads, hidden = (integer(name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    if layers > _MAX_LAYERS:
        raise ModelError(f"num_hidden_layers {layers} exceeds {_MAX_LAYERS}; the file is damaged")
    rope, local_rope = _ropes(raw, gemma)
    biased = bool(raw.get("attention_bias", False))
    return ModelConfig(
        vocab_size=integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=int(raw.get("head_dim") or hidden // heads),
        max_context=integer("max_position_embeddings"),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=rope,
        local_rope=local_rope,
        windows=_windows(raw, family, layers),
        activation=_ACTIVATIONS[activation],
        qkv_bias=family == "qwen2" or biased,
        out_bias=family != "qwen2" and biased,
        qk_norm=family in ("qwen3", "gemma3_text"),
        sandwich_norms=gemma,
        norm_offset=float(raw.get("minimemo_norm_offset", 1.0 if gemma else 0.0)),
        embedding_scale=hidden**0.5 if gemma else 1.0,
        query_scale=float(raw.get("query_pre_attn_scalar", 256)) ** -0.5 if gemma else 0.0,
        tied_head=bool(raw.get("tie_word_embeddings", gemma)),
    )


def _windows(raw: Mapping[str, Any], family: str, layers: int) -> tuple[int | None, ...]:
    """Sliding windows a layer, from `layer_types` or from what older files imply."""
    window = raw.get("sliding_window")
    kinds = raw.get("layer_types")
    if kinds is not None:
        if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
            raise ModelError(f"layer type {sorted(unknown)[0]!r} is not supported")
        sliding = [kind == "sliding_attention" for kind in kinds]
    elif family == "gemma3_text":
        period = int(raw.get("sliding_window_pattern") or 6)
        sliding = [(i + 1) % period != 0 for i in range(layers)]
    elif family == "mistral":
        sliding = [bool(window)] * layers
    else:
        first = int(raw.get("max_window_layers") or 0) if raw.get("use_sliding_window") else layers
        sliding = [i >= first for i in range(layers)]
    if any(sliding) and not (isinstance(window, int) and window > 0):
        raise ModelError(f"layers with sliding_attention need a positive sliding_window, found {window!r}")
    return tuple(window if slides else None for slides in sliding)


def _ropes(raw: Mapping[str, Any], gemma: bool) -> tuple[RopeConfig, RopeConfig | None]:
    """The rope of full layers, and that of windowed layers or None, from the old and the new spelling."""
    new = raw.get("rope_parameters") or {}
    if "full_attention" in new or "sliding_attention" in new:
        full, sliding = new.get("full_attention") or {}, new.get("sliding_attention") or {}
    else:
        full, sliding = {**(raw.get("rope_scaling") or {}), **new}, {}
    context = int(raw.get("max_position_embeddings") or 0)
    base = float(full.get("rope_theta") or raw.get("rope_theta") or (1_000_000.0 if gemma else 10_000.0))
    if not gemma:
        return _rope(full, base, context), None
    local_base = float(sliding.get("rope_theta") or raw.get("rope_local_base_freq") or 10_000.0)
    return _rope(full, base, context), _rope(sliding, local_base, context)


def _rope(scaling: Mapping[str, Any], base: float, context: int) -> RopeConfig:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    factor = float(scaling.get("factor") or 1.0)
    original = int(scaling.get("original_max_position_embeddings") or context)
    if kind == "default":
        return RopeConfig(base)
    if kind == "linear":
        return RopeConfig(base, "linear", factor)
    if kind == "llama3":
        low, high = float(scaling.get("low_freq_factor", 1.0)), float(scaling.get("high_freq_factor", 4.0))
        return RopeConfig(base, "llama3", factor, original, low_freq_factor=low, high_freq_factor=high)
    if kind == "yarn":
        if scaling.get("mscale") or scaling.get("mscale_all_dim"):
            raise ModelError("yarn with mscale is not supported")
        attention = scaling.get("attention_factor")
        if attention is None:
            attention = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0  # arXiv 2309.00071, section 3.4
        return RopeConfig(
            base,
            "yarn",
            factor,
            original,
            beta_fast=float(scaling.get("beta_fast") or 32.0),
            beta_slow=float(scaling.get("beta_slow") or 1.0),
            attention_factor=float(attention),
            truncate=bool(scaling.get("truncate", True)),
        )
    if kind == "factors":
        return RopeConfig(base, "factors", factors=tuple(float(f) for f in scaling.get("factors", ())))
    raise ModelError(f"rope scaling {kind!r} is not supported; known: linear, llama3, yarn")
