"""How fast is a large file planned, fed and made into shards, and what does that take? `python -m tests.bench.datasets`

The stage is faked: a process claims fifty samples at once and commits pictures of 64 × 64 that lie in the store
already, so what is measured is planning, feeding, the ledger, and the making of shards. `--rows 1000000`: a million.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from farm import models
from farm.catalog import Catalog
from farm.client import Farm
from farm.dataset.desk import Datasets
from farm.dataset.folder import Folder
from farm.dataset.moulds import Moulds
from farm.servers import Servers, environment
from farm.settings import Settings
from tests.conftest import TINY
from tests.e2e.rig import ROOT

FARM = str(Path(sys.executable).with_name("farm"))
GOALS = {"plan": 20_000, "feed": 500, "feeder": 300, "valkey": 500}
"""Rows a second, samples a second, MB, MB: what is aimed at on two cores."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.datasets", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the file, a sample each")
    parser.add_argument("--shard-samples", type=int, default=1000)
    given = parser.parse_args(argv)
    console = Console()
    console.print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder:
        console.print(table_of(measure(Path(folder), given.rows, given.shard_samples), given.rows))


def table_of(found: dict[str, float], rows: int) -> Table:
    """The figures beside what is aimed at."""
    table = Table(title=f"{rows:,} rows, a sample each, the stage faked", title_justify="left")
    for title in ("", "", "goal"):
        table.add_column(title, justify="right" if title else "left")
    table.add_row("rows planned a second", f"{found['plan']:,.0f}", f">= {GOALS['plan']:,}")
    table.add_row("most memory of the planner, MB", f"{found['planner']:,.0f}", "")
    table.add_row("samples fed and committed a second", f"{found['alone']:,.0f}", f">= {GOALS['feed']:,}")
    table.add_row("... and read, measured and made into shards", f"{found['feed']:,.0f}", "")
    table.add_row("most memory of the feeder, MB", f"{found['feeder']:,.0f}", f"< {GOALS['feeder']:,}")
    table.add_row("most memory of Valkey, MB", f"{found['valkey']:,.0f}", f"< {GOALS['valkey']:,}")
    table.add_row("CPU of the feeder, ms a sample", f"{found['feeder_ms']:.2f}", "")
    return table


def measure(folder: Path, rows: int, shard_samples: int) -> dict[str, float]:
    """The figures: rows and samples a second, memory in MB (10^6 bytes)."""
    os.environ["FARM_CATALOG"] = str(TINY)
    from workers.demo import tiny

    weights = folder / "models"
    weights.mkdir()
    catalog = Catalog.load(Settings(models=weights))
    tiny.build("tiny", weights / "tiny")
    models.record(catalog, catalog.checkpoints["tiny"])
    with Servers(Settings.load(data=folder / "data", models=weights)) as servers:
        env = {**os.environ, **environment(servers.settings), "FARM_MODELS": str(weights), "OMP_NUM_THREADS": "1"}
        found = _planned(folder, env, rows, shard_samples)
        found |= _fed_alone(servers.settings, env, min(rows, 20_000))
        return found | _fed(servers.settings, env, rows)


def _planned(folder: Path, env: dict[str, str], rows: int, shard_samples: int) -> dict[str, float]:
    path = folder / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "label"])
        writer.writerows([f"a picture of thing number {row}, oil on canvas", f"c{row % 100}"] for row in range(rows))
    (folder / "chain.json").write_text('{"stages": [{"kind": "text2img", "checkpoint": "tiny"}]}')
    command = [FARM, "dataset", "plan", str(path), "--name", "bench"]
    command += ["--chain", str(folder / "chain.json"), "--shard-samples", str(shard_samples)]
    began = time.perf_counter()
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL)
    peak, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        with suppress(psutil.Error):  # it ended meanwhile
            peak = max(peak, watched.memory_info().rss)
        time.sleep(0.1)
    took = time.perf_counter() - began
    assert process.returncode == 0
    return {"plan": rows / took, "planner": peak / 1e6}


def _fed_alone(settings: Settings, env: dict[str, str], samples: int) -> dict[str, float]:
    """How many samples a second become jobs, are committed and are forgotten, without pictures being read."""
    farm = Farm(settings)
    folder = Folder(farm.store, "bench")
    moulds, size = Moulds(farm, folder.plan().spec), folder.plan().spec.shard_samples
    stage = subprocess.Popen([sys.executable, "-m", "tests.bench.fake_stage"], env=env, cwd=ROOT)
    done, began, before = 0, time.perf_counter(), list[str]()
    try:
        for number in range(-(-samples // size)):
            jobs = [moulds.job(one, -1, 50, 3600.0) for one in folder.samples(number)]
            ids = [handle.id for handle in farm.submit(jobs)]
            done += _forgotten(farm, before)
            before = ids
        done += _forgotten(farm, before)
        took = time.perf_counter() - began
    finally:
        stage.send_signal(signal.SIGTERM)
        stage.wait(60)
        farm.close()
    return {"alone": done / took}


def _forgotten(farm: Farm, jobs: list[str]) -> int:
    """How many jobs there were, once all are done and forgotten."""
    while farm.ledger.forget(jobs):
        time.sleep(0.05)
    return len(jobs)


def _fed(settings: Settings, env: dict[str, str], rows: int) -> dict[str, float]:
    farm = Farm(settings)
    desk, parent = Datasets(farm), str(os.getpid())
    stage = subprocess.Popen([sys.executable, "-m", "tests.bench.fake_stage"], env=env, cwd=ROOT)
    desk.start("bench")
    began = time.perf_counter()
    feeder = subprocess.Popen([sys.executable, "-m", "farm.dataset.serve", "--parent", parent], env=env, cwd=ROOT)
    peak, watched = {"feeder": 0, "valkey": 0}, psutil.Process(feeder.pid)
    (valkey,) = [one for one in psutil.Process().children(recursive=True) if "valkey" in one.name()]
    try:
        while (status := desk.status("bench")).state != "done":
            assert feeder.poll() is None
            assert stage.poll() is None
            for name, process in (("feeder", watched), ("valkey", valkey)):
                peak[name] = max(peak[name], process.memory_info().rss)
            time.sleep(0.5)
        took = time.perf_counter() - began
        used = watched.cpu_times()
        assert (status.done, status.failed) == (rows, 0), status
    finally:
        for process in (feeder, stage):
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        farm.close()
    return {
        "feed": rows / took,
        "feeder": peak["feeder"] / 1e6,
        "valkey": peak["valkey"] / 1e6,
        "feeder_ms": (used.user + used.system) / rows * 1000,
    }


if __name__ == "__main__":
    main()
