"""Is everybody answered in turn, however much somebody asks for at once?"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpx2
import pytest

from farm.api import desk, guard, threads, uploads
from farm.api.desk import DECODERS, PIXELS, Desk
from farm.api.hub import MAX_FEEDS_EACH
from farm.api.turns import Turns
from farm.remote import AsyncFarm
from tests.api.conftest import PNG, Site, made, picture, txt
from tests.e2e.rig import until

JOBS, UPLOADS = "/api/v1/jobs", "/api/v1/uploads"
FEW = 8
"""Turns that may be given in the moment between a call's own turn and its going on."""
LONG_S = 200.0
"""How long calls wait that are not to be told of a slow machine, seconds."""


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with something else is no reason for the farm to say that it is busy, or a server away."""
    for room, name in ((guard, "ANSWER_S"), (desk, "DECODER_S"), (uploads, "DECODER_S")):
        monkeypatch.setattr(room, name, LONG_S)
    monkeypatch.setattr(threads, "_most_s", ContextVar("most_s", default=LONG_S))


@contextmanager
def flooded(site: Site, path: str, callers: int) -> Iterator[list[int]]:
    """What an owner is answered who asks for a path without a pause meanwhile, many times at once."""
    over, answers, text = threading.Event(), list[int](), site.token("ada")

    def call() -> None:
        with site.anonymous(Authorization=f"Bearer {text}") as client:
            client.timeout = LONG_S
            while not over.is_set():
                answers.append(client.get(path).status_code)

    with ThreadPoolExecutor(callers) as pool:
        for _ in range(callers):
            pool.submit(call)
        try:
            until(lambda: len(answers) >= callers // 4, 60, "a flood")
            yield answers
        finally:
            over.set()


@pytest.mark.usefixtures("unhurried")
def test_who_asks_for_much_keeps_nobody_waiting(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a look at how many of those that waited before a call were given their turn before it
    take, passed = Turns.take, defaultdict[str, list[int]](list)

    async def noted(self: Turns, caller: str, cost: int = 1) -> None:
        before = list(self._waiting)
        await take(self, caller, cost)
        passed[caller].append(sum(one not in self._waiting for one in before))

    monkeypatch.setattr(Turns, "take", noted)
    # And an owner who reads long pages, many at once
    text = site.token("bob")
    with site.client("ada") as ada, site.anonymous(Authorization=f"Bearer {text}") as bob:
        bob.timeout = LONG_S
        made(ada.post(JOBS, json=txt(count=200)))
        with flooded(site, f"{JOBS}?limit=200", 60) as answers:
            # When another reads and asks what a job would cost
            seen = [bob.get(JOBS, params={"limit": 1}).status_code for _ in range(20)]
            seen += [bob.post(f"{JOBS}/dry-run", json=txt()).status_code for _ in range(10)]
    # Then he is always answered, before those of hers that wait, and she still is
    assert seen == [200] * 30
    assert max(passed["ada"]) > FEW
    assert len(passed["bob"]) >= 30
    assert max(*passed["bob"], *passed[str(hash(text))]) <= FEW
    assert 200 in answers
    site.empty()


def test_streams_that_are_opened_at_once_are_all_opened(site: Site) -> None:
    headers = {"Authorization": f"Bearer {site.token('ada')}"}

    async def statuses() -> list[int]:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=site.url, headers=headers, timeout=60, limits=limits) as client:
            opened, over = list[int](), asyncio.Event()

            async def listen() -> None:
                async with client.stream("GET", "/api/v1/events") as answer:
                    opened.append(answer.status_code)
                    if len(opened) == MAX_FEEDS_EACH:
                        over.set()
                    await over.wait()

            await asyncio.gather(*(listen() for _ in range(MAX_FEEDS_EACH)))
            return opened

    assert asyncio.run(statuses()) == [200] * MAX_FEEDS_EACH


@pytest.mark.usefixtures("unhurried")
def test_uploads_wait_for_a_decoder(site: Site) -> None:
    pictures = [picture(f"#{secrets.token_hex(3)}", (512, 512)) for _ in range(30)]
    with site.client() as ada, ThreadPoolExecutor(30) as pool:
        ada.timeout = LONG_S
        answers = list(pool.map(lambda data: ada.post(UPLOADS, content=data, headers=PNG), pictures))
    assert [answer.status_code for answer in answers] == [201] * 30


def test_a_program_renders_many_pictures_at_once(site: Site) -> None:
    pictures = [picture(f"#{secrets.token_hex(3)}", (2048, 2048)) for _ in range(16)]

    async def rendered() -> list[Any]:
        async with AsyncFarm(site.url, site.token("ada")) as farm:
            return await asyncio.gather(*(farm.render("a pear", chain="img", image=one) for one in pictures))

    assert len({job.id for job in asyncio.run(rendered())}) == 16
    site.empty()


@pytest.mark.usefixtures("unhurried")
def test_large_pictures_are_decoded_one_at_a_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a look at how much is decoded at the same time
    read, lock, now, most = uploads.read_input, threading.Lock(), list[int](), list[tuple[int, int]]()

    def counted(data: bytes, *given: Any) -> Any:
        size = uploads.size_of(data)
        with lock:
            now.append(size.width * size.height)
            most.append((sum(now), len(now)))
        try:
            return read(data, *given)
        finally:
            with lock:
                now.remove(size.width * size.height)

    monkeypatch.setattr(uploads, "read_input", counted)
    # When small pictures and some that are as large as a picture may be come together
    large = [picture(colour, (8192, 4096)) for colour in ("red", "blue")]
    small = [picture(f"#{secrets.token_hex(3)}") for _ in range(2 * DECODERS)]
    with site.client() as ada, ThreadPoolExecutor(16) as pool:
        ada.timeout = LONG_S
        answers = list(
            pool.map(lambda data: ada.post(UPLOADS, content=data, headers=PNG).status_code, [*small, *large, *small])
        )
    # Then each large one was alone, and the small ones were few
    assert set(answers) == {201}
    assert all(pixels <= PIXELS or count == 1 for pixels, count in most)
    assert max(count for _, count in most) <= DECODERS


@pytest.mark.parametrize(
    ("path", "ask", "few"),
    [
        ("datasets", {"name": "some", "file": f"{'0' * 64}/rows.csv"}, True),
        ("jobs", {"chain": "nobody-saved-this", "prompt": "a fig"}, True),
        ("jobs/dry-run", {"chain": "nobody-saved-this", "prompt": "a fig"}, True),
        ("jobs/dry-run", {"chain": "txt", "prompt": "a fig"}, False),
    ],
)
def test_what_may_name_images_is_worked_out_few_at_a_time(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str, ask: dict[str, Any], few: bool
) -> None:
    # Given a look at what takes a turn of the decoders
    decode, turns = Desk.decode, list[int]()

    def counted(self: Desk, pixels: int, *given: Any) -> Any:
        turns.append(pixels)
        return decode(self, pixels, *given)

    monkeypatch.setattr(Desk, "decode", counted)
    # When, Then
    with site.client() as ada:
        answer = ada.post(f"/api/v1/{path}", json=ask)
    assert answer.status_code == (422 if few else 200), answer.text
    assert len(turns) == few


def test_the_next_turn_is_of_who_has_least() -> None:
    async def order() -> list[str]:
        turns, had = Turns(2, 2), list[str]()

        async def call(name: str) -> None:
            await turns.take(name[0])
            had.append(name)
            await asyncio.sleep(0)
            turns.give(name[0])

        await asyncio.gather(*(call(name) for name in ("a1", "a2", "a3", "a4", "b1")))
        return had

    # When one has asked for four before another asks, Then that one is next
    assert asyncio.run(order())[:3] == ["a1", "a2", "b1"]


def test_one_has_no_more_than_a_share_and_what_is_large_is_not_passed() -> None:
    async def play() -> None:
        turns = Turns(4, 2)
        await turns.take("a", 2)
        # Given one who has her share, When another comes, Then he passes
        waits = asyncio.ensure_future(turns.take("a"))
        await turns.take("b")
        assert not waits.done()
        # And where one needs all, nobody who comes later is let in before
        large = asyncio.ensure_future(turns.take("c", 4))
        await asyncio.sleep(0)
        later = asyncio.ensure_future(turns.take("d"))
        await asyncio.sleep(0)
        assert not large.done()
        assert not later.done()
        # And who leaves holds up nobody
        large.cancel()
        await later
        turns.give("a", 2)
        await waits

    asyncio.run(asyncio.wait_for(play(), 30))
