"""Memos behind HTTP: an OpenAI-compatible API, one of minimemo's own, tools over MCP, and a page. docs/server.md."""
