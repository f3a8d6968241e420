"""How does a browser stay known without keeping a token?

By a session: a random secret in a cookie that scripts cannot read. What is kept of it is its SHA-256, with the id of
the token that began it, so a session ends with its token. Pages of elsewhere could make a browser send the cookie, so
what may write needs the session's second word too, in a header: a hash of the secret that only the farm's own pages
are told.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time

from pydantic import BaseModel, ConfigDict, ValidationError

from farm.errors import Unauthorized
from farm.scripts import Server
from farm.tokens import SECRET_BYTES, Token, Tokens

LIFE_S = 12 * 3600
"""A session that nobody uses for so long is over, seconds. Source: a working day."""
SLIDE_S = 60
"""A session that is used is prolonged once in so long, seconds."""
_FORM = re.compile(r"[A-Za-z0-9_-]{43}")


class Session(BaseModel):
    """What is known of a session."""

    model_config = ConfigDict(frozen=True)

    token: str
    used_ms: int


class Sessions:
    """The sessions of one farm. Every call may raise Unavailable."""

    def __init__(self, server: Server, tokens: Tokens) -> None:
        self._server, self._tokens = server, tokens

    def begin(self, token: Token) -> str:
        """The secret of a new session of the token; it cannot be had again."""
        secret = secrets.token_urlsafe(SECRET_BYTES)
        self._server.run("SET", _key(secret), _text(token.id), "EX", str(LIFE_S))
        return secret

    def find(self, secret: str) -> Token:
        """The token that began the session, which goes on for another `LIFE_S`.

        Raises:
            Unauthorized: there is no such session, or its token has ended.
        """
        text = self._server.run("GET", _key(secret)) if _FORM.fullmatch(secret) else None
        try:
            found = Session.model_validate_json(text or "")
        except ValidationError:
            raise Unauthorized("the session has ended; log in again") from None
        token = self._tokens.of(found.token)
        if _now_ms() - found.used_ms > SLIDE_S * 1000:
            # XX: one that is ended meanwhile does not come back.
            self._server.run("SET", _key(secret), _text(token.id), "XX", "EX", str(LIFE_S))
        return token

    def end(self, secret: str) -> None:
        """Ends the session, if there is one."""
        self._server.run("DEL", _key(secret))


def second_word(secret: str) -> str:
    """What a page of the farm's own sends beside the cookie, in `X-CSRF-Token`."""
    return hmac.digest(secret.encode(), b"second word", "sha256").hex()


def _key(secret: str) -> str:
    return f"session:{hashlib.sha256(secret.encode()).hexdigest()}"


def _text(token: str) -> str:
    return Session(token=token, used_ms=_now_ms()).model_dump_json()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
