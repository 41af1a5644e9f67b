"""What a question costs of a memo in an object store: bytes and requests, by what they are of.

The memo is a long one, made of a short one's own blocks, passages and vectors, repeated: the bytes are those of real
blocks, no model had to read so much. Its text says the same many times over, which changes nothing of what is counted.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from minimemo.ask.memory import ANSWER_VIEW_TOKENS, CLUE_VIEW_TOKENS
from minimemo.memo.manifest import CHUNKS, INDEX, MEMORY, PLACES, Manifest, file_info
from minimemo.memo.memo import open_memo
from minimemo.memory.blocks import BLOCK_TOKENS, FIRST_PREVIOUS, block_hash
from minimemo.memory.writer import writing
from minimemo.scale.objects import open_places, upload
from minimemo.scale.ranges import forget, objects_dir
from minimemo.search.vectors import VectorIndex

# The largest views that a question gets; the second lies within the first.
VIEW = (CLUE_VIEW_TOKENS, ANSWER_VIEW_TOKENS)


def measure(memo: Path, tokens: int, question: str | None) -> dict[str, Any]:
    """Puts a memo of `tokens` tokens into a store in a folder, and asks it twice. question: None reads what a question
    reads at most, with no model: all but memory.bin, and a view whose blocks lie apart from each other."""
    with tempfile.TemporaryDirectory() as folder:
        long = grown(memo, tokens, Path(folder) / "long.memo")
        address = upload(long, f"file://{folder}/store")
        sizes = {path.name: path.stat().st_size for path in long.iterdir()}
        rows: dict[str, Any] = {"bytes": sum(sizes.values()), "of": sizes}
        forget(objects_dir())
        for name in ("cold", "warm"):
            with counted() as came:
                opened = open_places([address])
                if question is None:
                    with opened.reader() as reader:
                        count = -(-max(VIEW) // BLOCK_TOKENS)
                        reader.fetch([0, *(len(reader) * at // count for at in range(1, count))])
                        rows["tokens"] = reader.tokens
                else:
                    opened.ask(question)
            of = {key: came[f"bytes {key}"] for key in sizes if came[f"bytes {key}"]}
            total = sum(of.values())
            rows[name] = {"bytes": total, "share": total / rows["bytes"], "requests": came["requests"], "of": of}
        forget(objects_dir())
    return rows


def grown(memo: Path, tokens: int, out: Path) -> Path:
    """A memo of the blocks of another one, repeated to about so many tokens."""
    opened = open_memo(memo)
    out.mkdir()
    with opened.reader() as reader:
        times = -(-tokens // reader.tokens)
        full = range(len(reader) - 1)
        with writing(out / MEMORY, reader.header) as writer:
            previous = FIRST_PREVIOUS
            for at in range(times * len(full)):
                ids = reader.ids(at % len(full))
                previous = block_hash(previous, ids)
                writer.add(previous, ids, reader.payload(at % len(full)))
    chunks, step = opened.chunks(), len(full) * BLOCK_TOKENS
    characters = opened.manifest.document.characters
    rows = [
        replace(
            chunk, index=turn * len(chunks) + number, start=turn * characters + chunk.start,
            end=turn * characters + chunk.end, token_start=turn * step + min(chunk.token_start, step - 1),
            token_end=turn * step + min(chunk.token_end, step),
        )
        for turn in range(times) for number, chunk in enumerate(chunks)
    ]  # fmt: skip
    content = {"document_sha256": opened.manifest.document.sha256, "chunks": [asdict(chunk) for chunk in rows]}
    (out / CHUNKS).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    vectors = VectorIndex.open(memo / INDEX).vectors()
    VectorIndex.build(np.concatenate([vectors] * times)).save(out / INDEX)
    if PLACES in opened.manifest.files:
        (out / PLACES).write_bytes((memo / PLACES).read_bytes())
    files = {name: file_info(out / name) for name in opened.manifest.files}
    document = replace(opened.manifest.document, characters=times * characters, tokens=times * step)
    replace(opened.manifest, document=document, files=files).save(out)
    Manifest.load(out)
    return out


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts what comes out of stores meanwhile: "requests", and "bytes NAME" by the files' names."""
    import obstore

    came: Counter[str] = Counter()
    get, get_range = obstore.get, obstore.get_range

    def note(path: str, size: int) -> None:
        came["requests"] += 1
        came[f"bytes {path.rpartition('/')[2].rpartition('-')[2]}"] += size

    def whole(store: Any, path: str, **given: Any) -> Any:
        size = 0  # where nothing came, as where nothing has changed
        try:
            result = get(store, path, **given)
            size = result.meta["size"]
            return result
        finally:
            note(path, size)

    def part(store: Any, path: str, *, start: int, end: int) -> Any:
        note(path, end - start)
        return get_range(store, path, start=start, end=end)

    with patch.object(obstore, "get", whole), patch.object(obstore, "get_range", part):
        yield came
