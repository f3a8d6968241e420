"""How does one part of the family learn: steps, averages, states to go on from, plots?

What is the same for all parts. A part says what it trains, what one batch costs (`loss`) and what it can do by now
(`sheet`). Runs on whatever accelerate finds: CUDA, MPS or the CPU, in the precision that the accelerator was given.
"""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import nn

SAVE_S = 120.0
"""Pause between two saved states, seconds."""


class Part(Protocol):
    """What is trained. `model` holds all of it; its members' names are those of the files that are written."""

    name: str
    model: nn.ModuleDict
    learning_rate: float

    def loss(self, dice: np.random.Generator) -> torch.Tensor:
        """The loss of one batch, drawn by `dice`; torch's own generator is seeded as well."""
        ...

    def sheet(self) -> Image.Image:
        """A picture of what `model` can do now, on what it was not trained on."""
        ...

    def finish(self) -> None:
        """Called once, with the averaged weights in `model`, before they are written."""
        ...


def fit(part: Part, accelerator: Accelerator, work: Path, steps: int, planned: int | None = None) -> None:
    """Trains `part` up to `steps` steps, from the state in `work` if there is one, and writes its weights there.

    The learning rate rises over 200 steps, and falls to nothing over the last fifth of the `planned` ones. What is
    written is the exponential average of the weights, decay 0.9995 (Source: its warm-up and use, diffusers'
    `EMAModel`), in float16.
    """
    folder = work / part.name
    folder.mkdir(parents=True, exist_ok=True)
    model = part.model.to(accelerator.device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=part.learning_rate, weight_decay=1e-2, betas=(0.9, 0.99))
    ema = EMAModel(parameters, decay=0.9995, use_ema_warmup=True, power=0.75)
    step, planned = _resume(folder, model, optimizer, ema), planned or steps
    optimizer = accelerator.prepare(optimizer)
    saved, losses, log = time.monotonic(), [], (folder / "loss.csv").open("a", newline="")
    with log, Progress() as progress:
        task = progress.add_task(part.name, total=steps, completed=step)
        while step < steps:
            for group in optimizer.param_groups:
                group["lr"] = part.learning_rate * min(
                    1.0, (step + 1) / 200, max(0.01, (planned - step) / (0.2 * planned))
                )
            torch.manual_seed(step)
            with accelerator.autocast():
                loss = part.loss(np.random.default_rng(step))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ema.step(parameters)
            step += 1
            losses.append(loss.item())
            if step % 50 == 0 or step == steps:
                csv.writer(log).writerow((step, round(float(np.mean(losses)), 6), round(time.time())))
                log.flush()
                progress.update(task, completed=step, description=f"{part.name} {np.mean(losses):.4f}")
                losses = []
            if time.monotonic() - saved > SAVE_S or step == steps:
                _save(folder, model, optimizer, ema, step)
                saved = time.monotonic()
    _show(part, folder, parameters, ema)


def show(part: Part, accelerator: Accelerator, work: Path) -> None:
    """Writes the weights, the sheet and the loss plot of a state that another process goes on from."""
    folder = work / part.name
    model = part.model.to(accelerator.device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ema = EMAModel(parameters)
    _resume(folder, model, torch.optim.AdamW(parameters), ema)
    _show(part, folder, parameters, ema)


def _show(part: Part, folder: Path, parameters: list[Any], ema: EMAModel) -> None:
    ema.copy_to(parameters)
    part.model.eval()
    with torch.no_grad():
        part.finish()
        for name, member in part.model.items():
            halves = {key: value.half().cpu().contiguous() for key, value in member.state_dict().items()}
            save_file(halves, folder / f"{name}.safetensors", metadata={"format": "pt"})
        part.sheet().save(folder / "sheet.png")
    plot(folder / "loss.csv", folder / "loss.png")


def plot(log: Path, picture: Path) -> None:
    """The loss over the steps, on two logarithmic axes."""
    from matplotlib.figure import Figure

    with log.open(newline="") as file:
        rows = [(int(step), float(loss)) for step, loss, _ in csv.reader(file)]
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.loglog(*zip(*rows, strict=True))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    figure.savefig(picture)


# A state is safetensors and JSON: nothing that would have to be unpickled.


def _save(folder: Path, model: nn.Module, optimizer: Any, ema: EMAModel, step: int) -> None:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, value in enumerate(ema.shadow_params):
        state[f"ema.{index}"] = value
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            state[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    about = {"step": str(step), "ema_step": str(ema.optimization_step)}
    state = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    save_file(state, folder / "state.tmp", metadata={"about": json.dumps(about)})
    (folder / "state.tmp").rename(folder / "state.safetensors")


def _resume(folder: Path, model: nn.Module, optimizer: Any, ema: EMAModel) -> int:
    """Puts the saved state in place; the step it was saved at, 0 without one."""
    path = folder / "state.safetensors"
    if not path.exists():
        return 0
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    state = load_file(path)
    model.load_state_dict({name[6:]: value for name, value in state.items() if name.startswith("model.")})
    ema.shadow_params = [state[f"ema.{index}"].to(value.device) for index, value in enumerate(ema.shadow_params)]
    ema.optimization_step = int(about["ema_step"])
    moments: dict[int, dict[str, Any]] = {}
    for name, value in state.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(about["step"])
