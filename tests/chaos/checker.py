"""Did the farm keep its promises, by what everybody saw and by what is left?

Pure functions over a history and a final state: no server, no clock, no chance. Each invariant yields a sentence per
violation. The ledger's own stream and what the processes saw of their calls are checked against each other.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from farm.records import ENDED
from tests.chaos.history import Event

CAPS = {"crash": 3, "oom": 2, "lapses": 10, "rewinds": 2}
"""Attempts of one execution. Source: the defaults of `farm.settings`."""
ENDS_CLAIM = frozenset({"released", "attempt_failed", "lapsed", "committed", "rewound"})
SLACK_MS = 5.0
"""The ledger rounds its clock down to a millisecond."""
DRAINED_S = 15.0
"""Longest drain of a supervisor: the harness's grace of 5 s, the margin after it in which it kills, and a slow exit."""


@dataclass(frozen=True)
class Case:
    """One run as the checker sees it."""

    events: list[Event]
    final: Mapping[str, Any]
    lease_ms: float

    def calls(self, name: str) -> list[Event]:
        """The events of one call that were answered, by time."""
        return [event for event in self._by_call[name] if "error" not in event]

    @cached_property
    def _by_call(self) -> dict[str, list[Event]]:
        found: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            found[event["call"]].append(event)
        return found

    @cached_property
    def stream(self) -> list[Event]:
        """The ledger's transitions in its own order."""
        return sorted(self._by_call["stream"], key=lambda event: [int(part) for part in event["id"].split("-")])

    @cached_property
    def claims(self) -> dict[str, Event]:
        """Every claim that a worker was given, by token: its `exec`, `input`, `epoch`, `worker`, `boot`."""
        found = {}
        for event in self.calls("claim"):
            for at, token in enumerate(event["tokens"]):
                found[token] = {
                    "exec": event["execs"][at], "input": event["inputs"][at], "epoch": str(event["epochs"][at]),
                    "worker": event["worker"], "boot": event["boot"],
                }  # fmt: skip
        return found

    @cached_property
    def transitions(self) -> dict[str, list[Event]]:
        """Each execution's transitions in order, one for all of its waiters."""
        found: dict[str, list[Event]] = defaultdict(list)
        for event in self.stream:
            line = found[event["exec"]]
            seen = (event["type"], event["token"])
            if event["exec"] and (not line or (line[-1]["type"], line[-1]["token"]) != seen):
                line.append(event)
        return found

    @cached_property
    def committed(self) -> dict[tuple[str, str], set[str]]:
        """The tokens under which each (execution, epoch) was committed, by either source."""
        found: dict[tuple[str, str], set[str]] = defaultdict(set)
        for event in self.stream:
            if event["type"] == "committed":
                found[event["exec"], event["epoch"]].add(event["token"])
        for exec_, token, taken in self.commit_answers:
            if taken and token in self.claims:
                found[exec_, self.claims[token]["epoch"]].add(token)
        return found

    @cached_property
    def commit_answers(self) -> list[tuple[str, str, bool]]:
        """What workers were told of each commit: execution, token, whether it was taken."""
        return [
            row
            for event in self.calls("commit")
            for row in zip(event["execs"], event["tokens"], event["answer"], strict=True)
        ]

    @cached_property
    def acked(self) -> dict[str, Event]:
        """The acknowledged submits by the job that was acknowledged."""
        return {event["acked"]: event for event in self.calls("submit_ack")}


def ended(case: Case) -> Iterator[str]:
    """Every acknowledged submit ends, as it should."""
    for job, event in case.acked.items():
        found = case.final["jobs"].get(job)
        if found is None:
            yield f"job {job} was acknowledged and is lost"
        elif found["state"] != event["expect"]:
            yield f"job {job} is {found['state']} ({found['code']}), not {event['expect']}"


def committed_once(case: Case) -> Iterator[str]:
    """No execution is committed twice in one epoch, and what a worker was told was taken is in the ledger."""
    for (exec_, epoch), tokens in case.committed.items():
        if len(tokens) > 1:
            yield f"execution {exec_} was committed {len(tokens)} times in epoch {epoch}: {sorted(tokens)}"
    streamed = {event["token"] for event in case.stream if event["type"] == "committed"}
    for exec_, token, taken in case.commit_answers:
        if taken and token not in streamed:
            yield f"the commit {token} of {exec_} was taken, and the ledger knows nothing of it"


def tokens_unique(case: Case) -> Iterator[str]:
    """No token is issued twice."""
    given: dict[str, set[str]] = defaultdict(set)
    for event in case.stream:
        if event["type"] == "claimed":
            given[event["token"]].add(event["exec"])
    times: dict[str, int] = defaultdict(int)
    for event in case.calls("claim"):
        for exec_, token in zip(event["execs"], event["tokens"], strict=True):
            given[token].add(exec_)
            times[token] += 1
    for token, execs in given.items():
        if len(execs) > 1 or times[token] > 1:
            yield f"the token {token} was issued {max(times[token], len(execs))} times"


def inputs_follow(case: Case) -> Iterator[str]:
    """The input of each stage is the committed output of the stage before."""
    for job, record in case.final["jobs"].items():
        if record["state"] != "done":
            continue
        for at, stage in enumerate(record["stages"]):
            if stage["exec"].startswith("p:"):
                continue  # what publishes has no output of its own
            left = case.final["execs"].get(stage["exec"], {})
            if left.get("output") != record["outputs"][at]:
                yield f"stage {at} of job {job} did not end with what was committed"
            claim = case.claims.get(left.get("committed_token", ""))
            if claim is None:
                yield f"stage {at} of job {job} was committed under a token that nobody was given"
            elif claim["input"] != (record["outputs"][at - 1] if at else ""):
                yield f"stage {at} of job {job} was made from something else than the output of stage {at - 1}"


def results_golden(case: Case) -> Iterator[str]:
    """Every result exists, has its hash, decodes, and has the pixels of the undisturbed run."""
    for job, event in case.acked.items():
        record = case.final["jobs"].get(job)
        if record is None or record["state"] != "done":
            continue
        result = record["result"]
        if result is None or "error" in result:
            yield f"the result of job {job} cannot be read: {result and result['error']}"
        elif result["sha256"] != json.loads(record["outputs"][-1])["blob"] or not result["named_is_same"]:
            yield f"the result of job {job} is not what was committed"
        elif result["pixels"] != event["golden"]:
            yield f"the pixels of job {job} are others than undisturbed"


def attempts_capped(case: Case) -> Iterator[str]:
    """No execution has more attempts of any kind than it may have."""
    for exec_, left in case.final["execs"].items():
        for kind, cap in CAPS.items():
            if int(left.get(kind) or 0) > cap:
                yield f"execution {exec_} has {left[kind]} of {kind}; {cap} are allowed"
    deaths: dict[tuple[str, str], set[str]] = defaultdict(set)
    for event in case.stream:
        if event["type"] == "attempt_failed":
            deaths[event["exec"], event["epoch"]].add(event["token"])
    for (exec_, _), tokens in deaths.items():
        if len(tokens) > CAPS["crash"] + CAPS["oom"] - 1 and not any(
            event["code"] == "transient" for event in case.transitions[exec_]
        ):
            yield f"execution {exec_} failed {len(tokens)} times"


def one_lease(case: Case) -> Iterator[str]:
    """Nobody is given an execution that another holds, and no lease lapses before its last good beat allows."""
    beats: dict[str, float] = {}
    for event in case.calls("beat"):
        for token, answer in zip(event["tokens"], event["answer"], strict=True):
            if answer == "ok":
                beats[token] = max(beats.get(token, 0.0), event["t0"])
    boots: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for event in case.calls("claim_begun"):
        boots[event["worker"]].append((event["t"], event["boot"]))
    for exec_, line in case.transitions.items():
        holder: Event | None = None
        for event in line:
            if event["type"] == "claimed":
                if holder and holder["token"] != event["token"]:
                    yield f"{event['worker']} was given {exec_} while {holder['worker']} held it"
                holder = event
            elif event["type"] in ENDS_CLAIM and holder and event["token"] == holder["token"]:
                token, began = holder["token"], holder["t"]
                until = max(began, beats.get(token, 0.0)) + case.lease_ms - SLACK_MS
                if event["type"] == "lapsed" and event["t"] < until:
                    boot = case.claims.get(token, {}).get("boot")
                    # A new life of the same worker shows that the old one is over.
                    if not any(began < t <= event["t"] + SLACK_MS and one != boot for t, one in boots[event["worker"]]):
                        yield f"the lease {token} of {exec_} lapsed {until - event['t']:.0f} ms too early"
                holder = None


def nothing_left(case: Case) -> Iterator[str]:
    """At rest nothing waits, is leased, held, rung for or spooled."""
    for name, count in case.final["rest"].items():
        if count:
            yield f"at rest, {name} still holds {count}"


def done_is_readable(case: Case) -> Iterator[str]:
    """Nobody says done before the result can be read."""
    written: dict[str, float] = {}
    for event in case.calls("put_result"):
        if key := event.get("answer"):
            written.setdefault(key.split("/")[-2], event["t"])
    for event in case.stream:
        if event["type"] == "done" and written.get(event["job"], float("inf")) > event["t"] + SLACK_MS:
            yield f"job {event['job']} was done before its result was written"
    seen = {event["job"]: event["readable"] for event in case.calls("seen_done")}
    for job, record in case.final["jobs"].items():
        if record["state"] == "done" and not seen.get(job):
            yield (
                f"job {job} was said to be done, and its result could not be read"
                if job in seen
                else (f"job {job} is done, and nobody was told")
            )


def ends_for_good(case: Case) -> Iterator[str]:
    """An ended job changes no more, unless it is retried."""
    ends: dict[str, Event] = {}
    for event in case.stream:
        before = ends.get(event["job"])
        if before and event["type"] != "retried":
            yield f"job {event['job']} was {before['state']}, and then {event['type']} ({event['state']})"
        if event["state"] in ENDED:
            ends[event["job"]] = event
        elif event["type"] == "retried":
            ends.pop(event["job"], None)
    for job, record in case.final["jobs"].items():
        if job in ends and ends[job]["state"] != record["state"]:
            yield f"job {job} ended as {ends[job]['state']} and is {record['state']}"


def refused_is_gone(case: Case) -> Iterator[str]:
    """A refused submit leaves no trace, and one key makes one job."""
    for event in case.calls("submit_refused"):
        if event["job"] in case.final["jobs"]:
            yield f"the submit of job {event['job']} was refused, and the job is there"
    for job in case.final["jobs"]:
        if job not in case.acked:
            yield f"there is a job {job} that nobody was given"
    keys: dict[str, str] = {}
    for job, record in case.final["jobs"].items():
        if keys.setdefault(record["idem"], job) != job:
            yield f"the key {record['idem']} made two jobs, {keys[record['idem']]} and {job}"


def stale_is_refused(case: Case) -> Iterator[str]:
    """A commit under a lost token changes nothing and is counted."""
    committed = {token for tokens in case.committed.values() for token in tokens}
    refused = 0
    for exec_, token, taken in case.commit_answers:
        refused += not taken
        if not taken and token in committed:
            yield f"the commit {token} of {exec_} was refused and taken"
    counted = int(case.final["stats"].get("stale_commits", 0))
    if counted < refused:
        yield f"{refused} stale commits were refused, {counted} were counted"


def drained_claims_nothing(case: Case) -> Iterator[str]:
    """A worker that was told to go begins no claim."""
    gone = {event["pid"]: event["t"] for event in reversed(case.calls("start"))}
    for event in case.calls("claim_begun"):
        if event["t"] > gone.get(event["pid"], float("inf")):
            yield f"{event['worker']} began a claim {event['t'] - gone[event['pid']]:.0f} ms after its SIGTERM"


def supervisors_live(case: Case) -> Iterator[str]:
    """No supervisor ends unless it is ended, and each that is drained ends well and within its grace."""
    for event in case.calls("found_dead"):
        yield f"the supervisor {event['worker']} was found dead, with the status {event['status']}"
    for event in case.calls("fault"):
        if event.get("took_s", 0) > DRAINED_S:
            yield f"the supervisor {event['worker']} took {event['took_s']:.1f} s to drain"
        if event.get("status"):
            yield f"the supervisor {event['worker']} was drained and ended with the status {event['status']}"
    for status in case.final["statuses"]:
        if status:
            yield f"a supervisor ended with the status {status}"


def sources_agree(case: Case) -> Iterator[str]:
    """The stream of all jobs and each job's own stream tell the same, and claims that workers have seen are in them."""
    told: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for event in case.stream:
        told[event["job"]].append((event["type"], event["token"], event["t"]))
    for job, record in case.final["jobs"].items():
        own = [(event["type"], event["token"], event["t"]) for event in record["events"]]
        if own != told[job]:
            yield f"the stream of job {job} differs from the stream of all"
    streamed = {event["token"] for event in case.stream}
    for token, claim in case.claims.items():
        if token not in streamed:
            yield f"{claim['worker']} was given {claim['exec']} as {token}, and the ledger knows nothing of it"


INVARIANTS: dict[str, Callable[[Case], Iterator[str]]] = {
    check.__name__: check
    for check in (
        ended, committed_once, tokens_unique, inputs_follow, results_golden, attempts_capped, one_lease, nothing_left,
        done_is_readable, ends_for_good, refused_is_gone, stale_is_refused, drained_claims_nothing,
        supervisors_live, sources_agree,
    )
}  # fmt: skip


def check(events: list[Event], final: Mapping[str, Any], lease_s: float) -> dict[str, list[str]]:
    """The violations of each invariant; empty lists where all is well."""
    case = Case(events, final, lease_s * 1000)
    return {name: list(invariant(case)) for name, invariant in INVARIANTS.items()}
