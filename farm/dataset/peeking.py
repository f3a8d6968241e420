"""Which are the first rows of a file that a stranger sent?

They are read by a process of their own, with bounds on memory and time: whatever is wrong with the file, no more than
that process ends of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from farm.dataset.reading import header, rows
from farm.dataset.sources import bad_file, source_of
from farm.dataset.spec import Row, RowError
from farm.errors import FarmError, InvalidJob, Unavailable

ROWS = 20
"""So many rows are looked at."""
MOST_CHARS = 16 << 20
"""Characters of all of them together: what comes behind is not looked at."""
MEMORY_BYTES = 4 << 30
"""Address space of the process. Source: pyarrow alone reserves some 1 GiB; a row group may unpack to as much."""
TIME_S = 20.0
"""How long it may take, seconds; so much of the processor, too."""


@dataclass(frozen=True)
class Head:
    """What a file begins with: its columns, and the first rows or why they cannot be taken."""

    columns: tuple[str, ...]
    rows: tuple[Row | RowError, ...]

    def write(self) -> str:
        """The same as JSON."""
        return json.dumps({"columns": self.columns, "rows": [asdict(row) for row in self.rows]})

    @classmethod
    def read(cls, data: str | bytes) -> Head:
        """What `write` wrote."""
        told = json.loads(data)
        found = (RowError(**one) if "code" in one else Row(one["number"], one["values"]) for one in told["rows"])
        return cls(tuple(told["columns"]), tuple(found))


def peek(path: Path) -> Head:
    """The first rows of a file, whose name tells its format.

    Raises:
        InvalidJob: (`bad_file`) it is not what its name tells, or reading its first rows takes too much.
        Unavailable: a package is missing.
    """
    # What the farm's secrets are is nothing that this process needs.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FARM_", "AWS_"))}
    # Threads and their heaps would take of what it may have, more the more processors there are.
    env |= {"OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    words = [sys.executable, "-m", "farm.dataset.peeking", str(path)]
    try:
        ended = subprocess.run(words, env=env, capture_output=True, timeout=TIME_S, check=False)
        told = json.loads(ended.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        hint = "give it smaller row groups, or save it as CSV" if path.suffix == ".parquet" else "is it a file of rows?"
        raise bad_file(path.name, "its first rows take too much time or memory to read", hint) from None
    if "error" in told:
        error = told["error"]
        kind = InvalidJob if error.pop("wrong") else Unavailable
        raise kind(error["message"], code=error["code"], hint=error["hint"])
    return Head.read(ended.stdout)


def look(path: Path) -> Head:
    """The same, in this process. Raises as `peek`."""
    source = source_of(path)
    columns, found, chars = header(source), list[Row | RowError](), 0
    for row in islice(rows(source), ROWS):
        chars += len(json.dumps(asdict(row)))
        if chars > MOST_CHARS:
            break
        found.append(row)
    return Head(tuple(columns), tuple(found))


def main(words: Sequence[str] | None = None) -> None:
    """The process: a path; on stdout what is there, or what is wrong with it."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (int(TIME_S), int(TIME_S)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    (path,) = sys.argv[1:] if words is None else words
    try:
        print(look(Path(path)).write())
    except FarmError as error:
        told: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
        print(json.dumps({"error": {**told, "wrong": isinstance(error, InvalidJob)}}))


if __name__ == "__main__":
    main()
