"""Have the farm here, the one elsewhere and the awaited one the same words, and do they mean the same?"""

from __future__ import annotations

import asyncio
import inspect
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from farm.client import Farm
from farm.dataset.desk import Datasets
from farm.errors import InvalidJob, NotFound
from farm.handle import JobHandle
from farm.protocol import AnyFarm, AnyJob
from farm.remote import AsyncFarm, AsyncJob, RemoteFarm, RemoteJob
from farm.remote.datasets import RemoteDatasets
from farm.snapshot import Snapshot
from tests.api.conftest import Site, picture
from tests.test_cli import Hand

QUEUE = "text2img.tiny"
HERE_ALONE = {
    "chain", "jobs_of", "swept", "submit", "fitted", "prepare", "input_size", "edges_of", "fork_of", "with_files",
    "input_again", "store_all", "resolved",
}  # fmt: skip
"""Steps of the words, which the API does for a farm elsewhere."""
PARTS = {"settings", "catalog", "chains", "ledger", "store", "inbox", "broker", "play", "follow", "save_to", "view"}
"""What a farm or a job is made of."""
Opened = Callable[[str], AnyFarm]


def words(cls: type) -> set[str]:
    """What can be asked of a class, by name."""
    return {name for name in dir(cls) if not name.startswith("_")} - PARTS


def taken(cls: type, name: str) -> list[tuple[str, Any, Any]]:
    """What a word takes: each parameter's name, kind and default; nothing for a property."""
    found = inspect.getattr_static(cls, name)
    given = list(inspect.signature(found).parameters.values())[1:] if inspect.isfunction(found) else []
    return [(one.name, one.kind, one.default) for one in given]


@pytest.mark.parametrize(
    ("classes", "protocol"),
    [((Farm, RemoteFarm, AsyncFarm), AnyFarm), ((JobHandle, RemoteJob, AsyncJob), AnyJob)],
    ids=["farms", "jobs"],
)
def test_all_farms_have_the_same_words(classes: tuple[type, ...], protocol: type) -> None:
    here, *_ = classes
    # Whoever awaits needs no pause between two looks
    told = [words(cls) - {"round_s"} for cls in classes]
    assert told[0] - HERE_ALONE == told[1] == told[2] == words(protocol) - {"round_s"}
    assert words(here) >= HERE_ALONE or here is JobHandle
    for name in told[1]:
        assert [taken(cls, name) for cls in classes] == [taken(protocol, name)] * 3, name


def test_datasets_have_the_same_words_elsewhere() -> None:
    told = words(RemoteDatasets)
    # What a plan is made of lies where it is planned, and to fetch is to have from elsewhere
    assert words(Datasets) - told == {"owner", "folder", "planned", "has_feeder", "lose"}
    assert told - words(Datasets) == {"fetch"}
    for name in words(Datasets) & told - {"plan"}:
        assert taken(RemoteDatasets, name) == taken(Datasets, name), name


@pytest.fixture(params=["here", "elsewhere"])
def farm(request: pytest.FixtureRequest, site: Site) -> Iterator[Any]:
    """A farm, reached by its own servers and by its API."""
    if request.param == "here":
        yield site.farm
    else:
        with RemoteFarm(site.url, site.token("root", "read", "submit", "admin")) as found:
            yield found
    for state in ("queued", "running", "paused"):
        for record in site.farm.jobs(state=state, limit=1000):
            site.farm.ledger.cancel(record.job)


@pytest.fixture
def hand(site: Site) -> Hand:
    return Hand(site.settings, site.farm.store)


def test_a_sweep_is_a_run_of_variants(site: Site, farm: AnyFarm) -> None:
    # When a prompt and a seed go side by side, and a parameter multiplies
    sweep = [{"prompt": ["a pear", "a plum"], "seed": [7, 8]}, {"0.guidance_scale": [2.0, 3.0]}]
    key = secrets.token_hex(4)
    jobs = farm.run("overridden", chain="txt", sweep=sweep, count=2, idempotency_key=key)
    # Then each variant is there, the last axis turning fastest
    chains = [job.record for job in jobs]
    told = [(job.seed, site.farm.job(job.id).record.spec.count('"guidance_scale":2.0')) for job in jobs]
    assert [seed for seed, _ in told] == [7, 8, 7, 8, 8, 9, 8, 9]
    assert [bool(two) for _, two in told] == [True, True, False, False] * 2
    assert len({record.run for record in chains}) == 1
    # And the same key yields the same jobs
    again = farm.run("overridden", chain="txt", sweep=sweep, count=2, idempotency_key=key)
    assert [job.id for job in again] == [job.id for job in jobs]
    # And what is swept no variant differs in but what is swept
    (one, other) = farm.run("a pear", chain="txt", sweep=[{"guidance_scale": [2.0, 3.0]}])
    assert one.seed == other.seed
    (kept,) = farm.run(chain={"seed": 12, "stages": [{"kind": "text2img"}]}, sweep=[{"prompt": ["a pear"]}])
    assert kept.seed == 12
    assert farm.dry_run("a pear", chain="txt", count=3, sweep=[{"guidance_scale": [2.0, 3.0]}]).count == 6
    assert farm.dry_run("a pear", chain="txt", sweep=[{"seed": "0..9"}, {"guidance_scale": [2.0, 3.0]}]).count == 20


@pytest.mark.parametrize(
    ("sweep", "loc"),
    [
        ([{}], "sweep.0"),
        ([{"seed": []}], "sweep.0"),
        ([{"seed": [1]}, {"seed": [1, 2], "prompt": ["x"]}], "sweep.1"),
        ([{"seed": [n]} for n in range(9)], "sweep"),
        ([{"seed": list(range(101))}, {"guidance_scale": list(range(100))}], "count"),
        ([{"guidance_scale": [2.0, -1.0]}], "stages.0.guidance_scale"),
        ([{"0.strength": [0.5]}], "0.strength"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_sweep_that_is_none_is_refused_by_field(farm: AnyFarm, sweep: Any, loc: str) -> None:
    with pytest.raises(InvalidJob) as wrong:
        farm.dry_run("a pear", chain="txt", sweep=sweep)
    assert [one.loc for one in wrong.value.errors] == [loc]
    with pytest.raises(InvalidJob):
        farm.render("a pear", chain="txt", sweep=[{"seed": [1]}])


def test_images_are_swept(farm: AnyFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [{"kind": "text2img"}, {"kind": "inpaint", "mask": farm.upload(picture("white"))}]
    masks = [picture("white"), picture("white", (32, 32))]
    jobs = farm.run("a pear", chain={"stages": stages}, sweep=[{"1.mask": masks, "seed": [1, 2]}])
    assert [len(job.input_images()) for job in jobs] == [1, 1]
    # And so are files that are named by their paths, but no prompt that is a file's name
    (tmp_path / "a.png").write_bytes(masks[0])
    (tmp_path / "b.png").write_bytes(masks[1])
    monkeypatch.chdir(tmp_path)
    jobs = farm.run(chain={"stages": stages}, sweep=[{"1.mask": ["a.png", "b.png"], "prompt": ["a.png", "a pear"]}])
    assert [json.loads(job.record.spec)["chain"]["prompt"] for job in jobs] == ["a.png", "a pear"]
    assert [len(job.input_images()) for job in jobs] == [1, 1]
    with pytest.raises(InvalidJob):
        farm.upload(b"no picture")


def test_a_sweep_of_which_one_variant_does_not_fit_stores_nothing(site: Site) -> None:
    def stored() -> tuple[int, int]:
        found = site.farm.store.client.list_objects_v2(Bucket=site.farm.store.bucket)
        return found["KeyCount"], len(site.farm.jobs(limit=1000))

    stages = [{"kind": "text2img"}, {"kind": "inpaint", "mask": picture("white", (40, 48)), "strength": 0.5}]
    before = stored()
    with pytest.raises(InvalidJob) as wrong:
        site.farm.run("a pear", chain={"stages": stages}, sweep=[{"0.width": [80, 88], "1.strength": [0.5, 2.0]}])
    assert wrong.value.errors[0].msg.endswith("(variant 1)")
    assert stored() == before
    site.farm.run("a pear", chain={"stages": stages}, sweep=[{"0.width": [80, 88], "1.strength": [0.5, 0.6]}])
    assert stored() == (before[0] + 2, before[1] + 2)


def test_a_run_is_listed_and_steered_as_a_whole(site: Site, farm: AnyFarm) -> None:
    jobs = farm.run("a pear", chain="txt", count=3)
    run = jobs[0].record.run
    assert run in [one.run for one in farm.runs(limit=2)]
    assert (farm.run_record(run).count, farm.run_record(run).states) == (3, {"queued": 3})
    for steer, states in (
        (farm.pause_run, {"paused": 3}),
        (farm.resume_run, {"queued": 3}),
        (farm.cancel_run, {"cancelled": 3}),
        (farm.retry_run, {"queued": 3}),
    ):
        assert steer(run).states == states
        with pytest.raises(NotFound):
            steer("nothing")


def test_what_changes_is_told(site: Site, farm: AnyFarm, hand: Hand) -> None:
    """A run from its jobs' first to their last state, one job until it has ended, and everything there is."""
    jobs = farm.run("a pear", chain="txt", seed=secrets.randbits(40), count=2)
    run = jobs[0].record.run
    seen: list[Snapshot] = []

    def watch() -> None:
        for told in farm.events(run):
            seen.append(told)
            if {one.id for one in seen if one.state == "done"} == {job.id for job in jobs}:
                return

    watchers = [threading.Thread(target=watch)]
    one: list[Snapshot] = []
    watchers.append(threading.Thread(target=lambda: one.extend(jobs[0].events())))
    for thread in watchers:
        thread.start()
    assert next(farm.events()).state == "queued"
    for _ in jobs:
        hand.serve(hand.claim(QUEUE))
    for thread in watchers:
        thread.join(60)
    assert {told.run for told in seen} == {run}
    for told in (seen, one):
        assert told[0].state in ("queued", "running", "done")
        assert (told[-1].state, told[-1].progress) == ("done", 1.0)
    assert {told.id for told in one} == {jobs[0].id}
    with pytest.raises(NotFound):
        next(farm.events("nothing"))


def test_files_are_read_beside_the_event_loop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop that awaits goes on while images are read and pictures written."""
    threads: set[int] = set()

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any) -> Any:
            threads.add(threading.get_ident())
            return call(*given)

        return noted

    from farm.remote import asks, awaited_job

    monkeypatch.setattr(asks, "_data", noting(asks._data))
    monkeypatch.setattr(awaited_job, "write_pictures", noting(awaited_job.write_pictures))

    async def main() -> int:
        async with AsyncFarm(site.url, site.token("ada")) as there:
            await there.upload(picture("red"))
            job = await there.render("a pear", chain="txt")
            await job.cancel()
            await job.download("nowhere")
        return threading.get_ident()

    loop = asyncio.run(main())
    assert threads
    assert loop not in threads
