"""Who asks, and what is theirs?

A job's owner stands in its record, and in its idempotency key, `@<owner>/<key>#<index>`, so that no two owners share
one. A job that was submitted past the API has no owner; admins see it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from farm.errors import Forbidden, NotFound
from farm.records import JobRecord, RunRecord
from farm.tokens import Scope

LOCAL = "local"
"""The owner of what is submitted where no token is asked for."""


@dataclass(frozen=True)
class Caller:
    """Who asks. `token` is the id of the token, "" where none is asked for; `session` the secret of a cookie.

    `max_open_jobs`: so many unended jobs the owner may have with a submit; 0 for any number.
    """

    owner: str
    scopes: frozenset[Scope]
    token: str = ""
    max_open_jobs: int = 0
    session: str = field(default="", repr=False)

    @property
    def is_admin(self) -> bool:
        """Whether everything may be seen and done."""
        return "admin" in self.scopes

    def key(self, idempotency_key: str) -> str:
        """The ledger's idempotency key of this caller's: no two owners share one."""
        return f"@{self.owner}/{idempotency_key}"

    @property
    def sees(self) -> str | None:
        """Whose jobs a list shows this caller; None for everybody's."""
        return None if self.is_admin else self.owner

    def looks_at(self, owner: str | None) -> str | None:
        """Whose jobs a list of `owner`'s (None for all that may be seen) shows this caller; None for everybody's.

        Raises:
            Forbidden: they are somebody else's.
        """
        if owner is None:
            return self.sees
        if not self.is_admin and owner != self.owner:
            raise Forbidden("only an admin lists what is somebody else's")
        return owner

    def owns(self, record: JobRecord | RunRecord) -> bool:
        """Whether the job or run is this caller's to see."""
        return self.is_admin or record.owner == self.owner

    def check(self, record: JobRecord) -> JobRecord:
        """`record` again.

        Raises:
            NotFound: it is somebody else's, which is told as if there were none.
        """
        if not self.owns(record):
            raise NotFound("there is no such job")
        return record
