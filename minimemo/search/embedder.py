"""Texts -> unit vectors, with the pooling, prompts and length that the model's own files ask for.

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
from tokenizers import Tokenizer

from minimemo.errors import InputError, ModelError
from minimemo.events import Event, Listener, silent
from minimemo.models.encoder import Encoder
from minimemo.models.encoder_config import read_json
from minimemo.models.fingerprint import fingerprint
from minimemo.models.weights import dense_dtype
from minimemo.text.pieces import Encoded, encode_in_pieces
from minimemo.threads import check_fork

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
    """Embeds queries and passages with one encoder; thread-safe as long as nobody writes to it."""

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Tokenizer,
        settings: EmbedderSettings,
        *,
        files: Sequence[Path] = (),
        max_batch_tokens: int = 2048,
        device: str = "cpu",
    ):
        """`files` are what the fingerprint covers beside the settings; `max_batch_tokens` counts padding."""
        if max_batch_tokens < 1:
            raise InputError(f"max_batch_tokens must be at least 1, not {max_batch_tokens}")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.encoder = encoder
        self.settings = settings
        self._tokenizer = tokenizer
        self._specials = tokenizer.num_special_tokens_to_add(False)
        self._unknown = {tokenizer.token_to_id(name) for name in _UNKNOWN} - {None}
        self._files = tuple(files)
        self._max_batch_tokens = max_batch_tokens
        self._device = device
        self._fingerprint: str | None = None
        if self.passage_room < 1:
            raise ModelError(f"max length {settings.max_tokens} leaves no room for text beside the passage prompt")

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        max_batch_tokens: int = 2048,
        query_prompt: str | None = None,
        passage_prompt: str | None = None,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
    ) -> Embedder:
        """Open a model folder. A prompt given here replaces the one in the folder's files. dtype None: bfloat16 where
        the processor multiplies it quickly (1.7x the speed, cosine to float32 above 0.9999), else float32.

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
            tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # the tokenizers library raises a bare Exception
            raise ModelError(f"{tokenizer_file}: not a tokenizer ({error})") from error
        if tokenizer.get_vocab_size() > encoder.config.vocab_size:
            raise ModelError(f"{tokenizer_file}: more tokens than the {encoder.config.vocab_size} of config.json")
        stored_query, stored_passage = _read_prompts(folder)
        settings = EmbedderSettings(
            pooling=pooling,
            max_tokens=_read_max_tokens(model, encoder.config.max_tokens),
            query_prompt=stored_query if query_prompt is None else query_prompt,
            passage_prompt=stored_passage if passage_prompt is None else passage_prompt,
        )
        files = [model / name for name in ("config.json", "tokenizer.json", "model.safetensors")]
        return cls(encoder, tokenizer, settings, files=files, max_batch_tokens=max_batch_tokens, device=device)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.encoder.config.hidden_size

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, prompt and special tokens included; what lies past it is not seen."""
        return self.settings.max_tokens

    @property
    def passage_room(self) -> int:
        """Tokens of a passage's own text that are surely seen.

        Two are held back: a passage cut out of a word may need that many more tokens than it had in its document.
        """
        return self.max_tokens - self._specials - len(self._encode([self.settings.passage_prompt], False)[0]) - 2

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the settings, config, tokenizer and weights."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self._files, json.dumps(asdict(self.settings), sort_keys=True))
        return self._fingerprint

    def offsets(self, text: str) -> npt.NDArray[np.int64]:
        """Character spans (n, 2) in `text` of its n tokens, no prompt, no special tokens, never truncated."""
        return encode_in_pieces(text, self._spans)[1]

    def _spans(self, text: str) -> Encoded:
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except TypeError as error:  # what the tokenizers library makes of half a surrogate pair
            raise InputError("text: not a string of valid Unicode; read it as UTF-8") from error
        return np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)

    def reads(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether the model's vocabulary has the words of each text (n,): vectors of others say nothing."""
        rows = self._encode(texts, False)
        return np.array([sum(i in self._unknown for i in row) <= _UNREAD * len(row) for row in rows], bool)

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors (n, dim) of questions or clues."""
        return self._embed([self.settings.query_prompt + text for text in texts], silent)

    def embed_passages(self, texts: Sequence[str], on_event: Listener = silent) -> npt.NDArray[np.float32]:
        """Unit vectors (n, dim) of passages; reports stage "embed" in passages."""
        return self._embed([self.settings.passage_prompt + text for text in texts], on_event)

    def _encode(self, texts: Sequence[str], specials: bool = True) -> list[list[int]]:
        """Token ids of each text; with special tokens, the text is cut first so that they fit the model's length."""
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as error:  # what the tokenizers library makes of half a surrogate pair
            raise InputError("text: not a string of valid Unicode; read it as UTF-8") from error
        if not specials:
            return [encoding.ids for encoding in encodings]
        for encoding in encodings:
            encoding.truncate(self.max_tokens - self._specials)
        return [self._tokenizer.post_process(encoding).ids for encoding in encodings]

    def _embed(self, texts: Sequence[str], on_event: Listener) -> npt.NDArray[np.float32]:
        check_fork()
        out = np.empty((len(texts), self.dim), np.float32)
        rows = self._encode(texts)
        lengths = np.array([len(row) for row in rows], np.int64)
        order = np.argsort(-lengths, kind="stable")  # longest first: little padding, and memory peaks at once
        done = 0
        while done < len(order):
            width = int(lengths[order[done]])
            batch = order[done : done + max(1, self._max_batch_tokens // width)]
            out[batch] = self._vectors([rows[i] for i in batch], width)
            done += len(batch)
            on_event(Event("embed", done, len(texts), "passages"))
        return out

    def _vectors(self, rows: list[list[int]], width: int) -> npt.NDArray[np.float32]:
        """One batch, padded to `width` -> (n, dim)."""
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self._device)
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        mask = torch.arange(width, device=self._device) < lengths[:, None]  # (n, T)
        hidden = self.encoder.forward(ids, None if bool(mask.all()) else mask)  # (n, T, C)
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
        modules = [(str(m["type"]).rsplit(".", 1)[-1], str(m["path"])) for m in json.loads(path.read_text("utf-8"))]
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
