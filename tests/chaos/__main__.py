"""`python -m tests.chaos`: does the farm lose anything, whatever happens to its parts?

    python -m tests.chaos [--seed N] [--scale full|short] [--arm farm|control|both] [--out DIR]
    python -m tests.chaos judge DIR        the checker alone, on the history that a run left
    python -m tests.chaos recovery         how soon work goes on after each kind of fault

The seed decides the plan of faults and all their parameters; how threads and processes interleave, nobody can repeat.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from pathlib import Path

from farm.log import log_to_stderr
from tests.chaos import control, report
from tests.chaos.plan import SCALES, make_plan
from tests.chaos.run import judge, run


def main() -> int:
    """The exit status: 0 where everything held and the control arm lost something."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--arm", choices=("farm", "control", "both"), default="both")
    parser.add_argument("--out", type=Path, default=Path("chaos-out"))
    given = parser.parse_args()
    return chaos(given.seed, given.scale, given.arm, given.out.absolute())


def chaos(seed: int, scale: str, arm: str, out: Path) -> int:
    """One run of either arm or both, with its report on stdout and in `out`/report.json; the exit status."""
    again = f"python -m tests.chaos --seed {seed} --scale {scale} --arm {arm}"
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {what}", flush=True)

    say(again)
    log_to_stderr("error")  # lost doorbells of the harness's own producer are meant to be
    out.mkdir(parents=True, exist_ok=True)
    wrong: list[str] = []
    found: dict[str, object] = {"command": again, "seed": seed, "scale": scale}
    if arm != "farm":
        lost = control.run(seed, scale, out / "control", say)
        found["control"] = lost
        print(control.text(lost))
        if not lost["lost"]:
            wrong.append("the control arm lost nothing: the harness proves nothing")
    if arm != "control":
        run(make_plan(seed, scale), out / "farm", say)
        violations = judge(out / "farm")
        figures = report.summary(out / "farm", violations)
        found |= {"farm": figures, "violations": violations}
        print(report.text(figures, violations))
        wrong += [f"{len(told)} violations of {name}" for name, told in violations.items() if told]
        wrong += report.shortfalls(figures, scale)
    (out / "report.json").write_text(json.dumps(found, indent=1))
    for sentence in wrong:
        print(f"FAILED: {sentence}")
    if wrong:
        print(f"again: {again}")
    return bool(wrong)


if __name__ == "__main__":
    # Whoever ends this process wants the farm under test gone too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if sys.argv[1:2] == ["judge"]:
        found = judge(Path(sys.argv[2]))
        print(report.text(report.summary(Path(sys.argv[2]), found), found))
        sys.exit(any(found.values()))
    if sys.argv[1:2] == ["recovery"]:
        from tests.chaos import recovery

        sys.exit(recovery.main(sys.argv[2:]))
    sys.exit(main())
