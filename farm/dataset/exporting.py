"""How do shards become a dataset in the form that somebody wants, without what they don't want?

::

    data/train-00000.tar, .parquet             webdataset: the samples as they are in the shards, and their table
    data/train-00000-of-00012.parquet          parquet: the table with the pictures in it
    train/000420031.png, train/metadata.jsonl  imagefolder; .stage0.png and such beside
    rejects.parquet                            what was left out, and why
    contact-sheet.webp, README.md              what it looks like, and what it is
    export.json                                what was asked for, and each file's hash; written last

First all tables are looked at, then each tar is read once, from its first byte to its last; no more than one sample and
the rows of one file are in memory. A target takes the export of one dataset: an earlier one of the same is replaced.
Equal shards, stats among them, and equal wishes give equal bytes: what the card says of speed is from those stats.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.dataset.card import About, Figures, card, contact_sheet, thumbnail
from farm.dataset.choosing import SPLITS, Chosen, ExportSpec, choose, joined
from farm.dataset.forms import FORMS, GROUP, Form, Layout, Row
from farm.dataset.sharding import file_facts
from farm.dataset.shelves import Shards, Target, sound
from farm.dataset.tars import Entry, entries
from farm.errors import BadBlob, Conflict

MARK = "export.json"
"""The file that says whose export lies there, and, at last, that it is whole."""
_OURS = re.compile(
    r"(.*/)?\..+\.part|data/(train|validation)-\d{5}(-of-\d{5})?\.(tar|parquet)|"
    r"(train|validation)/(\d{9}\.(stage\d\.)?(png|webp|jpg|safetensors)|metadata\.jsonl)|"
    r"README\.md|rejects\.parquet|contact-sheet\.webp|export\.json"
)
"""What an export writes, so what the next one may remove; other files in its target are left alone."""
SHEET = 24
"""Pictures on the contact sheet."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: `counts` samples by split, `dropped` by reason, and each file's `bytes` and `sha256`."""

    counts: dict[str, int]
    dropped: dict[str, int]
    rejected: int
    files: dict[str, dict[str, Any]]


def export(shards: Shards, target: Target, spec: ExportSpec, about: About, *, work: Path | None = None) -> Exported:
    """Writes the dataset into `target`, its files first to `work` (default: the system's folder for such).

    Raises:
        InvalidJob, NotFound: see `choose`.
        Conflict: the target holds something else than an export of this dataset.
        BadBlob: a shard is not whole.
    """
    chosen = choose(shards, spec)
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        out = _Out(target, folder)
        out.begin(about.dataset.name)
        thumbnails, columns = _write(shards, spec, chosen, out, folder)
        # Of those shards that were chosen from: of a dataset that runs there may be more by now.
        stats = [shards.stats(number) for number in chosen.marks]
        failures = [one for told in stats for one in told["failures"]]
        out.write("rejects.parquet", lambda path: _write_rejects(chosen, failures, path))
        out.write("contact-sheet.webp", lambda path: path.write_bytes(contact_sheet(thumbnails)))
        figures = Figures(
            chosen.counts,
            chosen.made,
            sum(int(one["failed"]) for one in stats),
            chosen.dropped,
            sum(told["bytes"] for told in out.files.values()),
            columns,
        )
        out.write("README.md", lambda path: path.write_bytes(card(about, spec, figures).encode()))
        found = Exported(chosen.counts, chosen.dropped, chosen.rejects.num_rows, dict(out.files))
        mark = _mark(about.dataset.name) | {
            "whole": True,
            "export": spec.model_dump(mode="json"),
            "counts": found.counts,
            "dropped": found.dropped,
            "rejected": found.rejected,
            "files": found.files,
        }
        out.write(MARK, lambda path: path.write_text(json.dumps(mark, indent=1, sort_keys=True), "utf-8"))
    return found


def _mark(name: str) -> dict[str, Any]:
    return {"v": 1, "dataset": name, "whole": False}


class _Out:
    """The target as an export sees it: each file is made in `folder`, put, and remembered by its hash."""

    def __init__(self, target: Target, folder: Path) -> None:
        self._target, self._folder = target, folder
        self.files: dict[str, dict[str, Any]] = {}

    def begin(self, name: str) -> None:
        """Marks the target as this dataset's, and clears it of an earlier export. Raises Conflict: it is another's."""
        names = self._target.names()
        if names:
            try:
                found = json.loads(self._target.read(MARK)) if MARK in names else {}
            except ValueError:
                found = {}
            whose = found.get("dataset") if isinstance(found, dict) else None
            if whose != name:
                what = f"an export of {whose}" if whose else "something else"
                raise Conflict(f"the target holds {what}", hint="choose an empty or new one")
        path = self._folder / MARK
        path.write_text(json.dumps(_mark(name)), "utf-8")
        self._target.put(MARK, path)
        for one in sorted(names - {MARK}):
            if _OURS.fullmatch(one):
                self._target.remove(one)

    def write(self, name: str, make: Callable[[Path], object]) -> None:
        """Has `make` write a file at the path that it is given, and puts it."""
        path = self._folder / "file"
        make(path)
        self.put(name, path)

    def put(self, name: str, path: Path) -> None:
        """Puts a file that was written, and removes it here."""
        self.files[name] = file_facts(path)
        self._target.put(name, path)
        path.unlink()


def _write(
    shards: Shards, spec: ExportSpec, chosen: Chosen, out: _Out, folder: Path
) -> tuple[list[bytes], dict[str, str]]:
    """Writes the samples; pictures for the contact sheet, and the columns that a loader will find, with their types."""
    import pyarrow as pa

    schema = chosen.schema
    for name in chosen.scores:
        schema = schema.append(pa.field(name, pa.float64()))
    layout = Layout(schema, chosen.beside, chosen.dates)
    shown, seen, thumbnails = {chosen.kept * place // SHEET for place in range(SHEET)}, 0, list[bytes]()
    with ExitStack() as stack:
        forms: dict[str, Form] = {}
        for split, count in chosen.counts.items():
            (folder / split).mkdir()
            form = FORMS[spec.format](split, count, spec.file_samples, layout, folder / split, out.put)
            forms[split] = stack.enter_context(form)
        for number, marks in chosen.marks.items():
            if not any(marks):
                continue
            for split, row, entry in _samples(shards, number, marks, chosen.scores):
                forms[split].add(entry, row)
                if seen in shown:
                    thumbnails.append(thumbnail(entry.picture()[1]))
                seen += 1
    return thumbnails, FORMS[spec.format].columns(layout)


def _samples(shards: Shards, number: int, marks: bytes, scores: tuple[str, ...]) -> Iterator[tuple[str, Row, Entry]]:
    """The samples of one shard that are marked: split, row of the table, and what the tar has.

    Raises:
        BadBlob: tar and table do not have the same samples, or are not those that were written, or chosen from.
    """
    table = joined(shards, number, scores)
    if table.num_rows != len(marks):
        raise BadBlob(f"shard {number} was written again meanwhile", hint="export it once more")
    rows = (row for batch in table.to_batches(max_chunksize=GROUP) for row in batch.to_pylist())
    with sound(shards, number, "tar") as tar, entries(tar) as found:
        for mark in marks:
            row, entry = next(rows, None), next(found, None)
            if row is None or entry is None or row["key"] != entry.key:
                raise BadBlob(f"shard {number}: its tar and its table do not have the same samples")
            if mark:
                yield SPLITS[mark - 1], row, entry


def _write_rejects(chosen: Chosen, failures: Sequence[Mapping[str, Any]], path: Path) -> None:
    """What was left out, and behind it what could not be made, with why."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"key": one["key"], "sample": one["sample"], "reasons": [f"{one['state']}: {one['code']}"], "of": None}
        for one in failures
    ]
    table = pa.concat_tables([chosen.rejects, pa.Table.from_pylist(rows, chosen.rejects.schema)])
    pq.write_table(table, path, compression="zstd")
