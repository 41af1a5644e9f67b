"""Text <-> token ids of a decoder, with character offsets, turn markers and an incremental detokenizer.

Rule: text that a user or a document supplies never becomes a control token. `encode` spells "<|im_end|>" out in
ordinary pieces; only `encode_template`, meant for the text of chat templates, reads it as the token.
"""

from __future__ import annotations

import base64
import json
import math
import mmap
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from minimemo.errors import InputError, ModelError
from minimemo.models.chat import ChatTemplate, marker
from minimemo.models.config import read_json
from minimemo.models.detokenizer import Detokenizer, StreamDecoder

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")  # special tokens a chat template may name
_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    "chat_template.jinja",
)  # fmt: skip
_OF_MODEL = ("bos_token_id", "eos_token_id", "vocab_size")  # what config.json says of tokens
_MARKS = "-*_=~#>`|"  # of formatting
_MOST_ADDED, _MOST_GROWTH = 30_000, 64  # Gemma 3 has 6,415 and writes at most 3 for one
_SPARE = 32 << 20  # bytes that must be free beside a tokenizer's own
_CHARSMAP = re.compile(rb'"precompiled_charsmap"\s*:\s*"([^"]*)"')
_DISGUISED = re.compile(rb"\\u00(5f|6|7[0-9a])", re.IGNORECASE)  # no writer of JSON spells letters so
_CONTROL_LOOK = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)  # files do not always flag these as special


class Tokenizer:
    """Never changes once made; every method may be called from several threads.

    `stop_ids` end an answer; `bos_id` is None where the model has none; `adds_bos`: whether a text starts with it;
    `vocab_size` counts the tokens known here (a model may have more rows).
    """

    def __init__(self, directory: Path) -> None:
        """Loads a Hugging Face style directory: tokenizer.json, and whichever of tokenizer_config.json,
        special_tokens_map.json, generation_config.json, config.json and chat_template.jinja it has.

        Raises ModelError naming the file that is missing, damaged or of a kind not known here."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{path}: missing; the model directory must hold the tokenizer in this form")
        try:
            self._backend = open_backend(path)
            if (normalizer := self._backend.normalizer) is not None:
                growth = _growth(json.loads(normalizer.__getstate__()))
                if growth > _MOST_GROWTH:
                    raise ValueError(f"{growth:.0f} characters for one")
        except MemoryError:
            raise
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(f"{path}: not a tokenizer ({error}); download it again") from error
        self._source = str(path)
        self._lock = threading.Lock()  # encode_special_tokens is a switch of the whole backend
        names, config, generation, model = (
            read_json(path) if (path := directory / f"{name}.json").is_file() else {}
            for name in ("special_tokens_map", "tokenizer_config", "generation_config", "config")
        )
        model = {**model, **_as_dict(model.get("text_config"))}
        special = {name: _content({**names, **config}.get(name)) for name in _NAMED}

        self.bos_id = self._id(special["bos_token"])
        if self.bos_id is None and "bos_token" not in config:
            ids = _ids(generation.get("bos_token_id", model.get("bos_token_id")))
            self.bos_id = ids[0] if ids else None
        stops = _ids(generation.get("eos_token_id", model.get("eos_token_id")))
        eos_id = self._id(special["eos_token"])
        self.stop_ids = frozenset(stops if eos_id is None else [*stops, eos_id])
        writes_bos = self.bos_id is not None and self._backend.encode("").ids[:1] == [self.bos_id]
        wants_bos = config.get("add_bos_token")
        self.adds_bos = self.bos_id is not None and (wants_bos if isinstance(wants_bos, bool) else writes_bos)
        self.vocab_size = self._backend.get_vocab_size(with_added_tokens=True)
        self._rows = model.get("vocab_size")  # of the model, which has no others
        if getattr(self._backend.model, "dropout", None):
            self._backend.model.dropout = None  # that of training, by which a text is other tokens every time

        # No template of its own, no trimmed offsets: ids and spans of the text as it is.
        self._backend.post_processor = None
        self._control = self._flag_control()
        self._backend.encode_special_tokens = True
        self._detokenizer = Detokenizer(self._backend, self._control, self._source)
        self._prefixes = b"".join(map(self._detokenizer.piece, self._encoded("x").ids)) == b" x"
        self._template = _chat_template(directory, config, {k: v for k, v in special.items() if v is not None})
        self.has_chat_template = self._template is not None
        self._turns: dict[str | None, tuple[list[int], list[int]]] = {}

    # text -> ids

    def encode(self, text: str) -> list[int]:
        """Encodes plain text: no BOS, and never a control token, whatever the text says."""
        ids = self._within_rows(self._encoded(text).ids)
        return ids if self._control.isdisjoint(ids) else [i for token in ids for i in self._spelled(token)]

    def encode_with_offsets(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Gives the ids of `encode`, (n,), and each token's span of `text` in str indices, (n, 2).

        Starts and ends never decrease and the spans cover the whole text. Tokens that hold parts of one character
        all have that character's span; characters that a normalizer joins belong to one token."""
        encoded = self._encoded(text)
        ids = np.array(self._within_rows(encoded.ids), dtype=np.int32)
        offsets = np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2)
        if not self._control.isdisjoint(encoded.ids):
            spelled = [self._spelled(token) for token in encoded.ids]
            ids = np.array([i for token in spelled for i in token], dtype=np.int32)
            offsets = np.repeat(offsets, [len(token) for token in spelled], axis=0)
        if len(ids):
            starts = np.maximum.accumulate(offsets[:, 0])
            starts[0] = 0
            ends = np.maximum(offsets[:, 1], np.append(starts[1:], len(text)))
            offsets = np.stack([starts, np.maximum.accumulate(ends)], axis=1)
        return ids, offsets

    def encode_template(self, text: str) -> list[int]:
        """Encodes template text, in which the names of control tokens are those tokens. Never for user text."""
        return self._encoded(text, control=True).ids

    def _encoded(self, text: str, control: bool = False) -> Encoding:
        try:
            with panics_as(self._too_much(text)), self._lock:
                if not control:
                    return self._backend.encode(text, add_special_tokens=False)
                self._backend.encode_special_tokens = False
                try:
                    return self._backend.encode(text, add_special_tokens=False)
                finally:
                    self._backend.encode_special_tokens = True
        except TypeError:  # how tokenizers refuses a str that is no UTF-8
            bad = next((n for n, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
            if bad is None:
                raise
            raise InputError(f"text: character {bad} is half of a surrogate pair; decode the text anew") from None

    def _too_much(self, text: str) -> Callable[[str], Exception]:
        return lambda why: ModelError(f"{self._source}: a text of {len(text)} characters is too much for it ({why})")

    def _within_rows(self, ids: list[int]) -> list[int]:
        if ids and isinstance(self._rows, int) and max(ids) >= self._rows:
            raise ModelError(f"{self._source}: token {max(ids)}, but config.json has {self._rows}: of another model")
        return ids

    def _spelled(self, token: int) -> list[int]:
        """A control token that merges made out of plain text, as its single characters (else the token itself)."""
        if token not in self._control:
            return [token]
        ids = [self._backend.token_to_id(c) for c in self._backend.id_to_token(token) or ""]
        plain = [i for i in ids if i is not None and i not in self._control]
        if len(plain) < len(ids):
            raise ModelError(f"{self._source}: plain text becomes control token {token}; the tokenizer is unsafe")
        return plain

    # ids -> text

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes ids; control tokens and unknown ids are left out, broken UTF-8 becomes U+FFFD."""
        return self._detokenizer.decode(ids)

    def stream(self) -> StreamDecoder:
        """Opens a decoder of ids that arrive one at a time."""
        return StreamDecoder(self._detokenizer)

    @cached_property
    def break_ids(self) -> frozenset[int]:
        """Tokens that say nothing: white space, line breaks whatever stands before them, marks of formatting alone,
        control tokens."""
        with panics_as(RuntimeError):
            texts = self._backend.decode_batch([[token] for token in range(self.vocab_size)])
        return frozenset(at for at, text in enumerate(texts) if "\n" in text or not text.strip().strip(_MARKS))

    # turns

    def turn(self, system: str | None) -> tuple[list[int], list[int]]:
        """The ids that open a user's turn (BOS where the model wants it, the system prompt, the user marker) and those
        that close it and open the assistant's: `opening + encode(text) + closing` is a whole prompt, as the template
        writes it. (Where `encode` puts a space before every text, as in Llama 2, the text has it here too.)

        A base model without a template gets BOS and the system prompt as plain text. Raises ModelError where the
        template cannot be used."""
        if system not in self._turns:
            self._turns[system] = self._make_turn(system)
        opening, closing = self._turns[system]
        return opening.copy(), closing.copy()

    def _make_turn(self, system: str | None) -> tuple[list[int], list[int]]:
        if self._template is None:
            return self._with_bos(self.encode(f"{system}\n\n") if system else []), []
        hostile = system is not None and any((self._backend.id_to_token(i) or "\0") in system for i in self._control)
        if system is None or not hostile:
            opening, closing = self._template.turn(system)
            return self._with_bos(self.encode_template(self._opening(opening))), self._closing(closing)
        mark = marker(self._template.text)  # the system prompt names control tokens: encode it as the plain text it is
        opening, closing = self._template.turn(mark)
        before, _, after = opening.partition(mark)
        ids = self.encode_template(self._opening(before)) + self.encode(system)
        return self._with_bos(ids + self._closing(self._opening(after))), self._closing(closing)

    def _opening(self, text: str) -> str:
        """Without the space that `encode` puts before the text that follows, where it does."""
        return text.removesuffix(" ") if self._prefixes else text

    def _closing(self, text: str) -> list[int]:
        """The ids of template text as they are behind other text, not at the start of a new one."""
        if not self._prefixes:
            return self.encode_template(text)
        encoded = self._encoded("x" + text, control=True)
        count = sum(start < 1 for start, _ in encoded.offsets)  # tokens of the x
        return encoded.ids[count:] if encoded.offsets[count - 1][1] == 1 else self.encode_template(text)

    def _with_bos(self, ids: list[int]) -> list[int]:
        """Exactly one BOS where the template wrote one or the model wants one."""
        written = 0
        while ids[written : written + 1] == [self.bos_id]:
            written += 1
        bos = [self.bos_id] if self.bos_id is not None and (written or self.adds_bos) else []
        return bos + ids[written:]

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._backend.token_to_id(token)

    def _flag_control(self) -> frozenset[int]:
        """Ids of all control tokens, those included that the file forgot to flag as special."""
        control: set[int] = set()
        for token_id, token in self._backend.get_added_tokens_decoder().items():
            if not token.special and _CONTROL_LOOK.fullmatch(token.content):
                token.special = True
                self._backend.add_special_tokens([token])
            if token.special:
                control.add(token_id)
        return frozenset(control)


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two models' directories make the same tokenizer."""

    def made_of(directory: Path) -> list[Any]:
        config = directory / "config.json"
        model = read_json(config) if config.is_file() else {}
        files = [path.read_bytes() if (path := directory / name).is_file() else None for name in _FILES]
        return [*files, *({**model, **_as_dict(model.get("text_config"))}.get(name) for name in _OF_MODEL)]

    return made_of(one) == made_of(other)


@contextmanager
def panics_as(make: Callable[[str], Exception]) -> Iterator[None]:
    """Makes errors of what Rust calls panics, which are no Exceptions here: what `make` makes of their words, or a
    RuntimeError where no thread could be started."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        said = str(error)
        raise (RuntimeError(said) if "thread pool" in said else make(said)) from None


def open_backend(path: Path) -> Backend:
    """Opens a tokenizer.json that pads and cuts nothing. Raises ValueError, OSError or a bare Exception for one that
    cannot be used, MemoryError where too little is free; what would end the process is looked for first."""
    content = path.read_bytes()
    try:
        mmap.mmap(-1, _SPARE + 16 * len(content)).close()  # the tokenizers library does not outlive a lack of it
    except OSError:
        raise MemoryError("too little is free for a tokenizer") from None
    if content.count(b'"single_word"') > _MOST_ADDED:
        raise ValueError(f"more than {_MOST_ADDED} added tokens")
    if _DISGUISED.search(content):
        raise ValueError("letters written as escapes")
    for found in _CHARSMAP.finditer(content):
        charsmap = base64.b64decode(found[1])
        size = int.from_bytes(charsmap[:4], "little")
        if len(charsmap) < 4 + size or size % 4:
            raise ValueError("precompiled_charsmap is cut off")
    with panics_as(ValueError):
        backend = Backend.from_buffer(content)
    backend.no_truncation()
    backend.no_padding()
    return backend


def _growth(normalizer: dict[str, Any]) -> float:
    """How many characters it may write for one: replacements of replacements fill any memory."""
    if normalizer["type"] == "Sequence":
        return math.prod(map(_growth, normalizer["normalizers"]))
    if normalizer["type"] == "Replace":
        return max(1.0, len(normalizer["content"]) / max(1, len(normalizer["pattern"].get("String", "x"))))
    return max(1.0, len(normalizer["prepend"])) if normalizer["type"] == "Prepend" else 1.0


def _chat_template(directory: Path, config: dict[str, Any], variables: dict[str, str]) -> ChatTemplate | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return ChatTemplate(path.read_text(encoding="utf-8"), str(path), variables)
    path, template = directory / "tokenizer_config.json", config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in map(_as_dict, template)}
        template = named.get("default")
        if template is None:
            raise ModelError(f"{path}: no chat template is named 'default' among {', '.join(map(str, named))}")
    if template is not None and not isinstance(template, str):
        raise ModelError(f"{path}: chat_template must be text or a list of named texts")
    return None if template is None else ChatTemplate(template, str(path), variables)


def _as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _content(value: object) -> str | None:
    """A special token as the config files write it: text, or an object with its content."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _ids(value: object) -> list[int]:
    """One id, several or none."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
