"""Prompts: their exact rendering, the file that replaces them, the language they are chosen in."""

import dataclasses
import json

import pytest

from minimemo.ask.clues import instruction
from minimemo.ask.prompts import PROMPTS, load_prompts, memory_opening
from minimemo.errors import InputError
from minimemo.text.scripts import detect_language, information
from minimemo.text.words import content_units, normalize, shingles

ENGLISH, CHINESE = PROMPTS["en"], PROMPTS["zh"]


def test_english_prompts_rendered():
    assert ENGLISH.recall.format(question="Who {was} he?") == (
        "\n\n---\nQuestion: Who {was} he?\nSentences of the document above that help to answer it, one per line:"
    )
    assert ENGLISH.answer.format(passages="[1] It rained.", question="Did it?", not_found=ENGLISH.not_found) == (
        "Answer the question from the passages. Write only the answer, nothing else. If they do not say, write: "
        "Not found.\n\nPassages:\n\n[1] It rained.\n\nAnswer the question with a short phrase copied from the "
        "passages above. Write only the answer, nothing else.\n\nQuestion: Did it?\nAnswer:"
    )


def test_chinese_prompts_rendered():
    assert CHINESE.draft.format(question="谁来了？") == "\n\n---\n问题：谁来了？\n简短的答案："
    assert CHINESE.answer.format(passages="[1] 下雨了。", question="下雨了吗？", not_found=CHINESE.not_found) == (
        "根据段落回答问题，只写答案，不写别的。如果段落没有提到，就写：未提及。\n\n段落：\n\n[1] 下雨了。\n\n"
        "用上面段落中的原文短语回答问题，只写答案，不写别的。\n\n问题：下雨了吗？\n答案："
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_prompt_ends_with_a_cue(language):
    """A base model has no template to tell it that its turn has come, and small models answer best after a cue."""
    prompts = PROMPTS[language]
    for name in ("recall", "rewrite", "draft", "memory_answer", "answer", "closed", "part", "summary"):
        assert getattr(prompts, name).splitlines()[-1].endswith((":", "：")), name


@pytest.mark.parametrize("language", ["en", "zh"])
def test_memory_prompts_begin_with_a_break(language):
    """The document stands right before them: without a break its last line and the prompt would be one."""
    prompts = PROMPTS[language]
    for text in (prompts.recall, prompts.rewrite, prompts.draft, prompts.memory_answer, prompts.part):
        assert text.startswith("\n\n")
    assert prompts.memory_intro.endswith("\n\n")


def test_chinese_prompts_hold_no_english():
    for field in dataclasses.fields(CHINESE):
        literal = instruction(getattr(CHINESE, field.name))
        assert not any(char.isascii() and char.isalpha() for char in literal), field.name


def test_memory_opening_depends_on_language_and_intro_only():
    assert memory_opening("en") == memory_opening("en")
    assert memory_opening("en").version != memory_opening("zh").version
    other_question = {"en": dataclasses.replace(ENGLISH, recall="{question}?"), "zh": CHINESE}
    assert memory_opening("en", other_question) == memory_opening("en")
    other_intro = {"en": dataclasses.replace(ENGLISH, memory_intro="Look:\n\n"), "zh": CHINESE}
    assert memory_opening("en", other_intro).version != memory_opening("en").version


def test_json_file_replaces_what_it_names(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"zh": {"recall": "抄写：{question}"}}), encoding="utf-8")
    prompts = load_prompts(path)
    assert prompts["zh"].recall == "抄写：{question}"
    assert prompts["zh"].rewrite == CHINESE.rewrite
    assert prompts["en"] == ENGLISH
    assert PROMPTS["zh"].recall == CHINESE.recall  # the defaults stay


def test_toml_file(tmp_path):
    path = tmp_path / "prompts.toml"
    path.write_text('[en]\nnot_found = "No idea"\n', encoding="utf-8")
    assert load_prompts(path)["en"].not_found == "No idea"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"fr": {}}', "'fr'"),
        ('{"en": []}', "'en'"),
        ('{"en": {"recal": "x"}}', r"en\.recal"),
        ('{"en": {"recall": 3}}', r"en\.recall"),
        ('{"en": {"recall": "no placeholder"}}', r"en: prompt recall: .*\{question\} is missing"),
        ('{"en": {"recall": "{question} {name}"}}', r"prompt recall: unknown placeholder \{name\}"),
        ('{"en": {"recall": "{question.__class__}"}}', r"\{question\} is missing"),
        ('{"en": {"recall": "{question!r}"}}', "no format"),
        ('{"en": {"recall": "{question} {"}}', "prompt recall"),
        ('{"en": {"system": "{}"}}', "prompt system"),
        ('["en"]', "table of languages"),
        ('{"en": ', "not valid JSON"),
    ],
)
def test_bad_file_names_file_and_place(tmp_path, content, named):
    path = tmp_path / "mine.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=rf"mine\.json.*{named}"):
        load_prompts(path)


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match=r"absent\.json: cannot read"):
        load_prompts(tmp_path / "absent.json")
    with pytest.raises(InputError, match="cannot read"):
        load_prompts(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        load_prompts(tmp_path / "bytes.json")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Who wrote the letter?", "en"),
        ("谁写了这封信？", "zh"),
        ("誰寫了這封信？", "zh"),
        ("GPT-4 和 BERT 有什么区别？", "zh"),
        ("Is 孙悟空 a monkey?", "en"),
        ("この手紙を書いたのは誰ですか。", "en"),
        ("누가 이 편지를 썼습니까?", "en"),
        ("Wer schrieb den Brief?", "en"),
    ],
)
def test_language(text, language):
    assert detect_language(text) == language


def test_language_of_a_text_without_letters_is_the_default():
    assert detect_language("1984?", "zh") == "zh"
    assert detect_language("", "en") == "en"


@pytest.mark.parametrize(("chinese", "language"), [(0.7, "zh"), (0.1, "en")])
def test_language_of_a_long_text_is_that_of_all_its_parts(chinese: float, language: str) -> None:
    """Two million characters that begin in the language of their smaller part: a sample from all over decides."""
    zh, en = "他走进了那座古老的灯塔。" * 166_000, "He walked into the old lighthouse. " * 57_000
    zh, en = zh[: int(chinese * 2e6)], en[: int((1 - chinese) * 2e6)]
    assert detect_language(en + zh if language == "zh" else zh + en) == language


def test_information_counts_by_script():
    assert information("北京") == information("Peking") == 6
    assert information("とり") == 4
    assert information("... !") == 0


def test_shingles_and_units_see_both_scripts():
    assert shingles("黑死病") == {"黑死", "死病"}
    assert shingles("King") == {"kin", "ing"}
    assert shingles("ＡＢＣＤ") == shingles("abcd")
    assert content_units("The King of 法国国王") == {"king", "法国", "国国", "国王"}
    assert content_units("of the") == frozenset()
    assert normalize(" Ａ  b\n") == "a b"
