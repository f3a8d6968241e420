"""How is a script run on the ledger's server, and what do the server's failures mean to the caller?"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

from farm.errors import Conflict, FarmError, NotFound, StaleToken, Unavailable
from farm.settings import Settings

TIMEOUT_S = 2.0
"""How long a call waits for the server. Source: design, a submit that cannot be stored is refused within 3 s."""
_LOST = (redis.ConnectionError, redis.TimeoutError)
"""The reply is lost: the call may have been carried out."""
_CANNOT = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY")
"""First words of what the server answers when it cannot serve now: it has not carried out anything."""
_REFUSED: dict[str, type[FarmError]] = {
    "not_found": NotFound,
    "stale_token": StaleToken,
    "conflict": Conflict,
    "idempotency_conflict": Conflict,
}


@cache
def _source(name: str) -> str:
    folder = files("farm") / "lua"
    return (folder / "common.lua").read_text("utf-8") + "\n" + (folder / f"{name}.lua").read_text("utf-8")


class Server:
    """One Redis or Valkey that holds a ledger, under the prefix `{namespace}:`."""

    def __init__(self, settings: Settings, fan: int) -> None:
        self._prefix = "{" + settings.namespace + "}:"
        self._redis = redis.Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            decode_responses=True,
            protocol=2,
            # A pooled connection that the server closed is worth one more try; a server that does not answer is not.
            retry=Retry(NoBackoff(), 1, (redis.ConnectionError,)),
        )
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
        )

    def ping(self) -> None:
        """Returns where the server answers and is of a kind that the farm runs on.

        Raises:
            Unavailable: it does not, or (`unsupported_server`) it is a Redis Cluster.
        """
        self.run("PING")
        self._check()

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    def call(self, name: str, *args: str | int | float, lost: str = "unavailable") -> Any:
        """The answer of `lua/<name>.lua`. `lost` is the code of the error where the reply did not come.

        Raises:
            Conflict, NotFound, StaleToken: the script refuses the call.
            Unavailable: the server cannot serve now.
        """
        self._check()
        script = self._scripts.get(name) or self._scripts.setdefault(name, self._redis.register_script(_source(name)))
        try:
            found = script(keys=[self._prefix], args=[*self._limits, *args])
        except redis.RedisError as error:
            raise _failed(error, lost) from error
        if isinstance(found, list) and found and found[0] == "!":
            raise _REFUSED[found[1]](found[2] or None, code=found[1])
        return found

    def run(self, command: str, name: str = "", *args: str) -> Any:
        """The answer of one plain command on the key `name`.

        Raises:
            Unavailable: the server cannot serve now.
        """
        try:
            return self._redis.execute_command(command, *([self._prefix + name] if name else []), *args)
        except redis.RedisError as error:
            raise _failed(error) from error

    def read_stream(self, name: str, after: str, wait_ms: int) -> list[tuple[str, dict[str, str]]]:
        """The entries of the stream `name` after the id `after`, waiting for the first up to `wait_ms`.

        Raises:
            Unavailable: the server cannot serve now.
        """
        try:
            found = self._redis.xread({self._prefix + name: after}, count=1000, block=wait_ms or None)
        except redis.RedisError as error:
            raise _failed(error) from error
        return cast("list[Any]", found)[0][1] if found else []

    def _check(self) -> None:
        if self._checked:
            return
        try:
            found: dict[str, Any] = self._redis.info("cluster")
        except redis.exceptions.NoPermissionError:
            found = {}  # a role that may not ask: the reconciler's may
        except redis.RedisError as error:
            raise _failed(error) from error
        if found.get("cluster_enabled"):
            raise Unavailable("the ledger does not run on Redis Cluster", code="unsupported_server")
        self._checked = True


def _failed(error: redis.RedisError, lost: str = "unavailable") -> FarmError:
    """What the caller sees of `error`; neither address nor key is told."""
    kind = type(error).__name__
    if isinstance(error, redis.exceptions.AuthenticationError):
        return Unavailable(f"the ledger's server refuses the connection ({kind})", hint="check FARM_REDIS_URL")
    if isinstance(error, redis.BusyLoadingError):
        return Unavailable("the ledger's server is loading its data")
    if isinstance(error, _LOST):
        message = None if lost != "unavailable" else f"the farm's Redis does not answer ({kind})"
        return Unavailable(message, code=lost, hint="is the farm up? `farm doctor` tells what is missing")
    cannot = (redis.exceptions.OutOfMemoryError, redis.exceptions.ReadOnlyError, redis.exceptions.NoPermissionError)
    if isinstance(error, cannot) or str(error).split(" ")[0] in _CANNOT:
        return Unavailable(f"the ledger's server cannot serve now ({kind})")
    return FarmError(f"the ledger's server failed: {error}")
