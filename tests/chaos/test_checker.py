"""Each invariant sees a history that breaks it, and an honest history passes all of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import checker, history
from tests.chaos.history import Event

LEASE_S = 2.0
OUTPUTS = ['{"blob":"aa"}', '{"blob":"bb"}']


class Forgery:
    """A history of one job of two stages, which a test may bend: `events`, and the `final` state."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.final: dict[str, Any] = {
            "jobs": {}, "execs": {}, "rest": {"leases": 0, "spool": 0}, "stats": {"stale_commits": 1}, "statuses": [0],
        }  # fmt: skip
        self.clock = 1000.0
        self.add("submit_ack", job="j", acked="j", key="k", expect="done", golden="gold")
        self.add("submit_refused", job="r", key="", expect="")
        self.transition("submitted", "queued")
        # The first stage: one worker loses its lease and commits too late, another commits.
        self.claim("x0", "1:a", "w1", "b1", 0, "")
        self.transition("claimed", "running", "x0", "1:a", "w1")
        self.add("beat", t0=self.clock, worker="w1", execs=["x0"], tokens=["1:a"], answer=["ok"])
        self.clock += 1000 * LEASE_S
        self.transition("lapsed", "running", "x0", "1:a", "w1")
        self.claim("x0", "2:b", "w2", "b2", 0, "")
        self.transition("claimed", "running", "x0", "2:b", "w2")
        self.commit("x0", "2:b", "w2", True)
        self.transition("committed", "running", "x0", "2:b", "w2")
        self.commit("x0", "1:a", "w1", False)
        # The second stage, by a worker that is told to go and finishes first.
        self.claim("x1", "3:c", "w1", "b1", 1, OUTPUTS[0])
        self.transition("claimed", "running", "x1", "3:c", "w1")
        self.add("start", pid=7, worker="w1")
        self.add("put_result", worker="w1", answer="jobs/2026/11/21/j/1-bb.png")
        self.commit("x1", "3:c", "w1", True)
        self.transition("committed", "running", "x1", "3:c", "w1")
        self.transition("done", "done", "x1", "3:c", "w1")
        self.add("seen_done", job="j", readable=True)
        self.add("fault", fault="drain", worker="sup", status=0)
        own = [{key: event[key] for key in ("type", "token", "t")} for event in self.of("stream")]
        self.final["jobs"]["j"] = {
            "state": "done", "code": "", "idem": "k", "outputs": list(OUTPUTS), "events": own,
            "stages": [{"exec": "x0"}, {"exec": "x1"}],
            "result": {"sha256": "bb", "pixels": "gold", "named_is_same": True},
        }  # fmt: skip
        self.final["execs"] = {
            "x0": {"output": OUTPUTS[0], "committed_token": "2:b", "lapses": "1"},
            "x1": {"output": OUTPUTS[1], "committed_token": "3:c"},
        }

    @property
    def job(self) -> dict[str, Any]:
        """The job as it is left."""
        return self.final["jobs"]["j"]

    def of(self, call: str) -> list[Event]:
        """The events of one call."""
        return [event for event in self.events if event["call"] == call]

    def add(self, call: str, **fields: Any) -> None:
        """One event, a little later than the one before."""
        self.clock += 10
        self.events.append({"t": self.clock, "pid": 1, "call": call, **fields})

    def transition(self, kind: str, state: str, exec_: str = "", token: str = "", worker: str = "") -> None:
        """One event of the ledger's stream, and of the job's own where the job is there already."""
        self.add("stream", id=f"{len(self.events)}-0", type=kind, job="j", stage=0, state=state, worker=worker, code="",
                 exec=exec_, token=token, epoch="1")  # fmt: skip
        if self.final["jobs"]:
            self.job["events"].append({"type": kind, "token": token, "t": self.clock})

    def claim(self, exec_: str, token: str, worker: str, boot: str, stage: int, given: str, pid: int = 7) -> None:
        """A claim as its worker saw it."""
        self.add("claim_begun", pid=pid, worker=worker, boot=boot)
        self.add("claim", pid=pid, t0=self.clock, worker=worker, boot=boot, execs=[exec_], tokens=[token],
                 stages=[stage], epochs=[1], inputs=[given], waiters=[["j"]])  # fmt: skip

    def commit(self, exec_: str, token: str, worker: str, taken: bool) -> None:
        """A commit as its worker saw it."""
        self.add("commit", t0=self.clock, worker=worker, execs=[exec_], tokens=[token], outputs=[""], answer=[taken])


def lost(case: Forgery) -> None:
    del case.final["jobs"]["j"]


def unended(case: Forgery) -> None:
    case.job["state"] = "running"


def committed_twice(case: Forgery) -> None:
    case.commit("x0", "1:a", "w1", True)


def committed_twice_in_the_ledger(case: Forgery) -> None:
    case.transition("committed", "done", "x1", "9:z", "w2")


def taken_and_forgotten(case: Forgery) -> None:
    case.events = [event for event in case.events if event.get("type") != "committed" or event["exec"] != "x1"]


def token_again(case: Forgery) -> None:
    case.claim("x1", "2:b", "w2", "b2", 1, OUTPUTS[0], pid=8)


def token_again_in_the_ledger(case: Forgery) -> None:
    case.transition("claimed", "done", "x9", "2:b", "w2")


def other_input(case: Forgery) -> None:
    case.of("claim")[-1]["inputs"] = ['{"blob":"cc"}']


def other_output(case: Forgery) -> None:
    case.job["outputs"][0] = '{"blob":"cc"}'


def token_of_nobody(case: Forgery) -> None:
    case.final["execs"]["x1"]["committed_token"] = "8:y"


def unreadable(case: Forgery) -> None:
    case.job["result"] = {"error": "gone"}


def other_bytes(case: Forgery) -> None:
    case.job["result"]["sha256"] = "cc"


def other_name(case: Forgery) -> None:
    case.job["result"]["named_is_same"] = False


def other_pixels(case: Forgery) -> None:
    case.job["result"]["pixels"] = "pyrite"


def too_many_lapses(case: Forgery) -> None:
    case.final["execs"]["x0"]["lapses"] = "11"


def too_many_failures(case: Forgery) -> None:
    for number in range(5):
        case.transition("attempt_failed", "running", "x1", f"{number}:f", "w1")


def two_holders(case: Forgery) -> None:
    case.events = [event for event in case.events if event.get("type") != "lapsed"]


def lapsed_early(case: Forgery) -> None:
    case.of("beat")[0]["t0"] += 500


def left_on_a_queue(case: Forgery) -> None:
    case.final["rest"]["leases"] = 1


def done_unreadable(case: Forgery) -> None:
    case.of("seen_done")[0]["readable"] = False


def done_unheard(case: Forgery) -> None:
    case.events = [event for event in case.events if event["call"] != "seen_done"]


def undone(case: Forgery) -> None:
    case.transition("claimed", "running", "x1", "7:x", "w1")


def ended_otherwise(case: Forgery) -> None:
    case.job["state"] = "failed"


def refused_is_there(case: Forgery) -> None:
    case.final["jobs"]["r"] = {**copy.deepcopy(case.job), "idem": "other"}


def key_made_two(case: Forgery) -> None:
    case.final["jobs"]["j2"] = copy.deepcopy(case.job)
    case.add("submit_ack", job="j2", acked="j2", key="k", expect="done", golden="gold")


def stale_uncounted(case: Forgery) -> None:
    case.final["stats"]["stale_commits"] = 0


def stale_taken(case: Forgery) -> None:
    case.transition("committed", "done", "x0", "1:a", "w1")


def claimed_after_sigterm(case: Forgery) -> None:
    case.add("claim_begun", pid=7, worker="w1", boot="b1")


def supervisor_died(case: Forgery) -> None:
    case.add("found_dead", worker="sup", status=1)


def drained_slowly(case: Forgery) -> None:
    case.of("fault")[0]["took_s"] = 60.0


def drained_badly(case: Forgery) -> None:
    case.of("fault")[0]["status"] = 1


def stopped_badly(case: Forgery) -> None:
    case.final["statuses"] = [0, -9]


def stream_differs(case: Forgery) -> None:
    case.job["events"].pop()


def claim_unknown(case: Forgery) -> None:
    case.claim("x1", "6:w", "w2", "b2", 1, OUTPUTS[0], pid=8)


def done_unwritten(case: Forgery) -> None:
    case.of("put_result")[0]["t"] = case.clock


BREAKS: dict[str, list[Callable[[Forgery], None]]] = {
    "ended": [lost, unended],
    "committed_once": [committed_twice, committed_twice_in_the_ledger, taken_and_forgotten],
    "tokens_unique": [token_again, token_again_in_the_ledger],
    "inputs_follow": [other_input, other_output, token_of_nobody],
    "results_golden": [unreadable, other_bytes, other_name, other_pixels],
    "attempts_capped": [too_many_lapses, too_many_failures],
    "one_lease": [two_holders, lapsed_early],
    "nothing_left": [left_on_a_queue],
    "done_is_readable": [done_unreadable, done_unheard, done_unwritten],
    "ends_for_good": [undone, ended_otherwise],
    "refused_is_gone": [refused_is_there, key_made_two],
    "stale_is_refused": [stale_uncounted, stale_taken],
    "drained_claims_nothing": [claimed_after_sigterm],
    "supervisors_live": [supervisor_died, drained_badly, drained_slowly, stopped_badly],
    "sources_agree": [stream_differs, claim_unknown],
}


def check(case: Forgery) -> dict[str, list[str]]:
    return checker.check(sorted(case.events, key=lambda event: event["t"]), case.final, LEASE_S)


def test_an_honest_history_passes() -> None:
    assert check(Forgery()) == {name: [] for name in checker.INVARIANTS}


def test_every_invariant_is_broken_here() -> None:
    assert set(BREAKS) == set(checker.INVARIANTS)


@pytest.mark.parametrize(
    ("invariant", "bend"), [(name, bend) for name, bends in BREAKS.items() for bend in bends],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)  # fmt: skip
def test_a_broken_invariant_is_seen(invariant: str, bend: Callable[[Forgery], None]) -> None:
    # Given
    case = Forgery()
    # When
    bend(case)
    # Then
    assert check(case)[invariant]


def test_a_lapse_before_its_time_is_right_where_the_worker_lives_again() -> None:
    # Given a lease that ended early because its worker's next life claimed
    case = Forgery()
    lapsed_early(case)
    begun = {"t": case.of("beat")[0]["t"] + 5, "pid": 8, "call": "claim_begun", "worker": "w1", "boot": "b9"}
    # When
    case.events.append(begun)
    # Then
    assert not check(case)["one_lease"]


def test_a_history_survives_the_kill_of_its_writer(tmp_path: Path) -> None:
    # Given two processes' files, one cut off in the middle of a line
    write = history.Writer(tmp_path, "one")
    write("claim", answer=1)
    (tmp_path / "two-1.jsonl").write_text(json.dumps({"t": 1.0, "call": "beat"}) + '\n{"t": 2, "ca')
    # Then all whole lines are there, by time
    assert [event["call"] for event in history.read(tmp_path)] == ["beat", "claim"]
