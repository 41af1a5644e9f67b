"""Text -> passages: chunks with exact spans, unit vectors, a FAISS index. Knows no model internals and no prompts.

Importing this package loads neither torch nor faiss; `embedder` does the one, `index` both.
"""

from minimemo.retrieval.chunks import Chunk, Hit, split, with_token_spans

__all__ = ["Chunk", "Hit", "split", "with_token_spans"]
