"""Where does the next page of a list begin?

A cursor stands for the time of creation of the last thing on a page. No two jobs share one, nor do two runs, so that
nothing is twice on the pages or missing, whatever is made or ends meanwhile.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence

from farm.errors import FieldError, InvalidJob
from farm.records import JobRecord, RunRecord


def next_of(page: Sequence[JobRecord | RunRecord], limit: int) -> str | None:
    """The cursor after a page of at most `limit`; None after the last page."""
    if len(page) < limit:
        return None
    return base64.urlsafe_b64encode(f"{page[-1].created_ms:.4f}".encode()).decode().rstrip("=")


def position(cursor: str | None) -> float | None:
    """The time of creation, in milliseconds, that a cursor stands for; None for the first page.

    Raises:
        InvalidJob: this is no cursor.
    """
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
        if re.fullmatch(r"\d{1,15}\.\d{4}", text):
            return float(text)
    except ValueError:
        pass
    raise InvalidJob(errors=(FieldError("query.cursor", "a cursor as `next` gives it"),))
