"""Texts with marks of their own: Markdown, subtitles, mail."""

from __future__ import annotations

import email
import html
import re
from email.message import EmailMessage
from email.policy import EmailPolicy
from typing import Any

from minimemo.errors import InputError
from minimemo.readers.html import Text, read_html
from minimemo.text.document import Place

_FRONT_MATTER = re.compile(
    r"\A(?:---[ \t]*\n(?=[\w\"'#-]+ *:|#).*?\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)"
    r"|\+\+\+[ \t]*\n.*?\n\+\+\+[ \t]*(?:\n|\Z))\s*",
    re.DOTALL,
)
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r"^ {0,3}(#{1,6})\s++(.*)")
_HEADER = 20_000  # characters of a mail's header that are read
_CUE = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{2})[.,]\d{3}\s+-->\s+\S+.*")
_VOICE = re.compile(r"<v(?:\.[^ >]*)? ([^>\n]{1,80})>")  # who speaks, in WebVTT
_FROM = re.compile(rb"(?:\A|(?<=\n\n)|(?<=\n\r\n))From \S+ .*\d{4}.*\n")  # where a message of an mbox begins
_TAG = re.compile(r"</?[^>\n]{1,80}>|\{\\[^}\n]*\}")


def read_markdown(text: str) -> tuple[str, list[Place]]:
    """The text as it stands, less front matter, and its headings (ATX and underlined)."""
    body = text[match.end() :] if (match := _FRONT_MATTER.match(text)) else text
    places: list[Place] = []
    levels: list[tuple[int, str]] = []
    fence, at, before = "", 0, ""
    for line in body.splitlines(keepends=True):
        if match := _FENCE.match(line):
            fence = "" if fence and match[1].startswith(fence) else fence or match[1]
        level, title, start = 0, "", at
        if not fence and (match := _HEADING.match(line.rstrip("\n"))):
            level, title = len(match[1]), match[2].rstrip().rstrip("#").rstrip()
        elif not fence and before.strip() and re.fullmatch(r" {0,3}(=+|-{3,})\s*", line):
            level, title, start = (1 if "=" in line else 2), before.strip(), at - len(before)
        if title:
            levels = [*((above, name) for above, name in levels if above < level), (level, title)]
            places.append(Place(start, heading=tuple(name for _, name in levels)))
        before, at = line, at + len(line)
    return body, places


def read_subtitles(text: str) -> tuple[str, list[Place]]:
    """The speech of SRT or WebVTT joined into lines, and the time at which each cue begins."""
    out = Text()
    cue, before = False, ""
    lines = [line.strip() for line in text.splitlines()]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if match := _CUE.match(line):
            hours, minutes, seconds = int(match[1] or 0), int(match[2]), int(match[3])
            out.begin(time=f"{hours}:{minutes:02}:{seconds:02}")
            cue = True
        elif not line or (line.isdecimal() and _CUE.match(following)):
            cue = False
        elif cue:
            spoken = html.unescape(_TAG.sub("", _VOICE.sub(r"- \1: ", line))).strip()
            if spoken == before:  # a caption that rolls on shows its last line again
                continue
            before = spoken
            if spoken.startswith(("-", "–", ">>")):  # another speaker
                out.end_block(blank=False)
            out.add(f" {spoken}")
    return out.text, out.places


class _Bounded(EmailPolicy):
    """The usual rules for mails, for the beginnings of headers: the time to parse one grows with its square."""

    def header_fetch_parse(self, name: str, value: str) -> Any:  # reached by: email
        return super().header_fetch_parse(name, value[:_HEADER])


def read_mail(content: bytes, name: str) -> tuple[str, list[Place]]:
    """Subject, sender, receiver, date and the text parts of a message, or of each message of an mbox.

    Raises InputError for parts within parts without end.
    """
    out = Text()
    for raw in _FROM.split(content):
        if not raw.strip():
            continue
        try:
            message = email.message_from_bytes(raw, policy=_Bounded())
            assert isinstance(message, EmailMessage)
            body = message.get_body(preferencelist=("plain", "html"))
            attached = [part for part in message.iter_attachments() if part.get_content_type() == "text/plain"]
        except RecursionError:
            raise InputError(f"{name}: a mail with too many parts within each other; save its text") from None
        subject = _header(message, "Subject")
        out.end_block(blank=True)
        out.begin(heading=(subject or "(no subject)",))
        for field in ("Subject", "From", "To", "Date"):
            if value := _header(message, field):
                out.verbatim(f"{field}: {value}")
                out.end_block(blank=False)
        for part in [body, *attached] if body is not None else attached:
            out.end_block(blank=True)
            said = _content(part)
            if part.get_content_subtype() == "html":
                read_html(said, name, out)
            elif said.strip():
                out.verbatim(said.replace("\r\n", "\n").strip())
    return out.text, out.places


def _header(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(str(message.get(name, "")).split())
    except (ValueError, IndexError, AttributeError, RecursionError):  # the parser of headers falls over some
        return ""


def _content(part: Any) -> str:
    try:
        return str(part.get_content())
    except (LookupError, ValueError):  # of a character set that nobody knows
        return bytes(part.get_payload(decode=True) or b"").decode("utf-8", errors="replace")
