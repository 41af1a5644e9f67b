"""Document -> token ids, chunks.json, places.json and index.bin, in memory that its length adds little to.

What is embedded is kept as it comes, so that a killed build goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np

from minimemo.events import Event, Listener
from minimemo.memo.folder import MEMO, VECTORS
from minimemo.memo.manifest import CHUNKS, INDEX, PLACES, Recipe
from minimemo.memo.memo import Memo
from minimemo.models.tokenizer import Tokenizer
from minimemo.search.embedder import Embedder
from minimemo.search.vectors import VectorIndex
from minimemo.text.chunks import split, with_token_spans
from minimemo.text.document import Document
from minimemo.text.pieces import Encoded, encode_in_pieces

_DIGEST = 16  # bytes
GROUP = 256  # passages that are embedded together: they are padded to each other, so a group's vectors are its own


def tokenize(document: Document, tokenizer: Tokenizer, on_event: Listener) -> Encoded:
    """The document's token ids (n,) int32, and their spans (n, 2) in its text."""

    def report(done: int) -> None:
        on_event(Event("tokenize", done, len(document.text), "char"))

    report(0)
    return encode_in_pieces(document.text, tokenizer.encode_with_offsets, on_done=report)


def write_passages(
    document: Document,
    tokens: Callable[[], Encoded],
    embedder: Embedder,
    recipe: Recipe,
    scratch: Path,
    on_event: Listener,
) -> np.ndarray:
    """Writes chunks.json, index.bin and, where the document has places, places.json into the memo in `scratch`; gives
    the document's token ids, (n,) int32."""
    text, (ids, offsets) = document.text, tokens()
    chunks = split(text, embedder.offsets(text), size=recipe.chunk_size)
    chunks = with_token_spans(chunks, offsets)
    texts = [chunk.text for chunk in chunks]
    if texts and embedder.reads(texts[:GROUP]).mean() <= 0.5:
        note = "the embedder's vocabulary lacks this language: search goes by words alone; try another `embedder`"
        on_event(Event(note, 1, 1, "note"))
    vectors = _vectors(texts, embedder, scratch / VECTORS, on_event)
    VectorIndex.build(vectors).save(scratch / MEMO / INDEX)
    content = {"document_sha256": document.sha256, "chunks": [asdict(chunk) for chunk in chunks]}
    (scratch / MEMO / CHUNKS).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    (scratch / MEMO / PLACES).unlink(missing_ok=True)  # of a killed build of the same text
    if document.places:
        content = {"document_sha256": document.sha256, "places": [asdict(place) for place in document.places]}
        (scratch / MEMO / PLACES).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return ids


def reuse_passages(old: Memo, scratch: Path) -> None:
    """Lays ready what another memo of the same embedder holds; what the document does not begin with is not used."""
    texts = [chunk.text for chunk in old.chunks()]
    vectors = VectorIndex.open(old.folder / INDEX, count=len(texts)).vectors()
    with (scratch / VECTORS).open("wb") as file:
        for at in range(0, len(texts) - GROUP + 1, GROUP):
            file.write(_record(texts[at : at + GROUP], vectors[at : at + GROUP]))


def _vectors(texts: Sequence[str], embedder: Embedder, path: Path, on_event: Listener) -> np.ndarray:
    """(n, dim) float32, of which groups that the file holds are taken from there; new ones are added to it."""
    vectors = np.empty((len(texts), embedder.dim), np.float32)
    with path.open("r+b" if path.exists() else "xb+") as file:
        for at in range(0, len(texts), GROUP):
            group, rows, place = texts[at : at + GROUP], vectors[at : at + GROUP], file.tell()
            kept = file.read(_DIGEST + rows.nbytes)
            if len(kept) == _DIGEST + rows.nbytes:
                rows[:] = np.frombuffer(kept, np.float32, offset=_DIGEST).reshape(rows.shape)
            if kept != _record(group, rows):

                def report(event: Event, at: int = at) -> None:
                    on_event(Event(event.stage, at + event.done, len(texts), event.unit))

                rows[:] = embedder.embed_passages(group, report)
                file.seek(place)
                file.truncate()
                file.write(_record(group, rows))
                file.flush()
            on_event(Event("embed", at + len(group), len(texts), "passages"))
    return vectors


def _record(texts: Sequence[str], vectors: np.ndarray) -> bytes:
    """A group in the file: a digest of texts and vectors, and the vectors."""
    digest = blake2b(digest_size=_DIGEST)
    for text in texts:
        digest.update(len(text).to_bytes(8, "little") + text.encode())
    digest.update(vectors.tobytes())
    return digest.digest() + vectors.tobytes()
