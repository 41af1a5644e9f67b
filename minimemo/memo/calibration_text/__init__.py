"""Text to calibrate a model with, for a machine that has nothing but the package.

Each .txt file here, UTF-8, is one document of a kind of its own, at least 1,300 tokens of Qwen2.5: prose, reference,
law, talk, news, source code; English, and Chinese in simplified and traditional characters. Hardly a phrase comes
twice. People, firms and most facts in them are invented.
"""

from __future__ import annotations

from importlib import resources

from minimemo.errors import MinimemoError


def shipped_texts() -> list[str]:
    """The documents, in order of their file names. Raises InputError when the installation lacks them."""
    files = sorted(
        (file for file in resources.files(__name__).iterdir() if file.name.endswith(".txt")), key=lambda file: file.name
    )
    if not files:
        raise MinimemoError("calibration: the package came without its texts; install minimemo again or give `texts`")
    return [file.read_text(encoding="utf-8") for file in files]
