"""Has the asynchronous farm every word of the other two, and does it say many at once?"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from farm import Farm
from farm.errors import InvalidJob, NotFound, StageFailed, Unavailable
from farm.remote import AsyncFarm, RemoteFarm, connect
from tests.api.conftest import Site, picture
from tests.conftest import free_port
from tests.e2e.proxy import Proxy
from tests.test_cli import Hand

QUEUE = "text2img.tiny"


@pytest.fixture(autouse=True)
def _tidy(site: Site) -> Iterator[None]:
    yield
    for state in ("queued", "running", "paused"):
        for record in site.farm.jobs(state=state, limit=1000):
            site.farm.ledger.cancel(record.job)


@pytest.fixture
def hand(site: Site) -> Hand:
    return Hand(site.settings, site.farm.store)


def test_connect_gives_the_farm_that_is_meant(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(connect(), Farm)
    monkeypatch.setenv("FARM_URL", site.url)
    monkeypatch.setenv("FARM_TOKEN", site.token("ada"))
    farm = connect()
    assert isinstance(farm, RemoteFarm)
    assert farm.jobs(limit=1) is not None
    assert isinstance(connect(""), Farm)
    assert site.url in repr(connect(site.url, "secret-word"))
    with pytest.raises(InvalidJob):
        RemoteFarm("")


def test_many_jobs_at_once(site: Site, hand: Hand, tmp_path: Path) -> None:
    """A dozen jobs are rendered, watched and fetched with at most five calls under way."""
    count, flying, most = 12, 0, 0
    worker = threading.Thread(target=lambda: [hand.serve(hand.claim(QUEUE)) for _ in range(count + 1)])

    async def main() -> None:
        nonlocal flying, most

        async def begin(_: httpx2.Request) -> None:
            nonlocal flying, most
            flying += 1
            most = max(most, flying)

        async def end(_: httpx2.Response) -> None:
            nonlocal flying
            flying -= 1

        async with AsyncFarm(site.url, site.token("ada"), at_once=5) as farm:
            farm._http.event_hooks = {"request": [begin], "response": [end]}
            jobs = await farm.run("a pear", chain="txt", seed=4000, count=count)
            one = await farm.render("a plum", chain="txt", seed=4100)
            worker.start()
            done = await asyncio.gather(*(job.wait(60) for job in jobs))
            assert [job.id for job in done] == [job.id for job in jobs]
            (image,) = await jobs[0].images()
            assert (image.size, image.getpixel((0, 0))) == ((64, 64), (0, 128, 128))
            paths = await asyncio.gather(*(job.download(tmp_path) for job in jobs))
            assert len({path for found in paths for path in found}) == count
            told = [snapshot.state async for snapshot in one.events()]
            assert told[-1] == "done"
            assert await jobs[3].seed() == 4003

    asyncio.run(main())
    worker.join(30)
    assert most <= 5


def test_every_other_word(site: Site, hand: Hand, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(picture("white"))
    (tmp_path / "in.png").write_bytes(picture("navy"))
    (tmp_path / "chain.yaml").write_text("prompt: a plum\nstages: [{kind: inpaint, mask: mask.png}]\n")

    async def main() -> None:
        token = site.token("root", "read", "submit", "admin")
        async with AsyncFarm(site.url, token) as farm:
            job = await farm.render(chain=tmp_path / "chain.yaml", image=tmp_path / "in.png", seed=1)
            assert sorted((await job.input_images()).values())
            assert len(await job.input_images()) == 2
            assert "import torch" in await job.script()
            forecast = await farm.dry_run("a pear", chain="txt", count=3, seed=8)
            assert (forecast.count, forecast.seed, len(forecast.stages)) == (3, 8, 1)
            stages, size = await farm.edges("img")
            assert (len(stages), size) == (1, (64, 64))
            assert (await farm.job(job.id[-8:])).id == job.id
            await job.pause()
            assert await job.state() == "paused"
            await job.resume()
            await job.reprioritise(90, "bulk")
            record = await job.record()
            assert (record.priority, record.lane) == (90, "bulk")
            assert await job.cancel() == "cancelled"
            with pytest.raises(StageFailed):
                await job.wait(1)
            await job.retry()
            with pytest.raises(TimeoutError):
                await job.wait(0)
            assert [event.type for event in await job.history()][:2] == ["submitted", "paused"]
            assert (await job.record()).waits_for
            with pytest.raises(NotFound):
                await farm.job("../..")
            with pytest.raises(InvalidJob) as wrong:
                await farm.render("a pear", chain={"stages": [{"kind": "inpaint", "mask": "no-such.png"}]})
            assert wrong.value.errors[0].loc == "stages.0.mask"
            other = await farm.fork((await farm.render("x", chain="hires")).id, 3, noise_level=1)
            assert (await other.record()).n == 4
            assert {preset["name"] for preset in await farm.presets()} >= {"hires", "txt"}
            assert {kind["kind"] for kind in await farm.kinds()} >= {"text2img"}
            assert {one["name"] for one in await farm.weights()} >= {"tiny"}
            assert (await farm.stats())["submitted"] > 0
            hand.ledger.register("w1", "b1", [QUEUE], "idle", {"host": "h", "pid": "1"})
            await farm.drain("w1")
            assert [one.draining for one in await farm.workers() if one.worker == "w1"] == [True]
            await farm.resume("w1")
            assert QUEUE in {one.queue for one in await farm.queues()}
            with pytest.raises(NotFound):
                await farm.drain("nobody")
            assert await farm.quarantined() == []
            for call in (farm.quarantine_of("abcd"), farm.failures("abcd"), farm.retry_quarantined("abcd")):
                with pytest.raises(NotFound):
                    await call
            with pytest.raises(NotFound):
                await farm.drop_quarantined("abcd")
            assert (await farm.jobs(limit=1))[0].job == other.id
            assert (await farm.upload(picture("red"))).startswith("sha256:")

    asyncio.run(main())


def test_a_cut_stream_is_healed_and_a_run_is_watched(site: Site, hand: Hand) -> None:
    proxy = Proxy(int(site.url.rpartition(":")[2]))
    sent: list[Any] = []

    async def note(request: httpx2.Request) -> None:
        sent.append(request.headers.get("last-event-id"))

    async def main() -> None:
        # A run is counted and ended as a whole, here as there
        async with AsyncFarm(site.url, site.token("ada")) as farm:
            more = await farm.run("a pear", chain="txt", seed=6000, count=3)
            run = (await more[0].record()).run
            await more[0].pause()
            assert (await farm.run_record(run)).states == {"paused": 1, "queued": 2}
            assert (await farm.cancel_run(run)).states == {"cancelled": 3}
            assert site.farm.cancel_run(run).states == {"cancelled": 3}
            with pytest.raises(NotFound):
                await farm.cancel_run("nothing")
            with pytest.raises(NotFound):
                site.farm.run_record("")
        async with AsyncFarm(f"http://127.0.0.1:{proxy.port}", site.token("ada")) as farm:
            jobs = await farm.run("a pear", chain="txt", seed=5000, count=2)
            run = (await jobs[0].record()).run
            farm._http.event_hooks = {"request": [note]}
            states: dict[str, str] = {}
            async for snapshot in farm.events(run):
                states[snapshot.id] = snapshot.state
                if len(states) == 2 and not any(sent) and "done" not in states.values():
                    await asyncio.to_thread(proxy.cut)
                    await asyncio.to_thread(lambda: [hand.serve(hand.claim(QUEUE)) for _ in range(2)])
                    proxy.mend()
                if list(states.values()) == ["done", "done"]:
                    break

    try:
        asyncio.run(main())
    finally:
        proxy.stop()
    assert sent[0] is None
    assert all(sent[1:])
    assert len(sent) > 1


def test_a_farm_that_is_away_is_told() -> None:
    async def main() -> None:
        async with AsyncFarm(f"http://127.0.0.1:{free_port()}", "secret-word") as farm:
            await farm.jobs()

    with pytest.raises(Unavailable) as away:
        asyncio.run(main())
    assert "secret-word" not in str(away.value)
