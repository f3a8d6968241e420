"""Who asks for chains, who sees them end, and what should they look like?

The producer submits as a careful client does: it keeps its key, and where the outcome is unknown it sends the same
again. The watcher follows the ledger's own stream, so the history holds every transition in the order of the ledger,
and reads a result at the moment it hears of it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from farm.errors import BadBlob, Conflict, FarmError, Unavailable
from farm.image import hash_pixels, pixels_sha256
from farm.job import Job, new_id
from farm.records import ENDED
from farm.stage import Size
from tests.chaos import stages
from tests.chaos.history import now_ms
from tests.chaos.plan import Plan
from tests.chaos.system import System

Chain = dict[str, Any]
REAL: Chain = {
    "prompt": "a red apple",
    "reuse": False,
    "stages": [
        {"kind": "text2img", "steps": 4},
        {"kind": "img2img", "steps": 8, "strength": 0.5},
        {"kind": "upscale_latent", "steps": 4},
        {"kind": "upscale", "steps": 2},
    ],
}
"""A chain of the tiny family: real pipelines, four media hand-offs."""
DOOMED = {"nan": "failed", "oom": "failed", "kill": "quarantined", "segfault": "quarantined", "hang": "quarantined"}
"""How a chain ends whose second stage fails every time."""
ASKED_S = 0.4
"""Shortest pause between two submits that the nemesis asks for, seconds: workers are idle between them."""


def chain(last: int = 0, poison: str = "", longer_s: float = 0) -> Chain:
    """A chain of the four fakes.

    `last` is the seed of its last stage, `poison` how its second one fails, which takes `longer_s` more, as the third.
    """
    links: list[dict[str, Any]] = [{"kind": kind, "checkpoint": stages.CHECKPOINT} for kind in stages.KINDS]
    if last:
        links[-1]["seed"] = last
    if poison:
        links[1]["poison"] = poison
    if longer_s:
        links[1]["longer_s"] = links[2]["longer_s"] = longer_s
    return {"stages": links}


def golden(job: Job) -> str:
    """The hash of the pixels that the job's chain makes, undisturbed and without a farm."""
    image = None
    for recipe in job.recipes:
        image = stages.paint(recipe["kind"], recipe["seed"], image, Size(*recipe["size"]))
    assert image
    return hash_pixels(image)


@dataclass(frozen=True)
class Order:
    """A chain to submit; `pixels` where they cannot be computed here."""

    chain: Chain
    seed: int
    pixels: str = ""


class Producer:
    """Submits `count` chains, the more the further the nemesis is, some equal to others, and some doomed ones.

    `real` are the seeds of chains of real pipelines with the pixels they make undisturbed. What the nemesis asks for
    comes on top: it needs work to hit.
    """

    def __init__(self, system: System, plan: Plan, real: Mapping[int, str], progress: Callable[[], float]) -> None:
        self._system, self._dice, self._progress = system, random.Random(f"{plan.seed} producer"), progress
        self._orders = [self._order() for _ in range(plan.chains)]
        others = [Order(chain(poison=list(DOOMED)[index % len(DOOMED)]), index) for index in range(plan.doomed)]
        others += [Order(REAL, seed, pixels) for seed, pixels in real.items()]
        for order in others:
            self._orders.insert(self._dice.randrange(len(self._orders)), order)
        self._asked, self._last = threading.Event(), 0.0
        self._over = False
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)
        self.acked: list[str] = []

    def start(self) -> None:
        """Begins to submit."""
        self._thread.start()

    def join(self) -> None:
        """Returns when all is submitted; the nemesis is done."""
        self._over = True
        self._asked.set()
        self._thread.join()

    def kick(self) -> None:
        """Asks for one submit more, soon."""
        self._asked.set()

    def _order(self) -> Order:
        """A chain and its seed; one in ten begins as others do: equal recipes run once, also while workers die."""
        seed = self._dice.randrange(20) if self._dice.random() < 0.1 else self._dice.randrange(10**9)
        return Order(chain(last=self._dice.choice([0, 0, 0, 0, 1])), seed)

    def _run(self) -> None:
        done = 0
        while done < len(self._orders) or not self._over:
            if done < len(self._orders) and (self._over or self._progress() >= done / len(self._orders)):
                self._submit(self._orders[done])
                done += 1
            elif self._asked.wait(0.05) and not self._over and time.monotonic() - self._last > ASKED_S:
                self._asked.clear()
                self._submit(self._order())
                self._last = time.monotonic()
            else:
                time.sleep(0.02)

    def _submit(self, order: Order) -> None:
        """One chain until it is acknowledged: after a refusal as a new job, after a lost reply as the same."""
        farm, write = self._system.farm, self._system.write
        poison = order.chain["stages"][1].get("poison", "")
        (job,) = farm.jobs_of(farm.chain(order.chain, seed=order.seed))
        while True:
            told = {"job": job.id, "key": job.idempotency_key, "expect": DOOMED.get(poison, "done")}
            began = now_ms()
            try:
                (handle,) = farm.submit([job])
            except Unavailable as error:
                if error.code == "outcome_unknown":
                    write("outcome_unknown", t0=began, **told)
                else:
                    write("submit_refused", t0=began, **told)
                    job = replace(job, id=new_id(), idempotency_key=new_id())
                time.sleep(0.2)
                continue
            pixels = order.pixels or ("" if poison else golden(job))
            write("submit_ack", t0=began, **told, acked=handle.id, golden=pixels)
            self.acked.append(handle.id)
            break
        if self._dice.random() < 0.05:
            self._refused(job)

    def _refused(self, job: Job) -> None:
        """Sends another chain with a key that was used: it must be refused and leave no trace."""
        farm = self._system.farm
        (other,) = farm.jobs_of(farm.chain(chain(last=7), seed=1), idempotency_key="x")
        other = replace(other, idempotency_key=job.idempotency_key)
        try:
            farm.submit([other])
        except Conflict:
            self._system.write("submit_refused", job=other.id, key="", expect="")
        except Unavailable:
            return
        else:
            self._system.write("submit_ack", job=other.id, key=job.idempotency_key, expect="refused", acked=other.id)


def real_chains(system: System, count: int) -> dict[int, str]:
    """The pixels of `count` chains of real pipelines by their seed, made by the farm before anything goes wrong."""
    farm, found = system.judge, {}
    for seed, job in [(seed, farm.render(chain=REAL, seed=seed)) for seed in range(count)]:
        (result,) = job.wait(120).results
        found[seed] = pixels_sha256(farm.store.get_blob(result.sha256, max_bytes=1 << 24))
        told = {"key": job.record.idem, "expect": "done", "golden": found[seed]}
        system.write("submit_ack", job=job.id, acked=job.id, **told)
    return found


class Watcher:
    """Follows the ledger's stream from its beginning and reads each result as soon as it is said to be there."""

    def __init__(self, system: System) -> None:
        self._system, self._stop = system, threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self.ended: dict[str, str] = {}

    def start(self) -> None:
        """Begins to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Returns when all that the stream held is in the history."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        after = "0-0"
        while True:
            stopping = self._stop.is_set()
            try:
                events = self._system.judge.ledger.events(None, after, block_ms=300)
            except FarmError:
                time.sleep(0.1)
                continue
            for event in events:
                after = event.id
                self._system.write(
                    "stream", t=event.t, id=event.id, type=event.type, job=event.job, stage=event.stage,
                    state=event.state, worker=event.worker, code=event.code, exec=event.exec, token=event.token,
                    epoch=event.epoch,
                )  # fmt: skip
                if event.state in ENDED:
                    self.ended[event.job] = event.state
                    if event.state == "done":
                        self._see(event.job)
                elif event.type == "retried":
                    self.ended.pop(event.job, None)
            if stopping and not events:
                return

    def _see(self, job_id: str) -> None:
        """Reads the result of a job that was just said to be done."""
        farm, told = self._system.judge, now_ms()
        while not self._stop.is_set():
            try:
                job = farm.job(job_id)
                (result,) = job.results
                farm.store.get_blob(result.sha256, max_bytes=1 << 24)
                farm.store.client.head_object(Bucket=farm.store.bucket, Key=result.key)
            except BadBlob:
                return self._system.write("seen_done", told=told, job=job_id, readable=False)
            except Unavailable:
                time.sleep(0.1)  # the servers are away: nothing is known
            except farm.store.client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return self._system.write("seen_done", told=told, job=job_id, readable=False)
            except Exception:  # noqa: BLE001 — botocore's errors of a dead server
                time.sleep(0.1)
            else:
                return self._system.write("seen_done", told=told, job=job_id, readable=True)
