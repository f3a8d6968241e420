"""What are the lines of a file, when one of them may be as long as the file?"""

from __future__ import annotations

import io
from typing import Any

from farm.dataset.sources import AS_UTF8, bad_file

CELL_CHARS = 2**16
"""Longest cell, characters: thirty times the longest prompt."""
ROW_CHARS = 2**20
"""Longest row, characters. One that is longer is passed over without ever being held."""
SKIPPED_CHARS = 64 * 2**20
"""Longest row that is passed over: beyond it this is no file of rows."""
MAX_COLUMNS, NAME_CHARS = 1000, 200
"""Most columns of a row, and the longest name of one, characters."""
TOO_LONG = f"longer than {ROW_CHARS:,} characters"
BLANK_LINES = 1_000_000
"""Most blank lines and comments between two rows: beyond it this is no file of rows."""


class TooLong(Exception):
    """Raised when a row has more than `ROW_CHARS`; the next line is its rest where it has several."""


class Lines:
    """The lines of a file with their ends (LF, CR LF, CR), decoded; bytes that are no UTF-8 come as half surrogates.

    `number` is the last line's, from 1. `begin` tells that a new row begins; from then on `chars` counts its
    characters, and `odd` tells that it has a NUL or something that is no UTF-8.
    """

    def __init__(self, data: io.BufferedReader[Any], name: str) -> None:
        text = io.TextIOWrapper(data, "utf-8", errors="surrogateescape", newline="")
        self._readline, self._name = text.readline, name
        self.number = self.chars = self._blank = 0
        self.odd = self.ended = False

    def begin(self) -> None:
        self.chars, self.odd = 0, False

    def blank(self) -> None:
        """The row that was begun is none."""
        self._blank += 1
        if self._blank > BLANK_LINES:
            raise bad_file(self._name, f"line {self.number}: more than {BLANK_LINES:,} lines without a row")

    def filled(self) -> None:
        """The row that was begun is one."""
        self._blank = 0

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._readline(ROW_CHARS + 1)
        if not line:
            self.ended = True
            raise StopIteration
        self.number += 1
        self.chars += len(line)
        if self.chars > ROW_CHARS:
            if len(line) > ROW_CHARS:
                self._skip(line)
            raise TooLong
        if "\0" in line or not (line.isascii() or is_unicode(line)):
            self.odd = True
        return line

    def _skip(self, line: str) -> None:
        """Reads on to the end of a line."""
        skipped = 0
        while line and line[-1] not in "\r\n":
            skipped += len(line)
            if skipped > SKIPPED_CHARS:
                raise bad_file(self._name, f"line {self.number} is longer than {SKIPPED_CHARS // 2**20} Mi characters")
            line = self._readline(ROW_CHARS)


def is_unicode(text: str) -> bool:
    """Whether a text has no half surrogate pair, neither one of its own nor one that stands for a byte."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unfit(cell: str) -> tuple[str, str] | None:
    """The code and the words for a text that no cell may have, or None."""
    if len(cell) > CELL_CHARS:
        return "bad_cell", f"{len(cell):,} characters, at most {CELL_CHARS:,} are taken"
    if "\0" in cell:
        return "bad_cell", "it holds a NUL character: take it out"
    if not (cell.isascii() or is_unicode(cell)):
        return "bad_encoding", f"this is no Unicode text: {AS_UTF8}"
    return None
