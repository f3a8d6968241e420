"""Where does a finished result wait while the store or the ledger is away?

On the worker's own disk: one file per result, in `<data>/spool/<namespace>/`, named after the token that it will be
committed with::

    <owner>.<token>.result     a result, as `workers.result` writes it
    <owner>.<token>.tmp        one that is being written
    <owner>.lock               locked by the owner, a worker's child, for as long as it lives

A result is synced to disk under its `.tmp` name before it gets its own, so a torn one is never taken for whole; it is
checked again when it is read. It leaves the disk when its commit is answered, or when nobody waits for it any more.
Until then its lease is renewed in the phase `spool`. Results of a child that died are adopted by any child with the
same data folder: who knows the token may commit.

Only while the servers are away is the disk needed, so only then does a full one stop the claiming.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import stamina
import structlog

from farm.errors import Failure, FarmError, StaleToken, Unavailable
from farm.ledger import Ledger
from farm.records import Beat, Claim
from farm.settings import Settings
from farm.store import Store
from workers.lease import Drain
from workers.result import Result, commit, pieces, read, read_header, upload, write

_log = structlog.get_logger(__name__)
DISK_SHARE = 0.8
"""The spool's largest share of what the disk could give it: a full disk would stop more than the spool."""
TICK_S = 1.0
"""Longest pause between two looks for dead owners and for room, seconds."""
MAX_ENTRIES = 2000
"""Results in one folder: each claim names those that it keeps, and each look counts them all."""
BEATS = 200
"""Leases renewed by one script: some 5 ms of the server's time."""


class Full(Exception):
    """The disk takes no more results now."""


@dataclass(frozen=True)
class _Entry:
    path: Path
    claim: Claim


class Spool:
    """The results of one child that wait on its disk. Two threads of its own beat and upload them."""

    def __init__(
        self,
        settings: Settings,
        owner: str,
        ledger: Ledger,
        store: Store,
        drain: Drain,
        ring: Callable[[set[str]], None],
    ) -> None:
        self._settings, self._ledger, self._store, self._drain, self._ring = settings, ledger, store, drain, ring
        self._root, self._owner = settings.data / "spool" / settings.namespace, owner
        self._held: dict[str, _Entry] = {}
        self._lock = threading.Lock()
        self._lock_file: int | None = None
        self._writers, self._failing, self._largest = 0, False, 0
        self._filled, self._stop = threading.Event(), threading.Event()
        self.refused = ""
        """Why the disk did not take the last result; the child that cannot get rid of it clears this when it can."""

    def start(self) -> None:
        """Starts the threads; from now on the results of dead children are adopted.

        Raises:
            FarmError: (`bad_file`) the folder cannot be made or read.
        """
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.listdir(self._root)
        except OSError as error:
            raise FarmError(
                f"the folder {self._root} cannot be used: {error.strerror}", code="bad_file", hint="FARM_DATA moves it"
            ) from None
        for work in (self._mind, self._upload_all):
            threading.Thread(target=work, name=f"spool{work.__name__}", daemon=True).start()

    def close(self) -> None:
        """Waits for the uploads as long as the drain's grace lasts; gives back, uncharged, what is left then."""
        if not self._drain.asked:
            self._drain.start()
        while self._held and not self._drain.over:
            self._stop.wait(0.05)
        self._stop.set()
        for entry in self._entries():
            try:
                self._give_back(entry)
            except Unavailable as error:
                # What cannot be given back stays on the disk, for the next child to adopt.
                _log.warning("spool_left", entries=len(self._held), folder=str(self._root), error=error.code)
                return

    # ------------------------------------------------------------------------------------------------ the child's side

    @property
    def away(self) -> bool:
        """Whether the last try to upload failed, so that the next result had better go to disk at once."""
        return self._failing and bool(self._held)

    @property
    def state(self) -> str:
        """`spool_full` or `disk_full` while the child should claim nothing, else empty."""
        if self.refused or not self.away:
            return self.refused
        try:
            return self._lacks(self._largest)
        except OSError:
            return "disk_full"

    def tokens(self) -> list[str]:
        """The tokens of all results in the folder. Another child may have adopted what this worker's last life held."""
        return [name.split(".")[1] for name in self._names() if name.endswith(".result")]

    def put(self, results: Sequence[Result]) -> None:
        """Keeps `results` on disk, all or none; they are uploaded as soon as the servers answer.

        Raises:
            Full: the cap is reached, or the disk does not take them. No file is left.
        """
        entries: list[_Entry] = []
        self._failing = True
        try:
            with self._owning():
                for result in results:
                    path = self._root / f"{self._owner}.{result.claim.token}.result"
                    parts = pieces(result)
                    size = sum(map(len, parts))
                    self._largest = max(self._largest, size)
                    if lack := self._lacks(size):
                        raise Full(lack)
                    entries.append(_Entry(path, result.claim))
                    write(path, parts)
                with self._lock:
                    self._held |= {entry.claim.token: entry for entry in entries}
        except (OSError, Full) as error:
            for entry in entries:
                _remove(entry.path)
            self.refused = str(error) if isinstance(error, Full) else "disk_full"
            _log.warning("spool_refused", why=self.refused, error=type(error).__name__)
            raise Full(self.refused) from error
        self.refused = ""
        self._filled.set()
        _log.warning(
            "spooled", why="the store is away", results=len(entries), held=len(self._held), folder=str(self._root)
        )

    def _lacks(self, size: int) -> str:
        """What keeps `size` more bytes from fitting; empty where they fit."""
        names, used = self._names(), 0
        if len(names) > MAX_ENTRIES:
            return "spool_full"
        for name in names:
            with suppress(OSError):
                used += (self._root / name).stat().st_size
        if used + size > self._settings.spool_bytes:
            return "spool_full"
        try:
            free = shutil.disk_usage(self._root).free
        except OSError:
            return "disk_full"
        return "disk_full" if used + size > DISK_SHARE * (free + used) else ""

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._root)
        except FileNotFoundError:
            return []

    # ------------------------------------------------------------------------------------------------ owners

    @contextmanager
    def _owning(self) -> Iterator[None]:
        """Holds this owner's lock file, while files are written and for as long as there are any after it."""
        with self._lock:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._lock_file is None:
                self._lock_file = _locked(self._root / f"{self._owner}.lock")
                if self._lock_file is None:
                    raise BlockingIOError("another child looks whether this one is dead")
            self._writers += 1
        try:
            yield
        finally:
            with self._lock:
                self._writers -= 1
                self._disown()

    def _disown(self) -> None:
        """Removes the lock file of an empty spool: at rest the folder is empty. The caller has the lock."""
        if self._lock_file is not None and not self._held and not self._writers:
            _remove(self._root / f"{self._owner}.lock")
            os.close(self._lock_file)
            self._lock_file = None

    def _adopt(self) -> None:
        """Takes over the results of owners that are dead, and renews their leases."""
        for owner in {name.partition(".")[0] for name in self._names()} - {self._owner}:
            file = _locked(self._root / f"{owner}.lock")
            if file is not None:
                try:
                    with self._owning():
                        self._take_over(owner)
                finally:
                    os.close(file)

    def _take_over(self, owner: str) -> None:
        adopted = 0
        for name in self._names():
            whose, _, rest = name.partition(".")
            if whose == owner and rest.endswith(".result"):
                path = (self._root / name).rename(self._root / f"{self._owner}.{rest}")
                try:
                    with path.open("rb") as file:
                        claim = read_header(file)[0]
                except (OSError, ValueError) as error:
                    _log.warning("spool_damaged", error=str(error))
                    _remove(path)
                    continue
                with self._lock:
                    self._held[claim.token] = _Entry(path, claim)
                adopted += 1
            elif whose == owner and rest.endswith(".tmp"):
                _remove(self._root / name)
        _remove(self._root / f"{owner}.lock")
        if adopted:
            _log.info("spool_adopted", results=adopted)
            self._filled.set()
            self._beat()

    # ------------------------------------------------------------------------------------------------ the two threads

    def _mind(self) -> None:
        """Adopts what the dead left, and renews the leases of what is held."""
        period, beaten = min(self._settings.beat_s, TICK_S), 0.0
        while not self._stop.is_set():
            try:
                if time.monotonic() - beaten >= self._settings.beat_s:
                    self._beat()
                    beaten = time.monotonic()
            except Exception as error:  # noqa: BLE001 — a server is away; the minding goes on
                _log.debug("spool_beat", error=type(error).__name__)
            try:
                if not self._drain.asked:
                    self._adopt()
            except Exception as error:  # noqa: BLE001 — the disk is away; what is held is beaten all the same
                _log.warning("spool_not_adopted", error=type(error).__name__)
            self._stop.wait(period)

    def _beat(self) -> None:
        """Renews the leases; drops what was taken by another, gives back what nobody waits for.

        Raises:
            Unavailable: the ledger does not answer.
        """
        entries = self._entries()
        for start in range(0, len(entries), BEATS):
            chunk = entries[start : start + BEATS]
            answers = self._ledger.beat([entry.claim for entry in chunk], "spool", 0, 0)
            for entry, answer in zip(chunk, answers, strict=True):
                if answer is Beat.CANCELLED:
                    self._give_back(entry)
                elif answer is Beat.STALE:
                    self._drop(entry)

    def _upload_all(self) -> None:
        """Uploads and commits one result after the other, with pauses of up to 5 s while a server is away."""
        while True:
            self._filled.wait()
            for attempt in stamina.retry_context(on=Exception, attempts=None, timeout=None, wait_max=5):
                with attempt:
                    if self._stop.is_set():
                        return
                    self._deliver_next()

    def _deliver_next(self) -> None:
        """Uploads and commits one result; one that is damaged or makes the upload fail by itself is given up.

        Raises:
            Unavailable: a server is away.
        """
        with self._lock:
            if not self._held:
                self._filled.clear()
                return
            # To the end of the row: one that is refused for itself must not keep the others back.
            token, entry = next(iter(self._held.items()))
            self._held[token] = self._held.pop(token)
        try:
            result = read(entry.path)
        except (OSError, ValueError) as error:
            if token in self._held:
                _log.warning("spool_damaged", error=str(error))
                self._give_back(entry)
            return
        try:
            taken, ready = commit(self._ledger, self._store, [upload(self._store, result)])
        except Unavailable:
            self._failing = True
            raise
        except Exception as error:  # noqa: BLE001 — as when a stage fails: charged, and the others go on
            _log.exception("spool_failed")
            with suppress(StaleToken):
                said = f"{type(error).__name__}: {str(error)[:300]}"
                self._ring(self._ledger.fail([entry.claim], Failure.CRASH, "internal", said))
            self._drop(entry)
        else:
            self._failing = False
            self._drop(entry)
            self._ring(ready)
            _log.info("committed", queue=entry.claim.queue, taken=sum(taken), spooled=True)

    # ------------------------------------------------------------------------------------------------ an entry's end

    def _entries(self) -> list[_Entry]:
        with self._lock:
            return list(self._held.values())

    def _give_back(self, entry: _Entry) -> None:
        self._ring(self._ledger.release([entry.claim]))
        self._drop(entry)

    def _drop(self, entry: _Entry) -> None:
        with self._lock:
            if self._held.pop(entry.claim.token, None):
                _remove(entry.path)
                self._disown()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("spool_not_removed", error=str(error))


def _locked(path: Path) -> int | None:
    """The file that holds the lock at `path`, or None where a living process has it. The lock ends with the process.

    Source: flock(2). Whoever had the lock before may have removed the file: then it guards nothing any more.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(file).st_ino:
            return file
    os.close(file)
    return None
