"""Text -> words, and in scripts written without spaces pairs of neighbouring characters: what a text is searched by,
what of it carries content, what of a question is quoted."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from minimemo.text.scripts import CJK, HAN

# English function words. Each is so common that BM25 nearly ignores it, but a question holds many: without them BM25's
# nDCG@10 rises from 0.497 to 0.507 on cranfield and from 0.418 to 0.432 on medquad; with plurals, to 0.517 and 0.455.
STOPWORDS = frozenset(
    """
    a an and are as at be been but by did do does for from had has have he her him his how i if in into is it its me
    my no nor not of on one or our she so some such than that the their them then there these they this those to too
    was we were what when where which who whom whose why will with would yes you your
    """.split()  # noqa: SIM905 - a list of words reads better as words
)

_IRREGULAR = {
    form: line.split()[0]
    for line in """
    become became|begin began begun|bring brought|build built|buy bought|catch caught|choose chose chosen|come came
    |die died dying dead death|draw drew drawn|drive drove driven|eat ate eaten|fall fell fallen|feel felt|fight fought
    |find found|fly flew flown|get got|give gave given|go went gone|grow grew grown|hold held|keep kept|know knew known
    |lead led|leave left|lend lent|lie lay lain|lose lost|make made|mean meant|meet met|pay paid|rise rose risen|run ran
    |say said|see saw seen|sell sold|send sent|show shown|sing sang sung|sit sat|speak spoke spoken|spend spent
    |stand stood|steal stole stolen|swim swam|take took taken|teach taught|tell told|think thought|throw threw thrown
    |wear wore worn|win won|write wrote written|bear bore born birth
    """.split("|")  # noqa: SIM905
    for form in line.split()[1:]
}

# Colours and cursor movements of a terminal (ECMA-48), as logs keep them.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
# Vowel signs and the stretching line of Arabic, points of Hebrew: most writers leave them out.
_UNWRITTEN = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed]"
)
_LETTERS = str.maketrans("أإآٱىیک", "ااااييك")  # Forms of one Arabic letter.
_HAN_SPACE = re.compile(rf"(?<=[{HAN}])\s+(?=[{HAN}])")
# Other combining marks belong to the word that they stand in; the kana's voicing signs are letters of CJK here.
_MARKS = "".join(
    chr(c) for c in range(0x300, 0xFE30) if unicodedata.category(chr(c)) in ("Mn", "Mc") and c not in (0x3099, 0x309A)
)
_BLOB = re.compile(r"[A-Za-z0-9+/=_-]{40,}")
_FILE = re.compile(r"(?:data:[\w/+.;-]*base64,)?[A-Za-z0-9+/=_-]{160,}")
_DATA = re.compile(r"data:[\w/+.;-]*base64,?")
_BESIDE = 3  # terms

_QUOTED = re.compile(r"\"(?!\s)([^\"]+)(?<!\s)\"|„([^“”]+)[“”]|“([^”]+)”|«([^»]+)»|「([^」]+)」|『([^』]+)』")
_SEARCHED = CJK + r"〆゠・\u3099\u309a\u4dc0-\u4dff"
_RUN, _SEARCHED_RUN = (
    re.compile(rf"([{unspaced}]+)|(?:(?![{unspaced}_])[\w{_MARKS}])+")
    # A search also compares the signs that stand inside Japanese names (カール・マルクス), and hexagrams.
    for unspaced in (CJK, _SEARCHED)
)
_PLAIN, _OTHER = re.compile(r"[^\W_]+"), re.compile(f"[{_SEARCHED}{_MARKS}]")  # What is not of plain words alone.


def normalize(text: str) -> str:
    """NFKC, case folded, single spaces, without a terminal's escapes and signs that most writers leave out: what two
    writings of one text have in common."""
    plain = without_points(unicodedata.normalize("NFKC", without_escapes(text))).translate(_LETTERS)
    return " ".join(plain.casefold().split())


def without_escapes(text: str) -> str:
    """Removes a terminal's escape sequences (colours of a log)."""
    return _ESCAPE.sub("", text) if "\x1b" in text else text


def without_points(text: str) -> str:
    """Removes the vowel signs of Arabic and Hebrew, which most writers leave out."""
    return _UNWRITTEN.sub("", text)


def is_blob(text: str) -> bool:
    """Tells whether a text is no text: more than half of it are runs of 40 characters and more as Base64 has them, and
    few words stand beside those."""
    left = _DATA.sub("", _BLOB.sub("", text))
    return 2 * (len(text) - len(left)) > len(text) and len(terms(left)) < _BESIDE


def without_blobs(text: str) -> str:
    """Puts "[...]" in place of embedded files (runs of 160 characters and more as Base64 has them), not of keys."""
    return _FILE.sub("[...]", text)


def is_code(term: str) -> bool:
    """Tells whether a term is a number of three digits or more, or a name with a digit: a year, an order, "b12"."""
    return len(term) > 2 and any(map(str.isdigit, term))


def terms(text: str) -> list[str]:
    """What a text is searched by: its words without plural endings and function words, and character pairs, in order; a
    lone character is a term of its own. NFKC and case folded."""
    return [singular(word) if word[-1] == "s" else word for word in _words(text, _SEARCHED_RUN)]


def content_units(text: str) -> frozenset[str]:
    """The words that carry content (English function words dropped); for CJK runs, their character pairs."""
    return frozenset(_words(text, _RUN))


def shingles(text: str) -> frozenset[str]:
    """Character n-grams of the normalized letters and digits: pairs in CJK runs, threes within words elsewhere."""
    runs = _RUN.finditer(normalize(text))
    return frozenset(gram for run in runs for gram in _grams(run[0], 2 if run[1] else 3))


def _words(text: str, pattern: re.Pattern[str]) -> list[str]:
    text = normalize(text)
    if text.isascii() or not _OTHER.search(text):
        return [word for word in _PLAIN.findall(text) if word not in STOPWORDS]
    words: list[str] = []
    for match in pattern.finditer(_HAN_SPACE.sub("", text)):
        if match[1]:
            words += _grams(match[1], 2)
        elif match[0] not in STOPWORDS:
            words.append(match[0])
    return words


def _grams(run: str, size: int) -> list[str]:
    """All stretches of `size` characters, or the run where it is shorter."""
    return [run[i : i + size] for i in range(max(1, len(run) - size + 1))]


@lru_cache(1 << 16)
def singular(word: str) -> str:
    """An English word without its plural ending: the S stemmer (Harman 1991, "How effective is suffixing?").

    More than that (Porter) finds no more on the collections of bench/search.py. Words with other letters stay.
    """
    if not word.isascii() or len(word) < 3 or word[-1] != "s":
        return word
    if word.endswith("ies") and len(word) > 3 and word[-4] not in "ae":
        return word[:-3] + "y"
    if word.endswith("es") and word[-3] not in "aeo":
        return word[:-1]
    return word if word[-2] in "us" else word[:-1]


@lru_cache(1 << 16)
def root(word: str) -> str:
    """What the forms of an English word have in common, about: "inspected", "inspection" and "inspects" are one,
    "built" and "build" too. Words with other letters stay. For comparing a question with a sentence, not for search.
    """
    if not (word.isascii() and word.isalpha()):
        return word
    word = _IRREGULAR.get(word, word)
    word = _IRREGULAR.get(single := singular(word), single)
    for ending in ("ing", "est", "ed", "er", "ion", "ly", "al", "ment", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls" else word
    return word


def roots(text: str) -> frozenset[str]:
    """The roots of a text's content units."""
    return frozenset(map(root, content_units(text)))


def quoted(text: str) -> list[str]:
    """What stands between double quotation marks and holds a term: the subject, in the document's own words."""
    phrases = (next(filter(None, match.groups())).strip() for match in _QUOTED.finditer(text))
    return [phrase for phrase in phrases if terms(phrase)]
