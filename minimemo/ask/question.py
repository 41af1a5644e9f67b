"""A question: its mode, what it asks for by its words (no model is asked), its language, its limits, its clock.

A model told to copy a short phrase answers "What did they say about the budget?" with one; told to write a paragraph,
it buries the year that was asked for; and what it is told to quote, it invents. In doubt a phrase is asked for: all
else is asked for with words that say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from minimemo.ask.prompts import Prompts
from minimemo.ask.writer import TextGenerator
from minimemo.errors import InputError
from minimemo.events import Clock, Listener
from minimemo.memory.view import MemoryView
from minimemo.text.scripts import Language, detect_language

if TYPE_CHECKING:
    from minimemo.search.retriever import Hit

Mode: TypeAlias = Literal["memorag", "rag", "memory", "closed", "gist"]
AnswerMode: TypeAlias = Literal["memorag", "rag", "memory", "closed", "gist", "summarize"]
Kind: TypeAlias = Literal["phrase", "yes_no", "paragraph", "quotation", "whole"]

QUESTION_TOKENS = 1024  # The longest question that is let through.
CLUE_TOKENS = 128  # Each reply of the memory that is only searched with ends there.
SUMMARY_TOKENS = 256  # A summary that memory tells, of about 180 words, ends about there.
# A paragraph has this many tokens at least. Asked for 150 words, a third of the 0.5B's answers have fewer than 30
# tokens; held to 40, its paragraphs have ROUGE-L 18.7 from passages and 20.0 from memory instead of 15.8 and 17.1
# (squality, 15 questions).
PARAGRAPH_TOKENS = 40
MIN_EVIDENCE = 128  # Everything else in a prompt must leave this many tokens for passages.
_PROMPT_ROOM = 192  # The longest memory prompt with its chat frame, less the question, takes fewer tokens.


def memory_room() -> int:
    """Gives the tokens to leave free behind a document, in a memory's cache and in the model's context, for a question
    and an answer. A recipe holds it: with another figure every memo would be built again."""
    return _PROMPT_ROOM + QUESTION_TOKENS + max(CLUE_TOKENS, 2 * SUMMARY_TOKENS)


_POLITE = r"^\W*(?:(?:please|can\ you|could\ you|would\ you)\W+)*"
# What takes more than a phrase to tell, where it is the noun that is asked for: "the role of", not "the role ID".
_ATTRIBUTE = r"""(?:size|ids?|numbers?|no|codes?|names?|dates?|colou?r|level|type|length|limit|rate|value|price|fee|cost
    |key|address|times?|count|format|field|title|file|text|line|page|box|queue|header|body|log|manager|officer|leader
    |holder|player|model|actor|board|ticket|tracker|duration|capacity|budget|deadline)"""
_MEASURES = r"(?:price|cost|age|height|size|time|weight|length|score|salary|temperature|distance|rent|fee)"
_MATTERS = rf"""(?:(?:plot|storyline|significance|importance|relationships?|role|settings?|themes?|message
    |background|gist|discussions?|opinions?|attitudes?|views?|thoughts|comments?|reactions?|suggestions?|recommendations?|concerns?
    |considerations?|arguments?|debates?|controversy|conclusions?|main\s(?:points?|ideas|topics?)|problems|changes
    |differences?|lessons|reasons?|challenges|advantages|disadvantages|issues
    |(?:status|purpose|plans|future|development|description)(?=\W*$|\s(?:of|for|in|on|with|about|and)\b))
    (?!\s{_ATTRIBUTE}\b))"""
_ASKED = re.compile(
    rf"""
    {_POLITE}
      (?:summari[sz]e|describe|explain|discuss|outline|compare|elaborate|tell\s(?:me|us)\sabout
        |give\s(?:me\s|us\s)?an?\s(?:\w+\s)?(?:summary|overview|account|description|outline))\b
  | \b(?:what|which)(?:['’]s|\s(?:is|are|was|were))\s(?:the\s)?(?:(?!{_MEASURES}\s)\w+\s){{0,2}}?{_MATTERS}
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


_YES_NO = re.compile(
    r"""
    ^\W*(?:(?:and|but|so|then|also)\s)?
      (?:is|are|was|were|am|do|does|did|has|have|had|can|could|may|might|must|shall|should|will|would
        |(?:is|are|was|were|do|does|did|has|have|had|ca|could|must|should|wo|would)n['’]t)\s
      (?!you\b(?!\s(?:have|need)\sto\b))(?!.*\b(?:or|who|what|which|whose|why|how|where)\b)
  | ,\s(?:right|correct|is\sit\snot|isn['’]t\s\w+|did(?:n['’]t)?\s\w+|does(?:n['’]t)?\s\w+)\s*\?\s*$
    """,
    re.IGNORECASE | re.VERBOSE,
)
_YES_NO_ZH = re.compile(
    r"(?!.*(?:谁|誰|什么|什麼|哪|多少|几|幾|怎|如何|为何|為何|还是|還是))"
    r".*(?:[吗嗎]\W*$|是否|是不是|有没有|有沒有|能否|可否|能不能|会不会|會不會|可不可以|要不要|对不对|對不對)"
)


def kind_of(text: str) -> Kind:
    """Tells by its words what a question asks for: `whole` needs all of the document ("Summarize the meeting.",
    "这份文档讲的是什么？"), `quotation` its very words ("Highlight the clauses on the warranty.",
    "摘录关于灯塔的句子"), `yes_no` one of the two ("Did the tower burn?", "灯塔还在吗？")."""
    if _WHOLE.search(text):
        return "whole"
    if _QUOTATION.search(text):
        return "quotation"
    if _ASKED.search(text) or _ASKED_ZH.search(text):
        return "paragraph"
    return "yes_no" if _YES_NO.search(text) or _YES_NO_ZH.match(text) else "phrase"


_COMPARES = re.compile(
    r"\b(?:than|or|both|difference|differ|compared|first|earlier|later|same|versus|vs)\b|比|还是|還是|相差|[都哪]个?更",
    re.IGNORECASE,
)
_SIDE = re.compile(r"(?<!^)\b[A-Z][\w'’-]*(?:\s(?:[A-Z][\w'’-]*|\d+\w*))*|[「“\"《]([^」”\"》]+)[」”\"》]")


def sides(text: str) -> list[str]:
    """Gives the question about each of the two that it compares, without the other's name; an empty list where it
    compares no two names ("Who died first, Ann Lee or Bo Ray?")."""
    names = list(dict.fromkeys(match[0] for match in _SIDE.finditer(text.strip())))
    if len(names) != 2 or not _COMPARES.search(text):
        return []
    return [" ".join(text.replace(name, " ").split()) for name in reversed(names)]


def kind_given(text: str, mode: AnswerMode) -> Kind:
    """Tells what a mode gives of what is asked for: memory alone cannot quote, and passages do not hold the whole."""
    kind = kind_of(text)
    if kind == "whole":
        return "whole" if mode in ("memorag", "gist") else "phrase" if mode == "closed" else "paragraph"
    if mode in ("closed", "gist"):
        return "phrase"
    return "paragraph" if kind == "quotation" and mode == "memory" else kind


def checked_question(text: str) -> str:
    """Strips a question of white space around it. Raises InputError for what no model is needed to refuse."""
    text = text.strip()
    if not any(char.isalnum() for char in text):
        raise InputError("question is empty: it holds no letter or digit; ask something")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"question is not valid Unicode text (character {error.start}); type it again") from error
    return text


class Question:
    """One question on its way to an answer: what is asked for, within which limits, and what it took so far.

    text: None for a summary, which is asked for without words. documents: the documents' language, that of a question
    without letters. prompts: of the question's language. max_tokens, min_tokens: of the answer. generator: what writes
    it. typed: what the text was before a conversation put its turns in front of it, by which its kind is told.

    Raises InputError for an unknown mode, an empty question, and where question and max_tokens leave no room.
    """

    def __init__(
        self,
        text: str | None,
        mode: AnswerMode,
        max_tokens: int,
        documents: Language,
        prompts: Mapping[Language, Prompts],
        generator: TextGenerator,
        on_event: Listener,
        typed: str = "",
    ) -> None:
        if text is not None and mode not in get_args(Mode):
            raise InputError(f"unknown mode {mode!r}: use {', '.join(get_args(Mode))}")
        self.mode = mode
        self.max_tokens = max_tokens
        self.text = "" if text is None else checked_question(text)
        self.typed = checked_question(typed) if typed else self.text
        self.kind: Kind = "whole" if text is None else kind_given(self.typed, mode)
        self.language = detect_language(self.text, documents)
        self.prompts = prompts[self.language]
        self.min_tokens = min(PARAGRAPH_TOKENS, max_tokens) if self.kind == "paragraph" else 0
        templates = {"phrase": self.prompts.answer, "yes_no": self.prompts.yes_no}
        self.template = templates.get(self.kind, self.prompts.paragraph)  # of a prompt with passages
        self.sides = sides(self.text)
        self.generator = generator
        self.clock = Clock(on_event)
        self.views: set[MemoryView] = set()  # what memory was read for it
        self.hits: Sequence[Hit] = ()  # what its own words retrieved, best first
        self._check()

    def left(self, prompt: str) -> int:
        """Tokens of the generator's context that a prompt and its answer leave; negative when they do not fit."""
        taken = self.generator.prompt_tokens(self.prompts.system, prompt) + self.max_tokens
        return self.generator.max_context - taken

    def _check(self) -> None:
        """Raises InputError when max_tokens leaves no room for a prompt, or when the question is longer than
        QUESTION_TOKENS, or leaves no room for passages where they are needed."""
        if self.max_tokens < 1:
            raise InputError(f"max_tokens is {self.max_tokens}: it must be at least 1")
        prompts, reserved = self.prompts, MIN_EVIDENCE if self.mode in ("memorag", "rag", "gist") else 0
        if self.mode in ("memorag", "rag"):
            bare = prompts.paragraph if self.kind == "paragraph" else prompts.answer
        else:
            bare = {"gist": prompts.gist, "summarize": prompts.summary}.get(self.mode, prompts.closed)
        room = self.left(bare.format(question="", passages="", points="", parts="", not_found=prompts.not_found))
        if room < 1:
            raise InputError(
                f"max_tokens is {self.max_tokens}, too many for this model's context of {self.generator.max_context} "
                f"tokens: lower it by {1 - room} or more"
            )
        limit, count = max(0, min(QUESTION_TOKENS, room - reserved)), self.generator.count(self.text)
        if count > limit:
            raise InputError(f"question is {count} tokens long, and at most {limit} fit: shorten it")
