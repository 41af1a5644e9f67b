"""Text -> passages: chunks with exact spans, unit vectors, a FAISS index, BM25. Knows no model internals, no prompts.

Importing this package loads nothing; of its modules, `words` loads nothing, `embedder` torch, `index` torch and faiss.
"""
