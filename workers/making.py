"""How does a claim become a result: what is fetched, run, encoded and kept of it?

What a job wants kept (`keep`) is decoded from a copy, so what goes on to the next stage is untouched by it. In time it
is on the hand-off path, though, where the design has it off: an output never changes once it is committed, and it names
the kept picture, so that is made and stored before. A commit of its own afterwards would be a second one of the same
stage, and a job could be done before its pictures are. The device is busy with the decode either way; what is lost is
that the next stage waits for it, and only where a job asks for `keep: image`. A decode that ends the process would end
it with each attempt, so after the first crash nothing is decoded for being kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import structlog

from farm import __version__
from farm.catalog import Catalog
from farm.errors import BadBlob, InvalidJob, StageFailed
from farm.image import hash_pixels, to_png
from farm.job import stage_of
from farm.label import label
from farm.ledger import Ledger
from farm.records import Claim
from farm.settings import Settings
from farm.stage import STORED, Batch, Medium, Size, Stage, kinds
from farm.store import Store
from workers import calling, codec, preview
from workers.judge import Judge
from workers.lease import Lease, StageStop
from workers.loaded import Loaded
from workers.preview import Screen
from workers.result import Result, kept

_log = structlog.get_logger(__name__)
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "compel", "opencv-python-headless")


@dataclass(frozen=True)
class Work:
    """One claim as the stage sees it: its recipe, parameters, input and where the output goes on."""

    claim: Claim
    recipes: list[dict[str, Any]]
    stage: Stage
    given: dict[str, Any] | None

    @classmethod
    def of(cls, claim: Claim) -> Work:
        """What `claim` says, read again by the stage's own class.

        Raises:
            StageFailed: this worker does not know the stage, or not these parameters.
        """
        recipes = recipes_of(claim)
        recipe = recipes[-1]
        try:
            stage = kinds()[recipe["kind"]].model_validate(stage_of(recipe))
        except (InvalidJob, ValueError) as error:
            raise StageFailed(f"this worker cannot run {recipe['kind']}: {type(error).__name__}") from error
        return cls(claim, recipes, stage, json.loads(claim.input) if claim.input else None)

    @property
    def keep(self) -> str:
        """What is to be kept of it for people to see: none, preview or image."""
        return str(json.loads(self.claim.payload).get("keep", "none"))

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the claimed stage."""
        return self.recipes[-1]


def recipes_of(claim: Claim) -> list[dict[str, Any]]:
    """The recipes of the claimed stage and of all before it."""
    found: list[dict[str, Any]] = json.loads(claim.payload)["recipes"]
    return found


class Maker:
    """Makes results with the weights that a child holds."""

    def __init__(
        self, settings: Settings, catalog: Catalog, ledger: Ledger, store: Store, loaded: Loaded, judge: Judge
    ) -> None:
        self._settings, self._catalog, self._ledger, self._store = settings, catalog, ledger, store
        self._loaded, self._judge = loaded, judge

    def make(self, works: Sequence[Work], lease: Lease) -> list[Result]:
        """The results of one pipeline call for `works`: fetched, run and encoded.

        Raises:
            BadBlob: an input is gone or corrupt.
            StageFailed, StageStop: as the stage, the device or the ledger has it.
            Unavailable: the store does not answer.
        """
        first = works[0]
        self._loaded.check(first.claim.queue, first.recipe["checkpoint"])
        given, uploads = [self._fetch(work) for work in works], [self._uploads(work) for work in works]
        if first.stage.adapters():
            lease.phase("load")
        batch = Batch(
            emits=Medium(first.recipe["emits"]),
            size=Size(*first.recipe["size"]),
            prompts=[work.stage.prompt or "" for work in works],
            negative_prompts=[work.stage.negative_prompt or "" for work in works],
            given=given,
            generators=[self._generator(work) for work in works],
            uploads=uploads,
            adapters={
                name: self._loaded.adapter(name, wanted) for name, wanted in first.recipe.get("adapters", {}).items()
            },
            frugal=any(work.claim.oom for work in works),
        )
        lease.screen = self._screen(works)
        outputs = first.stage.run(self._loaded.pipes[first.claim.queue], batch, lease)
        lease.phase("upload")
        rows = enumerate(zip(works, outputs, strict=True))
        encoded = [(work, self._encode(work, output, batch, row), output) for row, (work, output) in rows]
        return [self._kept(*each, batch, lease) for each in encoded]

    def _screen(self, works: Sequence[Work]) -> Screen | None:
        """Where the call shows its pictures while it runs; nobody has judged them, so not where somebody should."""
        rows = self._catalog.spaces[works[0].recipe["checkpoint"]["space"]].preview
        if not rows or not self._settings.preview_s or not self._judge.shows_unjudged:
            return None
        return Screen(self._ledger, [work.claim for work in works], rows, self._settings.preview_s)

    def _generator(self, work: Work) -> Any:
        seed = work.recipe["seed"]
        return calling.generator(seed) if work.stage.needs_torch else seed

    def _fetch(self, work: Work) -> Any:
        """The input of a stage: latents [channels, height, width], an RGB image, or None for noise.

        Raises:
            BadBlob: it is gone or corrupt.
        """
        size = work.stage.given_size(Size(*work.recipe["size"]))
        if len(work.recipes) == 1:
            image = work.recipe["given"]
            return codec.decode_image(self._get(image["image"], size), size) if image else None
        if work.given is None:
            raise StageFailed("the ledger gave no input for a stage that needs one")
        data = self._get(work.given["blob"], size)
        if work.given["medium"] == Medium.IMAGE:
            return codec.decode_image(data, size)
        source = work.recipes[-2]["checkpoint"]
        space = self._catalog.spaces[source["space"]]
        shape = (space.channels, size.height // space.factor, size.width // space.factor)
        denoised = work.recipes[-2]["parameters"].get("denoising_end") or 1.0
        return codec.decode_latents(data, space.name, shape, source["dtype"], denoised)

    def _uploads(self, work: Work) -> dict[str, Any]:
        """The images that a stage names, RGB, by location.

        Raises:
            StageFailed: (`image_lost`) one is gone or corrupt; no stage made it, so none can make it again.
        """
        emitted, found = Size(*work.recipe["size"]), {}
        sizes = {"given": work.stage.given_size(emitted), "emitted": emitted, None: None}
        for loc, (value, mark) in work.stage.uploads().items():
            size, largest = sizes[mark.fitted], Size(self._settings.max_side, self._settings.max_side)
            try:
                data = self._get(value.removeprefix(STORED), size or largest)
                found[loc] = codec.decode_image(data, size or codec.image_size(data, self._settings.max_area))
            except BadBlob as error:
                raise StageFailed(
                    f"{loc}: the image {value[:19]}… {error.message}", code="image_lost", hint="submit it again"
                ) from error
        return found

    def _get(self, sha256: str, size: Size) -> bytes:
        # No honest hand-off is larger than raw float32 pixels with a header.
        return self._store.get_blob(sha256, max_bytes=(1 << 16) + 16 * size.width * size.height)

    def _encode(self, work: Work, output: Any, batch: Batch, row: int) -> Result:
        """One output as bytes, and what the ledger will say of it."""
        made = [*(work.given or {}).get("made", []), self._made(row, len(batch.given))]
        unread = self._unread(work)
        found: dict[str, Any] = {"v": 1, "medium": batch.emits.value, "size": list(batch.size), "made": made}
        if batch.emits is Medium.LATENTS:
            space, checkpoint = self._catalog.spaces[work.recipe["checkpoint"]["space"]], work.recipe["checkpoint"]
            denoised = work.recipe["parameters"].get("denoising_end") or 1.0
            data = codec.encode_latents(output, space.name, space.channels, space.factor, checkpoint["dtype"], denoised)
            content_type = "application/octet-stream"
            found["space"] = space.name
        else:
            output, tags = self._judge.judged(work.claim, work.recipe, output)
            recipe = {"v": 1, "farm": __version__, "recipes": work.recipes, "made": made}
            data = to_png(output, recipe, label(work.recipes))
            content_type = "image/png"
            found["pixels"] = hash_pixels(output)
            if codec.is_black(output):
                tags.append("black")
            if tags:
                found["tags"] = tags
        if unread:
            found["unread"] = unread
        found |= {"bytes": len(data), "blob": hashlib.sha256(data).hexdigest()}
        return Result(work.claim, found, content_type, data)

    def _kept(self, work: Work, result: Result, output: Any, batch: Batch, lease: Lease) -> Result:
        """`result` with the picture that is kept of it, if one is: from a copy, never in the way of what goes on."""
        if work.keep == "none" or (work.keep == "image" and work.claim.crash and batch.emits is Medium.LATENTS):
            return result
        try:
            image = output
            if batch.emits is Medium.LATENTS:
                image = self._picture(work, output, batch, lease)
            if image is None:
                return result
            seen = self._judge.seen(image)
            if work.keep == "preview":
                seen = preview.scaled(seen)
                return kept(result, "preview", seen, preview.webp(seen))
            if seen is output:
                return kept(result, "image", seen, result.data)
            recipe = {"v": 1, "farm": __version__, "recipes": work.recipes, "made": result.output["made"]}
            return kept(result, "image", seen, to_png(seen, recipe, label(work.recipes)))
        except StageStop:
            raise
        except Exception as error:  # noqa: BLE001 — what goes on to the next stage is whole
            self._loaded.blame(error)
            _log.warning("not_kept", queue=work.claim.queue, stage=work.claim.stage, error=type(error).__name__)
            return result

    def _picture(self, work: Work, latents: Any, batch: Batch, lease: Lease) -> Any:
        """What is kept of latents: decoded, or a projection; None where there is none, or nobody could judge it."""
        if work.keep == "preview":
            rows = self._catalog.spaces[work.recipe["checkpoint"]["space"]].preview
            return preview.picture(latents, rows) if rows and self._judge.shows_unjudged else None
        lease.phase("decode")
        found = work.stage.decoded(self._loaded.pipes[work.claim.queue], latents, batch)
        lease.phase("upload")
        return found

    def _unread(self, work: Work) -> str:
        """What a stage's text encoder did not read of its prompts."""
        if not work.stage.needs_torch or getattr(work.stage, "weighting", "none") != "none":
            return ""
        pipe = self._loaded.pipes[work.claim.queue]
        texts = (work.stage.prompt or "", work.stage.negative_prompt or "")
        return " … ".join(filter(None, (calling.unread(pipe, text) for text in texts)))

    def _made(self, row: int, bucket: int) -> dict[str, Any]:
        """What made an output: library versions, device type, and the place in its batch."""
        return {**_versions(), "device": self._loaded.device.partition(":")[0], "bucket": bucket, "row": row}


def _versions() -> dict[str, str]:
    """The versions of what makes pixels."""
    found = {"farm": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
