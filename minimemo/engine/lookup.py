"""What a reply may say next, copied from where its last tokens stood before: in the prompt, the document, itself.

Answers quote. A draft costs no model, and a pass that checks a few tokens costs little more than a step: prompt lookup
(https://github.com/apoorvumang/prompt-lookup-decoding), with references as in LLMA (arXiv 2304.04487).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST = 2  # tokens that must have stood before, for what followed them to be a draft
LONGEST = 8  # Of places that more tokens lead to than this, the last one is taken.


class Lookup:
    """A text of token ids that grows, and its own continuations."""

    def __init__(self, ids: Sequence[int], room: int) -> None:
        """ids: what may be copied, the nearest at the end. room: tokens that will be pushed at most."""
        self._text = np.empty(len(ids) + room, np.int32)
        self._text[: len(ids)] = ids
        self._length = len(ids)

    def push(self, token: int) -> None:
        """Adds a token that was chosen."""
        self._text[self._length] = token
        self._length += 1

    def draft(self, most: int) -> list[int]:
        """At most so many tokens that followed where the longest end of the text stood before, the last such place;
        none where that is shorter than LEAST."""
        end = self._length
        text = self._text[:end]
        places = np.flatnonzero(text[:-1] == text[-1:]) + 1  # where what followed begins
        matched = 1
        while matched < LONGEST and len(places):
            longer = places[places > matched]
            longer = longer[text[longer - matched - 1] == text[end - matched - 1]]
            if not len(longer):
                break
            places, matched = longer, matched + 1
        if matched < LEAST or not len(places):
            return []
        return text[places[-1] : places[-1] + most].tolist()
