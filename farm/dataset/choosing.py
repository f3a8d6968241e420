"""Which samples does an export want, and why not the others?

Only the tables are looked at, never a picture. First each sample by itself (`where`, `blank_below`), then what is left
against each other in the order of their keys (pictures, then prompts), then `limit`; so a blank picture never stands in
for a good one. What was measured stays with the samples that are kept, and what is left out is listed with its reasons.
"""

from __future__ import annotations

import hashlib
import json
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from farm.dataset.quality import MAX_DISTANCE, duplicates
from farm.dataset.sharding import MEASURED, NUMBERS, STRUCTS, flat
from farm.dataset.shelves import Shards, read_schema, read_table, sound
from farm.errors import BadBlob, FieldError, InvalidJob, NotFound

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["webdataset", "parquet", "imagefolder"]
SPLITS = ("train", "validation")
MAX_FOLDER = 100_000
"""Files of an imagefolder: of more, loaders list files for minutes. Source: the hub's advice for ImageFolder."""
RESERVED = ("image", "file_name")
"""What an export calls its pictures."""
TOLD = 1000
"""So many characters of the names of columns are told."""
_COMPARED: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*([A-Za-z_][\w-]*(?:\..+?)?)\s*(>=|<=|==|!=|>|<)(.*)", re.DOTALL)
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
"""How a text begins that loaders of JSON lines take for a point in time, if all of a column are such."""
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


class ExportSpec(BaseModel):
    """What is wanted of a dataset, and in which form. Equal shards and wishes give equal bytes."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Format = Field("webdataset", description="tars, Parquet files with the pictures in them, or loose files")
    dedupe: Literal["off", "exact", "near"] = Field(
        "off", description="of pictures with equal pixels, or that look alike, the first is kept"
    )
    distance: int = Field(3, ge=0, le=MAX_DISTANCE, description="bits of the phash in which alike pictures may differ")
    unique_prompts: bool = Field(False, description="of samples of one prompt (but for case and space) the first")
    blank_below: float | None = Field(
        None, ge=0, le=127.5, description="pictures whose brightness deviates less than this (of 255) are left out"
    )
    where: tuple[str, ...] = Field(
        (),
        description="each NAME OP VALUE over a column of numbers, parameters.NAME or columns.NAME, such as "
        "clip_score>=0.25, parameters.steps<30 or columns.label==pear; all must hold",
    )
    limit: int | None = Field(None, ge=1, description="at most so many samples, the first ones")
    validation: float = Field(0, ge=0, lt=1, description="share that goes into the split validation, by sample id")
    file_samples: int = Field(1000, ge=1, le=100_000, description="samples of a tar or Parquet file")


@dataclass(frozen=True, slots=True)
class Condition:
    """A rule over one column; a sample that has no such value in it does not fulfil it.

    A number is held against numbers, and against text that is one; other text only differs from it. Other text, or
    what is in quotes, is held against text and truth (`true`, `false`), and only equals or does not.
    """

    name: str
    sign: str
    value: float | str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises InvalidJob where the text is no such rule."""
        found = _CONDITION.fullmatch(text)
        value = _value(found[3].strip()) if found else None
        if not found or value is None or (isinstance(value, str) and found[2] not in ("==", "!=")):
            message = (
                f"{text!r} is not NAME OP NUMBER (OP: {' '.join(_COMPARED)}), such as clip_score>=0.25, nor NAME==TEXT "
                "or NAME!=TEXT"
            )
            raise InvalidJob(errors=(FieldError("where", message),))
        return cls(found[1], found[2], value)

    def holds(self, value: bool | float | str | None) -> bool:
        if isinstance(value, bool):
            value = "true" if value else "false"
        if isinstance(self.value, str):
            return value is not None and (value == self.value) is (self.sign == "==")
        if isinstance(value, str):
            if not _NUMBER.fullmatch(value.strip()):
                return self.sign == "!="
            value = float(value)
        return value is not None and _COMPARED[self.sign](value, self.value)

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.value if isinstance(self.value, str) else f'{self.value:g}'}"


def _value(text: str) -> float | str | None:
    """What stands behind a rule's sign; None where that is nothing."""
    if _NUMBER.fullmatch(text):
        return float(text)
    if text.startswith("'"):
        return text[1:-1] if len(text) > 1 and text.endswith("'") else None
    if text.startswith('"'):
        try:
            found = json.loads(text)
        except ValueError:
            return None
        return found if isinstance(found, str) else None
    return text or None


@dataclass(frozen=True, slots=True)
class Chosen:
    """What an export takes.

    `marks`: of each shard that was there a byte a sample, 0 where it is left out, else 1 + its split's place in
    `SPLITS`. `counts`: samples of each split that has some. `dropped`: how many each reason left out; a sample may have
    several. `rejects`: those that are left out, by key: `key`, `sample`, `reasons`, and `of`, the key of the kept one
    that it repeats. `scores`: the names of columns that were measured later. `schema`: of the shards' tables. `beside`:
    extensions of what samples have of earlier stages. `dates`: of an imagefolder the text columns in which a date
    stands.
    """

    marks: dict[int, bytes]
    counts: dict[str, int]
    dropped: dict[str, int]
    rejects: pa.Table
    scores: tuple[str, ...]
    schema: pa.Schema
    beside: tuple[str, ...]
    dates: frozenset[str]

    @property
    def kept(self) -> int:
        return sum(self.counts.values())

    @property
    def made(self) -> int:
        """How many samples there were to choose from."""
        return self.kept + int(self.rejects.num_rows)


def choose(shards: Shards, spec: ExportSpec) -> Chosen:
    """The samples that fulfil `spec`.

    Raises:
        InvalidJob: a rule is none, or names no column to choose by; or there are too many files for the form.
        NotFound: no sample is left.
        BadBlob: a table cannot be read, or is not of the same dataset as the others.
    """
    import pyarrow as pa

    conditions = [Condition.parse(text) for text in spec.where]
    looked = _looked(shards, conditions, dates=spec.format == "imagefolder")
    table, sizes = looked.table, looked.sizes
    _check_names(conditions, looked.schema, looked.scores)
    reasons: dict[int, list[str]] = {}
    repeats: dict[int, int] = {}
    if spec.blank_below is not None:
        _reject(reasons, "blank", (i for i, std in _column(table, "luma_std") if std < spec.blank_below))
    for place, one in enumerate(conditions):
        _reject(reasons, str(one), (i for i, holds in _column(table, f"rule{place}") if not holds))
    wanted = {"off": None, "exact": ("pixels", 0), "near": ("phash", spec.distance)}[spec.dedupe]
    for name, column, distance in (
        *((("duplicate", *wanted),) if wanted else ()),
        *((("prompt", "wording", 0),) if spec.unique_prompts else ()),
    ):
        left = [i for i in range(table.num_rows) if i not in reasons]
        found = duplicates(table[column].take(pa.array(left, pa.int64())).to_pylist(), distance)
        again = {left[place]: left[first] for place, first in enumerate(found) if first != place}
        _reject(reasons, name, again)
        repeats |= again
    left = [i for i in range(table.num_rows) if i not in reasons]
    if spec.limit is not None:
        _reject(reasons, "limit", left[spec.limit :])
    kept = len(left) if spec.limit is None else min(spec.limit, len(left))
    if not kept:
        raise NotFound("no sample is left to export", hint="loosen the filters; farm dataset status tells what is made")
    if spec.format == "imagefolder" and (files := kept * (1 + len(looked.beside))) > MAX_FOLDER:
        message = f"an imagefolder of {files} files is more than loaders take ({MAX_FOLDER}); webdataset or parquet do"
        raise InvalidJob(errors=(FieldError("format", message),))
    samples = table["sample"].to_pylist()
    marks = bytes(0 if i in reasons else 1 + (_share(one) < spec.validation) for i, one in enumerate(samples))
    ends = list(accumulate(sizes.values()))
    found_splits = Counter(marks)
    return Chosen(
        marks={number: marks[end - size : end] for (number, size), end in zip(sizes.items(), ends, strict=True)},
        counts={split: found_splits[place] for place, split in enumerate(SPLITS, 1) if found_splits[place]},
        dropped=dict(Counter(reason for told in reasons.values() for reason in told)),
        rejects=_rejects(table, reasons, repeats),
        scores=looked.scores,
        schema=looked.schema,
        beside=looked.beside,
        dates=looked.dates,
    )


def joined(shards: Shards, number: int, scores: Sequence[str]) -> pa.Table:
    """The table of one shard with the columns `scores` after its own, null where nothing was measured.

    Raises:
        BadBlob: a table cannot be read, or a score is no number.
    """
    with sound(shards, number, "parquet") as path:
        return _scored(read_table(path), shards.scores(number), scores, number)


def _scored(table: pa.Table, extra: pa.Table | None, scores: Sequence[str], number: int) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    if extra is not None and "key" not in extra.column_names:
        raise BadBlob(f"shard {number}: its scores do not say by `key` whose they are")
    places = None if extra is None else pc.index_in(table["key"], value_set=pc.cast(extra["key"], pa.string()))
    for name in scores:
        if extra is None or name not in extra.column_names:
            column: Any = pa.nulls(table.num_rows, pa.float64())
        else:
            try:
                column = pc.cast(extra[name], pa.float64()).take(places)
            except pa.ArrowException:
                raise BadBlob(f"shard {number}: the score {name} is no number") from None
        table = table.append_column(name, column)
    return table


@dataclass(frozen=True, slots=True)
class _Looked:
    """What the choice is made from, all shards together: see `_looked`. `sizes`: samples by shard."""

    table: pa.Table
    sizes: dict[int, int]
    scores: tuple[str, ...]
    schema: pa.Schema
    beside: tuple[str, ...]
    dates: frozenset[str]


def _looked(shards: Shards, conditions: Sequence[Condition], *, dates: bool) -> _Looked:
    """Of every sample `key`, `sample`, `luma_std`, `phash`, 64 bits of its pixels' and prompt's hashes, and what holds.

    Some 150 bytes a sample. 64 bits are enough: that among a million samples any two are mistaken for equal has a
    chance of one in thirty million.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    parts, sizes, seen, schema = [], dict[int, int](), dict[str, None](), None
    beside, dated = set[str](), set[str]()
    names = {one.name for one in conditions}
    needed = {"key", "sample", "luma_std", "phash", "pixels", "prompt", *(name.partition(".")[0] for name in names)}
    needed |= set(STRUCTS) if dates else set()
    for number in shards.numbers():
        extra = shards.scores(number)
        here = [] if extra is None else [name for name in extra.column_names if name != "key"]
        seen |= dict.fromkeys(here)
        with sound(shards, number, "parquet") as path:
            fields = read_schema(path)
            if schema is None:
                schema = fields
            elif schema != fields:
                raise BadBlob(f"shard {number} has other columns than those before it: they are not of one dataset")
            if clash := set(here) & {*fields.names, *flat(fields).names, *RESERVED}:
                raise BadBlob(f"shard {number}: the score {min(clash)} has the name of a column")
            table = read_table(path, sorted(needed & set(fields.names)))
            table = _scored(table, extra, sorted(names & set(here)), number)
        columns: dict[str, Any] = {name: table[name] for name in ("key", "sample", "luma_std", "phash")}
        columns["pixels"] = pc.utf8_slice_codeunits(table["pixels"], 0, 16)
        columns["wording"] = pa.chunked_array([pa.array(map(_wording, table["prompt"].to_pylist()), pa.string())])
        for place, one in enumerate(conditions):
            columns[f"rule{place}"] = pa.array((one.holds(value) for value in _values(table, one.name)), pa.bool_())
        if dates:
            texts = [field.name for field in flat(table.schema) if pa.types.is_string(field.type)]
            dated |= {name for name in texts if "." in name and any(map(_DATE.match, _values(table, name)))}
        beside.update(shards.stats(number)["kept"])
        parts.append(pa.table(columns))
        sizes[number] = table.num_rows
    if schema is None:
        raise NotFound("no shard of this dataset is whole yet")
    return _Looked(pa.concat_tables(parts), sizes, tuple(seen), schema, tuple(sorted(beside)), frozenset(dated))


def _values(table: pa.Table, name: str) -> list[Any]:
    """The values of a column, or of a field of a struct by `STRUCT.FIELD`; None for what the table has not."""
    import pyarrow as pa
    import pyarrow.compute as pc

    first, _, field = name.partition(".")
    if name in table.column_names and not pa.types.is_nested(table.schema.field(name).type):
        return list(table[name].to_pylist())
    if first in STRUCTS and first in table.column_names and table.schema.field(first).type.get_field_index(field) >= 0:
        return list(pc.struct_field(table[first], [field]).to_pylist())
    return [None] * table.num_rows


def _check_names(conditions: Sequence[Condition], schema: pa.Schema, scores: Sequence[str]) -> None:
    import pyarrow as pa

    numbers = [*NUMBERS, *MEASURED, *scores]
    others = {field.name: field.type for field in flat(schema) if field.name not in schema.names}
    errors = list[FieldError]()
    for one in conditions:
        if one.name not in numbers and one.name not in others:
            told = f"there is no column {one.name!r} to choose by; there are {', '.join([*numbers, *others])[:TOLD]}"
            errors.append(FieldError("where", told))
        elif isinstance(one.value, str) and not (
            one.name in others and (pa.types.is_string(others[one.name]) or pa.types.is_boolean(others[one.name]))
        ):
            errors.append(FieldError("where", f"{one.name} is a number; {one.value[:80]!r} is none"))
    if errors:
        raise InvalidJob(errors=tuple(errors))


def _column(table: pa.Table, name: str) -> Iterator[tuple[int, Any]]:
    return enumerate(value for chunk in table[name].chunks for value in chunk.to_pylist())


def _reject(reasons: dict[int, list[str]], reason: str, places: Iterable[int]) -> None:
    for place in places:
        reasons.setdefault(place, []).append(reason)


def _rejects(table: pa.Table, reasons: dict[int, list[str]], repeats: dict[int, int]) -> pa.Table:
    import pyarrow as pa

    places = sorted(reasons)
    at = pa.array(places, pa.int64())
    first = pa.array([repeats.get(place) for place in places], pa.int64())
    return pa.table(
        {
            "key": table["key"].take(at),
            "sample": table["sample"].take(at),
            "reasons": pa.array([reasons[place] for place in places], pa.list_(pa.string())),
            "of": table["key"].take(first),
        }
    )


def _wording(prompt: str) -> str:
    """64 bits of a prompt's hash, in hex, equal for prompts that differ in case and white space alone."""
    return hashlib.sha256(" ".join(prompt.casefold().split()).encode()).hexdigest()[:16]


def _share(sample: str) -> float:
    """Where a sample stands between 0 and 1, by its id alone: it stays in its split whatever else is exported."""
    return int(sample[:13], 16) / 16**13
