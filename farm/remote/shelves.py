"""How are the shards of a dataset on a farm elsewhere read, as if they lay here?

Each file comes by an address that the API has signed, when it is asked for, and is gone afterwards: of one shard no
more than tar and table are on the disk at the same time. So an export or a look at all of it needs no room for the
dataset, and nothing of the farm but its API (`farm.dataset.collecting`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from farm.dataset.plans import Plan, read_plan, read_samples
from farm.dataset.scores import tar_of
from farm.dataset.shelves import read_table
from farm.dataset.spec import Sample
from farm.errors import BadBlob, NotFound, Unavailable
from farm.remote.sync import RemoteFarm
from farm.remote.wire import BACKOFF_S, TRIES, Call, ask, get, part

if TYPE_CHECKING:
    import pyarrow as pa


class RemoteShards:
    """The shards of one dataset. Every call may raise Unavailable."""

    def __init__(self, farm: RemoteFarm, name: str) -> None:
        self.name = name
        self._farm = farm
        self._plan: Plan | None = None
        self._numbers: list[int] | None = None
        self._stats: dict[int, dict[str, Any]] = {}

    def plan(self) -> Plan:
        """What the dataset is. Raises NotFound, Conflict: it has no plan yet, BadBlob: this build cannot read it."""
        if self._plan is None:
            found = self._farm.play(ask(Call("GET", f"{self._at}/plan", again=True)))
            self._plan = read_plan(found.content, self.name)
        return self._plan

    def samples(self, number: int) -> list[Sample]:
        """The samples of one shard, as planned. Raises NotFound where they are gone, BadBlob."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "samples"
            try:
                self.bring(number, "samples", path)
            except NotFound:
                raise NotFound(f"the plan of shard {number} of {self.name!r} is gone") from None
            return read_samples(path.read_bytes(), number)

    def numbers(self) -> Sequence[int]:
        """The shards that are there."""
        if self._numbers is None:
            pages = listed(self._farm, f"{self._at}/shards", "after")
            found = [[one["shard"] for one in page["shards"]] + page["damaged"] for page in pages]
            self._numbers = sorted(number for numbers in found for number in numbers)
        return self._numbers

    @contextmanager
    def tar(self, number: int) -> Iterator[Path]:
        """The shard's tar as a file of this machine, for a while. Raises BadBlob."""
        with self._local(number, "tar") as path:
            yield path

    @contextmanager
    def parquet(self, number: int) -> Iterator[Path]:
        """The shard's table, likewise. Raises BadBlob."""
        with self._local(number, "parquet") as path:
            yield path

    def scores(self, number: int) -> pa.Table | None:
        """What was measured of the shard's pictures later; None where nothing was, or of an earlier tar."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"{number:05d}_scores.parquet"
            try:
                self.bring(number, "scores", path)
            except NotFound:
                return None
            table = read_table(path)
        return table if tar_of(table) == self._wanted(number, "tar") else None

    def stats(self, number: int) -> dict[str, Any]:
        """The facts that were written with it, asked for once: an export looks at them often. Raises BadBlob."""
        if number not in self._stats:
            try:
                self._stats[number] = self._farm.play(get(f"{self._at}/shards/{number}/stats"))
            except BadBlob:
                raise BadBlob(f"{number:05d}_stats.json cannot be read") from None
        return self._stats[number]

    def bring(self, number: int, end: str, target: Path, sha256: str | None = None) -> bool:
        """Downloads a file of a shard to `target`, which appears whole; whether it is the one of this SHA-256 (hex).

        A connection that breaks, or bytes that are other ones, are tried again a few times.

        Raises:
            NotFound: there is none.
        """
        fresh = target.with_name(f".{target.name}.part")
        try:
            for left in reversed(range(TRIES)):
                leads = self._farm.play(ask(Call("GET", f"{self._at}/shards/{number}/{end}", again=True), 307))
                try:
                    # Without the token: who stores the shards has no business with it.
                    found = self._farm.save_to(fresh, Call("GET", leads.headers["location"], known=False))
                except Unavailable:
                    if not left:
                        raise
                else:
                    if same := sha256 in (None, found):
                        break
                if left:
                    time.sleep(BACKOFF_S * 2 ** (TRIES - left))
            fresh.replace(target)
            return same
        finally:
            fresh.unlink(missing_ok=True)

    @contextmanager
    def _local(self, number: int, end: str) -> Iterator[Path]:
        name, wanted = f"{number:05d}.{end}", self._wanted(number, end)
        with TemporaryDirectory() as folder:
            path = Path(folder) / name
            try:
                self.bring(number, end, path, wanted)
            except NotFound:
                raise BadBlob(f"{name} is missing") from None
            yield path

    def _wanted(self, number: int, end: str) -> str:
        """The SHA-256 (hex) of a file, as it was written down."""
        return str(self.stats(number)["files"][f"{number:05d}.{end}"]["sha256"])

    @property
    def _at(self) -> str:
        return f"datasets/{part(self.name)}"


def listed(farm: RemoteFarm, path: str, following: str) -> Iterator[Any]:
    """The pages of a list of the API; `following` is the parameter that says where the next one begins."""
    after = None
    while True:
        page = farm.play(get(path, **{following: after}))
        yield page
        if (after := page["next"]) is None:
            return
