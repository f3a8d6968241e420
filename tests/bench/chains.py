"""Chains per second: the farm with one process per stage against the script one would write by hand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from farm.catalog import Catalog
from farm.local import running
from farm.settings import Settings
from farm.stage import kinds
from tests.conftest import TINY

PROMPT = "a red apple on a blue background"
Arms = dict[str, Callable[[], dict[str, float]]]


@contextmanager
def bench(folder: Path, count: int, catalog: Path | None = TINY) -> Iterator[Arms]:
    """The two arms, each rendering `count` chains of the preset `hires` with other seeds every time.

    Without `catalog` they are the demo family's.
    """
    settings = Settings.load(data=folder, catalog=catalog)
    seeds = itertools.count(1000)
    with running(settings, say=lambda _: None) as farm:
        script = Script(farm.catalog)

        def by_farm() -> dict[str, float]:
            began = time.perf_counter()
            jobs = [farm.render(PROMPT, chain="hires", seed=next(seeds)) for _ in range(count)]
            for job in jobs:
                job.wait(600)
            return {"chains_per_s": count / (time.perf_counter() - began)}

        def by_script() -> dict[str, float]:
            began = time.perf_counter()
            for _ in range(count):
                script.render(next(seeds))
            return {"chains_per_s": count / (time.perf_counter() - began)}

        by_farm()
        by_script()
        yield {"plain script, one thread": by_script, "the farm, four workers": by_farm}


class Script:
    """Four pipelines, loaded once, called in turn: latents between the first three, a PIL image before the last."""

    def __init__(self, catalog: Catalog) -> None:
        import diffusers
        import torch
        import transformers

        torch.set_num_threads(1)
        for library in (diffusers, transformers):
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
        names = {
            "text2img": "StableDiffusionPipeline",
            "img2img": "StableDiffusionImg2ImgPipeline",
            "upscale_latent": "StableDiffusionLatentUpscalePipeline",
            "upscale": "StableDiffusionUpscalePipeline",
        }
        self.pipes: dict[str, Any] = {}
        self.stage: dict[str, Any] = {}
        for kind, name in names.items():
            entry = catalog.checkpoints[catalog.defaults[kind]]
            path = catalog.path(entry)
            unchecked = {} if kind.startswith("upscale") else {"safety_checker": None, "requires_safety_checker": False}
            pipe = getattr(diffusers, name).from_pretrained(
                path, torch_dtype=torch.float32, local_files_only=True, **unchecked
            )
            pipe.set_progress_bar_config(disable=True)
            self.pipes[kind] = pipe
            # The farm's own defaults, so that both do the same steps.
            self.stage[kind] = entry.advise(kinds()[kind].model_validate({"kind": kind}))

    def render(self, seed: int) -> Any:
        import torch

        def run(kind: str, output_type: str, **given: Any) -> Any:
            stage = self.stage[kind]
            return self.pipes[kind](
                prompt=PROMPT,
                num_inference_steps=stage.num_inference_steps,
                guidance_scale=stage.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type=output_type,
                **given,
            ).images

        latents = run("text2img", "latent")
        latents = run("img2img", "latent", image=latents, strength=0.5)
        (image,) = run("upscale_latent", "pil", image=latents)
        return run("upscale", "pil", image=image)
