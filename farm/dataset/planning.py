"""How do the rows of a file become a plan?

Rows stream through: the samples of each (see `farm.dataset.samples`) are written shard by shard to a folder. Wrong rows
are all found before anything is refused, or left out.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from farm.dataset.axes import names_of
from farm.dataset.parameters import kinds_of
from farm.dataset.plans import Plan, write_sample
from farm.dataset.samples import Planner
from farm.dataset.spec import MAX_SHARDS, DatasetSpec, Row, RowError, Sample
from farm.errors import FieldError, InvalidJob
from farm.plan import wrong

TOLD = 100
"""So many of a file's errors are told one by one; the others are counted."""


class Writer:
    """Writes samples as the plans of their shards into `folder`; each file's bytes follow from its samples."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "plan"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._number, self._open = -1, ExitStack()
        self._file: IO[bytes] | gzip.GzipFile = io.BytesIO()
        self._digest, self.samples = hashlib.sha256(), 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def write(self, sample: Sample) -> None:
        """Appends a sample; samples come in order."""
        if sample.place[0] != self._number:
            self._open.close()
            self._number = sample.place[0]
            raw = self._open.enter_context((self._folder / f"{self._number:05d}.jsonl.gz").open("wb"))
            self._file = self._open.enter_context(gzip.GzipFile("", "wb", 1, raw, mtime=0))
        line = write_sample(sample).encode() + b"\n"
        self._file.write(line)
        self._digest.update(line)
        self.samples += 1

    @property
    def digest(self) -> str:
        """The SHA-256 (hex) over all samples."""
        return self._digest.hexdigest()


class Refused(InvalidJob):
    """Mend the rows that are named, or take the others alone; nothing was stored."""

    code = "bad_rows"

    def __init__(self, errors: list[RowError], count: int, taken: int) -> None:
        """`count` rows are wrong, of which `errors` names the first, and `taken` are right."""
        self.rows, self.count = errors, count
        if taken:
            told = f"{count:,} of the file's {count + taken:,} rows cannot be taken"
            hint = "mend them, or leave them out (partial)"
        else:
            told, hint = "none of the file's rows can be taken", "mend them: there is no other row to be planned"
        named = len({one.row for one in errors})
        super().__init__(
            told,
            code="bad_rows",
            hint=f"these are the first {named} of {count:,} wrong rows; {hint}" if named < count else hint,
            errors=tuple(
                FieldError(f"rows.{one.row}" + (f".{one.column}" if one.column else ""), one.message, one.code)
                for one in errors
            ),
        )


def plan_rows(
    planner: Planner,
    spec: DatasetSpec,
    rows: Iterable[Row | RowError],
    folder: Path,
    source: Mapping[str, Any],
    *,
    owner: str = "",
    partial: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[Plan, list[RowError]]:
    """The plan of `rows`, whose samples are in `folder` afterwards, and the first `TOLD` rows that it leaves out.

    `progress` is told how many rows are read, before each is planned.

    Raises:
        Refused: rows are wrong, and not `partial`; or none is right.
        InvalidJob: there are too many samples, also of rows that would not be planned; the others are not read.
    """
    errors, wrongs, taken, meant = list[RowError](), 0, 0, 0
    with Writer(folder) as writer:
        for number, row in enumerate(rows, 1):
            if progress:
                progress(number)
            if isinstance(row, RowError):
                found: list[RowError] = [row]
            else:
                try:
                    samples = planner.samples(row, writer.samples)
                except InvalidJob as error:
                    found = row_errors(error, planner, row)
                else:
                    if not wrongs or partial:
                        for sample in samples:
                            writer.write(sample)
                    taken += 1
                    meant += len(samples)
                    if meant > planner.most:
                        told = f"more than the {planner.most:,} samples of FARM_MAX_DATASET_SAMPLES by row {number}"
                        raise wrong("rows", f"{told}; make two datasets", "bad_rows")
                    if meant > MAX_SHARDS * spec.shard_samples:
                        told = f"more than {MAX_SHARDS:,} shards by row {number}"
                        raise wrong("rows", f"{told}; set shard_samples higher, or make two datasets", "bad_rows")
                    continue
            wrongs += 1
            errors += found[: TOLD - len(errors)]
    if (wrongs and not partial) or not taken:
        raise Refused(errors, wrongs, taken)
    return (
        Plan(
            spec=spec,
            owner=owner,
            source=dict(source),
            rows=taken,
            rejected=wrongs,
            samples=writer.samples,
            shards=-(-writer.samples // spec.shard_samples),
            columns=tuple(planner.columns),
            sizes=tuple(planner.sizes),
            checkpoints=tuple(planner.checkpoints.values()),
            adapters=tuple(planner.adapters.values()),
            sample_bytes=planner.sample_bytes,
            parameters=kinds_of(spec, planner.given, writer.samples),
            digest=writer.digest,
        ),
        errors,
    )


def row_errors(error: InvalidJob, planner: Planner, row: Row) -> list[RowError]:
    """What is wrong with one row, by the file's own columns; by none where no column gave what is wrong."""
    found = dict[RowError, None]()  # one cell may be wrong in several stages
    for one in error.errors or (FieldError("", error.message, error.code),):
        names = _names(one.loc)
        columns = [name for ours in names for name in row.values if planner.target(name) in ours]
        columns += [one.loc] if one.loc in row.values else []
        told = one.msg if columns else f"{one.loc}: {one.msg}".lstrip(": ")
        found.setdefault(RowError(row.number, columns[0] if columns else "", one.code, told))
    return list(found)


def _names(loc: str) -> list[set[str]]:
    """What a column may give that is wrong at `loc`, what says it most exactly first: `1.steps` before `steps`."""
    stage, _, field = loc.removeprefix("stages.").partition(".")
    if not stage.isdigit():
        return [{loc}, names_of(loc), names_of(loc.rpartition(".")[2])]
    own = names_of(field.partition(".")[0])  # what lies within a field is of its column
    return [{f"{stage}.{name}" for name in own}, own]
