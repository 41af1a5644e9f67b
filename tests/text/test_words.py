"""What a text is searched by, whatever stands around and inside its words."""

from __future__ import annotations

from minimemo.text.words import is_blob, is_code, root, terms, without_blobs, without_escapes


def test_colours_of_a_terminal_break_no_word() -> None:
    line = "\x1b[90m2024\x1b[0m \x1b[1;31mERROR\x1b[0m \x1b]8;;x\x07link\x1b]8;;\x07"
    assert without_escapes(line) == "2024 ERROR link" and terms(line) == ["2024", "error", "link"]


def test_signs_that_writers_leave_out_hinder_no_search() -> None:
    assert terms("بَنَى الْجِسْرَ") == terms("بنى الجسر") != []
    assert terms("שָׁלוֹם") == terms("שלום")
    assert terms("हिन्दी में") == ["हिन्दी", "में"], "vowel signs are part of a word"
    assert terms("naïve") == terms("nai\u0308ve") == ["naïve"]


def test_spaces_between_han_characters_break_no_word() -> None:
    assert terms("石 桥\n是") == terms("石桥是") and terms("石桥 A") == ["石桥"]


def test_what_is_no_text_and_what_is_a_code() -> None:
    assert is_blob("TWFuIGlzIGRpc3Rpbmd1aXNoZWQsIG5vdCBvbmx5IGJ5IGhpcyByZWFzb24\n" * 4)
    assert not is_blob("A sentence with the address https://example.org/a/long/path/that/goes/on/and/on/and/on in it.")
    assert [term for term in ("7039", "b12", "12", "order", "1871") if is_code(term)] == ["7039", "b12", "1871"]


def test_words_beside_an_embedded_file_are_text() -> None:
    image = "![plan](data:image/png;base64," + "TWFuIGlzIGRpc3Rpbmd1" * 20 + ")"
    told = "The door spring was replaced in 2012, in May."
    assert is_blob(image) and not is_blob(f"{image}\n\n{told}")
    assert without_blobs(f"{image}\n{told}") == f"![plan]([...])\n{told}"
    assert without_blobs(key := "The key is " + "0f" * 40 + ".") == key


def test_forms_of_a_word_have_one_root() -> None:
    assert len(set(map(root, ("inspected", "inspects", "inspection", "inspect")))) == 1
    assert root("built") == root("builds") and root("largest") == root("larger") and root("灯塔") == "灯塔"


def test_texts_of_plain_words_are_split_as_others_are() -> None:
    """Texts with neither CJK characters nor combining marks take a shorter way to the same words."""
    for code in [*range(0x20, 0x600), *range(0x600, 0x11000, 13)]:
        text = f"Ab{chr(code)}cd_7 the-x"
        assert [*terms(text), "中文"] == terms(f"{text} 中文"), hex(code)
