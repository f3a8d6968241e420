"""Stages that kill, hang or starve their workers, and a worker on which everything fails: who pays, and who is told?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from farm import models
from farm.client import Farm
from farm.handle import JobHandle
from farm.image import pixels_sha256
from farm.stage import kinds
from tests.e2e.rig import ROOT, Rig, install, until

STAGES = '''
"""A stage without torch that does its worker harm as it is told, and notes each attempt."""

import ctypes
import os
import threading
from pathlib import Path
from typing import ClassVar, Literal

from PIL import Image

from farm.errors import Failure, StageFailed
from farm.stage import Medium, Stage


class Harm(Stage):
    """Give a picture of the seed's colour, after the harm that `how` names."""

    kind: Literal["harm"] = "harm"
    gives: ClassVar = frozenset({Medium.IMAGE})
    needs_torch: ClassVar = False
    how: str = ""
    notes: str = ""

    def load(self, checkpoint, device):
        return None

    def run(self, pipe, batch, report):
        if self.notes:
            with Path(self.notes).open("a") as notes:
                notes.write(f"{os.getpid()} {batch.frugal}\\n")
        report.step(1, 2)
        if os.environ.get("BROKEN"):
            raise RuntimeError("this worker is broken")
        if self.how:
            getattr(self, self.how)(batch)
        report.step(2, 2)
        return [Image.new("RGB", batch.size, (seed % 256, 7, 9)) for seed in batch.generators]

    def segfault(self, batch):
        ctypes.string_at(0)

    def exit(self, batch):
        os._exit(3)

    def hang(self, batch):
        # Other threads of the process go on all the while.
        spinning = threading.Thread(target=lambda: [threading.Event().wait(0.01) for _ in range(10000)], daemon=True)
        spinning.start()
        threading.Event().wait()

    def starve(self, batch):
        if not batch.frugal:
            self.starve_always(batch)

    def starve_always(self, batch):
        raise StageFailed(f"{batch.size} does not fit", failure=Failure.OOM, code="gpu_oom")

    def stick(self, batch):
        if len(Path(self.notes).read_text().splitlines()) == 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
'''
LIMIT_S = 2.0


@pytest.fixture(scope="module")
def farm(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A client that knows the harmful stage; the tests start the workers."""
    added = install(tmp_path_factory.mktemp("harm"), STAGES, ["harm"])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(added["PYTHONPATH"])
        kinds.cache_clear()
        rig.plugin = {**added, "FARM_LIMIT_STEP_S": str(LIMIT_S), "FARM_ISOLATE_S": "0.2"}
        client = Farm(rig.farm.settings.model_copy(update={"catalog": Path(added["FARM_CATALOG"])}))
        for name in ("none", "none2"):
            models.pull(client.catalog, name)
        yield client
        client.close()
        rig.stop()
    kinds.cache_clear()


@pytest.fixture
def worker(rig: Rig, farm: Farm) -> Iterator[None]:
    """One sound worker for the test."""
    process = rig.supervise(["harm.none"], "sound", **rig.plugin)
    rig.ready(1)
    yield
    process.terminate()
    assert process.wait(60) == 0


def chain(**harm: Any) -> Mapping[str, Any]:
    return {"reuse": False, "stages": [{"kind": "harm", "checkpoint": "none", **harm}]}


def ended(job: JobHandle, state: str) -> Any:
    record = until(lambda: (found := job.record).ended_ms and found)
    assert record.state == state, record
    return record


def command(rig: Rig, *words: str) -> Any:
    """What `farm --json WORDS` says."""
    env = {**os.environ, **rig.env, **rig.plugin}
    path = str(Path(sys.executable).with_name("farm"))
    done = subprocess.run([path, "--json", *words], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("how", "cause", "words"),
    [
        ("segfault", "killed by SIGSEGV", "Segmentation fault"),
        ("exit", "exited with 3", "loaded"),
        ("hang", "no progress in phase step", "loaded"),
    ],
)
def test_poison_is_quarantined_with_its_cause_and_the_worker_s_last_words(
    rig: Rig, farm: Farm, worker: None, how: str, cause: str, words: str
) -> None:
    # When a job kills its worker, and others stand behind it
    bad = farm.render("poison", chain=chain(how=how), seed=1)
    good = [farm.render(chain=chain(), seed=seed) for seed in range(3)]
    # Then three deaths are all it gets, and the others are done
    record = ended(bad, "quarantined")
    assert (record.code, record.stages[0].attempt, record.stages[0].crash) == ("crashed", 3, 3)
    assert cause in record.message
    for job in good:
        job.wait(60)
    # And the list tells it, with what each worker said last
    (listed,) = [one for one in command(rig, "quarantine", "ls")["data"] if one["exec"] == record.stages[0].exec]
    assert (listed["jobs"], listed["code"]) == (1, "crashed")
    shown = command(rig, "quarantine", "show", bad.id[-8:])["data"]
    assert shown["job_ids"] == [bad.id]
    assert shown["recipe"]["parameters"]["prompt"] == "poison"
    assert [failure["attempt"] for failure in shown["failures"]] == [1, 2, 3]
    for failure in shown["failures"]:
        assert cause in failure["message"]
        assert words in failure["log"]


def test_a_quarantine_is_lifted_by_hand(rig: Rig, farm: Farm, worker: None) -> None:
    # Given
    bad = farm.render("poison", chain=chain(how="exit"), seed=6)
    record = ended(bad, "quarantined")
    # When it is retried, it has three attempts again
    assert command(rig, "quarantine", "retry", record.stages[0].exec[:16])["data"]["jobs"] == [bad.id]
    assert ended(bad, "quarantined").stages[0].attempt == 3
    # When it is dropped, it is no longer listed and cannot be dropped again
    assert command(rig, "quarantine", "drop", bad.id)["ok"]
    again = command(rig, "quarantine", "drop", bad.id)
    assert (again["ok"], again["error"]["code"]) == (False, "not_found")
    assert bad.state == "quarantined"


def test_a_hung_stage_is_killed_within_its_limit_though_threads_still_run(farm: Farm, worker: None) -> None:
    job = farm.render(chain=chain(how="hang"), seed=2)
    assert "no progress in phase step" in ended(job, "quarantined").message
    events = farm.ledger.events(job.id)
    claimed = [event.t for event in events if event.type == "claimed"]
    failed = [event.t for event in events if event.type == "attempt_failed"]
    assert len(claimed) == len(failed) == 3
    assert all(
        LIMIT_S * 1000 <= end - start <= (LIMIT_S + 5) * 1000 for start, end in zip(claimed, failed, strict=True)
    )


def test_out_of_memory_is_tried_once_more_sparing_memory(farm: Farm, worker: None, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    job = farm.render(chain=chain(how="starve", notes=str(notes)), seed=3).wait(60)
    assert [line.split()[1] for line in notes.read_text().splitlines()] == ["False", "True"]
    assert (job.record.stages[0].oom, job.record.stages[0].crash) == (1, 0)


def test_out_of_memory_twice_fails_and_names_the_size(farm: Farm, worker: None) -> None:
    record = ended(farm.render(chain=chain(how="starve_always"), seed=4), "failed")
    assert (record.code, record.message, record.stages[0].attempt) == ("gpu_oom", "64×64 does not fit", 2)


def test_after_a_cuda_error_a_new_process_goes_on(farm: Farm, worker: None, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    job = farm.render(chain=chain(how="stick", notes=str(notes)), seed=5).wait(60)
    first, second = (line.split()[0] for line in notes.read_text().splitlines())
    assert first != second
    assert job.record.stages[0].crash == 1


def test_a_worker_on_which_everything_fails_wastes_three_attempts(rig: Rig, farm: Farm) -> None:
    # Given a sound worker and a broken one for the same queue, and what a sound one makes
    sound = rig.supervise(["harm.none"], "sound", **rig.plugin)
    rig.ready(1)
    golden = [pixels(farm.render(chain=chain(), seed=seed)) for seed in range(40)]
    broken = rig.supervise(["harm.none"], "broken", **{**rig.plugin, "FARM_ISOLATE_S": "300", "BROKEN": "1"})
    rig.ready(2)
    # When much is to be done
    jobs = [farm.render(chain=chain(), seed=seed) for seed in range(40)]
    # Then all of it is, and the broken one was given three
    assert [pixels(job) for job in jobs] == golden
    failed = [event.worker for job in jobs for event in farm.ledger.events(job.id) if event.type == "attempt_failed"]
    assert failed == ["broken-0"] * 3
    assert farm.ledger.isolated("broken-0") > 200
    # And whoever looks sees it
    rig.ready(2)
    workers = command(rig, "queue", "status")["data"]["workers"]
    assert [one["worker"] for one in workers if one["isolated_s"]] == ["broken-0"]
    for process in (sound, broken):
        process.terminate()
        assert process.wait(60) == 0


def pixels(job: JobHandle) -> str:
    (result,) = job.wait(60).results
    return pixels_sha256(job.farm.store.get_blob(result.sha256, max_bytes=1 << 20))
