"""What holds for every call, whatever it asks: an id, a size, headers, and no traceback?

The outermost layer, plain ASGI. It counts what a body brings, whatever its Content-Length says, and answers what
nobody else has answered.
"""

from __future__ import annotations

import math
import secrets

import anyio
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm.api.door import is_secure
from farm.api.problems import answer
from farm.api.threads import ANSWER_S, answer_within
from farm.errors import BadMediaType, BadRequest, BodyTooLarge, BodyTooSlow, Busy, FarmError, HeadTooLarge

MAX_BODY_BYTES = 1 << 20
"""Largest JSON body. Eight stages with the longest prompts take about 200 KiB."""
MAX_LOGIN_BYTES = 4 << 10
"""Largest body of a login, which anybody may send."""
LOGIN = "/api/v1/session"
"""The one address that takes a body from whoever calls."""
ALIVE = "/healthz"
"""Answered however much there is to do: who is busy must not be killed for it."""
UPLOADS = ("/api/v1/uploads", "/api/v1/pictures/read")
"""The addresses that take more: as much as an input image may have."""
DATASETS = "/api/v1/datasets/files"
"""The address that takes as much as a file of rows may have."""
MAX_HEAD_BYTES, MAX_HEADERS = 32768, 200
"""Largest head of a request, and most headers in it. Source: browsers send up to 16 KiB of cookies."""
BODY_S = 10.0
"""How long a body may take, seconds, beside what its size takes at `MIN_BYTES_PER_S`."""
MIN_BYTES_PER_S = 65536
"""Slower is no line that people have; the largest upload takes 410 s with it. Source: half a megabit per second."""
STOP = "stop"
"""Where a call's state has what ends its answer, if that goes on until somebody does."""
MAX_CALLS = 3000
"""Calls at the same time, event streams among them: three times as many as may watch."""
HEADERS = {
    # Nothing that the API answers is a page.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}
"""Headers of every answer, where it does not say otherwise. Source: OWASP Secure Headers Project."""
HSTS = "max-age=31536000"
"""What a browser that came over TLS is told: for a year, in seconds, it calls this host over nothing else. Without TLS
browsers pass over it. Source: RFC 6797, 7.2 and 8.1."""
_log = structlog.get_logger(__name__)


class Guard:
    """Wraps the app. `max_upload_bytes` bounds an uploaded image, `max_dataset_bytes` a file of rows, `MAX_BODY_BYTES`
    every other body."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int, max_dataset_bytes: int) -> None:
        self._app = app
        self._larger = {
            **dict.fromkeys(UPLOADS, max_upload_bytes), DATASETS: max_dataset_bytes, LOGIN: MAX_LOGIN_BYTES
        }  # fmt: skip
        self._calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        # As the server has it: it leaves out the body of what answers a HEAD.
        is_head, call = scope["method"] == "HEAD", anyio.CancelScope()
        scope = {**scope, "method": "GET"} if is_head else scope
        limit = self._larger.get(scope["path"], MAX_BODY_BYTES)
        begun, brought, whole, since = False, 0, False, anyio.current_time()

        async def counted() -> Message:
            nonlocal brought, whole
            until = math.inf if whole else since + BODY_S + brought / MIN_BYTES_PER_S
            message: Message = {"type": "http.disconnect"}
            with anyio.move_on_at(until) as scope_:
                message = await receive()
            if scope_.cancelled_caught and not begun:
                raise BodyTooSlow()
            brought += len(message.get("body", b""))
            if not whole and not message.get("more_body", False):
                whole = True
                answer_within(ANSWER_S)
            if brought > limit:
                raise BodyTooLarge(f"the body is larger than {limit} bytes")
            return message

        async def dressed(message: Message) -> None:
            nonlocal begun
            if call.cancel_called:
                return
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if is_secure(HTTPConnection(scope)):
                    headers["Strict-Transport-Security"] = HSTS
                headers["X-Request-ID"] = request_id
            await send(message)
            if is_head and message["type"] == "http.response.start":
                await send({"type": "http.response.body"})
                call.cancel()  # a stream would go on

        self._calls += 1
        answer_within(ANSWER_S)
        try:
            _check(Headers(scope=scope), limit)
            if self._calls > MAX_CALLS and scope["path"] != ALIVE:
                raise Busy()
            with call:
                await self._app(scope, counted, dressed)
        except ClientDisconnect:
            pass  # there is nobody left to answer
        except FarmError as error:
            if begun:
                raise
            # Where nobody can say where the body ends, nothing behind it is a call.
            headers = {"Connection": "close"} if type(error) is BadRequest else {}
            await answer(scope, error, headers=headers)(scope, receive, dressed)
        except Exception as error:
            _log.exception("call_broke", request_id=request_id)
            if begun:
                raise
            await answer(scope, FarmError(type(error).__name__))(scope, receive, dressed)
        finally:
            self._calls -= 1


def _check(headers: Headers, limit: int) -> None:
    """Refuses what a header tells to be too large, or packed.

    Raises:
        HeadTooLarge: there are too many headers, or too long ones.
        BadRequest: two headers say where the body ends, each in its own way.
        BodyTooLarge: the body would be larger than `limit`, bytes.
        BadMediaType: it is compressed: what it unpacks to could not be bounded.
    """
    raw = headers.raw
    if len(raw) > MAX_HEADERS or sum(len(name) + len(value) for name, value in raw) > MAX_HEAD_BYTES:
        raise HeadTooLarge()
    if "content-length" in headers and "transfer-encoding" in headers:
        # Whoever stands in between may have gone by the other one. Source: RFC 9112, 6.1: request smuggling.
        raise BadRequest("send Content-Length or Transfer-Encoding, not both")
    length = headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        raise BodyTooLarge(f"the body is larger than {limit} bytes")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise BadMediaType("send the body uncompressed, without Content-Encoding")
