"""How does a dataset lie in a folder of its own, far from its farm?

As `farm dataset fetch` leaves it: tars and tables as loaders want them, and hidden from loaders, in `.dataset/`, what
an export and a look at all of it need beside them. With that a folder is a dataset on its own: no farm is asked::

    00042.tar, 00042.parquet
    .dataset.json                   whose shards these are: name and identity
    .dataset/plan.json              what the dataset is
    .dataset/00042_samples.jsonl.gz the samples of one shard, as planned
    .dataset/00042_scores.parquet   what was measured of its pictures, if anything
    .dataset/00042_stats.json       counts, hashes and what failed; written last
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from farm.dataset.plans import Plan, read_plan, read_samples
from farm.dataset.scores import written
from farm.dataset.shelves import ShardFolder
from farm.dataset.spec import Sample
from farm.errors import NotFound

if TYPE_CHECKING:
    import pyarrow as pa

MARK = ".dataset.json"
"""The file that says whose shards a folder holds; loaders pass over hidden files and folders."""
NOTES = ".dataset"
"""Where the rest lies: as a table among tables, scores would be read as samples."""


class Fetched(ShardFolder):
    """A dataset in a folder.

    Raises:
        NotFound: no shard was fetched into it.
        BadBlob: its plan cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / NOTES / "plan.json"
        if not path.is_file():
            raise NotFound(f"{folder}: no dataset was fetched into it", hint="`farm dataset fetch NAME -o FOLDER` does")
        self._plan = read_plan(path.read_bytes(), folder.name)
        self.name: str = self._plan.spec.name
        super().__init__(folder, folder / NOTES)

    def plan(self) -> Plan:
        """What the dataset is."""
        return self._plan

    def samples(self, number: int) -> list[Sample]:
        """The samples of one shard, as planned. Raises NotFound, BadBlob."""
        path = self.notes / f"{number:05d}_samples.jsonl.gz"
        if not path.is_file():
            raise NotFound(f"the plan of shard {number} of {self.name!r} is gone")
        return read_samples(path.read_bytes(), number)

    def write_scores(self, number: int, table: pa.Table) -> None:
        """Writes what was measured of a shard's pictures, in place of what was there."""
        path = self.notes / f"{number:05d}_scores.parquet"
        fresh = path.with_name(f".{path.name}.part")
        fresh.write_bytes(written(table))
        fresh.replace(path)
