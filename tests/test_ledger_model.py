"""Does the ledger keep its promises in any order of calls, losses, deaths and zombies?

A state machine calls a real ledger and keeps a small model beside it: which token holds which execution, what was
committed, which jobs have ended. After each call the whole of Redis is read and held against the model and itself.
`HYPOTHESIS_PROFILE=deep` looks for longer.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from farm import runs
from farm.errors import Conflict, Failure, QuotaExceeded, StaleToken
from farm.ledger import Ledger
from farm.records import OPEN, Beat, Claim, Commit, StageEntry, Submission
from farm.settings import Settings
from tests.conftest import Valkey

settings.register_profile(
    "brief", max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile(
    "deep", max_examples=3000, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
)

P = "{farm}:"
CHAINS = (("k0", "k1", "k2"), ("k0", "k1", "k2"), ("k0", "k1"), ("k0", "m1"), ("k0",), ("n0", "n1"))
"""Equal chains, shared prefixes, and executions that are the last of one chain and the middle of another."""
QUEUES = ("q0", "q1", "q2")
WORKERS = ("w0", "w1", "w2")
OUTCOMES = ("commit", "commit", "commit", "rewind", "die", "lapse", "crash", "oom", "transient", "deterministic")
ENDED = {"done", "failed", "quarantined", "cancelled", "expired"}
CAPS = {"crash": 2, "oom": 2, "lapses": 2, "rewinds": 1}
"""Low, so that a short run meets them."""

picks = st.integers(0, 11)
tags = st.sampled_from(("x", "y"))
workers = st.sampled_from(WORKERS)


class Dump:
    """All that the server holds of the farm, at one moment."""

    def __init__(self, client: redis.Redis) -> None:
        keys = sorted(client.scan_iter(P + "*", count=1000))
        kinds = client.pipeline()
        for key in keys:
            kinds.type(key)
            kinds.ttl(key)
        typed = kinds.execute()
        read = client.pipeline()
        for key, kind in zip(keys, typed[::2], strict=True):
            {
                "hash": lambda key: read.hgetall(key),
                "set": lambda key: read.smembers(key),
                "zset": lambda key: read.zrange(key, 0, -1, withscores=True),
                "stream": lambda key: read.xlen(key),
                "string": lambda key: read.get(key),
            }[kind](key)
        values = dict(zip(keys, read.execute(), strict=True))
        self.ttl = {key.removeprefix(P): ttl for key, ttl in zip(keys, typed[1::2], strict=True)}
        self.all: dict[str, Any] = {key.removeprefix(P): value for key, value in values.items()}
        self.jobs = {key[4:]: value for key, value in self.all.items() if key.startswith("job:")}
        self.execs = {
            key[2:]: value for key, value in self.all.items() if key.startswith("x:") and isinstance(value, dict)
        }

    def zset(self, name: str) -> dict[str, float]:
        return dict(self.all.get(name, []))

    def waiters(self, name: str) -> set[str]:
        return set(self.all.get(f"x:{name}:waiters", set()))

    def current(self, job: str) -> str:
        row = self.jobs[job]
        return f"p:{job}" if row.get("publishing") == "1" else str(row["x" + row["at"]])


class Machine(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.raw = redis.Redis.from_url(self.url, decode_responses=True, protocol=2)
        self.raw.flushall()
        caps = {"crash_attempts": 2, "oom_attempts": 2, "lapse_attempts": 2, "rewind_attempts": 1}
        # Two waiters to a script, so that three equal jobs are very many.
        self.ledger = Ledger(Settings.load(redis_url=self.url, tick_s=60, **caps), fan=2)
        self.boots = dict.fromkeys(WORKERS, 0)
        self.jobs: list[str] = []
        self.names = 0
        self.bodies: dict[str, Submission] = {}
        self.tags: dict[str, set[str]] = {}
        self.claims: list[tuple[str, Claim]] = []
        self.live: dict[str, tuple[str, str, str]] = {}  # exec -> token, worker, boot
        self.tokens: set[str] = set()
        self.commits: dict[tuple[str, int], str] = {}
        self.last_commit: dict[str, str] = {}
        self.made: dict[str, set[str]] = defaultdict(set)
        self.published: set[str] = set()
        self.ended: dict[str, str] = {}
        self.retried: set[str] = set()
        self.dump = Dump(self.raw)

    # -------------------------------------------------------------------------------------------- producers

    @initialize(chains=st.lists(st.sampled_from(CHAINS), min_size=2, max_size=3))
    def begin(self, chains: list[tuple[str, ...]]) -> None:
        for chain in chains:
            self.submit(chain, "interactive", 50)

    @precondition(lambda self: len(self.jobs) < 7)
    @rule(
        chain=st.sampled_from(CHAINS), lane=st.sampled_from(("interactive", "bulk")), priority=st.integers(0, 100),
        whose=st.sampled_from((("r", "ada"), ("r", "ada"), ("", "ada"), ("", ""))),
        max_open=st.sampled_from((0, 0, 0, 1, 4)), beyond=st.sampled_from((0, 0, 0, 1)), words=st.sets(tags),
    )  # fmt: skip
    def submit(
        self,
        chain: tuple[str, ...],
        lane: Any,
        priority: int,
        whose: tuple[str, str] = ("r", "ada"),
        max_open: int = 0,
        beyond: int = 0,
        words: Collection[str] = (),
    ) -> None:
        name, (run, owner) = f"j{self.names}", whose
        stages = tuple(StageEntry(e, QUEUES[i], f"payload {e}") for i, e in enumerate(chain))
        more: dict[str, Any] = {"run": run, "owner": owner, "tags": tuple(sorted(words))}
        body = Submission(name, stages, f"spec {name}", f"idem {name}", "body", lane, priority, **more)
        theirs = [one for one in self.jobs if one not in self.ended and self.bodies[one].owner == owner]
        booked = self.dump.all.get(f"booked:{owner}", {})
        taken = len(theirs) + sum(int(value.split()[0]) for call, value in booked.items() if call != run)
        if owner and max_open and taken + 1 + beyond > max_open:
            with pytest.raises(QuotaExceeded):
                self.ledger.submit([body], max_open, beyond)
            assert Dump(self.raw).all == self.dump.all, "a refused submit left a trace"
            return
        (found,), _ = self.ledger.submit([body], max_open, beyond)
        assert (found.job, found.existed) == (name, False)
        self.names += 1
        self.jobs.append(name)
        self.bodies[name], self.tags[name] = body, set(words)

    @precondition(lambda self: self.jobs)
    @rule(pick=picks, ended=st.booleans())
    def submit_again(self, pick: int, ended: bool) -> None:
        name = self.pick_job(pick, ended)
        # However little its owner may have.
        (found,), ready = self.ledger.submit([self.bodies[name]], 1, 9)
        assert (found.job, found.existed, ready) == (name, True, set())

    @precondition(lambda self: self.jobs)
    @rule(pick=picks, call=st.sampled_from(("cancel", "cancel", "expire", "outlive its deadline")))
    def end(self, pick: int, call: str) -> None:
        name = self.pick_job(pick)
        try:
            if call == "outlive its deadline":
                self.raw.zadd(P + "deadlines", {name: 1}, xx=True)
                self.ledger.reap("me")
                assert self.has_ended(name) or self.ledger.job(name).state == "expired"
            else:
                getattr(self.ledger, call)(name)
        except Conflict:
            assert self.has_ended(name)

    @precondition(lambda self: self.jobs)
    @rule(pick=picks, call=st.sampled_from(("pause", "resume")))
    def hold(self, pick: int, call: str) -> None:
        name = self.pick_job(pick)
        try:
            getattr(self.ledger, call)(name)
        except Conflict:
            assert self.has_ended(name)

    @precondition(lambda self: self.ended)
    @rule(pick=picks)
    def retry(self, pick: int) -> None:
        name = self.pick_job(pick, ended=True)
        try:
            self.ledger.retry(name)
            self.retried = {name}
            assert self.ended[name] != "done"
        except Conflict:
            assert self.ended.get(name, "done") == "done"

    @precondition(lambda self: self.jobs)
    @rule(pick=picks, priority=st.integers(0, 100), lane=st.sampled_from(("interactive", "bulk", None)))
    def reprioritise(self, pick: int, priority: int, lane: Any) -> None:
        name = self.pick_job(pick)
        try:
            self.ledger.reprioritise(name, priority, lane)
        except Conflict:
            assert self.has_ended(name)

    @precondition(lambda self: self.jobs)
    @rule(pick=picks, ended=st.booleans())
    def delete(self, pick: int, ended: bool) -> None:
        name = self.pick_job(pick, ended)
        try:
            self.ledger.delete(name)
        except Conflict:
            assert self.ledger.job(name).state not in ENDED
            return
        assert name in self.ended or name in self.dump.all.get("moving", set())
        self.jobs.remove(name)
        self.ended.pop(name, None)
        after = Dump(self.raw)
        named = [
            key
            for key, value in after.all.items()
            if isinstance(value, list | set | dict)
            and name in dict.fromkeys(member[0] if isinstance(member, tuple) else member for member in value)
        ]
        assert named == [], "a deleted job that something still names"
        assert not {f"job:{name}", f"events:{name}", f"idem:idem {name}"} & set(after.all)
        assert after.execs.get(f"p:{name}", {"state": "running"})["state"] == "running"

    @precondition(lambda self: self.jobs)
    @rule(pick=picks, ended=st.booleans(), add=st.sets(tags), remove=st.sets(tags))
    def tag(self, pick: int, ended: bool, add: set[str], remove: set[str]) -> None:
        name = self.pick_job(pick, ended)
        if add - remove or remove:
            self.ledger.tag(name, sorted(add - remove), sorted(remove))
            self.tags[name] = self.tags[name] - remove | (add - remove)

    @precondition(lambda self: any(self.bodies[name].run for name in self.jobs))
    @rule(verb=st.sampled_from(("cancel", "pause", "resume", "retry")))
    def steer(self, verb: Any) -> None:
        self.retried = {name for name, state in self.ended.items() if verb == "retry" and state != "done"}
        self.ledger.steer_run("r", verb)
        left = self.ledger.run("r").states
        gone = {"cancel": ("queued", "running", "paused"), "pause": ("queued", "running"), "resume": ("paused",)}
        assert not set(left) & set(gone.get(verb, ()))

    # -------------------------------------------------------------------------------------------- workers

    @rule(worker=workers, limit=st.integers(1, 3), lost=st.booleans(), queues=st.permutations(QUEUES))
    def claim(self, worker: str, limit: int, lost: bool, queues: list[str]) -> None:
        self.take(worker, limit, queues, remember=not lost)

    @rule(
        worker=workers, limit=st.integers(1, 2), outcome=st.sampled_from(OUTCOMES), times=st.integers(1, 3),
        publishes=st.booleans(),
    )  # fmt: skip
    def work(self, worker: str, limit: int, outcome: str, times: int, publishes: bool) -> None:
        """Claims with what comes of them at once, so that chains come to their ends, good and bad."""
        for _ in range(times):
            claims = self.take(worker, limit, list(QUEUES), remember=True)
            if outcome == "die":
                self.die(worker, charge=True, old=False)
            elif outcome == "commit":
                for claim in claims:
                    self.deliver(claim, publishes)
            elif outcome == "rewind":
                for claim in claims:
                    self.send_back(claim)
            elif outcome == "lapse":
                for claim in claims:
                    self.lapse(sorted(self.live).index(claim.exec))
            elif claims:
                self.break_down(claims, Failure(outcome))
            self.dump = Dump(self.raw)

    def take(self, worker: str, limit: int, queues: list[str], remember: bool) -> list[Claim]:
        boot = f"b{self.boots[worker]}"
        drained = worker in self.dump.all.get("draining", set())
        claims, _ = self.ledger.claim(queues, worker, boot, limit)
        after = Dump(self.raw) if claims else self.dump
        self.live = {name: held for name, held in self.live.items() if held[1] != worker}
        assert len(claims) <= limit
        assert not (drained and claims)
        assert len({claim.queue for claim in claims}) <= 1
        assert len(claims) == 1 or not any(after.execs[claim.exec].get("alone") == "1" for claim in claims)
        for claim in claims:
            assert claim.token not in self.tokens
            assert claim.exec not in self.live, "two unexpired leases on one execution"
            self.tokens.add(claim.token)
            self.live[claim.exec] = (claim.token, worker, boot)
            if remember:
                self.claims.append((worker, claim))
            if claim.publish:
                assert claim.input in self.made[self.bodies[claim.waiters[0]].stages[claim.stage].exec]
            for name in claim.waiters:
                stages = self.bodies[name].stages
                assert claim.stage == int(after.jobs[name]["at"])
                assert (name in claim.finishing) == (claim.stage == len(stages) - 1)
                if claim.stage and not claim.publish:
                    assert claim.input in self.made[stages[claim.stage - 1].exec]
        return claims

    @precondition(lambda self: self.claims)
    @rule(pick=picks, step=st.integers(0, 9))
    def beat(self, pick: int, step: int) -> None:
        _, claim = self.pick_claim(pick)
        paused = bool(self.dump.all.get(f"x:{claim.exec}:paused"))
        (found,) = self.ledger.beat([claim], "step", step, 9)
        if not self.is_live(claim):
            assert found is Beat.STALE
        else:
            assert (found is Beat.OK) == (bool(self.dump.waiters(claim.exec)) or paused)

    @precondition(lambda self: self.claims)
    @rule(pick=picks, twice=st.booleans(), publishes=st.booleans())
    def commit(self, pick: int, twice: bool, publishes: bool) -> None:
        _, claim = self.pick_claim(pick)
        self.deliver(claim, publishes)
        if twice:
            self.deliver(claim, publishes)

    def deliver(self, claim: Claim, publishes: bool) -> None:
        output = f"{claim.exec} by {claim.token}"
        published = claim.finishing if publishes or claim.publish else ()
        was_live = self.is_live(claim)
        (taken,), _ = self.ledger.commit([Commit(claim, output, published)])
        assert taken == (was_live or self.last_commit.get(claim.exec) == claim.token)
        if was_live:
            assert (claim.exec, claim.epoch) not in self.commits, "two commits of one epoch"
            self.commits[claim.exec, claim.epoch] = output
            self.last_commit[claim.exec] = claim.token
            self.made[claim.exec].add(output)
            self.published.update(published)
            del self.live[claim.exec]

    @precondition(lambda self: self.claims)
    @rule(pick=picks, failure=st.sampled_from(Failure), several=st.booleans())
    def fail(self, pick: int, failure: Failure, several: bool) -> None:
        worker, claim = self.pick_claim(pick)
        claims = [claim]
        if several:
            claims = [one for held_by, one in self.claims if held_by == worker and self.is_live(one)] or claims
        self.break_down(claims, failure)

    def break_down(self, claims: list[Claim], failure: Failure) -> None:
        before = Dump(self.raw)
        was_live = [self.is_live(one) for one in claims]
        try:
            self.ledger.fail(claims, failure, "internal", "broken")
        except StaleToken:
            assert not any(was_live)
        after = Dump(self.raw)
        for one in claims:
            if self.is_live(one):
                del self.live[one.exec]
            if len(claims) > 1:
                for counter in ("crash", "oom", "lapses", "transient"):
                    was, now = (found.execs.get(one.exec, {}).get(counter) for found in (before, after))
                    assert now in (was, None), "a failed call of several charged somebody"

    @precondition(lambda self: self.claims)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        _, claim = self.pick_claim(pick)
        self.ledger.release([claim])
        if self.is_live(claim):
            del self.live[claim.exec]

    @precondition(lambda self: self.claims)
    @rule(pick=picks)
    def rewind(self, pick: int) -> None:
        self.send_back(self.pick_claim(pick)[1])

    def send_back(self, claim: Claim) -> None:
        try:
            self.ledger.rewind(claim)
        except StaleToken:
            assert not self.is_live(claim)
        if self.is_live(claim):
            del self.live[claim.exec]

    @rule(pair=st.permutations(WORKERS), act=st.sampled_from(("beat", "commit", "fail", "release", "rewind")))
    def overtake(self, pair: list[str], act: str) -> None:
        """A worker freezes, another takes its work, the first wakes up and goes on as if nothing had been."""
        for slow in self.take(pair[0], 1, list(QUEUES), remember=True):
            self.lapse(sorted(self.live).index(slow.exec))
            self.take(pair[1], 1, list(QUEUES), remember=True)
            before = Dump(self.raw).execs.get(slow.exec)
            if act == "beat":
                assert self.ledger.beat([slow], "step", 1, 9) == [Beat.STALE]
            elif act == "commit":
                assert self.ledger.commit([Commit(slow, "late", slow.finishing)])[0] == [False]
            elif act == "release":
                assert self.ledger.release([slow]) == set()
            elif act == "fail":
                with pytest.raises(StaleToken):
                    self.ledger.fail([slow], Failure.DETERMINISTIC, "internal", "late")
            else:
                with pytest.raises(StaleToken):
                    self.ledger.rewind(slow)
            assert Dump(self.raw).execs.get(slow.exec) == before, "a zombie left a trace"

    @rule(worker=workers, charge=st.booleans(), old=st.booleans())
    def die(self, worker: str, charge: bool, old: bool) -> None:
        boot = f"b{self.boots[worker] - old}"
        self.ledger.worker_died(worker, boot, "crashed", "signal 9", charge)
        self.live = {name: held for name, held in self.live.items() if held[1:] != (worker, boot)}
        if not old:
            self.boots[worker] += 1

    @rule(worker=workers)
    def restart_unseen(self, worker: str) -> None:
        self.boots[worker] += 1

    @rule(worker=workers, queues=st.sets(st.sampled_from(QUEUES)), state=st.sampled_from(("idle", "busy", "draining")))
    def register(self, worker: str, queues: set[str], state: str) -> None:
        self.ledger.register(worker, f"b{self.boots[worker]}", sorted(queues), state, {})

    @rule(worker=workers, on=st.booleans())
    def drain(self, worker: str, on: bool) -> None:
        self.ledger.drain(worker, on)

    # -------------------------------------------------------------------------------------------- time

    @precondition(lambda self: self.live)
    @rule(pick=picks)
    def lapse(self, pick: int) -> None:
        name = sorted(self.live)[pick % len(self.live)]
        self.raw.zadd(P + "leases", {name: 1}, xx=True)
        self.ledger.reap("me")
        del self.live[name]

    @precondition(lambda self: self.jobs)
    @rule(pick=picks)
    def look(self, pick: int) -> None:
        """What is read of a job, of its run and of its owner is what is there."""
        name = self.pick_job(pick)
        record, dump, body = self.ledger.job(name), self.dump, self.bodies[name]
        exec_ = dump.current(name)
        place = None
        if record.state in {"queued", "running"} and exec_ in dump.execs and dump.execs[exec_]["state"] == "ready":
            row = dump.execs[exec_]
            lanes = ("interactive", "bulk") if row["lane"] == "bulk" else ("interactive",)
            line = [one for lane in lanes for one, _ in dump.all.get(f"ready:v1:{row['queue']}:{lane}", [])]
            place = line.index(exec_)
        assert record.position == (place if name in dump.waiters(exec_) else None)
        states = [dump.jobs[one]["state"] for one in self.jobs if self.bodies[one].owner == body.owner]
        if body.owner:
            found = [self.ledger.jobs(state=state, owner=body.owner, limit=100) for state in OPEN]
            assert sum(map(len, found)) == sum(state not in ENDED for state in states)
            listed = [one.job for one in self.ledger.jobs(owner=body.owner, limit=100)]
            assert listed == [one for one in reversed(self.jobs) if self.bodies[one].owner == body.owner]
        if body.run:
            run = self.ledger.run(body.run)
            members = [dump.jobs[one]["state"] for one in self.jobs if self.bodies[one].run == body.run]
            assert (run.owner, run.count) == (body.owner, len(members))
            assert run.states == {state: members.count(state) for state in set(members)}

    @rule(everything=st.booleans())
    def reap(self, everything: bool) -> None:
        for name in self.dump.zset("due") if everything else ():
            self.raw.zadd(P + "due", {name: 1}, xx=True)
        assert self.ledger.reap("me") is not None
        if everything:
            assert self.raw.zcard(P + "due") == 0

    @rule(gap_s=st.sampled_from((-3600, 20, 3600)))
    def clock_jumps(self, gap_s: int) -> None:
        seconds, _ = self.raw.time()
        self.raw.set(P + "reap:last", (seconds - gap_s) * 1000)
        self.ledger.reap("me")
        if gap_s < 0:  # the leases were written by the clock as it is now, so the shift back has ended them all
            self.ledger.reap("me")
            self.live.clear()

    # -------------------------------------------------------------------------------------------- the model's eyes

    def pick_job(self, pick: int, ended: bool = False) -> str:
        """A job that is open (or has ended) where there is one, else any."""
        fitting = [name for name in self.jobs if (name in self.ended) == ended] or self.jobs
        return fitting[pick % len(fitting)]

    def has_ended(self, name: str) -> bool:
        """Whether the job had ended before this call, or its end was noted then and the call brought it about."""
        return name in self.ended or (
            name in self.dump.all.get("moving", set()) and self.ledger.job(name).state in ENDED - {"done"}
        )

    def pick_claim(self, pick: int) -> tuple[str, Claim]:
        """Mostly a claim that lives, else one whose execution another holds by now, else any that was ever given."""
        living = [found for found in self.claims if self.is_live(found[1])]
        overtaken = [found for found in self.claims if found[1].exec in self.live and not self.is_live(found[1])]
        fitting = (living if pick < 7 else overtaken) or self.claims
        return fitting[pick % len(fitting)]

    def is_live(self, claim: Claim) -> bool:
        return self.live.get(claim.exec, ("",))[0] == claim.token

    @invariant()
    def holds(self) -> None:
        dump = self.dump = Dump(self.raw)
        self.jobs_hold(dump)
        self.executions_hold(dump)
        self.retried = set()

    def jobs_hold(self, dump: Dump) -> None:
        assert set(dump.jobs) == set(self.jobs)
        for name, row in dump.jobs.items():
            state = row["state"]
            if name in self.ended and name not in self.retried:
                assert state == self.ended[name], "an end that changed"
            if state in ENDED:
                self.ended[name] = state
            else:
                self.ended.pop(name, None)
            at, stages = int(row["at"]), self.bodies[name].stages
            assert [row[f"x{i}"] for i in range(len(stages))] == [stage.exec for stage in stages]
            for i in range(at):
                assert row[f"out{i}"] in self.made[stages[i].exec], "an output that nobody committed"
            run, owner = self.bodies[name].run, self.bodies[name].owner
            listed = {"jobs", f"jobs:{state}"} | ({f"run:{run}", f"in:{state}:{run}"} if run else set())
            listed |= {f"owner:{owner}", f"owner:{owner}:{state}"} if owner else set()
            for tag in self.tags[name]:
                listed |= {f"tag:{tag}"} | ({f"tag:{tag}:run:{run}"} if run else set())
                listed |= {f"tag:{tag}:owner:{owner}"} if owner else set()
            assert set(row.get("tags", "").split()) == self.tags[name]
            lists = ("jobs", "owner:", "run:", "in:", "tag:")
            assert {key for key in dump.all if key.startswith(lists) and name in dump.zset(key)} == listed
            assert (name in dump.zset("deadlines")) == (state not in ENDED)
            assert (name in dump.zset("ended")) == (state in ENDED and not self.tags[name])
            assert (name in dump.zset("kept")) == (state in ENDED and bool(self.tags[name]))
            assert dump.ttl[f"job:{name}"] == dump.ttl[f"idem:idem {name}"] == -1
            waits_on = {key[2:-8] for key in dump.all if key.endswith(":waiters") and name in dump.all[key]}
            if state in {"queued", "running"}:
                exec_ = dump.current(name)
                moving = name in dump.all.get("moving", set())
                if moving and row["move"] != "run":
                    assert waits_on == set()
                    continue
                assert waits_on == {exec_}, "a job that waits on nothing is lost"
                assert dump.execs[exec_]["state"] in {"ready", "running", "backoff"}
                if exec_.startswith("p:"):
                    assert dump.execs[exec_]["input"] == row[f"out{at}"]
                elif at:
                    assert dump.execs[exec_]["input"] == row[f"out{at - 1}"]
            else:
                assert waits_on == set()
                assert name not in dump.all.get("moving", set())
            if state == "done":
                assert row[f"out{len(stages) - 1}"] in self.made[stages[-1].exec]
                assert name in self.published, "done, and nobody wrote its result"

        for owner in ("", "ada"):
            theirs = [self.tags[name] for name in dump.jobs if owner in ("", self.bodies[name].owner)]
            counts = {tag: sum(tag in one for one in theirs) for tag in ("x", "y")}
            assert dump.zset(f"tags:{owner}" if owner else "tags") == {tag: n for tag, n in counts.items() if n}

    def executions_hold(self, dump: Dump) -> None:
        held = {key[5:]: set(names) for key, names in dump.all.items() if key.startswith("held:")}
        ready = {key: set(dump.zset(key)) for key in dump.all if key.startswith("ready:")}
        running: dict[str, int] = defaultdict(int)
        for name, row in dump.execs.items():
            state, waiters = row["state"], dump.waiters(name)
            assert [key for key, names in ready.items() if name in names] == (
                [f"ready:v1:{row['queue']}:{row['lane']}"] if state == "ready" else []
            )
            assert (name in dump.zset("due")) == (state == "backoff")
            assert (name in dump.zset("leases")) == (state == "running")
            assert [worker for worker, names in held.items() if name in names] == (
                [row["worker"]] if state == "running" else []
            )
            if state == "running":
                running[row["queue"]] += 1
                assert self.live[name][:2] == (row["token"], row["worker"])
            elif state in {"ready", "backoff"}:
                assert waiters, "work that nobody waits for"
            else:
                assert not waiters
                assert state in {"idle", "committed", "failed", "quarantined"}
            # An execution runs out only where nobody waits and nobody works.
            assert (dump.ttl[f"x:{name}"] == -1) == (state in {"ready", "running", "backoff"})
            assert (f"x:{name}:paused" in dump.all) <= (state == "running")
            if state == "committed":
                assert row["output"] == self.commits[name, int(row["epoch"])]
            for counter, cap in CAPS.items():
                assert int(row.get(counter, 0)) <= cap
            if int(row.get("crash", 0)) == CAPS["crash"] or int(row.get("lapses", 0)) == CAPS["lapses"]:
                assert state == "quarantined", "poison that may run again"
            if waiters and state in {"ready", "running", "backoff"}:
                best = [dump.jobs[job] for job in waiters]
                assert int(row["priority"]) >= max(int(job["priority"]) for job in best)
                assert float(row["seniority_ms"]) <= min(float(job["created_ms"]) for job in best)
                assert row["lane"] == "interactive" or all(job["lane"] == "bulk" for job in best)
            if state == "ready":
                score = dump.zset(f"ready:v1:{row['queue']}:{row['lane']}")[name]
                assert score == (100 - int(row["priority"])) * 2**42 + float(row["seniority_ms"])
        assert set(dump.zset("leases")) == set(self.live)
        assert all(name in dump.execs for names in ready.values() for name in names)
        assert all(name in dump.execs for name in dump.zset("due"))
        assert {key[2:-8] for key in dump.all if key.endswith(":waiters")} <= set(dump.execs)
        for key, times in dump.all.items():
            if key.startswith("times:"):
                assert 0 <= float(times["mean_ms"]) <= float(times["wall_ms"])
        counted = {queue: int(count) for queue, count in dump.all.get("running", {}).items() if int(count)}
        assert counted == running

    # -------------------------------------------------------------------------------------------- rest

    def teardown(self) -> None:
        """With one good worker the farm comes to rest: every job ends, nothing is left in any line."""
        for worker in WORKERS:
            self.ledger.drain(worker, on=False)
            self.ledger.worker_died(worker, f"b{self.boots[worker]}", "crashed", "", charge=False)
        for name in self.jobs:
            if self.ledger.job(name).state == "paused":
                self.ledger.resume(name)
        self.ledger.register("good", "b0", QUEUES, "idle", {})
        self.boots["good"] = 0
        for _ in range(200):
            for key in ("due", "leases"):
                for name in self.raw.zrange(P + key, 0, -1):
                    self.raw.zadd(P + key, {name: 1}, xx=True)
            self.ledger.reap("me")
            self.live.clear()
            claims = self.take("good", 2, list(QUEUES), remember=True)
            for claim in claims:
                self.deliver(claim, publishes=True)
            if not claims:
                break
        dump = Dump(self.raw)
        assert {name: row["state"] for name, row in dump.jobs.items() if row["state"] not in ENDED} == {}
        assert not [
            key for key in dump.all if key.startswith(("ready:", "held:", "leases", "due", "deadlines", "moving"))
        ]
        assert not [key for key in dump.all if key.startswith("x:") and key.endswith((":waiters", ":paused"))]
        self.jobs_hold(dump)
        self.executions_hold(dump)
        for name in list(self.jobs):
            self.ledger.delete(name)
        lists = ("job", "owner:", "run:", "runs", "in:", "tag", "ended", "kept", "deadlines", "idem:", "events:")
        assert not [key for key in Dump(self.raw).all if key.startswith(lists)], "not all is forgotten"
        self.ledger.close()
        self.raw.close()


@pytest.mark.timeout(0 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 280)
def test_the_ledger_keeps_its_promises_in_any_order(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MOVED", 2)
    profile = settings.get_profile("deep" if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else "brief")

    class OnThisServer(Machine):
        url = valkey.url

    run_state_machine_as_test(OnThisServer, settings=profile)
