"""Hot KV <-> a small file. Knows no text, no prompts and no weights; each part is imported from its own module."""
