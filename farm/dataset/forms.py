"""How does one split of a dataset look in each form?

Each form is used in a `with` and takes the samples of its split in their order; a file is put as soon as it is whole,
the last one at the end.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from farm.dataset.tars import Entry, TarWriter
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


class Form(ABC):
    """One split: `count` samples in files of `size`, each written in `folder`, then `put` under its name."""

    def __init__(self, split: str, count: int, size: int, schema: pa.Schema, folder: Path, put: Put) -> None:
        self._split, self._count, self._size, self._schema = split, count, size, schema
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
        pq.write_table(pa.Table.from_pylist(self._rows, self._schema), table, compression="zstd")
        self._put(f"{name}.parquet", table)


class Tables(Form):
    """`data/train-00000-of-00012.parquet` with the picture of each sample in the column `image`, then its row."""

    _writer: pq.ParquetWriter
    _rows: list[Row]
    _bytes: int

    def _begin(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        # So `datasets` and the hub know that the bytes are a picture; the other features follow from their types.
        told = {"info": {"features": {"image": {"_type": "Image"}}}}
        schema = pa.schema([image, *self._schema], metadata={"huggingface": json.dumps(told)})
        # A picture's bytes are neither repeated nor compressible: no dictionary of them is tried.
        self._writer = pq.ParquetWriter(
            self._folder / "table", schema, compression="zstd", use_dictionary=["negative_prompt", "recipe", "made"]
        )
        self._rows, self._bytes = [], 0

    def _take(self, entry: Entry, row: Row) -> None:
        extension, data = entry.picture()
        self._bytes += len(data)
        self._rows.append({"image": {"bytes": data, "path": f"{entry.key}.{extension}"}, **row})
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
    """`train/000420031.png`, and `train/metadata.jsonl` with a line for each.

    What may be empty, and what the names of a user's columns decide, is JSON in a string: loaders guess the types of
    such a file from its beginning, dates among them, and take every field called `…file_name` for a picture.
    """

    _lines: TextIO

    def __init__(self, split: str, count: int, size: int, schema: pa.Schema, folder: Path, put: Put) -> None:
        super().__init__(split, count, max(count, size), schema, folder, put)  # one list, whatever the size of files

    def _begin(self) -> None:
        self._lines = (self._folder / "lines").open("w", encoding="utf-8", newline="\n")

    def _take(self, entry: Entry, row: Row) -> None:
        extension, data = entry.picture()
        name, path = f"{entry.key}.{extension}", self._folder / "picture"
        path.write_bytes(data)
        self._put(f"{self._split}/{name}", path)
        told = {field: canonical(row[field]) for field in ("choices", "columns") if field in row}
        self._lines.write(canonical({"file_name": name, **row, **told}) + "\n")

    def _end(self, whole: bool) -> None:
        self._lines.close()
        if whole:
            self._put(f"{self._split}/metadata.jsonl", self._folder / "lines")


FORMS: dict[str, type[Form]] = {"webdataset": Tars, "parquet": Tables, "imagefolder": Pictures}
