"""Old and new builds share one farm while its workers are replaced one by one: nothing is lost or failed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farm.handle import JobHandle
from farm.image import pixels_sha256
from tests.chaos import stages
from tests.chaos.system import SLOTS, System, system
from tests.e2e.rig import ROOT, until

NAMES = ("w0", "w1", "w2")
CHAIN: dict[str, Any] = {
    "reuse": False,
    "stages": [{"kind": kind, "checkpoint": stages.CHECKPOINT} for kind in stages.KINDS],
}
SUBMIT = """
import json, sys
from farm import Farm
chain, first, count = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with Farm() as farm:
    print(json.dumps([farm.render(chain=chain, seed=first + i).id for i in range(count)]))
"""


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables that make a process run a newer build, whose records have another shape and version 2."""
    root = tmp_path_factory.mktemp("newer")
    for name in ("farm", "workers"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    read = 'json.loads(claim.payload)["recipes"]'
    payload = '{{{kept}"recipes":[{",".join(self.texts[: index + 1])}],"v":1}}'
    reads = '(lambda found: found.get("steps") or found["recipes"])(json.loads(claim.payload))'
    changes = {
        "farm/records.py": [("SCHEMA = 1\n", "SCHEMA = 2\n"), ("KNOWN_SCHEMAS = (1,)", "KNOWN_SCHEMAS = (1, 2)")],
        "farm/job.py": [(payload, payload.replace("recipes", "steps").replace('"v":1', '"v":2'))],
        "workers/making.py": [(read, reads)],
        "workers/result.py": [(read, reads)],
    }
    for path, pairs in changes.items():
        text = (root / path).read_text()
        for old, new in pairs:
            assert text.count(old) == 1, (path, old)
            text = text.replace(old, new)
        (root / path).write_text(text)
    return {"root": str(root), "PYTHONSAFEPATH": "1"}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[System]:
    with system(tmp_path / "farm", small_disk=False) as found:
        yield found


def environment(here: System, newer: dict[str, str]) -> dict[str, str]:
    path = os.pathsep.join([newer["root"], here.env["PYTHONPATH"]])
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": newer["PYTHONSAFEPATH"]}


def start(here: System, name: str, **env: str) -> None:
    here.supervise(name, SLOTS, **env)
    ledger = here.judge.ledger
    until(lambda: sum(one.worker.startswith(f"{name}-") for one in ledger.workers()) == len(SLOTS), what=name)


def submit_newer(here: System, newer: dict[str, str], first: int, count: int) -> list[JobHandle]:
    """Jobs that a producer of the newer build submits."""
    env = {**os.environ, **here.env, **environment(here, newer), "FARM_DATA": str(here.folder)}
    command = [sys.executable, "-c", SUBMIT, json.dumps(CHAIN), str(first), str(count)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [JobHandle(here.judge, job) for job in json.loads(done.stdout)]


def pixels(job: JobHandle) -> str:
    (result,) = job.wait(120).results
    return pixels_sha256(job.farm.store.get_blob(result.sha256, max_bytes=1 << 20))


def test_workers_are_replaced_one_by_one_by_a_build_with_newer_records(here: System, newer: dict[str, str]) -> None:
    # Given a farm of old workers, and what they make
    for name in NAMES:
        start(here, name)
    golden = {seed: pixels(here.judge.render(chain=CHAIN, seed=seed)) for seed in range(10)}
    # When an old and a newer producer submit, while no worker is new
    old = {seed: [here.judge.render(chain=CHAIN, seed=seed) for _ in range(6)] for seed in golden}
    fresh = submit_newer(here, newer, 0, 10)
    until(lambda: all(job.state == "done" for job in old[0]), what="the first old jobs")
    # Then the newer jobs wait, and nobody has touched them
    assert {job.state for job in fresh} == {"queued"}
    # When the workers are replaced one by one, and more is submitted meanwhile
    for number, name in enumerate(NAMES):
        here.supervisors[name].terminate()
        assert here.supervisors[name].wait(60) == 0
        start(here, f"new{number}", **environment(here, newer))
        fresh += submit_newer(here, newer, 0, 10)
        for seed, jobs in old.items():
            jobs.append(here.judge.render(chain=CHAIN, seed=seed))
    # Then every job of either build is done, with the same pixels, and nothing was charged
    assert [[pixels(job) for job in jobs] for jobs in old.values()] == [[golden[seed]] * 9 for seed in golden]
    assert [pixels(job) for job in fresh] == list(golden.values()) * 4
    counted = here.judge.ledger.stats()
    assert [counted.get(name, 0) for name in ("crashes", "lapses", "quarantined", "stale_commits")] == [0] * 4


def test_the_newer_build_is_what_runs(newer: dict[str, str]) -> None:
    code = "import farm.records, workers.worker; print(farm.records.SCHEMA, workers.worker.__file__)"
    env = {**os.environ, "PYTHONPATH": newer["root"], "PYTHONSAFEPATH": newer["PYTHONSAFEPATH"]}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", f"{newer['root']}/workers/worker.py"]
