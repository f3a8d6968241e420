"""Which plain diffusers program makes the same pixels as a job?

Batch 1, one thread, latents kept between stages that hand latents on, a PIL image before the x4 upscaler, and
`manual_seed` of each stage's recorded seed: what one would write by hand, so that a result can be checked without a
farm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from farm.catalog import Catalog, Checkpoint
from farm.errors import InvalidJob
from farm.job import stage_of
from farm.stage import STORED, Medium, Size, Source, kinds


def program(spec: Mapping[str, Any], catalog: Catalog, uri: Callable[[str], str]) -> str:
    """The program for the job of `spec` (its record's, parsed). It writes `out.png`; `uri` names the blob of a hash.

    Raises:
        InvalidJob: (`unknown_kind`, `unknown_checkpoint`) a stage or checkpoint of the job is not known here.
    """
    lines = ["import torch", "from PIL import Image", "", "torch.set_num_threads(1)"]
    given, lacking = "", list[str]()
    if spec["image"] is not None:
        given = "given"
        lines.append(f"# the input image, as fitted at submit: {uri(spec['image']['sha256'])}")
        lines.append('given = Image.open("input.png")')
        size = spec["image"]["width"], spec["image"]["height"]
        lines.append(
            f'assert given.size == {size}, "input.png is the fitted input: `farm script JOB -o FOLDER` writes it"'
        )
    for index, recipe in enumerate(spec["recipes"]):
        name = recipe["checkpoint"]["name"]
        if name not in catalog.checkpoints:
            raise InvalidJob(f"the catalog here has no checkpoint {name}", code="unknown_checkpoint")
        stage = kinds()[recipe["kind"]].model_validate(stage_of(recipe))
        source = _source(catalog, catalog.checkpoints[name], recipe["checkpoint"]["dtype"])
        lines += ["", f"# stage {index}: {recipe['kind']} with {name}"]
        named = {"given": given} if given else {}
        for loc, (value, _) in stage.uploads().items():
            named[loc] = f"{loc.replace('.', '_')}_{index}"
            lines += [f"# {uri(value.removeprefix(STORED))}", f"{named[loc]} = Image.open({file_of(value)!r})"]
        adapters = [each for each, _ in stage.adapters().values()]
        extra = {each: adapter_source(catalog, each, recipe["checkpoint"]["dtype"]) for each in adapters}
        weights = {name: catalog.checkpoints[name], **{each: catalog.adapters[each] for each in adapters}}
        lacking += [each for each, found in weights.items() if not catalog.path(found).exists()]
        source = replace(source, adapters=extra, switches=recipe["checkpoint"].get("switches", {}))
        lines += stage.script(named, Medium(recipe["emits"]), Size(*recipe["size"]), recipe["seed"], source)
        given = f"given_{index + 1}"
        lines.append(f"{given} = out")
    if lacking:
        lines.insert(0, f"# this machine lacks what it loads: farm models pull {' '.join(dict.fromkeys(lacking))}")
    return "\n".join([*lines, "", 'out.save("out.png")', ""])


def adapter_source(catalog: Catalog, name: str, dtype: str) -> str:
    """The arguments that load the adapter `name` from its local files; of some types, its parts."""
    if name not in catalog.adapters:
        raise InvalidJob(f"the catalog here has no adapter {name}", code="unknown_adapter")
    adapter = catalog.adapters[name]
    path = catalog.path(adapter)
    if adapter.type in ("controlnet", "vae"):
        variant = f", variant={adapter.variant!r}" if adapter.variant else ""
        return f"{str(path)!r}{variant}, use_safetensors=True, local_files_only=True, torch_dtype=torch.{dtype}"
    folder, weights = (path, str(adapter.weights)) if adapter.weights else (path.parent, path.name)
    found = f"{str(folder)!r}, weight_name={weights!r}"
    if adapter.type == "ip_adapter":
        return f"{str(folder)!r} | {weights!r} | {adapter.image_encoder!r}"
    if adapter.type == "textual_inversion":
        return f"{str(folder / weights)!r} | {adapter.token!r}"
    return f"{found}, use_safetensors=True, local_files_only=True"


def file_of(value: str) -> str:
    """The name of the file in which a program expects an image that a stage names."""
    return f"{value.removeprefix(STORED)[:12]}.png"


def _source(catalog: Catalog, checkpoint: Checkpoint, dtype: str) -> Source:
    """How to load `checkpoint`: from the local folder where there is one, else from the repository at its revision."""
    path = catalog.path(checkpoint)
    if checkpoint.file is not None:
        arguments = f"{str(path)!r}, config={checkpoint.config!r}, local_files_only=True, torch_dtype=torch.{dtype}"
        return Source(checkpoint.family, arguments, is_file=True, path=str(path), dtype=f"torch.{dtype}")
    if path.exists() or checkpoint.repo is None:
        where = f"{str(path)!r}, local_files_only=True"
    else:
        revision = checkpoint.revision or catalog.lock(checkpoint).revision
        where = f"{checkpoint.repo!r}, revision={revision!r}"
    variant = f", variant={checkpoint.variant!r}" if checkpoint.variant else ""
    arguments = f"{where}{variant}, torch_dtype=torch.{dtype}, use_safetensors=True"
    return Source(checkpoint.family, arguments, path=str(path) if path.exists() else "", dtype=f"torch.{dtype}")
