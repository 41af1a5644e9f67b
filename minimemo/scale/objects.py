"""Memos in an object store: put there whole, asked there without being copied.

    PREFIX/book.memo/manifest.json             as in the folder; put last, and only where there is none
    PREFIX/book.memo/HASH-memory.bin ...       the other files, each under its SHA-256
    PREFIX/profiles/MODEL-HASH.safetensors     shared by the memos of a model

Of two writers of one memo the one whose manifest comes first wins, whole, as neither can write over a file of the
other's. A reader takes the small files whole, checked by the manifest's hashes, and of memory.bin the blocks of its
view (ranges.py), checked as on disk. What is kept here of a memo lies in minimemo's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from minimemo.ask import PROMPTS
from minimemo.errors import InputError, MemoError, MinimemoError
from minimemo.files import private_folder, profiles_dir, write_whole
from minimemo.memo.library import portable_files
from minimemo.memo.manifest import FILES, MEMORY, NAME, FileInfo, Manifest, file_info
from minimemo.memo.memo import Memo, together
from minimemo.memory.profile import profile_file
from minimemo.runtime import Runtime
from minimemo.scale.archive import arriving
from minimemo.scale.ranges import ObjectBytes, forget, objects_dir

_ADDRESS = re.compile(r"(s3|gs|az|file)://(.+)")
_KEY = re.compile(r"manifest\.json|[0-9a-f]{64}-(" + "|".join(map(re.escape, FILES)) + ")")
_PROFILE = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\.safetensors")
_AGAIN = "delete it there and export the memo again"
_MARK = "etag"  # of the manifest that is kept here, in a file of its own
_PATIENCE = timedelta(seconds=30)  # for one request with its repetitions
_STREAM = 4 << 20  # bytes at a time of an object that is copied


def is_address(place: str | Path) -> bool:
    """Whether a place is in an object store, rather than on this disk."""
    return isinstance(place, str) and _ADDRESS.match(place) is not None


@dataclass(frozen=True, slots=True)
class Place:
    """A memo's place in a store. base: the store at the folder above the memo; name: the memo's own, `book.memo`."""

    address: str
    base: Any
    name: str

    @property
    def cache(self) -> Path:
        """The folder of what is kept here of the memo."""
        return objects_dir() / hashlib.sha256(self.address.encode()).hexdigest()[:24]

    def path(self, key: str) -> str:
        """Where an object of the memo is below `base`; profiles lie beside the memos."""
        return key if key.startswith("profiles/") else f"{self.name}/{key}"

    def at(self, key: str) -> str:
        """The address of an object of the memo, for messages."""
        return f"{self.address.rpartition('/')[0]}/{self.path(key)}"

    @contextmanager
    def reaching(self, key: str) -> Iterator[str]:
        """Gives the object's path in the store; an error of the store's becomes one that names the object."""
        from obstore.exceptions import AlreadyExistsError, BaseError, NotModifiedError, PreconditionError

        try:
            yield self.path(key)
        except FileNotFoundError:
            raise MemoError(f"{self.at(key)}: no such object; put the memo there with minimemo export") from None
        except (AlreadyExistsError, PreconditionError, NotModifiedError):
            raise
        except (BaseError, OSError, ValueError) as error:
            raise MinimemoError(f"{self.at(key)}: cannot be reached ({_said(error)})") from None

    def get(self, key: str, size: int, start: int, end: int) -> bytes:
        """Bytes [start, end) of an object of `size` bytes. Raises MemoError where it has others."""
        import obstore

        with self.reaching(key) as path:
            try:
                content = bytes(obstore.get_range(self.base, path, start=start, end=end))
            except Exception:
                if (there := obstore.head(self.base, path)["size"]) == size:
                    raise
                raise MemoError(f"{self.at(key)}: damaged ({there} bytes where {size} belong); {_AGAIN}") from None
        if len(content) != end - start:
            raise MemoError(f"{self.at(key)}: damaged (it was cut off); {_AGAIN}")
        return content

    def whole(self, key: str, info: FileInfo) -> bytes:
        """All of a small object. Raises MemoError where it is not what was put there."""
        import obstore

        with self.reaching(key) as path:
            content = bytes(obstore.get(self.base, path).bytes())
        if (len(content), hashlib.sha256(content).hexdigest()) != (info.bytes, info.sha256):
            raise MemoError(f"{self.at(key)}: damaged (checksum); {_AGAIN}")
        return content


def place_of(address: str, name: str = "") -> Place:
    """The place of a memo. name: that of the memo, where the address may be of the folder above it.

    Keys to the store are taken from the environment, under the names that its own tools have (AWS_ACCESS_KEY_ID,
    GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY ...), or from the machine that runs in it. Raises
    InputError for what is no address of a memo.
    """
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise InputError(f"{address}: needs obstore: pip install 'minimemo[cloud]' ({error})") from error
    address = address.rstrip("/")
    if name and not address.endswith(".memo"):
        address = f"{address}/{name}"
    above, _, last = address.rpartition("/")
    if not last.endswith(".memo") or not _ADDRESS.match(above):
        raise InputError(f"{address}: name a memo in a store, as s3://bucket/prefix/book.memo")
    here: Mapping[str, Any] = {"mkdir": bool(name)} if address.startswith("file:") else {
        "client_options": {"timeout": "60s", "connect_timeout": "10s", "allow_http": _plain_http()},
        "retry_config": {"max_retries": 4, "retry_timeout": _PATIENCE},
    }  # fmt: skip
    try:
        return Place(address, from_url(above, **here), last)
    except Exception as error:  # of a type for each kind of store
        raise InputError(f"{address}: is no place in a store ({_said(error)})") from None


def _plain_http() -> bool:
    """Whether the environment lets a store be reached unencrypted, as one on this machine is."""
    said = (os.environ.get(f"{cloud}_ALLOW_HTTP", "") for cloud in ("AWS", "AZURE", "GOOGLE"))
    return any(one.lower() in ("1", "true") for one in said)


def upload(memo: Path, address: str) -> str:
    """Puts a memo into a store, and gives its address there; the same memo may be put there any number of times.

    Raises MemoError for what is no memo or damaged, InputError where there is another one, MinimemoError where the
    store cannot be reached.
    """
    import obstore
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    place = place_of(address, memo.name if memo.name.endswith(".memo") else f"{memo.name}.memo")
    manifest = Manifest.load(memo)
    content = (memo / NAME).read_bytes()
    if (there := _manifest(place)) is not None:
        return _agreed(place, there, content)
    _, *files = portable_files(memo)
    for file in files:
        shared = file.name not in FILES
        key = f"profiles/{file.name}" if shared else _key(file.name, manifest)
        with suppress(AlreadyExistsError, PreconditionError), place.reaching(key) as path:
            obstore.put(place.base, path, file, mode="create" if shared else "overwrite")
    try:
        with place.reaching(NAME) as path:
            obstore.put(place.base, path, content, mode="create")
    except (AlreadyExistsError, PreconditionError):
        there = _manifest(place) or b""
        theirs = Manifest.parse(there, place.at(NAME))
        for key in {_key(name, manifest) for name in manifest.files} - {_key(name, theirs) for name in theirs.files}:
            with place.reaching(key) as path:
                obstore.delete(place.base, path)
        return _agreed(place, there, content)
    return place.address


def download(address: str, out: Path) -> Path:
    """Copies a memo out of a store, whole or not at all, with the profile that it needs, checks every byte of it and
    notes it. Raises InputError for an `out` that exists, MemoError for what is no memo or damaged."""
    import obstore

    place = place_of(address)
    with arriving(out) as memo:
        manifest, content = _current(place)
        (memo / NAME).write_bytes(content)
        _bring_profile(place, manifest, memo)
        for name, info in manifest.files.items():
            key = _key(name, manifest)
            with place.reaching(key) as path, (memo / name).open("xb") as file:
                for part in obstore.get(place.base, path).stream(_STREAM):
                    file.write(part)
            if file_info(memo / name) != info:
                raise MemoError(f"{place.at(key)}: damaged (checksum); {_AGAIN}")
    return out


def open_places(places: Sequence[str], *, prompts: Any = PROMPTS, **models: Any) -> Memo:
    """Opens memos, some of them or all in a store, to be asked together; the arguments are those of `open_memos`."""
    runtime, memos = Runtime(**models), []
    for named in dict.fromkeys(places):
        if not is_address(named):
            memos.append(Memo(Path(named), Manifest.load(Path(named)), runtime, prompts))
            continue
        place = place_of(named)
        manifest = _bring(place)
        key, size = _key(MEMORY, manifest), manifest.files[MEMORY].bytes
        parts = place.cache / manifest.files[MEMORY].sha256[:24]
        memory = partial(ObjectBytes, place.at(key), size, parts, partial(place.get, key, size))
        memos.append(Memo(place.cache, manifest, runtime, prompts, memory=memory))
    return together(memos)


def delete(address: str) -> int:
    """Deletes a memo in a store, and what is kept here of it; gives the bytes that are free there now. The profile,
    which other memos may need, stays. Raises MemoError where there is none, InputError where other things lie there."""
    import obstore

    place = place_of(address)
    forget(place.cache)
    with place.reaching("") as path:
        listed = {one["path"]: one["size"] for batch in obstore.list(place.base, path) for one in batch}
    keys = {path: path.removeprefix(f"{place.name}/") for path in listed}
    if not keys:
        raise MemoError(f"{place.address}: no such memo")
    if others := [key for key in keys.values() if not _KEY.fullmatch(key)]:
        raise InputError(f"{place.address}: holds {', '.join(others[:9])}, which no memo has; move it elsewhere first")
    for path in sorted(listed, key=lambda path: not path.endswith(NAME)):  # the manifest first: half a memo is none
        with place.reaching(keys[path]):
            obstore.delete(place.base, path)
    return sum(listed.values())


def _bring(place: Place) -> Manifest:
    """Brings all but memory.bin into the cache folder, what is not there already."""
    private_folder(place.cache)
    manifest, _ = _current(place)
    for name, info in manifest.files.items():
        kept = place.cache / name
        if name != MEMORY and not (kept.is_file() and file_info(kept) == info):
            write_whole(kept, place.whole(_key(name, manifest), info), private=True)
    for old in place.cache.iterdir():
        if old.is_dir() and old.name != manifest.files[MEMORY].sha256[:24]:
            forget(old)  # parts of a memory that was there before
    _bring_profile(place, manifest, profiles_dir())
    return manifest


def _current(place: Place) -> tuple[Manifest, bytes]:
    """The manifest as it is in the store, and its bytes; they do not travel where they are those kept here."""
    import obstore
    from obstore.exceptions import NotModifiedError

    kept, mark, etag = place.cache / NAME, place.cache / _MARK, None
    with suppress(OSError, MemoError):
        Manifest.load(place.cache)
        etag = mark.read_text(encoding="utf-8")
    try:
        with place.reaching(NAME) as path:
            came = obstore.get(place.base, path, options={"if_none_match": etag} if etag else {})
            content, etag = bytes(came.bytes()), came.meta["e_tag"]
    except NotModifiedError:
        return Manifest.load(place.cache), kept.read_bytes()
    except MemoError:
        forget(place.cache)
        raise
    manifest = Manifest.parse(content, place.at(NAME))
    if place.cache.is_dir():  # while it is asked
        mark.unlink(missing_ok=True)  # first: never with the manifest of another
        write_whole(kept, content, private=True)
        write_whole(mark, (etag or "").encode(), private=True)
    return manifest, content


def _bring_profile(place: Place, manifest: Manifest, folder: Path) -> None:
    """Brings the profile that a memo needs into a folder, unless this machine has it."""
    import obstore

    hash_ = manifest.recipe.params.get("profile")
    if hash_ is None:
        return
    with suppress(MemoError):
        profile_file(str(hash_), profiles_dir())
        return
    name = f"{manifest.recipe.model[:16]}-{hash_}.safetensors"
    if not _PROFILE.fullmatch(name):
        raise MemoError(f"{place.at(NAME)}: damaged (profile {hash_!r}); {_AGAIN}")
    with place.reaching(f"profiles/{name}") as path:
        content = bytes(obstore.get(place.base, path).bytes())
    if not hashlib.sha256(content).hexdigest().startswith(hash_):
        raise MemoError(f"{place.at(f'profiles/{name}')}: damaged (checksum); {_AGAIN}")
    write_whole(folder / name, content)


def _agreed(place: Place, there: bytes, content: bytes) -> str:
    """The address, where the manifest in the store is this memo's."""
    if there != content:
        raise InputError(f"{place.address}: another memo is there; delete it first: minimemo rm {place.address}")
    return place.address


def _manifest(place: Place) -> bytes | None:
    """The bytes of the manifest in the store; None where there is none."""
    import obstore

    with suppress(MemoError), place.reaching(NAME) as path:
        return bytes(obstore.get(place.base, path).bytes())
    return None


def _key(name: str, manifest: Manifest) -> str:
    """The key of a file under its memo."""
    return f"{manifest.files[name].sha256}-{name}"


def _said(error: BaseException) -> str:
    """The first line of a store's error, without what may be a key."""
    return re.sub(r"\?\S+", "?...", str(error).strip().splitlines()[0])[:200] if str(error).strip() else "no reason"
