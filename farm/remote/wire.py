"""What is sent to the API, when is it sent again, and what does an answer mean?

Nothing here sends anything. A word of the farm is a generator of steps: it yields a `Call` and is given its `Answer`,
or the error that came instead, or it yields a `Pause`. Whoever plays it sends and sleeps, blocking or not, so that the
words are written once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx2

from farm import errors
from farm.errors import FarmError, FieldError, InvalidJob, RateLimited, Unauthorized, Unavailable
from farm.handle import AWAY_S
from farm.settings import Settings
from farm.snapshot import BASE

T = TypeVar("T")
TRIES = 3
"""How often a call that may be sent again is sent."""
EARLY = ("rate_limited", "busy")
"""Codes of answers to calls that came too early and had no effect: sent again for `AWAY_S`, when the answer says."""
BACKOFF_S = 0.3
"""First pause after a call that nobody answered; doubles, seconds."""
MOST_S = 30.0
"""Longest pause that an answer may ask for, seconds."""
TIMEOUT_S = 30.0
"""How long one call may take, seconds; the API itself answers trouble within 3."""
LONG_S = 90.0
"""How long a call may take that concerns many jobs: a submit, or steering a run, which the API gives 60, seconds."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""This machine: what the environment says of proxies is not meant for it, and no proxy elsewhere could reach it."""
QUIET_S = 60.0
"""An event stream that says nothing for so long is gone, seconds: it shows every 15 that it lives."""
_CLASSES = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, FarmError)]
_OF_CODE = {cls.code: cls for cls in _CLASSES}
_OF_STATUS = {cls.http: cls for cls in reversed(_CLASSES)}
"""The first class of each status, as the tree in `farm.errors` has them: for codes narrower than a class's own."""


@dataclass(frozen=True)
class Call:
    """One call of the API. `again`: sent twice it does no more than once. Without `known` no token goes with it.

    `path` is below the API's address, or the farm's where it begins with /. `lost` is the code of the error where no
    answer comes; `timeout_s`: how long one is waited for, seconds. Of `content` that is a path the file is sent, in
    pieces (by `RemoteFarm` alone).
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    content: bytes | Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    again: bool = False
    lost: str = "unavailable"
    known: bool = True
    timeout_s: float = TIMEOUT_S

    def request(self, base: str, token: Mapping[str, str]) -> dict[str, Any]:
        """The call in the words of the client's `build_request`; `base` is the farm's address."""
        below = self.path if self.path.startswith("/") else f"{BASE}/{self.path}"
        url = base + below if self.known else self.path
        headers = {**token, **self.headers} if self.known else self.headers
        found: dict[str, Any] = {"method": self.method, "url": url, "params": self.params or None, "headers": headers}
        return {**found, "json": self.json, "content": self.content, "timeout": self.timeout_s}


@dataclass(frozen=True)
class Answer:
    """What came back. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        """The JSON in it, None where it has no content. Raises Unavailable where it is none."""
        try:
            return None if self.status == 204 else json.loads(self.content)
        except ValueError:
            raise Unavailable(f"what answers is no farm (HTTP {self.status})") from None


@dataclass(frozen=True)
class Pause:
    """Time to let pass, seconds."""

    seconds: float


Steps = Generator["Call | Pause", "Answer | None", T]
"""A word of the farm; `T` is what it gives."""


@dataclass(frozen=True)
class Done(Generic[T]):
    """What a word has given."""

    found: T


def go_on(steps: Steps[T], told: Answer | Unavailable | None) -> Call | Pause | Done[T]:
    """The next step of a word that was told what came of the last one, or what the word gives."""
    try:
        return steps.throw(told) if isinstance(told, Unavailable) else steps.send(told)
    except StopIteration as end:
        return Done(end.value)


def ask(call: Call, *expected: int) -> Steps[Answer]:
    """The answer of a call that succeeded, or has one of the `expected` statuses.

    What may be sent again is sent again, a few times, where no answer comes or a part of the farm is away. What came
    too early (`EARLY`) had no effect, so that is sent again whatever it is, when the answer says, for a minute.

    Raises:
        FarmError: the one that the answer tells, in its own class.
        Unavailable: no answer came. With the call's own code for that where one try may have had an effect.
    """
    unsure, pause_s, tries, since = False, BACKOFF_S, TRIES, time.monotonic()
    while True:
        answer: Answer | None = None
        try:
            answer = yield call
            assert answer is not None  # noqa: S101 — a call is answered, or an error is thrown
            if answer.status not in expected:
                check(answer, call.lost)
            return answer
        except FarmError as error:
            # A full quota is no matter of seconds: whoever asked decides.
            early = error.code in EARLY
            away = isinstance(error, Unavailable)
            unsure = unsure or error.code == "outcome_unknown"
            tries -= away and not early
            if early:
                give_up = time.monotonic() - since + _wanted_s(answer) > AWAY_S
            else:
                give_up = not (away and call.again and tries)
            if give_up:
                if unsure and away and error.code != "outcome_unknown":
                    # A refusal of the last try says nothing of the tries before it.
                    raise Unavailable(code="outcome_unknown") from None
                raise
        yield Pause(min(_wanted_s(answer) or pause_s, MOST_S))
        pause_s *= 2


def _wanted_s(answer: Answer | None) -> float:
    """The pause that an answer asks for, seconds; 0 where it asks for none."""
    text = answer.headers.get("retry-after", "") if answer is not None else ""
    return float(text) if text.isascii() and text.isdigit() else 0.0


def asked(call: Call) -> Steps[Any]:
    """The JSON of a call's answer; raises as `ask` does."""
    answer = yield from ask(call)
    return answer.json


def get(path: str, **params: Any) -> Steps[Any]:
    """The JSON at an address; parameters that are None are left out."""
    given = {name: str(value) for name, value in params.items() if value is not None}
    return (yield from asked(Call("GET", path, given, again=True)))


def part(name: str) -> str:
    """`name` as one part of an address, whatever characters it has."""
    return quote(name, safe="")


def place(url: str | None, token: str | None, settings: Settings) -> tuple[str, dict[str, str]]:
    """A farm's address, and the header that says who asks; what is not given is what `settings` say for that address.

    Raises:
        InvalidJob: (`invalid_field`) there is no address.
    """
    # What people copy may be the API's address.
    found = (settings.url if url is None else url).rstrip("/").removesuffix(BASE)
    if not found:
        raise InvalidJob("no farm is named: give its address, or set FARM_URL", code="invalid_field")
    # The token is for the farm that it is set for, not for whichever is named in a program.
    own = found == settings.url.rstrip("/").removesuffix(BASE)
    text = (settings.token.get_secret_value() if own else "") if token is None else token
    return found, {"Authorization": f"Bearer {text}"} if text else {}


@contextmanager
def reaching(call: Call) -> Iterator[None]:
    """Errors of the network as the farm's own, without the address."""
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout):
        message = "the farm's API cannot be reached" if call.known else "the farm's store cannot be reached"
        raise Unavailable(message, hint="is `farm serve` running there? FARM_URL says where") from None
    except httpx2.TransportError as error:
        who = "API" if call.known else "store"
        told = f"the farm's {who} does not answer ({type(error).__name__})"
        raise Unavailable(told if call.lost == "unavailable" else None, code=call.lost) from None
    except httpx2.InvalidURL:
        raise InvalidJob("FARM_URL is no address such as https://farm.example.org", code="invalid_field") from None


def answer_of(response: httpx2.Response) -> Answer:
    """A response that was read, as an answer."""
    return Answer(
        response.status_code, {key.lower(): value for key, value in response.headers.items()}, response.content
    )


def check(answer: Answer, lost: str = "unavailable") -> None:
    """Nothing, if the call succeeded. `lost` is the code where what answers is no farm, but something between.

    Raises:
        FarmError: the one that the answer tells, in its own class.
    """
    if 200 <= answer.status < 300:
        return
    try:
        found = json.loads(answer.content)
        code, detail, hint = str(found["code"]), str(found["detail"]), str(found.get("hint") or "")
        wrong = tuple(FieldError(one["loc"], one["msg"], one["code"]) for one in found.get("errors", ()))
    except (ValueError, KeyError, TypeError):
        message = f"what answers is no farm (HTTP {answer.status})"
        raise Unavailable(message, code=lost if answer.status >= 500 else "unavailable") from None
    cls = _OF_CODE.get(code, FarmError)
    if cls.http != answer.status:
        cls = _OF_STATUS.get(answer.status, FarmError)
    if cls is Unauthorized:  # the API speaks of the header, which is not what people set here
        hint = "set FARM_TOKEN: `farm token create` on the farm's machine makes one"
        raise Unauthorized("the token is missing, not known, or has expired", code=code, hint=hint)
    if cls is InvalidJob:
        raise InvalidJob(detail, code=code, hint=hint, errors=wrong)
    error = cls(detail, code=code, hint=hint)
    if isinstance(error, Unavailable | RateLimited):
        error.retry_after_s = _wanted_s(answer) or error.retry_after_s
    raise error
