"""First figures, side by side in one run: `make bench`.

Absolute numbers depend on the machine; read the ratios. Arms are interleaved, medians of `--repeats`; the load
average at the start is printed, because a busy machine makes them worthless.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import api, chains, datasets, overhead, page
from tests.conftest import TINY
from tests.ui.browser import find

FARM = str(Path(sys.executable).with_name("farm"))


def start_ms(command: list[str], times: int = 9) -> float:
    """The median wall time of `command` in milliseconds."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append((time.perf_counter() - began) * 1000)
    return statistics.median(found)


def interleaved(arms: dict[str, Callable[[], dict[str, float]]], repeats: int) -> dict[str, dict[str, float]]:
    """The median of each figure of each arm, the arms taking turns."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            seen[name].append(arm())
    return {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in seen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chains", type=int, default=12, help="four-stage chains of each family per repeat")
    parser.add_argument("--empty-chains", type=int, default=100, help="four-stage chains of no-op stages per repeat")
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the file that becomes a dataset")
    given = parser.parse_args()
    console = Console()
    console.print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {given.repeats} repeats")
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder:
        for family, catalog in (("tiny", TINY), ("demo", None)):
            with chains.bench(Path(folder) / family, given.chains, catalog) as arms:
                found = interleaved(arms, given.repeats)
            table = Table(title=f"{given.chains} four-stage chains of the {family} family", title_justify="left")
            for title in ("", "chains/s", "s a chain", "against the script"):
                table.add_column(title)
            script = found["plain script, one thread"]["chains_per_s"]
            for name, figures in found.items():
                rate = figures["chains_per_s"]
                table.add_row(name, f"{rate:.2f}", f"{1 / rate:.2f}", f"{rate / script:.2f}×")
            console.print(table)
        with overhead.bench(Path(folder) / "overhead", given.empty_chains) as arms:
            found = interleaved(arms, given.repeats)
        table = Table(
            title=f"{given.empty_chains} chains of four no-op stages, one worker process", title_justify="left"
        )
        for title in ("per stage", "wall ms", "CPU ms", "wall against Celery"):
            table.add_column(title)
        raw = found["raw Celery chain"]["wall_ms"]
        for name, figures in found.items():
            ratio = f"{figures['wall_ms'] / raw:.2f}×"
            table.add_row(name, f"{figures['wall_ms']:.2f}", f"{figures['cpu_ms']:.2f}", ratio)
        console.print(table)
        (Path(folder) / "api").mkdir()
        console.print(api.table_of(Path(folder) / "api"))
        (Path(folder) / "page").mkdir()
        if find() is None:
            console.print("no Chromium here: the dashboard is not measured; `python -m tests.ui.browser` installs one")
        else:
            console.print(page.table_of(Path(folder) / "page"))
    table = Table(title="start, median of 9", title_justify="left")
    for title in ("command", "ms"):
        table.add_column(title)
    for command in ([sys.executable, "-c", "pass"], [FARM, "--help"], [FARM, "chain", "ls"]):
        table.add_row(" ".join([Path(command[0]).name, *command[1:]]), f"{start_ms(command):.0f}")
    console.print(table)
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder:
        console.print(datasets.table_of(datasets.measure(Path(folder), given.rows, 1000), given.rows))


if __name__ == "__main__":
    main()
