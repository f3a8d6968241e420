"""Can the operator add, look after, try and remove receivers of webhooks from a terminal?"""

from __future__ import annotations

import pytest

from farm.client import Farm
from farm.ledger import FAN
from farm.scripts import Server
from farm.webhooks import Health, Webhooks, now_ms
from tests.api.receiver import receiving
from tests.test_cli import Run, farm, run

__all__ = ["farm", "run"]


def test_a_receiver_is_added_listed_changed_and_removed(run: Run, farm: Farm) -> None:
    # When
    made = run("webhook", "create", "https://example.org/hook", "--owner", "ada", "--event", "job.done", "--json")
    # Then its secret is told once
    data = made.envelope["data"]
    assert (data["url"], data["owner"], data["events"]) == ("https://example.org/hook", "ada", ["job.done"])
    assert data["secret"].startswith("whsec_")
    listed = run("webhook", "ls", "--json")
    (one,) = listed.envelope["data"]
    assert (one["id"], one["state"], one["waiting"]) == (data["id"], "ok", 0)
    assert "whsec_" not in listed.out + run("webhook", "ls").out
    # And it can be changed, and removed
    fresh = run("webhook", "rotate", data["id"], "--json").envelope["data"]["secret"]
    assert fresh.startswith("whsec_")
    assert fresh != data["secret"]
    assert run("webhook", "rm", data["id"]).status == 0
    assert run("webhook", "ls", "--json").envelope["data"] == []
    for call in ("rm", "rotate", "test"):
        assert run("webhook", call, data["id"], "--json").code == "not_found"


@pytest.mark.parametrize(
    ("words", "loc"),
    [
        (["file:///etc/passwd"], "url"),
        (["https://example.org", "--event", "job.lost"], "event"),
        (["https://example.org", "--owner", "A B"], "owner"),
    ],
)
def test_what_cannot_be_is_named(run: Run, farm: Farm, words: list[str], loc: str) -> None:
    found = run("webhook", "create", *words, "--json")
    assert (found.status, found.envelope["error"]["errors"][0]["loc"]) == (2, loc)


def test_a_test_that_arrives_enables_again(run: Run, farm: Farm) -> None:
    server = Server(farm.settings, FAN)
    hooks = Webhooks(server)
    with receiving(lambda number: 500 if number == 0 else 204) as receiver:
        # Given a receiver that was disabled
        endpoint, secret = hooks.create(receiver.url)
        hooks.note(endpoint.id, Health(disabled_ms=now_ms(), why="it answered 410: gone"))
        told = run("webhook", "ls")
        assert "disabled" in told.out
        assert "410" in told.out
        # When a test does not arrive, Then it stays so
        failed = run("webhook", "test", endpoint.id)
        assert failed.status == 4
        assert "has not taken it: 500" in failed.err
        assert hooks.health()[endpoint.id].disabled_ms
        # When one does
        assert run("webhook", "test", endpoint.id).status == 0
        # Then it was signed, and the receiver is told again
        assert receiver.calls[1].verified(secret)["type"] == "farm.test"
        assert run("webhook", "ls", "--json").envelope["data"][0]["state"] == "ok"
    # And where nobody listens, that is said without the address
    silent = run("webhook", "test", endpoint.id)
    assert "no connection" in silent.err
    assert "127.0.0.1" not in silent.err
    server.close()
