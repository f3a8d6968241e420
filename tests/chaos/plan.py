"""Which faults, how many, and in which order? A seed decides; interleavings of threads and processes it cannot."""

from __future__ import annotations

import random
from dataclasses import dataclass

Lane = list[str]

PROCESSES = {
    # Self-inflicted at a point which no signal from outside can hit, one trap each.
    "trap step.kill": (40, 3),
    "trap claimed.kill": (15, 1),
    "trap commit.kill": (15, 1),
    "trap committed.kill": (15, 1),
    "trap step.segfault": (10, 1),
    "trap step.exit": (8, 1),
    "trap step.bug": (8, 1),
    "trap step.cuda": (10, 1),
    "trap step.hang": (8, 1),
    "trap step.oom": (10, 1),
    # From outside.
    "kill_child": (110, 4),
    "kill_supervisor": (15, 1),
    "kill_reconciler": (10, 1),
    "freeze_idle_kill": (55, 3),
    "freeze_busy_kill": (50, 2),
    "freeze_idle_wake": (15, 1),
    "zombie step": (22, 1),
    "zombie commit": (40, 3),
    "freeze_host": (5, 1),
    "drain": (15, 2),
    "skew": (4, 1),
}
"""Of each fault of the processes' lane: how often at full scale, and how often at short."""
SERVERS = {"kill_valkey": (22, 2), "kill_s3": (12, 1), "cut_s3": (10, 1)}
NETWORK = {
    "latency": (8, 1),
    "reset": (12, 1),
    "hole": (8, 1),
    "half_open": (10, 1),
    "drop_reply commit": (12, 1),
    "drop_reply claim": (6, 1),
    "drop_reply submit": (6, 1),
    "delete_queues": (10, 1),
    "garbage": (10, 1),
    "wrong_type": (5, 1),
    "disk_full": (6, 1),
}
SCALES = {"full": (0, 500, 10, 6), "short": (1, 60, 5, 0)}
"""Of each scale: the column of counts, how many chains, how many doomed ones and how many of real pipelines beside
them. A worker with torch takes seconds of two cores to start, so those are few."""


@dataclass(frozen=True)
class Plan:
    """What one run does: chains to submit and the faults of each lane, in order. Lanes run beside each other."""

    seed: int
    chains: int
    doomed: int
    real: int
    lanes: dict[str, Lane]

    @property
    def total(self) -> int:
        """How many faults there are."""
        return sum(map(len, self.lanes.values()))


def make_plan(seed: int, scale: str) -> Plan:
    """The plan of a seed at a scale (`full`, `short`)."""
    column, chains, doomed, real = SCALES[scale]
    lanes: dict[str, Lane] = {}
    for name, counts in (("processes", PROCESSES), ("servers", SERVERS), ("network", NETWORK)):
        lanes[name] = [fault for fault, count in counts.items() for _ in range(count[column])]
        random.Random(f"{seed} {name}").shuffle(lanes[name])
    return Plan(seed, chains, doomed, real, lanes)
