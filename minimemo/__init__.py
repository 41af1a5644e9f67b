"""minimemo: ask questions of a long document on your own machine, from a compact KV memory."""

from __future__ import annotations

__version__ = "0.1.0"
