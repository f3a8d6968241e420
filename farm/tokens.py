"""Who may call the farm over the network, and how is a caller known?

By a bearer token, `farm_<id>_<secret>`. The secret is 32 random bytes, and what is kept of it is its SHA-256: a fast
hash is right for what nobody can guess. All tokens lie in one Redis hash, `{namespace}:callers`, each as JSON under its
id, so that making and removing one is one command. Expiry goes by the clock of whoever checks.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from farm.errors import FieldError, InvalidJob, NotFound, Unauthorized
from farm.scripts import Server

Scope = Literal["read", "submit", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
OWNER = r"[a-z0-9][a-z0-9-]{0,31}"
"""What an owner may be called."""
SECRET_BYTES = 32
"""Random bytes of a secret. Source: design, at least 256 random bits."""
MAX_LIFE_S = 10 * 365 * 86400
"""Longest life of a token, seconds: ten years."""
_KEY = "callers"
"""`tokens` is the ledger's own: those of its claims."""
_FORM = re.compile(r"farm_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


class Token(BaseModel):
    """What is known of one token. Times are milliseconds since 1970; `expires_ms` is 0 for one that does not expire.

    With it its owner may have `max_open_jobs` unended jobs: 0 for any number, None for what the settings say.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    sha256: str = Field(repr=False)
    owner: str
    scopes: frozenset[Scope]
    created_ms: int
    expires_ms: int = 0
    max_open_jobs: int | None = None

    def holds(self) -> bool:
        """Whether it has not expired."""
        return not self.expires_ms or self.expires_ms > _now_ms()


class Tokens:
    """The tokens of one farm. Every call may raise Unavailable."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def create(
        self, owner: str, scopes: Iterable[str], life_s: float | None = None, max_open_jobs: int | None = None
    ) -> tuple[Token, str]:
        """A new token, and the text that its owner sends; the text cannot be had again.

        Raises:
            InvalidJob: the owner's name, a scope, the life in seconds or the number of jobs is not possible.
        """
        asked = frozenset(scopes)
        if not re.fullmatch(OWNER, owner):
            raise _wrong("owner", "1 to 32 of a to z, 0 to 9 and -, beginning with a letter or digit")
        if not asked or not asked <= set(SCOPES):
            raise _wrong("scopes", "one or more of " + ", ".join(SCOPES))
        if life_s is not None and not 0 < life_s <= MAX_LIFE_S:
            raise _wrong("life_s", f"more than 0 and at most {MAX_LIFE_S} seconds")
        if max_open_jobs is not None and max_open_jobs < 0:
            raise _wrong("max_open_jobs", "0 for any number, or more")
        name, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)
        now = _now_ms()
        token = Token(
            id=name,
            sha256=_hash(secret),
            owner=owner,
            scopes=frozenset(scope for scope in SCOPES if scope in asked),
            created_ms=now,
            expires_ms=now + round(life_s * 1000) if life_s is not None else 0,
            max_open_jobs=max_open_jobs,
        )
        self._server.run("HSET", _KEY, name, token.model_dump_json())
        return token, f"farm_{name}_{secret}"

    def first(self) -> str:
        """The text of a token with every scope, where there was none at all; else ""."""
        return "" if self.all() else self.create("admin", ["admin"])[1]

    def find(self, text: str) -> Token:
        """The token that `text` is.

        Raises:
            Unauthorized: there is none, or it has expired. Which of both is not told.
        """
        form = _FORM.fullmatch(text)
        found = self._server.run("HGET", _KEY, form[1]) if form else None
        token = _read(found)
        # Compared even where there is none: how long the answer takes tells nothing.
        same = hmac.compare_digest(_hash(form[2] if form else ""), token.sha256 if token else "0" * 64)
        if token is None or not same or not token.holds():
            raise Unauthorized("the token is not known, or has expired")
        return token

    def of(self, name: str) -> Token:
        """The token of the id `name`, of which the secret was shown before.

        Raises:
            Unauthorized: it is gone, or has expired.
        """
        token = _read(self._server.run("HGET", _KEY, name))
        if token is None or not token.holds():
            raise Unauthorized("the session has ended; log in again")
        return token

    def all(self) -> list[Token]:
        """Every token that has not expired, by owner and age; expired ones are removed."""
        kept = self._server.run("HGETALL", _KEY).values()
        tokens = [token for token in map(_read, kept) if token is not None]
        for token in tokens:
            if not token.holds():
                self._server.run("HDEL", _KEY, token.id)
        return sorted((token for token in tokens if token.holds()), key=lambda one: (one.owner, one.created_ms))

    def remove(self, name: str) -> None:
        """Ends the token of the id `name`, for every caller at once.

        Raises:
            NotFound: there is no such token.
        """
        if not self._server.run("HDEL", _KEY, name):
            raise NotFound("there is no token of this id", hint="`farm token ls` lists them")


def _read(text: str | None) -> Token | None:
    """The token in a hash's field; None for what is none."""
    try:
        return Token.model_validate_json(text) if text else None
    except ValidationError:
        return None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _wrong(loc: str, msg: str) -> InvalidJob:
    return InvalidJob(errors=(FieldError(loc, msg),))
