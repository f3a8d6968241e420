"""Does each format give its rows, and is each fault of a file told with its row, column and code?"""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from pyarrow import parquet

from farm.dataset import lines, sources
from farm.dataset.reading import Source, digest, first, header, rows, source_of
from farm.dataset.spec import Row, RowError
from farm.errors import InvalidJob, Unavailable
from farm.store import Store
from tests.test_extras import without

PROMPTS = ["a cat, on a mat", 'a "big" dog', "ein Käse\nmit Löchern", "=cmd|' /C calc'!A0"]
TABLE = {"prompt": PROMPTS, "seed": [1, 2, None, 2**53]}
"""What every format below holds: commas, quotes, line ends and a formula in cells, and a cell that is empty."""


Data = bytes | str | Callable[[], bytes | str]


def written(folder: Path, name: str, data: Data) -> Source:
    """The file of these bytes."""
    path = folder / name
    if callable(data):
        data = data()
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return source_of(path)


def parquet_bytes(table: dict[str, Any] | pa.Table) -> bytes:
    found = io.BytesIO()
    parquet.write_table(table if isinstance(table, pa.Table) else pa.table(table), found)
    return found.getvalue()


def objects() -> list[dict[str, Any]]:
    return [dict(zip(TABLE, cells, strict=True)) for cells in zip(*TABLE.values(), strict=True)]


def quoted(separator: str) -> str:
    cells = [
        ['"' + prompt.replace('"', '""') + '"', str(seed or "")] for prompt, seed in zip(*TABLE.values(), strict=True)
    ]
    return "\r\n".join(separator.join(row) for row in [["prompt", "seed"], *cells])


GOOD: dict[str, bytes] = {
    "a.csv": quoted(",").encode(),
    "a.tsv": quoted("\t").encode(),
    "a.CSV": quoted(",").encode("utf-8-sig") + b"\r\n\r\n",
    "little.csv": quoted(",").encode("utf-16"),
    "big.csv": b"\xfe\xff" + quoted(",").encode("utf-16-be"),
    "a.csv.gz": gzip.compress(quoted(",").encode()),
    "two.csv.gz": gzip.compress(quoted(",")[:20].encode()) + gzip.compress(quoted(",")[20:].encode()),
    "utf16.tsv.gz": gzip.compress(quoted("\t").encode("utf-16")),
    "a.json": json.dumps(objects()).encode(),
    "indented.json": json.dumps(objects(), indent=2, ensure_ascii=False).encode("utf-8-sig"),
    "a.json.gz": gzip.compress(json.dumps(objects()).encode()),
    "a.jsonl": "\n".join(map(json.dumps, objects())).encode(),
    "a.ndjson": "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in objects()).encode("utf-16"),
    "a.jsonl.gz": gzip.compress("\n".join(map(json.dumps, objects())).encode()),
    "a.parquet": parquet_bytes(TABLE),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    # Given the same rows in a format
    source = written(tmp_path, name, GOOD[name])
    # When they are read
    found = list(rows(source))
    # Then they are there, with the types that the format has, and without what is empty
    typed = "sv" not in name.lower()
    seeds = TABLE["seed"] if typed else [str(seed or "") for seed in TABLE["seed"]]
    wanted = [
        Row(number, {"prompt": prompt, "seed": seed} if seed else {"prompt": prompt})
        for number, (prompt, seed) in enumerate(zip(PROMPTS, seeds, strict=True), 1)
    ]
    assert found == wanted
    # And so are the columns, and a preview
    assert header(source) == ["prompt", "seed"]
    assert first(source, 2) == wanted[:2]
    # And it may be read again
    assert list(rows(source)) == wanted


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_text_is_one_prompt_a_line(end: str, tmp_path: Path) -> None:
    lines = ["# cats", "a cat", "", "  a dog, # 1 ", "   # no", "=1+1", '"a"']
    source = written(tmp_path, "a.txt", end.join(lines))
    texts = ["a cat", "a dog, # 1", "=1+1", '"a"']
    assert list(rows(source)) == [Row(number, {"prompt": text}) for number, text in enumerate(texts, 1)]
    assert header(source) == ["prompt"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_lines_end_as_they_like_and_blank_ones_are_no_rows(name: str, end: str, tmp_path: Path) -> None:
    # Given lines of any end, with blank ones among them
    texts = ["", "a,b", "", "1,2", "", "  ", ",", "3,4", ""]
    if name == "a.jsonl":
        texts = ["", '{"a": "1", "b": "2"}', "", "  ", '{"a": "3", "b": "4"}']
    # When they are read
    found = list(rows(written(tmp_path, name, end.join(texts))))
    # Then only rows are counted
    assert found == [Row(1, {"a": "1", "b": "2"}), Row(2, {"a": "3", "b": "4"})]


@pytest.mark.parametrize("cell", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\tx", "  ", "0x10", "NaN", "null"])
def test_a_cell_of_a_table_is_text_whatever_it_looks_like(cell: str, tmp_path: Path) -> None:
    assert first(written(tmp_path, "a.csv", f'prompt,n\n"{cell}",1'), 1) == [Row(1, {"prompt": cell, "n": "1"})]


# -------------------------------------------------------------------------------------------------------- faulty rows

LONG = "x" * (lines.CELL_CHARS + 1)
HUGE = "x" * (lines.ROW_CHARS + 1)
A, Z = '{"a": "1"}\n', '\n{"a": "2"}'
FAULTY: dict[str, tuple[str, Data, str, str, str]] = {
    "too few cells": ("a.csv", "a,b\n1,2\nx\n3,4", "", "bad_row", "line 3: 1 cells, the header has 2"),
    "too many cells": ("a.csv", "a,b\n1,2\nx,y,z\n3,4", "", "bad_row", "3 cells"),
    "too few after lines in a cell": ("a.csv", 'a,b\n"1\n\n",2\nx\n3,4', "", "bad_row", "line 5"),
    "long cell": ("a.csv", f"a,b\n1,2\nx,{LONG}\n3,4", "b", "bad_cell", "65,537 characters"),
    "long cell of several lines": ("a.csv", 'a,b\n1,2\nx,"' + "y\n" * 40_000 + '"\n3,4', "b", "bad_cell", "80,000"),
    "longer cell": ("a.csv", f"a,b\n1,2\nx,{LONG * 3}\n3,4", "", "bad_cell", "more than 65,536"),
    "long line": ("a.csv", f"a,b\n1,2\nx,{HUGE}\n3,4", "", "bad_row", "longer than 1,048,576"),
    "long line, CR": ("a.csv", f"a,b\r1,2\rx,{HUGE * 2}\r3,4", "", "bad_row", "line 3"),
    "NUL": ("a.csv", "a,b\n1,2\nx,\0y\n3,4", "b", "bad_cell", "NUL"),
    "Latin-1": ("a.csv", "a,b\n1,2\nx,Käse\n3,4".encode("latin-1"), "b", "bad_encoding", "save it as UTF-8"),
    "half of UTF-8": ("a.tsv", b"a\tb\n1\t2\n\xc3\tx\n3\t4", "a", "bad_encoding", "line 3"),
    "quote in quotes": ("a.csv", 'a,b\n1,2\n"x"y",z\n3,4', "", "bad_row", "write a quote twice"),
    "long prompt": ("a.txt", f"1\n{LONG}\n2", "prompt", "bad_cell", "65,537"),
    "huge prompt": ("a.txt", f"1\n{HUGE}\n2", "prompt", "bad_cell", "longer than"),
    "NUL in a text": ("a.txt", "1\nx\0\n2", "prompt", "bad_cell", "line 2: it holds a NUL"),
    "NUL at the end of a line of UTF-8": ("a.txt", "1\nKäse\0\n2", "prompt", "bad_cell", "line 2: it holds a NUL"),
    "Latin-1 in a text": ("a.txt", b"1\n\xe4\n2", "prompt", "bad_encoding", "UTF-8"),
    "no JSON": ("a.jsonl", f"{A}x{Z}", "", "bad_row", "line 2: not JSON: expecting value"),
    "JSON's trailing comma": ("a.jsonl", f'{A}{{"a": "x"}},{Z}', "", "bad_row", "extra data"),
    "comma in an object": ("a.jsonl", f'{A}{{"a": "x",}}{Z}', "", "bad_row", "not JSON"),
    "JSON of a list": ("a.jsonl", f'{A}["x"]{Z}', "", "bad_row", "an object is needed"),
    "JSON of a number": ("a.jsonl", f"{A}1{Z}", "", "bad_row", "an object is needed"),
    "JSON of a string": ("a.jsonl", f'{A}"x"{Z}', "", "bad_row", "an object is needed"),
    "JSON of nothing": ("a.jsonl", f"{A}null{Z}", "", "bad_row", "an object is needed"),
    "a key twice": ("a.jsonl", f'{A}{{"a": "x", "a": "y"}}{Z}', "", "bad_row", "twice"),
    "an inner key twice": ("a.jsonl", f'{A}{{"a": {{"b": 1, "b": 2}}}}{Z}', "", "bad_row", "twice"),
    "an empty key": ("a.jsonl", f'{A}{{"": "x"}}{Z}', "", "bad_row", "a key is empty"),
    "a long key": ("a.jsonl", f'{A}{{"{"k" * 201}": "x"}}{Z}', "", "bad_row", "longer than 200"),
    "many keys": ("a.jsonl", A + json.dumps({str(k): k for k in range(1001)}) + Z, "", "bad_row", "1001 keys"),
    "NaN": ("a.jsonl", f'{A}{{"a": NaN}}{Z}', "", "bad_row", "NaN is not a number"),
    "minus infinity": ("a.jsonl", f'{A}{{"a": [-Infinity]}}{Z}', "", "bad_row", "-Infinity"),
    "too large a number": ("a.jsonl", f'{A}{{"a": 1e999}}{Z}', "", "bad_row", "1e999"),
    "many digits": ("a.jsonl", f'{A}{{"a": {"9" * 5000}}}{Z}', "", "bad_row", "too many digits"),
    "a deep line": ("a.jsonl", A + '{"a":' * 100_000 + Z, "", "bad_row", "within each other"),
    "a deep cell": ("a.jsonl", A + '{"a":' + "[" * 40 + "]" * 40 + "}" + Z, "a", "bad_cell", "within each other"),
    "a line of 50 MB": ("a.jsonl", lambda: A + '{"a":"' + "x" * 50_000_000 + '"}' + Z, "", "bad_row", "longer than"),
    "a long text": ("a.jsonl", A + json.dumps({"a": LONG}) + Z, "a", "bad_cell", "65,537"),
    "a long list": ("a.jsonl", A + json.dumps({"a": [1] * 30_000}) + Z, "a", "bad_cell", "90,000"),
    "NUL in JSON": ("a.jsonl", f'{A}{{"a": "x\\u0000"}}{Z}', "a", "bad_cell", "NUL"),
    "NUL in a list": ("a.jsonl", f'{A}{{"a": ["x\\u0000"]}}{Z}', "a", "bad_cell", "NUL"),
    "half a surrogate pair": ("a.jsonl", f'{A}{{"a": "\\ud800"}}{Z}', "a", "bad_encoding", "no Unicode"),
    "half a pair in a key": ("a.jsonl", f'{A}{{"\\ud800": 1}}{Z}', "", "bad_row", "no text"),
    "Latin-1 in JSON": ("a.jsonl", A.encode() + b'{"a": "\xe4"}' + Z.encode(), "a", "bad_encoding", "UTF-8"),
    "a list of a number": ("a.json", '[{"a": "1"}, 1, {"a": "2"}]', "", "bad_row", "object 2: an object is needed"),
    "a list with NaN": ("a.json", '[{"a": "1"}, {"a": NaN}, {"a": "2"}]', "", "bad_row", "NaN"),
    "a list, a key twice": ("a.json", '[{"a": "1"}, {"a":1,"a":1}, {"a": "2"}]', "", "bad_row", "twice"),
    "a list, Latin-1": ("a.json", b'[{"a": "1"}, {"a": "\xe4"}, {"a": "2"}]', "a", "bad_encoding", "object 2"),
    "a list, a long text": ("a.json", json.dumps([{"a": "1"}, {"a": LONG}, {"a": "2"}]), "a", "bad_cell", "65,537"),
    "bytes": ("a.parquet", parquet_bytes({"a": [b"1", b"\xff", b"2"]}), "a", "bad_cell", "no text"),
    "Parquet's infinity": ("a.parquet", parquet_bytes({"a": [1.0, float("inf"), 2.0]}), "a", "bad_cell", "inf"),
    "Parquet's NUL": ("a.parquet", parquet_bytes({"a": ["1", "\0", "2"]}), "a", "bad_cell", "NUL"),
    "Parquet's long text": ("a.parquet", parquet_bytes({"a": ["1", LONG, "2"]}), "a", "bad_cell", "65,537"),
    "Parquet's deep list": ("a.parquet", parquet_bytes({"a": [["1"], [LONG], ["2"]]}), "a", "bad_cell", "65,537"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTY)
def test_a_faulty_row_is_told_and_the_others_are_read(case: str, tmp_path: Path) -> None:
    # Given a file whose second row of three is faulty
    name, data, column, code, told = FAULTY[case]
    # When it is read
    found = list(rows(written(tmp_path, name, data)))
    # Then the fault has its row, column and code, and both others are there
    assert [row.number if isinstance(row, Row) else row.row for row in found] == [1, 2, 3]
    assert [type(row) for row in found] == [Row, RowError, Row]
    wrong = found[1]
    assert isinstance(wrong, RowError)
    assert (wrong.column, wrong.code) == (column, code)
    assert told in wrong.message


def test_text_in_parquet_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    # Given a column of texts with a byte that is none
    texts = pa.Array.from_buffers(pa.utf8(), 3, pa.array([b"1", b"\xff", b"2"]).buffers())
    source = written(tmp_path, "a.parquet", parquet_bytes(pa.table({"a": texts})))
    # When it is read, then only its row is refused
    found = list(rows(source))
    assert [type(row) for row in found] == [Row, RowError, Row]
    assert (found[1].column, found[1].code) == ("a", "bad_encoding")  # type: ignore[union-attr]


def test_a_quote_that_is_not_closed_costs_some_rows_and_not_the_file(tmp_path: Path) -> None:
    # Given a table of many rows, one of which opens a quote
    source = written(tmp_path, "a.csv", "a,b\n" + "1,2\n" * 10 + '"3,4\n' + "5,6\n" * 100_000)
    # When it is read
    found = list(rows(source))
    # Then the row is told, and where the cell would be too long the rows go on
    wrong = [row for row in found if isinstance(row, RowError)]
    assert [(row.row, row.code) for row in wrong] == [(11, "bad_cell")]
    assert "line 12" in wrong[0].message
    assert "is a quote not closed?" in wrong[0].message
    assert found[-1] == Row(len(found), {"a": "5", "b": "6"})
    assert len(found) > 60_000


# ------------------------------------------------------------------------------------------------------- faulty files


def zipped() -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w") as file:
        file.writestr("a.csv", "a,b\n1,2")
    return found.getvalue()


CSV = b"a,b\n" + b"1,2\n" * 5000
CHINESE = "提示,上\n红色的梨,1\n蓝色的李子,2\n"
"""Of two bytes a letter without a NUL, but for line ends; one of them has the byte of a line end."""
BAD: dict[str, tuple[str, Data, str]] = {
    "empty csv": ("a.csv", b"", "it is empty"),
    "blank csv": ("a.csv", b"\n\n", "it is empty"),
    "only a header": ("a.csv", b"a,b\n\n,\n", "no rows"),
    "empty txt": ("a.txt", b"# none\n\n", "no rows"),
    "empty json": ("a.json", b"", "no list of objects"),
    "json of no rows": ("a.json", b" [ ] ", "no rows"),
    "empty jsonl": ("a.jsonl", b"\n", "no rows"),
    "parquet of no rows": ("a.parquet", parquet_bytes({"a": pa.array([], pa.string())}), "no rows"),
    "a column twice": ("a.csv", b"a,b,a\n1,2,3", "two columns are called 'a'"),
    "a column twice, but for blanks": ("a.csv", b"a,b, a\n1,2,3", "two columns"),
    "a column without a name": ("a.csv", b"a,,b\n1,2,3", "column 2 has no name"),
    "a comma behind the header": ("a.csv", b"a,b,\n1,2,", "column 3 has no name"),
    "a long name": ("a.csv", b"a" * 201 + b",b\n1,2", "more than 200 characters"),
    "many columns": ("a.csv", b",".join(b"c%d" % n for n in range(1001)), "1001 columns"),
    "semicolons": ("a.csv", b"a;b\n1;2", "between its columns"),
    "tabs in a csv": ("a.csv", b"a\tb\n1\t2", "between its columns"),
    "Latin-1 header": ("a.csv", "Käse,b\n1,2".encode("latin-1"), "header is not UTF-8"),
    "NUL in the header": ("a.csv", b"abc,b\0\n1,2", "header is not UTF-8, or holds a NUL"),
    "long header": ("a.csv", b"a" * 2_000_000, "header cannot be read"),
    "quote in the header": ("a.csv", b'"a"b,c\n1,2', "header cannot be read"),
    "open quote": ("a.csv", b'a,b\n1,2\n3,"4\n5,6\n', "line 3: a quote is opened and never closed"),
    "open quote in the header": ("a.csv", b'a,"b\n1,2\n', "header cannot be read"),
    "UTF-16 without its mark": ("a.csv", "a,b\n1,2".encode("utf-16-le"), "UTF-16 that does not say so"),
    "Chinese UTF-16 without its mark": ("a.csv", CHINESE.encode("utf-16-le"), "UTF-16 that does not say so"),
    "big-endian, as a text": ("a.txt", CHINESE.encode("utf-16-be"), "save it as UTF-8"),
    "UTF-16 behind a long line": ("a.jsonl", ('{"梨": 1}' + " " * 9000 + "\n").encode("utf-16-le"), "save it as UTF-8"),
    "UTF-32 without its mark": ("a.txt", CHINESE.encode("utf-32-le"), "save it as UTF-8"),
    "PowerShell's >> behind UTF-8": ("a.csv", b"a,b\n1,2\n" + "3,4\r\n".encode("utf-16-le"), "-Encoding utf8"),
    "half of UTF-16": ("a.csv", "a,b\n1,2".encode("utf-16")[:-1], "not the UTF-16"),
    "a wrong pair in UTF-16": ("a.csv", b"\xff\xfe" + b"\x00\xd8" * 4, "not the UTF-16"),
    "UTF-32": ("a.csv", "a,b\n1,2".encode("utf-32"), "UTF-32"),
    "zip": ("a.csv", zipped(), "a zip archive or a workbook"),
    "zip as gzip": ("a.csv.gz", zipped(), "not gzip"),
    "zip in gzip": ("a.csv.gz", gzip.compress(zipped()), "a zip archive"),
    "gzip as csv": ("a.csv", gzip.compress(CSV), "packed with gzip"),
    "gzip in gzip": ("a.csv.gz", gzip.compress(gzip.compress(CSV)), "packed with gzip"),
    "csv as gzip": ("a.csv.gz", CSV, "not gzip"),
    "half a gzip": ("a.csv.gz", gzip.compress(CSV)[:-20], "ends too early"),
    "a damaged gzip": ("a.csv.gz", gzip.compress(CSV)[:30] + b"\xff" * 30, "gzip is damaged"),
    "a wrong sum in a gzip": ("a.csv.gz", gzip.compress(CSV)[:-8] + bytes(8), "gzip is damaged"),
    "more behind a gzip": ("a.csv.gz", gzip.compress(CSV) + b"more", "gzip is damaged"),
    "a bomb of one line": ("a.jsonl.gz", lambda: gzip.compress(b"0" * 80_000_000, 1), "longer than 64 Mi characters"),
    "a bomb of NULs": ("a.jsonl.gz", lambda: gzip.compress(b" " + b"\0" * 80_000_000, 1), "no text, or UTF-16"),
    "a bomb of blank lines": ("a.txt.gz", lambda: gzip.compress(b"\n" * 2_000_000), "lines without a row"),
    "a bomb of blanks": ("a.json.gz", lambda: gzip.compress(b"[" + b" " * 80_000_000, 1), "blanks in a row"),
    "a bomb of empty records": (
        "a.csv.gz",
        lambda: gzip.compress(b"a,b\n" + b",\n" * 2_000_000),
        "lines without a row",
    ),
    "csv as parquet": ("a.parquet", CSV, "not Parquet"),
    "empty parquet": ("a.parquet", b"", "not Parquet"),
    "parquet as csv": ("a.csv", parquet_bytes(TABLE), "this is Parquet"),
    "half a parquet": ("a.parquet", parquet_bytes(TABLE)[:-100], "not Parquet, or damaged"),
    "a column twice in parquet": ("a.parquet", parquet_bytes(pa.table([[1], [2]], names=["a", "a"])), "two columns"),
    "a parquet without names": ("a.parquet", parquet_bytes(pa.table([[1]], names=[""])), "column 1 has no name"),
    "one object": ("a.json", b'{"a": 1}', "no list of objects"),
    "lines as a list": ("a.json", b'{"a": 1}\n{"a": 2}', "name it .jsonl"),
    "an open list": ("a.json", b'[{"a": 1}', "not followed by a comma or the list's end"),
    "an open object": ("a.json", b'[{"a": 1}, {"a": ', "object 2: not JSON"),
    "no comma": ("a.json", b'[{"a": 1} {"a": 2}]', "object 1 is not followed by a comma"),
    "a comma too many": ("a.json", b'[{"a": 1},]', "object 2: not JSON"),
    "more behind a list": ("a.json", b'[{"a": 1}] x', "something stands behind the list"),
    "a deep list": ("a.json", b"[" * 100_000, "within each other"),
    "a huge object": ("a.json", b'[{"a": "' + b"x" * 3_000_000, "object 1 is not JSON, or longer than"),
    "many digits in a list": ("a.json", b'[{"a": ' + b"9" * 5000 + b"}]", "too many digits"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_faulty_file_is_refused_with_a_word(case: str, tmp_path: Path) -> None:
    name, data, told = BAD[case]
    source = written(tmp_path, name, data)
    with pytest.raises(InvalidJob) as caught:
        list(rows(source))
    assert caught.value.code == "bad_file"
    assert caught.value.message.startswith(f"{name}: ")
    assert told in f"{caught.value.message} {caught.value.hint}"


def test_a_gzip_holds_so_much_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path, "a.csv.gz", gzip.compress(CSV))
    monkeypatch.setattr(sources, "UNPACKED_BYTES", len(CSV) - 1)
    with pytest.raises(InvalidJob, match="the gzip holds more than"):
        list(rows(source))


def test_a_damaged_page_of_parquet_is_told(tmp_path: Path) -> None:
    data = bytearray(parquet_bytes({"a": [f"{n} cats" for n in range(50_000)]}))
    data[1000:5000] = bytes(4000)
    with pytest.raises(InvalidJob, match=r"a.parquet: .*Parquet is damaged"):
        list(rows(written(tmp_path, "a.parquet", bytes(data))))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a", "its name tells no format"),
        ("a.xlsx", "rows in '.xlsx' are not known"),
        ("a.zip", "rows in '.zip' are not known"),
        ("a.gz", "its name tells no format"),
        ("a.parquet.gz", "Parquet is packed by itself"),
    ],
)
def test_a_name_must_tell_a_format(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidJob, match=told) as caught:
        written(tmp_path, name, "a,b\n1,2")
    assert caught.value.code == "bad_file"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "format", "found"),
    [
        ("0f3a", "csv", ("csv", False)),
        ("0f3a", "csv.gz", ("csv", True)),
        ("a.csv.gz", "tsv", ("tsv", True)),
        ("a.dat", ".NDJSON", ("jsonl", False)),
    ],
)
def test_a_format_may_be_told(name: str, format: str, found: tuple[str, bool], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    source = source_of(str(tmp_path / name), format=format)
    assert (source.name, source.format, source.gz) == (name, *found)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none.csv", "no such file"),
        ("folder.csv", "no file"),
        ("a\0.csv", "a\0.csv: "),
        ("x" * 300 + ".csv", "too long"),
    ],
)
def test_a_file_must_be_there(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InvalidJob, match=told) as caught:
        source_of(tmp_path / name)
    assert caught.value.code == "bad_file"


# -------------------------------------------------------------------------------------------------------------- types


def test_parquet_has_types_as_json_has_them(tmp_path: Path) -> None:
    # Given columns of all kinds, with and without values
    table = pa.table(
        {
            "bool": [True, None],
            "float": pa.array([0.5, None], pa.float32()),
            "dictionary": pa.array(["a", "a"]).dictionary_encode(),
            "large": pa.array(["x", None], pa.large_string()),
            "bytes": [b"text", None],
            "date": [date(2026, 1, 2), None],
            "instant": [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), None],
            "decimal": [Decimal("1.50"), None],
            "list": [[1, None, 3], None],
            "struct": [{"a": [Decimal("2.5")], "b": None}, None],
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
            "nothing": [None, None],
        }
    )
    # When they are read
    one, two = rows(written(tmp_path, "a.parquet", parquet_bytes(table)))
    # Then they are what JSON could hold
    assert one == Row(
        1,
        {
            "bool": True,
            "float": 0.5,
            "dictionary": "a",
            "large": "x",
            "bytes": "text",
            "date": "2026-01-02",
            "instant": "2026-01-02T03:04:05+00:00",
            "decimal": "1.50",
            "list": [1, None, 3],
            "struct": {"a": ["2.5"], "b": None},
            "map": [["k", 1]],
        },
    )
    assert two == Row(2, {"dictionary": "a"})
    json.dumps(dict(one.values))


def test_json_keeps_what_it_holds(tmp_path: Path) -> None:
    row = {"a": "", "b": 1, "c": 1.5, "d": True, "e": [1, {"f": None}], "g": None, "h": "ü\u2028\x07"}
    for name, data in (("a.json", json.dumps([row])), ("a.jsonl", json.dumps(row, ensure_ascii=False))):
        (found,) = rows(written(tmp_path, name, data))
        assert found == Row(1, {key: value for key, value in row.items() if value is not None})


def test_the_columns_of_json_are_the_keys_of_its_first_rows(tmp_path: Path) -> None:
    source = written(tmp_path, "a.jsonl", '{"b": 1}\n{"a": 2, "b": 3}\nwrong\n{"c": 4}')
    assert header(source) == ["b", "a", "c"]
    assert first(source, 3) == [Row(1, {"b": 1}), Row(2, {"a": 2, "b": 3})]


def test_objects_of_a_list_may_lie_across_blocks(tmp_path: Path) -> None:
    # Given a list of many lengths, so that any place of an object comes to be the end of a block
    wanted = [{"a": "x" * (n % 97), "n": n} for n in range(20_000)]
    wanted.append({"a": "y" * 60_000, "n": 123456})
    # When it is read, then nothing is cut
    found = [row.values for row in rows(written(tmp_path, "a.json", json.dumps(wanted))) if isinstance(row, Row)]
    assert found == wanted


# ----------------------------------------------------------------------------------------------------- memory, digest


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.json.gz", "a.parquet"])
def test_a_long_file_is_not_held(name: str, tmp_path: Path) -> None:
    # Given 300,000 rows, 30 MB of them
    n = 300_000
    texts = (f"a photo of a cat, number {i}, on a blue mat, by nobody in particular, in the evening" for i in range(n))
    if name == "a.parquet":
        data = parquet_bytes({"prompt": list(texts), "seed": range(n)})
    else:
        made = {
            "a.csv.gz": ("prompt,seed\n", '"{}",{}\n', ""),
            "a.json.gz": ("[", '{{"prompt":"{}","seed":{}}},', "1]"),
        }
        before, row, behind = made.get(name, ("", '{{"prompt":"{}","seed":{}}}\n', ""))
        data = gzip.compress((before + "".join(row.format(t, i) for i, t in enumerate(texts)) + behind).encode(), 1)
    found = rows(written(tmp_path, name, data))
    # When they are read
    deque: Iterator[Any] = islice(found, 20_000)
    assert sum(1 for _ in deque) == 20_000
    before_bytes = psutil.Process().memory_info().rss
    assert sum(1 for _ in found) >= n - 20_000
    # Then no more memory is held at the end than at the beginning
    assert psutil.Process().memory_info().rss - before_bytes < 10 * 2**20


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = gzip.compress(CSV)
    assert digest(written(tmp_path, "a.csv.gz", data)) == (sha256(data).hexdigest(), len(data))


# ----------------------------------------------------------------------------------------------------------------- S3


def put(store: Store, name: str, data: bytes) -> str:
    store.client.put_object(Bucket=store.bucket, Key=f"in/{name}", Body=data)
    return f"s3://{store.bucket}/in/{name}"


@pytest.mark.parametrize("name", ["a.csv", "utf16.tsv.gz", "a.json", "a.jsonl.gz", "a.parquet"])
def test_an_object_is_read_as_a_file(name: str, store: Store, tmp_path: Path) -> None:
    source = source_of(put(store, name, GOOD[name]), store=store)
    assert source.name == name
    assert list(rows(source)) == list(rows(written(tmp_path, name, GOOD[name])))
    assert header(source) == ["prompt", "seed"]
    assert digest(source) == (sha256(GOOD[name]).hexdigest(), len(GOOD[name]))


def test_a_faulty_object_is_refused_as_a_file(store: Store) -> None:
    for name, data, told in (("a.csv", b"", "it is empty"), ("a.parquet", CSV, "not Parquet")):
        with pytest.raises(InvalidJob, match=told):
            list(rows(source_of(put(store, name, data), store=store)))


def test_an_object_must_be_there(store: Store, s3_settings: Any) -> None:
    for uri, told in (
        (f"s3://{store.bucket}/none.csv", "no such object"),
        ("s3:///a.csv", "s3://bucket/key"),
        ("s3://a.csv", "s3://bucket/key"),
    ):
        with pytest.raises(InvalidJob, match=told) as caught:
            source_of(uri, store=store)
        assert caught.value.code == "bad_file"
    with pytest.raises(InvalidJob, match="needs a store"):
        source_of("s3://bucket/a.csv")


class Breaking:
    """A body whose connection breaks after so many bytes."""

    def __init__(self, body: Any, after: int) -> None:
        self._body, self._left = body, after

    def read(self, size: int) -> bytes:
        from botocore.exceptions import ReadTimeoutError

        if self._left <= 0:
            raise ReadTimeoutError(endpoint_url="x")
        found: bytes = self._body.read(min(size, self._left))
        self._left -= len(found)
        return found

    def close(self) -> None:
        self._body.close()


@pytest.mark.parametrize("after", [0, 7_000])
def test_an_object_is_read_on_from_where_the_connection_broke(
    after: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store whose connections break off, after some bytes or before the first
    source = source_of(put(store, "a.csv", CSV), store=store)
    real = store.body
    monkeypatch.setattr(store, "body", lambda *what: Breaking(real(*what), after))
    # When the object is read
    if after:
        # Then it is there, as a whole
        assert digest(source) == (sha256(CSV).hexdigest(), len(CSV))
        assert len(list(rows(source))) == 5000
    else:
        # Then the reader is told that it can try again
        with pytest.raises(Unavailable, match="breaks off"):
            list(rows(source))


def test_an_object_that_was_replaced_is_not_read_half_and_half(store: Store) -> None:
    # Given a source
    source = source_of(put(store, "a.csv", CSV), store=store)
    # When another object comes to lie there
    put(store, "a.csv", b"a,b\n3,4")
    # Then the one that was meant is not read from it
    with pytest.raises(Unavailable, match="PreconditionFailed"):
        list(rows(source))


# ------------------------------------------------------------------------------------------------------------- extras


def test_what_parquet_needs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(GOOD["a.parquet"])
    code = f"""
from farm.dataset.reading import rows, source_of
from farm.errors import Unavailable
try:
    list(rows(source_of({str(path)!r})))
except Unavailable as error:
    print(error.message, "|", error.hint)
"""
    found = without(("pyarrow",), code)
    assert found.stdout == "Parquet needs pyarrow | pip install 'latent-farm[dataset]'\n", found.stderr


def test_reading_is_ready_in_a_blink() -> None:
    slow = {"pyarrow", "dynamicprompts", "boto3", "torch", "numpy"}
    code = f"import sys, farm.dataset.reading, farm.dataset.prompts; print({slow} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
