"""An encoder turns texts into unit vectors, with the pooling, prompts and length that the model's files ask for.

Reads the sentence-transformers layout: config.json, model.safetensors, tokenizer.json, modules.json, the pooling
module's config.json, and, where present, sentence_bert_config.json and config_sentence_transformers.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Encoding, Tokenizer

from minimemo.errors import InputError, ModelError
from minimemo.events import Event, Listener, silent
from minimemo.files import parse_json
from minimemo.models.config import read_json
from minimemo.models.encoder import Encoder
from minimemo.models.fingerprint import fingerprint
from minimemo.models.tokenizer import open_backend, panics_as
from minimemo.models.weights import dense_dtype
from minimemo.text.pieces import Encoded, encode_in_pieces
from minimemo.threads import check_fork

BATCH_TOKENS = 2048  # of passages that are embedded at once, padding counted
REMEMBERED = 64  # queries: one question searches for the view of its memory, for passages and for sentences
_UNKNOWN = ("[UNK]", "<unk>")  # what tokenizers of encoders call what they do not know
_UNREAD = 0.2  # of a text's tokens unknown: MiniLM, which is English, has .2 to 1 in Chinese, e5 never over .17


@dataclass(frozen=True, slots=True)
class EmbedderSettings:
    """What turns an encoder's token vectors into a text's vector."""

    pooling: str  # "mean" over the tokens, or "cls": the first one
    max_tokens: int  # prompt and special tokens included
    query_prompt: str
    passage_prompt: str


class Embedder:
    """Embeds queries and passages with one encoder, on its device; may be used from several threads."""

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, settings: EmbedderSettings, files: Sequence[Path]):
        """`files` are what the fingerprint covers beside the settings; see `load`."""
        self.encoder = encoder
        self.settings = settings
        self._tokenizer = tokenizer
        self._specials = tokenizer.num_special_tokens_to_add(False)
        self._unknown = {tokenizer.token_to_id(name) for name in _UNKNOWN} - {None}
        self._files = tuple(files)
        self._fingerprint: str | None = None
        self._queries: dict[str, npt.NDArray[np.float32]] = {}  # vectors of the last ones
        if self.passage_room < 1:
            raise ModelError(f"max length {settings.max_tokens} leaves no room for text beside the passage prompt")

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> Embedder:
        """Open a model folder. dtype None: bfloat16 where the device multiplies it quickly (on a CPU 1.7x the speed,
        cosine to float32 above 0.9999), else `dense_dtype`.

        Raises ModelError naming the file that is missing, damaged or asks for something not supported.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such folder; give the folder of an embedding model")
        model, pooling = _read_modules(folder)
        encoder = Encoder.load(model, dtype=dtype or dense_dtype(device), device=device)
        tokenizer_file = model / "tokenizer.json"
        if not tokenizer_file.is_file():
            raise ModelError(f"{tokenizer_file}: no such file; save the tokenizer in its fast (JSON) form")
        try:
            tokenizer = open_backend(tokenizer_file)
        except MemoryError:
            raise
        except Exception as error:  # the tokenizers library raises a bare Exception
            raise ModelError(f"{tokenizer_file}: not a tokenizer ({error})") from error
        if tokenizer.get_vocab_size() > encoder.config.vocab_size:
            raise ModelError(f"{tokenizer_file}: more tokens than the {encoder.config.vocab_size} of config.json")
        max_tokens = _read_max_tokens(model, encoder.config.max_tokens)
        settings = EmbedderSettings(pooling, max_tokens, *_read_prompts(folder))
        files = [model / name for name in ("config.json", "tokenizer.json", "model.safetensors")]
        return cls(encoder, tokenizer, settings, files)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.encoder.config.hidden_size

    @property
    def passage_room(self) -> int:
        """Tokens of a passage's text that are surely seen, beside the prompt and special tokens.

        Two are held back: a passage cut out of a word may need that many more tokens than it had in its document.
        """
        prompt = len(self._encode([self.settings.passage_prompt])[0].ids)
        return self.settings.max_tokens - self._specials - prompt - 2

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the settings, config, tokenizer and weights."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self._files, json.dumps(asdict(self.settings), sort_keys=True))
        return self._fingerprint

    def offsets(self, text: str) -> npt.NDArray[np.int64]:
        """Character spans (n, 2) in `text` of its n tokens, no prompt, no special tokens, never truncated."""

        def encode(piece: str) -> Encoded:
            (encoding,) = self._encode([piece], spans=True)
            return np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)

        return encode_in_pieces(text, encode)[1]

    def reads(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether the model's vocabulary has the words of each text (n,): vectors of others say nothing."""
        rows = [encoding.ids for encoding in self._encode(texts)]
        return np.array([sum(i in self._unknown for i in row) <= _UNREAD * len(row) for row in rows], bool)

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors (n, dim) of questions or clues; those of the last REMEMBERED queries are not computed again.

        Each is computed alone: beside others, padded, its last bits would tell in whose company it was first asked.
        """
        kept = self._queries
        new = [text for text in dict.fromkeys(texts) if text not in kept]
        vectors = kept | {text: self._embed(self.settings.query_prompt, [text], silent)[0] for text in new}
        self._queries = dict(list(vectors.items())[-REMEMBERED:])
        return np.array([vectors[text] for text in texts], np.float32).reshape(len(texts), self.dim)

    def embed_passages(self, texts: Sequence[str], on_event: Listener = silent) -> npt.NDArray[np.float32]:
        """Unit vectors (n, dim) of passages; reports stage "embed" in passages."""
        return self._embed(self.settings.passage_prompt, texts, on_event)

    def _encode(self, texts: Sequence[str], *, spans: bool = False) -> list[Encoding]:
        """Tokens of each text, no special tokens, never truncated; spans: with their places in it, which is slower."""
        try:
            encode = self._tokenizer.encode_batch if spans else self._tokenizer.encode_batch_fast
            with panics_as(ModelError):
                return encode(list(texts), add_special_tokens=False)
        except TypeError as error:  # what the tokenizers library makes of half a surrogate pair
            raise InputError("text: not a string of valid Unicode; read it as UTF-8") from error

    def _embed(self, prompt: str, texts: Sequence[str], on_event: Listener) -> npt.NDArray[np.float32]:
        """Unit vectors (n, dim) of texts behind a prompt, cut so that they fit the model with their special tokens."""
        check_fork()
        out = np.empty((len(texts), self.dim), np.float32)
        rows: list[list[int]] = []
        for encoding in self._encode([prompt + text for text in texts]):
            encoding.truncate(self.settings.max_tokens - self._specials)
            rows.append(self._tokenizer.post_process(encoding).ids)
        lengths = np.array([len(row) for row in rows], np.int64)
        order = np.argsort(-lengths, kind="stable")  # longest first: little padding, and memory peaks at once
        done = 0
        while done < len(order):
            width = int(lengths[order[done]])
            batch = order[done : done + max(1, BATCH_TOKENS // width)]
            out[batch] = self._vectors([rows[i] for i in batch], width)
            done += len(batch)
            on_event(Event("embed", done, len(texts), "passages"))
        return out

    def _vectors(self, rows: list[list[int]], width: int) -> npt.NDArray[np.float32]:
        """One batch, padded to `width` -> (n, dim)."""
        device, padded = self.encoder.device, any(len(row) < width for row in rows)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows]).to(device)
        lengths = torch.tensor([len(row) for row in rows]).to(device)
        mask = torch.arange(width, device=device) < lengths[:, None]  # (n, T)
        hidden = self.encoder.forward(ids, mask if padded else None)  # (n, T, C)
        if self.settings.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = torch.einsum("ntc,nt->nc", hidden, mask.float()) / lengths[:, None]
        return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()


def _read_modules(folder: Path) -> tuple[Path, str]:
    """The transformer's folder and the pooling ("mean" or "cls") that modules.json names."""
    path = folder / "modules.json"
    if not path.is_file():
        raise ModelError(f"{path}: no such file; it says how token vectors are pooled, and guessing gives bad vectors")
    try:
        modules = [(str(m["type"]).rsplit(".", 1)[-1], str(m["path"])) for m in parse_json(path.read_bytes())]
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: not a list of modules ({error})") from error
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(f"{path}: modules {', '.join(kinds)}; only Transformer, Pooling, Normalize are supported")
    pooling_file = folder / modules[1][1] / "config.json"
    fields = read_json(pooling_file)
    mode = fields.get("pooling_mode")
    if mode is None:  # the older form: one flag a mode
        flags = [k.removeprefix("pooling_mode_") for k, v in fields.items() if k.startswith("pooling_mode_") and v]
        mode = "+".join(flags).replace("cls_token", "cls").replace("mean_tokens", "mean")
    if mode not in ("mean", "cls"):
        raise ModelError(f"{pooling_file}: pooling {mode!r} is not supported (only mean and cls)")
    if fields.get("include_prompt", True) is not True:
        raise ModelError(f"{pooling_file}: include_prompt false is not supported")
    return folder / modules[0][1], mode


def _read_prompts(folder: Path) -> tuple[str, str]:
    """Query and passage prompts, by the names that sentence-transformers looks for; empty where the file has none."""
    path = folder / "config_sentence_transformers.json"
    fields: dict[str, Any] = read_json(path) if path.is_file() else {}
    prompts = fields.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ModelError(f"{path}: prompts must map names to texts")
    default = prompts.get(fields.get("default_prompt_name") or "", "")
    passage = next((prompts[name] for name in ("document", "passage", "corpus") if prompts.get(name)), default)
    return prompts.get("query") or default, passage


def _read_max_tokens(model: Path, limit: int) -> int:
    """The length the model was made for, never past the position table."""
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        path = model / name
        fields = read_json(path) if path.is_file() else {}
        if fields.get("do_lower_case") is True and name == "sentence_bert_config.json":
            raise ModelError(f"{path}: do_lower_case true is not supported; put it in the tokenizer's normalizer")
        length = fields.get(key)
        if isinstance(length, int) and length > 0:
            return min(length, limit)
    return limit
