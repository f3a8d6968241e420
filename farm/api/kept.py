"""What does the API keep of its callers beside the ledger: requests sent twice, images uploaded?

Both live in the ledger's Redis for the retention. A request is kept as a hash of its body under its owner and key; an
uploaded image as a mark that its owner may name it: the store itself knows bytes, not owners.
"""

from __future__ import annotations

import hashlib

from farm.errors import Conflict
from farm.scripts import Server


class Kept:
    """What is kept. Every call may raise Unavailable."""

    def __init__(self, server: Server, retention_s: int) -> None:
        self._server, self._retention = server, str(retention_s)

    def reserve(self, owner: str, key: str, body_sha256: str) -> None:
        """Reserves the owner's idempotency key for the body; it may be sent again.

        Raises:
            Conflict: (`idempotency_conflict`) it was used for another body.
        """
        # The key is a stranger's text: its hash has one length and no character that steers anything.
        name = f"request:{owner}:{hashlib.sha256(key.encode()).hexdigest()}"
        earlier = None
        while earlier is None:  # one that passes its retention right between the two commands is as if it had not been
            if self._server.run("SET", name, body_sha256, "NX", "EX", self._retention):
                return
            earlier = self._server.run("GET", name)
        if earlier != body_sha256:
            raise Conflict("this idempotency key was used before, for another body", code="idempotency_conflict")

    def own_image(self, owner: str, sha256: str) -> None:
        """Notes that the owner may name the stored image."""
        self._server.run("SET", f"upload:{owner}:{sha256}", "1", "EX", self._retention)

    def owns_image(self, owner: str, sha256: str) -> bool:
        """Whether the owner may name the stored image."""
        return bool(self._server.run("EXISTS", f"upload:{owner}:{sha256}"))
