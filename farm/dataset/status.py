"""How far is a dataset?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

State = Literal["planned", "running", "paused", "done"]


@dataclass(frozen=True)
class Status:
    """How far a dataset is. `rate`: samples a second over the last minute; `eta_s`: seconds until the last is done."""

    name: str
    state: State | Literal["planning", "refused"]
    """`planning`: it was asked for, and whoever feeds the farm's datasets reads its rows; `refused`: they are wrong."""
    samples: int
    done: int
    failed: int
    shards: int
    shards_done: int
    size_bytes: int
    rows: int
    rejected: int
    priority: int
    fed: bool
    """Whether a process feeds it now."""
    open: dict[str, int]
    """The jobs of the shards in work, by state."""
    rate: float | None
    eta_s: float | None
    owner: str = ""
    refused: dict[str, Any] | None = None
    """Why what was asked for is not possible: `code`, `message`, the first `rows` or `errors`, and `until` when."""
    trouble: dict[str, Any] | None = None
    """Why it does not go on, though it is to run: `code`, `message` and `errors`."""
