"""Document -> token ids, chunks.json and index.bin, in memory that its length adds little to.

What is embedded is kept as it comes, so that a killed build goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from minimemo.events import Event, Listener
from minimemo.memo import manifest as names
from minimemo.memo.folder import MEMO, VECTORS
from minimemo.memo.manifest import Recipe
from minimemo.text.document import Document

if TYPE_CHECKING:
    import numpy as np

    from minimemo.memo.memo import Memo
    from minimemo.models.tokenizer import Tokenizer
    from minimemo.search.embedder import Embedder

_DIGEST = 16  # bytes
GROUP = 256  # passages that are embedded together: they are padded to each other, so a group's vectors are its own


def write_passages(
    document: Document, tokenizer: Tokenizer, embedder: Embedder, recipe: Recipe, scratch: Path, on_event: Listener
) -> np.ndarray:
    """Writes chunks.json and index.bin into the memo in `scratch`; gives the document's token ids, (n,) int32."""
    from minimemo.search.index import VectorIndex
    from minimemo.text.chunks import split, with_token_spans
    from minimemo.text.pieces import encode_in_pieces

    text = document.text
    on_event(Event("tokenize", 0, len(text), "char"))
    ids, offsets = encode_in_pieces(
        text, tokenizer.encode_with_offsets, on_done=lambda done: on_event(Event("tokenize", done, len(text), "char"))
    )
    chunks = split(text, embedder.offsets(text), size=recipe.chunk_size, overlap=recipe.chunk_overlap)
    chunks = with_token_spans(chunks, offsets)
    texts = [chunk.text for chunk in chunks]
    if texts and embedder.reads(texts[:GROUP]).mean() <= 0.5:
        told = "the embedder's vocabulary lacks this language: search goes by words alone; try another --embedder"
        on_event(Event(told, 1, 1, "note"))
    vectors = _vectors(texts, embedder, scratch / VECTORS, on_event)
    VectorIndex.build(vectors).save(scratch / MEMO / names.INDEX)
    content = {"document_sha256": document.sha256, "chunks": [asdict(chunk) for chunk in chunks]}
    written = json.dumps(content, ensure_ascii=False, indent=1)
    (scratch / MEMO / names.CHUNKS).write_text(written, encoding="utf-8")
    return ids


def reuse_passages(old: Memo, scratch: Path) -> None:
    """Lays ready what another memo of the same embedder holds; what the document does not begin with is not used."""
    from minimemo.search.index import VectorIndex

    texts = [chunk.text for chunk in old.chunks()]
    vectors = VectorIndex.open(old.folder / names.INDEX, count=len(texts)).vectors(len(texts))
    with (scratch / VECTORS).open("wb") as file:
        for at in range(0, len(texts) - GROUP + 1, GROUP):
            file.write(_record(texts[at : at + GROUP], vectors[at : at + GROUP]))


def _vectors(texts: Sequence[str], embedder: Embedder, path: Path, on_event: Listener) -> np.ndarray:
    """(n, dim) float32, of which groups that the file holds are taken from there; new ones are added to it."""
    import numpy as np

    vectors = np.empty((len(texts), embedder.dim), np.float32)
    with path.open("r+b" if path.exists() else "xb+") as file:
        for at in range(0, len(texts), GROUP):
            group, own, place = texts[at : at + GROUP], vectors[at : at + GROUP], file.tell()
            known = file.read(_DIGEST + own.nbytes)
            if len(known) == _DIGEST + own.nbytes:
                own[:] = np.frombuffer(known, np.float32, offset=_DIGEST).reshape(own.shape)
            if known != _record(group, own):

                def report(event: Event, at: int = at) -> None:
                    on_event(Event(event.stage, at + event.done, len(texts), event.unit))

                own[:] = embedder.embed_passages(group, report)
                file.seek(place)
                file.truncate()
                file.write(_record(group, own))
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
