"""Which mutants do the tests notice? `python -m tests.mutants [lua|rules|api|NAME…]` ends with 0 where all are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.mutants import Mutant
from tests.mutants.tables import MUTANTS, TABLES

ROOT = Path(__file__).parents[2]
AT_ONCE = 2


@contextmanager
def copied(source: Path) -> Iterator[Path]:
    """A folder with all that the tests in `source` need."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name in ("farm", "workers", "tests"):
            shutil.copytree(source / name, Path(folder) / name)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy2(source / name, folder)
        yield Path(folder)


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """`python -m WORDS` on the farm in `folder`."""
    env = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", *words]
    return subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def by_file(mutants: Sequence[Mutant]) -> Iterable[list[str]]:
    """The tests of `mutants`, those of one file together."""
    found: dict[str, dict[str, None]] = {}
    for test in (test for mutant in mutants for test in mutant.tests):
        found.setdefault(test.partition("::")[0], {})[test] = None
    return map(list, found.values())


def passes(tests: Sequence[str], whole: Path) -> bool:
    """Whether `tests` pass without a mutant; says which do not."""
    with start(whole, "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *tests) as process:
        output, _ = process.communicate()
    if process.returncode:
        print(f"{output}\nthese tests fail without a mutant", flush=True)
    return not process.returncode


def judge(mutants: Sequence[Mutant], whole: Path) -> Counter[str]:
    """How many of `mutants` came to which end; each is printed when it is known."""
    counted, left, said = Counter[str](), [mutant.name for mutant in mutants], ""
    with copied(whole) as folder, start(folder, "tests.mutants.inside", *left) as process:
        assert process.stdout
        for line in process.stdout:
            if not line.startswith('["'):
                said += line
                continue
            name, what, why = json.loads(line)
            left.remove(name)
            counted[what] += 1
            print(f"{what:<14} {name:<40} {why}", flush=True)
    for name in left:
        counted["broken"] += 1
        print(f"{'broken':<14} {name:<40} the tests' process ended with {process.returncode}:\n{said[-2000:]}")
    return counted


def main(asked: Sequence[str]) -> int:
    """Prints what becomes of each mutant; 0 where all are killed, else 1."""
    if unknown := set(asked) - set(TABLES) - {mutant.name for mutant in MUTANTS}:
        print("no such mutant:", *unknown)
        return 1
    chosen = [one for name in asked for one in TABLES.get(name, [m for m in MUTANTS if m.name == name])] or MUTANTS
    began = time.monotonic()
    with copied(ROOT) as whole:
        scripts = [mutant for mutant in chosen if mutant.file.endswith(".lua")]
        groups = [scripts[at::AT_ONCE] for at in range(AT_ONCE) if scripts[at:]]
        groups += [[mutant] for mutant in chosen if mutant not in scripts]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            if not all(pool.map(lambda tests: passes(tests, whole), by_file(chosen))):
                return 1
            print(f"the tests pass without a mutant ({time.monotonic() - began:.0f} s)", flush=True)
            counted = sum(pool.map(lambda group: judge(group, whole), groups), Counter[str]())
    told = ", ".join(f"{count} {what}" for what, count in counted.items())
    print(f"{len(chosen)} mutants: {told} ({time.monotonic() - began:.0f} s)")
    return int(counted["killed"] < len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
