"""What goes wrong, and when?

Three lanes of faults run beside each other: processes, servers, network. Each fault draws its parameters from the seed
and its place in the plan. A fault that finds nobody to hit is tried again; one that was done is an event of the
history.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import redis

from farm.errors import FarmError
from farm.scripts import _source
from tests.chaos import recorder, stages
from tests.chaos.generator import Producer
from tests.chaos.history import now_ms
from tests.chaos.plan import Plan
from tests.chaos.system import LEASE_S, NAMES, System
from tests.e2e.proxy import Proxy

PATIENCE_S = 60.0
"""How long a fault is tried that finds nobody to hit, or the servers away, seconds."""
SPRING_S = 10.0
"""How long a trap lies before it is lifted, seconds."""
ZOMBIE_S = 15.0
"""How long a frozen worker's stage may take to become another's, before it counts as no zombie, seconds."""
PAUSE_S = {"processes": (0.2, 1.2), "servers": (4.0, 12.0), "network": (2.0, 6.0)}
"""Shortest and longest pause between two faults of a lane, seconds."""


class Nobody(Exception):
    """The fault found nobody to hit."""


class Nemesis:
    """Carries out a plan on a system."""

    def __init__(self, system: System, plan: Plan) -> None:
        self._system, self._plan = system, plan
        self.done, self._number = 0, 0
        self.producer: Producer | None = None
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._lane, args=(lane,), daemon=True) for lane in plan.lanes]

    def progress(self) -> float:
        """The share of the plan that is done."""
        return self.done / max(1, self._plan.total)

    def start(self, producer: Producer) -> None:
        """Begins all lanes."""
        self.producer = producer
        for thread in self._threads:
            thread.start()

    @property
    def busy(self) -> bool:
        """Whether a lane still has faults to do."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Returns when the plan is done and all is mended."""
        for thread in self._threads:
            thread.join()
        self._calm()

    # ------------------------------------------------------------------------------------------------ lanes

    def _lane(self, lane: str) -> None:
        pauses = random.Random(f"{self._plan.seed} {lane} pauses")
        for index, fault in enumerate(self._plan.lanes[lane]):
            name, _, detail = fault.partition(" ")
            until, attempt = time.monotonic() + PATIENCE_S, 0
            while True:
                dice = random.Random(f"{self._plan.seed} {lane} {index} {attempt}")
                try:
                    getattr(self, "_" + name)(dice, *([detail] if detail else []))
                    break
                except Nobody:
                    pass
                except (redis.RedisError, FarmError, psutil.Error, AssertionError, OSError) as error:
                    self._system.write("skipped", fault=fault, error=f"{type(error).__name__}: {error}"[:300])
                if time.monotonic() > until:
                    self._system.write("gave_up", fault=fault)
                    break
                attempt += 1
                time.sleep(0.3)
            self.done += 1
            self._tend()
            time.sleep(pauses.uniform(*PAUSE_S[lane]))

    def _hit(self, fault: str, began: float, **fields: object) -> None:
        """Enters a fault that was done into the history."""
        self._system.write("fault", t=began, until=now_ms(), fault=fault, **fields)

    def _tend(self) -> None:
        """Starts a supervisor that died by itself; that it did is an event."""
        with self._system.lock:
            for name, process in list(self._system.supervisors.items()):
                if process.poll() is not None:
                    self._system.write("found_dead", worker=name, status=process.returncode)
                    self._system.supervise(name)

    def _calm(self) -> None:
        """Everything runs and is reachable afterwards; no trap lies any more."""
        for proxy in (self._system.to_valkey, self._system.to_s3, self._system.produced):
            proxy.mend()
        for name in os.listdir(self._system.traps.laid):
            self._system.traps.lift(name)
        self._tend()

    # ------------------------------------------------------------------------------------------------ victims

    def _children(self) -> list[psutil.Process]:
        """The living children of all supervisors."""
        with self._system.lock:
            pids = [process.pid for process in self._system.supervisors.values() if process.poll() is None]
        found = [child for pid in pids for child in psutil.Process(pid).children()]
        return [child for child in found if child.status() != psutil.STATUS_ZOMBIE]

    @contextmanager
    def _frozen(self, dice: random.Random, busy: bool | None) -> Iterator[tuple[psutil.Process, list[str]]]:
        """A child that stands still, and what it holds; one with nothing where `busy` is False. Goes on afterwards."""
        children = self._children()
        if not children:
            raise Nobody
        child = dice.choice(children)
        child.suspend()
        try:
            time.sleep(0.01)  # what it sent before is carried out by then
            workers = self._system.judge.ledger.workers()
            held = [exec_ for worker in workers if worker.pid == child.pid for exec_ in worker.held]
            if child.pid not in {worker.pid for worker in workers}:
                raise Nobody  # it has only just begun
            if (busy is False and held) or not all(map(self._system.traps.may_hit, held)):
                raise Nobody
            yield child, held
        finally:
            with suppress(psutil.Error):
                child.resume()

    def _sprung(self, point: str, fault: str) -> tuple[str, int, str]:
        """Lays a trap and waits until a process springs it: its name, that process's id and its execution."""
        with self._lock:
            self._number += 1
            name = self._system.traps.lay(point, fault, self._number)
        until = time.monotonic() + SPRING_S
        while True:
            for taken in self._system.traps.taken.glob(f"{name}.*"):
                if exec_ := taken.read_text():
                    return name, int(taken.name.rpartition(".")[2]), exec_
            if time.monotonic() > until and self._system.traps.lift(name):
                raise Nobody
            self._ask()
            time.sleep(0.05)

    def _ask(self) -> None:
        """Asks for a submit, so that there is work to be hit."""
        if self.producer:
            self.producer.kick()

    # ------------------------------------------------------------------------------------------------ processes

    def _trap(self, dice: random.Random, detail: str) -> None:
        point, fault = detail.split(".")
        _, pid, exec_ = self._sprung(point, fault)
        self._hit(f"{fault} at {point}", now_ms(), exec=exec_, victim=pid, charged=fault in recorder.CHARGED)

    def _kill_child(self, dice: random.Random) -> None:
        with self._frozen(dice, None) as (child, held):
            self._kill(child, held, "kill child")

    def _kill(self, child: psutil.Process, held: list[str], fault: str, began: float = 0) -> None:
        for exec_ in held:
            self._system.traps.hit(exec_)
        child.kill()
        self._hit(fault, began or now_ms(), victim=child.pid, exec=held[0] if held else "")

    def _freeze_idle_kill(self, dice: random.Random) -> None:
        """The fault that swallows a message of Celery: a worker that waits for one stands still, then dies."""
        with self._frozen(dice, False) as (child, _):
            began = now_ms()
            self._ask()
            time.sleep(dice.uniform(0.2, 0.9))
            held = [one for worker in self._system.judge.ledger.workers() if worker.pid == child.pid
                    for one in worker.held]  # fmt: skip
            self._kill(child, held, "freeze idle, then kill", began)

    def _freeze_idle_wake(self, dice: random.Random) -> None:
        with self._frozen(dice, False):
            began = now_ms()
            self._ask()
            time.sleep(dice.uniform(0.5, 2 * LEASE_S))
        self._hit("freeze idle, then wake", began)

    def _freeze_busy_kill(self, dice: random.Random) -> None:
        _, pid, exec_ = self._sprung("step", "freeze")
        began = now_ms()
        time.sleep(dice.choice([0.2, 0.5, 0.9, 1.5 * LEASE_S]))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._hit("freeze busy, then kill", began, exec=exec_, victim=pid)

    def _zombie(self, dice: random.Random, point: str) -> None:
        """A worker that stands still until its work is another's, and goes on as if nothing had happened."""
        _, pid, exec_ = self._sprung(point, "freeze")
        began, token = now_ms(), self._token(exec_)
        until = time.monotonic() + ZOMBIE_S
        while time.monotonic() < until and self._token(exec_) == token:
            time.sleep(0.05)
        time.sleep(dice.choice([0.0, 0.0, 0.3]))
        taken = self._token(exec_) != token
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            taken = False  # its supervisor, or a fault beside this one, was sooner
        self._hit(f"zombie at {point}" if taken else "freeze busy, then wake", began, exec=exec_, victim=pid)

    def _token(self, exec_: str) -> str | None:
        """The execution's token now; waits while the Valkey is away."""
        prefix = "{" + self._system.judge.settings.namespace + "}:"
        while True:
            try:
                return self._system.redis.hget(f"{prefix}x:{exec_}", "token")
            except redis.RedisError:
                time.sleep(0.1)

    def _freeze_host(self, dice: random.Random) -> None:
        """A whole supervisor with its children stands still past its leases, as a paused machine does."""
        with self._system.lock:
            name = dice.choice(NAMES)
            process = self._system.supervisors[name]
            if process.poll() is not None:
                raise Nobody
            everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
            began = now_ms()
            for one in everyone:
                with suppress(psutil.Error):
                    one.suspend()
            self._ask()
            time.sleep(dice.uniform(LEASE_S, 2 * LEASE_S))
            for one in reversed(everyone):
                with suppress(psutil.Error):
                    one.resume()
        self._hit("freeze a host", began, worker=name)

    def _kill_supervisor(self, dice: random.Random) -> None:
        self._end_supervisor(dice.choice(NAMES), "kill supervisor", dice)

    def _kill_reconciler(self, dice: random.Random) -> None:
        prefix = "{" + self._system.judge.settings.namespace + "}:"
        leader = self._system.redis.get(prefix + "reap:leader")
        if leader not in self._system.supervisors:
            raise Nobody
        self._end_supervisor(leader, "kill reconciler", dice)

    def _end_supervisor(self, name: str, fault: str, dice: random.Random) -> None:
        with self._system.lock:
            process = self._system.supervisors[name]
            began = now_ms()
            process.kill()
            process.wait()
            time.sleep(dice.uniform(0.1, 0.8))
            self._system.supervise(name)
        self._hit(fault, began, worker=name)

    def _drain(self, dice: random.Random, **env: str) -> None:
        with self._system.lock:
            name = dice.choice(NAMES)
            process = self._system.supervisors[name]
            if not psutil.Process(process.pid).children():
                raise Nobody  # it has only just begun, and would end by SIGTERM as any process does
            began = now_ms()
            process.terminate()
            try:
                status = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            took_s = (now_ms() - began) / 1000
            self._system.supervise(name, **env)
        self._hit("skewed clock" if env else "drain", began, worker=name, status=status, took_s=took_s)

    def _skew(self, dice: random.Random) -> None:
        """A supervisor and its children live an hour ahead or behind from now on, until they are started again."""
        self._drain(dice, **{recorder.SKEW: dice.choice(["3600", "-3600"])})

    # ------------------------------------------------------------------------------------------------ servers

    def _kill_valkey(self, dice: random.Random) -> None:
        began = now_ms()
        self._system.valkey.kill()
        time.sleep(dice.uniform(0.2, 2.0))
        self._system.valkey.start()
        self._hit("kill Valkey", began)

    def _kill_s3(self, dice: random.Random) -> None:
        began = now_ms()
        self._system.kill_s3()
        time.sleep(dice.uniform(0.2, 2.0))
        self._system.start_s3()
        self._hit("kill S3", began)

    def _cut_s3(self, dice: random.Random) -> None:
        began = now_ms()
        self._system.to_s3.cut()
        time.sleep(dice.uniform(1.0, 5.0))
        self._system.to_s3.mend()
        self._hit("S3 cut off", began)

    # ------------------------------------------------------------------------------------------------ network

    def _link(self, dice: random.Random) -> tuple[str, Proxy]:
        found = {
            "workers→Valkey": self._system.to_valkey,
            "workers→S3": self._system.to_s3,
            "producer→Valkey": self._system.produced,
        }
        return dice.choice(list(found.items()))

    def _latency(self, dice: random.Random) -> None:
        name, proxy = self._link(dice)
        began, proxy.delay_s = now_ms(), dice.uniform(0.05, 0.3)
        time.sleep(dice.uniform(1.0, 3.0))
        proxy.delay_s = 0.0
        self._hit("latency", began, link=name)

    def _reset(self, dice: random.Random) -> None:
        name, proxy = self._link(dice)
        proxy.reset()
        self._hit("reset", now_ms(), link=name)

    def _hole(self, dice: random.Random) -> None:
        name, proxy = self._link(dice)
        began = now_ms()
        proxy.hole()
        time.sleep(dice.uniform(1.0, 4.0))
        proxy.mend()
        self._hit("black hole", began, link=name)

    def _half_open(self, dice: random.Random) -> None:
        name, proxy = self._link(dice)
        proxy.hush()
        self._hit("half-open", now_ms(), link=name)

    def _drop_reply(self, dice: random.Random, script: str) -> None:
        """The server does what it is asked, and the asker never hears of it."""
        proxy = self._system.produced if script == "submit" else self._system.to_valkey
        # Scripts are called by their hash. Source: Redis, EVALSHA.
        sha = hashlib.sha1(_source(script).encode(), usedforsecurity=False).hexdigest()
        dropped, until = proxy.dropped, time.monotonic() + SPRING_S
        proxy.drop_reply(sha.encode())
        while proxy.dropped == dropped:
            if time.monotonic() > until:
                raise Nobody
            self._ask()
            time.sleep(0.05)
        self._hit(f"reply to {script} dropped", now_ms())

    # ------------------------------------------------------------------------------------------------ queues, disk

    def _lists(self) -> list[str]:
        return [f"{self._system.judge.settings.namespace}:{queue}" for queue in stages.QUEUES]

    def _delete_queues(self, dice: random.Random) -> None:
        client = self._system.redis
        self._ask()
        time.sleep(dice.uniform(0.0, 0.2))
        gone = client.delete(*self._lists(), *client.scan_iter("*_kombu*"))
        self._hit("all queues deleted", now_ms(), keys=gone)

    def _garbage(self, dice: random.Random) -> None:
        rubbish = [b"\x80\x04garbage", b"{}", b"[]", b'{"body": 1}', b"\xff\xfe", b"{" * 10000]
        name = dice.choice(self._lists())
        self._system.redis.lpush(name, *dice.sample(rubbish, 3))
        self._hit("garbage on a queue", now_ms(), queue=name)

    def _wrong_type(self, dice: random.Random) -> None:
        """A doorbell list becomes a string. An operator deletes it where the farm has not."""
        client, name = self._system.redis, dice.choice(self._lists())
        client.delete(name)
        if not client.set(name, "x", nx=True):
            raise Nobody
        began, until = now_ms(), time.monotonic() + 4
        while client.type(name) == "string" and time.monotonic() < until:
            time.sleep(0.1)
        healed = client.type(name) != "string"
        if not healed:
            client.delete(name)
        self._hit("wrong type at a queue", began, queue=name, healed=healed)

    def _disk_full(self, dice: random.Random) -> None:
        if not self._system.disk:
            return  # mounting is not allowed here; the report says so
        began, filler = now_ms(), self._system.disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        time.sleep(dice.uniform(1.0, 4.0))
        filler.unlink()
        self._hit("disk full", began)
