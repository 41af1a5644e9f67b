"""Question -> answer. The only room that knows prompts; it touches no tensors and imports no model."""

from minimemo.loop.answer import Answer, Mode, Passage
from minimemo.loop.clues import Clue
from minimemo.loop.language import Language, detect_language
from minimemo.loop.prompts import PROMPTS, MemoryOpening, Prompts, load_prompts, memory_opening
from minimemo.loop.run import DEFAULTS, Found, Settings, checked_question
from minimemo.loop.session import Session
from minimemo.loop.writer import GrowingText, LocalGenerator, Piece, TextGenerator, Written

__all__ = [
    "DEFAULTS",
    "PROMPTS",
    "Answer",
    "Clue",
    "Found",
    "GrowingText",
    "Language",
    "LocalGenerator",
    "MemoryOpening",
    "Mode",
    "Passage",
    "Piece",
    "Prompts",
    "Session",
    "Settings",
    "TextGenerator",
    "Written",
    "checked_question",
    "detect_language",
    "load_prompts",
    "memory_opening",
]
