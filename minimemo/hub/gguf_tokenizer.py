"""The tokenizer inside a GGUF file, rebuilt as a `tokenizers.Tokenizer` and saved as tokenizer.json once.

Two kinds exist (`tokenizer.ggml.model`): `gpt2`, byte-level BPE with its merges listed, and `llama`, SentencePiece BPE
with a score a token, from which the merges follow: any two pieces whose concatenation is a piece may merge, best
score first. Token types decide who may come out of plain text: normal pieces by merging, user-defined ones by
exact match, control ones never.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from minimemo.errors import ModelError

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # values of tokenizer.ggml.token_type
_SPACE = "\u2581"  # how SentencePiece writes a space
_LONGEST = 1024  # characters of a piece

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _Pre:
    """How text is cut before merging. `split` None: GPT-2's own regex."""

    split: str | None = None
    digits: bool = False  # every digit alone
    nfc: bool = False
    whole_words: bool = False  # a word that is in the vocabulary is not built by merges
    bos: bool = False  # the default where the file does not say


_PRE = {
    "gpt-2": _Pre(),
    "default": _Pre(),
    "smollm": _Pre(digits=True),
    "qwen2": _Pre(_QWEN2, nfc=True),
    "llama-bpe": _Pre(_LLAMA3, whole_words=True, bos=True),
    "tekken": _Pre(_TEKKEN, whole_words=True, bos=True),
}
_PRE |= {"deepseek-r1-qwen": _PRE["qwen2"], "llama3": _PRE["llama-bpe"], "llama-v3": _PRE["llama-bpe"]}

# Control tokens that end a turn or a text in the families read here; a file names only one of them as its eos.
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<eos>", "</s>")


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """A rebuilt tokenizer and what its file says of the special tokens."""

    tokenizer: Tokenizer
    bos_id: int | None
    eos_id: int | None
    stop_ids: tuple[int, ...]
    adds_bos: bool
    chat_template: str | None

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and generation_config.json, as models.tokenizer reads them."""
        config: dict[str, object] = {"add_bos_token": self.adds_bos}
        for name, token_id in (("bos_token", self.bos_id), ("eos_token", self.eos_id)):
            if token_id is not None:
                config[name] = self.tokenizer.id_to_token(token_id)
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        generation: dict[str, object] = {"eos_token_id": list(self.stop_ids)}
        if self.bos_id is not None:
            generation["bos_token_id"] = self.bos_id
        self.tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
        for name, content in (("tokenizer_config.json", config), ("generation_config.json", generation)):
            (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def from_gguf(metadata: Mapping[str, object], source: str = "the GGUF file") -> GgufTokenizer:
    """Rebuild the tokenizer from GGUF metadata (key -> value, arrays as sequences); `source` names it in errors.

    Raises ModelError where a field is missing or of a kind that is not known here."""
    meta = _Fields(metadata, source)
    kind = meta.get("model", str)
    tokens: list[str] = meta.items("tokens", str)
    types: list[int] = meta.items("token_type", int, [_NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise ModelError(f"{source}: {len(tokens)} tokens but {len(types)} token types; the file is damaged")
    while tokens and types[-1] == _UNUSED:  # padding up to a round number of embedding rows
        tokens.pop()
        types.pop()
    if len(set(tokens)) != len(tokens):
        raise ModelError(f"{source}: the vocabulary holds the same token twice; the file is damaged")
    vocab = {token: i for i, token in enumerate(tokens)}
    if kind == "gpt2":
        tokenizer, adds_bos = _byte_level(meta, vocab)
    elif kind == "llama":
        tokenizer, adds_bos = _sentencepiece(meta, vocab, types), True
    else:
        raise ModelError(f"{source}: tokenizer kind {kind!r} is not supported (known: gpt2, llama)")
    for token_type in (_CONTROL, _USER_DEFINED):
        chosen = [token for token, k in zip(tokens, types, strict=True) if k == token_type]
        tokenizer.add_tokens([AddedToken(t, normalized=False, special=token_type == _CONTROL) for t in chosen])

    bos, eos = meta.token_id("bos_token_id", len(tokens)), meta.token_id("eos_token_id", len(tokens))
    ends = [eos, meta.token_id("eot_token_id", len(tokens)), meta.token_id("eom_token_id", len(tokens))]
    ends += [vocab[t] for t in _ENDS if t in vocab and types[vocab[t]] == _CONTROL]
    return GgufTokenizer(
        tokenizer=tokenizer,
        bos_id=bos,
        eos_id=eos,
        stop_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        adds_bos=bos is not None and meta.get("add_bos_token", bool, adds_bos),
        chat_template=meta.chat_template(),
    )


class _Fields:
    """Typed access to `tokenizer.ggml.*`, with errors that name the file and the field."""

    def __init__(self, metadata: Mapping[str, object], source: str) -> None:
        self.metadata, self.source = metadata, source

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if isinstance(value, str) and kind is not str:
            value = None
        if not isinstance(value, kind):
            raise ModelError(
                f"{self.source}: tokenizer.ggml.{name} is missing or malformed; get another copy of the file"
            )
        return value

    def items(self, name: str, kind: type, default: Sequence[Any] | None = None) -> list[Any]:
        values = list(self.get(name, Sequence, default))
        if not all(isinstance(v, kind) for v in values):
            raise ModelError(f"{self.source}: tokenizer.ggml.{name} holds something other than {kind.__name__}")
        return values

    def token_id(self, name: str, size: int) -> int | None:
        value = self.metadata.get(f"tokenizer.ggml.{name}")
        return value if isinstance(value, int) and 0 <= value < size else None

    def chat_template(self) -> str | None:
        value = self.metadata.get("tokenizer.chat_template")
        return value if isinstance(value, str) else None


def _byte_level(meta: _Fields, vocab: dict[str, int]) -> tuple[Tokenizer, bool]:
    name = meta.get("pre", str)
    pre = _PRE.get(name)
    if pre is None:
        raise ModelError(
            f"{meta.source}: pre-tokenizer {name!r} is not supported (known: {', '.join(sorted(_PRE))}); "
            "use the model's Hugging Face directory, whose tokenizer.json says it in full"
        )
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in meta.items("merges", str))]
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.whole_words))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"{meta.source}: tokenizer.ggml.merges do not fit the vocabulary: {error}") from error
    steps: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Digits(individual_digits=True)] if pre.digits else []
    if pre.split is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.split is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre.bos


def _sentencepiece(meta: _Fields, vocab: dict[str, int], types: list[int]) -> Tokenizer:
    scores = meta.items("scores", float)
    if len(scores) < len(vocab):
        raise ModelError(f"{meta.source}: {len(vocab)} tokens but {len(scores)} scores; the file is damaged")
    pieces = {token: i for token, i in vocab.items() if types[i] == _NORMAL}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(pieces, scores),
            unk_token=_unknown(meta, vocab),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = meta.get("add_space_prefix", bool, True)
    replace = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace]) if prefix else replace
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_words(pieces)), behavior="isolated")
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _unknown(meta: _Fields, vocab: dict[str, int]) -> str | None:
    unknown = meta.token_id("unknown_token_id", len(vocab))
    return None if unknown is None else next(token for token, i in vocab.items() if i == unknown)


def _merges(pieces: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score of the result first, then in vocabulary order."""
    merges: list[tuple[str, str]] = []
    for token in sorted(pieces, key=lambda t: (-scores[pieces[t]], pieces[t])):
        if len(token) > _LONGEST:  # no tokenizer has such, and looking through its cuts takes time with their square
            raise ModelError(f"tokenizer: a piece of {len(token)} characters; the file is damaged")
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = [(left, right) for left, right in cuts if left in pieces and right in pieces]
        merges += sorted(pairs, key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))
    return merges


def _words(pieces: dict[str, int]) -> str:
    """A regex that cuts text before its spaces wherever no piece could reach across, so that equal words are merged
    once and the ids stay those of the whole text. `glue`: characters that some piece has before a space."""
    inner = [token for token in pieces if token.find(_SPACE, 1) > 0]
    glue = {a for token in inner for a, b in pairwise(token) if b == _SPACE and a != _SPACE}
    kept = "".join(f"\\x{{{ord(c):x}}}" for c in sorted(glue))
    more = f"|[{kept}]{_SPACE}*" if glue else ""
    return f"{_SPACE}*(?>[^{_SPACE}{kept}]+{more})*"
