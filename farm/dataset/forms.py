"""How does one split of a dataset look in each form?

Each form is used in a `with` and takes the samples of its split in their order; a file is put as soon as it is whole,
the last one at the end.

What a sample has of earlier stages is called alike in all of them, by its extension: `stage0.png`. A shard's structs
are columns of their own where a loader shows a flat table: `parameters.steps`, `columns.label`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from farm.dataset.sharding import STRUCTS, flat
from farm.dataset.tars import PICTURES, Entry, TarWriter
from farm.job import canonical

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

GROUP = 100
"""Pictures of a Parquet row group, the least that a loader fetches. Source: the hub's advice for streaming images."""
GROUP_BYTES = 1 << 25
"""And so many bytes of pictures at most, for a row group lies in memory several times while it is written."""
Row = dict[str, Any]
Put = Callable[[str, Path], None]


@dataclass(frozen=True, slots=True)
class Layout:
    """What every sample of an export has: a row of `schema`, and of what is `beside` its picture what there is.

    `dates`: text columns in which a date stands.
    """

    schema: pa.Schema
    beside: tuple[str, ...] = ()
    dates: frozenset[str] = frozenset()


class Form(ABC):
    """One split: `count` samples in files of `size`, each written in `folder`, then `put` under its name."""

    def __init__(self, split: str, count: int, size: int, layout: Layout, folder: Path, put: Put) -> None:
        self._split, self._count, self._size, self._layout = split, count, size, layout
        self._folder, self._put = folder, put
        self._written = self._in_file = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._in_file:
            self._end(whole=kind is None)

    def add(self, entry: Entry, row: Row) -> None:
        """Adds one sample: what its tar has of it, and its row of the table with its scores."""
        if not self._in_file:
            self._begin()
        self._in_file += 1
        self._take(entry, row)
        if self._in_file == self._size:
            self._end(whole=True)
            self._written, self._in_file = self._written + 1, 0

    @staticmethod
    @abstractmethod
    def columns(layout: Layout) -> dict[str, str]:
        """What a loader finds beside the picture, and its type in words."""

    @abstractmethod
    def _begin(self) -> None:
        """Opens the next file."""

    @abstractmethod
    def _take(self, entry: Entry, row: Row) -> None:
        """Adds to the open file."""

    @abstractmethod
    def _end(self, whole: bool) -> None:
        """Closes the open file, and puts it if it is whole."""


class Tars(Form):
    """`data/train-00000.tar` with the samples byte by byte as in their shards, and their rows beside it."""

    _tar: TarWriter
    _rows: list[Row]

    @staticmethod
    def columns(layout: Layout) -> dict[str, str]:
        return {field.name: str(field.type) for field in layout.schema} | _beside(layout)

    def _begin(self) -> None:
        self._tar, self._rows = TarWriter(self._folder / "tar"), []

    def _take(self, entry: Entry, row: Row) -> None:
        self._tar.copy(entry)
        self._rows.append(row)

    def _end(self, whole: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self._tar:
            if not whole:
                return
            self._tar.close()
        name = f"data/{self._split}-{self._written:05d}"
        self._put(f"{name}.tar", self._tar.path)
        table = self._folder / "table"
        pq.write_table(pa.Table.from_pylist(self._rows, self._layout.schema), table, compression="zstd")
        self._put(f"{name}.parquet", table)


class Tables(Form):
    """`data/train-00000-of-00012.parquet`: a sample's picture in the column `image`, what is beside it, its row."""

    _writer: pq.ParquetWriter
    _rows: list[Row]
    _bytes: int

    @staticmethod
    def columns(layout: Layout) -> dict[str, str]:
        return {field.name: str(field.type) for field in flat(layout.schema)} | _beside(layout)

    def _begin(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pictures = ["image", *(name for name in self._layout.beside if _is_picture(name))]
        fields = [
            pa.field(name, picture if name in pictures else pa.binary()) for name in ("image", *self._layout.beside)
        ]
        # So `datasets` and the hub know that the bytes are a picture; the other features follow from their types.
        told = {"info": {"features": {name: {"_type": "Image"} for name in pictures}}}
        schema = pa.schema([*fields, *flat(self._layout.schema)], metadata={"huggingface": json.dumps(told)})
        # A picture's bytes are neither repeated nor compressible: no dictionary of them is tried.
        self._writer = pq.ParquetWriter(
            self._folder / "table", schema, compression="zstd", use_dictionary=["negative_prompt", "recipe", "made"]
        )
        self._rows, self._bytes = [], 0

    def _take(self, entry: Entry, row: Row) -> None:
        extension, data = entry.picture()
        files: Row = {"image": {"bytes": data, "path": f"{entry.key}.{extension}"}}
        self._bytes += len(data)
        for name in self._layout.beside:
            if name in entry.files:
                held = entry.read(name)
                files[name] = {"bytes": held, "path": f"{entry.key}.{name}"} if _is_picture(name) else held
                self._bytes += len(held)
        self._rows.append({**files, **_flat(row)})
        if len(self._rows) == GROUP or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, self._writer.schema))
        self._rows, self._bytes = [], 0

    def _end(self, whole: bool) -> None:
        with self._writer:
            if not whole:
                return
            if self._rows:
                self._flush()
        files = -(-self._count // self._size)
        self._put(f"data/{self._split}-{self._written:05d}-of-{files:05d}.parquet", self._folder / "table")


class Pictures(Form):
    """`train/000420031.png`, `.stage0.png` and its like beside it, and `train/metadata.jsonl` with a line for each.

    Loaders guess the types of such a file from its beginning, dates among them, and take every field called
    `…_file_name` for a picture. So what may be empty is JSON in a string, and so are the structs, all of them; of their
    fields those stand by themselves too that are neither.
    """

    _lines: TextIO

    def __init__(self, split: str, count: int, size: int, layout: Layout, folder: Path, put: Put) -> None:
        super().__init__(split, count, max(count, size), layout, folder, put)  # one list, whatever the size of files
        self._fields = self.columns(layout)

    @staticmethod
    def columns(layout: Layout) -> dict[str, str]:
        found = {}
        for field in (*layout.schema, *flat(layout.schema)):
            if field.name not in layout.dates and not field.name.endswith("_file_name"):
                found[field.name] = "string" if field.name in _AS_JSON else str(field.type)
        return found | _beside(layout, "string, a file")

    def _begin(self) -> None:
        self._lines = (self._folder / "lines").open("w", encoding="utf-8", newline="\n")

    def _take(self, entry: Entry, row: Row) -> None:
        extension, data = entry.picture()
        told = {"file_name": self._file(entry, extension, data)}
        for name in self._layout.beside:
            file = self._file(entry, name, entry.read(name)) if name in entry.files else ""
            told[f"{name}_file_name" if _is_picture(name) else name] = file
        values = {**row, **_flat(row), **{name: canonical(row[name]) for name in _AS_JSON if name in row}}
        told |= {name: value for name, value in values.items() if name in self._fields}
        self._lines.write(canonical(told) + "\n")

    def _file(self, entry: Entry, extension: str, data: bytes) -> str:
        """Puts a file of a sample; its name beside the list."""
        name, path = f"{entry.key}.{extension}", self._folder / "picture"
        path.write_bytes(data)
        self._put(f"{self._split}/{name}", path)
        return name

    def _end(self, whole: bool) -> None:
        self._lines.close()
        if whole:
            self._put(f"{self._split}/metadata.jsonl", self._folder / "lines")


_AS_JSON = ("choices", *STRUCTS)


def _is_picture(extension: str) -> bool:
    return extension.rpartition(".")[2] in PICTURES


def _beside(layout: Layout, file: str = "binary") -> dict[str, str]:
    return {name: "image" if _is_picture(name) else file for name in layout.beside}


def _flat(row: Row) -> Row:
    """A row with the fields of its structs in their places (see `farm.dataset.sharding.flat`)."""
    found: Row = {}
    for name, value in row.items():
        found |= {f"{name}.{field}": inner for field, inner in value.items()} if name in STRUCTS else {name: value}
    return found


FORMS: dict[str, type[Form]] = {"webdataset": Tars, "parquet": Tables, "imagefolder": Pictures}
