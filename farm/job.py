"""What is asked for, is it possible, and which recipe makes it?

`plan` types a chain: it fixes each stage's checkpoint, the medium and latent space on each edge, and every size.
`make_job` adds what only a submit knows (seed, input image, recorded hashes) and yields the recipes. All rules of a job
are checked here, once, without a GPU; what is refused here has left no trace.

The edges: *a stage emits what its successor takes; the last one emits an image.* Latents pass where both work in the
same latent space; where they do not, an image passes if the taker takes images, else the chain is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from farm.catalog import Adapter, Catalog, Checkpoint, Space
from farm.chain import Chain
from farm.errors import FieldError, InvalidJob
from farm.records import LANES, Lane
from farm.sampler import NOT_OF_SAMPLE
from farm.settings import Settings
from farm.stage import MAX_SEED, STORED, Medium, Size, Stage, kinds

MAX_DEADLINE_S = 31536000
"""Longest deadline of a job: a year."""
_BESIDE = ("controls", "vae", "weighting", "embeddings", "ip_adapters")
"""Fields for which something lies on the device beside the models that are moved to and fro."""
_STORED = re.compile(f"{STORED}[0-9a-f]{{64}}")
_KEY = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,255}")


class InputImage(BaseModel):
    """The image a chain starts from, as stored: already fitted, RGB, PNG."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    width: int
    height: int


@dataclass(frozen=True)
class PlannedStage:
    """One stage with everything that the chain fixes for it. `given` is the input's size, None for noise."""

    index: int
    stage: Stage
    checkpoint: Checkpoint
    space: Space
    takes: Medium | None
    emits: Medium
    given: Size | None
    size: Size

    @property
    def queue(self) -> str:
        """The queue whose workers run this stage: one per kind and checkpoint."""
        return queue_name(self.stage.kind, self.checkpoint.name)

    @property
    def facts(self) -> dict[str, Any]:
        """The same as data: what a program or a table tells of the stage. Sizes are [width, height], pixels."""
        return {
            "index": self.index,
            "kind": self.stage.kind,
            "checkpoint": self.checkpoint.name,
            "queue": self.queue,
            "takes": self.takes,
            "emits": self.emits,
            "space": self.space.name,
            "given_size": self.given and list(self.given),
            "size": list(self.size),
            "parameters": self.stage.model_dump(mode="json", exclude={"kind", "checkpoint"}, exclude_none=True),
        }


@dataclass(frozen=True)
class Forecast:
    """What a submit would make: how many jobs, the first one's seed (None: it would be drawn) and its stages' facts.

    `cost_s` are the device-seconds of all of them, `eta_s` the seconds until the last is done; None where not measured.
    """

    count: int
    seed: int | None
    stages: list[dict[str, Any]]
    cost_s: float | None = None
    eta_s: float | None = None


@dataclass(frozen=True)
class Job:
    """One chain, ready to submit: resolved, typed, with the recipe of each stage.

    `recipes[n]` is the recipe of stage n (see `recipe_key`), `texts[n]` its canonical JSON, `keys[n]` its key, `image`
    the blob it starts from. `written` is the chain with its seed as canonical JSON. `kept` names the executions of the
    first stages, where they are those of another job (see `farm.fork`).
    """

    id: str
    chain: Chain
    seed: int
    image: InputImage | None
    plan: tuple[PlannedStage, ...]
    recipes: tuple[dict[str, Any], ...]
    texts: tuple[str, ...]
    keys: tuple[str, ...]
    written: str
    idempotency_key: str
    lane: Lane = "interactive"
    priority: int = 50
    deadline_s: float | None = None
    run: str = ""
    kept: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        """The job as its record holds it: the chain with its seed, the input image and every recipe, as JSON."""
        image = canonical(self.image and self.image.model_dump())
        # As `canonical` would write it: a run has thousands of jobs, and each recipe is written once.
        return f'{{"chain":{self.written},"image":{image},"recipes":[{",".join(self.texts)}],"v":1}}'

    def payload(self, index: int) -> str:
        """What a worker needs to run stage `index`: the recipes up to it and what to keep of it, no job id."""
        keep = self.chain.keep if index + 1 < len(self.recipes) else "none"
        kept = f'"keep":"{keep}",' if keep != "none" else ""
        return f'{{{kept}"recipes":[{",".join(self.texts[: index + 1])}],"v":1}}'

    def execution(self, index: int) -> str:
        """The execution of stage `index`: its recipe key, or one of its own where reuse is off, or another job's."""
        if index < len(self.kept):
            return self.kept[index]
        return self.keys[index] if self.chain.reuse else f"{self.keys[index]}.{self.id}"


def queue_name(kind: str, checkpoint: str) -> str:
    """The queue of a stage kind with a checkpoint."""
    return f"{kind}.{checkpoint}"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no white space: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the canonical recipe. It names the key of the stage before, so the key covers the chain."""
    return _key_of(canonical(recipe))


def _key_of(text: str) -> str:
    """The key of a recipe in canonical JSON."""
    return hashlib.sha256(text.encode()).hexdigest()


def stage_seed(seed: int, position: int) -> int:
    """The seed of the stage at `position` (from 0): the job's own for the first, a 53-bit hash of both for others."""
    if position == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{position}".encode()).digest()[:8]) >> 11


def is_number(value: object, *types: type) -> bool:
    """Whether `value` is a number of one of `types`; True and False are none."""
    return isinstance(value, types) and not isinstance(value, bool)


def new_id() -> str:
    """A UUIDv7: sorts by time, and carries its own date. Source: RFC 9562 §5.7."""
    value = (
        (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    )
    return str(uuid.UUID(int=value))


# ------------------------------------------------------------------------------------------------ typing a chain


def plan(chain: Chain, catalog: Catalog, settings: Settings, image: Size | None = None) -> tuple[PlannedStage, ...]:
    """The chain with checkpoints, media, spaces and sizes fixed. `image` is the size of the fitted input, if any.

    Where a chain does not give a parameter, what the catalog recommends for the checkpoint comes before the default.

    Raises:
        InvalidJob: an edge does not fit, a size is too large, a checkpoint is unknown; names the stage and the remedy.
    """
    checkpoints = [catalog.checkpoint(stage, f"stages.{index}") for index, stage in enumerate(chain.stages)]
    advised = [checkpoint.advise(stage) for stage, checkpoint in zip(chain.stages, checkpoints, strict=True)]
    for index, (asked, stage, checkpoint) in enumerate(zip(chain.stages, advised, checkpoints, strict=True)):
        if wrong := [*stage.check(), *stage.fits(checkpoint.family)]:
            told = f"; the catalog recommends for {checkpoint.name} what was not given" if stage is not asked else ""
            found = [FieldError(f"stages.{index}.{each.loc}", each.msg + told, each.code) for each in wrong]
            raise InvalidJob(errors=tuple(found))
        _check_switches(index, stage, checkpoint)
        scheduler = getattr(stage, "scheduler", None)
        if checkpoint.prediction_type == "sample" and scheduler in NOT_OF_SAMPLE:
            msg = f"{checkpoint.name} does not go with {scheduler}; set it in another stage alone, or choose another"
            raise _wrong(f"stages.{index}.scheduler", msg, "unknown_scheduler")
        words: dict[str, str] = {}
        for loc, (name, mark) in stage.adapters().items():
            adapter = catalog.adapter(name, mark.type, checkpoint, f"stages.{index}.{loc}")
            if adapter.token is not None and words.setdefault(adapter.token, name) != name:
                msg = f"{name} and {words[adapter.token]} have the same word, {adapter.token}"
                raise _wrong(f"stages.{index}.{loc}", msg, "wrong_adapter")
    chain = chain.model_copy(update={"stages": tuple(advised)})
    _check_schedule(-1, None, chain.stages[0], Medium.IMAGE)
    medium, size, planned = _start(chain.stages[0], image), image, []
    for index, (stage, checkpoint) in enumerate(zip(chain.stages, checkpoints, strict=True)):
        following = chain.stages[index + 1] if index + 1 < len(chain.stages) else None
        if following is None:
            emits = _last(index, stage)
        else:
            emits = _edge(index, stage, checkpoint, following, checkpoints[index + 1])
        _check_schedule(index, stage, following, emits)
        given, size = size, stage.output_size(size, checkpoint.native)
        _check_size(index, stage, given, size, settings)
        planned.append(PlannedStage(index, stage, checkpoint, catalog.space(checkpoint), medium, emits, given, size))
        medium = emits
    return tuple(planned)


def input_multiple(chain: Chain) -> int:
    """What the sides of an input image must be multiples of, in pixels, for all stages of `chain` to take them."""
    multiple, scale = 8, 1
    for stage in chain.stages:
        grown = getattr(stage, "factor", stage.scale)  # a border is no scale
        multiple, scale = max(multiple, stage.multiple // scale), scale * grown
    return multiple


def _start(first: Stage, image: Size | None) -> Medium | None:
    """What the first stage is given: an image, or nothing."""
    if not first.takes:
        if image is not None:
            raise _wrong(
                "image",
                f"{first.kind} starts from noise; leave the image out or begin with img2img or upscale",
                "unused_image",
            )
        return None
    if Medium.IMAGE not in first.accepts():
        raise _wrong(
            "stages.0", f"{first.kind} takes latents; put a stage that gives latents before it", "medium_mismatch"
        )
    if image is None:
        raise _wrong("image", f"{first.kind} needs an input image; give one, or begin with text2img", "no_image")
    return Medium.IMAGE


def _last(index: int, stage: Stage) -> Medium:
    if Medium.IMAGE not in stage.gives:
        raise _wrong(
            f"stages.{index}", f"{stage.kind} gives no image; end the chain with a stage that does", "medium_mismatch"
        )
    return Medium.IMAGE


def _edge(index: int, giver: Stage, ours: Checkpoint, taker: Stage, theirs: Checkpoint) -> Medium:
    """The medium between stage `index` and the next one."""
    where = f"stages.{index + 1}"
    if not taker.takes:
        raise _wrong(where, f"{taker.kind} starts from noise; it can only be the first stage", "medium_mismatch")
    takes = taker.accepts()
    latents = Medium.LATENTS in giver.gives and Medium.LATENTS in takes
    if latents and ours.space == theirs.space:
        return Medium.LATENTS
    if Medium.IMAGE in giver.gives and Medium.IMAGE in takes:
        return Medium.IMAGE
    if latents:
        raise _wrong(
            f"{where}.checkpoint",
            f"{ours.name} gives latents of the space {ours.space}, {theirs.name} takes those of {theirs.space}; "
            f"choose two checkpoints of one space",
            "space_mismatch",
        )
    raise _wrong(
        where, f"{taker.kind} takes {_media(takes)}, {giver.kind} gives {_media(giver.gives)}", "medium_mismatch"
    )


def _check_switches(index: int, stage: Stage, checkpoint: Checkpoint) -> None:
    """Refuses what has no place on a checkpoint that is run otherwise than it was made."""
    switches = checkpoint.switches
    why = {
        "fuse_qkv_projections": switches.fuse_qkv_projections and ("loras", "ip_adapters"),
        "attention: sliced": switches.attention == "sliced" and ("ip_adapters",),
        f"offload: {switches.offload}": switches.offload != "none" and _BESIDE,
    }
    for switch, names in why.items():
        for name in names or ():
            if getattr(stage, name, None) not in (None, [], "none"):
                msg = f"{checkpoint.name} is run with {switch}, which leaves no place for {name}"
                raise _wrong(f"stages.{index}.{name}", msg, "wrong_adapter")


def _check_schedule(index: int, giver: Stage | None, taker: Stage | None, medium: Medium) -> None:
    """Refuses stages of which one stops in the middle of a schedule and the next does not go on right there."""
    left, begun = getattr(giver, "denoising_end", None), getattr(taker, "denoising_start", None)
    if left is None and begun is None:
        return
    ours, theirs = f"stages.{index}", f"stages.{index + 1}"
    if left is not None and begun is None:
        told = "the next stage must have it as denoising_start; put an img2img there, or leave denoising_end out"
        raise _wrong(f"{ours}.denoising_end", told, "schedule_mismatch")
    if left != begun:
        before = f"denoising_end {left}" if left is not None else "no denoising_end"
        msg = f"the stage before has {before}; both must be the same"
        raise _wrong(f"{theirs}.denoising_start", msg, "schedule_mismatch")
    if medium is not Medium.LATENTS:
        msg = (
            "needs latents, but an image passes between these two: the checkpoints do not share a latent space, or "
            "a ControlNet follows the input"
        )
        raise _wrong(f"{theirs}.denoising_start", msg, "schedule_mismatch")
    if getattr(giver, "scheduler", None) is None:
        msg = "name it in both halves of a schedule: the checkpoints' own may differ"
        raise _wrong(f"{ours}.scheduler", msg, "schedule_mismatch")
    steps, left = getattr(giver, "steps", 0), left or 0.0
    if min(steps * left, steps * (1 - left)) < 1:
        raise _wrong(f"{ours}.denoising_end", f"{left} of {steps} steps leaves one half without a step", "no_steps")
    for name in ("num_inference_steps", "timesteps", "scheduler", "scheduler_options"):
        if getattr(giver, name, None) != getattr(taker, name, None):
            msg = f"the two halves of one schedule need the same {name}; set it as in stage {index}"
            raise _wrong(f"{theirs}.{name}", msg, "schedule_mismatch")


def _media(media: frozenset[Medium]) -> str:
    return " or ".join(sorted(media))


def _check_size(index: int, stage: Stage, given: Size | None, size: Size, settings: Settings) -> None:
    """Refuses sizes that a later stage would choke on; said at submit, not at stage 4."""
    for name in ("width", "height"):
        if index > 0 and getattr(stage, name, None) is not None:
            msg = "only the first stage sets a size; later ones take what they are given"
            raise _wrong(f"stages.{index}.{name}", msg, "bad_size")
    if given is not None and any(side % stage.multiple for side in given):
        near = Size(*(max(64, round(side / stage.multiple) * stage.multiple) for side in given))
        msg = f"{stage.kind} takes sides that are multiples of {stage.multiple}, such as {near}, not {given}"
        raise _wrong(f"stages.{index}", msg, "bad_size")
    if max(size) > settings.max_side or size.width * size.height > settings.max_area:
        limit = f"{settings.max_side} pixels a side and {settings.max_area} in all"
        raise _wrong(
            f"stages.{index}", f"would be {size}, more than {limit}; start smaller or drop an upscale", "too_large"
        )


def _wrong(loc: str, msg: str, code: str) -> InvalidJob:
    return InvalidJob(errors=(FieldError(loc, msg, code),))


# ------------------------------------------------------------------------------------------------ making a job


def stage_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The stage of a recipe as a chain file would write it, everything resolved.

    Raises:
        InvalidJob: (`unknown_kind`) its kind is not installed here.
    """
    if recipe["kind"] not in kinds():
        raise InvalidJob(f"no stage of the kind {recipe['kind']} is installed here", code="unknown_kind")
    stage = {"kind": recipe["kind"], **recipe["parameters"]}
    stage |= {"checkpoint": recipe["checkpoint"]["name"], "seed": recipe["seed"]}
    if recipe["given"] is None:
        fields = kinds()[recipe["kind"]].model_fields
        stage |= {name: side for name, side in zip(("width", "height"), recipe["size"], strict=True) if name in fields}
    return stage


def make_job(chain: Chain, catalog: Catalog, settings: Settings, **options: Any) -> Job:
    """The one job of `chain`, ready to submit; `options` as `make_jobs` takes them. Raises InvalidJob."""
    return make_jobs(chain, catalog, settings, **options)[0]


def make_jobs(
    chain: Chain,
    catalog: Catalog,
    settings: Settings,
    *,
    image: InputImage | None = None,
    idempotency_key: str | None = None,
    lane: Lane = "interactive",
    priority: int = 50,
    deadline_s: float | None = None,
    run: str = "",
    count: int = 1,
) -> list[Job]:
    """The jobs of `chain`, ready to submit: `count` of them, whose index is added to the seed and the idempotency key.

    What they share is worked out once: nothing but the seed tells one recipe of a stage from another's.

    Raises:
        InvalidJob: the chain does not fit (see `plan`), or a checkpoint's hashes are not recorded yet (`not_pulled`).
    """
    if not is_number(priority, int) or not 0 <= priority <= 100:
        raise _wrong("priority", "a whole number from 0 to 100, higher runs first", "invalid_field")
    if lane not in LANES:
        raise _wrong("lane", f"one of {', '.join(LANES)}", "invalid_field")
    if idempotency_key is not None and not (isinstance(idempotency_key, str) and _KEY.fullmatch(idempotency_key)):
        raise _wrong("idempotency_key", "1 to 255 characters without control characters", "invalid_field")
    if deadline_s is not None and (not is_number(deadline_s, int, float) or not 0 < deadline_s <= MAX_DEADLINE_S):
        raise _wrong("deadline_s", f"more than 0 and at most {MAX_DEADLINE_S} seconds (a year)", "invalid_field")
    key = new_id() if idempotency_key is None else idempotency_key
    planned = plan(chain, catalog, settings, Size(image.width, image.height) if image else None)
    for item in planned:
        _check_encoders(item, catalog)
        for loc, (value, _) in item.stage.uploads().items():
            if not _STORED.fullmatch(value):
                raise _wrong(
                    f"stages.{item.index}.{loc}", "sha256:HEX of a stored image; upload the file first", "bad_image"
                )
    # Drawn from the key, so that a submit sent again is the same job.
    first = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) if chain.seed is None else chain.seed
    if first + count - 1 > MAX_SEED:
        raise _wrong("seed", f"seed + count goes beyond {MAX_SEED}; start lower", "invalid_field")
    shared = [_recipe(item, chain, catalog, settings) for item in planned]
    written = chain.model_dump(mode="json", exclude_unset=True)
    jobs = []
    for index in range(count):
        recipes, texts, keys = list[dict[str, Any]](), list[str](), list[str]()
        for item, recipe in zip(planned, shared, strict=True):
            given = keys[-1] if keys else image and {"image": image.sha256}
            recipes.append({**recipe, "seed": _seed(item, first + index), "given": given})
            texts.append(canonical(recipes[-1]))
            keys.append(_key_of(texts[-1]))
        jobs.append(
            Job(
                id=new_id(), chain=chain, seed=first + index, image=image, plan=planned, recipes=tuple(recipes),
                texts=tuple(texts), keys=tuple(keys), written=canonical({**written, "seed": first + index}),
                idempotency_key=f"{key}#{index}", lane=lane, priority=priority, deadline_s=deadline_s, run=run,
            )
        )  # fmt: skip
    return jobs


def _seed(item: PlannedStage, seed: int) -> int:
    """The seed of one stage of a job whose own is `seed`; 0 for a stage that draws nothing."""
    if not item.stage.draws:
        return 0
    return stage_seed(seed, item.index) if item.stage.seed is None else item.stage.seed


def _check_encoders(item: PlannedStage, catalog: Catalog) -> None:
    """Refuses image prompts of one stage that were made for different image encoders: there is one at a time."""
    seen: dict[str, str] = {}
    for loc, (name, mark) in item.stage.adapters().items():
        if mark.type == "ip_adapter":
            adapter = catalog.adapters[name]
            files = catalog.lock(adapter).files.items()
            inside = {path: sha256 for path, sha256 in files if path.startswith(f"{adapter.image_encoder}/")}
            seen.setdefault(",".join(sorted(inside.values())), name)
            if len(seen) > 1:
                first = next(iter(seen.values()))
                msg = f"{name} and {first} were made for different image encoders; use them in different stages"
                raise _wrong(f"stages.{item.index}.{loc}", msg, "wrong_adapter")


def weights_of(catalog: Catalog, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a recipe says of its weights: which files, and how they are loaded.

    Raises:
        InvalidJob: (`not_pulled`) the files' hashes are not recorded yet.
    """
    switches = checkpoint.switches.model_dump(exclude_defaults=True, exclude={"offload", "slicing"})
    return {
        "name": checkpoint.name,
        "manifest": catalog.lock(checkpoint).manifest,
        "variant": checkpoint.variant,
        "dtype": checkpoint.dtype,
        "space": checkpoint.space,
        **({"switches": switches} if switches else {}),
    }


def _first(own: str | None, shared: str) -> str:
    return shared if own is None else own


def adapter_of(catalog: Catalog, adapter: Adapter) -> dict[str, Any]:
    """What a recipe says of an adapter: which files, and how they are read.

    Raises:
        InvalidJob: (`not_pulled`) the files' hashes are not recorded yet.
    """
    told = adapter.model_dump(include={"variant", "weights", "token", "image_encoder"}, exclude_none=True)
    return {"manifest": catalog.lock(adapter).manifest, **told}


def safety_of(catalog: Catalog, settings: Settings) -> dict[str, Any]:
    """What a recipe says of the farm's safety policy.

    Raises:
        InvalidJob: (`unknown_adapter`) FARM_SAFETY_CHECKER names no safety checker; (`not_pulled`) it is not here.
    """
    entry = catalog.adapters.get(settings.safety_checker)
    if entry is None or entry.type != "safety_checker":
        message = f"FARM_SAFETY_CHECKER: the catalog has no safety checker {settings.safety_checker}"
        raise InvalidJob(message, code="unknown_adapter")
    return {"policy": settings.safety, "name": entry.name, "checker": adapter_of(catalog, entry)}


def _recipe(item: PlannedStage, chain: Chain, catalog: Catalog, settings: Settings) -> dict[str, Any]:
    """All that decides the output of one stage, but for its seed and what it is given; no job id, time or attempt."""
    stage = item.stage
    last = item.index + 1 == len(chain.stages)
    named = {name: adapter_of(catalog, catalog.adapters[name]) for name, _ in stage.adapters().values()}
    shared = {"kind", "checkpoint", "seed", "prompt", "negative_prompt", "width", "height"}
    return {
        "kind": stage.kind,
        "version": stage.version,
        "parameters": {
            **stage.model_dump(mode="json", exclude=shared),
            "prompt": _first(stage.prompt, chain.prompt) if stage.draws else "",
            "negative_prompt": _first(stage.negative_prompt, chain.negative_prompt) if stage.draws else "",
        },
        "checkpoint": weights_of(catalog, item.checkpoint),
        **({"adapters": named} if named else {}),
        **({"safety": safety_of(catalog, settings)} if last and settings.safety != "off" else {}),
        "size": list(item.size),
        "emits": item.emits.value,
        "exact": chain.exact,
    }
