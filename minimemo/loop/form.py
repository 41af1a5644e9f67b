"""What a question asks for: a phrase, a paragraph, the document's own words, something on the whole document. By its
words, no model is asked.

A model told to copy a short phrase answers "What did they say about the budget?" with one; told to write a paragraph,
it buries the year that was asked for; and what it is told to quote, it invents. In doubt it is a phrase: all else is
asked for with words that say so.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from minimemo.loop.answer import Mode

Form: TypeAlias = Literal["phrase", "paragraph", "quotation", "whole"]

_POLITE = r"^\W*(?:(?:please|can\ you|could\ you)\W+)*"
# what takes more than a phrase to tell; the last ones not in "status code", "development budget"
_MATTERS = r"""(?:plot|storyline|significance|importance|relationships?|role|settings?|themes?|message|background|gist
    |discussions?|opinions?|attitudes?|views?|thoughts|comments?|reactions?|suggestions?|recommendations?|concerns?
    |considerations?|arguments?|debates?|controversy|conclusions?|main\s(?:points?|ideas|topics?)|problems|changes
    |differences?|lessons|reasons?|challenges|advantages|disadvantages|issues
    |(?:status|purpose|plans|future|development|description)(?=\W*$|\s(?:of|for|in|on|with|about|and)\b))"""
_ASKED = re.compile(
    rf"""
    {_POLITE}
      (?:summari[sz]e|describe|explain|discuss|outline|compare|elaborate|tell\s(?:me|us)\sabout
        |give\s(?:me\s|us\s)?an?\s(?:\w+\s)?(?:summary|overview|account|description|outline))\b
  | \b(?:what|which)(?:['’]s|\s(?:is|are|was|were))\s(?:the\s)?(?:\w+\s){{0,2}}?{_MATTERS}\b
  | \bwhat\s(?:settings?|relationships?|problems|changes|lessons|differences)\s(?:do|does|did|has|have)\b
  | \b(?:what|how)\s(?:did|do|does)\s.{{1,60}}?\s
      (?:think|thought|say|feel|discuss|talk|comment(?:ed)?|propose|recommend|suggest|respond|react|argue|introduce)\b
  | ^\W*where\s(?:does|did|is|was)\sthe\s(?:story|book|novel)\s(?:take\splace|happen|set)\b
  | \bwhat\s(?:was|were)\s(?:said|agreed|decided|concluded)\s(?:up)?on\b
  | \b(?:in|through)\s(?:the|this)\s(?:story|book|novel|meeting)\W*$
  | \bdiscuss(?:ed|ions?|ing)?\b | \bopinions?\b | \bthroughout\b
  | ^\W*(?:who|what|where|why|how)\b.+,?\sand\s(?:who|what|why|how|where)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


_MATTERS_ZH = r"""(?:内容|內容|方面|问题|問題|话题|話題|观点|觀點|看法|意见|意見|建议|建議|原因|挑战|挑戰|措施|影响|影響
    |特点|特點)"""
_ASKED_ZH = re.compile(
    rf"""
    ^\W*(?:请|請)?[您你]?
      (?:总结|總結|概括|概述|描述|介绍|介紹|说明|說明|解释|解釋|分析|比较|比較|谈谈|談談|归纳|歸納)
  | (?:讨论|討論|谈论|談論|谈|談|介绍|介紹|涉及|提出|提到|说|說)[到及过過]?了?(?:哪些|哪幾些|什么|什麼){_MATTERS_ZH}
  | (?:有|存在)[着著]?哪些{_MATTERS_ZH}
  | (?:看法|观点|觀點|态度|態度|意见|意見|评价|評價|立场|立場)(?:是|有|如何|怎样|怎樣)
  | (?:如何|怎样|怎樣|怎么|怎麼)看待
    """,
    re.VERBOSE,
)


_WORDS = (
    r"(?:clauses?|passages?|sentences?|provisions?|quot(?:e|ation)s?|wording)"  # parts of a text, and of little else
)
_TELLS = r"(?:says?|states?|mentions?|describes?|provides?|governs?|covers?|defines?|names?|explains?|requires?|deals)"
_QUOTATION = re.compile(
    rf"""
    {_POLITE}
      (?:quote\b
        |highlight\s(?:the\s|all\s|any\s|every\s)?(?:\w+\s)?(?:parts?|sections?|lines?|paragraphs?|{_WORDS})\b
        |(?:find|show|give|list|extract|copy|locate|point\sout)\s(?:me\s|us\s)?(?:the\s|all\s(?:the\s)?|any\s|every\s)?
          (?:exact\s|relevant\s)?{_WORDS}\s
          (?:that|which|where|about|on|in|from|with|regarding|concerning|related|dealing|saying|mentioning)\b)
  | ^\W*(?:in\s)?(?:which|what)\s(?:clauses?\b|{_WORDS}\s(?:in\sthe\s\w+\s)?{_TELLS}\b)
  | ^\W*where\s(?:does|do|is|are)\s(?:it|(?:the|this)\s(?:document|text|contract|agreement|book|story|novel|report|paper
      |article|policy|manual|law))\s(?:say|state|mention|provide)\b
  | \b(?:word\sfor\sword|verbatim|exact\s(?:words|wording))\b
  | ^\W*(?:请|請)?(?:帮我|幫我)?(?:摘录|摘錄|摘抄|摘出|引用|引述|标出|標出|划出|劃出)(?![的了])
  | (?:找出|列出|指出|给出|給出).{{0,24}}(?:条款|條款|句子|语句|語句|段落|原文|原句|原话|原話)
  | 哪(?:一|些|几|幾)?(?:个|個|条|條)?(?:条款|條款|句话|句話|段话|段話|句子|段落)
  | (?:原文|原句|原话|原話)(?:是?(?:怎么|怎麼|如何|什么|什麼)|在哪)
    """,
    re.IGNORECASE | re.VERBOSE,
)


_DOCUMENT = r"""(?:the\s|this\s)?(?:whole\s|entire\s|full\s)?
    (?:document|meeting|conversation|interview|story|book|novel|text|article|report|paper|contract)"""
_WHOLE = re.compile(
    rf"""
    {_POLITE}
      (?:summari[sz]e|outline|recap|describe|tell\s(?:me|us)\sabout|what\s(?:is|was)\sdiscussed\sin
        |(?:(?:give|write)\s(?:me\s|us\s)?)?an?\s(?:\w+\s)?(?:summary|overview|outline)\sof)
      \s(?:everything|(?:the\splot\sof\s)?{_DOCUMENT})\W*$
  | ^\W*what(?:'s|\s(?:is|are|was|were))\s(?:the\s)?
      (?:(?:plot|storyline|gist|main\s(?:points?|ideas?|topics?|themes?|discussion\spoints))\s(?:of|in)\s{_DOCUMENT}
        |{_DOCUMENT}\s(?:all\s)?about)\W*$
  | (?:总结|概括|概述|归纳)(?:一下)?(?:这|本|整|全)?[个份篇部本]?
      (?:(?:文档|文章|会议|对话|故事|小说|报告|书|全文)(?:的)?)?(?:主要)?(?:内容|情节|要点|文档|文章|会议|全文)\W*$
  | ^\W*[这本整][个份篇部本]?(?:文档|文章|会议|故事|小说|报告|书)(?:主要)?(?:是)?
      (?:讲|说|谈|讨论|关于)(?:的|了)?(?:是)?(?:什么|哪些内容)(?:的)?\W*$
    """,
    re.IGNORECASE | re.VERBOSE,
)


def form_of(question: str) -> Form:
    """`whole`: what needs all of the document ("Summarize the meeting.", "这份文档讲的是什么？"); `quotation`: its own
    words ("Highlight the clauses on the warranty.", "摘录关于灯塔的句子")."""
    if _WHOLE.search(question):
        return "whole"
    if _QUOTATION.search(question):
        return "quotation"
    return "paragraph" if _ASKED.search(question) or _ASKED_ZH.search(question) else "phrase"


def form_given(question: str, mode: Mode) -> Form:
    """What a mode gives of what is asked for: a memory alone cannot quote, and passages do not hold the whole."""
    form = form_of(question)
    if form == "whole":
        return "whole" if mode in ("memorag", "gist") else "phrase" if mode == "closed" else "paragraph"
    if mode in ("closed", "gist"):
        return "phrase"
    return "paragraph" if form == "quotation" and mode == "memory" else form
