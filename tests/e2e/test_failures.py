"""A stage that fails in every way: each failure is charged as the design says, and no other job suffers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from farm import models
from farm.catalog import Lock
from farm.client import Farm
from farm.errors import StageFailed
from farm.handle import JobHandle
from farm.stage import kinds
from tests.e2e.proxy import Proxy
from tests.e2e.rig import Rig, install, until

STAGES = '''
"""Two stages without torch: one that gives a blank picture, one that fails as it is told."""

import os
import signal
import threading
from pathlib import Path
from typing import ClassVar, Literal

from PIL import Image

from farm.errors import Failure, StageFailed, Unavailable
from farm.stage import Medium, Stage


class Blank(Stage):
    """Give a blank picture."""

    kind: Literal["blank"] = "blank"
    gives: ClassVar = frozenset({Medium.IMAGE})
    needs_torch: ClassVar = False

    def load(self, checkpoint, device):
        return None

    def run(self, pipe, batch, report):
        return [Image.new("RGB", batch.size, "white") for _ in batch.given]


class Faulty(Blank):
    """Fail as `how` says; with `once`, only where that file is not yet there."""

    kind: Literal["faulty"] = "faulty"
    takes: ClassVar = frozenset({Medium.IMAGE})
    how: str = ""
    once: str = ""
    gate: str = ""

    def run(self, pipe, batch, report):
        report.step(1, 2)
        if not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            getattr(self, self.how or "nothing")(report)
        report.step(2, 2)
        return list(batch.given)

    def nothing(self, report):
        """Succeed."""

    def killed(self, report):
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(self, report):
        threading.Event().wait()

    def long(self, report):
        for step in range(1000):
            threading.Event().wait(0.05)
            report.step(step, 1000)

    def wait(self, report):
        while not Path(self.gate).exists():
            threading.Event().wait(0.02)
            report.step(1, 2)

    def decode(self, report):
        report.phase("decode")
        threading.Event().wait(5)

    def bug(self, report):
        raise ZeroDivisionError("a bug")

    def nan(self, report):
        raise StageFailed(code="nan_output")

    def oom(self, report):
        raise StageFailed(failure=Failure.OOM, code="gpu_oom")

    def away(self, report):
        raise Unavailable("the network is away")
'''


@pytest.fixture(scope="module")
def farm(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A client that knows the faulty stage, on a farm with one worker for each of the two kinds."""
    added = install(tmp_path_factory.mktemp("faulty"), STAGES, ["blank", "faulty"])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(added["PYTHONPATH"])
        kinds.cache_clear()
        rig.plugin = env = {**added, "FARM_LIMIT_STEP_S": "2", "FARM_BACKOFF_S": "0.1"}
        client = Farm(rig.farm.settings.model_copy(update={"catalog": Path(added["FARM_CATALOG"])}))
        for name in ("none", "none2"):
            models.pull(client.catalog, name)
        rig.supervise(["blank.none", "faulty.none"], **env)
        rig.ready(2)
        yield client
        client.close()
    kinds.cache_clear()


def chain(**faulty: Any) -> Mapping[str, Any]:
    return {"stages": [{"kind": "blank", "checkpoint": "none"}, {"kind": "faulty", "checkpoint": "none", **faulty}]}


def ended(job: JobHandle, state: str) -> Any:
    """The faulty stage's record, once the job has ended as `state`."""
    record = until(lambda: (found := job.record).ended_ms and found)
    assert record.state == state, record
    return record.stages[1]


@pytest.mark.parametrize(
    ("how", "state", "code", "word", "attempts"),
    [
        ("killed", "quarantined", "crashed", "SIGKILL", 3),
        ("hang", "quarantined", "crashed", "no progress in phase step", 3),
        ("bug", "quarantined", "internal", "ZeroDivisionError", 3),
        ("nan", "failed", "nan_output", "NaN", 1),
        ("oom", "failed", "gpu_oom", "memory", 2),
    ],
)
def test_each_failure_ends_the_job_with_its_cause(
    farm: Farm, how: str, state: str, code: str, word: str, attempts: int
) -> None:
    # When a good job stands behind a bad one
    bad = farm.render(chain=chain(how=how))
    good = farm.render(chain=chain())
    # Then
    stage = ended(bad, state)
    assert stage.attempt == attempts
    assert (bad.record.code, word in bad.record.message) == (code, True), bad.record
    with pytest.raises(StageFailed) as info:
        bad.wait(1)
    assert info.value.code == code
    assert good.wait(60).results


def test_a_quarantined_recipe_stays_so_until_it_is_retried(farm: Farm, tmp_path: Path) -> None:
    # Given
    asked = chain(how="killed", once="")
    first = farm.render(chain=asked, seed=4)
    ended(first, "quarantined")
    # When the same recipe is submitted again
    second = farm.render(chain=asked, seed=4)
    # Then it kills nobody
    assert second.record.state in {"queued", "running", "quarantined"}
    assert ended(second, "quarantined").attempt == 3
    # When it is retried, it has three attempts again
    second.retry()
    assert ended(second, "quarantined").attempt == 3


def test_a_transient_failure_is_tried_again(farm: Farm, tmp_path: Path) -> None:
    job = farm.render(chain=chain(how="away", once=str(tmp_path / "once"))).wait(60)
    assert job.record.stages[1].attempt == 2
    assert job.record.stages[1].crash == 0


def test_one_death_costs_one_attempt(farm: Farm, tmp_path: Path) -> None:
    job = farm.render(chain=chain(how="killed", once=str(tmp_path / "once"))).wait(60)
    assert job.record.stages[1].crash == 1


def test_a_silent_decode_keeps_its_lease(farm: Farm) -> None:
    # Given a stage that says nothing for longer than a lease, and than a step may take
    job = farm.render(chain=chain(how="decode"), seed=41).wait(60)
    # Then
    stage = job.record.stages[1]
    assert (stage.attempt, stage.crash, stage.lapses) == (1, 0, 0)


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_lost_input_is_made_again(rig: Rig, farm: Farm, damage: str) -> None:
    # Given a committed output that waits for its taker, behind a job that keeps the taker busy
    rewinds = int(farm.ledger.stats().get("rewinds", 0))
    busy = farm.render(chain=chain(how="long"), seed=1)
    until(lambda: busy.record.stages[1].state == "running")
    job = farm.render(chain=chain(), seed=30, prompt=damage)
    until(lambda: job.record.stages[0].state == "committed")
    # When its bytes are lost
    where = {"Bucket": farm.store.bucket, "Key": farm.store.blob_key(_blob(job))}
    if damage == "gone":
        farm.store.client.delete_object(**where)
    else:
        farm.store.client.put_object(**where, Body=b"garbage")
    busy.cancel()
    # Then
    assert job.wait(60).images
    assert int(farm.ledger.stats()["rewinds"]) == rewinds + 1


def _blob(job: JobHandle) -> str:
    return str(json.loads(job.record.stages[0].output)["blob"])


def test_pause_lets_the_running_stage_commit_and_resume_goes_on(farm: Farm, tmp_path: Path) -> None:
    # Given a job whose first stage of two runs
    gate = tmp_path / "gate"
    stages = [*chain()["stages"], {"kind": "faulty", "checkpoint": "none"}]
    stages[1] = {**stages[1], "how": "wait", "gate": str(gate)}
    job = farm.render(chain={"stages": stages}, seed=3)
    until(lambda: job.record.stages[1].state == "running")
    commits = farm.ledger.stats()["commits"]
    # When it is paused, and the stage ends
    job.pause()
    gate.touch()
    until(lambda: farm.ledger.stats()["commits"] > commits)
    assert farm.render(chain=chain(), seed=5).wait(60).results
    # Then it goes no further until it is resumed
    assert job.state == "paused"
    job.resume()
    assert job.wait(60).results
    assert job.record.stages[1].attempt == 1


def test_a_store_that_is_away_costs_no_attempt(rig: Rig, farm: Farm, tmp_path: Path) -> None:
    # Given a worker that reaches the store through a proxy, and a stage before it that is about to end
    endpoint = rig.env["AWS_ENDPOINT_URL_S3"]
    proxy, gate = Proxy(int(endpoint.rpartition(":")[2])), tmp_path / "gate"
    added = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{proxy.port}", "FARM_LIMIT_UPLOAD_S": "5", **rig.plugin}
    behind = rig.supervise(["faulty.none2"], "behind", **added)
    rig.ready(3)
    first, second = chain(how="wait", gate=str(gate))["stages"]
    job = farm.render(chain={"stages": [first, second, {"kind": "faulty", "checkpoint": "none2"}]}, seed=40)
    until(lambda: job.record.stages[1].state == "running")
    # When the store is away while the worker wants its input
    proxy.cut()
    gate.touch()
    until(lambda: job.record.stages[2].state == "backoff" or job.record.stages[2].attempt > 1)
    proxy.mend()
    # Then it is tried again until the store is back, and nobody is charged
    assert job.wait(120).results
    stage = job.record.stages[2]
    assert stage.attempt >= 2
    assert (stage.crash, stage.lapses) == (0, 0)
    behind.terminate()
    assert behind.wait(60) == 0
    proxy.stop()


def test_other_weights_of_the_same_name_are_refused_by_the_worker(farm: Farm) -> None:
    # Given a job that was submitted for other weights than those the worker has loaded
    lock = farm.catalog.lock_path(farm.catalog.checkpoints["none"])
    recorded = lock.read_text()
    try:
        lock.write_text(Lock(files={"config.json": "0" * 64}).model_dump_json())
        jobs = farm.jobs_of(farm.chain(chain(), seed=41))
    finally:
        lock.write_text(recorded)
    (job,) = farm.submit(jobs)
    # Then
    record = until(lambda: (found := job.record).ended_ms and found)
    assert (record.state, record.code) == ("quarantined", "bad_checkpoint")
    assert "other weights of none" in record.message


def test_a_job_past_its_deadline_expires(farm: Farm) -> None:
    busy = farm.render(chain=chain(how="long"), seed=6)
    job = farm.render(chain=chain(), seed=7, deadline_s=0.5)
    until(lambda: job.state == "expired")
    assert job.record.code == "deadline"
    busy.cancel()


def test_cancel_of_a_running_stage_frees_its_worker(farm: Farm) -> None:
    # Given
    job = farm.render(chain=chain(how="long"), seed=9)
    until(lambda: job.record.stages[1].step >= 2)
    # When
    job.cancel()
    # Then
    assert job.state == "cancelled"
    assert farm.render(chain=chain(), seed=10).wait(20).results
