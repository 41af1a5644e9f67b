"""The character map as the tokenizers library reads it back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import Precompiled

from minimemo.hub.charsmap import build_charsmap

CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])


@given(st.dictionaries(CHARACTERS, st.text(CHARACTERS, max_size=3), min_size=1, max_size=60), st.text(CHARACTERS))
@settings(max_examples=60, deadline=None)
def test_every_character_maps_and_no_other_changes(mapping: dict[str, str], others: str) -> None:
    normalizer = Precompiled(build_charsmap(mapping))
    for source, target in mapping.items():
        assert normalizer.normalize_str(source) == target
    for other in others:
        if other not in mapping:
            assert normalizer.normalize_str(other) == other


def test_same_bytes_whatever_the_order() -> None:
    mapping = {chr(0xFF01 + i): chr(0x21 + i) for i in range(94)}
    assert build_charsmap(mapping) == build_charsmap(dict(reversed(mapping.items())))


def test_dense_maps() -> None:
    """Many keys under one lead byte, and thousands of keys: places collide, bases may not be shared."""
    mapping = {chr(i): chr(i + 1) for i in range(0x3400, 0x4400)}
    normalizer = Precompiled(build_charsmap(mapping))
    text = "".join(map(chr, range(0x33F0, 0x4410)))
    assert normalizer.normalize_str(text) == "".join(mapping.get(c, c) for c in text)


@pytest.mark.parametrize("mapping", [{"": "a"}, {"\0": "a"}, {"a": "\0"}])
def test_impossible_keys(mapping: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot map"):
        build_charsmap(mapping)
