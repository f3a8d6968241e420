"""What was done, what held, and how soon did work go on?"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.chaos import history
from tests.chaos.checker import Case
from tests.chaos.generator import DOOMED
from tests.chaos.system import LEASE_S

GROUPS = {
    "kills": ("kill at ", "segfault at ", "kill child", "kill supervisor", "kill reconciler"),
    "freeze then kill": ("freeze idle, then kill", "freeze busy, then kill"),
    "zombies": ("zombie at ",),
    "Valkey kills": ("kill Valkey",),
    "S3 outages": ("kill S3", "S3 cut off"),
    "deletions of every queue": ("all queues deleted",),
    "network faults": ("latency", "reset", "black hole", "half-open", "reply to "),
    "garbage on queues": ("garbage", "wrong type"),
    "drains": ("drain", "skewed clock"),
    "failures injected into stages": ("bug at ", "cuda at ", "oom at ", "hang at ", "exit at "),
    "freezes": ("freeze idle, then wake", "freeze busy, then wake", "freeze a host"),
    "full disks": ("disk full",),
}
FLOORS = {
    "full": {
        "kills": 200, "freeze then kill": 100, "zombies": 50, "Valkey kills": 20, "S3 outages": 20,
        "deletions of every queue": 10, "network faults": 40, "garbage on queues": 10, "drains": 10,
        "failures injected into stages": 30,
    },
    "short": {
        "kills": 10, "freeze then kill": 3, "zombies": 2, "Valkey kills": 1, "S3 outages": 1,
        "deletions of every queue": 1, "network faults": 4, "garbage on queues": 1, "drains": 1,
        "failures injected into stages": 3,
    },
}  # fmt: skip
"""Fewest faults of a group that a run must have done; below, it shows nothing. A zombie is one only if its stage became
another's while it stood still, so a farm whose leases never lapse has none."""


def summary(folder: Path, violations: Mapping[str, list[str]]) -> dict[str, Any]:
    """The figures of the run in `folder`."""
    events = history.read(folder / "history")
    left = json.loads((folder / "final.json").read_text())
    case = Case(events, left, LEASE_S * 1000)
    faults = Counter(event["fault"] for event in case.calls("fault"))
    good = [event for event in case.acked.values() if event["expect"] == "done"]
    states = Counter(left["jobs"][event["acked"]]["state"] for event in good if event["acked"] in left["jobs"])
    groups = {name: sum(faults[one] for one in faults if one.startswith(kinds)) for name, kinds in GROUPS.items()}
    results = [left["jobs"].get(event["acked"], {}).get("result") or {} for event in good]
    total = sum(faults.values())
    return {
        "minutes": round((events[-1]["t"] - events[0]["t"]) / 60000, 1),
        "faults": total,
        "groups": groups,
        "each": dict(sorted(faults.items())),
        "not done": dict(Counter(event["fault"] for event in case.calls("gave_up"))),
        "chains": len(good),
        "done": states["done"],
        "golden": sum(found.get("pixels") == event["golden"] for found, event in zip(results, good, strict=True)),
        "lost": len(good) - states["done"],
        "doomed": dict(Counter(event["expect"] for event in case.acked.values() if event["expect"] in DOOMED.values())),
        "double commits": len(violations["committed_once"]),
        "stale commits refused": sum(not taken for _, _, taken in case.commit_answers),
        "executions": len(case.transitions),
        "claims": len({event["token"] for event in case.stream if event["type"] == "claimed"}),
        "outcome unknown": len(case.calls("outcome_unknown")),
        "refused": len(case.calls("submit_refused")),
        "bound": 3 / max(1, total),
        "recovery": {
            "killed, running": _spread(recoveries(case, GROUPS["kills"])),
            "frozen, running": _spread(recoveries(case, ("freeze busy, then kill", "zombie at step"))),
        },
        "stats": left["stats"],
    }


def recoveries(case: Case, faults: tuple[str, ...]) -> list[float]:
    """Seconds from each fault that met a running execution until that execution was claimed again."""
    found = []
    for event in case.calls("fault"):
        if not event["fault"].startswith(faults) or not event.get("exec") or "committed" in event["fault"]:
            continue
        sprung = [one["t"] for one in case.calls("trap") if one["exec"] == event["exec"] and one["t"] <= event["until"]]
        began = max(sprung, default=event["t"])
        again = [one["t"] for one in case.transitions[event["exec"]] if one["type"] == "claimed" and one["t"] > began]
        if again:
            found.append((min(again) - began) / 1000)
    return found


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {"n": 0}
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return {"n": len(ordered), "median_s": round(statistics.median(ordered), 2), "p99_s": round(p99, 2),
            "max_s": round(ordered[-1], 2)}  # fmt: skip


def shortfalls(found: Mapping[str, Any], scale: str) -> list[str]:
    """The groups of faults of which a run did fewer than it must."""
    done, wanted = found["groups"], FLOORS[scale]
    return [f"{done[name]} of {count} {name}" for name, count in wanted.items() if done[name] < count]


def text(found: Mapping[str, Any], violations: Mapping[str, list[str]]) -> str:
    """The figures as a table for people."""
    lines = [
        "| the farm | |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in found["groups"].items() if count),
        f"| faults in all, in {found['minutes']} minutes | {found['faults']} |",
        f"| four-stage chains acknowledged | {found['chains']} |",
        f"| lost | {found['lost']} |",
        f"| double commits | {found['double commits']} |",
        f"| golden pixels | {found['golden']}/{found['chains']} |",
        f"| stale commits refused | {found['stale commits refused']} |",
        f"| runs of stages per stage | {found['claims'] / max(1, found['executions']):.3f} |",
        f"| bound on the rate of loss per fault (95 %) | {found['bound']:.4f} |",
    ]
    for name, spread in found["recovery"].items():
        if spread["n"]:
            lines.append(
                f"| {name}: claimed again after | median {spread['median_s']} s, p99 {spread['p99_s']} s, "
                f"max {spread['max_s']} s (n = {spread['n']}) |"
            )
    for name, sentences in violations.items():
        lines += [f"VIOLATION of {name}: {sentence}" for sentence in sentences[:10]]
        if len(sentences) > 10:
            lines.append(f"VIOLATION of {name}: and {len(sentences) - 10} more")
    return "\n".join(lines)
