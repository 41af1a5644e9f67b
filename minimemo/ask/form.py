"""What a question asks for: a phrase, a paragraph, the document's own words, something on the whole document. By its
words, no model is asked.

A model told to copy a short phrase answers "What did they say about the budget?" with one; told to write a paragraph,
it buries the year that was asked for; and what it is told to quote, it invents. In doubt it is a phrase: all else is
asked for with words that say so.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from minimemo.ask.answer import Mode

Form: TypeAlias = Literal["phrase", "paragraph", "quotation", "whole"]

_POLITE = r"^\W*(?:(?:please|can\ you|could\ you|would\ you)\W+)*"
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


# Parts of a text, but for the first two also something else: a sentence is served, a passage sailed, provisions eaten.
_CLAUSE = r"(?:clauses?|wording)"
_PART = r"(?:passages?|sentences?|provisions?|quotes?|quotations?|paragraphs?|sections?|lines?|parts?)"
_TELLS = r"(?:says?|states?|mentions?|describes?|defines?|names?|explains?|deals?\swith|talks?\sabout)"
_TEXT = r"""(?:it|(?:the|this)\s
    (?:document|text|contract|agreement|book|story|novel|report|paper|article|policy|manual|law))"""
_PART_ZH = r"(?:条款|條款|句子|语句|語句|段落|原文|原句|原话|原話)"
_QUOTATION = re.compile(
    rf"""
    {_POLITE}
      (?:quote\s(?:me\s)?(?:the|what|how|a|all|any|every|some|from|his|her|their|its|exactly)\b
        |(?:find|show|give|list|extract|copy|cite|quote|identify|locate|provide|highlight|point\sout)\s(?:me\s|us\s)?
          (?:the\s|an?\s(?!sentence\sabout)|all\s(?:the\s)?|any\s|every\s|some\s)?
          (?:(?:\w+\s){{0,2}}?{_CLAUSE}\b
            |(?:exact\s|relevant\s)?{_PART}\s(?:\([^)]*\)\s)?
              (?:about|regarding|concerning|mentioning|saying|relat(?:ed|ing)\sto|of\s{_TEXT}\b
                |(?:that|which|where\sit)\s{_TELLS}))
        |(?:give|show|tell|find)\b.{{0,60}}\b(?:exact\s(?:words|wording)|verbatim|word\sfor\sword))
  | ^\W*(?:in\s)?(?:which|what)\sclauses?\b
  | ^\W*which\s{_PART}\s(?:(?:in|of)\s{_TEXT}\s)?{_TELLS}\b
  | ^\W*where\s(?:(?:does|do)\s{_TEXT}\s(?:say|state|mention|describe|define)
      |(?:is|are|was)\s(?:it|that|this|\w+)\s(?:said|stated|mentioned|defined))\b
  | ^\W*what\s(?:is|are|was|were)\s(?:\w+\s){{0,3}}?exact\s(?:words|wording)\b
  | ^\W*(?:请|請)?[您你]?(?:麻烦|麻煩)?(?:帮我|幫我)?
      (?:(?:摘录|摘錄|摘抄|引述)(?![的了者])|引用(?:一下)?(?:文中|书中|原文|关于|關於|有关|一[句段]))
  | (?:找出|找到|列出|给出|給出|指出|标出|標出|划出|劃出).{{0,24}}{_PART_ZH}\W*$
  | 把.{{1,24}}{_PART_ZH}都?(?:摘录|摘錄|摘抄|找|列|标|標|挑)出
  | 哪一?[个個条條]?(?:条款|條款|句话|句話|句|段话|段話|段落|段|章节|章節)
      (?:中|里|裡)?(?:提到|提及|说|說|写|寫|讲|講|规定|規定|描写|描述|涉及|谈到|談到|指出)
  | 哪[里裡儿](?:提到|提及|说到|說到|写到|寫到|谈到|談到)
  | (?:原文|原句|原话|原話)(?:是?(?:怎么|怎麼|如何)(?:说|說|写|寫|讲|講|表述|描述)|是什[么麼]\W*$)
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
