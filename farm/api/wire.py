"""How does the API listen, and what of a connection that never gets to a call?

uvicorn bounds how large the head of a request is, not how long it takes: here a connection that has not said within
`HEAD_S` what it wants is closed, and one that says what is no HTTP is told so as everything else is.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from farm.api.guard import HEADERS, MAX_HEAD_BYTES, STOP
from farm.api.problems import answer
from farm.errors import BadRequest, HeadTooLarge

HEAD_S = 10.0
"""How long the head of a request may take, seconds."""
KEEP_S = 5
"""How long a connection stays open between two calls, seconds."""


class Wire(H11Protocol):
    """One connection."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Takes what came; no more waiting once a request is there."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._found()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request."""
        before = self.cycle
        self._expect()
        super().on_response_complete()
        if self.cycle is not before:
            self._found()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        self._found()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Ends the connection once its call is answered, and an event stream, which never is, now."""
        super().shutdown()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.scope["state"].get(STOP, lambda: None)()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 — uvicorn's own
        """Tells that what came is no request, where nothing has been told yet, and hangs up."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            large = getattr(sys.exc_info()[1], "error_status_hint", 400) == HeadTooLarge.http
            said = answer({}, HeadTooLarge() if large else BadRequest("the request is no HTTP"), headers=dict(HEADERS))
            headers = [*said.raw_headers, (b"connection", b"close")]
            told = h11.Response(status_code=said.status_code, headers=headers), h11.Data(data=bytes(said.body))
            for event in (*told, h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect(self) -> None:
        self._found()
        self._end = self.loop.call_later(HEAD_S, self.transport.close)

    def _found(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None


def listening(app: ASGIApp, host: str, port: int, **how: Any) -> uvicorn.Config:
    """How uvicorn serves `app`: alone on its word, whatever a proxy's headers claim."""
    return uvicorn.Config(
        app, host=host, port=port, http=Wire, ws="none", lifespan="on", access_log=False, server_header=False,
        proxy_headers=False, timeout_keep_alive=KEEP_S, h11_max_incomplete_event_size=MAX_HEAD_BYTES, **how,
    )  # fmt: skip
