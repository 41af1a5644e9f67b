"""A model hub over plain HTTPS: its files, and what it says about a repository."""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.parse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from minimemo.errors import FetchError, InputError
from minimemo.hub.fetch import (
    File,
    Patience,
    Tick,
    bring_verified,
    download,
    missing_bytes,
    open_url,
    require_space,
)

DEFAULT_BASE = "https://huggingface.co"
# owner/name, or owner/name/file.gguf for one file of a repository that holds many
REPOSITORY = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?P<gguf>[\w.-]+\.gguf))?", re.ASCII)

_LISTING_LIMIT = 32 << 20  # bytes of a repository's description; a real one has a few thousand
_SMALL = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|chat_template\.jinja|modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json"
    r"|\d+_[A-Za-z]+/(config\.json|model\.safetensors)"  # the modules of a sentence-transformers model
)
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def base_url() -> str:
    """The hub: `$MINIMEMO_HUB`, without a final slash. Raises FetchError when that is `off` or empty."""
    base = os.environ.get("MINIMEMO_HUB", DEFAULT_BASE).rstrip("/")
    if base in ("", "off"):
        raise FetchError("switched off by MINIMEMO_HUB")
    if not base.startswith(("https://", "http://")):
        raise InputError(f"MINIMEMO_HUB: {base!r} is not an address; give https://… or `off`")
    return base


@dataclass(frozen=True, slots=True)
class HubSource:
    """Files of one repository at one revision, under the names they have there."""

    repo: str
    revision: str = "main"
    patience: Patience = field(default_factory=Patience)

    @property
    def label(self) -> str:
        return "model hub"

    def fetch(self, files: Sequence[File], folder: Path, tick: Tick) -> None:
        """See `fetch.Source`. Each file is verified before the next is asked for."""
        root = f"{base_url()}/{self.repo}/resolve/{self.revision}"
        token = os.environ.get("HF_TOKEN", "")
        require_space(folder, missing_bytes(files, folder))
        for file in files:

            def bring(file: File = file) -> None:
                url = f"{root}/{urllib.parse.quote(file.path)}"
                download(url, file.partial(folder), file.size, tick, self.patience, token)

            bring_verified([file], folder, bring)


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit: every file it has."""

    repo: str
    commit: str
    files: tuple[File, ...]

    def model_files(self) -> tuple[File, ...]:
        """The files that make a model directory. Raises FetchError naming what the repository lacks."""
        names = {file.path for file in self.files}
        weights = {"model.safetensors"}
        if _INDEX in names:
            weights = {name for name in names if _SHARD.fullmatch(name)} | {_INDEX}
        lacking = [need for need in ("config.json", "tokenizer.json") if need not in names]
        if not weights <= names:
            lacking.append("safetensors weights")
        if lacking:
            ggufs = sorted(name for name in names if name.endswith(".gguf"))
            mend = f"; name one of its GGUF files: {self.repo}/{ggufs[0]}" if ggufs else "; choose another repository"
            raise FetchError(f"{self.repo}: has no {' and no '.join(lacking)}{mend}")
        return tuple(file for file in self.files if file.path in weights or _SMALL.fullmatch(file.path))

    def gguf(self, name: str) -> tuple[File, ...]:
        """One GGUF file of the repository. Raises FetchError listing those it has."""
        ggufs = [file for file in self.files if file.path.endswith(".gguf")]
        if found := [file for file in ggufs if file.path == name]:
            return tuple(found)
        raise FetchError(f"{self.repo}: has no {name}; its GGUF files: {', '.join(f.path for f in ggufs) or 'none'}")


def list_repository(repo: str, patience: Patience | None = None) -> Listing:
    """Ask the hub what `repo` holds now: its commit, and the size and hash of each file. Raises FetchError."""
    url = f"{base_url()}/api/models/{repo}/revision/main?blobs=true"
    try:
        token = os.environ.get("HF_TOKEN", "")
        with closing(open_url(url, patience or Patience(), {"Accept": "application/json"}, token)) as response:
            told = json.loads(response.read(_LISTING_LIMIT))
        files = []
        for entry in told["siblings"]:
            large = entry.get("lfs")  # a SHA-256 for large files; small ones have only git's hash
            digest = large["sha256"] if large else entry["blobId"]
            files.append(File(str(entry["rfilename"]), int(entry["size"]), str(digest)))
        return Listing(repo, str(told["sha"]), tuple(files))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise FetchError(f"{repo}: the model hub cannot be asked: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise FetchError(f"{url}: not the description of a repository ({error!r})") from error
