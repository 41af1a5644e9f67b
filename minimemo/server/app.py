"""The routes: documents, builds, questions, OpenAI's API, the page. What they are for the outside: docs/server.md."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast, get_args

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from minimemo import __version__
from minimemo.ask import Answer, Found, Mode, Passage, Piece
from minimemo.errors import InputError, MinimemoError
from minimemo.events import Event
from minimemo.files import parse_json
from minimemo.memory.tiers import TIERS
from minimemo.server import openai
from minimemo.server.access import DOCUMENTS, Access, OverQuota
from minimemo.server.desk import Busy, Desk, Waiting
from minimemo.server.guard import Guard, is_local
from minimemo.server.jobs import Job, Jobs
from minimemo.server.metrics import Metrics
from minimemo.server.shelf import EVERY, Shelf

BODY = 4_000_000  # bytes of a request, an upload apart
UPLOAD = 500_000_000  # bytes of a document that is uploaded
TEXT = 200_000  # characters of a document that are given at once
BEAT = 10.0  # seconds without a word to a client
PAGE = Path(__file__).with_name("page")

# A browser shows a PDF in its own viewer; whatever else a document is, it is text to it and no page.
_AS_TEXT = {"Content-Security-Policy": "default-src 'none'; sandbox", "Content-Disposition": "inline"}
_AS_PDF = {"Content-Security-Policy": "default-src 'none'; object-src 'self'; frame-ancestors 'self'"}


class Service:
    """What the routes share: the shelf of documents, the desk of questions, the builds, what is counted of them.
    access: of the token that all requests carry; None: everything is allowed."""

    def __init__(self, shelf: Shelf, desk: Desk, jobs: Jobs, access: Access | None = None) -> None:
        self.shelf, self.desk, self.jobs, self.access = shelf, desk, jobs, access
        self.metrics = Metrics(desk)

    def of(self, access: Access) -> Service:
        """The part of this service that a token may use."""
        part = Service(self.shelf.of(access.sees, access.uploads), self.desk, self.jobs.of(access.name), access)
        part.metrics = self.metrics
        return part

    def spend(self) -> None:
        """Counts a question of the token's. Raises OverQuota where it is one too many."""
        if self.access is not None:
            self.access.quota.ask()

    def wrote(self, tokens: int) -> None:
        """Counts what an answer took of the token's share."""
        if self.access is not None:
            self.access.quota.wrote(tokens)

    def check_write(self, document: str | None = None) -> None:
        """Raises 403 where the token may not add documents, or not delete this one."""
        if self.access is None:
            return
        if not self.access.write:
            raise HTTPException(403, "this token reads; its owner's `write = true` lets it add documents")
        if document is not None and self.access.uploads not in self.shelf.document(document).folder.parents:
            raise HTTPException(403, "this token deletes what it added itself, and no more")

    # -- questions ---------------------------------------------------------------------------------------------------

    async def steps(self, work: Callable[[], Iterator[Any]], request: Request) -> AsyncIterator[Any]:
        """The steps of some work at the desk, the ids of its documents among them (`Shelf.ids`), and a Waiting every
        BEAT seconds without one. It is dropped when its reader is; what was written until then counts."""
        begun, first, ids, written = time.perf_counter(), True, dict[str, str](), 0
        try:
            async with aclosing(self.desk.steps(work, BEAT)) as steps:
                async for step in steps:
                    if isinstance(step, Waiting) and await request.is_disconnected():
                        return
                    if first and isinstance(step, (Piece, Answer)):
                        first = False
                        self.metrics.first.observe(time.perf_counter() - begun)
                    if isinstance(step, dict):
                        ids = step
                    elif isinstance(step, Event) and step.stage == "answer":
                        written = step.done
                    elif isinstance(step, (Found, Answer)):
                        _seen(request, *(ids.get(passage.document, "") for passage in step.passages))
                    if isinstance(step, Answer):
                        written = step.generated_tokens
                        self.metrics.answered(step, time.perf_counter() - begun)
                    yield step
        finally:
            self.wrote(written)

    async def answer(self, work: Callable[[], Iterator[Any]], request: Request) -> tuple[Answer, dict[str, str]]:
        """The answer, and the ids of its documents; 499 where its reader left meanwhile."""
        answer, ids = None, dict[str, str]()
        async for step in self.steps(work, request):
            if isinstance(step, Answer):
                answer = step
            elif isinstance(step, dict):
                ids = step
        if answer is None:
            raise HTTPException(499, "the client left")
        return answer, ids

    def question(self, body: Mapping[str, Any], local: bool) -> Callable[[], Iterator[Any]]:
        """The work that a body of /api/ask asks for."""
        mode, most = body.get("mode", "memorag"), openai.longest(body, "max_tokens")
        ids, told, question = _ids(body), body.get("turns", []), body.get("question", "")
        if mode not in (*get_args(Mode), "summarize"):
            raise InputError(f"mode {mode!r} is unknown; choose one of {', '.join(get_args(Mode))}, summarize")
        if most > openai.MOST_TOKENS:
            raise InputError(f"max_tokens: a whole number from 1 to {openai.MOST_TOKENS}")
        if not isinstance(question, str) or not isinstance(told, list):
            raise InputError("question: a text is needed, and turns: a list")
        turns = [turn for turn in told if isinstance(turn, dict)]
        before = openai.turns((str(turn.get("question") or ""), str(turn.get("answer") or "")) for turn in turns)
        folders = [Path(str(path)) for path in body.get("memos", [])] if local else []
        typed = str(body.get("typed", ""))

        def work() -> Iterator[Any]:
            if mode != "summarize" and not folders:
                yield from self.shelf.stream(ids, question, cast(Mode, mode), most, before)
                return
            memo = self.shelf.opened(folders) if folders else self.shelf.memo(ids, question or "")
            yield self.shelf.ids(memo)
            if mode == "summarize":
                yield from memo.session().stream_summary(most)
            else:
                yield from memo.stream(question, cast(Mode, mode), most, typed=typed)

        return work

    def recalled(self, answer: Answer, ids: Mapping[str, str]) -> list[dict[str, Any]]:
        """Where the sentences stand that memory recalled, of those that are in the documents: id, text, start, end."""
        places = []
        for name in {passage.document for passage in answer.passages}:
            text = self.shelf.text(ids[name]) if ids.get(name) else ""
            for clue in answer.clues:
                if clue.kind == "recall" and (at := text.find(clue.text.strip())) >= 0:
                    end = at + len(clue.text.strip())
                    places.append({"document": ids[name], "text": clue.text, "start": at, "end": end})
        return places


def app(service: Service, guard: Guard, assistant: Any = None) -> Starlette:
    """The application; guard: who may ask; assistant: what `mcp.assistant` made, for /mcp."""
    shelf, jobs = service.shelf, service.jobs

    # What reads from disk is no coroutine: it runs in a thread, and the loop goes on.

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__, "waiting": service.desk.waiting})

    async def metrics(request: Request) -> Response:
        if service.access is not None:
            raise HTTPException(403, "metrics are the server's owner's, at its socket")
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    def documents(request: Request) -> Response:
        return JSONResponse([{**one.facts(), "pages": shelf.pages(one)} for one in shelf.documents().values()])

    async def upload(request: Request) -> Response:
        service.check_write()
        jobs.check()
        name, tier = request.query_params.get("name", ""), request.query_params.get("memory", "balanced")
        if not name.strip():
            raise InputError("name: the file's name is needed, as ?name=report.pdf")
        if tier not in TIERS:
            raise InputError(f"memory {tier!r} is unknown; choose one of {', '.join(TIERS)}")
        options = {"memory": tier}
        if password := request.headers.get("x-document-password"):
            options["password"] = password
        path = shelf.place_for(name)
        try:
            size = 0
            with path.open("xb") as file:
                path.chmod(0o600)
                async for part in request.stream():
                    size += len(part)
                    if size > UPLOAD:
                        raise HTTPException(413, f"a document may have {UPLOAD // 1_000_000} MB")
                    file.write(part)
            if not size:
                raise InputError(f"{name}: is empty")
            return JSONResponse({"job": jobs.submit(path, options).facts()}, 202)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def remove(request: Request) -> Response:
        service.check_write(request.path_params["id"])
        _seen(request, request.path_params["id"])
        return JSONResponse({"freed": shelf.remove(request.path_params["id"])})

    def text(request: Request) -> Response:
        start, end = _number(request, "start", 0), _number(request, "end", TEXT)
        end = min(end, start + TEXT)
        content = shelf.text(request.path_params["id"], start, end)
        _seen(request, request.path_params["id"])
        return JSONResponse({"start": start, "end": start + len(content), "text": content})

    def file(request: Request) -> Response:
        document = shelf.document(request.path_params["id"])
        if (path := document.original()) is None:
            raise HTTPException(404, f"{document.name} is not beside its memo any longer; its text is")
        _seen(request, document.id)
        with path.open("rb") as opened:
            pdf = opened.read(5) == b"%PDF-"
        kind, headers = ("application/pdf", _AS_PDF) if pdf else ("text/plain; charset=utf-8", _AS_TEXT)
        return FileResponse(path, media_type=kind, headers=headers)

    def listing(request: Request) -> Response:
        return JSONResponse(_told_of(jobs.all(), shelf))

    def job(request: Request) -> Response:
        return JSONResponse(_told_of([jobs.job(request.path_params["id"])], shelf)[0])

    def cancel(request: Request) -> Response:
        return JSONResponse(_told_of([jobs.cancel(request.path_params["id"])], shelf)[0])

    async def search(request: Request) -> Response:
        body = await _body(request)
        query, k = body.get("query", body.get("question", "")), body.get("k", 5)
        if not isinstance(query, str) or not isinstance(k, int) or not 0 < k <= 50:
            raise InputError("query: a text is needed, and k: a whole number from 1 to 50")
        ids = _ids(body)
        service.spend()

        def found() -> tuple[Sequence[Passage], dict[str, str]]:
            memo = shelf.memo(ids, query)
            return memo.retrieve(query, k), shelf.ids(memo)

        passages, names = await run_in_threadpool(found)
        rows = [{**_plain(passage), "id": names.get(passage.document)} for passage in passages]
        _seen(request, *(names.get(passage.document, "") for passage in passages))
        return JSONResponse({"passages": rows})

    async def ask(request: Request) -> Response:
        body = await _body(request)
        work = service.question(body, is_local(request.scope))
        service.desk.check()
        service.spend()
        return _events(_asked(service, service.steps(work, request)))

    async def completions(request: Request) -> Response:
        body = await _body(request)
        question, turns, most = openai.asked(body)
        model, more = str(body.get("model") or EVERY), body.get("stream_options") or {}
        if not isinstance(more, dict):
            raise InputError("stream_options: an object is needed")
        ids = [] if model == EVERY else [model]

        def work() -> Iterator[Any]:
            return shelf.stream(ids, question, "memorag", most, turns)

        if ids:
            await run_in_threadpool(shelf.document, model)  # an unknown one is told before anything else
        service.desk.check()
        service.spend()
        if not body.get("stream"):
            answer, names = await service.answer(work, request)
            return JSONResponse(openai.completion(answer, model, _links(names)))
        return _events(_completed(service.steps(work, request), model, bool(more.get("include_usage"))))

    def models(request: Request) -> Response:
        made = [(one.id, one.created()) for one in shelf.documents().values()]
        return JSONResponse(openai.models([(EVERY, max((t for _, t in made), default=0)), *made]))

    def model(request: Request) -> Response:
        id = request.path_params["id"]
        if id != EVERY:
            shelf.document(id)
        return JSONResponse(openai.models([(id, 0)])["data"][0])

    async def embeddings(request: Request) -> Response:
        body = await _body(request)
        given = body.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise InputError("input: a text or a list of texts is needed")
        service.spend()
        embedder = await run_in_threadpool(shelf.embedder)
        embed = embedder.embed_queries if body.get("input_type") == "query" else embedder.embed_passages
        rows = await run_in_threadpool(embed, texts)
        as_base64 = body.get("encoding_format") == "base64"
        return JSONResponse(openai.embeddings(rows, str(body.get("model") or "default"), as_base64))

    routes: list[BaseRoute] = [
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/api/documents", documents),
        Route("/api/documents", upload, methods=["POST"]),
        Route("/api/documents/{id}", remove, methods=["DELETE"]),
        Route("/api/documents/{id}/text", text),
        Route("/documents/{id}/file", file),
        Route("/api/jobs", listing),
        Route("/api/jobs/{id}", job),
        Route("/api/jobs/{id}", cancel, methods=["DELETE"]),
        Route("/api/search", search, methods=["POST"]),
        Route("/api/ask", ask, methods=["POST"]),
        Route("/v1/chat/completions", completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{id}", model),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
    ]
    lifespan = None
    if assistant is not None:
        from minimemo.server.mcp import routes as assistant_routes

        routes += assistant_routes(assistant)

        def lifespan(_: Starlette) -> Any:
            return assistant.session_manager.run()

    handlers = dict.fromkeys((MinimemoError, HTTPException, ClientDisconnect, Exception), _told)
    made = Starlette(routes=[*routes, *_page()], lifespan=lifespan, exception_handlers=handlers)
    made.add_middleware(cast(Any, guard.around))
    return made


def front(guard: Guard) -> Starlette:
    """The application of those who have no token: the page, and whether the server is up."""

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__})

    made = Starlette(routes=[Route("/health", health), *_page()])
    made.add_middleware(cast(Any, guard.around))
    return made


def _page() -> list[BaseRoute]:
    return [Mount("/", StaticFiles(directory=PAGE, html=True))] if PAGE.is_dir() else []


# -- events ------------------------------------------------------------------------------------------------------------


async def _asked(service: Service, steps: AsyncIterator[Any]) -> AsyncIterator[str]:
    """The events of /api/ask."""
    ids: dict[str, str] = {}
    try:
        async for step in steps:
            if isinstance(step, dict):
                ids = {name: id for name, id in step.items() if id}
            elif isinstance(step, Waiting):
                yield _event("stage", {"stage": "waiting", "done": 0, "total": step.position, "unit": "question"})
            elif isinstance(step, Event):
                name = "note" if step.unit == "note" else "stage"
                yield _event(name, {"stage": step.stage, "done": step.done, "total": step.total, "unit": step.unit})
            elif isinstance(step, Found):
                yield _event("clues", {"clues": [_plain(clue) for clue in step.clues], "draft": step.draft})
                yield _event("passages", {"passages": [_plain(p) for p in step.passages], "ids": ids})
            elif isinstance(step, Piece):
                yield _event("piece", {"text": step.text})
            else:
                recalled = await run_in_threadpool(service.recalled, step, ids)
                yield _event("answer", {**step.to_dict(), "ids": ids, "recalled": recalled})
    except Exception as error:
        yield _event("error", {"error": _said(error), "kind": type(error).__name__})


async def _completed(steps: AsyncIterator[Any], model: str, usage: bool) -> AsyncIterator[str]:
    """The chunks of a streamed chat completion."""
    links: dict[str, str] = {}
    stream = openai.Chunks(model, links, usage)
    yield _data(stream.begin())
    try:
        async for step in steps:
            if isinstance(step, dict):
                links |= _links(step)
            elif isinstance(step, (Piece, Answer)):
                for chunk in stream.step(step):
                    yield _data(chunk)
            elif isinstance(step, (Waiting, Event)):
                yield ": waiting\n\n"
    except Exception as error:
        yield _data(openai.error(_said(error)))
        return
    yield "data: [DONE]\n\n"


def _events(events: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _event(name: str, content: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(content, ensure_ascii=False)}\n\n"


def _data(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


# -- small things ------------------------------------------------------------------------------------------------------


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises InputError, or 413 for one that is too long."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > BODY:
            raise HTTPException(413, f"a request may have {BODY // 1_000_000} MB")
    try:
        body = parse_json(bytes(content))
        json.dumps(body, ensure_ascii=False).encode()  # half a character cannot be told back
    except (ValueError, RecursionError):
        raise InputError("the body is no JSON") from None
    if not isinstance(body, dict):
        raise InputError("the body is to be a JSON object")
    return body


def _ids(body: Mapping[str, Any]) -> list[str]:
    """The documents that a body names. Raises InputError."""
    ids = body.get("documents", [])
    if not (isinstance(ids, list) and all(isinstance(id, str) for id in ids)):
        raise InputError("documents: a list of ids is needed")
    return ids


def _seen(request: Request, *ids: str) -> None:
    """Notes for the audit log that a request was given something of documents."""
    request.scope.get(DOCUMENTS, set()).update(filter(None, ids))


def _links(ids: Mapping[str, str]) -> dict[str, str]:
    """Where the file of a document is, by the names that passages have."""
    return {name: f"/documents/{id}/file" for name, id in ids.items() if id}


def _number(request: Request, name: str, default: int) -> int:
    given = request.query_params.get(name, str(default))
    if not given.isdecimal() or len(given) > 12:
        raise InputError(f"{name}: a whole number is needed, not {given!r}")
    return int(given)


def _plain(record: Any) -> dict[str, Any]:
    """A frozen record as JSON can hold it."""
    return {name: getattr(record, name) for name in record.__slots__}


def _told_of(jobs: Sequence[Job], shelf: Shelf) -> list[dict[str, Any]]:
    """What is told of jobs; each with its document's id when that is there."""
    ids = {one.folder: id for id, one in shelf.documents().items()} if any(job.memo for job in jobs) else {}
    return [{**job.facts(), "document": ids.get(job.memo) if job.memo else None} for job in jobs]


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, MinimemoError) else f"the server failed ({type(error).__name__})"


async def _told(request: Request, error: Exception) -> Response:
    """What is answered where no answer could be given."""
    if isinstance(error, HTTPException):
        return JSONResponse(openai.error(error.detail), error.status_code)
    if isinstance(error, ClientDisconnect):  # nobody reads it: the client broke off while it sent
        return JSONResponse(openai.error("the client left"), 499)
    if isinstance(error, (Busy, OverQuota)):
        wait = {"Retry-After": f"{error.seconds if isinstance(error, OverQuota) else 30:.0f}"}
        return JSONResponse(openai.error(str(error), "rate_limit_error"), 429, wait)
    if not isinstance(error, MinimemoError):
        return JSONResponse(openai.error(_said(error), "server_error"), 500)
    code = 404 if isinstance(error, InputError) and str(error).startswith("no ") else 400
    return JSONResponse(openai.error(str(error)), code)
