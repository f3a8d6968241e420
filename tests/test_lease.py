"""A lease is held while the stage moves, and left at the next step when it should not go on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from farm.ledger import Ledger
from farm.records import Claim, StageEntry, Submission
from farm.settings import Settings
from tests.conftest import Valkey, pause
from workers.lease import Cancelled, Drain, Drained, Lease, Lost


@pytest.fixture
def settings(valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("FARM_LIMIT_STEP_S", "0.3")
    return Settings.load(redis_url=valkey.url, data=tmp_path, lease_s=0.6)


@pytest.fixture
def claim(ledger: Ledger) -> Claim:
    """The claim of a job `j` of one stage, by worker `w`."""
    ledger.submit([Submission("j", (StageEntry("x", "q", "{}"),), "{}", "", "h")])
    (found,), _ = ledger.claim(["q"], "w", "boot")
    return found


def held(ledger: Ledger) -> bool:
    """Whether the stage still runs, after a round of the reconciler."""
    ledger.reap("test")
    return ledger.job("j").stages[0].state == "running"


def lease_of(ledger: Ledger, claim: Claim, settings: Settings, drain: Drain | None = None) -> Lease:
    return Lease(ledger, [claim], settings, drain or Drain(60), lambda phase, limit_s: None)


def test_a_stage_that_moves_keeps_its_lease_beyond_its_length(ledger: Ledger, claim: Claim, settings: Settings) -> None:
    lease, until = lease_of(ledger, claim, settings), time.monotonic() + 3 * settings.lease_s
    step = 0
    while time.monotonic() < until:
        step += 1
        lease.step(step, 1000)
        assert held(ledger)
        pause()
    assert ledger.job("j").stages[0].step == step


def test_a_stage_that_hangs_loses_its_lease_though_the_pulse_goes_on(
    ledger: Ledger, claim: Claim, settings: Settings
) -> None:
    # Given
    lease = lease_of(ledger, claim, settings)
    lease.step(1, 10)
    # When nothing moves, and the pulse renews and renews
    until = time.monotonic() + 60
    while held(ledger):
        lease.renew()
        pause()
        assert time.monotonic() < until
    # Then the stage is another's, and this one learns of it at its next step
    assert ledger.job("j").stages[0].lapses == 1
    with pytest.raises(Lost):
        lease.step(2, 10)


def test_cancel_is_read_at_the_next_step(ledger: Ledger, claim: Claim, settings: Settings) -> None:
    lease = lease_of(ledger, claim, settings)
    lease.step(1, 10)
    ledger.cancel("j")
    with pytest.raises(Cancelled):
        lease.step(2, 10)


def test_a_call_goes_on_while_one_of_its_jobs_lives(ledger: Ledger, settings: Settings) -> None:
    # Given a call of two
    jobs = [Submission(name, (StageEntry(f"x{name}", "q", "{}"),), "{}", "", "h") for name in "ab"]
    ledger.submit(jobs)
    claims, _ = ledger.claim(["q"], "w", "boot", limit=2)
    lease = Lease(ledger, claims, settings, Drain(60), lambda phase, limit_s: None)
    # When one is cancelled, it goes on
    ledger.cancel("a")
    lease.step(1, 10)
    # When the other is, too, it ends
    ledger.cancel("b")
    with pytest.raises(Cancelled):
        lease.step(2, 10)


def test_a_drain_lets_the_stage_go_on_for_its_grace_and_no_longer(
    ledger: Ledger, claim: Claim, settings: Settings
) -> None:
    # Given a long grace
    drain = Drain(60)
    lease = lease_of(ledger, claim, settings, drain)
    # When SIGTERM comes once, it goes on; twice, it ends
    drain.start()
    lease.step(1, 10)
    assert drain.asked
    drain.start()
    with pytest.raises(Drained):
        lease.step(2, 10)


def test_a_server_that_is_away_does_not_stop_the_stage(
    ledger: Ledger, claim: Claim, settings: Settings, valkey: Valkey
) -> None:
    # Given a ledger that cannot be reached
    lost = Ledger(settings.model_copy(update={"redis_url": type(settings.redis_url)("redis://127.0.0.1:1/0")}))
    lease = Lease(lost, [claim], settings, Drain(60), lambda phase, limit_s: None)
    # Then steps go on
    lease.step(1, 10)
    lease.step(2, 10)
