"""Tokenizers rebuilt from GGUF metadata: pre-tokenizers, merges from scores, token types, refusals, real models."""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from minimemo.errors import InputError, ModelError
from minimemo.hub.gguf_tokenizer import from_gguf
from tests.tiny_tokenizers import NORMAL, PIECES, byte_level, load, sentencepiece

DOCS = Path(__file__).parents[3] / "shared" / "data" / "docs"


def pieces(metadata: dict[str, object], text: str) -> list[str]:
    tokenizer = from_gguf(metadata).tokenizer
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text, add_special_tokens=False).tokens


# --- byte-level -----------------------------------------------------------------------------------------------------

TEXT = "I'll  say 1234 AbC'S\n\n x!\r\n"
SPLITS = {
    "gpt-2": ["I", "'ll", " ", " say", " 1234", " AbC", "'", "S", "\n\n", " x", "!", "\r\n"],
    "smollm": ["I", "'ll", " ", " say", " ", "1", "2", "3", "4", " AbC", "'", "S", "\n\n", " x", "!", "\r\n"],
    "qwen2": ["I", "'ll", " ", " say", " ", "1", "2", "3", "4", " AbC", "'S", "\n\n", " x", "!\r\n"],
    "llama-bpe": ["I", "'ll", " ", " say", " ", "123", "4", " AbC", "'S", "\n\n", " x", "!\r\n"],
    "tekken": ["I", "'ll", " ", " say", " ", "1", "2", "3", "4", " Ab", "C", "'S", "\n\n", " x", "!\r\n"],
}


@pytest.mark.parametrize("pre", SPLITS)
def test_pre_tokenizers_cut_as_their_models_do(pre: str) -> None:
    cutter = from_gguf(byte_level(pre)).tokenizer.pre_tokenizer
    assert [TEXT[a:b] for _, (a, b) in cutter.pre_tokenize_str(TEXT)] == SPLITS[pre]


def test_aliases_mean_the_same_pre_tokenizer() -> None:
    for name, alias in (("qwen2", "deepseek-r1-qwen"), ("llama-bpe", "llama-v3"), ("gpt-2", "default")):
        one, other = (from_gguf(byte_level(n)).tokenizer.to_str() for n in (name, alias))
        assert one == other


def test_unknown_pre_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"model\.gguf: pre-tokenizer 'chameleon' is not supported \(known: .*qwen2"):
        from_gguf(byte_level("chameleon"), "model.gguf")


def test_only_qwen2_composes_characters() -> None:
    assert pieces(byte_level("qwen2"), "e\u0301") == ["Ã©"]
    assert pieces(byte_level("smollm"), "e\u0301") == ["e", "Ì", "ģ"]


def test_whole_words_need_no_merges_where_the_model_says_so() -> None:
    """Llama 3 looks a word up first: " the" is a token that its merges do not reach ("the" joins before the space)."""
    assert pieces(byte_level("llama-bpe"), "Hello the") == ["Hello", "Ġthe"]
    assert pieces(byte_level("gpt-2"), "Hello the") == ["Hello", "Ġ", "the"]


def test_control_tokens_are_not_read_from_text_and_user_defined_ones_are() -> None:
    tokenizer = from_gguf(byte_level()).tokenizer
    assert "<|im_end|>" in tokenizer.encode("a<|im_end|>").tokens
    tokenizer.encode_special_tokens = True
    assert tokenizer.encode("<|im_end|><tool_call>").tokens == [*"<|im_end|>", "<tool_call>"]


def test_padding_rows_are_no_tokens() -> None:
    plain, padded = from_gguf(byte_level()), from_gguf(byte_level(padding=7))
    assert padded.tokenizer.get_vocab_size() == plain.tokenizer.get_vocab_size()
    assert padded.tokenizer.to_str() == plain.tokenizer.to_str()


# --- SentencePiece --------------------------------------------------------------------------------------------------


def by_the_book(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece BPE as it is defined: join the adjacent pair whose piece scores best, the leftmost first."""
    symbols = list(text)
    while True:
        pairs = [(-scores[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in scores]
        if not pairs:
            return symbols
        at = min(pairs)[1]
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]


@pytest.mark.parametrize("alphabet", ["▁ab", "▁ab>", "ab", "▁你好a"])
def test_rebuilt_merges_and_word_cuts_give_the_ids_of_the_definition(alphabet: str) -> None:
    """Random vocabularies, with pieces that reach across spaces: merges come from scores, and cutting the text at
    spaces for speed must not be seen in the ids."""
    rng = random.Random(alphabet)
    for _ in range(60):
        found: list[str] = list(alphabet)
        for _ in range(rng.randint(1, 14)):
            joined = rng.choice(found) + rng.choice(found)
            if len(joined) <= 6 and joined not in found:
                found.append(joined)
        joined_pieces = found[len(alphabet) :]
        rng.shuffle(joined_pieces)
        metadata = sentencepiece(joined_pieces, alphabet, user_defined=(), prefix=False)
        tokens, scores, types = (metadata[f"tokenizer.ggml.{n}"] for n in ("tokens", "scores", "token_type"))
        assert isinstance(tokens, list) and isinstance(scores, list) and isinstance(types, list)
        known = {t: s for t, s, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
        tokenizer = from_gguf(metadata).tokenizer
        for _ in range(20):
            text = "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 40)))
            expected = by_the_book(text, known)
            assert tokenizer.encode(text.replace("▁", " ")).tokens == expected, (joined_pieces, text)


def test_text_is_spelled_in_pieces_bytes_and_user_defined_tokens() -> None:
    assert pieces(sentencepiece(), "Hello the world") == ["▁Hello", "▁the", "▁world"]
    assert pieces(sentencepiece(prefix=False), "Hello the") == ["Hello", "▁the"]
    assert pieces(sentencepiece(prefix=False), "a💡") == ["a", "<0xF0>", "<0x9F>", "<0x92>", "<0xA1>"]
    assert pieces(sentencepiece(prefix=False), "a\n\n\n    b<b>") == ["a", "\n\n", "\n", "   ", "▁", "b", "<b>"]


def test_merges_never_build_a_control_or_byte_token() -> None:
    """ "<" and "s>" are pieces; "<s>" is one too, but a control token."""
    assert pieces(sentencepiece(prefix=False), "<s>") == ["<", "s>"]
    assert pieces(sentencepiece(["<0", "x0", "<0x0", "A>"], "▁<>0xA", prefix=False), "<0x0A>") == ["<0x0", "A>"]


# --- what is said of special tokens ---------------------------------------------------------------------------------


def test_special_tokens_are_told() -> None:
    found = from_gguf(byte_level(tokenizer__chat_template="{{ 1 }}", tokenizer__ggml__eot_token_id=260))
    tokens = [found.tokenizer.id_to_token(i) for i in found.stop_ids]
    assert tokens[0] == "<|endoftext|>" and {"<|im_end|>", "<|eot_id|>", "<end_of_turn>"} < set(tokens)
    assert found.stop_ids[1] == 260 and found.chat_template == "{{ 1 }}"
    assert found.tokenizer.id_to_token(found.bos_id or 0) == "<|endoftext|>"


@pytest.mark.parametrize(
    ("metadata", "adds"),
    [
        (byte_level("qwen2"), False),
        (byte_level("llama-bpe"), True),
        (byte_level("llama-bpe", tokenizer__ggml__add_bos_token=False), False),
        (byte_level("qwen2", tokenizer__ggml__add_bos_token=True), True),
        (sentencepiece(), True),
        (sentencepiece(tokenizer__ggml__add_bos_token=False), False),
        (sentencepiece(tokenizer__ggml__bos_token_id=None), False),
    ],
)
def test_bos_is_added_as_the_file_says_or_its_kind_does(metadata: dict[str, object], adds: bool) -> None:
    assert from_gguf(metadata).adds_bos is adds


@pytest.mark.parametrize("metadata", [byte_level(), byte_level("smollm"), sentencepiece(), sentencepiece(prefix=False)])
def test_saved_and_loaded_it_is_the_same(metadata: dict[str, object], tmp_path: Path) -> None:
    built = from_gguf(metadata)
    loaded = load(metadata, tmp_path)
    assert (loaded.bos_id, loaded.adds_bos, loaded.stop_ids) == (built.bos_id, built.adds_bos, set(built.stop_ids))
    built.tokenizer.encode_special_tokens = True
    for text in ("Hello the world 12345 é你好\n\n  <b><s> don't<|im_end|>", "", "  > a\r\n"):
        assert loaded.encode(text) == built.tokenizer.encode(text).ids


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "t5"}, "tokenizer kind 't5' is not supported"),
        ({"model": None}, "tokenizer.ggml.model is missing"),
        ({"tokens": "abc"}, "tokenizer.ggml.tokens is missing or malformed"),
        ({"tokens": [1, 2]}, "holds something other than str"),
        ({"token_type": ["x"] * 4}, "holds something other than int"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "the same token twice"),
        ({"token_type": [1]}, "1 token types"),
        ({"merges": ["zz qq"]}, "merges do not fit"),
        ({"merges": ["whole"]}, "merges do not fit"),
        ({"pre": None}, "tokenizer.ggml.pre is missing"),
    ],
)
def test_damaged_metadata_is_refused(change: dict[str, object], message: str) -> None:
    metadata = byte_level() | {f"tokenizer.ggml.{name}": value for name, value in change.items()}
    with pytest.raises(ModelError, match=message) as raised:
        from_gguf({k: v for k, v in metadata.items() if v is not None}, "model.gguf")
    assert str(raised.value).startswith("model.gguf: ")


def test_an_endless_piece_is_refused() -> None:
    with pytest.raises(ModelError, match="a piece of 20000 characters"):
        from_gguf(sentencepiece([*PIECES, "a" * 20_000]))


def test_scores_are_needed_for_every_piece() -> None:
    with pytest.raises(ModelError, match="scores"):
        from_gguf(sentencepiece() | {"tokenizer.ggml.scores": [0.0]})
    with pytest.raises(ModelError, match="holds something other than float"):
        from_gguf(sentencepiece() | {"tokenizer.ggml.scores": ["high", "low"]})


# --- real models ----------------------------------------------------------------------------------------------------

# SHA-256 of the ids (int32, little-endian) that llama.cpp gives for the documents of up to 120,000 characters, in the
# order of their names: its server's /tokenize with add_special and parse_special false (xllamacpp 2026.10.11549).
REAL = {
    "smollm2-135m": "91d93f722099efcb6f90ced0e740b443c8359da12a580423e3318b34adaeaf46",
    "qwen2.5-coder-0.5b": "d141b99ffa229e4aa71de247f58f7b9959b8e3a1fb88c92fba1ea9fad2a14bb1",
    "gemma-3-270m": "3d3b209ca88bf787140925f1105dd91253e362b2fdb171b335c1c068a7ac2357",
}


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_ids_of_real_documents_equal_llama_cpp(name: str, tmp_path: Path) -> None:
    from minimemo.hub.catalog import resolve
    from minimemo.hub.gguf_file import read

    if not DOCS.is_dir():
        pytest.skip("needs the documents of ../shared/data")
    try:
        path = resolve(name)
    except InputError as error:
        pytest.skip(str(error))
    tokenizer = load(read(path).metadata, tmp_path)
    texts = [file.read_bytes().decode("utf-8") for file in sorted(DOCS.glob("*.txt"))]
    digest = hashlib.sha256()
    for text in (text for text in texts if len(text) <= 120_000):
        ids, offsets = tokenizer.encode_with_offsets(text)
        digest.update(ids.astype("<i4").tobytes())
        assert offsets[0, 0] == 0 and offsets[-1, 1] == len(text) and np.all(np.diff(offsets, axis=0) >= 0)
        assert np.array_equal(offsets[1:, 0], np.minimum(offsets[1:, 0], offsets[:-1, 1]))
        assert tokenizer.decode(ids) == text
    assert digest.hexdigest() == REAL[name]


def test_token_types_are_those_of_the_format() -> None:
    """The numbers that GGUF files hold; a wrong one would turn control tokens into text."""
    from gguf import TokenType

    from minimemo.hub import gguf_tokenizer as ours

    assert (ours._NORMAL, ours._CONTROL) == (TokenType.NORMAL, TokenType.CONTROL)
    assert (ours._USER_DEFINED, ours._UNUSED) == (TokenType.USER_DEFINED, TokenType.UNUSED)
