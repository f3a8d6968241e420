"""Whom does the farm tell that something has ended, and how does a receiver know that it was the farm?

The operator names endpoints by `farm webhook`; no address ever comes in over HTTP. A message is signed as Standard
Webhooks has it (https://github.com/standard-webhooks/standard-webhooks, spec): `webhook-signature` holds
`v1,<base64 of HMAC-SHA256 over id.timestamp.body>`, one for each secret that holds, so that a receiver may change
secrets at its own pace. Who delivers, and when again, stands in `farm/api/deliverer.py`.

In the ledger's Redis lie the hashes `webhooks` (endpoints; the secrets among them, for they sign) and
`webhooks:health` (how each fares), both by the endpoint's id.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Iterable
from typing import Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from farm.errors import Conflict, FieldError, InvalidJob, NotFound
from farm.scripts import Server
from farm.tokens import OWNER

Topic = Literal["job.done", "job.failed", "job.quarantined", "job.cancelled", "job.expired", "run.done", "dataset.done"]
TOPICS: tuple[Topic, ...] = get_args(Topic)
SECRET_BYTES = 32
"""Random bytes of a secret. Source: Standard Webhooks, between 24 and 64."""
OVERLAP_S = 86400
"""How long an old secret signs beside its successor, seconds: a day for the receiver to change it."""
MAX_ENDPOINTS = 100
"""Endpoints of one farm: each is a task of the API, and is looked at with every end of a job."""
MAX_URL = 2000
"""Characters of an address. Source: what most servers and proxies take at least."""
_PREFIX = "whsec_"
_KEY, _HEALTH = "webhooks", "webhooks:health"
DATASETS = "webhooks:datasets"
"""Word of datasets that are done, until it is among what is to be delivered."""


class Secret(BaseModel):
    """What signs. `until_ms` is 0 for the newest one; older ones sign until then, milliseconds since 1970."""

    model_config = ConfigDict(frozen=True)

    text: str = Field(repr=False)
    until_ms: int = 0


class Endpoint(BaseModel):
    """One receiver: of the jobs of `owner` ("": everybody's), of the topics in `events`, from `created_ms` on."""

    model_config = ConfigDict(frozen=True)

    id: str
    url: str
    owner: str
    events: tuple[Topic, ...]
    secrets: tuple[Secret, ...] = Field(repr=False)
    created_ms: int

    def wants(self, topic: str, owner: str, at_ms: float) -> bool:
        """Whether a message of `topic` about something of `owner`'s, which ended at `at_ms`, is for this endpoint."""
        return topic in self.events and self.owner in ("", owner) and at_ms >= self.created_ms

    def signature(self, message: str, timestamp_s: int, body: bytes) -> str:
        """The header `webhook-signature`: one signature for each secret that holds, the newest first."""
        signed = f"{message}.{timestamp_s}.".encode() + body
        holding = [one for one in self.secrets if not one.until_ms or one.until_ms > timestamp_s * 1000]
        return " ".join(f"v1,{_mac(one.text, signed)}" for one in holding)


class Health(BaseModel):
    """How an endpoint fares. `said`: of the last attempt; times are milliseconds since 1970, 0 for never."""

    model_config = ConfigDict(frozen=True)

    last_ms: int = 0
    said: str = ""
    failing_since_ms: int = 0
    given_up: int = 0
    disabled_ms: int = 0
    why: str = ""


class Webhooks:
    """The endpoints of one farm. Every call may raise Unavailable."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def create(self, url: str, owner: str = "", events: Iterable[str] = ()) -> tuple[Endpoint, str]:
        """A new endpoint, and the secret that its receiver checks by; it hears of what ends from now on.

        Raises:
            InvalidJob: the URL, the owner's name or a topic is not possible.
            Conflict: there are very many already.
        """
        asked = dict.fromkeys(events) or dict.fromkeys(TOPICS)
        _check_url(url)
        if owner and not re.fullmatch(OWNER, owner):
            raise _wrong("owner", "1 to 32 of a to z, 0 to 9 and -, beginning with a letter or digit")
        if not set(asked) <= set(TOPICS):
            raise _wrong("event", "one or more of " + ", ".join(TOPICS))
        if len(self.all()) >= MAX_ENDPOINTS:
            raise Conflict(f"there are {MAX_ENDPOINTS} endpoints already", hint="`farm webhook rm` removes one")
        secret = _new_secret()
        endpoint = Endpoint(
            id=secrets.token_hex(6),
            url=url,
            owner=owner,
            events=tuple(topic for topic in TOPICS if topic in asked),
            secrets=(Secret(text=secret),),
            created_ms=self._time_ms(),
        )
        self._put(endpoint)
        return endpoint, secret

    def tell(self, name: str, text: str) -> None:
        """Leaves word of a dataset that is done, `text` as JSON, for whoever delivers; the same `name` replaces it."""
        self._server.run("HSET", DATASETS, name, json.dumps({**json.loads(text), "told_ms": self._time_ms()}))

    def all(self) -> list[Endpoint]:
        """Every endpoint, by age."""
        found = [Endpoint.model_validate_json(text) for text in self._server.run("HGETALL", _KEY).values()]
        return sorted(found, key=lambda one: (one.created_ms, one.id))

    def get(self, name: str) -> Endpoint:
        """The endpoint of the id `name`.

        Raises:
            NotFound: there is none.
        """
        if (text := self._server.run("HGET", _KEY, name)) is None:
            raise NotFound("there is no endpoint of this id", hint="`farm webhook ls` lists them")
        return Endpoint.model_validate_json(text)

    def rotate(self, name: str) -> tuple[Endpoint, str]:
        """The endpoint with a new secret, and that secret; the one before it signs along for a day.

        Raises:
            NotFound: there is no such endpoint.
        """
        endpoint, now = self.get(name), now_ms()
        secret, older = _new_secret(), endpoint.secrets[0].model_copy(update={"until_ms": now + OVERLAP_S * 1000})
        kept = [one for one in endpoint.secrets[1:] if one.until_ms > now]
        changed = endpoint.model_copy(update={"secrets": (Secret(text=secret), older, *kept)})
        self._put(changed)
        return changed, secret

    def remove(self, name: str) -> None:
        """Takes an endpoint away, with what waits for it.

        Raises:
            NotFound: there is no such endpoint.
        """
        if not self._server.run("HDEL", _KEY, name):
            raise NotFound("there is no endpoint of this id", hint="`farm webhook ls` lists them")
        self._server.run("HDEL", _HEALTH, name)
        self.drop(name)

    def drop(self, name: str) -> None:
        """Forgets what waits for the endpoint."""
        for part in ("due", "waiting"):
            self._server.run("DEL", f"webhook:{name}:{part}")

    def waiting(self, name: str) -> int:
        """How many messages wait for the endpoint."""
        return int(self._server.run("ZCARD", f"webhook:{name}:due"))

    def health(self) -> dict[str, Health]:
        """How the endpoints fare, by id; those that were never called are left out."""
        return {name: Health.model_validate_json(text) for name, text in self._server.run("HGETALL", _HEALTH).items()}

    def note(self, name: str, health: Health) -> None:
        """Keeps how an endpoint fares."""
        self._server.run("HSET", _HEALTH, name, health.model_dump_json())

    def enable(self, name: str) -> None:
        """Sends to a disabled endpoint again what ends from now on."""
        self.note(name, Health())

    def _time_ms(self) -> int:
        """The ledger's clock, as events have it."""
        seconds, micros = self._server.run("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    def _put(self, endpoint: Endpoint) -> None:
        self._server.run("HSET", _KEY, endpoint.id, endpoint.model_dump_json())


def now_ms() -> int:
    """The time, milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _check_url(url: str) -> None:
    """Refuses what no message can be sent to."""
    right = "an address like https://example.org/hook, without name and password"
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        raise _wrong("url", right) from None
    if not good or parts.username is not None or parts.fragment or len(url) > MAX_URL or not _is_plain(url):
        raise _wrong("url", right)


def _is_plain(url: str) -> bool:
    return bool(re.fullmatch(r"[!-~]+", url))


def _new_secret() -> str:
    return _PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _mac(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _wrong(loc: str, msg: str) -> InvalidJob:
    return InvalidJob(errors=(FieldError(loc, msg),))
