"""Do samples become jobs, and ended jobs whole shards, whatever is stopped in between?"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pyarrow.parquet as pq
import pytest
from PIL import Image

from farm.dataset.asking import Asked, ask
from farm.dataset.choosing import ExportSpec
from farm.dataset.desk import Datasets
from farm.dataset.folder import Folder
from farm.dataset.spec import DatasetSpec
from farm.dataset.tars import entries
from farm.errors import Conflict, NotFound
from tests.conftest import free_port
from tests.dataset.farms import CHAIN, SLOTS, FeederProcess, done, jobs_left, planned, shards, table
from tests.e2e.conftest import models_dir, rig
from tests.e2e.rig import Rig, until

__all__ = ["models_dir", "rig"]


@pytest.fixture(scope="module", autouse=True)
def workers(rig: Rig) -> None:
    rig.supervise(SLOTS)
    rig.ready(len(SLOTS))


@pytest.fixture
def feeder(rig: Rig) -> Iterator[FeederProcess]:
    process = FeederProcess(rig)
    yield process
    process.stop()


def test_a_file_becomes_shards_and_nothing_stays_in_the_ledger(rig: Rig, feeder: FeederProcess, tmp_path: Path) -> None:
    # Given a planned file
    desk = Datasets(rig.farm)
    axes = [{"seed": [1, 2], "1.strength": [0.5, 1]}]
    found = planned(rig, table(tmp_path / "fruit.csv", 10), "fruit", sweep=axes)
    assert (found.plan.samples, found.plan.shards, found.fresh) == (20, 3, True)
    assert desk.status("fruit").state == "planned"
    # When it is fed
    desk.start("fruit")
    feeder.start()
    done(rig, "fruit")
    # Then all samples are there
    status = desk.status("fruit")
    assert (status.done, status.failed, status.shards_done) == (20, 0, 3)
    folder = Folder(rig.farm.store, "fruit")
    assert [folder.stats(number)["successes"] for number in folder.numbers()] == [8, 8, 4]
    with folder.parquet(2) as path:
        assert pq.read_table(path)["parameters"].to_pylist() == [{"1.strength": 0.5}, {"1.strength": 1.0}] * 2
    assert until(lambda: not jobs_left(rig), 20, "an empty ledger")
    # And a shard that is damaged and one that is lost are found, and made again
    before = shards(rig, "fruit")
    folder.write("shards/00000.tar", b"0" * 5120)
    folder.delete(["shards/00002.tar", "shards/00002_stats.json"])
    with pytest.raises(Conflict, match="2 of 3 shards"):
        desk.export("fruit", str(tmp_path / "out"), ExportSpec())
    assert desk.mend("fruit", desk.verify("fruit")) == [0]
    assert desk.start("fruit").state == "running"
    done(rig, "fruit")
    assert shards(rig, "fruit") == before
    assert desk.verify("fruit").problems == ()
    # And two exports are the same bytes, the figures of their cards among them
    for name in ("one", "other"):
        desk.export("fruit", str(tmp_path / name), ExportSpec(where=("parameters.1.strength==1",)))
    one, other = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "other")
    )
    assert one == other
    assert b"samples a second" in one[Path("README.md")]
    assert json.loads(one[Path("export.json")])["counts"] == {"train": 10}
    # And all of it, made again from nothing, is the same bytes
    desk.rm("fruit", wait_s=20)
    assert not folder.names("")
    planned(rig, table(tmp_path / "fruit.csv", 10), "fruit", sweep=axes)
    desk.start("fruit")
    done(rig, "fruit")
    assert shards(rig, "fruit") == before


def test_it_is_paused_goes_on_and_tries_again_what_failed(rig: Rig, feeder: FeederProcess, tmp_path: Path) -> None:
    # Given a dataset that is on its way
    desk, ledger = Datasets(rig.farm), rig.farm.ledger
    planned(rig, table(tmp_path / "steered.csv", 24), "steered")
    desk.start("steered", priority=80)
    feeder.start()
    until(lambda: desk.status("steered").done or desk.status("steered").open.get("done"), 120, "the first sample")
    # When it is paused
    assert desk.pause("steered").state == "paused"
    until(lambda: not desk.status("steered").fed, 60, "the feeder to leave it")
    held = [job.job for job in ledger.jobs(state="paused", limit=100)]
    assert held
    assert not ledger.jobs(state="queued")
    # Then how far it is stays true, though nobody feeds it: what ran when it was paused has ended
    until(lambda: not ledger.jobs(state="running"), 60, "what still ran")
    assert desk.status("steered").open.get("running", 0) == 0
    assert sum(desk.status("steered").open.values()) == 48 - desk.status("steered").done
    assert all(job.priority == 80 and job.lane == "bulk" for job in ledger.read(held))
    with pytest.raises(Conflict, match="is paused"):
        desk.retry("steered")
    # And one of its jobs is cancelled by somebody, its feeder dies, and another one goes on
    ledger.cancel(held[0])
    feeder.kill()
    desk.start("steered")
    feeder.start()
    done(rig, "steered")
    # Then that one sample failed, and says why
    assert (desk.status("steered").done, desk.status("steered").failed) == (47, 1)
    (failure,) = desk.failures("steered")
    assert failure["state"] == "cancelled"
    desk.export("steered", str(tmp_path / "steered"), ExportSpec())
    assert pq.read_table(tmp_path / "steered" / "rejects.parquet")["reasons"].to_pylist() == [["cancelled: "]]
    assert desk.verify("steered").problems == ()
    # And tried again it is as if nothing had been
    assert desk.retry("steered").state == "running"
    done(rig, "steered")
    assert (desk.status("steered").done, desk.status("steered").failed) == (48, 0)
    after = shards(rig, "steered")
    desk.rm("steered", wait_s=20)
    planned(rig, table(tmp_path / "steered.csv", 24), "steered")
    desk.start("steered")
    done(rig, "steered")
    assert shards(rig, "steered") == after
    with pytest.raises(Conflict, match="nothing of steered has failed"):
        desk.retry("steered")


def test_an_interactive_job_waits_no_longer_than_one_bulk_batch(
    rig: Rig, feeder: FeederProcess, tmp_path: Path
) -> None:
    # Given a dataset with many samples in the queue
    desk, ledger = Datasets(rig.farm), rig.farm.ledger
    planned(rig, table(tmp_path / "bulk.csv", 100), "bulk", shard_samples=100)
    desk.start("bulk")
    feeder.start()
    until(lambda: sum(one.ready for one in ledger.queues()) > 50, 120, "a long queue")
    # When somebody submits a job
    since = ledger.last_event()
    job = rig.farm.render("a pear", chain={"stages": CHAIN["stages"][:1]}, seed=3)
    job.wait(60)
    # Then at most the batch that was about to be claimed came before it, which is one sample
    told = [(event.type, event.stage, event.job) for event in ledger.events(None, since)]
    told = told[told.index(("submitted", 0, job.id)) :]  # what was claimed until then could not let it pass
    queue = [name for kind, stage, name in told if (kind, stage) == ("claimed", 0)]
    assert queue.index(job.id) <= 1
    # And a dataset that runs is not deleted; paused, it goes with all of its jobs
    with pytest.raises(Conflict, match="running"):
        desk.rm("bulk")
    desk.pause("bulk")
    until(lambda: not ledger.jobs(state="queued") and not ledger.jobs(state="running"), 60, "nothing that runs")
    desk.rm("bulk", wait_s=20)
    until(lambda: {one.job for one in ledger.jobs(limit=500)} <= {job.id}, 60, "only the interactive job")
    with pytest.raises(NotFound):
        desk.status("bulk")


def test_pictures_of_earlier_stages_go_along(rig: Rig, feeder: FeederProcess, tmp_path: Path) -> None:
    # Given a dataset that keeps what its first stage made
    desk = Datasets(rig.farm)
    planned(rig, table(tmp_path / "kept.csv", 3), "kept", keep=("base", "latents"), image_format="webp")
    # When it is made
    desk.start("kept")
    feeder.start()
    done(rig, "kept")
    # Then each sample has both, beside its own
    with Folder(rig.farm.store, "kept").tar(0) as tar, entries(tar) as found:
        samples = [(sorted(entry.files), entry.read("stage0.png"), entry.known()) for entry in found]
    assert [names for names, _, _ in samples] == [["json", "stage0.png", "stage0.safetensors", "txt", "webp"]] * 6
    assert all(Image.open(io.BytesIO(data)).size == (64, 64) for _, data, _ in samples)
    assert [known["columns"]["label"] for _, _, known in samples] == ["apple", "apple", "pear", "pear", "plum", "plum"]
    assert desk.verify("kept").problems == ()


def test_one_that_cannot_go_on_says_why_and_keeps_nobody_waiting(rig: Rig, tmp_path: Path) -> None:
    # Given two datasets, of which the first one's plan is damaged
    desk, folder, port = Datasets(rig.farm), Folder(rig.farm.store, "broken"), free_port()
    for name in ("broken", "sound"):
        planned(rig, table(tmp_path / f"{name}.csv", 3), name)
        desk.start(name)
    path = folder.plan().path_of(0)
    whole = folder.read(path)
    assert whole is not None
    folder.write(path, whole[:-9])
    # When both are fed
    feeder = FeederProcess(rig, FARM_DATASET_METRICS_PORT=str(port)).start()
    try:
        done(rig, "sound")
        trouble = until(lambda: desk.status("broken").trouble, 60, "word of what is wrong")
        # Then one is done, the other says what is wrong, and Prometheus hears of it
        assert trouble["message"] == "the plan of shard 0 cannot be read"
        told = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        assert 'farm_dataset_samples_total{dataset="sound",state="done"} 6.0' in told
        # And once it is mended, it goes on
        folder.write(path, whole)
        done(rig, "broken")
        assert desk.status("broken").trouble is None
    finally:
        feeder.stop()


def test_one_owner_has_so_many_fed_at_a_time(rig: Rig, tmp_path: Path) -> None:
    # Given two datasets of one owner, one of another, and a feeder that feeds one of each
    desk = Datasets(rig.farm)
    for name, owner in (("first", "ada"), ("next", "ada"), ("other", "bob")):
        planned(rig, table(tmp_path / f"{name}.csv", 12), name, owner=owner)
        desk.start(name)
    feeder = FeederProcess(rig, FARM_MAX_FED_DATASETS="1").start()
    try:
        # Then the second one says that it waits, and for what
        trouble = until(lambda: desk.status("next").trouble, 60, "word of why it waits")
        assert (trouble["code"], trouble["message"][:34]) == ("busy", "1 of its owner's are fed at a time")
        assert desk.status("next").done == 0
        # And all are done in the end
        for name in ("first", "other", "next"):
            done(rig, name)
        assert desk.status("next").trouble is None
    finally:
        feeder.stop()


def test_what_was_asked_for_from_afar_is_planned_and_told(rig: Rig, feeder: FeederProcess, tmp_path: Path) -> None:
    # Given a file in the store, and one with wrong rows
    store, desk = rig.farm.store, Datasets(rig.farm)
    for name, text in (("good", "prompt\na fig\na plum\n"), ("bad", "prompt,seed\na fig,1\na plum,x\n")):
        store.client.put_object(Bucket=store.bucket, Key=f"files/{name}", Body=text.encode())
        spec = DatasetSpec(name=f"asked-{name}", chain=CHAIN)
        wish = Asked(spec=spec, file=f"files/{name}", file_name=f"{name}.csv", format="csv", owner="ada")
        assert ask(rig.farm, wish)
        assert not ask(rig.farm, wish), "the same wish"
        with pytest.raises(Conflict):
            ask(rig.farm, wish.model_copy(update={"partial": True}))
    assert desk.status("asked-good").state == "planning"
    # When somebody feeds the farm's datasets
    feeder.start()
    feeder.brings(lambda: desk.status("asked-good").state == "planned", "a plan")
    refused = feeder.brings(lambda: desk.status("asked-bad").refused, "a refusal")
    # Then one is planned for its owner, and of the other it is said what is wrong
    plan = Folder(store, "asked-good").plan()
    assert (plan.owner, plan.samples, plan.source["name"]) == ("ada", 2, "good.csv")
    assert (refused["code"], refused["count"]) == ("bad_rows", 1)
    assert [(one["row"], one["column"]) for one in refused["rows"]] == [(2, "seed")]
    # And what was refused may be asked for otherwise
    assert ask(rig.farm, wish.model_copy(update={"partial": True}))
    feeder.brings(lambda: desk.status("asked-bad").state == "planned", "another plan")
    assert desk.status("asked-bad").rejected == 1


def test_the_command_line_plans_runs_and_exports(rig: Rig, tmp_path: Path) -> None:
    # Given a file, and no process that feeds
    path = table(tmp_path / "shell.csv", 6)
    (tmp_path / "chain.json").write_text(json.dumps(CHAIN))

    def farm(*words: str, status: int = 0) -> str:
        command = [str(Path(sys.executable).with_name("farm")), "dataset", *words]
        done = subprocess.run(command, env={**os.environ, **rig.env}, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    # When it is planned, run, and looked at
    words = ("plan", str(path), "--name", "shell", "--chain", "chain.json", "--shard-samples", "4")
    words = (*words, "--sweep", "seed=1,2")
    assert "6 rows, 12 samples in 3 shards" in farm(*words)
    assert "planned before" in farm(*words)
    assert "12 of 12 samples" in farm("run", "shell")
    assert "shell  done" in farm("status", "shell")
    assert "12 samples in 3 shards, 0 failed" in farm("verify", "shell")
    assert "license:" in farm("card", "shell")
    # And exported in each form, it loads in one line
    for form, load in (("webdataset", "webdataset"), ("parquet", "parquet"), ("imagefolder", "imagefolder")):
        told = farm("export", "shell", "-o", str(tmp_path / form), "--format", form)
        assert "12 train" in told
        assert _loaded(load, tmp_path / form) == 12
    assert "s3://" in farm("export", "shell", "-o", f"s3://{rig.farm.settings.bucket}/exports/shell")
    # And a wrong file is refused with its rows, as a wrong name is
    path.write_text("prompt,seed\na,1\nb,x\n")
    assert "rows.2.seed" in farm("plan", str(path), "--name", "wrong", "--chain", "chain.json", status=2)
    assert "no dataset" in farm("status", "wrong", status=1)


def _loaded(kind: str, folder: Path) -> int:
    """How many samples the `datasets` library finds in an export, in a process of its own."""
    files = {"webdataset": "data/*.tar", "parquet": "data/*.parquet"}
    where = f"data_files={{'train': {str(folder / files[kind])!r}}}" if kind in files else f"data_dir={str(folder)!r}"
    code = f"import datasets; print(len(datasets.load_dataset({kind!r}, {where}, split='train')))"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "hf")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])
