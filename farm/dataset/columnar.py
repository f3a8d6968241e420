"""Which rows does a Parquet file hold?"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from math import isfinite, isnan
from typing import TYPE_CHECKING, Any, BinaryIO

from farm.dataset.lines import CELL_CHARS, unfit
from farm.dataset.objects import unfit_tree
from farm.dataset.sources import AS_UTF8, BLOCK_BYTES, Source, bad_file
from farm.dataset.spec import Row, RowError
from farm.dataset.tables import check_names
from farm.errors import Unavailable

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BATCH_ROWS = 2048
"""Rows held at once."""
INSTALL = "pip install 'latent-farm[dataset]'"


def parquet_header(source: Source) -> list[str]:
    """The columns of a Parquet file."""
    with _opened(source) as file:
        return _header(file, source)


def parquet_rows(source: Source) -> Iterator[Row | RowError]:
    """The rows; dates and decimals come as text, bytes too where they are one."""
    with _opened(source) as file:
        names = _header(file, source)
        number = 0
        for batch in _batches(file, source):
            columns = [_cells(column) for column in batch.columns]
            wrongs: dict[int, tuple[str, tuple[str, str]]] = {}
            for name, cells in zip(names, columns, strict=True):
                for place, cell in enumerate(cells):
                    if cell.__class__ is _Wrong:
                        wrongs.setdefault(place, (name, cell.why))
            for place, row in enumerate(zip(*columns, strict=True)):
                number += 1
                if place in wrongs:
                    name, (code, told) = wrongs[place]
                    yield RowError(number, name, code, told)
                elif None in row:
                    filled = zip(names, row, strict=True)
                    yield Row(number, {name: cell for name, cell in filled if cell is not None})
                else:
                    yield Row(number, dict(zip(names, row, strict=True)))


class _Wrong:
    """Stands for a cell that cannot be taken: `why` is code and words."""

    def __init__(self, code: str, told: str) -> None:
        self.why = code, told


@contextmanager
def _opened(source: Source) -> Iterator[ParquetFile]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise Unavailable(f"Parquet needs {error.name}", hint=INSTALL) from None
    with source.open() as raw, _seekable(raw) as data:
        try:
            # Not `pre_buffer`, which holds a whole row group.
            file = ParquetFile(data, pre_buffer=False)
        except (ArrowException, OSError) as error:
            told = str(error).partition("\n")[0][:200]
            raise bad_file(source.name, f"this is not Parquet, or damaged: {told}") from None
        with file:
            yield file


@contextmanager
def _seekable(raw: BinaryIO) -> Iterator[BinaryIO]:
    """The file, or a copy on disk: a Parquet's table of contents stands at its end."""
    if raw.seekable():
        yield raw
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(raw, copy, BLOCK_BYTES)
        copy.seek(0)
        yield copy


def _header(file: ParquetFile, source: Source) -> list[str]:
    names = list(file.schema_arrow.names)
    check_names(names, source)
    return names


def _batches(file: ParquetFile, source: Source) -> Iterator[Any]:
    from pyarrow import ArrowException

    batches = file.iter_batches(batch_size=BATCH_ROWS, use_threads=False)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (ArrowException, OSError) as error:
            told = str(error).partition("\n")[0][:200]
            raise bad_file(source.name, f"the Parquet is damaged: {told}") from None
        yield batch


def _cells(column: Any) -> list[Any]:
    """A column of a batch as Python has it, None where there is nothing."""
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind):
        return column.to_pylist()
    if types.is_string(kind) or types.is_large_string(kind):
        return _texts(column)
    return [cell if cell is None else _plain(cell) for cell in _values(column)]


def _texts(column: Any) -> list[Any]:
    from pyarrow import compute

    longest = compute.max(compute.binary_length(column)).as_py() or 0
    found = _values(column)
    if longest <= CELL_CHARS and not compute.any(compute.match_substring(column, "\0")).as_py():
        return found
    return [cell if cell is None else _fit(cell) for cell in found]


def _values(column: Any) -> list[Any]:
    """All values, and bytes for texts that are no UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(cell) for cell in column]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return _Wrong("bad_encoding", f"this is no Unicode text: {AS_UTF8}")


def _fit(text: Any) -> Any:
    wrong = unfit(text) if isinstance(text, str) else None
    return _Wrong(*wrong) if wrong else text


def _plain(value: Any) -> Any:
    """A cell as JSON could have it, or what is wrong with it; what is no number is an empty cell, as to pandas."""
    if isinstance(value, float) and isnan(value):
        return None
    try:
        found = _json(value)
    except ValueError as error:
        return _Wrong("bad_cell", str(error))
    if isinstance(found, dict | list):
        wrong = unfit_tree(found)
        return _Wrong(*wrong) if wrong else found
    return _fit(found)


def _json(value: Any) -> Any:
    """The value with dates, decimals and bytes as text."""
    if isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"{value} is not a number that a row can have")
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise ValueError("bytes that are no text; a picture is given by its name") from None
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    if value is None or isinstance(value, str | int | _Wrong):
        return value
    raise ValueError(f"a {type(value).__name__} is not taken; save it as text or a number")
