"""A receiver of webhooks, a server of its own, that answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook

from tests.e2e.rig import until


@dataclass(frozen=True)
class Call:
    """One call of a receiver."""

    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The message's id."""
        return self.headers["webhook-id"]

    @property
    def data(self) -> dict[str, Any]:
        """What the message is about."""
        return dict(json.loads(self.body)["data"])

    @property
    def topic(self) -> str:
        return str(json.loads(self.body)["type"])

    def verified(self, secret: str) -> Any:
        """The message, as a receiver with the secret reads it. Raises WebhookVerificationError."""
        return Webhook(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """`answers`: the status of the n-th call, from 0; it may hang meanwhile. None: the connection is closed."""

    answers: Callable[[int], int | None] = lambda number: 204
    calls: list[Call] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)
    endless: bool = False

    def of(self, job: str) -> list[Call]:
        """The calls about a job or run."""
        return [call for call in self.calls if call.data["id"] == job]

    def hears(self, job: str, times: int = 1) -> list[Call]:
        """Waits for so many calls about a job or run."""
        return until(lambda: len(found := self.of(job)) >= times and found, 60, f"{times} calls about {job}")


@contextmanager
def receiving(answers: Callable[[int], int | None] = lambda number: 204, wrap: Any = None) -> Iterator[Receiver]:
    """A receiver that listens; `wrap` dresses its socket."""
    receiver, lock = Receiver(answers), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            with lock:
                number = len(receiver.calls)
                receiver.paths.append(self.path)
                receiver.calls.append(Call({name.lower(): value for name, value in self.headers.items()}, body))
            status = receiver.answers(number)
            if status is None:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Location", f"{receiver.url}/elsewhere")
            if not receiver.endless:
                self.send_header("Content-Length", "0")
            self.end_headers()
            with suppress(OSError):
                while receiver.endless and not receiver.over.is_set():
                    self.wfile.write(b"x" * 4096)

        def log_message(self, *_: Any) -> None:
            """Not told."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if wrap is not None:
        server.socket = wrap(server.socket)
    scheme = "http" if wrap is None else "https"
    receiver.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
