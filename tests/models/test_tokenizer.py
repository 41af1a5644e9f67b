"""Tokenizer: control tokens and user text, offsets, the detokenizer, what a directory's files say, turns."""

from __future__ import annotations

import itertools
import json
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, processors
from tokenizers import Tokenizer as Backend

from minimemo.errors import InputError, ModelError
from minimemo.hub.gguf_tokenizer import from_gguf
from minimemo.models.tokenizer import Tokenizer, panics_as, same_tokenizer
from tests.models.test_chat import CHATML_DEFAULT, GEMMA2, GEMMA3, LLAMA3, MISTRAL, QWEN3
from tests.tiny_tokenizers import byte_level, load, sentencepiece

KINDS: dict[str, Callable[[], dict[str, object]]] = {
    "qwen2": byte_level,
    "smollm": lambda: byte_level("smollm"),
    "llama-bpe": lambda: byte_level("llama-bpe"),
    "gemma": lambda: sentencepiece(prefix=False),
    "mistral": lambda: sentencepiece(user_defined=()),
}
SAMPLES = (
    "",
    " ",
    "Hello the world. 12345\r\nline\r\n\r\n",
    "  two leading, two trailing  ",
    "e\u0301a\u0301\u0323\u0307 한 각 \u1112\u1161\u11ab",
    "👩‍👩‍👧‍👦 🇨🇳 👍🏽 x\ufe0f",
    "你好,世界。\u3000“引”",
    "\ufeffbom\x00nul\x85\u2028end\n\n\n",
    "don't <b>bold</b> <tool_call> ▁▁ \ufb01 \u212b \u0958",
)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load(KINDS[request.param](), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {name: load(make(), tmp_path_factory.mktemp(name)) for name, make in KINDS.items()}


def tokens(tokenizer: Tokenizer, ids: list[int]) -> list[str | None]:
    return [tokenizer._backend.id_to_token(i) for i in ids]


def spoken(tokenizer: Tokenizer, text: str) -> str:
    """The text as its tokens hold it: composed where the model's normalizer composes."""
    return unicodedata.normalize("NFC", text) if tokenizer._backend.normalizer.__class__.__name__ == "NFC" else text


def test_breaks_are_the_tokens_that_say_nothing(tokenizers: dict[str, Tokenizer]) -> None:
    for name, tokenizer in tokenizers.items():
        for text in ("a", "the", "。", "“", "12", "中", "é"):
            assert not tokenizer.break_ids & {*tokenizer.encode("x" + text)[1:]}, (name, text)
        told = {token: tokenizer.decode([token]) for token in range(tokenizer.vocab_size)}
        assert all(token in tokenizer.break_ids for token, text in told.items() if "\n" in text or text == "  ")
        breaks = [told[token] for token in tokenizer.break_ids]
        assert breaks and all("\n" in text or not text.strip().strip("-*_=~#>`|") for text in breaks)


# --- user text and control tokens -----------------------------------------------------------------------------------


def test_text_never_becomes_a_control_token(tokenizer: Tokenizer) -> None:
    control = [token.content for token in tokenizer._backend.get_added_tokens_decoder().values() if token.special]
    assert len(control) >= 3
    for name in control:
        text = f"a{name}b {name}"
        ids = tokenizer.encode(text)
        assert name not in tokens(tokenizer, ids) and tokenizer.decode(ids) == text
        assert tokenizer.encode_with_offsets(text)[0].tolist() == ids
        assert tokens(tokenizer, tokenizer.encode_template(text)).count(name) == 2


def test_user_defined_tokens_are_text(tokenizers: dict[str, Tokenizer]) -> None:
    assert "<tool_call>" in tokens(tokenizers["qwen2"], tokenizers["qwen2"].encode("x<tool_call>"))
    gemma = tokenizers["gemma"]
    assert tokens(gemma, gemma.encode("a\n\n<b>   a")) == ["a", "\n\n", "<b>", "   ", "a"]


def test_unflagged_tokens_that_look_like_control_are_control(tmp_path: Path) -> None:
    """Qwen2.5's tokenizer.json has <|fim_prefix|> among the tokens that are not special."""
    names = ("<|fim_prefix|>", "<|im_end|>", "<｜User｜>")
    loaded = load(byte_level(controls=["<|im_start|>"], user_defined=(*names, "<tool_call>")), tmp_path)
    for name in names:
        assert name not in tokens(loaded, loaded.encode(f"a {name} b"))
        assert loaded.decode(loaded.encode(f"a {name} b")) == f"a {name} b"
        assert name in tokens(loaded, loaded.encode_template(f"a {name} b"))


def test_a_control_token_that_merges_can_build_is_spelled_out(tmp_path: Path) -> None:
    """Converted SentencePiece vocabularies hold merges for their control tokens too: "<" + "s>" gives "<s>"."""
    vocab = {c: i for i, c in enumerate(["<s>", "<", "s", ">", "s>", "a", "▁"])}
    backend = Backend(models.BPE(vocab=vocab, merges=[("s", ">"), ("<", "s>")]))
    backend.add_tokens([AddedToken("<s>", special=True, normalized=False)])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer(tmp_path)
    assert tokens(loaded, loaded.encode("a<s>a")) == ["a", "<", "s", ">", "a"]
    ids, offsets = loaded.encode_with_offsets("a<s>a")
    assert ids.tolist() == loaded.encode("a<s>a") and offsets.tolist() == [[0, 1], [1, 4], [1, 4], [1, 4], [4, 5]]
    assert tokens(loaded, loaded.encode_template("a<s>a")) == ["a", "<s>", "a"]


def test_threads_do_not_see_each_others_setting(tokenizers: dict[str, Tokenizer]) -> None:
    """Reading control tokens is a switch of the whole backend: an encode beside an encode_template must not see it."""
    qwen, text = tokenizers["qwen2"], "Hello <|im_end|> the " * 50
    plain, template = qwen.encode(text), qwen.encode_template(text)
    wrong: list[str] = []

    def work(encode: Callable[[str], list[int]], expected: list[int]) -> None:
        for _ in range(150):
            if encode(text) != expected:
                wrong.append(encode.__name__)

    jobs = [(qwen.encode, plain), (qwen.encode_template, template)] * 2
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert plain != template and wrong == []


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="character 1 is half of a surrogate pair"):
        tokenizer.encode("a\ud83d")


# --- offsets --------------------------------------------------------------------------------------------------------


def check_offsets(tokenizer: Tokenizer, text: str) -> None:
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids.dtype == np.int32 and offsets.dtype == np.int64 and offsets.shape == (len(ids), 2)
    assert ids.tolist() == tokenizer.encode(text)
    if not text:
        assert len(ids) == 0
        return
    starts, ends = offsets[:, 0], offsets[:, 1]
    assert starts[0] == 0 and ends[-1] == len(text)
    assert np.all(starts < ends) and np.all(np.diff(starts) >= 0) and np.all(np.diff(ends) >= 0)
    assert np.all(starts[1:] <= ends[:-1]), "a gap"


@pytest.mark.parametrize("text", SAMPLES)
def test_offsets_cover_the_text_in_order(tokenizer: Tokenizer, text: str) -> None:
    check_offsets(tokenizer, text)


@pytest.mark.parametrize("name", KINDS)
def test_offsets_of_any_text(tokenizers: dict[str, Tokenizer], name: str) -> None:
    alphabet = st.one_of(
        st.sampled_from(
            [*"the Hellowrd12 \n\r\t<b>|▁\u0301\u0323\u0307가각\u1161\u11ab你好👩\u200d", "<|im_end|>", "<s>"]
        ),
        st.characters(exclude_categories=["Cs"]),
    )

    @settings(max_examples=70, deadline=None)
    @given(st.lists(alphabet, max_size=30).map("".join))
    def check(text: str) -> None:
        check_offsets(tokenizers[name], text)

    check()


@pytest.mark.parametrize("text", [s for s in SAMPLES if s.strip()])
def test_a_span_is_where_its_token_stands(tokenizers: dict[str, Tokenizer], text: str) -> None:
    """Wherever one span ends as the next starts, the ids before say exactly the text before."""
    for name in ("qwen2", "smollm", "llama-bpe", "mistral"):
        tokenizer = tokenizers[name]
        ids, offsets = tokenizer.encode_with_offsets(text)
        cuts = [i for i in range(1, len(ids)) if offsets[i - 1, 1] == offsets[i, 0]]
        for cut, at in ((cut, offsets[cut, 0]) for cut in cuts):
            before, after = spoken(tokenizer, text[:at]), spoken(tokenizer, text[at:])
            if before + after == spoken(tokenizer, text):  # else a normalizer moved marks across the cut
                assert tokenizer.decode(ids[:cut]) == before.replace("▁", " " if name == "mistral" else "▁")


def test_trimmed_offsets_of_a_tokenizer_file_are_undone(tmp_path: Path) -> None:
    """GPT-2's and Llama 3's files have a post-processor that takes the space out of a word's span."""
    built = from_gguf(byte_level("llama-bpe")).tokenizer
    built.post_processor = processors.ByteLevel(trim_offsets=True)
    built.enable_truncation(3)
    built.enable_padding(length=40)
    built.save(str(tmp_path / "tokenizer.json"))
    ids, offsets = Tokenizer(tmp_path).encode_with_offsets("Hello the 123456")
    assert offsets.tolist() == [[0, 5], [5, 9], [9, 10], [10, 13], [13, 14], [14, 15], [15, 16]]
    assert len(ids) == 7, "a file's truncation and padding are not for documents"


# --- ids -> text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", SAMPLES)
def test_decode_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    if tokenizer._backend.token_to_id("<0x0A>") is not None:
        text = text.replace("▁", " ")  # SentencePiece has one code for both
    assert tokenizer.decode(tokenizer.encode(text)) == spoken(tokenizer, text)


@pytest.mark.parametrize("name", KINDS)
def test_a_stream_of_any_ids_says_what_decode_says(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    multibyte = [i for c in "é你好👩" for i in tokenizer.encode(c)]
    some_id = st.one_of(st.integers(0, tokenizer.vocab_size + 3), st.sampled_from(multibyte))

    @settings(max_examples=120, deadline=None)
    @given(st.lists(some_id, max_size=20))
    def check(ids: list[int]) -> None:
        stream = tokenizer.stream()
        assert "".join([stream.push(i) for i in ids] + [stream.flush()]) == tokenizer.decode(ids)
        assert stream.push(multibyte[0]) + stream.flush() == tokenizer.decode(multibyte[:1]), "as new after a flush"

    check()


def test_a_stream_emits_whole_characters_as_soon_as_they_are_there(tokenizers: dict[str, Tokenizer]) -> None:
    qwen = tokenizers["qwen2"]
    stream, ids = qwen.stream(), qwen.encode("好👩!")
    parts = [stream.push(i) for i in ids] + [stream.flush()]
    assert parts == ["", "", "好", "", "", "", "👩", "!", ""]


def test_decode_equals_the_library_on_valid_text(tokenizer: Tokenizer) -> None:
    for text in SAMPLES:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer._backend.decode(ids, skip_special_tokens=True)


def test_prefix_space_is_stripped_once(tokenizers: dict[str, Tokenizer]) -> None:
    mistral, gemma = tokenizers["mistral"], tokenizers["gemma"]
    assert mistral.decode(mistral.encode("  the the")) == "  the the"
    for tokenizer, expected in ((mistral, "the the"), (gemma, " the the")):
        the = tokenizer.encode(" the")[-1]
        stream = tokenizer.stream()
        assert tokenizer.decode([the, the]) == stream.push(the) + stream.push(the) == expected


def test_control_and_unknown_ids_have_no_text(tokenizers: dict[str, Tokenizer]) -> None:
    qwen = tokenizers["qwen2"]
    end = qwen.encode_template("<|im_end|>")
    assert len(end) == 1 and qwen.decode([*end, *qwen.encode("Hello"), *end, qwen.vocab_size, 10**6]) == "Hello"


# --- what the directory's files say ---------------------------------------------------------------------------------


def directory(path: Path, metadata: dict[str, object] | None = None, **files: object) -> Path:
    """A model directory with a tiny tokenizer.json and the given JSON files."""
    from_gguf(metadata or byte_level()).tokenizer.save(str(path / "tokenizer.json"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_special_ids_come_from_whichever_file_has_them(tmp_path: Path) -> None:
    for n, (files, bos, stops) in enumerate(
        (
            ({}, None, set()),
            ({"config": {"bos_token_id": 256, "eos_token_id": 257}}, 256, {257}),
            ({"config": {"text_config": {"eos_token_id": [257, 258]}}}, None, {257, 258}),
            ({"config": {"eos_token_id": 1}, "generation_config": {"eos_token_id": [257, 256]}}, None, {256, 257}),
            ({"tokenizer_config": {"bos_token": "A", "eos_token": {"content": "B"}}}, 65 - 33, {66 - 33}),
            ({"special_tokens_map": {"bos_token": {"content": "A"}, "eos_token": "B"}}, 65 - 33, {66 - 33}),
            ({"tokenizer_config": {"bos_token": None}, "config": {"bos_token_id": 3}}, None, set()),
        )
    ):
        folder = tmp_path / str(n)
        folder.mkdir()
        vocabulary = sorted(byte_level()["tokenizer.ggml.tokens"][:256])  # type: ignore[index]
        metadata = byte_level(words=())
        metadata["tokenizer.ggml.tokens"] = vocabulary + metadata["tokenizer.ggml.tokens"][256:]  # type: ignore[index]
        loaded = Tokenizer(directory(folder, metadata, **files))
        assert (loaded.bos_id, loaded.stop_ids) == (bos, stops), files
        assert loaded.adds_bos is False


def test_models_share_a_tokenizer_where_all_that_makes_it_is_the_same(tmp_path: Path) -> None:
    files = {"config": {"eos_token_id": 257, "hidden_size": 8}, "tokenizer_config": {"bos_token": "A"}}
    (one := tmp_path / "one").mkdir()
    directory(one, byte_level(), **files)
    for number, (other, same) in enumerate((
        ({**files, "config": {"eos_token_id": 257, "hidden_size": 16}}, True),
        ({**files, "config": {"eos_token_id": 258, "hidden_size": 8}}, False),
        ({**files, "config": {"text_config": {"eos_token_id": 257}}}, True),
        ({**files, "tokenizer_config": {"bos_token": "B"}}, False),
        ({**files, "generation_config": {"eos_token_id": 257}}, False),
    )):  # fmt: skip
        (folder := tmp_path / str(number)).mkdir()
        assert same_tokenizer(one, directory(folder, byte_level(), **other)) is same
    assert not same_tokenizer(one, directory(tmp_path, byte_level(words=()), **files))


def test_bos_is_added_as_the_config_says_or_else_the_post_processor(tmp_path: Path) -> None:
    built = from_gguf(byte_level()).tokenizer
    bos = built.token_to_id("<bos>")
    built.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    built.save(str(tmp_path / "tokenizer.json"))
    for config, adds in (({}, True), ({"add_bos_token": False}, False), ({"add_bos_token": None}, True)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", **config}))
        loaded = Tokenizer(tmp_path)
        assert (loaded.bos_id, loaded.adds_bos) == (bos, adds)
        assert bos not in loaded.encode("Hello")


def test_size(tmp_path: Path) -> None:
    loaded = Tokenizer(directory(tmp_path))
    assert loaded.vocab_size == len(byte_level()["tokenizer.ggml.tokens"])  # type: ignore[arg-type]


def test_a_lack_of_memory_or_threads_is_told_before_the_library_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(byte_level(), tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(MemoryError, match="too little is free"):
        Tokenizer(tmp_path)
    panic = type("PanicException", (BaseException,), {})  # as Rust's
    with pytest.raises(RuntimeError, match="no thread"), panics_as(ModelError):
        raise panic("The global thread pool has not been initialized: no thread")
    with pytest.raises(ModelError, match="odd"), panics_as(ModelError):
        raise panic("odd")
    with pytest.raises(KeyboardInterrupt), panics_as(ModelError):
        raise KeyboardInterrupt


def test_damaged_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: missing"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer(tmp_path)
    for content, message in (("{", "not valid JSON"), ("[]", "holds no JSON object")):
        with pytest.raises(ModelError, match=rf"generation_config\.json: {message}"):
            Tokenizer(directory(tmp_path, generation_config=content))
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(ModelError, match=r"no chat template is named 'default' among rag"):
        Tokenizer(directory(tmp_path, tokenizer_config={"chat_template": [{"name": "rag", "template": "x"}]}))
    with pytest.raises(ModelError, match="chat_template must be text"):
        Tokenizer(directory(tmp_path, tokenizer_config={"chat_template": 3}))


def test_a_decoder_of_another_family_is_refused(tmp_path: Path) -> None:
    for decoder, name in ((decoders.WordPiece(), "WordPiece"), (None, "none"), (decoders.Replace("_", " "), "Replace")):
        backend = Backend(models.BPE(vocab={"a": 0}, merges=[]))
        if decoder is not None:
            backend.decoder = decoder
        backend.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(ModelError, match=f"decoder {name} is not of a supported family"):
            Tokenizer(tmp_path)


def test_chat_template_files(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": "1{{ messages[0].content }}"}]
    loaded = Tokenizer(directory(tmp_path, tokenizer_config={"chat_template": named}))
    assert loaded.has_chat_template and tokens(loaded, loaded.turn(None)[0]) == ["1"]
    (tmp_path / "chat_template.jinja").write_text("2{{ messages[0].content }}")
    loaded = Tokenizer(tmp_path)
    assert tokens(loaded, loaded.turn(None)[0]) == ["2"]


# --- turns ----------------------------------------------------------------------------------------------------------

FAMILIES = {  # template, vocabulary, bos token
    "chatml": (CHATML_DEFAULT, "qwen2", None),
    "smollm": (CHATML_DEFAULT, "smollm", "<|im_start|>"),
    "qwen3": (QWEN3, "qwen2", None),
    "llama3": (LLAMA3, "llama-bpe", "<|begin_of_text|>"),
    "gemma2": (GEMMA2, "gemma", "<bos>"),
    "gemma3": (GEMMA3, "gemma", "<bos>"),
    "mistral": (MISTRAL, "mistral", "<s>"),
}


def family(name: str, path: Path, **config: object) -> Tokenizer:
    template, kind, bos = FAMILIES[name]
    metadata = KINDS[kind]()
    if kind == "gemma":
        metadata = sentencepiece(controls=("<s>", "</s>", "<bos>", "<start_of_turn>", "<end_of_turn>"), prefix=False)
    told = {"bos_token": bos, "eos_token": None, "chat_template": template, **config}
    return Tokenizer(directory(path, metadata, tokenizer_config=told))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_opening_text_closing_is_the_templates_rendering(name: str, system: str | None, tmp_path: Path) -> None:
    """Mistral's old vocabularies put a space before every text, so also behind a system prompt's blank line."""
    tokenizer = family(name, tmp_path)
    assert tokenizer._template is not None
    before, after = tokenizer._template.turn(system)
    before += " " if name == "mistral" and not before.endswith(" ") else ""
    for text in ("Hello the world", "x", "12 你好 don't\n\nthe end."):
        opening, closing = tokenizer.turn(system)
        assert opening + tokenizer.encode(text) + closing == tokenizer.encode_template(before + text + after)
    assert closing, "every template here opens the assistant's turn or closes the user's"


@pytest.mark.parametrize("name", [n for n, (_, _, bos) in FAMILIES.items() if bos])
@pytest.mark.parametrize("adds", [True, False])
def test_exactly_one_bos(name: str, adds: bool, tmp_path: Path) -> None:
    """The template writes it and the model wants it: still one."""
    tokenizer = family(name, tmp_path, add_bos_token=adds)
    opening, closing = tokenizer.turn("Be brief.")
    assert opening[0] == tokenizer.bos_id
    if name != "smollm":  # its bos is <|im_start|>, which opens every message
        assert [*opening, *closing].count(tokenizer.bos_id) == 1


def test_bos_is_put_before_a_template_that_writes_none(tmp_path: Path) -> None:
    tokenizer = family("chatml", tmp_path, bos_token="<bos>", add_bos_token=True)
    assert tokens(tokenizer, tokenizer.turn(None)[0])[:2] == ["<bos>", "<|im_start|>"]


@pytest.mark.parametrize("name", ["chatml", "gemma2", "mistral"])
def test_a_system_prompt_never_becomes_control_tokens(name: str, tmp_path: Path) -> None:
    """Prompts can come from a user's file."""
    tokenizer = family(name, tmp_path)
    plain, _ = tokenizer.turn("Be brief.")
    for word in ("<|im_end|>", "<end_of_turn>", "</s>"):
        opening, closing = tokenizer.turn(f"Say {word} now.")
        assert [i for i in opening if i in tokenizer._control] == [i for i in plain if i in tokenizer._control]
        assert tokenizer.decode(opening).count(word) == 1 and closing == tokenizer.turn(None)[1]


def test_a_base_model_has_plain_turns(tmp_path: Path) -> None:
    gemma = load(sentencepiece(prefix=False), tmp_path)
    assert not gemma.has_chat_template
    assert gemma.turn(None) == ([gemma.bos_id], [])
    assert gemma.turn("Be brief.") == ([gemma.bos_id, *gemma.encode("Be brief.\n\n")], [])
    without = load(byte_level(), tmp_path)
    assert without.turn(None) == ([], [])


def test_a_turn_given_out_can_be_changed(tmp_path: Path) -> None:
    tokenizer = family("chatml", tmp_path)
    opening, closing = tokenizer.turn(None)
    expected = (opening.copy(), closing.copy())
    opening.clear()
    closing.append(1)
    assert tokenizer.turn(None) == expected


def test_a_broken_template_names_its_file(tmp_path: Path) -> None:
    tokenizer = Tokenizer(directory(tmp_path, tokenizer_config={"chat_template": "{% if %}"}))
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: the chat template failed: TemplateSyntaxError"):
        tokenizer.turn(None)


@pytest.mark.real
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b", "smollm2-135m"])
def test_turns_of_real_models(name: str, tmp_path: Path) -> None:
    from minimemo.hub.catalog import resolve
    from minimemo.hub.gguf_file import read

    try:
        path = resolve(name)
    except InputError as error:
        pytest.skip(str(error))
    tokenizer = load(read(path).metadata, tmp_path)
    assert tokenizer._template is not None
    for system, text in itertools.product((None, "Answer briefly.\n\nIn English."), ("Who is he?", "他是谁?\n\n1. 甲")):
        before, after = tokenizer._template.turn(system)
        opening, closing = tokenizer.turn(system)
        assert opening + tokenizer.encode(text) + closing == tokenizer.encode_template(before + text + after)
        assert tokens(tokenizer, opening)[0] == "<|im_start|>" and tokens(tokenizer, closing)[0] == "<|im_end|>"
