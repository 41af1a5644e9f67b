"""Token ids -> text: each token's bytes, and UTF-8 put together from them.

`tokenizers.DecodeStream` differs (measured, 0.23): it never gives out a last U+FFFD or an unfinished character, and in
vocabularies with byte tokens one broken byte turns the whole run of bytes into U+FFFD, 17 for a family of emojis that
lost its first byte, where one stands for each broken part here, as the Unicode standard recommends.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer as Backend

from minimemo.errors import ModelError

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer:
    """`skipped`: ids that have no text (control tokens); `source` names the tokenizer's file in errors."""

    def __init__(self, backend: Backend, skipped: frozenset[int], source: str) -> None:
        """Raises ModelError where the tokenizer's decoder is of neither supported family."""
        self.byte_level, self.strips = _kind(backend, source)
        self._backend, self._skipped = backend, skipped
        self._alphabet = _byte_alphabet()
        self._pieces: dict[int, bytes] = {}

    def piece(self, token: int) -> bytes:
        """The bytes of one token, possibly only a part of a character; none for skipped and unknown ids."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._spell(token)
        return piece

    def decode(self, ids: Iterable[int]) -> str:
        """The text of all ids."""
        text = b"".join(self.piece(int(i)) for i in ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.strips else text

    def _spell(self, token: int) -> bytes:
        text = self._backend.id_to_token(token) if token >= 0 else None
        if text is None or token in self._skipped:
            return b""
        if self.byte_level:
            spelled = [self._alphabet[c] for c in text if c in self._alphabet]
            return bytes(spelled) if len(spelled) == len(text) else text.encode("utf-8")
        byte = _BYTE_PIECE.fullmatch(text)
        return bytes.fromhex(byte[1]) if byte else text.replace("▁", " ").encode("utf-8")


class StreamDecoder:
    """Ids in, finished text out: the parts together equal `Detokenizer.decode` of all ids, in linear time, and no part
    ends inside a UTF-8 character."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = detokenizer.strips

    def push(self, token: int) -> str:
        """The text that this id completes; often empty."""
        return self._stripped(self._utf8.decode(self._detokenizer.piece(int(token))))

    def flush(self) -> str:
        """What an unfinished character leaves, as U+FFFD; the decoder is then as new."""
        text = self._stripped(self._utf8.decode(b"", final=True))
        self._strip = self._detokenizer.strips
        return text

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, inverted: itself where printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


def _kind(backend: Backend, source: str) -> tuple[bool, bool]:
    """(byte-level?, strips one leading space?) of the two decoders that the supported families have."""
    state: dict[str, Any] = {"type": "none"}
    if backend.decoder is not None:
        state = json.loads(backend.decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return True, False
    usual_steps: dict[str, dict[str, Any]] = {
        "Replace": {"pattern": {"String": "▁"}, "content": " "},
        "Strip": {"content": " ", "start": 1, "stop": 0},
    }
    usual = all(step.items() >= usual_steps.get(step["type"], {}).items() for step in steps)
    if usual and kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        return False, "Strip" in kinds
    raise ModelError(f"{source}: decoder {'+'.join(kinds)} is not of a supported family (byte-level, SentencePiece)")
