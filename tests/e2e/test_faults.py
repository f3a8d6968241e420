"""Whatever is killed, frozen or cut off: every job is done, no stage commits twice, and the pixels are the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import redis

from farm.broker import bell_queue
from farm.client import Farm
from farm.handle import JobHandle
from farm.image import pixels_sha256
from farm.settings import Settings
from tests.e2e.proxy import Proxy
from tests.e2e.rig import ALL, ALONE, ROOT, Rig, until

SEEDS = range(100, 120)
CHAIN = {
    "prompt": "a red apple",
    "reuse": False,
    "stages": [
        {"kind": "text2img", "steps": 12},
        {"kind": "img2img", "steps": 24, "strength": 0.5},
        {"kind": "upscale_latent", "steps": 8},
        {"kind": "upscale", "steps": 2},
    ],
}
SLOW = {"chain": "txt", "width": 256, "height": 256, "steps": 60}
"""One stage that runs for seconds, so that a fault meets it."""


def render(farm: Farm, seeds: Sequence[int]) -> list[JobHandle]:
    return [farm.render(chain=CHAIN, seed=seed) for seed in seeds]


def slow(farm: Farm, seed: int) -> JobHandle:
    return farm.render("a red apple", seed=seed, reuse=False, **SLOW)


def pixels(jobs: Sequence[JobHandle]) -> list[str]:
    """The pixels of all jobs, once all are done."""
    found = []
    for job in jobs:
        (result,) = job.wait(240).results
        found.append(pixels_sha256(job.farm.store.get_blob(result.sha256, max_bytes=1 << 24)))
    return found


def committed_once(jobs: Sequence[JobHandle]) -> None:
    for job in jobs:
        events = job.farm.ledger.events(job.id)
        counted = Counter(event.stage for event in events if event.type == "committed")
        assert set(counted.values()) == {1}, events
        assert [event.type for event in events].count("done") == 1


@pytest.fixture(scope="module")
def undisturbed(rig: Rig) -> tuple[dict[int, str], str]:
    """The pixels of runs that nobody disturbs: of the chain by seed, and of the slow stage."""
    supervisor = rig.supervise(ALONE, "undisturbed")
    found = dict(zip(SEEDS, pixels(render(rig.farm, SEEDS)), strict=True))
    (slowly,) = pixels([slow(rig.farm, 1)])
    supervisor.terminate()
    assert supervisor.wait(60) == 0
    until(lambda: not rig.workers())
    return found, slowly


@pytest.fixture
def golden(undisturbed: tuple[dict[int, str], str]) -> dict[int, str]:
    """The pixels of the chain's undisturbed runs, by seed."""
    return undisturbed[0]


@pytest.fixture
def golden_slow(undisturbed: tuple[dict[int, str], str]) -> str:
    """The pixels of the slow stage's undisturbed run."""
    return undisturbed[1]


@pytest.fixture
def supervised(rig: Rig, undisturbed: object) -> Iterator[Rig]:
    """The rig without any worker; what the test starts is stopped after it."""
    yield rig
    rig.stop()
    until(lambda: not rig.workers())


def running(job: JobHandle) -> str | None:
    """The worker that runs the job's first stage, past its second step."""
    stage = job.record.stages[0]
    return stage.worker if stage.state == "running" and stage.step >= 2 else None


@pytest.mark.timeout(900)
def test_children_killed_twenty_times_mid_stage(supervised: Rig, golden: dict[int, str]) -> None:
    # Given twenty chains, and for each kill a (job, stage) that runs and was hit less than twice
    rig, hits = supervised, Counter[str]()
    rig.supervise(FARM_ISOLATE_S="0.1")  # one worker serves each queue, and none of them is to blame
    rig.ready()
    jobs = render(rig.farm, SEEDS)
    dice = random.Random(7)

    def victim() -> tuple[str, int] | None:
        living = [worker for worker in rig.workers() if psutil.pid_exists(worker.pid)]
        found = [(exec, worker.pid) for worker in living for exec in worker.held if hits[exec] < 2]
        return dice.choice(found) if found else None

    def crashes() -> int:
        return int(rig.farm.ledger.stats().get("crashes", 0))

    # When: kills until twenty were charged (one may meet a child that has just committed)
    before, kills = crashes(), 0
    while crashes() < before + 20:
        execution, pid = until(victim, what="a running stage")
        hits[execution] += 1
        kills += 1
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not psutil.pid_exists(pid))
        assert kills <= 40
    # Then
    assert pixels(jobs) == list(golden.values())
    committed_once(jobs)


def test_an_idle_worker_frozen_then_killed_swallows_no_job(supervised: Rig, golden_slow: str) -> None:
    # Given a worker that listens, frozen with its supervisor
    rig, queue = supervised, "text2img.tiny"
    first = rig.supervise([queue], "first")
    rig.ready(1)
    pid = rig.pid(queue)
    os.kill(first.pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGSTOP)
    # When a job is submitted to it, whose doorbell it swallows, and it dies
    with Farm(rig.farm.settings) as caller:  # once it is closed, the doorbell is rung
        job = rig.farm.job(slow(caller, 1).id)
    bells = redis.Redis.from_url(rig.valkey.url)
    while bells.delete(bell_queue(rig.farm.settings, queue).name):
        # The server had given up the worker's wait of a second: it waits anew, and the bell is rung once more.
        os.kill(pid, signal.SIGCONT)
        until(lambda: any("b" in one["flags"] for one in bells.client_list() if one["cmd"] == "brpop"), what="a wait")
        os.kill(pid, signal.SIGSTOP)
        with Farm(rig.farm.settings) as caller:
            caller.broker.ring([queue])
    os.kill(pid, signal.SIGKILL)
    os.kill(first.pid, signal.SIGKILL)
    rig.supervise(["text2img.tiny"], "second")
    # Then
    assert pixels([job]) == [golden_slow]
    committed_once([job])


def test_a_worker_frozen_past_its_lease_and_woken_commits_nothing(supervised: Rig, golden_slow: str) -> None:
    # Given a running stage
    rig = supervised
    rig.supervise(["text2img.tiny"], "first")
    rig.ready(1)
    job = slow(rig.farm, 1)
    until(lambda: running(job))
    zombie = rig.pid("text2img.tiny")
    # When its worker freezes until another has the stage, then wakes
    os.kill(zombie, signal.SIGSTOP)
    rig.supervise(["text2img.tiny"], "second")
    until(lambda: (running(job) or "").startswith("second"), what="the second worker")
    os.kill(zombie, signal.SIGCONT)
    # Then
    assert pixels([job]) == [golden_slow]
    committed_once([job])
    until(lambda: "lease_lost" in rig.logs(), what="the zombie to notice")


def test_connections_that_go_half_open_while_a_stage_runs(supervised: Rig, golden_slow: str) -> None:
    # Given a worker behind a proxy, running a stage
    rig = supervised
    proxy = Proxy(rig.valkey.port)
    rig.supervise(
        ["text2img.tiny"], "first", FARM_REDIS_URL=rig.valkey.url.replace(str(rig.valkey.port), str(proxy.port))
    )
    rig.ready(1)
    jobs = [slow(rig.farm, 1)]
    until(lambda: running(jobs[0]))
    # When
    assert proxy.hush() >= 2
    jobs.append(slow(rig.farm, 1))
    # Then it finishes, and hears the next doorbell
    assert pixels(jobs) == [golden_slow] * 2
    committed_once(jobs)
    rig.stop()
    proxy.stop()


def test_every_queue_key_deleted(supervised: Rig, golden: dict[int, str]) -> None:
    rig = supervised
    client = redis.Redis.from_url(rig.valkey.url)
    # Given jobs whose doorbells nobody has heard
    jobs = render(rig.farm, SEEDS[:4])
    until(lambda: rig.farm.broker.outstanding("text2img.tiny"))
    # When
    lists = [f"farm:{queue}" for queue in ALL]
    assert client.delete(*lists, *client.scan_iter("_kombu*")) >= 1
    rig.supervise()
    rig.ready()
    until(lambda: any(job.record.stages[0].state == "committed" for job in jobs))
    client.delete(*lists, *client.scan_iter("_kombu*"))
    # Then
    assert pixels(jobs) == [golden[seed] for seed in SEEDS[:4]]
    committed_once(jobs)


def test_the_valkey_is_killed_and_comes_back(supervised: Rig, golden: dict[int, str]) -> None:
    # Given
    rig = supervised
    rig.supervise()
    rig.ready()
    jobs = render(rig.farm, SEEDS[:4])
    until(lambda: any(stage.state == "running" for job in jobs for stage in job.record.stages))
    redis.Redis.from_url(rig.valkey.url).execute_command("WAITAOF", 1, 0, 5000)
    # When
    rig.valkey.kill()
    rig.valkey.start()
    # Then the same workers go on
    pids = {worker.pid for worker in until(rig.workers)}
    assert pixels(jobs) == [golden[seed] for seed in SEEDS[:4]]
    committed_once(jobs)
    until(lambda: pids <= {worker.pid for worker in rig.workers()})


def test_a_killed_supervisor_takes_its_children_along(supervised: Rig, golden_slow: str) -> None:
    # Given
    rig = supervised
    first = rig.supervise(["text2img.tiny"], "first")
    rig.ready(1)
    job = slow(rig.farm, 1)
    until(lambda: running(job))
    child = rig.pid("text2img.tiny")
    # When
    first.kill()
    # Then
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    rig.supervise(["text2img.tiny"], "second")
    assert pixels([job]) == [golden_slow]
    committed_once([job])


@pytest.mark.parametrize("grace_s", [0.0, 3.0], ids=["killed", "by itself"])
def test_sigterm_gives_a_long_stage_back_uncharged(supervised: Rig, golden_slow: str, grace_s: float) -> None:
    # Given a stage that outlasts the grace
    rig, name = supervised, f"grace-{grace_s}"
    first = rig.supervise(["text2img.tiny"], name, FARM_DRAIN_GRACE_S=str(grace_s))
    rig.ready(1)
    job = slow(rig.farm, 1)
    until(lambda: running(job))
    # When
    first.terminate()
    # Then
    assert first.wait(30) == 0
    stage = job.record.stages[0]
    assert stage.state == "queued"
    assert stage.crash == 0
    assert ("drained" in (rig.folder / f"{name}.log").read_text()) == (grace_s > 0)
    rig.supervise(["text2img.tiny"], "second")
    assert pixels([job]) == [golden_slow]
    committed_once([job])


def test_ctrl_c_on_farm_up_loses_nothing(models_dir: Path, tmp_path: Path, golden: dict[int, str]) -> None:
    # Given a one-machine farm with running jobs
    slots = ("--slots", "text2img,img2img", "--slots", "upscale_latent,upscale")
    command = [str(Path(sys.executable).with_name("farm")), "up", *slots]
    env = {**os.environ, "FARM_DATA": str(tmp_path), "FARM_MODELS": str(models_dir), "OMP_NUM_THREADS": "1"}

    def up() -> tuple[subprocess.Popen[bytes], Farm]:
        process = subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True)
        until(lambda: (tmp_path / "farm.json").exists(), what="the connection file")
        return process, Farm(Settings.load(data=tmp_path, models=models_dir))

    process, farm = up()
    jobs = render(farm, SEEDS[:3])
    until(lambda: any(stage.state == "running" for job in jobs for stage in job.record.stages))
    children = psutil.Process(process.pid).children(recursive=True)
    # When it is interrupted
    process.send_signal(signal.SIGINT)
    # Then it stops cleanly, nothing outlives it, and the next start finishes the jobs
    assert process.wait(60) == 0
    assert not psutil.wait_procs(children, 10)[1]
    assert not (tmp_path / "farm.json").exists()
    process, farm = up()
    jobs = [farm.job(job.id) for job in jobs]
    assert pixels(jobs) == [golden[seed] for seed in SEEDS[:3]]
    committed_once(jobs)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
