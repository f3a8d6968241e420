"""Which rows does a file hold?

| format | rows |
|---|---|
| csv, tsv | after a header; cells are text, empty ones are left out |
| txt | one prompt a line, in the column `prompt`; a line that begins with `#` is a comment |
| json | a list of objects, with the types that JSON has; nulls are left out |
| jsonl, ndjson | one such object a line |
| parquet | with its types; dates, decimals and bytes as text |

All but Parquet also as `.gz`. Text is UTF-8, or UTF-16 with its mark. However long a file is, little of it is held.

A row's number counts rows alone, from 1: no header, no blank line, no comment, no record of empty cells. So such lines
may be put in later, and every row stays itself. Messages of text files name the line, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from farm.dataset.columnar import parquet_header, parquet_rows
from farm.dataset.objects import line_rows, list_rows
from farm.dataset.sources import Format, Source, bad_file, digest, source_of
from farm.dataset.spec import Row, RowError
from farm.dataset.tables import table_header, table_rows, text_rows

__all__ = ["Source", "digest", "first", "header", "rows", "source_of"]

READERS: dict[Format, Callable[[Source], Iterator[Row | RowError]]] = {
    "csv": table_rows,
    "tsv": table_rows,
    "txt": text_rows,
    "json": list_rows,
    "jsonl": line_rows,
    "parquet": parquet_rows,
}
SAMPLE_ROWS = 100
"""Rows that tell the columns of JSON, which has no header."""


def rows(source: Source) -> Iterator[Row | RowError]:
    """Each row of the file, or why it cannot be taken, one after the other.

    `RowError.code` is `bad_row` (the row as such: its number of cells, its JSON, its length), `bad_cell` or
    `bad_encoding`; its `column` is "" where the fault is not one column's. One row has one error, its first.

    Raises:
        InvalidJob: (`bad_file`) the file as a whole is not what its name tells, or has no rows. It may come late.
        Unavailable: the store does not answer, or a package that the format needs is missing.
    """
    found = None
    for found in READERS[source.format](source):
        yield found
    if found is None:
        hint = "behind the line that names the columns there is none" if source.format in ("csv", "tsv") else ""
        raise bad_file(source.name, "it has no rows", hint)


def header(source: Source) -> list[str]:
    """The names of the columns; of JSON the keys of its first hundred rows.

    Raises:
        InvalidJob: (`bad_file`) as `rows`.
        Unavailable: as `rows`.
    """
    if source.format == "txt":
        return ["prompt"]
    if source.format in ("csv", "tsv"):
        return table_header(source)
    if source.format == "parquet":
        return parquet_header(source)
    return list(dict.fromkeys(name for row in first(source, SAMPLE_ROWS) for name in row.values))


def first(source: Source, n: int) -> list[Row]:
    """Those of the first `n` rows that can be taken.

    Raises:
        InvalidJob: (`bad_file`) as `rows`.
        Unavailable: as `rows`.
    """
    return [found for found in islice(rows(source), n) if isinstance(found, Row)]
