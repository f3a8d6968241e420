"""Trains the demo family, part by part: `python -m workers.demo.train PART [--work DIR]`.

The parts: vae, decoder, base, style, x2, x2-fine, x4, x4-fine; `workers.demo.train.parts` says what each learns.
Each part goes on from where it stopped, needs the parts before it (vae, decoder, base, then the others), and leaves its
weights, a sample sheet and a loss plot in DIR/PART. `--show` makes these three of a state that is being trained; `ship`
puts the weights into the package.
It needs `pip install 'latent-farm[worker,train]'`; on two CPU cores a step of `base` takes a second.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from workers.demo.train import loop, parts
from workers.demo.train.ship import ship

STEPS = {
    "vae": 6000,
    "decoder": 4000,
    "base": 12000,
    "style": 2000,
    "x2": 6000,
    "x4": 6000,
    "x2-fine": 2000,
    "x4-fine": 2000,
}
"""Steps of each part."""
PICTURES = {"vae": 12000, "decoder": 12000, "base": 40000, "style": 10000}
"""Scenes that each part is trained on."""


def main() -> None:
    """Trains one part."""
    parser = argparse.ArgumentParser(prog="python -m workers.demo.train", description=__doc__)
    parser.add_argument("part", choices=[*STEPS, "ship"])
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="folder of data, states and results")
    parser.add_argument("--steps", type=int, help="steps in all; the learning rate falls over the last fifth")
    parser.add_argument("--pictures", type=int, help="scenes to draw")
    parser.add_argument("--show", action="store_true", help="only write weights, sheet and plot of the state there is")
    given = parser.parse_args()
    if given.part == "ship":
        ship(given.work)
        return
    # On a CPU, bfloat16 made a step twice as long (torch 2.13, AVX-512). What makes pixels needs all their 8 bits.
    half = torch.cuda.is_available() and given.part not in ("vae", "decoder", "x2-fine", "x4-fine")
    accelerator = Accelerator(mixed_precision="bf16" if half else "no")
    count, device = given.pictures or PICTURES.get(given.part, 10000), accelerator.device
    torch.manual_seed(sum(given.part.encode()))
    torch.set_flush_denormal(True)
    make: dict[str, Callable[[], loop.Part]] = {
        "vae": lambda: parts.Vae(given.work, count),
        "decoder": lambda: parts.Decoder(given.work, count),
        "base": lambda: parts.Base(given.work, count, device),
        "style": lambda: parts.Base(given.work, count, device, style="shaded"),
        "x2": lambda: parts.X2(given.work, count, device),
        "x4": lambda: parts.X4(given.work, count, device),
        "x2-fine": lambda: parts.X2(given.work, count, device, fine=True),
        "x4-fine": lambda: parts.X4(given.work, count, device, fine=True),
    }
    part = make[given.part]()
    if given.show:
        loop.show(part, accelerator, given.work)
    else:
        loop.fit(part, accelerator, given.work, given.steps or STEPS[given.part])


if __name__ == "__main__":
    main()
