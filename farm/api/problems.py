"""How is an error told over HTTP?

As `application/problem+json` (RFC 9457), from the tree in `farm.errors`: its class gives the status, `code` is stable,
`errors` names each wrong field. What was sent is not repeated, and of a failure inside the farm only its code is told:
the log has the rest, under the same `request_id`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import ceil
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from farm.errors import CODES, FarmError, FieldError, InvalidJob, RateLimited, Unavailable

MEDIA_TYPE = "application/problem+json"
"""Source: RFC 9457, 3."""
MAX_TOLD = 50
"""Wrong fields that one answer names."""
MAX_CHARS = 500
"""Characters of one message."""
MAX_WALKED = 5000
"""Values of a body that are looked for in what is told of it: a longer body is named by its fields alone."""
_OF_STATUS = {404: "not_found", 405: "method_not_allowed", 400: "bad_request"}
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_log = structlog.get_logger(__name__)


class WrongField(BaseModel):
    """One wrong field: `loc` is its dotted path, `msg` says what would be right."""

    loc: str
    msg: str
    code: str


class Problem(BaseModel):
    """What went wrong, as RFC 9457 has it, and what a program needs to go on."""

    type: str = Field(description="urn:latent-farm:problem: and the code")
    title: str = Field(description="the code's sentence")
    status: int
    code: str = Field(description="stable snake_case, listed in the README under Error codes")
    detail: str
    hint: str | None = Field(None, description="what helps, where more can be said than `detail` does")
    errors: list[WrongField] = []
    request_id: str = ""
    retry_after: int | None = Field(None, description="seconds")
    part: str | None = Field(None, description="of /readyz: what does not answer, the ledger or the store")
    idempotency_key: str | None = Field(None, description="after outcome_unknown: send the same body with it again")


def install(app: FastAPI, lost: Callable[[Request], Response | None]) -> None:
    """Makes every error of `app` a problem; `lost` may answer instead where nothing has the address."""

    async def of_farm(request: Request, error: Exception) -> Response:
        assert isinstance(error, FarmError)  # noqa: S101 — as it is registered
        return answer(request.scope, error)

    async def of_fields(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return answer(request.scope, InvalidJob(errors=tuple(_fields(error))))

    async def of_routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        if error.status_code == 404 and (found := lost(request)):
            return found
        code, headers = _OF_STATUS.get(error.status_code, "bad_request"), dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = _methods(app, request.scope["path"])
        return answer(request.scope, FarmError(code=code), error.status_code, headers)

    app.add_exception_handler(FarmError, of_farm)
    app.add_exception_handler(RequestValidationError, of_fields)
    app.add_exception_handler(HTTPException, of_routing)


def _methods(app: FastAPI, path: str) -> str:
    """The methods that the address knows; the router names those of its first route alone."""
    paths: dict[str, Any] = app.openapi()["paths"]
    fitting = (calls for form, calls in paths.items() if re.fullmatch(re.sub(r"{\w+}", "[^/]+", form), path))
    known = {method.upper() for method in paths.get(path) or next(fitting, {"get": {}})}
    return ", ".join(sorted(known | {"HEAD"} if "GET" in known else known))


def answer(scope: Any, error: FarmError, status: int | None = None, headers: dict[str, str] | None = None) -> Response:
    """The response that tells `error`."""
    state = scope.get("state", {})
    request_id, status, headers = state.get("request_id", ""), status or type(error).http, dict(headers or {})
    problem = Problem(
        type=f"urn:latent-farm:problem:{error.code}",
        title=CODES[error.code],
        status=status,
        code=error.code,
        detail=CODES[error.code],
        request_id=request_id,
    )
    if status < 500:
        given = state.get("given")
        told = [
            WrongField(loc=_named(one.loc), msg=unechoed(one.msg, given), code=one.code)
            for one in getattr(error, "errors", ())[:MAX_TOLD]
        ]
        detail = "; ".join(f"{one.loc}: {one.msg}" for one in told) or unechoed(error.message, given)
        hint = unechoed(error.hint, given) or None
        problem = problem.model_copy(update={"errors": told, "detail": detail[:MAX_CHARS], "hint": hint})
    else:
        _log.warning("call_failed", request_id=request_id, code=error.code, error=error.message)
    if isinstance(error, Unavailable | RateLimited):
        seconds = max(1, ceil(error.retry_after_s))
        headers["Retry-After"] = str(seconds)
        key = state.get("idempotency_key") if error.code == "outcome_unknown" else None
        part = getattr(error, "part", None)
        problem = problem.model_copy(update={"retry_after": seconds, "idempotency_key": key, "part": part})
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(problem.model_dump_json(exclude_none=True), status, headers, MEDIA_TYPE)


def unechoed(text: str, given: Any) -> str:
    """`text` without the texts in `given`, the body that it tells of, and without what would steer a terminal."""
    for value in _texts(given):
        if (quoted := repr(value)) in text:
            text = text.replace(quoted, "what was given")
        elif len(value) > 3 and not re.fullmatch(r"[\w.-]{1,64}", value) and value in text:
            text = text.replace(value, "…")
    text = _UNPRINTABLE.sub("�", text)
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"


def _texts(given: Any) -> Iterator[str]:
    """The texts within a JSON value."""
    waiting = [given]
    for _ in range(MAX_WALKED):
        if not waiting:
            return
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _named(loc: str) -> str:
    """A field's path; its parts are a stranger's words where they name no field."""
    return re.sub(r"[^\w.-]", "?", loc, flags=re.ASCII)[:200]


def _fields(error: RequestValidationError) -> Iterator[FieldError]:
    for one in error.errors():
        # `body`, `query`, `path` or `header` comes first, and of a body nobody says so.
        where = [str(part) for part in one["loc"]]
        where = where[1:] if where[:1] == ["body"] and where[1:] else where
        code = "unknown_field" if one["type"] == "extra_forbidden" else "invalid_field"
        yield FieldError(".".join(where), "no such field" if code == "unknown_field" else one["msg"], code)
