"""Memos of strangers: archives for `minimemo import` that lie, and memos with right checksums and wrong content."""

from __future__ import annotations

import hashlib
import io
import json
import random
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from ground import Case, Ground, child, digest

_VALUES: tuple[Any, ...] = (
    None, True, -5, 0, 3, 10**30, 1e300, float("nan"), "x", "", "\ud800", "../../../etc", "\0\n\x1b[2J", [], [1], {},
    {"a": 1},
)  # fmt: skip
Files = dict[str, bytes]  # of a memo, by their names


def archives(ground: Ground) -> Iterator[Case]:
    """Each becomes a memo that works, or an error of one line and nothing at all; other files stay as they are."""

    @cache
    def good() -> Files:
        ground.fresh()
        memo = ground.memo(1500, memory="int4")
        return {path.name: path.read_bytes() for path in sorted(memo.iterdir())}

    @cache
    def whole() -> bytes:
        return zipped(good())

    def case(make: Callable[[], bytes], passphrase: str | None = None) -> str:
        content = make()
        place = ground.fresh()
        yours = place / "yours"
        yours.mkdir()
        (yours / "thesis.tex").write_text("a year's work")
        before, archive, out = digest(yours), place / "stranger.memo.zip", place / "stranger.memo"
        archive.write_bytes(content)
        ended = child(lambda: _use(ground, archive, out, passphrase), seconds=30)
        if wrong := ended.fell(0):
            return wrong
        if ended.out.count("\n") > 9 or "\x1b" in ended.out:
            return f"said {ended.out[:200]!r}"
        left = {path.name for path in place.iterdir()} - {"yours", archive.name, "again.memo"}
        if digest(yours) != before:
            return "a file outside the memo was touched"
        if left - ({out.name} if out.exists() else set()):
            return f"left {left}"
        outside = [p for p in ground.folder.rglob("evil*") if out not in p.parents]
        return f"wrote {outside}" if outside else ""

    yield Case("as it should be", case, whole)
    yield from (Case(name, case, make) for name, make in _lying(good, whole).items())
    for at in range(0, 20):
        yield Case(f"cut off after {at}/20", case, lambda at=at: whole()[: len(whole()) * at // 20])
    for seed in range(60):
        yield Case(f"flipped, seed {seed}", case, lambda seed=seed: _flipped(whole(), seed))
    sealed = struct.Struct("<8sBBII16s")
    for fields in ((1, 20, 8, 1), (1, 63, 8, 1), (1, 17, 1 << 31, 1), (1, 17, 8, 1 << 31), (9, 17, 8, 1), (1, 0, 0, 0)):
        head = sealed.pack(b"MMSEALED", *fields, bytes(16))
        yield Case(f"sealed with {fields}", case, lambda head=head: head + bytes(99), "a passphrase")
    yield Case("sealed, the head alone", case, lambda: b"MMSEALED", "a passphrase")
    for name, change in _enemies(good).items():
        yield Case(name, case, lambda change=change: zipped(_signed(change(dict(good())))))


def _use(ground: Ground, archive: Path, out: Path, passphrase: str | None) -> None:
    """Everything that is done with a memo that came from elsewhere."""
    import minimemo
    from minimemo.errors import MinimemoError
    from minimemo.memo.library import remove
    from minimemo.scale.archive import pack, unpack
    from minimemo.server.shelf import Document

    def told(act: Callable[[], Any]) -> Any:
        try:
            return act()
        except MinimemoError as error:
            assert "\n" not in str(error), error
            print(str(error).encode("ascii", "backslashreplace").decode().replace("\x1b", "?"))
        return None

    if told(lambda: unpack(archive, out, passphrase)) is None:
        assert not out.exists()
        return
    memo = told(lambda: minimemo.open(out, model=ground.decoder, embedder=ground.embedder))
    if memo is not None:
        json.dumps(told(memo.inspect), allow_nan=False)
        json.dumps(told(lambda: Document("x", out, memo.manifest).facts()), allow_nan=False)
        for mode in ("rag", "memory", "memorag"):
            told(lambda mode=mode: memo.ask("When was the lamp lit?", mode, max_tokens=2))
        told(memo.places)
        told(lambda: pack(out, out.with_name("again.memo")))
    told(lambda: remove(out))


def zipped(files: Mapping[str, str | bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as writer:
        for name, content in files.items():
            writer.writestr(zipfile.ZipInfo(name), content, compression)
    return out.getvalue()


def changed(content: bytes, at: int, form: str, *values: int, mark: bytes = b"PK\x01\x02") -> bytes:
    """A zip file with other values at this place behind each such mark; the mark of the entries of its table."""
    made, begin = bytearray(content), 0
    while (begin := made.find(mark, begin)) >= 0:
        struct.pack_into(form, made, begin + at, *values)
        begin += 4
    return bytes(made)


def _flipped(content: bytes, seed: int) -> bytes:
    """A few bytes of an archive are others, most of them in its tables."""
    chance, changed = random.Random(seed), bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed)) if chance.random() < 0.3 else len(changed) - 1 - chance.randrange(500)
        changed[at] = chance.randrange(256)
    return bytes(changed)


def _lying(good: Callable[[], Files], whole: Callable[[], bytes]) -> dict[str, Callable[[], bytes]]:
    """Archives whose names, sizes, places and kinds of members are not what they say."""

    def more(name: str, content: bytes = b"evil", mode: int = 0) -> Callable[[], bytes]:
        def make() -> bytes:
            out, info = io.BytesIO(whole()), zipfile.ZipInfo("evil")
            info.filename, info.external_attr = name, mode << 16
            with zipfile.ZipFile(out, "a") as writer:
                writer.NameToInfo.clear()  # so that it does not warn of a name that stands there
                writer.writestr(info, content)
            return out.getvalue()

        return make

    def patched(at: int, form: str, value: int, **of: bytes) -> Callable[[], bytes]:
        return lambda: changed(whole(), at, form, value, **of)

    def overlapping() -> bytes:
        """Every entry names the bytes of the largest one."""
        largest = max(zipfile.ZipFile(io.BytesIO(whole())).infolist(), key=lambda info: info.file_size)
        sized = changed(whole(), 20, "<LL", largest.file_size, largest.file_size)
        return changed(sized, 42, "<L", largest.header_offset)

    end = {"mark": b"PK\x05\x06"}
    names = ("../evil", "/tmp/evil", "a/evil", "..\\evil", "C:evil", "C:\\evil", ".", "..", "", "evil\0.txt", "~evil")
    names += ("manifest.json/", "./manifest.json", "manifest.json/../evil", "MANIFEST.JSON", "evil" * 100, "evil\n")
    names += ("\u202eevil", ".evil", "x-y.safetensors")
    return {
        **{f"a member {name[:20]!r}": more(name) for name in names},
        "a link": more("places.json", b"../yours/thesis.tex", stat.S_IFLNK | 0o777),
        "a link in place of memory.bin": lambda: whole().replace(b"memory.bin", b"memory.lnk"),
        "a device": more("places.json", b"", stat.S_IFCHR | 0o666),
        "twice the same name": more("manifest.json", b"{}"),
        "70,000 members": lambda: zipped({f"evil{n}": b"" for n in range(70_000)}),
        "17 members": lambda: zipped({**good(), **{f"evil{n}": b"" for n in range(17)}}),
        "deflated": lambda: zipped(good(), zipfile.ZIP_DEFLATED),
        "a bomb": lambda: zipped({"manifest.json": bytes(300_000_000)}, zipfile.ZIP_DEFLATED),
        "in LZMA": lambda: zipped(good(), zipfile.ZIP_LZMA),
        "a zip in a zip": lambda: zipped({"memo.zip": whole()}),
        "overlapping members": overlapping,
        "sizes of 4 GB": patched(24, "<L", 0xFFFFFFFE),
        "sizes of 0": patched(24, "<L", 0),
        "packed sizes of 0": patched(20, "<L", 0),
        "zip64 without its field": patched(24, "<L", 0xFFFFFFFF),
        "offsets past the end": patched(42, "<L", 0x7FFFFFFF),
        "all at 0": patched(42, "<L", 0),
        "encrypted": patched(8, "<H", 1),
        "patched data": patched(8, "<H", 0x20),
        "names in UTF-8 that are none": patched(8, "<H", 0x800),
        "a method of 99": patched(10, "<H", 99),
        "deflated, it says": patched(10, "<H", 8),
        "other CRCs": patched(16, "<L", 1),
        "names of 65,535": patched(28, "<H", 65535),
        "extra fields of 65,535": patched(30, "<H", 65535),
        "65,535 entries": patched(10, "<H", 65535, **end),
        "no entries": patched(10, "<H", 0, **end),
        "a table of 4 GB": patched(12, "<L", 0xFFFFFFFE, **end),
        "a table past the end": patched(16, "<L", 0x7FFFFFFF, **end),
        "a program before it": lambda: b"#!/bin/sh\necho evil\n" + whole(),
        "a comment with an end in it": lambda: whole() + b"PK\x05\x06" + bytes(18),
        "text": lambda: b"the lamp was lit " * 99,
        "an empty archive": lambda: zipped({}),
        "the manifest alone": lambda: zipped({"manifest.json": good()["manifest.json"]}),
        "a deep manifest": lambda: zipped({**good(), "manifest.json": b"[" * 100_000}),
    }


def _signed(files: Files) -> Files:
    """The files with every size and checksum of the manifest set right."""
    from minimemo.memo.manifest import checksum

    body = json.loads(files["manifest.json"])
    body.pop("checksum", None)
    for name, entry in body["files"].items() if isinstance(body.get("files"), dict) else ():
        if name in files and isinstance(entry, dict) and not body.get("unsigned"):
            entry |= {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
    body.pop("unsigned", None)
    return {**files, "manifest.json": json.dumps({**body, "checksum": checksum(body)}).encode()}


def _enemies(good: Callable[[], Files]) -> dict[str, Callable[[Files], Files]]:
    """Memos whose checksums are right, and whose fields are of other types and values."""
    changes: dict[str, Callable[[Files], Files]] = {}

    def of_manifest(path: tuple[str, ...], value: Any, files: Files) -> Files:
        body = json.loads(files["manifest.json"])
        inner = body
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        if path[0] == "files" and len(path) == 3:
            body["unsigned"] = True
        return {**files, "manifest.json": json.dumps(body).encode()}

    def of_file(name: str, key: str, value: Any, field: str, files: Files) -> Files:
        if name in files:
            content = json.loads(files[name])
        else:  # a document without places
            place = {"start": 0, "page": 1, "label": "", "heading": [], "time": ""}
            content = {"document_sha256": "", "places": [place]}
            files = of_manifest(("files", name), {}, files)
        for row in content[key] if field else ():
            row[field] = value
        if not field:
            content[key] = value
        return {**files, name: json.dumps(content).encode()}

    body = json.loads(good()["manifest.json"])
    paths = [(key,) for key in body if key != "checksum"]
    paths += [(key, inner) for key in ("document", "model", "embedder", "recipe", "files") for inner in body[key]]
    paths += [("recipe", "params", inner) for inner in body["recipe"]["params"]]
    paths += [("recipe", "reading", inner) for inner in body["recipe"]["reading"]]
    paths += [("files", "memory.bin", inner) for inner in ("bytes", "sha256")]
    for path in paths:
        for value in _VALUES:
            changes[f"{'.'.join(path)} = {str(value)[:20]!r}"] = partial(of_manifest, path, value)
    for name, key, fields in (
        ("chunks.json", "chunks", ("index", "start", "end", "text", "token_start", "token_end", "more")),
        ("places.json", "places", ("start", "page", "label", "heading", "time", "more")),
    ):
        for value in _VALUES:
            for field in ("", *fields):
                changes[f"{name}: {field or key} = {str(value)[:20]!r}"] = partial(of_file, name, key, value, field)
    for name in ("chunks.json", "index.bin", "memory.bin", "places.json"):
        for content in (b"", b"[" * 100_000, b"null", b"\xff\xfe", bytes(5000)):
            changes[f"{name} is {content[:9]!r}"] = lambda files, own={name: content}: {**files, **own}
    for cut in (1, 100):
        changes[f"chunks.json less {cut}"] = lambda files, cut=cut: {
            **files,
            "chunks.json": json.dumps({"chunks": json.loads(files["chunks.json"])["chunks"][:-cut]}).encode(),
        }
    return changes
