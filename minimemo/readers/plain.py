"""Texts with marks of their own: Markdown, subtitles, mail."""

from __future__ import annotations

import email
import email.policy
import re
from email.message import EmailMessage

from minimemo.readers.html import Text, read_html
from minimemo.text.document import Place

_FRONT_MATTER = re.compile(
    r"\A(?:---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*\n|\+\+\+[ \t]*\n.*?\n\+\+\+[ \t]*\n)\s*", re.DOTALL
)
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r"^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_CUE = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,]\d{3}\s+-->\s+\S+.*")
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
            level, title = len(match[1]), match[2]
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
    cue = False
    for line in text.splitlines():
        if match := _CUE.match(line.strip()):
            hours, minutes, seconds = int(match[1] or 0), int(match[2]), int(match[3])
            out.begin(time=f"{hours}:{minutes:02}:{seconds:02}")
            cue = True
        elif not line.strip():
            cue = False
        elif cue:
            spoken = _TAG.sub("", line).strip()
            if spoken.startswith(("-", "–", ">>")):  # another speaker
                out.end_block(blank=False)
            out.add(f" {spoken}")
    return out.text, out.places


def read_mail(content: bytes) -> tuple[str, list[Place]]:
    """Subject, sender, receiver, date and the text of a message, or of each message of an mbox."""
    out = Text()
    for raw in re.split(rb"(?m)^From \S+.*\n", content):
        if not raw.strip():
            continue
        message = email.message_from_bytes(raw, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        subject = " ".join(str(message.get("Subject", "")).split())
        out.end_block(blank=True)
        out.begin(heading=(subject or "(no subject)",))
        for name in ("Subject", "From", "To", "Date"):
            if value := " ".join(str(message.get(name, "")).split()):
                out.verbatim(f"{name}: {value}")
                out.end_block(blank=False)
        out.end_block(blank=True)
        body = message.get_body(preferencelist=("plain", "html"))
        if body is not None:
            said = body.get_content()
            if body.get_content_subtype() == "html":
                read_html(said, target=out)
            elif said.strip():
                out.verbatim(said.replace("\r\n", "\n").strip())
    return out.text, out.places
