"""How does an image become a larger one without a prompt?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from farm.errors import FieldError
from farm.stage import Batch, Medium, Report, Size, Source, Stage
from workers import superres


class Esrgan(Stage):
    """Enlarge an image by a plain super-resolution network: quick, faithful, and without a prompt.

    Source: ESRGAN, Wang et al. 2018, arXiv:1809.00219; Real-ESRGAN, Wang et al. 2021, arXiv:2107.10833. Its weights are
    one safetensors file of the RRDB or the compact architecture; which one, and how wide, its tensors say.
    """

    kind: Literal["esrgan"] = "esrgan"
    takes: ClassVar[frozenset[Medium]] = frozenset({Medium.IMAGE})
    gives: ClassVar[frozenset[Medium]] = frozenset({Medium.IMAGE})
    draws: ClassVar[bool] = False

    factor: Literal[2, 4] = Field(4, description="how many times the side; the checkpoint's own")
    tile: int | None = Field(
        None, ge=64, le=2048, multiple_of=8, description="works in overlapping tiles of so many pixels, to spare memory"
    )

    def fits(self, family: str) -> Iterator[FieldError]:
        """A checkpoint enlarges as much as it was trained for."""
        if not family.startswith("esrgan-"):
            msg = f"of the family {family}; {self.kind} runs esrgan-x2 or esrgan-x4"
            yield FieldError("checkpoint", msg, "wrong_checkpoint")
        elif family != f"esrgan-x{self.factor}":
            yield FieldError("factor", f"{family[-1]}: this checkpoint was made for it")

    def whole(self) -> bool:
        """It looks at a few pixels around each."""
        return False

    def output_size(self, given: Size | None, native: int) -> Size:
        """`factor` times the given sides."""
        width, height = given or Size(native, native)
        return Size(width * self.factor, height * self.factor)

    def given_size(self, size: Size) -> Size:
        """The size by `factor`."""
        return Size(size.width // self.factor, size.height // self.factor)

    def load(self, checkpoint: Any, device: str) -> Any:
        """The network that the checkpoint's tensors make."""
        return superres.load(checkpoint, device)

    def run(self, pipe: Any, batch: Batch, report: Report) -> list[Any]:
        """Images of `batch.size`, one per input."""
        return [superres.enlarge(pipe, image, batch.size, self.tile, report) for image in batch.given]

    def script(self, named: Mapping[str, str], emits: Medium, size: Size, seed: int, source: Source) -> list[str]:  # noqa: ARG002
        """A plain program; it needs spandrel, which knows these networks."""
        return superres.program(named["given"], size, self.factor, self.tile, source)
