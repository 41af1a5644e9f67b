"""Question -> answer. The only room that knows prompts; it touches no tensors and imports no model."""

from minimemo.ask.answer import Answer, Found, Passage
from minimemo.ask.clues import Clue
from minimemo.ask.conversation import Conversation, stands_alone
from minimemo.ask.prompts import PROMPTS, MemoryOpening, Prompts, load_prompts, memory_opening
from minimemo.ask.question import Mode, checked_question
from minimemo.ask.session import Session
from minimemo.ask.writer import Piece, TextGenerator, Writer, Written
from minimemo.text.scripts import Language, detect_language

__all__ = [
    "PROMPTS",
    "Answer",
    "Clue",
    "Conversation",
    "Found",
    "Language",
    "MemoryOpening",
    "Mode",
    "Passage",
    "Piece",
    "Prompts",
    "Session",
    "TextGenerator",
    "Writer",
    "Written",
    "checked_question",
    "detect_language",
    "load_prompts",
    "memory_opening",
    "stands_alone",
]
