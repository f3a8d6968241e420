"""Is a chain possible, and what passes between its stages?

`plan` types a chain: it fixes each stage's checkpoint, the medium and latent space on each edge, and every size.

The edges: *a stage emits what its successor takes; the last one emits an image.* Latents pass where both work in the
same latent space; where they do not, an image passes if the taker takes images, else the chain is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from farm.catalog import Catalog, Checkpoint, Space
from farm.chain import Chain
from farm.errors import FieldError, InvalidJob
from farm.sampler import NOT_OF_SAMPLE
from farm.settings import Settings
from farm.stage import Medium, Size, Stage

_BESIDE = ("controls", "vae", "weighting", "embeddings", "ip_adapters")
"""Fields for which something lies on the device beside the models that are moved to and fro."""


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
    def work(self) -> float:
        """What its time grows with, among the stages of its queue: the pixels that it emits, times its steps."""
        steps = getattr(self.stage, "num_inference_steps", 1) * getattr(self.stage, "strength", 1.0)
        return self.size.width * self.size.height * max(float(steps), 1.0)

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


def queue_name(kind: str, checkpoint: str) -> str:
    """The queue of a stage kind with a checkpoint."""
    return f"{kind}.{checkpoint}"


def plan(chain: Chain, catalog: Catalog, settings: Settings, image: Size | None = None) -> tuple[PlannedStage, ...]:
    """The chain with checkpoints, media, spaces and sizes fixed. `image` is the size of the fitted input, if any.

    Where a chain does not give a parameter, what the catalog recommends for the checkpoint comes before the default.

    Raises:
        InvalidJob: an edge does not fit, a size is too large, a checkpoint is unknown; names the stage and the remedy.
    """
    checkpoints = [catalog.checkpoint(stage, f"stages.{index}") for index, stage in enumerate(chain.stages)]
    advised = [checkpoint.advise(stage) for stage, checkpoint in zip(chain.stages, checkpoints, strict=True)]
    for index, (asked, stage, checkpoint) in enumerate(zip(chain.stages, advised, checkpoints, strict=True)):
        if wrongs := [*stage.check(), *stage.fits(checkpoint.family)]:
            told = f"; the catalog recommends for {checkpoint.name} what was not given" if stage is not asked else ""
            found = [FieldError(f"stages.{index}.{each.loc}", each.msg + told, each.code) for each in wrongs]
            raise InvalidJob(errors=tuple(found))
        _check_switches(index, stage, checkpoint)
        scheduler = getattr(stage, "scheduler", None)
        if checkpoint.prediction_type == "sample" and scheduler in NOT_OF_SAMPLE:
            msg = f"{checkpoint.name} does not go with {scheduler}; set it in another stage alone, or choose another"
            raise wrong(f"stages.{index}.scheduler", msg, "unknown_scheduler")
        words: dict[str, str] = {}
        for loc, (name, mark) in stage.adapters().items():
            adapter = catalog.adapter(name, mark.type, checkpoint, f"stages.{index}.{loc}")
            if adapter.token is not None and words.setdefault(adapter.token, name) != name:
                msg = f"{name} and {words[adapter.token]} have the same word, {adapter.token}"
                raise wrong(f"stages.{index}.{loc}", msg, "wrong_adapter")
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
            raise wrong(
                "image",
                f"{first.kind} starts from noise; leave the image out or begin with img2img or upscale",
                "unused_image",
            )
        return None
    if Medium.IMAGE not in first.accepts():
        raise wrong(
            "stages.0", f"{first.kind} takes latents; put a stage that gives latents before it", "medium_mismatch"
        )
    if image is None:
        raise wrong("image", f"{first.kind} needs an input image; give one, or begin with text2img", "no_image")
    return Medium.IMAGE


def _last(index: int, stage: Stage) -> Medium:
    if Medium.IMAGE not in stage.gives:
        raise wrong(
            f"stages.{index}", f"{stage.kind} gives no image; end the chain with a stage that does", "medium_mismatch"
        )
    return Medium.IMAGE


def _edge(index: int, giver: Stage, ours: Checkpoint, taker: Stage, theirs: Checkpoint) -> Medium:
    """The medium between stage `index` and the next one."""
    where = f"stages.{index + 1}"
    if not taker.takes:
        raise wrong(where, f"{taker.kind} starts from noise; it can only be the first stage", "medium_mismatch")
    takes = taker.accepts()
    latents = Medium.LATENTS in giver.gives and Medium.LATENTS in takes
    if latents and ours.space == theirs.space:
        return Medium.LATENTS
    if Medium.IMAGE in giver.gives and Medium.IMAGE in takes:
        return Medium.IMAGE
    if latents:
        raise wrong(
            f"{where}.checkpoint",
            f"{ours.name} gives latents of the space {ours.space}, {theirs.name} takes those of {theirs.space}; "
            f"choose two checkpoints of one space",
            "space_mismatch",
        )
    raise wrong(
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
                raise wrong(f"stages.{index}.{name}", msg, "wrong_adapter")


def _check_schedule(index: int, giver: Stage | None, taker: Stage | None, medium: Medium) -> None:
    """Refuses stages of which one stops in the middle of a schedule and the next does not go on right there."""
    left, begun = getattr(giver, "denoising_end", None), getattr(taker, "denoising_start", None)
    if left is None and begun is None:
        return
    ours, theirs = f"stages.{index}", f"stages.{index + 1}"
    if left is not None and begun is None:
        told = "the next stage must have it as denoising_start; put an img2img there, or leave denoising_end out"
        raise wrong(f"{ours}.denoising_end", told, "schedule_mismatch")
    if left != begun:
        before = f"denoising_end {left}" if left is not None else "no denoising_end"
        msg = f"the stage before has {before}; both must be the same"
        raise wrong(f"{theirs}.denoising_start", msg, "schedule_mismatch")
    if medium is not Medium.LATENTS:
        msg = (
            "needs latents, but an image passes between these two: the checkpoints do not share a latent space, or "
            "a ControlNet follows the input"
        )
        raise wrong(f"{theirs}.denoising_start", msg, "schedule_mismatch")
    if getattr(giver, "scheduler", None) is None:
        msg = "name it in both halves of a schedule: the checkpoints' own may differ"
        raise wrong(f"{ours}.scheduler", msg, "schedule_mismatch")
    steps, left = getattr(giver, "steps", 0), left or 0.0
    if min(steps * left, steps * (1 - left)) < 1:
        raise wrong(f"{ours}.denoising_end", f"{left} of {steps} steps leaves one half without a step", "no_steps")
    for name in ("num_inference_steps", "timesteps", "scheduler", "scheduler_options"):
        if getattr(giver, name, None) != getattr(taker, name, None):
            msg = f"the two halves of one schedule need the same {name}; set it as in stage {index}"
            raise wrong(f"{theirs}.{name}", msg, "schedule_mismatch")


def _media(media: frozenset[Medium]) -> str:
    return " or ".join(sorted(media))


def _check_size(index: int, stage: Stage, given: Size | None, size: Size, settings: Settings) -> None:
    """Refuses sizes that a later stage would choke on; said at submit, not at stage 4."""
    for name in ("width", "height"):
        if index > 0 and getattr(stage, name, None) is not None:
            msg = "only the first stage sets a size; later ones take what they are given"
            raise wrong(f"stages.{index}.{name}", msg, "bad_size")
    if given is not None and any(side % stage.multiple for side in given):
        near = Size(*(max(64, round(side / stage.multiple) * stage.multiple) for side in given))
        msg = f"{stage.kind} takes sides that are multiples of {stage.multiple}, such as {near}, not {given}"
        raise wrong(f"stages.{index}", msg, "bad_size")
    if max(size) > settings.max_side or size.width * size.height > settings.max_area:
        limit = f"{settings.max_side} pixels a side and {settings.max_area} in all"
        raise wrong(
            f"stages.{index}", f"would be {size}, more than {limit}; start smaller or drop an upscale", "too_large"
        )


def wrong(loc: str, msg: str, code: str = "invalid_field") -> InvalidJob:
    """The refusal of one field, at `loc`."""
    return InvalidJob(errors=(FieldError(loc, msg, code),))
