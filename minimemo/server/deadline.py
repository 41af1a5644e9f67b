"""A bound on how long a request may take to come; uvicorn bounds the time between two alone."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 60.0  # seconds that may pass until a request is whole, beyond one for every SLOWEST bytes of it
SLOWEST = 1000


class DeadlineProtocol(H11Protocol):
    """HTTP/1.1 that closes connections whose requests do not come: silent ones, and those that send a byte now and
    then. Time in which the server itself reads nothing does not count."""

    _deadline: float | None = None  # of the request that is coming, on the loop's clock; None: it is there
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # reached by: asyncio
        super().connection_made(transport)
        self._expect(self.loop.time() + PATIENCE)

    def data_received(self, data: bytes) -> None:  # reached by: asyncio
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            latest = self.loop.time() + PATIENCE
            self._expect(latest if self._deadline is None else min(latest, self._deadline + len(data) / SLOWEST))
        else:
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:  # reached by: asyncio
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _expect(self, deadline: float) -> None:
        self._deadline = deadline
        if self._timer is None:
            self._timer = self.loop.call_at(deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self.flow.read_paused:
            self._expect(self.loop.time() + PATIENCE)
        elif self.loop.time() < self._deadline:
            self._expect(self._deadline)
        else:
            self.transport.close()
