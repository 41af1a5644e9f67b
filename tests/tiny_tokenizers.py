"""Tiny hand-made vocabularies in the form of GGUF metadata, one of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minimemo.hub.gguf_tokenizer import from_gguf
from minimemo.models.detokenizer import _byte_alphabet
from minimemo.models.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

CHAT_CONTROLS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<bos>", "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip
WORDS = (
    "the", " the", "he", "Hello", " world", "system", "user", "assistant", "model", " be", "Be", " brief", "123", "12",
    "\n\n", ".\n\n", "  ", "   ", "你", "'s", "don", " don", "é", "\r\n",
)  # fmt: skip


def alphabet() -> dict[int, str]:
    return {byte: char for char, byte in _byte_alphabet().items()}


def byte_level(
    pre: str = "qwen2",
    words: Sequence[str] = WORDS,
    controls: Sequence[str] = CHAT_CONTROLS,
    user_defined: Sequence[str] = ("<tool_call>",),
    padding: int = 0,
    **fields: object,
) -> dict[str, object]:
    """Byte-level BPE: all bytes, then each word built from its left end, byte by byte."""
    spelling = alphabet()
    tokens = [spelling[b] for b in range(256)]
    merges: list[str] = []
    for word in words:
        left, *rest = [spelling[b] for b in word.encode()]
        for right in rest:
            if left + right not in tokens:
                tokens.append(left + right)
                merges.append(f"{left} {right}")
            left += right
    types = [NORMAL] * len(tokens)
    for kind, names in ((CONTROL, controls), (USER_DEFINED, user_defined)):
        tokens += names
        types += [kind] * len(names)
    tokens += [f"[PAD{len(tokens) + i}]" for i in range(padding)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types + [UNUSED] * padding,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index(controls[0]),
        "tokenizer.ggml.eos_token_id": tokens.index(controls[0]),
        **{name.replace("__", "."): value for name, value in fields.items()},
    }


PIECES = (
    "▁t", "he", "▁the", "▁a", "s>", "▁w", "or", "▁wor", "ld", "▁world", "in", "▁in", "ll", "Hello", "He", "llo",
    "▁Hello", "nd", "▁and", ">▁", ">▁a",
)  # fmt: skip


def sentencepiece(
    pieces: Sequence[str] = PIECES,
    characters: str = "▁abcdefghijklmnopqrstuvwxyzHTB.,!?<>/|[]éü你好",
    controls: Sequence[str] = ("<s>", "</s>", "<bos>"),
    user_defined: Sequence[str] = ("\n", "\n\n", "  ", "   ", "<b>"),
    prefix: bool = True,
    **fields: object,
) -> dict[str, object]:
    """SentencePiece BPE with byte fallback: pieces in falling score, then single characters."""
    groups = [
        (UNKNOWN, ["<unk>"], 0.0),
        (CONTROL, list(controls), 0.0),
        (BYTE, [f"<0x{b:02X}>" for b in range(256)], 0.0),
        (USER_DEFINED, list(user_defined), -1000.0),
        (NORMAL, [*pieces, *characters], None),
    ]
    tokens = [token for _, names, _ in groups for token in names]
    types = [kind for kind, names, _ in groups for _ in names]
    scores = [-float(i) if score is None else score for _, names, score in groups for i in range(len(names))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": prefix,
        **{name.replace("__", "."): value for name, value in fields.items()},
    }


def load(metadata: dict[str, object], directory: Path) -> Tokenizer:
    from_gguf(metadata).save(directory)
    return Tokenizer(directory)
