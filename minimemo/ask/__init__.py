"""Question -> answer. The only room that knows prompts; it touches no tensors and imports no model."""

from minimemo.ask.answer import Answer, Mode, Passage
from minimemo.ask.clues import Clue
from minimemo.ask.prompts import PROMPTS, MemoryOpening, Prompts, load_prompts, memory_opening
from minimemo.ask.run import DEFAULTS, Found, Settings, checked_question
from minimemo.ask.session import Session
from minimemo.ask.writer import GrowingText, LocalGenerator, Piece, TextGenerator, Written
from minimemo.text.scripts import Language, detect_language

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
