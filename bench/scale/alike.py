"""How much do documents begin alike? Tokens that a build takes over instead of reading them, and blocks of a memory
that would be stored once: of documents, by the default model's tokens."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.common.data import read_rows
from bench.common.report import heading, line
from minimemo.ask import PROMPTS, detect_language, memory_opening
from minimemo.memo.memorize import WHOLE
from minimemo.memory.blocks import BLOCK_TOKENS, chain
from minimemo.models.tokenizer import Tokenizer
from minimemo.runtime import locate_model

CHUNK = 512  # tokens at whose multiples a reading goes on
COLUMNS = (("documents", "<12"), ("n", "5"), ("tokens", "9"), ("in_blocks", "9.1f"), ("taken_over", "10.1f"))


def run(data: Path, repository: Path) -> dict[str, Any]:
    """Prints, for the documents of the data and for all versions of the Markdown files of a git repository, tokens and
    percents of them that an earlier document begins with too: in whole blocks, and in whole chunks of documents that
    are not read through a window."""
    tokenizer = Tokenizer(locate_model().directory)
    texts = [(data / row["file"]).read_text(encoding="utf-8") for row in read_rows(data / "docs.jsonl")]
    print(heading(COLUMNS))
    rows = []
    for name, some in (("of the data", texts), ("versions", _versions(repository))):
        rows.append({"documents": name, **_shared(some, tokenizer)})
        print(line(COLUMNS, rows[-1]), flush=True)
    return {"rows": rows}


def _shared(texts: Iterable[str], tokenizer: Tokenizer) -> dict[str, float]:
    import numpy as np

    seen, tokens, blocks, chunks, count = set[bytes](), 0, 0, 0, 0
    for text in texts:
        opening = memory_opening(detect_language(text), PROMPTS).ids(tokenizer)
        ids = np.concatenate((np.array(opening, np.int32), tokenizer.encode_with_offsets(text)[0]))
        hashes = chain(ids, len(ids))
        same = next((at for at, hash_ in enumerate(hashes) if hash_ not in seen), len(hashes))
        seen.update(hashes)
        count, tokens, blocks = count + 1, tokens + len(ids), blocks + same * BLOCK_TOKENS
        chunks += same * BLOCK_TOKENS // CHUNK * CHUNK if len(ids) <= WHOLE else 0
    return {"n": count, "tokens": tokens, "in_blocks": 100 * blocks / tokens, "taken_over": 100 * chunks / tokens}


def _versions(repository: Path) -> Iterable[str]:
    """Every version of each Markdown file, in the order of their commits."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(repository), *command], check=True, capture_output=True, text=True
        ).stdout

    for path in git("ls-files", "*.md").splitlines():
        for commit in reversed(git("log", "--format=%H", "--diff-filter=AM", "--", path).split()):
            if (text := git("show", f"{commit}:{path}")).strip():
                yield text
