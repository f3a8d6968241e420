"""What is left of asking for datasets, and when does it go?

Whoever feeds the farm's datasets looks now and then. A wish that was refused stands there for a week, with what was
wrong, for its owner to ask again. A file that was uploaded stays for a day, and for as long as a wish names it that is
not planned yet or was refused: a plan has no need of it any more, and the page may ask for another dataset of it.

Others ask and upload meanwhile. A refusal belongs to whoever writes over it first, this or `asking.ask`. Of a file its
head goes first, without which nobody can name it any more; then it is looked once more who names it, and who has named
it meanwhile looks for the head after that (`farm.api.dataset_asks`): one of both sees the other.
"""

from __future__ import annotations

import json
from datetime import datetime

import structlog

from farm.dataset.asking import FORGOTTEN, REFUSED_S, Asked
from farm.dataset.files import HEAD, drop, uploads
from farm.dataset.folder import Folder, datasets
from farm.records import instant
from farm.store import Store

_log = structlog.get_logger(__name__)
EVERY_S = 3600.0
"""How often it is looked, seconds."""
FILE_S = 86_400.0
"""So long a file stays that no wish names, seconds since it was uploaded, or uploaded again."""


def clear(store: Store, now: float) -> None:
    """Deletes what is left and has had its time, at `now`, seconds since 1970. Raises Unavailable."""
    for name in datasets(store):
        try:
            forgotten = forget(Folder(store, name), now)
        except (ValueError, KeyError, TypeError) as error:  # no refusal as this build writes them
            _log.warning("refusal_unreadable", dataset=name, error=f"{type(error).__name__}: {error}"[:500])
            continue
        if forgotten:
            _log.info("refusal_forgotten", dataset=name)
    if keys := drop_files(store, now):
        _log.info("uploads_deleted", files=len(keys))


def forget(folder: Folder, now: float) -> bool:
    """Whether the wish for a dataset was refused so long ago that all of it was deleted. Raises Unavailable."""
    if (found := folder.tagged("refused.json")) is None:
        return False
    if folder.read("plan.json") is not None:  # it was planned all the same: the refusal alone is left of the asking
        folder.delete(["refused.json", "tries.json"])
        return False
    told, etag = json.loads(found[0]), found[1]
    if "until" not in told:  # by an earlier build
        told["until"] = instant((now + REFUSED_S) * 1000)
        folder.write_over("refused.json", json.dumps(told).encode(), "application/json", etag)
    if datetime.fromisoformat(told["until"]).timestamp() > now:
        return False
    mark = json.dumps({**told, FORGOTTEN: True}).encode()
    if FORGOTTEN not in told and not folder.write_over("refused.json", mark, "application/json", etag):
        return False  # it was asked for again
    wish = ["asked.json", "refused.json"]
    folder.delete(path for path in folder.names("") if path not in wish)
    folder.delete(wish)
    return True


def drop_files(store: Store, now: float) -> list[str]:
    """The keys of the uploaded files that were deleted: old ones that no wish names. Raises Unavailable."""
    old = {one.key for one in uploads(store) if one.at < now - FILE_S}
    if not old or not (old := old - _named(store)):
        return []
    drop(store, sorted(key + HEAD for key in old))
    # From here on none of them can be named; who was quicker has named it, or uploaded it again.
    named = _named(store)
    gone = sorted(
        one.key for one in uploads(store) if one.key in old - named and not one.headed and one.at < now - FILE_S
    )
    drop(store, gone)
    return gone


def _named(store: Store) -> set[str]:
    """The keys of the files that wishes name which are not planned yet, or were refused."""
    folders = (Folder(store, name) for name in datasets(store))
    asked = [one.read("asked.json") for one in folders if one.read("plan.json") is None]
    return {Asked.model_validate_json(data).file for data in asked if data is not None}
