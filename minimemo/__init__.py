"""minimemo: ask questions of a long document on your own machine, from a compact KV memory.

    import minimemo
    memo = minimemo.build("book.txt")            # or minimemo.open("book.memo")
    print(memo.ask("Who is Mr. Knightley?").text)

Names are loaded when first used: importing the package costs nothing. It sets GOMP_SPINCOUNT,
ONEDNN_PRIMITIVE_CACHE_CAPACITY and LRU_CACHE_CAPACITY (minimemo/threads.py).
"""

from __future__ import annotations

from minimemo.threads import bound_shapes, spin_briefly

TYPE_CHECKING = False  # typing's own takes 5 ms
if TYPE_CHECKING:
    from minimemo.ask import PROMPTS, Answer, Clue, Found, Passage, Piece, Prompts, TextGenerator, Written, load_prompts
    from minimemo.ask.endpoint import Endpoint
    from minimemo.errors import FetchError, GeneratorError, InputError, MemoError, MinimemoError, ModelError
    from minimemo.events import Event
    from minimemo.hub.catalog import pull
    from minimemo.memo.build import build
    from minimemo.memo.calibrate import calibrate
    from minimemo.memo.library import Store, export, open_store
    from minimemo.memo.memo import Memo, open_memos
    from minimemo.memo.memo import open_memo as open
    from minimemo.runtime import LanguageModel, RunOptions, load_model, open_embedder
    from minimemo.text.document import Document

__version__ = "0.1.0"

spin_briefly()
bound_shapes()

_HOMES = {
    "ask": "PROMPTS Answer Clue Found Passage Piece Prompts TextGenerator Written load_prompts",
    "ask.endpoint": "Endpoint",
    "errors": "FetchError GeneratorError InputError MemoError MinimemoError ModelError",
    "events": "Event",
    "hub.catalog": "pull",
    "memo.build": "build",
    "memo.calibrate": "calibrate",
    "memo.library": "Store export open_store",
    "memo.memo": "Memo open open_memos",
    "runtime": "LanguageModel RunOptions load_model open_embedder",
    "text.document": "Document",
}
_NAMES = {"open": "open_memo"}

__all__ = [
    "PROMPTS", "Answer", "Clue", "Document", "Endpoint", "Event", "FetchError", "Found", "GeneratorError", "InputError",
    "LanguageModel", "Memo", "MemoError", "MinimemoError", "ModelError", "Passage", "Piece", "Prompts", "RunOptions",
    "Store", "TextGenerator", "Written", "build", "calibrate", "export", "load_model", "load_prompts",
    "open", "open_embedder", "open_memos", "open_store", "pull",
]  # fmt: skip


if not TYPE_CHECKING:  # to a type checker the names above are all there are

    def __getattr__(name: str) -> object:
        home = next((home for home, names in _HOMES.items() if name in names.split()), None)
        if home is None:
            raise AttributeError(f"module 'minimemo' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"minimemo.{home}"), _NAMES.get(name, name))
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
