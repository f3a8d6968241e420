"""Is a call that was lost sent again, where that does no harm, and does a broken event stream go on?"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import httpx2
import pytest

from farm.errors import Conflict, FarmError, InvalidJob, QuotaExceeded, Unavailable
from farm.remote import RemoteFarm, wire
from farm.remote.wire import TRIES, Answer, Call, Pause, ask
from tests.api.conftest import Site
from tests.conftest import free_port
from tests.e2e.proxy import Proxy
from tests.e2e.rig import until
from tests.test_cli import Hand

QUEUE = "text2img.tiny"


@pytest.fixture
def proxy(site: Site) -> Iterator[Proxy]:
    """What lies between the client and the API."""
    found = Proxy(int(site.url.rpartition(":")[2]))
    yield found
    found.stop()
    site.empty()


@pytest.fixture
def remote(site: Site, proxy: Proxy) -> Iterator[RemoteFarm]:
    with RemoteFarm(f"http://127.0.0.1:{proxy.port}", site.token("ada")) as farm:
        yield farm


@pytest.fixture
def sent(remote: RemoteFarm) -> list[httpx2.Request]:
    """Every request that the client has sent."""
    found: list[httpx2.Request] = []
    remote._http.event_hooks["request"].append(found.append)
    return found


def test_a_submit_whose_reply_is_lost_is_sent_again_with_its_key(
    site: Site, proxy: Proxy, remote: RemoteFarm, sent: list[httpx2.Request]
) -> None:
    # Given a network that drops the reply once the API has written the job
    before = len(site.farm.jobs(limit=1000))
    proxy.drop_reply(b"POST /api/v1/jobs ")
    # When it is submitted
    job = remote.render("a pear", chain="txt")
    # Then it was sent twice, with one key, and is there once
    keys = [request.headers["idempotency-key"] for request in sent]
    assert proxy.dropped == 1
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert len(site.farm.jobs(limit=1000)) == before + 1
    assert site.farm.jobs(limit=1)[0].job == job.id


def test_an_outcome_that_stays_unknown_names_the_key(site: Site, proxy: Proxy, remote: RemoteFarm) -> None:
    # Given a network that drops a reply and is away from then on
    proxy.drop_reply(b"POST /api/v1/jobs ")
    remote._http.event_hooks["request"].append(lambda request: proxy.dropped and proxy.cut())
    # When a job is submitted
    with pytest.raises(Unavailable) as lost:
        remote.render("a pear", chain="txt", seed=11)
    # Then it is said that it may be there, and under which key; sent with that, it is the same job
    assert lost.value.code == "outcome_unknown"
    key = lost.value.hint.split("key ")[1].split(":")[0]
    remote._http.event_hooks["request"].clear()
    proxy.mend()
    job = remote.render("a pear", chain="txt", seed=11, idempotency_key=key)
    assert [record.job for record in site.farm.jobs(limit=1)] == [job.id]


def test_a_look_is_repeated_a_few_times_and_a_retry_is_not(
    proxy: Proxy, remote: RemoteFarm, sent: list[httpx2.Request]
) -> None:
    # Given a job that was looked at
    job = remote.render("a pear", chain="txt")
    sent.clear()
    # When a reply is lost, the look is repeated
    proxy.drop_reply(b"GET /api/v1/jobs/")
    assert job.state == "queued"
    assert len(sent) == 2
    # But not for ever
    sent.clear()
    proxy.cut()
    with pytest.raises(Unavailable):
        _ = job.state
    assert len(sent) == TRIES
    # And what might do something twice is not
    proxy.mend()
    job.cancel()
    sent.clear()
    proxy.drop_reply(b"/retry ")
    with pytest.raises(Unavailable):
        job.retry()
    assert len(sent) == 1
    assert job.state == "queued"
    with pytest.raises(Conflict):
        job.retry()


def test_a_stream_that_is_cut_goes_on_after_the_last_event(
    site: Site, proxy: Proxy, remote: RemoteFarm, sent: list[httpx2.Request]
) -> None:
    # Given somebody who watches a job
    hand = Hand(site.settings, site.farm.store)
    job, seen = remote.render("a pear", chain="txt"), list[str]()
    sent.clear()
    watcher = threading.Thread(target=lambda: seen.extend(told.state for told in job.events()))
    watcher.start()
    claim = hand.claim(QUEUE)
    until(lambda: "running" in seen, 30, "the claim to be told")
    # When the connection breaks, and the job is done while it is away
    proxy.cut()
    hand.serve(claim)
    proxy.mend()
    # Then the end is told all the same, on a connection that asked for what came after the last event
    watcher.join(30)
    assert seen[-1] == "done"
    lasts = [request.headers.get("last-event-id") for request in sent if request.url.path.endswith("/events")]
    assert lasts[0] is None
    assert all(lasts[1:])
    assert len(lasts) > 1


def test_a_stream_that_cannot_be_made_is_an_error(site: Site, remote: RemoteFarm) -> None:
    job = remote.render("a pear", chain="txt")
    with RemoteFarm(site.url, site.token("bob")) as bob, pytest.raises(FarmError) as other:
        next(bob.job(job.id).events())
    assert other.value.code == "not_found"
    with RemoteFarm(site.url, "wrong") as nobody, pytest.raises(FarmError) as unknown:
        next(nobody.events())
    assert unknown.value.code == "unauthorized"


def play(call: Call, *answers: Answer) -> tuple[list[float], Answer | FarmError]:
    """The pauses before each further try, and what came of the call in the end."""
    steps, pauses, left = ask(call), list[float](), list(answers)
    try:
        step = next(steps)
        while True:
            if isinstance(step, Pause):
                pauses.append(step.seconds)
                step = next(steps)
            else:
                step = steps.send(left.pop(0))
    except StopIteration as end:
        return pauses, end.value
    except FarmError as error:
        return pauses, error


PROBLEM = b'{"code": "unavailable", "detail": "x"}'


@pytest.mark.parametrize(("status", "code"), [(429, "rate_limited"), (503, "busy")])
def test_what_came_too_early_is_sent_for_a_minute(monkeypatch: pytest.MonkeyPatch, status: int, code: str) -> None:
    # Given a clock on which each call takes 5 s
    ticks = itertools.count(0, 5)
    monkeypatch.setattr(wire, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    early = Answer(status, {"retry-after": "7"}, b'{"code": "%s", "detail": "x"}' % code.encode())
    # When, Then: whatever the call does, for nothing was done
    pauses, found = play(Call("POST", "x"), *[early] * 20)
    assert (getattr(found, "code", ""), getattr(found, "retry_after_s", 0)) == (code, 7.0)
    assert pauses == [7.0] * 10


def test_what_helps_is_told_on() -> None:
    refused = Answer(422, {}, b'{"code": "bad_file", "detail": "x", "hint": "rename one of them"}')
    _, found = play(Call("POST", "x"), refused)
    assert (type(found), getattr(found, "hint", "")) == (InvalidJob, "rename one of them")


def test_what_an_answer_asks_for_is_heeded() -> None:
    ok = Answer(200, {}, b"{}")
    # Given answers that name a time: it is kept, for whoever is too fast whatever the call does
    early = Answer(429, {"retry-after": "7"}, b'{"code": "rate_limited", "detail": "x"}')
    assert play(Call("POST", "x"), early, ok) == ([7.0], ok)
    assert play(Call("GET", "x", again=True), Answer(503, {"retry-after": "2"}, PROBLEM), ok) == ([2.0], ok)
    # A full quota is no matter of seconds: that is told at once
    full = Answer(429, {"retry-after": "30"}, b'{"code": "quota_exceeded", "detail": "x"}')
    pauses, found = play(Call("POST", "x", again=True), full)
    assert (pauses, type(found), getattr(found, "retry_after_s", 0)) == ([], QuotaExceeded, 30.0)
    # But not longer than anybody waits, and not where it might do something twice
    pauses, found = play(Call("GET", "x", again=True), Answer(503, {"retry-after": "999999"}, PROBLEM), ok)
    assert (pauses, found) == ([30.0], ok)
    pauses, found = play(Call("POST", "x"), Answer(503, {"retry-after": "2"}, PROBLEM))
    assert (pauses, getattr(found, "code", "")) == ([], "unavailable")


def test_what_answers_without_being_a_farm_is_told() -> None:
    page = Answer(502, {}, b"<h1>Bad Gateway</h1>")
    _, found = play(Call("GET", "x"), page)
    assert "no farm (HTTP 502)" in str(found)
    _, lost = play(Call("POST", "jobs", lost="outcome_unknown"), page)
    assert getattr(lost, "code", "") == "outcome_unknown"
    with RemoteFarm(f"http://127.0.0.1:{free_port()}") as nowhere, pytest.raises(Unavailable):
        nowhere.presets()
