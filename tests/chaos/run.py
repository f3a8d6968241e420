"""How does one run go: start, warm up, suffer, come to rest, be judged?"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from farm import models
from tests.chaos import checker, history
from tests.chaos.final import at_rest, final
from tests.chaos.generator import Producer, Watcher, real_chains
from tests.chaos.nemesis import Nemesis
from tests.chaos.plan import Plan
from tests.chaos.system import LEASE_S, NAMES, SLOTS, System, system
from tests.e2e.rig import ALONE, until

REST_S = 180.0
"""Longest time from the last fault until everything is at rest, seconds: three tries of the store's slowest timeout."""
REAL_NAME = "sup-real"
"""The supervisor of the one worker with torch; its child is killed as any other."""
Say = Callable[[str], None]


def run(plan: Plan, folder: Path, say: Say) -> dict[str, Any]:
    """Carries out a plan on a fresh farm in `folder`, which keeps history, final state and logs: the final state."""
    shutil.rmtree(folder, ignore_errors=True)
    with system(folder) as farm:
        if not farm.disk:
            say("no disk may be mounted here: the full disk is left out")
        watcher = Watcher(farm)
        watcher.start()
        try:
            for name in NAMES:
                farm.supervise(name)
            if plan.real:
                for name in ("tiny", "tiny-x2", "tiny-x4"):
                    models.pull(farm.judge.catalog, name)
                farm.supervise(REAL_NAME, ALONE)
            await_workers(farm)
            nemesis = Nemesis(farm, plan)
            producer = Producer(farm, plan, real_chains(farm, plan.real), nemesis.progress)
            producer.start()
            nemesis.start(producer)
            shown = 0.0
            while nemesis.busy:
                time.sleep(0.2)
                if time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    ended = sum(job in watcher.ended for job in list(producer.acked))
                    say(f"{nemesis.done}/{plan.total} faults, {ended}/{len(producer.acked)} chains ended")
            nemesis.join()
            producer.join()
            say(f"all faults done; {len(producer.acked)} chains submitted; waiting for rest")
            limit = time.monotonic() + REST_S
            while time.monotonic() < limit:
                if all(job in watcher.ended for job in producer.acked) and not any(at_rest(farm).values()):
                    break
                time.sleep(0.2)
            left = final(farm)
        finally:
            watcher.stop()
        left["statuses"] = farm.stop()
    (folder / "final.json").write_text(json.dumps(left))
    return left


def await_workers(farm: System) -> None:
    """Returns when every child has registered."""
    slots = len(NAMES) * len(SLOTS) + (REAL_NAME in farm.supervisors)
    until(lambda: len(farm.judge.ledger.workers()) >= slots, 90, f"{slots} workers")


def judge(folder: Path) -> dict[str, list[str]]:
    """The violations of the run in `folder`, read from its files alone."""
    left = json.loads((folder / "final.json").read_text())
    return checker.check(history.read(folder / "history"), left, LEASE_S)
