"""Who may ask: those who have the key, and pages of this server alone.

A server for one machine trusts what that machine's programs send, but not what a web page makes a browser send: the
Host that a request names must be this machine (a stranger's name that was bent to 127.0.0.1 is not), and its Origin,
where there is one, this server.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from minimemo.ask.endpoint import is_loopback
from minimemo.server import openai

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+))(?::\d{1,5})?")
_KEYED = ("/api", "/v1", "/documents", "/metrics", "/mcp")
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        b"frame-src 'self' blob:; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """key: what requests are to carry as `Authorization: Bearer KEY`; "" for none, on this machine alone. admitted:
    those that come were let in by their tokens (access.py)."""

    def __init__(self, key: str = "", admitted: bool = False) -> None:
        self._key, self._admitted = key, admitted

    def around(self, app: ASGIApp) -> ASGIApp:
        """Middleware: refuses with 401, 403 or 421, and sets the headers that bind a browser."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            if refusal := self.refusal(scope):
                code, why = refusal
                more = {"WWW-Authenticate": "Bearer"} if code == 401 else {}
                await JSONResponse(openai.error(why, "authentication_error"), code, more)(scope, receive, send)
                return

            async def sent(message: Any) -> None:
                if message["type"] == "http.response.start":
                    there = {name.lower() for name, _ in message["headers"]}
                    message["headers"] += [pair for pair in _HEADERS if pair[0] not in there]
                await send(message)

            await app(scope, receive, sent)

        return guarded

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Why a request is refused, with the HTTP status; None where it is not."""
        if is_local(scope):
            return None
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self._key and not self._admitted and not is_loopback(_hostname(host)):
            return 421, f"host {host!r}: this server answers to localhost; start it with --api-key-file for others"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, f"origin {origin!r}: pages of other sites may not ask here"
        path = scope["path"]
        if self._key and path.startswith(_KEYED):
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self._key.encode()):
                return 401, "a key is needed: Authorization: Bearer KEY"
        return None


def _hostname(host: str) -> str:
    """The name or address of a Host header, without its port; "" for what is none."""
    written = _HOST.fullmatch(host)
    return (written[1] or written[2]) if written else ""


def is_local(scope: Mapping[str, Any]) -> bool:
    """Whether a request came through the Unix socket, which only the server's own user can open."""
    server = scope.get("server")
    return server is not None and server[1] is None
