"""Who asks, and what is theirs?

A job's owner stands in its idempotency key, `@<owner>/<key>#<index>`: it is written with the job or not at all, and no
two owners share a key. A job that was submitted past the API has no owner; admins see it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from farm.errors import NotFound
from farm.records import JobRecord
from farm.tokens import OWNER, Scope

LOCAL = "local"
"""The owner of what is submitted where no token is asked for."""
_OWNED = re.compile(rf"@({OWNER})/")


@dataclass(frozen=True)
class Caller:
    """Who asks. `token` is the id of the token, "" where none is asked for; `session` the secret of a cookie."""

    owner: str
    scopes: frozenset[Scope]
    token: str = ""
    session: str = field(default="", repr=False)

    @property
    def is_admin(self) -> bool:
        """Whether everything may be seen and done."""
        return "admin" in self.scopes

    def key(self, idempotency_key: str) -> str:
        """The ledger's idempotency key of this caller's: no two owners share one, and it tells whose a job is."""
        return f"@{self.owner}/{idempotency_key}"

    def owns(self, record: JobRecord) -> bool:
        """Whether the job is this caller's to see."""
        return self.is_admin or owner_of(record) == self.owner

    def check(self, record: JobRecord) -> JobRecord:
        """`record` again.

        Raises:
            NotFound: it is somebody else's, which is told as if there were none.
        """
        if not self.owns(record):
            raise NotFound("there is no such job")
        return record


def owner_of(record: JobRecord) -> str:
    """Who submitted the job over HTTP; "" for one that was submitted past the API."""
    found = _OWNED.match(record.idem)
    return found[1] if found else ""
