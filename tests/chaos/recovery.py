"""How soon does work go on after each kind of fault?

Each measurement has a farm of its own, with the product's own times but for the lease, and a bound that it must keep.
What it prints are the figures of the README.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from farm.broker import bell_queue
from farm.errors import Unavailable
from farm.job import Job, new_id
from farm.records import ENDED, StageEntry, Submission
from farm.settings import Settings
from tests.chaos import checker, history, stages
from tests.chaos.final import final
from tests.chaos.generator import chain, golden
from tests.chaos.history import now_ms
from tests.chaos.run import await_workers
from tests.chaos.system import LEASE_S, NAMES, System, system
from tests.e2e.rig import until

OWN = {f"FARM_{name.upper()}": str(Settings.model_fields[name].default) for name in ("tick_s", "deaf_s", "isolate_s")}
"""The product's own times, in place of the harness's short ones."""
READY = 10_000
"""Ready jobs while doorbells get lost."""
Figures = dict[str, Any]


@contextmanager
def farm(**env: str) -> Iterator[System]:
    """A farm with all workers ready, whose folder goes away at the end unless something was wrong."""
    folder = Path(tempfile.mkdtemp(prefix="recovery-")) / "farm"
    with system(folder, small_disk=False, **{**OWN, **env}) as found:
        for name in NAMES:
            found.supervise(name)
        await_workers(found)
        yield found
    shutil.rmtree(folder.parent, ignore_errors=True)


def submit(system: System, **how: Any) -> str:
    """The id of one chain that was just submitted."""
    return system.farm.render(chain=chain(**how), seed=time.monotonic_ns() % 2**50).id


def done(system: System, jobs: Sequence[str], timeout_s: float) -> dict[str, str]:
    """The state of each job once all have ended."""
    limit, states = time.monotonic() + timeout_s, dict.fromkeys(jobs, "")
    while open_ := [job for job, state in states.items() if state not in ENDED]:
        assert time.monotonic() < limit, f"{len(open_)} of {len(jobs)} jobs have not ended after {timeout_s} s"
        for job in open_:
            states[job] = system.judge.ledger.job(job).state
        time.sleep(0.1)
    return states


def spread(values: Sequence[float]) -> Figures:
    """Median and maximum of durations in seconds."""
    return {"n": len(values), "median_s": round(statistics.median(values), 2), "max_s": round(max(values), 2)}


# ------------------------------------------------------------------------------------------------ dead workers


def dead_worker() -> Figures:
    """From the kill or freeze of a worker in the middle of a stage until another worker has that stage."""
    found: Figures = {}
    with farm() as system:
        for fault in ("kill", "freeze"):
            times = []
            for number in range(15):
                name = system.traps.lay("step", fault, number)
                job = submit(system)
                (taken,) = until(lambda name=name: list(system.traps.taken.glob(f"{name}.*")), what="the trap")
                began = now_ms()

                def again(job: str = job, began: float = began) -> float:
                    claims = [one.t for one in system.judge.ledger.events(job) if one.type == "claimed"]
                    return next((t for t in claims if t > began), 0)

                times.append((until(again, 60, "another claim") - began) / 1000)
                if fault == "freeze":
                    with suppress(ProcessLookupError):
                        os.kill(int(taken.name.rpartition(".")[2]), signal.SIGKILL)
                done(system, [job], 60)
                until(lambda: len(system.judge.ledger.workers()) == 2 * len(NAMES))
            found[fault] = spread(times)
            assert max(times) <= LEASE_S + 2, found
    return found


# ------------------------------------------------------------------------------------------------ lost doorbells


def lost_doorbells() -> Figures:
    """From the moment at which 10,000 jobs are ready, all workers idle and all doorbells lost, until the next claim."""
    times = []
    with farm() as system:
        ledger, client = system.judge.ledger, system.redis
        names = [worker.worker for worker in ledger.workers()]
        for name in names:
            ledger.drain(name)
        (job,) = system.farm.jobs_of(system.farm.chain(chain()))
        ledger.submit([one_of(job, number) for number in range(READY)])
        for _ in range(10):
            until(lambda: not any(worker.held for worker in ledger.workers()), what="idle workers")
            client.delete(*(bell_queue(system.judge.settings, name).name for name in stages.QUEUES))
            before = int(ledger.stats().get("claims", 0))
            began = now_ms()
            for name in names:
                ledger.drain(name, on=False)
            until(lambda before=before: int(ledger.stats().get("claims", 0)) > before, what="a claim")
            times.append((now_ms() - began) / 1000)
            for name in names:
                ledger.drain(name)
        found = {**spread(times), "ready": sum(one.ready for one in ledger.queues())}
        assert found["ready"] > READY * 0.95, found
        assert max(times) <= 10, found
        for process in system.supervisors.values():
            process.kill()
    return found


def one_of(job: Job, number: int) -> Submission:
    """A submission like the job's, with executions of its own."""
    own = replace(job, id=new_id())
    return Submission(
        job=own.id,
        stages=tuple(
            StageEntry(f"{own.execution(item.index)}.{number}", item.queue, own.payload(item.index))
            for item in own.plan
        ),
        spec=own.spec,
        idem="",
        body_hash="",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ consuming again


def consuming_again() -> Figures:
    """From the end of a broker fault until each worker, without a restart, has claimed again."""
    found: Figures = {}
    with farm() as system:
        faults = [("restart", 10, 1), ("restart after 20 s", 10, 20), ("reset", 10, 0), ("half-open", 15, 0)]
        for fault, bound_s, away_s in faults:
            times = []
            for _ in range(2 if away_s > 1 else 4):
                pids = sorted(worker.pid for worker in until(lambda: _all(system)))
                if away_s:
                    system.valkey.kill()
                    time.sleep(away_s)
                    system.valkey.start()
                elif fault == "reset":
                    system.to_valkey.reset()
                else:
                    system.to_valkey.hush()
                times.append(_until_all_claim(system, now_ms()))
                assert sorted(worker.pid for worker in until(lambda: _all(system))) == pids, f"restarted after {fault}"
            found[fault] = spread(times)
            assert max(times) <= bound_s, found
    return found


def _all(system: System) -> list[Any]:
    """All workers, once all are registered."""
    return found if len(found := system.judge.ledger.workers()) == 2 * len(NAMES) else []


def _until_all_claim(system: System, began: float) -> float:
    """Seconds from `began` until every worker was given something, while chains come in a steady stream."""
    names = {f"{name}-{index}" for name in NAMES for index in range(2)}
    firsts, limit = [], time.monotonic() + 60
    seen: set[str] = set()
    after = f"{int(began)}-0"
    while seen < names:
        assert time.monotonic() < limit, f"{names - seen} claim nothing"
        with suppress(Unavailable):
            system.judge.broker.ring(system.judge.ledger.submit([_plain(system)])[1])
        for event in system.judge.ledger.events(None, after, block_ms=100):
            after = event.id
            if event.type == "claimed" and event.worker not in seen:
                seen.add(event.worker)
                firsts.append(event.t)
    return (max(firsts) - began) / 1000


def _plain(system: System) -> Submission:
    (job,) = system.farm.jobs_of(system.farm.chain(chain()))
    return one_of(job, 0)


# ------------------------------------------------------------------------------------------------ submits


def submits() -> Figures:
    """Acknowledged submits that are gone after their Valkey was killed under them, by how it syncs its file."""
    found: Figures = {}
    for fsync in ("everysec", "always"):
        with farm() as system:
            (job,) = system.farm.jobs_of(system.farm.chain(chain()))
            for process in system.supervisors.values():
                process.kill()
            acked: list[str] = []
            over = threading.Event()
            given = (system, job, acked, over)
            threads = [threading.Thread(target=_submit_on, args=given, daemon=True) for _ in range(2)]
            system.redis.config_set("appendfsync", fsync)
            for thread in threads:
                thread.start()
            for _ in range(10):
                time.sleep(0.7)
                system.valkey.kill()
                system.valkey.start()
                system.redis.config_set("appendfsync", fsync)
            over.set()
            for thread in threads:
                thread.join()
            client, prefix = system.redis, "{" + system.judge.settings.namespace + "}:"
            lost = sum(not client.exists(f"{prefix}job:{one}") for one in acked)
            found[fsync] = {"kills": 10, "acknowledged": len(acked), "lost": lost}
    assert not found["always"]["lost"], found
    return found


def _submit_on(system: System, job: Job, acked: list[str], over: threading.Event) -> None:
    """Submits one job after another; what was acknowledged is in `acked`."""
    while not over.is_set():
        asked = one_of(job, 0)
        try:
            system.judge.ledger.submit([asked])
        except Unavailable:
            time.sleep(0.01)
        else:
            acked.append(asked.job)


# ------------------------------------------------------------------------------------------------ drains


def drains() -> Figures:
    """100 SIGTERMs under load: claims after the signal, exits beyond the grace, charges, jobs lost."""
    grace_s, took, jobs = 5.0, [], []
    with farm(FARM_DRAIN_GRACE_S=str(grace_s)) as system:
        over = threading.Event()

        def load() -> None:
            number = 0
            while not over.wait(0.1):
                if sum(one.ready for one in system.judge.ledger.queues()) < 12:
                    number += 1
                    # Some outlast the grace and must be given back.
                    jobs.append(submit(system, longer_s=6.0 if number % 40 == 0 else 0.4))

        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        signals = 0
        while signals < 100:
            two = [NAMES[(signals + step) % len(NAMES)] for step in range(2)]
            began = time.monotonic()
            for name in two:
                system.supervisors[name].terminate()
            for name in two:
                assert system.supervisors[name].wait(grace_s + 10) == 0, "a drained supervisor ended badly"
                took.append(time.monotonic() - began)
                signals += 1
                system.supervise(name)
            _until_busy(system)
        over.set()
        thread.join()
        states = done(system, jobs, 240)
        stats = system.judge.ledger.stats()
        left = final(system)
        system.stop()
        case = checker.Case(history.read(system.folder / "history"), left, LEASE_S * 1000)
        found = {
            "signals": signals,
            "workers that were told": len(case.calls("start")),
            "claims after the signal": len(list(checker.drained_claims_nothing(case))),
            "exit": spread(took),
            "jobs": len(jobs),
            "lost": sum(state != "done" for state in states.values()),
            "charged": int(stats.get("crashes", 0)) + int(stats.get("lapses", 0)),
            "given back": sum(event["type"] == "released" for event in left_events(left)),
        }
        assert not found["claims after the signal"], found
        assert not found["lost"], found
        assert not found["charged"], found
        assert max(took) <= grace_s + 5, found
    return found


def _until_busy(system: System) -> None:
    """Returns when every worker was seen to hold something: then it serves, and SIGTERM is no longer Python's own."""
    busy: set[str] = set()

    def look() -> bool:
        busy.update(worker.worker for worker in system.judge.ledger.workers() if worker.held)
        return len(busy) == 2 * len(NAMES)

    until(look, 60, "busy workers")


def left_events(left: Figures) -> list[Figures]:
    """The events of all jobs."""
    return [event for job in left["jobs"].values() for event in job["events"]]


# ------------------------------------------------------------------------------------------------ poison


def poison() -> Figures:
    """Ten jobs that kill, hang or crash whoever runs them, among 200 good ones."""
    bad: dict[str, str] = {}
    good: dict[str, str] = {}
    with farm() as system:
        began = time.monotonic()
        for number in range(210):
            how = ["kill", "hang", "segfault"][number // 21 % 3] if number % 21 == 0 else ""
            (job,) = system.farm.jobs_of(system.farm.chain(chain(poison=how), seed=number))
            (handle,) = system.farm.submit([job])
            (bad if how else good)[handle.id] = how or golden(job)
        states = done(system, [*bad, *good], 400)
        seconds, left = time.monotonic() - began, final(system)
        attempts, logged = [], 0
        for job in bad:
            record = left["jobs"][job]
            exec_ = record["stages"][1]["exec"]
            attempts.append(int(left["execs"][exec_]["crash"]))
            causes = system.judge.ledger.attempts(exec_)
            assert record["message"], record
            assert all(cause.message for cause in causes), causes
            logged += all(cause.log for cause in causes)
        found = {
            "poison": len(bad),
            "quarantined": sum(states[job] == "quarantined" for job in bad),
            "most deaths of one": max(attempts),
            "with the worker's last lines": logged,
            "good": len(good),
            "golden": sum((left["jobs"][job]["result"] or {}).get("pixels") == pixels for job, pixels in good.items()),
            "seconds": round(seconds, 1),
            "isolations": int(left["stats"].get("isolations", 0)),
        }
        assert found["quarantined"] == len(bad) == 10, found
        assert max(attempts) <= 3, found
        assert found["golden"] == len(good) == 200, found
    return found


MEASURES: dict[str, Callable[[], Figures]] = {
    measure.__name__: measure for measure in (dead_worker, lost_doorbells, consuming_again, submits, drains, poison)
}


def main(argv: Sequence[str]) -> int:
    """Measures what is asked for, or everything; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos recovery", description=__doc__)
    parser.add_argument("what", nargs="*", choices=[*MEASURES, []], help="default: all")
    given = parser.parse_args(argv)
    wrong = 0
    for name in given.what or MEASURES:
        began = time.monotonic()
        print(f"{name}: {(MEASURES[name].__doc__ or '').splitlines()[0]}", flush=True)
        try:
            print(f"  {json.dumps(MEASURES[name]())} ({time.monotonic() - began:.0f} s)", flush=True)
        except AssertionError as error:
            wrong += 1
            print(f"  FAILED: {error}", flush=True)
    return wrong
