"""Does a receiver hear of every end, know that it was the farm, and get it again until it takes it?"""

from __future__ import annotations

import dataclasses
import json
import secrets
import ssl
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import httpx2
import pytest
import redis
from standardwebhooks.webhooks import WebhookVerificationError

from farm.api import courier
from farm.api.courier import Patience
from farm.api.deliverer import Deliverer
from farm.api.outbox import Outbox
from farm.errors import InvalidJob, NotFound
from farm.job import make_job
from farm.ledger import FAN, Ledger
from farm.scripts import Server
from farm.settings import Settings
from farm.webhooks import TOPICS, Webhooks, now_ms
from tests.api.conftest import Site, made, open_site, serving, txt
from tests.api.receiver import receiving
from tests.conftest import Valkey
from tests.e2e.rig import until
from tests.test_cli import Hand

JOBS = "/api/v1/jobs"
QUEUE = "text2img.tiny"
BRISK = Patience(pauses_s=(0.05,) * 60, timeout_s=3, disable_s=3600)
"""Retries that come soon, and so many that a slow machine gives up nothing."""


@pytest.fixture(scope="module")
def site(site_settings: Settings) -> Iterator[Site]:
    """The module's served farm, whose retries come soon."""
    with open_site(site_settings, patience=BRISK) as found:
        yield found


@pytest.fixture
def hooks(site_settings: Settings) -> Iterator[Webhooks]:
    """The module's endpoints, none at first."""
    server = Server(site_settings, FAN)
    found = Webhooks(server)
    yield found
    for endpoint in found.all():
        found.remove(endpoint.id)
    server.close()


@pytest.fixture
def own(shared_valkey: Valkey, s3: dict[str, str], tmp_path: Path) -> Settings:
    """Settings of a farm of the test's own, whose API it starts and stops."""
    name = secrets.token_hex(6)
    data = tmp_path / "data"
    return Settings.load(redis_url=shared_valkey.url, namespace=name, bucket=f"test-{name}", data=data, **s3)


def submit(client: httpx2.Client, **given: object) -> str:
    """The id of a new job."""
    return str(made(client.post(JOBS, json=txt(**given)))["jobs"][0]["id"])


def cancelled(client: httpx2.Client, **given: object) -> str:
    """The id of a new job, cancelled at once."""
    job = submit(client, **given)
    assert client.post(f"{JOBS}/{job}/cancel").status_code == 200
    return job


def test_a_receiver_knows_the_farm_and_what_was_tampered_with(site: Site, ada: httpx2.Client, hooks: Webhooks) -> None:
    with receiving() as receiver:
        # Given
        _, secret = hooks.create(f"{receiver.url}/hook?farm=1")
        # When a job is done
        job = submit(ada, prompt="a secret pear")
        hand = Hand(site.settings, site.farm.store)
        while site.farm.ledger.job(job).state != "done":
            hand.serve(hand.claim(QUEUE))
        (call,) = receiver.hears(job)
    # Then the message is signed, and says what ended
    found = call.verified(secret)
    assert (found["type"], found["data"]["state"], found["data"]["code"]) == ("job.done", "done", "")
    assert found["data"]["urls"]["artifacts"] == f"{JOBS}/{job}/artifacts"
    assert found["data"]["owner"] == ada.get(f"{JOBS}/{job}").json()["owner"]
    assert found["timestamp"] == found["data"]["ended"] == ada.get(f"{JOBS}/{job}").json()["ended"]
    assert receiver.paths == ["/hook?farm=1"]
    assert b"pear" not in call.body
    # And nothing of it can be changed
    for headers, body in (
        (call.headers, call.body.replace(b"job.done", b"job.lost")),
        ({**call.headers, "webhook-id": "msg_0"}, call.body),
        ({**call.headers, "webhook-timestamp": str(int(call.headers["webhook-timestamp"]) - 1)}, call.body),
    ):
        with pytest.raises(WebhookVerificationError):
            dataclasses.replace(call, headers=headers, body=body).verified(secret)


def test_what_is_not_taken_comes_again_as_it_was(ada: httpx2.Client, hooks: Webhooks, site: Site) -> None:
    with receiving() as receiver:

        def answer(number: int) -> int | None:
            if number == 2:
                receiver.over.wait(30)  # longer than it is waited for
            return (500, None, 503, 302)[number] if number < 4 else 204

        # Given a receiver that fails, closes the line, hangs, and leads elsewhere
        receiver.answers = answer
        endpoint, secret = hooks.create(receiver.url)
        # When
        job = cancelled(ada)
        receiver.hears(job, 5)
        # Then it gets the same message each time, freshly signed, and the redirect was not followed
        until(lambda: hooks.waiting(endpoint.id) == 0, 30)
        calls = receiver.of(job)
        assert len({(call.id, call.body) for call in calls}) == 1
        assert {call.verified(secret)["type"] for call in calls} == {"job.cancelled"}
        assert set(receiver.paths) == {"/"}
        # And once it has taken it, it hears no more of it, and fares well
        later = cancelled(ada)
        receiver.hears(later)
        assert len(receiver.of(job)) == len(calls)
        until(lambda: hooks.health()[endpoint.id].failing_since_ms == 0, 30)


def test_each_gets_what_it_asked_for(site: Site, hooks: Webhooks) -> None:
    # Given receivers of one owner's, of one topic, and of everything
    ada, bob = site.client("ada-w"), site.client("bob-w")
    with receiving() as of_ada, receiving() as of_expired, receiving() as of_all:
        secret = {receiver.url: "" for receiver in (of_ada, of_expired, of_all)}
        for receiver, options in (
            (of_ada, {"owner": "ada-w"}),
            (of_expired, {"events": ["job.expired", "job.failed"]}),
            (of_all, {}),
        ):
            _, secret[receiver.url] = hooks.create(receiver.url, **options)  # type: ignore[arg-type]
        # When
        hers, his = cancelled(ada), cancelled(bob)
        late = submit(bob, deadline_s=0.2)
        # Then
        of_expired.hears(late)
        for job in (hers, his, late):
            of_all.hears(job)
        of_ada.hears(hers)
        assert {call.data["id"] for call in of_ada.calls} == {hers}
        assert {(call.data["id"], call.topic) for call in of_expired.calls} == {(late, "job.expired")}
        assert of_expired.calls[0].data["code"] == "deadline"
        # And each has a secret of its own, and the message one id
        (one,), (other,) = of_ada.of(hers), of_all.of(hers)
        assert one.id == other.id
        one.verified(secret[of_ada.url])
        with pytest.raises(WebhookVerificationError):
            one.verified(secret[of_all.url])


def test_a_run_is_told_once_all_its_jobs_have_ended(site: Site, ada: httpx2.Client, hooks: Webhooks) -> None:
    with receiving() as receiver:
        # Given a run, of which some jobs have ended
        hooks.create(receiver.url, events=["run.done"])
        found = made(ada.post(JOBS, json=txt(count=3)))
        ids = [job["id"] for job in found["jobs"]]
        for job in ids[:2]:
            ada.post(f"{JOBS}/{job}/cancel")
        raw = redis.Redis.from_url(site.settings.redis_url.get_secret_value())
        key = f"{{{site.settings.namespace}}}:webhooks:runs"
        until(lambda: raw.zcard(key) == 1, 30, "a note to look at the run")
        until(lambda: raw.zcard(key) == 0, 30, "a look at the run")
        assert receiver.calls == []
        # When the last one ends
        hand = Hand(site.settings, site.farm.store)
        while site.farm.ledger.job(ids[2]).state != "done":
            hand.serve(hand.claim(QUEUE))
        # Then
        (call,) = receiver.hears(found["run"])
    assert (call.topic, call.data["count"]) == ("run.done", 3)
    assert call.data["states"] == {"cancelled": 2, "done": 1}
    assert call.data["owner"] == ada.get(f"{JOBS}/{ids[0]}").json()["owner"]


def test_a_dataset_is_told_of_as_a_whole_and_its_samples_are_not(
    site: Site, ada: httpx2.Client, hooks: Webhooks
) -> None:
    with receiving() as receiver:
        # Given an endpoint for everything, and a sample of a dataset beside a job
        hooks.create(receiver.url)
        farm, hand = site.farm, Hand(site.settings, site.farm.store)
        fig, job = (
            make_job(farm.chain("txt", prompt=prompt, seed=5), farm.catalog, farm.settings)
            for prompt in ("a fig", "a plum")
        )
        sample = dataclasses.replace(fig, collected=True, run=str(uuid.uuid4()))
        farm.submit([sample, job])
        # When both end, and the dataset with them
        while any(farm.ledger.job(one.id).state != "done" for one in (sample, job)):
            hand.serve(hand.claim(QUEUE))
        # The clock of its feeder is an hour behind the ledger's.
        ended = round(time.time() - 3600) * 1000
        told = {"id": "fruit", "owner": "", "samples": 1, "done": 1, "failed": 0, "ended": ended}
        hooks.tell("fruit:0", json.dumps(told))
        # Then the job and the dataset are told of, each once, and not the sample
        receiver.hears(job.id)
        (call,) = receiver.hears("fruit")
        urls = {"self": "/api/v1/datasets/fruit"}
        assert (call.topic, call.data | {"ended": ended}) == ("dataset.done", {**told, "urls": urls})
        assert {one.topic for one in receiver.calls} == {"job.done", "dataset.done"}
        assert sample.id not in {one.data["id"] for one in receiver.calls}


def test_word_of_a_dataset_is_forgotten_by_who_has_noted_it_alone(own: Settings) -> None:
    # Given an API process that has lost the seat to another, unawares
    server = Server(own, FAN)
    hooks, outbox, other = Webhooks(server), Outbox(server, "one"), Outbox(server, "other")
    ledger = Ledger(own)
    with receiving() as receiver:
        endpoint, _ = hooks.create(receiver.url)
        hooks.tell("fruit:0", json.dumps({"id": "fruit", "owner": "", "samples": 1, "ended": 1}))
        assert other.lead(60)
        # When it looks at the datasets, Then what it can tell nobody of is there still
        with ThreadPoolExecutor(1) as elsewhere:  # where no other test has left a loop
            elsewhere.submit(anyio.run, Deliverer(ledger, hooks, outbox, BRISK)._look_at_datasets, [endpoint]).result()
        assert (list(outbox.datasets()), hooks.waiting(endpoint.id)) == (["fruit:0"], 0)
        # And the next to lead tells it
        other.lead(0)
        with serving(own, patience=BRISK):
            receiver.hears("fruit")
            until(lambda: not outbox.datasets(), 20, "the word to be forgotten")
    ledger.close()
    server.close()


def test_a_slow_receiver_holds_up_nobody_else(site: Site, ada: httpx2.Client, hooks: Webhooks) -> None:
    with receiving() as slow, receiving() as quick:

        def hang(number: int) -> int:
            slow.over.wait(60)
            return 204

        # Given a receiver that keeps every call waiting, as long as it is allowed to
        slow.answers = hang
        first, _ = hooks.create(slow.url)
        hooks.create(quick.url)
        # When
        jobs = [cancelled(ada) for _ in range(20)]
        # Then the other one gets everything while the first one has taken nothing
        for job in jobs:
            quick.hears(job)
        assert hooks.waiting(first.id) == 20


def test_a_slow_message_holds_up_no_other(own: Settings) -> None:
    server = Server(own, FAN)
    hooks = Webhooks(server)
    with receiving() as receiver:

        def answer(number: int) -> int:
            if number == 0:
                receiver.over.wait(60)
            return 204

        # Given a receiver that keeps the first of many messages waiting
        receiver.answers = answer
        endpoint, _ = hooks.create(receiver.url)
        patient = dataclasses.replace(BRISK, timeout_s=60)
        with open_site(own, patience=patient) as site, site.client() as ada:
            # When
            run = made(ada.post(JOBS, json=txt(count=20)))
            ada.post(f"/api/v1/runs/{run['run']}/cancel")
            # Then all others arrive meanwhile
            until(lambda: len({call.id for call in receiver.calls}) == 21, 60, "the jobs and the run")
            until(lambda: hooks.waiting(endpoint.id) == 1, 30)
            receiver.over.set()
            until(lambda: hooks.waiting(endpoint.id) == 0, 30)
    server.close()


def test_whoever_leaves_too_much_waiting_is_disabled(
    site: Site, ada: httpx2.Client, hooks: Webhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a receiver that takes nothing, and one that does
    monkeypatch.setattr(courier, "MAX_WAITING", 3)
    with receiving(lambda _: 500) as broken, receiving() as well:
        endpoint, _ = hooks.create(broken.url)
        hooks.create(well.url)
        # When more waits for it than may
        for _ in range(5):
            # Then the other one hears of all
            well.hears(cancelled(ada))
        # And nothing waits for it any more, and the operator is told why
        until(lambda: endpoint.id in hooks.health() and hooks.health()[endpoint.id].disabled_ms, 60)
        assert hooks.health()[endpoint.id].why == "more than 3 messages waited"
        until(lambda: hooks.waiting(endpoint.id) == 0, 30)


def test_whoever_is_gone_or_silent_for_days_is_disabled(own: Settings) -> None:
    # Waited for long: an answer that a slow machine gives late is no silence.
    weary = Patience(pauses_s=(0.05,) * 1000, timeout_s=60, disable_s=0.5)
    server = Server(own, FAN)
    hooks = Webhooks(server)
    with receiving(lambda _: 410) as gone, receiving(lambda _: 500) as broken, receiving() as well:
        ids = [hooks.create(receiver.url)[0].id for receiver in (gone, broken, well)]
        with open_site(own, patience=weary) as site, site.client() as ada:
            # When
            job = cancelled(ada)
            # Then one is disabled at once, and one after a while; what waited for them is forgotten
            until(lambda: len([one for one in hooks.health().values() if one.disabled_ms]) == 2, 60)
            assert len(gone.of(job)) == 1
            assert len(broken.of(job)) > 1
            until(lambda: [hooks.waiting(name) for name in ids[:2]] == [0, 0], 60)
            assert "410" in hooks.health()[ids[0]].why
            assert "days" in hooks.health()[ids[1]].why
            # And the others go on
            well.hears(job)
            later = cancelled(ada)
            well.hears(later)
            assert (gone.of(later), broken.of(later)) == ([], [])
            # When it is enabled again
            broken.answers = lambda _: 204
            hooks.enable(ids[1])
            # Then it hears of what ends from now on
            until(lambda: cancelled(ada) and [call for call in broken.calls if call.data["id"] != job], 60)
            assert broken.of(later) == []
    server.close()


def test_a_message_is_given_up_after_its_last_try(own: Settings) -> None:
    server = Server(own, FAN)
    hooks = Webhooks(server)
    with receiving(lambda _: 500) as broken:
        endpoint, _ = hooks.create(broken.url)
        with open_site(own, patience=Patience(pauses_s=(0.05, 0.05), timeout_s=1)) as site, site.client() as ada:
            job = cancelled(ada)
            until(lambda: endpoint.id in hooks.health() and hooks.health()[endpoint.id].given_up == 1, 60)
            assert hooks.waiting(endpoint.id) == 0
    assert len(broken.of(job)) == 3
    server.close()


def test_a_restart_of_the_api_loses_none(own: Settings) -> None:
    server = Server(own, FAN)
    hooks = Webhooks(server)
    patience = Patience(pauses_s=(0.05,) * 1000, timeout_s=1)
    with receiving(lambda _: 500) as receiver:
        with open_site(own, patience=patience) as site, site.client() as ada:
            # Given a job that ended before there was an endpoint, and some that its receiver would not take
            before = cancelled(ada)
            endpoint, _ = hooks.create(receiver.url)
            told = [cancelled(ada) for _ in range(5)]
            for job in told:
                receiver.hears(job)
        assert hooks.waiting(endpoint.id) == 5
        # When others end while no API runs, and one runs again
        with site.farm as farm:
            meanwhile = [handle.id for handle in farm.run("a pear", chain="txt", count=5)]
            for job in meanwhile:
                farm.ledger.cancel(job)
        receiver.calls.clear()
        receiver.answers = lambda _: 204
        with serving(own, patience=patience):
            # Then all of them are told
            for job in (*told, *meanwhile):
                receiver.hears(job)
            until(lambda: hooks.waiting(endpoint.id) == 0, 30)
    assert receiver.of(before) == []
    server.close()


def test_nothing_is_lost_where_the_stream_keeps_less(own: Settings, shared_valkey: Valkey) -> None:
    server = Server(own, FAN)
    hooks = Webhooks(server)
    with receiving() as receiver:
        endpoint, _ = hooks.create(receiver.url)
        with open_site(own, patience=BRISK) as site, site.client() as ada:
            known = cancelled(ada)
            receiver.hears(known)
        # Given jobs that end while no API runs, of which the stream knows no more
        with site.farm as farm:
            jobs = [handle.id for handle in farm.run("a pear", chain="txt", count=70)]
            for job in jobs:
                farm.ledger.cancel(job)
            (other,) = farm.run("a plum", chain="txt")
            for number in range(1000):
                farm.ledger.reprioritise(other.id, number % 100)
        redis.Redis.from_url(shared_valkey.url).xtrim(f"{{{own.namespace}}}:events", maxlen=1000, approximate=False)
        # When an API runs again
        with serving(own, patience=BRISK):
            # Then
            for job in jobs:
                receiver.hears(job)
            until(lambda: hooks.waiting(endpoint.id) == 0, 30)
    # And what was told before has come once, or as the same message
    assert len({call.id for call in receiver.of(known)}) == 1
    server.close()


def test_two_apis_tell_it_once(own: Settings) -> None:
    server = Server(own, FAN)
    patient = dataclasses.replace(BRISK, timeout_s=60)  # so that a slow machine sends nothing again
    with receiving() as receiver, open_site(own, patience=patient) as site, site.client() as ada:
        hooks = Webhooks(server)
        endpoint, _ = hooks.create(receiver.url)
        with serving(own, patience=patient):
            jobs = [cancelled(ada) for _ in range(20)]
            for job in jobs:
                receiver.hears(job)
            until(lambda: hooks.waiting(endpoint.id) == 0, 30)
        last = cancelled(ada)
        receiver.hears(last)
    assert sorted(call.data["id"] for call in receiver.calls) == sorted([*jobs, last])
    server.close()


def test_both_secrets_sign_while_one_is_replaced(ada: httpx2.Client, hooks: Webhooks, site: Site) -> None:
    with receiving() as receiver:
        # Given
        endpoint, old = hooks.create(receiver.url)
        changed, new = hooks.rotate(endpoint.id)
        assert new != old
        # When
        (call,) = receiver.hears(cancelled(ada))
        # Then
        assert len(call.headers["webhook-signature"].split(" ")) == 2
        assert call.verified(old) == call.verified(new)
        # And the old one signs no more when its day is over
        tomorrow = now_ms() // 1000 + 86401
        assert " " not in changed.signature("msg_1", tomorrow, b"{}")


def test_an_endless_answer_is_not_read(ada: httpx2.Client, hooks: Webhooks, site: Site) -> None:
    with receiving() as receiver:
        receiver.endless = True
        endpoint, _ = hooks.create(receiver.url)
        job = cancelled(ada)
        receiver.hears(job)
        until(lambda: endpoint.id in hooks.health(), 30)
        assert hooks.health()[endpoint.id].said == "204"
        assert len(receiver.of(job)) == 1


def test_a_certificate_that_nobody_vouches_for_is_refused(
    ada: httpx2.Client, hooks: Webhooks, site: Site, tmp_path: Path
) -> None:
    # Given
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with receiving(wrap=lambda sock: context.wrap_socket(sock, server_side=True)) as receiver:
        endpoint, _ = hooks.create(receiver.url)
        # When
        cancelled(ada)
        # Then
        until(lambda: endpoint.id in hooks.health(), 30)
        assert hooks.health()[endpoint.id].said == "no connection (ConnectError)"
        assert receiver.calls == []


@pytest.mark.parametrize(
    "url",
    ["", "example.org", "ftp://example.org", "https://", "https://a:b@example.org/", "https://example.org/#x",
     "https://example.org:99999/", "https://exa mple.org/", "https://example.org/\n", "https://[x/",
     "http://e/" + "x" * 2000],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(hooks: Webhooks, url: str) -> None:
    with pytest.raises(InvalidJob) as info:
        hooks.create(url)
    assert info.value.errors[0].loc == "url"
    assert hooks.all() == []


def test_an_endpoint_is_kept_as_it_was_made_and_goes_whole(hooks: Webhooks) -> None:
    # Given
    endpoint, secret = hooks.create("https://example.org/hook", "ada", ["run.done", "job.failed"])
    assert endpoint.events == ("job.failed", "run.done")
    assert secret.startswith("whsec_")
    assert secret not in repr(endpoint)
    assert hooks.create("https://example.org/hook")[0].events == TOPICS
    for owner, events, loc in (("Ada", [], "owner"), ("", ["job.lost"], "event")):
        with pytest.raises(InvalidJob) as info:
            hooks.create("https://example.org/hook", owner, events)
        assert info.value.errors[0].loc == loc
    # When
    hooks.remove(endpoint.id)
    # Then
    for call in (hooks.get, hooks.remove, hooks.rotate):
        with pytest.raises(NotFound):
            call(endpoint.id)
