"""How is a script run on the ledger's server, and what do the server's failures mean to the caller?

All keys of a farm begin with `{namespace}:`. Most are the ledger's (`farm.ledger` says which); beside them lie::

    callers                     the tokens, by id: hashes of their secrets, owners, scopes         farm.tokens
    session:<hash>              who has logged in                                                  farm.api.sessions
    request:<owner>:<hash>      idempotency keys of requests; upload:<owner>:<hash>: whose image   farm.api.kept
    rate:<caller>               how much of its share a caller has spent                           farm.api.limits
    webhooks, webhooks:health   endpoints, by id, and how they answer                              farm.webhooks
    webhook:<id>:due, :waiting  deliveries: when each is due, and what it says                     farm.api.outbox
    webhooks:leader, :position  who delivers, how far the events were read; :runs: runs that
                                may have ended                                                     farm.api.outbox
    webhooks:datasets           word of datasets that are done, until it is to be delivered        farm.webhooks
    dataset:<name>:feeder       which process feeds it                                             farm.dataset.seats
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

from farm.errors import Conflict, FarmError, Forbidden, NotFound, QuotaExceeded, StaleToken, Unavailable
from farm.settings import Settings

if TYPE_CHECKING:
    from redis.connection import AbstractConnection as _Connection
else:
    _Connection = object

T = TypeVar("T")
TIMEOUT_S = 2.0
"""How long one wait for the server lasts. Source: design, a submit that cannot be stored is refused within 3 s."""
FAN = 500
"""Waiters of one execution that one script moves: some 20 ms of the server's time. The reconciler moves the others."""
SHARED = ("shared/base", "shared/executions", "shared/jobs", "shared/workers", "shared/reading")
"""What stands before every script: the moves that more than one of them makes, each after what it is made of."""
_LOST = (redis.ConnectionError, redis.TimeoutError)
"""The reply is lost: the call may have been carried out."""
_ANSWERED = (redis.exceptions.AuthenticationError, redis.BusyLoadingError)
"""The server's own answers among redis-py's connection errors."""
_WRITABLE = "#!lua\nreturn 1"
"""A script that writes nothing, but is refused where a write would be. Source: Redis manual, script flags."""
_CANNOT = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY")
"""First words of what the server answers when it cannot serve now: it has not carried out anything."""
_HINTS: dict[type[redis.RedisError], str] = {
    redis.exceptions.OutOfMemoryError: "its memory is full: let jobs end, or raise its maxmemory",
    redis.exceptions.ReadOnlyError: "it is a replica: FARM_REDIS_URL has to name the primary",
    redis.exceptions.NoPermissionError: "its ACL forbids this: the README says what a role needs",
}
_REFUSED: dict[str, type[FarmError]] = {
    "not_found": NotFound,
    "stale_token": StaleToken,
    "conflict": Conflict,
    "forbidden": Forbidden,
    "idempotency_conflict": Conflict,
    "quota_exceeded": QuotaExceeded,
    "farm_full": Unavailable,
}


@cache
def _source(name: str) -> str:
    folder = files("farm") / "lua"
    return "\n".join((folder / f"{each}.lua").read_text("utf-8") for each in (*SHARED, name))


_end: ContextVar[float] = ContextVar("end", default=math.inf)
"""When the calls of this thread have to be over, on the monotonic clock."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Lets all calls inside wait for `seconds` together at most; a server that is slower is Unavailable."""
    before = _end.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _end.reset(before)


class _Bounded(_Connection):
    """A connection that never waits beyond the end that `within` set: a slow server has many small ways to hold us."""

    def _connect(self) -> Any:
        self.socket_timeout = self.socket_connect_timeout = _left_s()
        return super()._connect()  # type: ignore[safe-super]  # the class beside this one has it

    def send_packed_command(self, *args: Any, **options: Any) -> None:
        if self._sock:
            self._sock.settimeout(_left_s())
        super().send_packed_command(*args, **options)

    def read_response(self, *args: Any, **options: Any) -> Any:
        if self._sock:
            self._sock.settimeout(_left_s())
        return super().read_response(*args, **options)


def _left_s() -> float:
    """How long the next wait may last, in seconds."""
    left = _end.get() - time.monotonic()
    if left <= 0:
        raise redis.TimeoutError("the time for this call is over")
    return min(TIMEOUT_S, left)


class Server:
    """One Redis or Valkey that holds a ledger, under the prefix `{namespace}:`."""

    def __init__(self, settings: Settings, fan: int = FAN) -> None:
        self._prefix = "{" + settings.namespace + "}:"
        pool = redis.ConnectionPool.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            decode_responses=True,
            encoding_errors="replace",  # an id that is no text is the id of nothing
            protocol=2,
            retry=Retry(NoBackoff(), 0),  # `_ask` repeats: it knows what a repetition may mean
        )
        pool.connection_class = type("Bounded", (_Bounded, pool.connection_class), {})
        self._redis = redis.Redis.from_pool(pool)
        self._scripts: dict[str, Script] = {}
        self._checked = False
        self._limits = (
            round(settings.lease_s * 1000),
            settings.retention_s,
            settings.crash_attempts,
            settings.oom_attempts,
            settings.lapse_attempts,
            settings.rewind_attempts,
            fan,
            settings.isolate_failures,
            round(settings.isolate_s * 1000),
        )

    def ping(self) -> None:
        """Returns where the server answers, would take a write, and is of a kind that the farm runs on.

        Raises:
            Unavailable: it does not, or (`unsupported_server`) it is a Redis Cluster.
        """
        self._ask(lambda: self._redis.execute_command("EVAL", _WRITABLE, 0))
        self._check()

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    def call(self, name: str, *args: str | int | float, lost: str = "unavailable") -> Any:
        """The answer of `lua/<name>.lua`. `lost` is the code of the error where the reply did not come.

        Raises:
            Conflict, NotFound, QuotaExceeded, StaleToken: the script refuses the call.
            Unavailable: the server cannot serve now, or (`farm_full`) the farm takes no more jobs.
        """
        self._check()
        script = self._scripts.get(name) or self._scripts.setdefault(name, self._redis.register_script(_source(name)))
        found = self._ask(lambda: script(keys=[self._prefix], args=[*self._limits, *args]), lost)
        if isinstance(found, list) and found and found[0] == "!":
            raise _REFUSED[found[1]](found[2] or None, code=found[1])
        return found

    def run(self, command: str, name: str = "", *args: str) -> Any:
        """The answer of one plain command on the key `name`.

        Raises:
            Unavailable: the server cannot serve now.
        """
        return self._ask(lambda: self._redis.execute_command(command, *([self._prefix + name] if name else []), *args))

    def read_stream(self, name: str, after: str, wait_ms: int) -> list[tuple[str, dict[str, str]]]:
        """The entries of the stream `name` after the id `after`, waiting for the first up to `wait_ms`.

        Raises:
            Unavailable: the server cannot serve now.
        """
        found = self._ask(lambda: self._redis.xread({self._prefix + name: after}, count=1000, block=wait_ms or None))
        return cast("list[Any]", found)[0][1] if found else []

    def _check(self) -> None:
        if self._checked:
            return
        if self._ask(self._is_cluster):
            raise Unavailable("the ledger does not run on Redis Cluster", code="unsupported_server")
        self._checked = True

    def _is_cluster(self) -> bool:
        try:
            found: dict[str, Any] = self._redis.info("cluster")
        except redis.exceptions.NoPermissionError:
            return False  # a role that may not ask: the operator's does
        return bool(found.get("cluster_enabled"))

    def _ask(self, send: Callable[[], T], lost: str = "unavailable") -> T:
        """What `send` gives; sent once more where the connection breaks, for a pooled one may long have been closed.

        Raises:
            Unavailable: the server cannot serve now; with the code `lost` where `send` may have been carried out.
        """
        try:
            return send()
        except redis.RedisError as error:
            if not isinstance(error, redis.ConnectionError) or isinstance(error, _ANSWERED):
                raise _failed(error, lost) from error
        try:
            return send()
        except redis.RedisError as error:
            # Whatever the server says to the second, the first may have been carried out.
            raise _failed(error, lost) if lost == "unavailable" else Unavailable(code=lost) from error


def _failed(error: redis.RedisError, lost: str = "unavailable") -> FarmError:
    """What the caller sees of `error`; neither address nor key is told."""
    kind = type(error).__name__
    if isinstance(error, redis.exceptions.AuthenticationError):
        return Unavailable(f"the ledger's server refuses the connection ({kind})", hint="check FARM_REDIS_URL")
    if isinstance(error, redis.BusyLoadingError):
        return Unavailable("the ledger's server is loading its data")
    if isinstance(error.__context__, ssl.SSLError):
        hint = "check FARM_REDIS_URL: rediss:// and its ssl_ca_certs, or redis:// where the server has no TLS"
        return Unavailable("no TLS connection to the farm's Redis can be made", hint=hint)
    if isinstance(error, redis.exceptions.InvalidResponse):
        return Unavailable("what answers is no Redis", code=lost, hint="check FARM_REDIS_URL")
    if isinstance(error, _LOST):
        message = None if lost != "unavailable" else f"the farm's Redis does not answer ({kind})"
        return Unavailable(message, code=lost, hint="is the farm up? `farm doctor` tells what is missing")
    if type(error) in _HINTS or str(error).split(" ")[0] in _CANNOT:
        if str(error).startswith("MISCONF"):
            return Unavailable("the ledger's server cannot write to its disk", hint="is the disk full? make room on it")
        return Unavailable(f"the ledger's server cannot serve now ({kind})", hint=_HINTS.get(type(error), ""))
    return FarmError(f"the ledger's server failed: {error}")
