"""Which words may a job be tagged with, and how are they put on and taken off?

A tag says something of a job, not of its picture: no recipe, hash or PNG knows it. It is 1 to 40 letters and digits of
any script, `-`, `_` and `.`, and begins with a letter or digit; A and a are two. What can be written in two ways (é as
one character or as two) is one tag, in Unicode's normal form C. `starred` is the star of the page.

An ended job that has a tag outlives the retention, and is no part of what is cleared away with others.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from farm.errors import FieldError, InvalidJob, NotFound

if TYPE_CHECKING:
    from farm.scripts import Server

STAR = "starred"
"""The tag that the page shows as a star."""
MOST = 16
"""Tags of one job."""
MAX_CHARS = 40
"""Characters of one tag."""
CHUNK = 200
"""Jobs that one script tags: some 20 ms of the server's time, with all the tags that they may have."""
LISTED = 1000
"""Tags that are counted for whoever asks which there are, those of the most jobs."""
RULE = f"1 to {MAX_CHARS} letters, digits, -, _ or ., the first a letter or digit"


def check_tags(tags: Any, loc: str = "tags") -> tuple[str, ...]:
    """`tags` as a job has them: each once, in normal form C.

    Raises:
        InvalidJob: they are no list of words, too many, or one is none; names it by `loc`.
    """
    if isinstance(tags, str) or not isinstance(tags, Sequence):
        raise InvalidJob(errors=(FieldError(loc, "a list of words"),))
    read = [(_tag_of(tag), at) for at, tag in enumerate(tags)]
    if wrong := tuple(FieldError(f"{loc}.{at}", RULE) for tag, at in read if tag is None):
        raise InvalidJob(errors=wrong)
    found = tuple(dict.fromkeys(tag for tag, _ in read if tag is not None))
    if len(found) > MOST:
        raise InvalidJob(errors=(FieldError(loc, f"at most {MOST} tags; leave some out"),))
    return found


def check_tag(tag: Any, loc: str = "tag") -> str:
    """The one tag, in normal form C. Raises InvalidJob, which names it by `loc`."""
    found = _tag_of(tag)
    if found is None:
        raise InvalidJob(errors=(FieldError(loc, RULE),))
    return found


def check_change(add: Any, remove: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tags that are to be put on, and those that are to be taken off.

    Raises:
        InvalidJob: there are none, one is none, or one is among both.
    """
    added, removed = check_tags(add, "add"), check_tags(remove, "remove")
    if not added and not removed:
        raise InvalidJob(errors=(FieldError("add", "a tag to put on, or one to take off (remove)"),))
    if set(added) & set(removed):
        raise InvalidJob(errors=(FieldError("remove", "no tag that is put on with the same call"),))
    return added, removed


def _tag_of(text: Any) -> str | None:
    """The tag as it is stored; None where the text is none."""
    if not isinstance(text, str):
        return None
    tag = unicodedata.normalize("NFC", text)
    if not 0 < len(tag) <= MAX_CHARS:
        return None
    # A mark is part of a letter in many scripts, but no beginning.
    first, *kinds = (unicodedata.category(one)[0] for one in tag)
    fits = all(kind in "LMN" or one in "-_." for one, kind in zip(tag[1:], kinds, strict=True))
    return tag if first in "LN" and fits else None


class Tags:
    """The calls of the ledger that concern tags."""

    _server: Server

    def tag(self, job: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Puts tags on a job in any state, and takes others off; it may have them, or not, already.

        Raises:
            InvalidJob: there is no such tag, or the job would have more than `MOST`; it stays as it is.
            NotFound: there is no such job.
        """
        (outcome,) = self._tagged([job], *check_change(add, remove))
        if outcome == "gone":
            raise NotFound(f"there is no job {job}")
        if outcome == "full":
            raise InvalidJob(errors=(FieldError("add", f"the job would have more than {MOST} tags; take some off"),))

    def tag_all(self, jobs: Sequence[str], add: Sequence[str] = (), remove: Sequence[str] = ()) -> int:
        """How many of `jobs` have the tags to `add` now, and none to `remove`.

        The others stay as they are: they are no more, or would have more than `MOST`.

        Raises:
            InvalidJob: there is no such tag.
            Unavailable: some may be tagged, and the others not: call again.
        """
        added, removed = check_change(add, remove)
        return self._tagged(jobs, added, removed).count("ok")

    def _tagged(self, jobs: Sequence[str], add: Sequence[str], remove: Sequence[str]) -> list[str]:
        """What became of each job: `ok`, `gone` where there is none, `full` where it would have too many."""
        found: list[str] = []
        for start in range(0, len(jobs), CHUNK):
            chunk = jobs[start : start + CHUNK]
            found += self._server.call("tag", MOST, len(add), *add, len(remove), *remove, len(chunk), *chunk)
        return found

    def tags(self, owner: str | None = None) -> dict[str, int]:
        """How many jobs (of the owner, or all) have each tag, the one of the most jobs first; `LISTED` at most."""
        name = f"tags:{owner}" if owner else "tags"
        rows = self._server.run("ZREVRANGE", name, "0", str(LISTED - 1), "WITHSCORES")
        return {tag: int(float(count)) for tag, count in zip(rows[::2], rows[1::2], strict=True)}
