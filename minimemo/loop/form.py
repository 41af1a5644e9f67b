"""What a question asks for: a name, number or phrase, or a paragraph. By its words alone, no model is asked.

A model told to copy a short phrase answers "What did they say about the budget?" with one; told to write a paragraph,
it buries the year that was asked for. In doubt it is a phrase: a paragraph is asked for with words that say so.
English words only: told to write a Chinese paragraph, the default model does worse than told nothing (LOG.md).
"""

from __future__ import annotations

import re

_ASKED = re.compile(
    r"""
    ^\W*(?:(?:please|can\ you|could\ you)\s+)*
      (?:summari[sz]e|describe|explain|discuss|outline|compare|elaborate|tell\s(?:me|us)\sabout
        |give\s(?:me\s|us\s)?an?\s(?:\w+\s)?(?:summary|overview|account|description|outline))\b
  | \b(?:what|which)\s(?:is|are|was|were)\s(?:the\s)?(?:\w+\s)?
      (?:plot|storyline|significance|importance|relationship|role|settings?|themes?|message|background|gist
        |discussions?|opinions?|attitudes?|views?|thoughts|comments?|reactions?|suggestions?|recommendations?|concerns?
        |considerations?|arguments?|main\s(?:points?|ideas|topics?|themes?))\b
  | \b(?:what|how)\s(?:did|do|does)\s.{1,60}?\s
      (?:think|thought|say|feel|discuss|talk|comment|propose|recommend|suggest|respond|react|argue|introduce)\b
  | \bdiscuss(?:ed|ions?|ing)?\b | \bopinions?\b | \bthroughout\b
  | ^\W*(?:who|what|where|why|how)\b.+,?\sand\s(?:who|what|why|how|where)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def wants_paragraph(question: str) -> bool:
    """Whether a paragraph is asked for."""
    return _ASKED.search(question) is not None
