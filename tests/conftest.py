"""Every test file has a minimemo folder of its own; tests marked `real` use the user's, where models are pulled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from minimemo.runtime import LanguageModel, OpenEmbedder

# Triton decides on import whether it interprets: its kernels are tested so, or on a GPU (tools/gpu_check).
if os.environ.get("MINIMEMO_TEST_DEVICE") != "cuda":
    os.environ["TRITON_INTERPRET"] = "1"

_USERS_HOME = os.environ.get("MINIMEMO_HOME")


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """No test cuts the power: what is written need not have reached the disk, which takes some milliseconds a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _templates_are_rendered_here() -> Iterator[None]:
    """Not in a process of their own, whose start takes a sixth of a second: that is for tests/models/test_chat.py."""
    from minimemo.models import chat
    from tests.commands import render_here

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "_said", render_here)
        yield


@pytest.fixture(scope="module", autouse=True)
def _own_home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of the module's scope, so that its fixtures (a memo built once) leave nothing in the user's folder either."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("real") is None:
            home = tmp_path_factory.mktemp("home")
            patch.setenv("MINIMEMO_HOME", str(home))
            items = [item for item in request.session.items if item.path == request.node.path]
            if any("tiny_models" in getattr(item, "fixturenames", ()) for item in items):
                shutil.copytree(request.getfixturevalue("tiny_profiles"), home / "profiles")
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A minimemo folder of a test's own."""
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _users_home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For single tests marked `real` in a module that is not."""
    if "real" in request.keywords:
        if _USERS_HOME is None:
            monkeypatch.delenv("MINIMEMO_HOME", raising=False)
        else:
            monkeypatch.setenv("MINIMEMO_HOME", _USERS_HOME)


@dataclass(frozen=True)
class TinyModels:
    """Folders of a tiny decoder and a tiny embedder."""

    decoder: Path
    embedder: Path

    @property
    def both(self) -> dict[str, Path]:
        """As the library is told them."""
        return {"model": self.decoder, "embedder": self.embedder}

    @property
    def options(self) -> list[str]:
        """As the command line is."""
        return ["--model", str(self.decoder), "--embedder", str(self.embedder)]


@pytest.fixture(scope="session")
def tiny_profiles(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny decoder's profile, measured on little text: the default memory needs one."""
    from minimemo.memo.calibrate import calibrate
    from minimemo.memo.calibration_text import shipped_texts
    from minimemo.runtime import load_model

    home = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIMEMO_HOME", str(home))
        calibrate(load_model(tiny_models.decoder), [text[:600] for text in shipped_texts()[::2]])
    return home / "profiles"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    from tests.tiny import write_embedder, write_model

    folder = tmp_path_factory.mktemp("models")
    return TinyModels(write_model(folder / "decoder"), write_embedder(folder / "embedder"))


@pytest.fixture(scope="module")
def model(tiny_models: TinyModels) -> LanguageModel:
    """The tiny decoder, loaded; some modules have another one."""
    from minimemo.runtime import load_model

    return load_model(tiny_models.decoder)


@pytest.fixture(scope="module")
def embedder(tiny_models: TinyModels) -> OpenEmbedder:
    """The tiny embedder, loaded."""
    from minimemo.runtime import open_embedder

    return open_embedder(tiny_models.embedder)


@pytest.fixture(scope="module")
def loaded(model: LanguageModel, embedder: OpenEmbedder) -> dict[str, LanguageModel | OpenEmbedder]:
    """Both, as the library is told them."""
    return {"model": model, "embedder": embedder}
