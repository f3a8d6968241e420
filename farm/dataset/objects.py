"""Which rows does JSON hold, as a list of objects or as one object a line?"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from math import isfinite
from typing import Any

from farm.dataset.lines import (
    CELL_CHARS,
    MAX_COLUMNS,
    NAME_CHARS,
    ROW_CHARS,
    SKIPPED_CHARS,
    TOO_LONG,
    Lines,
    TooLong,
    unfit,
)
from farm.dataset.sources import Source, bad_file, unpacked
from farm.dataset.spec import Row, RowError

MAX_DEPTH = 32
"""How deep lists and objects may lie within each other in a cell."""
BLOCK_CHARS = 2**16
"""How much of a list is read at once."""
TOO_DEEP = f"more than {MAX_DEPTH} lists and objects lie within each other"


def line_rows(source: Source) -> Iterator[Row | RowError]:
    """One object a line; blank lines are none."""
    decoder = _Decoder()
    with unpacked(source) as data:
        lines = Lines(data, source.name)
        number = 0
        while True:
            lines.begin()
            try:
                text = next(lines)
            except StopIteration:
                return
            except TooLong:
                number += 1
                yield RowError(number, "", "bad_row", f"line {lines.number}: {TOO_LONG}")
                continue
            if text.isspace():
                lines.blank()
                continue
            lines.filled()
            number += 1
            where = f"line {lines.number}: "
            try:
                found = decoder.line(text)
            except RecursionError:
                yield RowError(number, "", "bad_row", where + TOO_DEEP)
            except ValueError as error:
                yield RowError(number, "", "bad_row", f"{where}not JSON: {_words(error)}")
            else:
                yield _row(number, found, where, decoder.faults, lines.odd or "\\u" in text)


def list_rows(source: Source) -> Iterator[Row | RowError]:
    """The objects of one list. What is no JSON ends the reading: where the next object begins cannot be known."""
    decoder = _Decoder()
    with unpacked(source) as data:
        window = _Window(data, source.name)
        if window.sign() != "[":
            hint = "begin it with [, or name it .jsonl where it has one object a line"
            raise bad_file(source.name, "this is no list of objects", hint)
        window.step()
        number = 0
        if window.sign() == "]":
            return
        while True:
            number += 1
            found = window.value(decoder, number)
            yield _row(number, found, f"object {number}: ", decoder.faults, True)
            sign = window.sign()
            if sign not in {",", "]"}:
                raise bad_file(source.name, f"object {number} is not followed by a comma or the list's end")
            window.step()
            if sign == "]":
                break
        if window.sign():
            raise bad_file(source.name, "something stands behind the list")


class _Decoder:
    """Python's JSON, strictly: what no JSON should have is told in `faults`, and the reading goes on behind it."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float
        )

    def line(self, text: str) -> Any:
        """What a line holds."""
        self.faults.clear()
        return self._decoder.decode(text)

    def value(self, text: str, start: int) -> tuple[Any, int]:
        """What begins at `start`, and where it ends."""
        self.faults.clear()
        return self._decoder.raw_decode(text, start)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            self.faults.append("a key is given twice")
        return found

    def _constant(self, name: str) -> None:
        self.faults.append(f"{name} is not a number that JSON has")

    def _float(self, text: str) -> float:
        found = float(text)
        if not isfinite(found):
            self.faults.append(f"{text[:20]} is too large a number")
        return found


class _Window:
    """The part of a text that is looked at."""

    def __init__(self, data: io.BufferedReader[Any], name: str) -> None:
        self._file = io.TextIOWrapper(data, "utf-8", errors="surrogateescape")
        self._name, self._text, self._at, self._ended = name, "", 0, False

    def sign(self) -> str:
        """The next character that is not blank, "" at the end."""
        passed = 0
        while True:
            rest = self._text[self._at : self._at + 1]
            if rest and not rest.isspace():
                return rest
            found = len(self._text) - len(self._text[self._at :].lstrip())
            passed, self._at = passed + found - self._at, found
            if passed > SKIPPED_CHARS:
                raise bad_file(self._name, f"more than {SKIPPED_CHARS // 2**20} Mi blanks in a row")
            if self._at == len(self._text):
                if self._ended:
                    return ""
                self._more(BLOCK_CHARS)

    def step(self) -> None:
        """Past that character."""
        self._at += 1

    def value(self, decoder: _Decoder, number: int) -> Any:
        """The value that comes next, and past it."""
        self.sign()
        while True:
            try:
                found, end = decoder.value(self._text, self._at)
                # A number that ends where the text does may have more digits to come.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return found
            except RecursionError:
                raise bad_file(self._name, f"object {number}: {TOO_DEEP}") from None
            except ValueError as error:
                if self._ended or not isinstance(error, json.JSONDecodeError):
                    raise bad_file(self._name, f"object {number}: not JSON: {_words(error)}") from None
            held = len(self._text) - self._at
            if held > ROW_CHARS:
                raise bad_file(self._name, f"object {number} is not JSON, or {TOO_LONG}")
            self._more(max(BLOCK_CHARS, held))

    def _more(self, chars: int) -> None:
        block = self._file.read(chars)
        self._text, self._at, self._ended = self._text[self._at :] + block, 0, not block


def _words(error: ValueError) -> str:
    """What was wrong, without the place in what happened to be held of the text."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg[:1].lower() + error.msg[1:]
    return "a number of too many digits"


def _row(number: int, found: Any, where: str, faults: list[str], doubtful: bool) -> Row | RowError:
    """The row that an object means; nulls are left out. `doubtful`: its texts may hold what is no text."""
    if not isinstance(found, dict):
        return RowError(number, "", "bad_row", f'{where}an object is needed, as in {{"prompt": "a cat"}}')
    if faults:
        return RowError(number, "", "bad_row", where + faults[0])
    if len(found) > MAX_COLUMNS:
        return RowError(number, "", "bad_row", f"{where}{len(found)} keys, at most {MAX_COLUMNS} are taken")
    for name, value in found.items():
        if not name or len(name) > NAME_CHARS or (doubtful and unfit(name)):
            told = f"{where}a key is empty, longer than {NAME_CHARS} characters, or no text"
            return RowError(number, "", "bad_row", told)
        kind = type(value)
        if kind is str:
            wrong = unfit(value) if doubtful or len(value) > CELL_CHARS else None
        else:
            wrong = unfit_tree(value) if kind is dict or kind is list else None
        if wrong:
            return RowError(number, name, wrong[0], where + wrong[1])
    if None in found.values():
        found = {name: value for name, value in found.items() if value is not None}
    return Row(number, found)


def unfit_tree(tree: Any) -> tuple[str, str] | None:
    """The code and the words for a list or an object that no cell may hold, or None."""
    level = [tree]
    for _ in range(MAX_DEPTH):
        inner = [value for outer in level for value in (outer.values() if isinstance(outer, dict) else outer)]
        keys = [key for outer in level if isinstance(outer, dict) for key in outer]
        for text in (*keys, *inner):
            if isinstance(text, str) and (wrong := unfit(text)):
                return wrong
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            break
    else:
        return "bad_cell", TOO_DEEP
    return unfit(json.dumps(tree, ensure_ascii=False))
