"""What memory does a stage of a checkpoint take? `python -m tests.bench.memory KIND CHECKPOINT [--set NAME=JSON …]`

Loads a pulled checkpoint of the catalog on this machine's device, runs one picture of its native side, and prints the
peak: on CUDA what torch allocated, elsewhere the process's largest resident set.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

from PIL import Image

from farm.catalog import Catalog
from farm.chain import parse_chain
from farm.settings import Settings
from farm.stage import Batch, Medium, Size
from workers import calling, pipelines


class Silent:
    """A report that keeps nothing."""

    def phase(self, name: str) -> None:
        """Not told."""

    def step(self, step: int, steps: int) -> None:
        """Not told."""

    def show(self, seen: object, row: int = 0) -> None:
        """Not shown."""


def main() -> None:
    """Measures one stage."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.memory", description=__doc__)
    parser.add_argument("kind")
    parser.add_argument("checkpoint")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="a parameter of the stage")
    given = parser.parse_args()
    import torch

    settings = Settings.load()
    catalog, device = Catalog.load(settings), pipelines.pick_device(settings.device)
    entry = catalog.checkpoints[given.checkpoint]
    fields = {name: json.loads(value) for name, _, value in (item.partition("=") for item in given.set)}
    chain = {"stages": [{"kind": given.kind, "checkpoint": given.checkpoint, **fields}]}
    (stage,) = parse_chain(chain).stages
    began = time.perf_counter()
    pipe = stage.load(pipelines.files_of(catalog, entry), device)
    loaded = time.perf_counter()
    side = Size(entry.native, entry.native)
    image = Image.new("RGB", side, "grey") if stage.takes else None
    size = stage.output_size(side if stage.takes else None, entry.native)
    own = {loc: Image.new("RGB", side, "white") for loc in stage.uploads()}
    if stage.takes == {Medium.LATENTS}:
        space = catalog.space(entry)
        shape = (space.channels, entry.native // space.factor, entry.native // space.factor)
        image = torch.zeros(shape, dtype=getattr(torch, entry.dtype))
    batch = Batch(Medium.IMAGE, size, ["a red apple"], [""], [image], [calling.generator(1)], [own])
    stage.run(pipe, batch, Silent())
    ended = time.perf_counter()
    if device.startswith("cuda"):
        weights, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    else:
        weights, peak = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "kind": given.kind,
                "checkpoint": given.checkpoint,
                "device": device,
                "size": str(size),
                "weights_bytes": weights,
                "peak_bytes": peak,
                "load_s": round(loaded - began, 2),
                "run_s": round(ended - loaded, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
