"""Where pulled models live. Paths only: nothing is created here, and nothing happens at import."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from minimemo.errors import InputError


def home() -> Path:
    """minimemo's folder: `$MINIMEMO_HOME`, or `minimemo` in the user's cache folder as the platform names it.

    Linux and other Unixes follow the XDG base directory rule: a relative `$XDG_CACHE_HOME` does not count.
    Raises InputError when the user has no home folder and `$MINIMEMO_HOME` is not set.
    """
    chosen = os.environ.get("MINIMEMO_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        return _user_cache() / "minimemo"
    except RuntimeError as error:  # pathlib knows no home folder
        raise InputError("MINIMEMO_HOME: no home folder is known; set it to a folder for the models") from error


def models_dir() -> Path:
    """The folder that holds one folder for each pulled model."""
    return home() / "models"


def model_dir(name: str) -> Path:
    """The folder of one model: a catalogue name, or a hub's `owner/name` (one flat level: `owner--name`)."""
    return models_dir() / name.replace("/", "--")


def profiles_dir() -> Path:
    """The folder of the transform codec's profiles."""
    return home() / "profiles"


def _user_cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"
