"""Who asks, may they, and can what they send be read?

Every route under `/api/v1` is a `Door`: it looks at the token before it reads a body, and reads a body as strictly as
JSON is defined. `needs` names the scope.
"""

from __future__ import annotations

import hmac
import json
import math
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, cast

import anyio.to_thread
from fastapi import Depends, Query, Request, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection
from starlette.responses import Response

from farm.api.callers import LOCAL, Caller
from farm.api.desk import Desk, desk_of
from farm.api.sessions import second_word
from farm.api.threads import call_for
from farm.chain import MAX_DEPTH
from farm.errors import BadMediaType, BadRequest, FieldError, Forbidden, InvalidJob, Unauthorized
from farm.stage import MAX_SEED
from farm.tokens import OWNER, SCOPES, Scope, Token

COOKIE = "farm_session"
"""The session's cookie."""
MAX_KEYS = 1000
"""Keys of one object: each that is wrong costs time, and all parameters of eight stages are half as many."""
LARGE_BYTES = 64 << 10
"""From here on a body is read in a thread."""
_TOKEN = re.compile(
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|NaN|-?(?:Infinity|(?:0|[1-9]\d*+)(?:\.\d++)?+(?:[eE][+-]?\d++)?+)', re.DOTALL
)
"""The texts and numbers of JSON, and what Python alone takes for numbers."""
_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_TOO_DEEP = f"the body has more than {MAX_DEPTH} lists and objects within each other"
_bearer = HTTPBearer(auto_error=False, description="a token of `farm token create`")


async def identify(connection: HTTPConnection) -> Caller:
    """Who asks.

    Raises:
        Unauthorized: there is neither token nor session, or it does not hold.
        Forbidden: the call comes from a web page of somewhere else, or from one that does not prove that it does not.
        RateLimited: many wrong tokens came from the same address.
    """
    desk = desk_of(connection)
    if not desk.auth:
        _refuse_strangers(connection)
        return Caller(LOCAL, frozenset(SCOPES))
    header = connection.headers.get("authorization")
    session = connection.cookies.get(cookie_of(connection)) if header is None else None
    if session is None:
        scheme, _, text = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise Unauthorized("send the header `Authorization: Bearer TOKEN`, or log in")
        token = await prove(connection, text.strip())
        return caller_of(desk, token)
    refuse_pages(connection)
    call_for(str(hash(session)))
    token = await desk.recognise(desk.sessions.find, session)
    sent = connection.headers.get("x-csrf-token", "").encode("utf-8", "replace")
    if writes(connection) and not hmac.compare_digest(sent, second_word(session).encode()):
        raise Forbidden("with a session, send what GET /session says as `csrf_token` in the header X-CSRF-Token")
    return caller_of(desk, token, session)


def caller_of(desk: Desk, token: Token, session: str = "") -> Caller:
    """Who has the token."""
    most = desk.settings.max_open_jobs if token.max_open_jobs is None else token.max_open_jobs
    return Caller(token.owner, token.scopes, token.id, most, session)


async def prove(connection: HTTPConnection, text: str) -> Token:
    """The token that `text` is; a wrong one is counted.

    Raises:
        Unauthorized: it does not hold.
        RateLimited: many wrong ones came from the same address.
    """
    desk = desk_of(connection)
    call_for(str(hash(text)))
    try:
        return await desk.recognise(desk.tokens.find, text)
    except Unauthorized:
        # Only now: who has a token that holds is let in, whatever others on the same address do.
        await desk.ask(desk.limits.failed, connection.client.host if connection.client else "")
        raise


def writes(connection: HTTPConnection) -> bool:
    """Whether the call's method is one that may change something. Source: RFC 9110, 9.2.1."""
    return connection.scope["method"] not in ("GET", "HEAD", "OPTIONS", "TRACE")


def is_secure(connection: HTTPConnection) -> bool:
    """Whether the browser came over TLS. Who says so without truth gets a cookie that is sent back over TLS only."""
    forwarded = connection.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    return "https" in (connection.scope["scheme"], forwarded)


def cookie_of(connection: HTTPConnection) -> str:
    """What the session's cookie is called: over TLS so that no other host or path can set it. Source: RFC 6265bis."""
    return f"__Host-{COOKIE}" if is_secure(connection) else COOKIE


def refuse_pages(connection: HTTPConnection) -> None:
    """Refuses what a browser sends for a page of another origin; another port is another origin.

    Source: Fetch Metadata (W3C), Sec-Fetch-Site; where a browser does not know it, Origin must be the host called.

    Raises:
        Forbidden: it does.
    """
    site, origin = connection.headers.get("sec-fetch-site"), connection.headers.get("origin")
    host = connection.headers.get("host", "")
    if site not in (None, "same-origin", "none") or (site == "none" and writes(connection)):
        raise Forbidden("no other site's page may call")
    if site is None and origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise Forbidden("no other site's page may call")


def _refuse_strangers(connection: HTTPConnection) -> None:
    """Without tokens, who reaches this machine is its user; but so does every web page in the user's browser."""
    host = connection.headers.get("host", "")
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if name not in ("127.0.0.1", "localhost", "[::1]"):  # a page may give its own name this machine's address
        raise Forbidden("without tokens the farm is called by this machine's own name")
    origin = connection.headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise Forbidden("without tokens no other site's page may call")


def needs(scope: Scope | None) -> Any:
    """The dependency that gives the caller, who has `scope`."""

    async def caller(request: Request, _token: Annotated[Any, Security(_bearer)]) -> Caller:
        found = cast("Caller", request.state.caller)
        if scope is not None and scope not in found.scopes and not found.is_admin:
            raise Forbidden(f"the call needs a token with the scope {scope}")
        return found

    return Depends(caller)


Known = Annotated[Caller, needs(None)]
Reader = Annotated[Caller, needs("read")]
Submitter = Annotated[Caller, needs("submit")]
Admin = Annotated[Caller, needs("admin")]
Whose = Annotated[str | None, Query(pattern=f"^{OWNER}$", description="only this owner's; of others for an admin")]


class Door(APIRoute):
    """A route that is open to callers with a token or session, and whose body, if it takes one, is strict JSON."""

    async def enter(self, request: Request) -> None:
        """Notes who asks, if they may."""
        request.state.caller = caller = await identify(request)
        call_for(caller.owner)
        if caller.token and writes(request):
            desk = desk_of(request)
            await desk.ask(desk.limits.write, caller.token)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, behind all checks."""
        handle = super().get_route_handler()
        takes_json = self.body_field is not None
        known = [one.alias for one in self.dependant.query_params]

        async def handler(request: Request) -> Response:
            await self.enter(request)
            _refuse_unknown(request, known)
            if takes_json:
                # Kept where FastAPI looks for it, so that it does not parse again.
                request._json = request.state.given = await _read(request)
            return await handle(request)

        return handler


def _refuse_unknown(request: Request, known: Sequence[str]) -> None:
    """Refuses parameters that the call does not know: it would do something else than what was meant.

    Raises:
        InvalidJob: (`unknown_field`) there are some.
    """
    told = f"the call knows {', '.join(known)}" if known else "the call knows none"
    wrong = [FieldError(f"query.{name}", told, "unknown_field") for name in request.query_params if name not in known]
    if wrong:
        raise InvalidJob(errors=tuple(wrong))


async def _read(request: Request) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadMediaType("send the body as JSON, with Content-Type: application/json")
    body = await request.body()
    # A large one takes its time, and all streams would wait for it.
    return await anyio.to_thread.run_sync(read_json, body) if len(body) > LARGE_BYTES else read_json(body)


class _NoNumber(ValueError):
    """The `literal` is a number that JSON does not have, or one that is not read; `why`."""

    def __init__(self, literal: str, why: str) -> None:
        super().__init__(why)
        self.literal, self.why = literal, why


def read_json(data: bytes) -> Any:
    """The JSON value in `data`, UTF-8.

    Raises:
        BadRequest: (`invalid_json`) it is none, has numbers that are none or too long, or is too deep or wide; says
            where, and what is wrong there; (`duplicate_key`) an object has a key twice.
        InvalidJob: (`invalid_unicode`) a text holds what no text may.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        raise _wrong_at(before, len(before), "the body is not UTF-8") from None
    if text.startswith("\ufeff"):
        raise _wrong_at(text, 0, "a byte order mark; send UTF-8 without one")
    try:
        found = json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite, parse_int=_whole
        )
    except json.JSONDecodeError as error:
        ends = error.pos >= len(text.rstrip())
        # What follows a colon would be from the body.
        said = error.msg.partition(": ")[0].removesuffix(" at").removesuffix(" starting")
        raise _wrong_at(text, error.pos, "the body ends too early" if ends else said) from None
    except _NoNumber as error:
        # All before it was JSON, so that the first token that is the same is the one.
        at = next(token.start() for token in _TOKEN.finditer(text) if token[0] == error.literal)
        raise _wrong_at(text, at, error.why) from None
    except RecursionError:
        raise BadRequest(_TOO_DEEP, code="invalid_json") from None
    _check(found)
    return found


def _wrong_at(text: str, at: int, why: str) -> BadRequest:
    """The error of a body that is no JSON at the character `at`, of which nothing is repeated."""
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return BadRequest(f"line {line}, column {column}: {why[0].lower()}{why[1:]}", code="invalid_json")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise BadRequest(f"an object of the body has more than {MAX_KEYS} keys", code="invalid_json")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequest(code="duplicate_key")
    return found


def _no_number(text: str) -> float:
    raise _NoNumber(text, f"the body has {text}, which is no JSON number")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python's own limit, beyond which it takes long
        raise _NoNumber(text, "a number of too many digits") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _NoNumber(text, "a number beyond what 64 bits hold")
    # A number without a fraction is an integer, however it is written. Source: JSON Schema 2020-12, core, 4.2.3.
    return int(value) if value.is_integer() and abs(value) <= MAX_SEED else value


def _check(value: Any, loc: str = "", depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise BadRequest(_TOO_DEEP, code="invalid_json")
    if isinstance(value, str):
        if _TEXT.search(value):
            msg = "no control characters but tab and newline, and no half of a surrogate pair"
            raise InvalidJob(errors=(FieldError(loc.lstrip(".") or "body", msg, "invalid_unicode"),))
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key, loc, depth)
            _check(item, f"{loc}.{key}", depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, f"{loc}.{index}", depth + 1)
