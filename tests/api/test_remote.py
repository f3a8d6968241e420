"""Is a farm on another machine used in the words of the one here?"""

from __future__ import annotations

import asyncio
import secrets
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from farm.api.runs import STEER_S
from farm.client import PATIENCE_S
from farm.errors import Conflict, InvalidJob, NotFound, StageFailed, Unauthorized, Unavailable
from farm.remote import AsyncFarm, RemoteFarm, RemoteJob, words
from farm.remote.wire import TRIES
from tests.api.conftest import Site, picture
from tests.conftest import free_port
from tests.e2e.proxy import Proxy
from tests.e2e.rig import until
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


@pytest.mark.parametrize("awaited", [False, True], ids=["one at a time", "awaited"])
def test_waiting_outlasts_an_api_that_is_away(site: Site, hand: Hand, awaited: bool) -> None:
    # Given a job that is waited for through a network that breaks
    proxy = Proxy(int(site.url.rpartition(":")[2]))
    url, token = f"http://127.0.0.1:{proxy.port}", site.token("ada")
    job = RemoteFarm(site.url, token).render("a pear", chain="txt", seed=secrets.randbits(40))
    calls: list[httpx2.Request] = []

    def wait() -> str:
        with RemoteFarm(url, token) as farm:
            farm._http.event_hooks = {"request": [calls.append]}
            return farm.job(job.id).wait(60).state

    async def wait_awaited() -> str:
        async def note(request: httpx2.Request) -> None:
            calls.append(request)

        async with AsyncFarm(url, token) as farm:
            farm._http.event_hooks = {"request": [note]}
            return await (await (await farm.job(job.id)).wait(60)).state()

    try:
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(asyncio.run, wait_awaited()) if awaited else pool.submit(wait)
            until(lambda: len(calls) >= 2, 30, "that it waits")
            proxy.cut()
            # When the API is away for longer than one call is tried again
            gone = len(calls)
            until(lambda: len(calls) > gone + 2 * TRIES or ended.done(), 60, "that it goes on waiting")
            proxy.mend()
            hand.serve(hand.claim(QUEUE))
            # Then the wait has not noticed
            assert ended.result(60) == "done"
    finally:
        proxy.stop()


def test_waiting_has_an_end(site: Site, remote: RemoteFarm, monkeypatch: pytest.MonkeyPatch) -> None:
    job = remote.render("a pear", chain="txt")
    nowhere = RemoteFarm(f"http://127.0.0.1:{free_port()}", "x")
    with nowhere, pytest.raises(TimeoutError, match="not known to have ended"):
        RemoteJob(nowhere, job.id).wait(0)
    monkeypatch.setattr(words, "AWAY_S", 0)
    nowhere = RemoteFarm(f"http://127.0.0.1:{free_port()}", "x")
    with nowhere, pytest.raises(Unavailable):
        RemoteJob(nowhere, job.id).wait(60)


def test_what_concerns_many_jobs_may_take_as_long_as_the_api_gives_it(remote: RemoteFarm) -> None:
    patience: dict[str, float] = {}

    def note(request: httpx2.Request) -> None:
        patience[request.url.path.rpartition("/")[2]] = request.extensions["timeout"]["read"]

    remote._http.event_hooks = {"request": [note]}
    run = remote.run("a pear", chain="txt", count=2)[0].record.run
    for steer in (remote.pause_run, remote.resume_run, remote.cancel_run, remote.retry_run):
        steer(run)
    remote.dry_run("a pear", chain="txt")
    slow = {"pause", "resume", "cancel", "retry", "jobs", "dry-run"}
    assert min(patience[name] for name in slow) > STEER_S + 2 * PATIENCE_S
    remote.queues()
    assert patience["queues"] < min(patience[name] for name in slow)


def test_a_proxy_of_the_environment_is_not_for_this_machine(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a proxy that is named for everything
    asked: list[bytes] = []

    class Listening(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked.append(self.rfile.readline())

    with socketserver.TCPServer(("127.0.0.1", 0), Listening) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_address[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        # When farms are called
        token = site.token("ada")

        async def look(url: str) -> None:
            async with AsyncFarm(url, token) as farm:
                await farm.jobs()

        for url in (site.url, site.url.replace("127.0.0.1", "localhost")):
            with RemoteFarm(url, token) as farm:
                farm.jobs()
            asyncio.run(look(url))
        # Then only one elsewhere is called through it
        assert asked == []
        with RemoteFarm("http://farm.example.org", token) as farm, pytest.raises(Unavailable):
            farm.jobs()
        assert asked[0].startswith(b"GET http://farm.example.org/api/v1/jobs")
        server.shutdown()
