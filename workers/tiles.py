"""How is a large picture worked on in pieces, without seams?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from farm.stage import Report, Size

Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a tile, pixels of the input."""


def spans(side: int, tile: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Pieces of a side that overlap, each `tile` long where the side is."""
    start = 0
    while start + tile < side:
        yield start, start + tile
        start += tile - overlap
    yield max(0, side - tile), side


def blended(given: Size, factor: int, tile: int, overlap: int, make: Callable[[int, int, Box], Any]) -> Any:
    """What `make` gives for each tile, laid over each other: float32 [height × factor, width × factor, 3].

    `make` is told the tile's number, how many there are, and its box (left, top, right, bottom) in the input, and gives
    a float array [height × factor, width × factor, 3]. Where tiles overlap, each fades towards its edge.
    """
    import numpy as np

    boxes = [
        (left, top, right, bottom)
        for top, bottom in spans(given.height, tile, overlap)
        for left, right in spans(given.width, tile, overlap)
    ]
    made = np.zeros((given.height * factor, given.width * factor, 3), np.float32)
    weights = np.zeros((*made.shape[:2], 1), np.float32)
    for index, box in enumerate(boxes):
        piece = make(index, len(boxes), box)
        rows, columns = (_fading(side, overlap * factor) for side in piece.shape[:2])
        weight = (rows[:, None] * columns[None, :])[..., None]
        left, top, right, bottom = (side * factor for side in box)
        made[top:bottom, left:right] += piece * weight
        weights[top:bottom, left:right] += weight
    return made / weights


def program(given: str, size: Size, factor: int, tile: int, overlap: int, part: Sequence[str]) -> list[str]:
    """The lines of a plain program that leave in `made` what `blended` gives.

    `part` are those that make `piece` of the variable `part`.
    """
    spanned = [[*spans(side // factor, tile, overlap)] for side in (size.height, size.width)]
    box = f"{factor} * top : {factor} * bottom, {factor} * left : {factor} * right"
    return [
        "import numpy as np",
        "def fading(length):",
        "    place = np.arange(length, dtype=np.float32) + 0.5",
        f"    return (np.minimum(place, length - place) / {factor * overlap}).clip(max=1.0)",
        f"made = np.zeros(({size.height}, {size.width}, 3), np.float32)",
        "weights = np.zeros((*made.shape[:2], 1), np.float32)",
        f"for top, bottom in {spanned[0]}:",
        f"    for left, right in {spanned[1]}:",
        f"        part = {given}.crop((left, top, right, bottom))",
        *(f"        {line}" for line in part),
        "        weight = (fading(piece.shape[0])[:, None] * fading(piece.shape[1])[None, :])[..., None]",
        f"        made[{box}] += piece * weight",
        f"        weights[{box}] += weight",
        "made = made / weights",
    ]


def _fading(length: int, overlap: int) -> Any:
    """Weights that rise from either edge over `overlap` places."""
    import numpy as np

    place = np.arange(length, dtype=np.float32) + 0.5
    return (np.minimum(place, length - place) / overlap).clip(max=1.0)


@dataclass(frozen=True)
class Part:
    """The report of one tile of several: its steps are a share of all steps."""

    report: Report
    index: int
    count: int

    def phase(self, name: str) -> None:
        """As ever."""
        self.report.phase(name)

    def step(self, step: int, steps: int) -> None:
        """After the steps of the tiles before."""
        self.report.step(self.index * steps + step, self.count * steps)

    def show(self, seen: Callable[[], Any], row: int = 0) -> None:
        """Nothing: a tile is no picture."""


class Row(Part):
    """The report of one member of several, each in a call of its own."""

    def show(self, seen: Callable[[], Any], row: int = 0) -> None:
        """That member's."""
        self.report.show(seen, row + self.index)
