"""A small server that keeps to docs/server.md as the page needs it, with canned documents and answers; no model."""

from __future__ import annotations

import json
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = Path(__file__).parents[2] / "minimemo" / "server" / "page"
EXAMPLES = Path(__file__).parents[2] / "examples"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self' blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
TYPES = {
    "html": "text/html",
    "js": "text/javascript",
    "mjs": "text/javascript",
    "css": "text/css",
    "svg": "image/svg+xml",
}
# Before every place of the text stands a character that JavaScript counts as two, and what would be HTML in a page.
HOSTILE = "🗼 <img src=x onerror=\"document.title='owned'\"><b>Notes</b>\n\n"


class Canned:
    """What the server holds: documents, jobs, the answer of each question; tests change it while the page looks."""

    def __init__(self) -> None:
        self.text = HOSTILE + (EXAMPLES / "lighthouse.txt").read_text(encoding="utf-8")
        text, pdf = ("lighthouse.txt", "txt", None), ("skarn-point.pdf", "pdf", 4)
        self.documents = [self.document("d1", *text), self.document("d2", *pdf)]
        self.jobs: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.pace = 0.0  # seconds between events of a stream
        self.key = ""

    def document(self, ident: str, name: str, kind: str, pages: int | None) -> dict[str, Any]:
        return {
            "id": ident, "name": name, "kind": kind, "pages": pages, "tokens": 1314, "characters": len(self.text),
            "bytes": 658000, "ratio": 25.4, "quality": 0.906,
            "created": 1795900000.0, "file": f"/documents/{ident}/file",
        }  # fmt: skip

    def ids(self) -> dict[str, str]:
        return {document["name"]: document["id"] for document in self.documents}

    def passage(self, words: str, span: str = "", **place: Any) -> dict[str, Any]:
        """A passage of the text from `words` on, with the sentence that holds the answer."""
        start = self.text.index(words)
        end = min(len(self.text), start + 460)
        within = [self.text.index(span, start), self.text.index(span, start) + len(span)] if span else None
        return {
            "start": start, "end": end, "text": self.text[start:end], "span": within, "cited": bool(span), "score": 1.0,
            "page": None, "label": "", "heading": [], "time": "", "document": "lighthouse.txt", "sources": [],
            "found_by": ["question"], "header": "", **place,
        }  # fmt: skip

    def answer(self, text: str, passages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "text": text, "question": "", "mode": "memorag", "language": "en", "clues": [], "draft": "",
            "passages": passages, "supported": True, "confidence": 0.87, "guess": None, "finish_reason": "stop",
            "timings": {"total": 1.24}, "recalled": [], "view": [], "ids": self.ids(), **more,
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, canned: Canned, *args: Any) -> None:
        self.canned = canned
        super().__init__(*args)

    def log_message(self, *_args: object) -> None:
        """Says nothing: a test's output is its own."""

    def _send(self, body: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": POLICY}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def do_GET(self) -> None:
        canned, url = self.canned, urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        if parts[0] == "api" and canned.key and self.headers["Authorization"] != f"Bearer {canned.key}":
            self._json({"error": {"message": "a key is needed"}}, 401)
        elif url.path == "/api/documents":
            self._json(canned.documents)
        elif url.path == "/api/jobs":
            self._json(canned.jobs)
        elif parts[0] == "api" and parts[-1] == "text":
            query = parse_qs(url.query)
            start, end = int(query["start"][0]), int(query["end"][0])
            self._json({"start": start, "end": end, "text": canned.text[start:end]})
        elif parts[0] == "documents":
            self._send((EXAMPLES / "skarn-point.pdf").read_bytes(), "application/pdf")
        else:
            path = PAGE / (url.path.strip("/") or "index.html")
            if path.is_file():
                self._send(path.read_bytes(), TYPES.get(path.suffix[1:], "text/plain"))
            else:
                self._json({"error": {"message": "no such page"}}, 404)

    def do_DELETE(self) -> None:
        ident = self.path.rsplit("/", 1)[-1]
        self.canned.documents = [d for d in self.canned.documents if d["id"] != ident]
        self.canned.jobs = [job for job in self.canned.jobs if job["id"] != ident]
        self._json({})

    def do_POST(self) -> None:
        canned, url = self.canned, urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if url.path == "/api/documents":
            (name,) = parse_qs(url.query)["name"]
            job = {"id": f"j{len(canned.jobs)}", "name": name, "state": "running", "error": ""}
            canned.jobs.append({**job, "stage": "read", "done": 41, "total": 100, "eta_s": 75})
            self._json({"job": job}, 202)
            return
        canned.asked.append(json.loads(body))
        answer = canned.answers[canned.asked[-1]["question"]]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        events = [("stage", {"stage": "retrieve", "done": 0, "total": 1})]
        events += [("clues", {"clues": answer["clues"], "draft": answer["draft"]})]
        passages = [{**p, "cited": False, "span": None} for p in answer["passages"]]
        events += [("passages", {"passages": passages, "ids": answer["ids"]})]
        events += [("stage", {"stage": "answer", "done": 0, "total": 1})]
        events += [("piece", {"text": f"{word} "}) for word in answer["text"].split(" ")]
        if answer["finish_reason"] == "error":
            events += [("error", {"error": "the model has not enough memory"})]
        else:
            events += [("answer", answer)]
        try:
            for name, data in events:
                self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
                self.wfile.flush()
                time.sleep(canned.pace)
        except (BrokenPipeError, ConnectionResetError):
            canned.asked.append({"left": True})


def serve(canned: Canned, port: int = 0) -> ThreadingHTTPServer:
    """Starts it in a thread on a free port, or the one named; `shutdown` and `server_close` end it."""
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, canned))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server
