"""Four stages on a pretended GPU: deterministic pixels, 20 to 50 ms each, no torch.

The pixels of a stage are a hash of its seed and of the pixels before, so the end of a chain tells whether every stage
had the right input. Faults that are injected never change them.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from typing import Any, ClassVar, Literal

from PIL import Image

from farm.errors import Failure, StageFailed
from farm.stage import Batch, Medium, Report, Size, Stage
from tests.chaos import recorder

STEPS = 4
KINDS = ("fake_a", "fake_b", "fake_c", "fake_d")
CHECKPOINT = "none"
QUEUES = tuple(f"{kind}.{CHECKPOINT}" for kind in KINDS)


def paint(kind: str, seed: int, before: Image.Image | None, size: Size) -> Image.Image:
    """The image that the stage makes: nothing but its kind, its seed, its size and the pixels before decide."""
    text = f"{kind} {seed} {size}".encode() + (before.tobytes() if before else b"")
    return Image.frombytes(
        "RGB", (size.width, size.height), hashlib.shake_256(text).digest(3 * size.width * size.height)
    )


def step_s(seed: int) -> float:
    """Device time of one step: 5 to 12 ms, so that a stage takes 20 to 50 ms."""
    return 0.005 + (seed % 8) / 1000


class FakeA(Stage):
    """Paint from noise."""

    kind: Literal["fake_a"] = "fake_a"
    gives: ClassVar = frozenset({Medium.IMAGE})
    needs_torch: ClassVar = False
    poison: Literal["", "kill", "hang", "segfault", "nan", "oom"] = ""
    longer_s: float = 0.0

    def load(self, checkpoint: Any, device: str) -> None:
        """Nothing is loaded."""

    def run(self, pipe: Any, batch: Batch, report: Report) -> list[Any]:
        """Takes its time, step by step, and paints."""
        for step in range(STEPS):
            threading.Event().wait(step_s(batch.generators[0]) + self.longer_s / STEPS)
            report.step(step + 1, STEPS)
            if recorder.here:
                recorder.here.spring("step")
            if step == 1:
                self._suffer()
        return [
            paint(self.kind, seed, given, batch.size) for seed, given in zip(batch.generators, batch.given, strict=True)
        ]

    def _suffer(self) -> None:
        """Fails every time, as a poisonous job does."""
        if self.poison == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.poison == "hang":
            threading.Event().wait()
        elif self.poison == "segfault":
            recorder.FAULTS["segfault"]()
        elif self.poison == "nan":
            raise StageFailed(code="nan_output")
        elif self.poison == "oom":
            raise StageFailed(failure=Failure.OOM, code="gpu_oom")


class FakeB(FakeA):
    """Paint over what is given."""

    kind: Literal["fake_b"] = "fake_b"
    takes: ClassVar = frozenset({Medium.IMAGE})


class FakeC(FakeB):
    """Paint over what is given."""

    kind: Literal["fake_c"] = "fake_c"


class FakeD(FakeB):
    """Paint over what is given."""

    kind: Literal["fake_d"] = "fake_d"
