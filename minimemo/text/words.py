"""Text -> the terms that it is searched by: words without case, plural endings and function words; in scripts written
without spaces, the pairs of neighbouring characters. And what of a question is quoted."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# English function words. Each is so common that BM25 nearly ignores it, but a question holds many: without them BM25's
# nDCG@10 rises from 0.497 to 0.507 on cranfield and from 0.418 to 0.432 on medquad; with plurals, to 0.517 and 0.455.
STOPWORDS = frozenset(
    """
    a an and are as at be been but by did do does for from had has have he her him his how i if in into is it its me
    my no nor not of on one or our she so some such than that the their them then there these they this those to too
    was we were what when where which who whom whose why will with would yes you your
    """.split()  # noqa: SIM905 - a list of words reads better as words
)

_UNSPACED = (
    r"\u1100-\u11ff\u3005-\u3007\u3040-\u30ff\u3131-\u318e\u31f0-\u31ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    + (r"\U00020000-\U0003ffff")
)
_QUOTED = re.compile(r"\"(?!\s)([^\"]+)(?<!\s)\"|„([^“”]+)[“”]|“([^”]+)”|«([^»]+)»|「([^」]+)」|『([^』]+)』")
_RUN = re.compile(rf"([{_UNSPACED}]+)|(?:(?![{_UNSPACED}_])\w)+")


def terms(text: str) -> list[str]:
    """Words and character pairs of a text, NFKC and case folded, in order; a lone character is a term of its own."""
    found: list[str] = []
    for match in _RUN.finditer(unicodedata.normalize("NFKC", text).casefold()):
        run = match[0]
        if match[1]:
            found.extend(run[i : i + 2] for i in range(max(1, len(run) - 1)))
        elif run not in STOPWORDS:
            found.append(singular(run))
    return found


@lru_cache(1 << 16)
def singular(word: str) -> str:
    """An English word without its plural ending: the S stemmer (Harman 1991, "How effective is suffixing?").

    More than that (Porter) finds no more on the collections of bench/retrieval.py. Words with other letters stay.
    """
    if not word.isascii() or len(word) < 3 or word[-1] != "s":
        return word
    if word.endswith("ies") and len(word) > 3 and word[-4] not in "ae":
        return word[:-3] + "y"
    if word.endswith("es") and word[-3] not in "aeo":
        return word[:-1]
    return word if word[-2] in "us" else word[:-1]


def quoted(text: str) -> list[str]:
    """What stands between double quotation marks and holds a term: the subject, in the document's own words."""
    found = (next(filter(None, match.groups())).strip() for match in _QUOTED.finditer(text))
    return [phrase for phrase in found if terms(phrase)]
