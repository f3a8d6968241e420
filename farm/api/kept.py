"""What does the API keep of its callers beside the ledger: requests sent twice, images uploaded?

Both live in the ledger's Redis for the retention. A request is kept as a hash of its body under its owner and key; an
uploaded image as a mark that its owner may name it: the store itself knows bytes, not owners.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from farm.errors import BadBlob, Conflict, InvalidJob, QuotaExceeded, Unavailable
from farm.scripts import Server, within
from farm.whose import own_image, owns_image


class Kept:
    """What is kept. Every call may raise Unavailable."""

    def __init__(self, server: Server, retention_s: int) -> None:
        self._server, self._retention = server, str(retention_s)

    @contextmanager
    def reserved(self, owner: str, key: str | None, body_sha256: str, patience_s: float) -> Iterator[None]:
        """Reserves the owner's idempotency key for the body, meanwhile and, if something is written, from then on.

        Nothing where the owner gave none. `patience_s`: how long the server is waited for.

        Raises:
            Conflict: (`idempotency_conflict`) it was used for another body.
        """
        # The key is a stranger's text: its hash has one length and no character that steers anything.
        name = f"request:{owner}:{hashlib.sha256(key.encode()).hexdigest()}" if key is not None else ""
        with within(patience_s):
            first = bool(name) and self._reserve(name, body_sha256)
        try:
            yield
        except (QuotaExceeded, Unavailable, InvalidJob, BadBlob) as error:
            if first and error.code != "outcome_unknown":
                with suppress(Unavailable), within(patience_s):  # it goes with its retention otherwise
                    self._server.run("DEL", name)
            raise

    def _reserve(self, name: str, body_sha256: str) -> bool:
        """Whether the key `name` is the body's from now on; otherwise it was before."""
        earlier = None
        while earlier is None:  # one that passes its retention right between the two commands is as if it had not been
            if self._server.run("SET", name, body_sha256, "NX", "EX", self._retention):
                return True
            earlier = self._server.run("GET", name)
        if earlier != body_sha256:
            raise Conflict("this idempotency key was used before, for another body", code="idempotency_conflict")
        return False

    def own_image(self, owner: str, sha256: str) -> None:
        """Notes that the owner may name the stored image."""
        own_image(self._server, owner, sha256, self._retention)

    def owns_image(self, owner: str, sha256: str) -> bool:
        """Whether the owner may name the stored image."""
        return owns_image(self._server, owner, sha256)
