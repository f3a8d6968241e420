"""Is a farm on another machine used in the words of the one here?"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.errors import Conflict, InvalidJob, NotFound, StageFailed, Unauthorized, Unavailable
from farm.remote import RemoteFarm
from tests.api.conftest import Site, picture
from tests.conftest import free_port
from tests.test_cli import Hand

QUEUE = "text2img.tiny"


@pytest.fixture
def remote(site: Site) -> Iterator[RemoteFarm]:
    with RemoteFarm(site.url, site.token("ada")) as farm:
        yield farm
    for state in ("queued", "running", "paused"):
        for record in site.farm.jobs(state=state, limit=1000):
            site.farm.ledger.cancel(record.job)


@pytest.fixture
def hand(site: Site) -> Hand:
    return Hand(site.settings, site.farm.store)


def test_a_job_is_rendered_watched_and_collected(site: Site, remote: RemoteFarm, hand: Hand, tmp_path: Path) -> None:
    # Given
    job = remote.render("a pear", chain="txt", seed=5, num_inference_steps=3)
    assert (job.state, job.seed, job.results) == ("queued", 5, [])
    with pytest.raises(TimeoutError):
        job.wait(0)
    # When it is served while somebody watches
    seen: list[str] = []
    watcher = threading.Thread(target=lambda: seen.extend(told.state for told in job.events()))
    watcher.start()
    hand.serve(hand.claim(QUEUE))
    # Then
    assert job.wait(30).state == "done"
    watcher.join(30)
    assert seen[-1] == "done"
    (image,) = job.images
    assert (image.size, image.getpixel((0, 0))) == ((64, 64), (0, 128, 128))
    (path,) = job.download(tmp_path)
    assert path.read_bytes() == site.farm.store.get_blob(job.results[0].sha256, 1 << 20)
    assert [told.state for told in job.events()] == ["done"]
    assert remote.job(job.id).view.chain["seed"] == 5


def test_a_run_is_the_one_that_the_farm_here_would_make(site: Site, remote: RemoteFarm) -> None:
    # When
    jobs = remote.run("a pear", chain="txt", seed=1, count=2, sweep=[{"guidance_scale": [2.0, 3.0]}])
    again = remote.run(
        "a pear", chain="txt", seed=1, count=2, sweep=[{"guidance_scale": [2.0, 3.0]}], idempotency_key="k"
    )
    same = remote.run(
        "a pear", chain="txt", seed=1, count=2, sweep=[{"guidance_scale": [2.0, 3.0]}], idempotency_key="k"
    )
    # Then
    assert [job.seed for job in jobs] == [1, 2, 1, 2]
    assert [job.id for job in again] == [job.id for job in same]
    run = jobs[0].view.run
    assert [record.job for record in remote.jobs(run=run)] == [job.id for job in jobs][::-1]
    assert len(remote.jobs(limit=3)) == 3
    with pytest.raises(Conflict):
        remote.run("a plum", chain="txt", idempotency_key="k")


def test_images_are_uploaded(site: Site, remote: RemoteFarm, tmp_path: Path) -> None:
    # Given
    (tmp_path / "in.png").write_bytes(picture("navy"))
    # When
    stages = [{"kind": "inpaint", "mask": picture("white")}]
    jobs = [
        remote.render("a pear", chain="img", image=tmp_path / "in.png", strength=0.5),
        remote.render("a pear", chain={"stages": stages}, image=picture("red")),
    ]
    # Then
    assert [len(site.farm.job(job.id).input_images()) for job in jobs] == [1, 2]
    (tmp_path / "chain.yaml").write_text("prompt: a plum\nstages: [{kind: text2img, steps: 2}]\n")
    job = remote.render(chain=tmp_path / "chain.yaml")
    assert job.view.prompt == "a plum"


def test_a_job_is_steered(remote: RemoteFarm) -> None:
    job = remote.render("a pear", chain="txt")
    job.pause()
    assert job.state == "paused"
    job.resume()
    assert job.state == "queued"
    assert job.cancel() == "cancelled"
    with pytest.raises(StageFailed):
        job.wait(1)
    job.retry()
    assert job.state == "queued"


def test_errors_are_the_farms_own(site: Site, remote: RemoteFarm) -> None:
    with pytest.raises(InvalidJob) as invalid:
        remote.render("a pear", chain="txt", num_inference_steps=0)
    assert [error.loc for error in invalid.value.errors] == ["stages.0.num_inference_steps"]
    with pytest.raises(InvalidJob):
        remote.render("a pear", chain="img", image="/no/such/file")
    with pytest.raises(InvalidJob):
        remote.render("a pear", count=2)
    with pytest.raises(NotFound):
        remote.job("../..")
    with RemoteFarm(site.url, "wrong") as stranger, pytest.raises(Unauthorized):
        stranger.jobs()
    with RemoteFarm(f"http://127.0.0.1:{free_port()}", "x") as nowhere, pytest.raises(Unavailable) as away:
        nowhere.jobs()
    assert "127.0.0.1" not in str(away.value)
