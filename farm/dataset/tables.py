"""Which rows does a CSV, a TSV or a text of one prompt a line hold?

CSV is that of RFC 4180, strictly: cells with separators, quotes or line ends stand in quotes, and quotes in them twice.
A cell is text whatever it looks like, a formula too.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import count

from farm.dataset.lines import CELL_CHARS, MAX_COLUMNS, NAME_CHARS, TOO_LONG, Lines, TooLong, unfit
from farm.dataset.sources import AS_UTF8, Source, bad_file, unpacked
from farm.dataset.spec import Row, RowError

SEPARATORS = {"csv": ",", "tsv": "\t"}
COMMENT = "#"
"""Begins a line of a .txt that is no prompt."""


def table_header(source: Source) -> list[str]:
    """The columns of a CSV or TSV."""
    with unpacked(source) as data:
        lines = Lines(data, source.name)
        return _header(_records(source, lines), source, lines)


def table_rows(source: Source) -> Iterator[Row | RowError]:
    """The rows of a CSV or TSV; records without a filled cell are none."""
    with unpacked(source) as data:
        lines = Lines(data, source.name)
        records = _records(source, lines)
        columns = _header(records, source, lines)
        width, number, first = len(columns), 0, 0
        while True:
            lines.begin()
            first = lines.number + 1
            try:
                cells = next(records)
            except StopIteration:
                return
            except (csv.Error, TooLong) as error:
                number += 1
                yield _unread(number, first, error, lines, source)
                continue
            if not any(cells) or (len(cells) == 1 and cells[0].isspace()):
                lines.blank()
                continue
            lines.filled()
            number += 1
            if len(cells) != width:
                told = f"line {first}: {len(cells)} cells, the header has {width}"
                yield RowError(number, "", "bad_row", told + _QUOTE if len(cells) > width else told)
            elif (lines.odd or lines.chars > CELL_CHARS) and (
                wrong := _wrong(number, first, dict(zip(columns, cells, strict=True)))
            ):
                yield wrong
            elif all(cells):
                yield Row(number, dict(zip(columns, cells, strict=True)))
            else:
                yield Row(number, {name: cell for name, cell in zip(columns, cells, strict=True) if cell})


_QUOTE = ": put a cell with a separator in it in quotes"


def _records(source: Source, lines: Lines) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=SEPARATORS[source.format], strict=True)


def _header(records: Iterator[list[str]], source: Source, lines: Lines) -> list[str]:
    """The names of the columns, without blanks around them.

    Raises:
        InvalidJob: (`bad_file`) there are none, one has no name, or two have the same.
    """
    try:
        found = next(record for record in records if any(cell.strip() for cell in record))
    except StopIteration:
        raise bad_file(source.name, "it is empty", "the first line names the columns") from None
    except (csv.Error, TooLong):
        raise bad_file(source.name, f"line {lines.number}: the header cannot be read", _HEADER_HINT) from None
    if lines.odd:
        raise bad_file(source.name, "the header is not UTF-8, or holds a NUL character", AS_UTF8)
    names = [name.strip() for name in found]
    if len(names) == 1 and SEPARATORS[source.format] not in names[0] and (other := set(";\t|,") & set(names[0])):
        raise bad_file(
            source.name,
            f"the header has one column with {other.pop()!r} in it",
            f"a {source.format} has {SEPARATORS[source.format]!r} between its columns",
        )
    check_names(names, source)
    return names


_HEADER_HINT = "the first line names the columns; a quote in a name is written twice, in quotes"


def check_names(names: list[str], source: Source) -> None:
    """Nothing, if these can be the names of a file's columns."""
    if len(names) > MAX_COLUMNS:
        raise bad_file(source.name, f"{len(names)} columns, at most {MAX_COLUMNS} are taken")
    for place, name in enumerate(names, 1):
        if not name.strip():
            raise bad_file(source.name, f"column {place} has no name", "name it in the first line, or take it out")
        if len(name) > NAME_CHARS:
            raise bad_file(source.name, f"column {place} has a name of more than {NAME_CHARS} characters")
        if names.index(name) != place - 1:
            raise bad_file(source.name, f"two columns are called {name!r}", "rename one of them")


def _unread(number: int, first: int, error: Exception, lines: Lines, source: Source) -> RowError:
    if lines.ended:
        raise bad_file(source.name, f"line {first}: a quote is opened and never closed", "close it, or write it twice")
    lines.filled()
    if isinstance(error, TooLong):
        return RowError(number, "", "bad_row", f"line {first}: {TOO_LONG}: is a quote not closed?")
    if lines.chars > CELL_CHARS:
        told = f"line {first}: a cell of more than {CELL_CHARS:,} characters: is a quote not closed?"
        return RowError(number, "", "bad_cell", told)
    told = "something stands behind a quoted cell: in a quoted cell, write a quote twice"
    return RowError(number, "", "bad_row", f"line {first}: {told}")


def _wrong(number: int, first: int, cells: dict[str, str]) -> RowError | None:
    for name, cell in cells.items():
        if found := unfit(cell):
            return RowError(number, name, found[0], f"line {first}: {found[1]}")
    return None


def text_rows(source: Source) -> Iterator[Row | RowError]:
    """One prompt a line, without blanks around it; blank lines and those that begin with `#` are none."""
    with unpacked(source) as data:
        lines = Lines(data, source.name)
        numbers = count(1)
        while True:
            lines.begin()
            try:
                text = next(lines).strip()
            except StopIteration:
                return
            except TooLong:
                yield RowError(next(numbers), "prompt", "bad_cell", f"line {lines.number}: {TOO_LONG}")
                continue
            if not text or text.startswith(COMMENT):
                lines.blank()
                continue
            lines.filled()
            number = next(numbers)
            wrong = _wrong(number, lines.number, {"prompt": text}) if lines.odd or len(text) > CELL_CHARS else None
            yield wrong or Row(number, {"prompt": text})
