"""A server from its start to its end: sockets, the key, signals."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimemo.ask.endpoint import is_loopback
from minimemo.errors import InputError
from minimemo.files import data_dir, private_folder

if TYPE_CHECKING:
    from minimemo.server.access import Access
    from minimemo.server.app import Service

HOST, PORT = "127.0.0.1", 8765
HANDS = 8  # questions that are worked on at the same time; their steps are shared, see engine/scheduler.py
GRACE = 20  # seconds that what is being answered has to come to its end
_INSTALL = "serve needs starlette, uvicorn and prometheus_client: pip install 'minimemo[server]'"


def serve(
    places: Sequence[str | Path] = (),
    host: str = HOST,
    port: int = PORT,
    key: str = "",
    *,
    started: Callable[[str, int], None] = lambda address, documents: None,
    shared: bool = True,
    access: Path | None = None,
    **models: Any,
) -> None:
    """Serves memos until it is told to stop (SIGINT, SIGTERM); what is being streamed is finished first.

    places: memos and folders of them; none: all memos on this machine. key: what every request from elsewhere than the
    user's own socket has to carry. access: a file of tokens (access.py), in place of a key. started: called with the
    address and the number of documents. shared: whether `minimemo ask` of this user asks this server. models: options,
    model, embedder and generator of a Runtime.
    Raises InputError where it cannot listen, or would listen to other machines without a key.
    """
    try:
        import uvicorn

        from minimemo.server.access import read_access
        from minimemo.server.app import Service
        from minimemo.server.deadline import DeadlineProtocol
    except ImportError as error:
        raise InputError(f"{_INSTALL} ({error})") from error
    from minimemo.server.desk import Desk
    from minimemo.server.jobs import Jobs
    from minimemo.server.shelf import Shelf

    if access is not None and key:
        raise InputError("--access: its tokens take the place of the key; leave --api-key-file out")
    tokens = read_access(access) if access is not None else None
    if not is_loopback(host) and not key and tokens is None:
        raise InputError(f"--host {host}: other machines may ask only with a key; give one with --api-key-file FILE")
    desk = Desk(HANDS)
    shelf = Shelf(places, on_event=desk.hear, **models)
    tcp = _listen(host, port)
    sockets, path = [tcp], socket_path()
    if shared and (local := _listen_locally(path)) is not None:
        sockets.append(local)
    jobs = Jobs(shelf.uploads, {name: models.get(name) for name in ("model", "embedder")})
    address = f"http://{f'[{host}]' if ':' in host else host}:{tcp.getsockname()[1]}"
    made = application(Service(shelf, desk, jobs), address, key, tokens)
    config = uvicorn.Config(
        made, log_level="warning", access_log=False, lifespan="on", http=DeadlineProtocol,
        timeout_graceful_shutdown=GRACE, timeout_keep_alive=30, server_header=False,
        h11_max_incomplete_event_size=65536,
    )  # fmt: skip
    documents = shelf.documents()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # reached by: uvicorn
            await super().startup(sockets)
            started(address, len(documents))  # signals are heard from here on
            desk.submit(lambda: iter(_prepared(shelf, [one.folder for one in documents.values()])), lambda _: None)

    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # after uvicorn's own
    try:
        with suppress(KeyboardInterrupt):
            Server(config).run(sockets=sockets)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        if len(sockets) > 1:
            with suppress(OSError):
                path.unlink()
        jobs.close()
        desk.close(GRACE)
        for one in sockets:
            one.close()


def socket_path() -> Path:
    """The Unix socket of this user's server, in a folder that only the user may open."""
    folder = os.environ.get("XDG_RUNTIME_DIR")
    home = os.environ.get("MINIMEMO_HOME")
    return Path(folder) / "minimemo" / "server.sock" if folder and not home else data_dir() / "run" / "server.sock"


def application(service: Service, address: str, key: str = "", tokens: Sequence[Access] | None = None) -> Any:
    """What answers: one application with a key, or one for each token."""
    from minimemo.server.access import AUDIT, Gate
    from minimemo.server.app import app, front
    from minimemo.server.guard import Guard

    if tokens is None:
        return app(service, Guard(key), _assistant(service, address))
    parts = [(one, service.of(one)) for one in tokens]
    let_in = Guard(admitted=True)
    apps = {one.sha256: (one.name, app(part, let_in, _assistant(part, address))) for one, part in parts}
    nobody = front(Guard(secrets.token_hex(32)))  # a key that nobody has
    return Gate(apps, app(service, Guard(), _assistant(service, address)), nobody, data_dir() / AUDIT)


def _assistant(service: Service, address: str) -> Any:
    """What /mcp answers with; None where the protocol's package is not installed, and there is no /mcp."""
    if find_spec("mcp") is None:
        return None
    from minimemo.server.mcp import assistant

    return assistant(service.shelf, service.desk, address, spend=service.spend, wrote=service.wrote)


def _prepared(shelf: Any, folders: Sequence[Path]) -> Sequence[None]:
    """Loads the models of the first document before anybody waits for them."""
    if folders:
        shelf.opened(folders[:1]).prepare()
    return ()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        return made
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{host}:{port}: cannot listen there ({why}); choose another port with --port") from error


def _listen_locally(path: Path) -> socket.socket | None:
    """The user's own socket; None where another server has it, or the system has none of the kind."""
    if not hasattr(socket, "AF_UNIX"):
        return None
    try:
        private_folder(path.parent)
        if path.parent.stat().st_uid != os.getuid() or stat.S_IMODE(path.parent.stat().st_mode) & 0o077:
            return None
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
                return None
            except OSError:
                path.unlink(missing_ok=True)  # of a server that was killed
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            made.bind(str(path))
        finally:
            os.umask(before)
        return made
    except OSError:
        return None
