"""Queries -> passages: unit vectors, a FAISS index, BM25, and the fusion of both. Knows nothing of prompts."""
