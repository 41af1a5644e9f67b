"""Tensors on disk -> the decoder's weights: a name map, a fuse map, and the dtype policy.

A directory holds one `model.safetensors` or shards with an index, always memory-mapped. Matrices converted from GGUF
are kept there as integer codes with group scales (see hub/gguf.py), which is exact, and widened when loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minimemo.errors import ModelError
from minimemo.events import Event, Listener, silent
from minimemo.files import parse_json
from minimemo.kernels import native, triton
from minimemo.kernels.formats import QUANTIZED_GROUPS, QuantizedMatrix, bits_for, joined, quantized_matrix, with_units
from minimemo.kernels.native.shortlist import Shortlist, shortlist
from minimemo.models.config import ModelConfig
from minimemo.models.decoder import Decoder
from minimemo.models.layers import (
    DecoderWeights,
    LayerWeights,
    Linear,
    PackedLinear,
    Projection,
    QuantizedLinear,
    Scratch,
)
from minimemo.models.packed import PackedFile
from minimemo.threads import check_fork

_LARGE_VOCABULARY = 1 << 15
_PREFIXES = ("", "model.", "language_model.model.", "model.language_model.", "language_model.")


def dense_dtype(device: str = "cpu") -> torch.dtype:
    """Chooses the number type of dense matrices and caches: bfloat16 where the hardware multiplies it quickly, else
    float32 (bfloat16 products on an AVX2 machine without AVX-512 BF16 measured 6x slower; float16 on a CPU is slower
    still); on a GPU without it, of before Ampere, float16."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device != "cpu":
        return torch.bfloat16
    # A torch built without oneDNN (macOS) has no such operator.
    quick = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if quick else torch.float32


def preferred_dtype(device: str = "cpu") -> torch.dtype:
    """Chooses the number type in which many rows are multiplied: int8, of quantized matrices, where the processor
    multiplies bytes (AVX2, and faster AVX-512 VNNI; AMX takes packed matrices in bfloat16): twice the speed of float32
    on AVX2 and 1.5x that of bfloat16 on AVX-512, at a KL of 4e-4 (Qwen2.5-Coder-0.5B, four documents)."""
    if device == "cpu" and native.unavailable() is None and native.variants()[-1] != "portable":
        return torch.int8
    return dense_dtype(device)


def expand_groups(codes: Tensor, scales: Tensor, offsets: Tensor | None, dtype: torch.dtype) -> Tensor:
    """codes (out, in) int8, scales and offsets (out, in/group) float32 -> code * scale + offset, (out, in)."""
    rows, columns = codes.shape
    groups = scales.shape[1]
    wide = codes.view(rows, groups, columns // groups).to(torch.float32)
    wide.mul_(scales.unsqueeze(-1))
    if offsets is not None:
        wide.add_(offsets.unsqueeze(-1))
    return wide.view(rows, columns).to(dtype)


class TensorFiles:
    """Opens the safetensors of a directory as one name -> tensor map. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = Path(directory)
        self._where: dict[str, Any] = {}  # name -> the open shard that holds it
        self._stack = ExitStack()

    def __enter__(self) -> TensorFiles:
        index = self._directory / "model.safetensors.index.json"
        if index.exists():
            try:
                names = sorted(set(parse_json(index.read_bytes())["weight_map"].values()))
            except (ValueError, KeyError, AttributeError):
                raise ModelError(f"{index}: not an index of shards; download the model again") from None
        else:
            names = ["model.safetensors"]
        for name in names:
            path = self._directory / name
            if Path(name).name != name or not path.exists():
                raise ModelError(f"{path}: no such file; download the model again")
            try:
                shard = self._stack.enter_context(safe_open(str(path), framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path}: not a whole safetensors file ({error}); download it again") from None
            self._where.update(dict.fromkeys(shard.keys(), shard))
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def get(self, name: str) -> Tensor:
        """Reads a tensor as stored. Raises ModelError when it is not there."""
        if name not in self._where:
            raise ModelError(f"{self._directory}: tensor {name} is missing; is it the right model for its config.json?")
        return self._where[name].get_tensor(name)

    def numbers(self, name: str, *shape: int | None) -> Tensor:
        """Reads a tensor of floating-point numbers. Raises ModelError where it has others, or another shape (None: any
        size)."""
        tensor = self.get(name)
        fits = len(tensor.shape) == len(shape) and all(b in (None, a) for a, b in zip(tensor.shape, shape, strict=True))
        if not tensor.is_floating_point() or not fits:
            expected = " x ".join("any" if size is None else str(size) for size in shape)
            raise ModelError(
                f"{self._directory}: tensor {name} holds {str(tensor.dtype).removeprefix('torch.')} of shape "
                f"{tuple(tensor.shape)}, not floating-point numbers of {expected}; download the model again"
            )
        return tensor

    def matrix(self, name: str, dtype: torch.dtype) -> Tensor:
        """Reads a tensor in `dtype`, widened from codes and scales where it was stored so."""
        coded = self.is_coded(name)
        return expand_groups(*self.codes(name), dtype) if coded else self.numbers(name, None, None).to(dtype)

    def is_coded(self, name: str) -> bool:
        """Whether a matrix is stored as codes and scales."""
        return f"{name}.codes" in self._where

    def codes(self, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Reads codes (out, in) int8, scales and offsets (out, in / group) float32, of a matrix stored so."""
        codes, scales = self.get(f"{name}.codes"), self.numbers(f"{name}.scales", None, None)
        offsets = self.numbers(f"{name}.offsets", *scales.shape) if f"{name}.offsets" in self else None
        fit = codes.dtype == torch.int8 and codes.dim() == 2 and codes.shape[0] == scales.shape[0] > 0 < scales.shape[1]
        if not fit or codes.shape[1] == 0 or codes.shape[1] % scales.shape[1]:
            raise ModelError(
                f"{self._directory}: tensor {name} has codes of {tuple(codes.shape)} and scales of "
                f"{tuple(scales.shape)}, which do not fit; download the model again"
            )
        return codes, scales, offsets


def load_decoder(
    directory: Path,
    config: ModelConfig | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    packed: bool | None = None,
    kept: PackedFile | None = None,
    on_event: Listener = silent,
) -> Decoder:
    """Loads a decoder from a Hugging Face directory, or one converted from GGUF. Raises ModelError.

    config: the directory's, where it has been read already.
    dtype: number type of large products and dense weights, and on a device other than the CPU of everything else too;
    on a CPU what flows between them is float32. int8: products with quantized matrices round their inputs to 8 bits of
    the largest of 32 neighbours; dense matrices take `dense_dtype`. None: what this machine multiplies fastest.
    packed: keep the codes of quantized matrices and multiply with those, natively on a CPU, by Triton's kernel on a GPU
    (there with scales in float16, and only groups of 16 to 128 columns); None: where that is possible.
    kept: where what is packed for a CPU was kept, and is.
    """
    check_fork()
    config = config or ModelConfig.from_directory(directory)
    dtype = dtype or preferred_dtype(device)
    if packed is None:
        packed = native.unavailable() is None if device == "cpu" else triton.installed()
    with TensorFiles(directory) as files, torch.no_grad():
        return Decoder(config, _assemble(config, files, dtype, device, packed, kept or PackedFile(None), on_event))


def _quantized(files: TensorFiles, names: Sequence[str], device: str) -> list[QuantizedMatrix]:
    """The matrices in the form of Triton's kernel, neighbours of one kind as one; none where one of them is of another
    group, or they are no whole blocks of 32 columns. Where they have one kind of groups they take as many bits a code
    as the widest of them needs: of a fused product that is one launch in place of several, for a hundredth of the
    bytes."""
    if not all(files.is_coded(name) for name in names):
        return []
    read = [files.codes(name) for name in names]
    groups = [codes.shape[1] // scales.shape[1] for codes, scales, _ in read]
    if any(group not in QUANTIZED_GROUPS for group in groups) or read[0][0].shape[1] % 32:
        return []
    bits = [bits_for(codes) for codes, _, _ in read]
    if len({*groups}) == 1 and len({offsets is None for _, _, offsets in read}) == 1:
        bits = [max(bits)] * len(bits)
    matrices = []
    for (codes, scales, offsets), width in zip(read, bits, strict=True):
        scales, offsets = scales.to(device), None if offsets is None else offsets.to(device)
        halves = None if offsets is None else offsets.half()
        matrix = quantized_matrix(codes.to(device), scales.half(), halves, bits=width)
        matrices.append(with_units(matrix, scales, offsets))
    return joined(matrices)


def _assemble(
    config: ModelConfig,
    files: TensorFiles,
    dtype: torch.dtype,
    device: str,
    packed: bool,
    kept: PackedFile,
    on_event: Listener,
) -> DecoderWeights:
    words = ((prefix, f"{prefix}embed_tokens.weight") for prefix in _PREFIXES)
    prefix = next((prefix for prefix, name in words if name in files or files.is_coded(name)), None)
    if prefix is None:
        raise ModelError("weights: no embed_tokens.weight; not a decoder in Hugging Face layout")

    scratch = None if dtype == torch.int8 else Scratch(dtype)
    dtype = dense_dtype(device) if dtype == torch.int8 else dtype
    stream = torch.float32 if device == "cpu" else dtype
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sizes = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "o_proj": config.hidden_size}  # of biases

    def pack(name: str) -> native.PackedMatrix:
        return native.pack_weights(*files.codes(name), arena=kept.arena)

    def projection(names: Sequence[str], bias: Tensor | None = None) -> Projection:
        if packed and device != "cpu" and (parts := _quantized(files, names, device)):
            return QuantizedLinear(parts, bias)
        if packed and device == "cpu" and all(files.is_coded(name) for name in names):
            try:
                packs = [kept.matrix(name, partial(pack, name)) for name in names]
            except ValueError as error:
                raise ModelError(f"weights: {names[0]}: {error}; download the model again") from None
            return PackedLinear(packs, bias, scratch)
        dense = [files.matrix(name, dtype) for name in names]
        if len({matrix.shape[1] for matrix in dense}) > 1:
            raise ModelError(f"weights: {', '.join(names)} have rows of several lengths; download the model again")
        return Linear((dense[0] if len(dense) == 1 else torch.cat(dense)).to(device), bias)

    def linear(biased: bool, *names: str) -> Projection:
        bias = None
        if biased:
            parts = [files.numbers(f"{prefix}{n}.bias", sizes[n.rsplit(".", 1)[-1]]) for n in names]
            bias = torch.cat([part.to(stream) for part in parts]).to(device)
        return projection([f"{prefix}{name}.weight" for name in names], bias)

    def norm(name: str, size: int = config.hidden_size) -> Tensor:
        return (files.numbers(f"{prefix}{name}.weight", size).float() + config.norm_offset).to(stream).to(device)

    layers = []
    for index in range(config.num_layers):
        on_event(Event("load model", index, config.num_layers, "layers"))
        at, sandwich = f"layers.{index}.", config.sandwich_norms
        attn, mlp = at + "self_attn.", at + "mlp."
        layers.append(
            LayerWeights(
                attention_norm=norm(at + "input_layernorm"),
                qkv=linear(config.qkv_bias, attn + "q_proj", attn + "k_proj", attn + "v_proj"),
                out=linear(config.out_bias, attn + "o_proj"),
                mlp_norm=norm(at + ("pre_feedforward_layernorm" if sandwich else "post_attention_layernorm")),
                gate_up=linear(False, mlp + "gate_proj", mlp + "up_proj"),
                down=linear(False, mlp + "down_proj"),
                q_norm=norm(attn + "q_norm", config.head_dim) if config.qk_norm else None,
                k_norm=norm(attn + "k_norm", config.head_dim) if config.qk_norm else None,
                post_attention_norm=norm(at + "post_attention_layernorm") if sandwich else None,
                post_mlp_norm=norm(at + "post_feedforward_layernorm") if sandwich else None,
            )
        )
    embedding = linear(False, "embed_tokens")
    head, name = embedding, f"{prefix}embed_tokens.weight"
    if not config.tied_head:
        heads = ("lm_head.weight", "language_model.lm_head.weight")
        name = next((n for n in heads if n in files or files.is_coded(n)), heads[0])
        head = projection([name])
    weights = DecoderWeights(embedding, tuple(layers), norm("norm"), head, _shortlist(files, name, head, kept))
    _check_shapes(config, weights)
    if why := kept.keep():
        on_event(Event(f"packed weights are not kept, and packed again next time: {why}", 1, 1, "detail"))
    on_event(Event("load model", config.num_layers, config.num_layers, "layers"))
    return weights


def _shortlist(files: TensorFiles, name: str, head: Projection, kept: PackedFile) -> Shortlist | None:
    """Of a head that is large, and of so many bits a weight that reading a coarse copy first is quicker."""
    rows, columns = head.shape
    few_bits = head.nbytes * 8 < 6 * rows * columns
    if not isinstance(head, PackedLinear) or rows < _LARGE_VOCABULARY or few_bits or columns % 32:
        return None
    exact = head.packed
    return kept.shortlist(f"{name}.coarse", exact, lambda: shortlist(exact, *files.codes(name), arena=kept.arena))


def _check_shapes(config: ModelConfig, weights: DecoderWeights) -> None:
    """Raises ModelError naming the first tensor that does not have the shape the configuration promises."""
    c, h, g, d = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
    expected = {
        "qkv": ((h + 2 * g) * d, c),
        "out": (c, h * d),
        "gate_up": (2 * config.intermediate_size, c),
        "down": (c, config.intermediate_size),
    }
    for index, layer in enumerate(weights.layers):
        for name, shape in expected.items():
            actual = tuple(getattr(layer, name).shape)
            if actual != shape:
                raise ModelError(f"weights: layer {index} {name} has shape {actual}, config.json says {shape}")
    for name in ("embedding", "head"):
        actual = tuple(getattr(weights, name).shape)
        if actual[1] != c or actual[0] < config.vocab_size:
            raise ModelError(f"weights: {name} has shape {actual}, config.json says {(config.vocab_size, c)}")
