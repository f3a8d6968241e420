"""What becomes of each mutant? Runs in a copy of the farm: `python -m tests.mutants.inside NAME…`, one line for each.

Several mutants of the scripts share a process, for most of a test's time is the start of Python. One of Python itself
needs a process of its own.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from tests.mutants.tables import named

LIMIT_S = 240
"""Longest time of one test. A test that hangs has noticed, too."""
BROKEN = "user_script:"
"""Where Lua itself failed. Such a mutant breaks no rule, it only breaks. Source: the words of Valkey's EVAL errors."""


def run(tests: Sequence[str]) -> tuple[int, str]:
    """The exit status and output of `tests`, up to the first that fails."""
    options = ["-x", "-q", "--tb=short", f"--timeout={LIMIT_S}", "-p", "no:cacheprovider"]
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = pytest.main([*options, *tests])
    stand_here()
    return int(status), said.getvalue()


def stand_here() -> None:
    """Raises where the farm under test is not the copy: a mutant that is not imported proves nothing."""
    for name in ("farm", "tests", "workers"):
        if package := sys.modules.get(name):
            assert package.__file__
            assert Path(package.__file__).is_relative_to(Path.cwd()), f"{package.__file__} is not the copy's"


def judge(name: str) -> tuple[str, str]:
    """What becomes of the mutant, and why."""
    mutant = named(name)
    path, began = Path(mutant.file), time.monotonic()
    source = path.read_text("utf-8")
    if source.count(mutant.old) != 1:
        return "not applicable", f"{mutant.file} has its old text {source.count(mutant.old)} times"
    path.write_text(source.replace(mutant.old, mutant.new), "utf-8")
    if scripts := sys.modules.get("farm.scripts"):
        scripts._source.cache_clear()
    status, output = run(mutant.tests)
    path.write_text(source, "utf-8")
    took = f"{time.monotonic() - began:.1f} s"
    if status == 0:
        return "SURVIVED", took
    failed = re.search(r"^(?:FAILED|ERROR) \S*?::(\S+)", output, re.MULTILINE)
    if status != 1 or not failed or BROKEN in output:
        return "broken", f"pytest ended with {status}:\n{output[-2000:]}"
    return "killed", f"{took} by {failed[1]}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps([name, *judge(name)]), flush=True)
    os._exit(0)  # a thread that a failed test has left must not hold this process
