"""How does what a person gives, a chain and its images, become what a job names?

A chain is read by its name, from a file or a mapping, with what is given over it; images are read from files or bytes,
fitted as the chain's stages will see them, and stored under their hash once all of the job fits.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm.again import no_input, refitted
from farm.chain import Chain, override, parse_chain, read_chain_file
from farm.chains import FILES, check_name
from farm.errors import BadBlob, FieldError, InvalidJob
from farm.image import Stored, fit, natural_size, png_size, read_input, to_png
from farm.job import InputImage
from farm.overview import PATIENCE_S, Overview
from farm.plan import input_multiple, plan
from farm.protocol import ChainSource, ImageSource
from farm.scripts import within
from farm.stage import STORED, Size
from farm.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

REFERENCE_SIDE = 1024
"""Longest side at which a reference picture is stored, pixels: image encoders see 224 to 448."""
BYTES = "bytes:"
"""How the client names images that were given as bytes, until they are stored."""
IMAGE_DEPTH = 5
"""Stages, a stage, its controls, one of them, its image; and one more."""


class Inputs(Overview):
    """The farm that the settings name, as far as chains and images are made ready for it."""

    @cached_property
    def store(self) -> Store:
        """The artifacts in S3."""
        return Store(self.settings)

    # ------------------------------------------------------------------------------------------------ chains

    def chain(
        self,
        chain: ChainSource = "hires",
        prompt: str | None = None,
        negative_prompt: str | None = None,
        seed: int | None = None,
        fit: str | None = None,
        exact: bool | None = None,
        reuse: bool | None = None,
        keep: str | None = None,
        **parameters: Any,
    ) -> Chain:
        """The chain of a name, a chain file or a mapping, with what is given here over it.

        `parameters` are set in every stage that has them; `{"1.strength": 0.4}` sets one stage's, counted from 0.

        Raises:
            InvalidJob: names each wrong field and what would be right.
            Unavailable: the name is none of the catalog's, and the store that has saved chains does not answer.
        """
        source, folder = self.resolved(chain), Path()
        if isinstance(source, Path):
            data, folder = read_chain_file(source), source.parent
        else:
            data = dict(source)
        given = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "seed": seed,
            "fit": fit,
            "exact": exact,
            "reuse": reuse,
            "keep": keep,
        }
        data |= {name: value for name, value in given.items() if value is not None}
        if parameters and isinstance(data.get("stages"), list):
            data["stages"] = override(data["stages"], parameters)
        files: dict[str, bytes] = {}
        parsed = parse_chain({**data, "stages": by_name(data.get("stages"), files)})
        return self.with_files(parsed, files, folder)

    def resolved(self, chain: ChainSource) -> Mapping[str, Any] | Path:
        """`chain` without a name that may come to mean another one: what it means now, else the chain file's path.

        Raises:
            InvalidJob: it is none of these; names what is near.
            Unavailable: the name is none of the catalog's, and the store does not answer.
        """
        if isinstance(chain, Mapping):
            return chain
        if not isinstance(chain, str | Path):
            raise InvalidJob(errors=(FieldError("chain", "a chain's name, a chain file's path, or a mapping"),))
        if isinstance(chain, Path) or Path(chain).suffix in FILES:
            return Path(chain)
        try:
            return self.chains.find(chain).chain
        except InvalidJob:
            if os.path.exists(chain):
                raise InvalidJob(f"{chain}: a chain file ends in {', '.join(FILES)}", code="bad_file") from None
            raise

    def save_chain(self, name: str, chain: ChainSource, description: str = "", replace: bool = False) -> dict[str, Any]:
        """Keeps a chain under a name, by which everybody may ask for it from then on; it, as `presets` tells it.

        It is checked as at a submit. What stands beside its stages (prompts, a seed, `fit`, `keep`, …) is kept with
        them, and images that they name are stored. The same once more is the same.

        Raises:
            InvalidJob: names each wrong field of the chain, or `name` or `description`; nothing was saved.
            Conflict: the catalog, or another chain, has this name and `replace` is not said; or somebody else has
                changed it at the same time.
        """
        check_name(name)
        asked = self.chain(chain)
        self.edges_of(asked, images=True)
        stages = [
            stage.with_uploads({loc: self._kept(asked, value) for loc, (value, _) in found.items()})
            if (found := stage.uploads())
            else stage
            for stage in asked.stages
        ]
        told = asked.model_copy(update={"stages": tuple(stages)}).model_dump(mode="json", exclude_unset=True)
        return self.chains.save(name, told, description, replace=replace)[0].facts

    def _kept(self, chain: Chain, value: str) -> str:
        """The name of an image that a stage of `chain` names, stored."""
        return value if value.startswith(STORED) else self.upload(chain.given_files.get(value) or value)

    def with_files(self, chain: Chain, files: Mapping[str, bytes], folder: Path) -> Chain:
        """`chain` with the images of `files`, and paths of other ones found."""
        stages = [
            stage.with_uploads({loc: self._located(value, folder) for loc, (value, _) in found.items()})
            if (found := stage.uploads())
            else stage
            for stage in chain.stages
        ]
        located = chain.model_copy(update={"stages": tuple(stages)})
        located.given_files.update(files)
        return located

    def _located(self, value: str, folder: Path) -> str:
        """A file's path, in the chain file's `folder` or the current one, as an absolute one, if it is there."""
        if value.startswith((STORED, BYTES)):
            return value
        try:
            path = Path(value).expanduser()
            found = folder / path if (folder / path).exists() else path
            return str(found.absolute()) if found.exists() else value
        except (OSError, RuntimeError, ValueError):  # too long a name, a user that nobody is, a null byte
            return value  # reading it will say what is wrong

    def edges(
        self, chain: ChainSource, size: Size | None = None, *, images: bool = False
    ) -> tuple[list[dict[str, Any]], Size | None]:
        """The typed stages of a chain (see `PlannedStage.facts`), and the size of its input image, if it takes one.

        `size` is that image's, in pixels; where it is needed and nobody says it, it is the checkpoint's own. With
        `images`, those that stages name are read and fitted.

        Raises:
            InvalidJob: names each wrong field.
        """
        return self.edges_of(self.chain(chain), size, images=images)

    def edges_of(
        self, asked: Chain, size: Size | None = None, *, images: bool = False
    ) -> tuple[list[dict[str, Any]], Size | None]:
        """As `edges`, of a chain that was read."""
        first = asked.stages[0]
        if size is None and first.takes:
            native = self.catalog.checkpoint(first, "stages.0").native
            size = Size(native, native)
        fitted = None if size is None else self.input_size(asked, size)
        if images:
            asked, _ = self.fitted(asked, fitted)
        return [item.facts for item in plan(asked, self.catalog, self.settings, fitted)], size

    # ------------------------------------------------------------------------------------------------ images

    def upload(self, source: ImageSource) -> str:
        """The name of an image file, given as its path or its bytes, by which chains may name it; it is stored then.

        Raises:
            InvalidJob: it cannot be read, or is no image.
        """
        data = to_png(read_input(data_or_path(source), self.settings))
        self.store_all([data])
        return STORED + hashlib.sha256(data).hexdigest()

    def fitted(self, chain: Chain, image: Size | None, store: Store | None = None) -> tuple[Chain, list[bytes]]:
        """`chain` with the images that its stages name as they will see them, and those that the store lacks.

        `image` is the size of the input image, as fitted. Nothing is stored. Stored ones are read from `store`, by
        default the one that keeps nobody waiting.

        Raises:
            InvalidJob: an image is missing, is none, or does not fit; names the stage and field.
        """
        if not any(stage.uploads() for stage in chain.stages):
            return chain, []
        store, stages, fresh = store or self.inbox, [], []
        for item in plan(chain, self.catalog, self.settings, image):
            named = {}
            for loc, (value, mark) in item.stage.uploads().items():
                where = f"stages.{item.index}.{loc}"
                size = {"given": item.given or item.size, "emitted": item.size, None: None}[mark.fitted]
                stored = value.startswith(STORED) and self._is_stored(store, value, size, where)
                if stored and mark.shows is None:
                    continue  # as it was fitted before
                picture = self._picture(store, value, where, chain, opaque=mark.shows == "white")
                if size is None:
                    picture.thumbnail((REFERENCE_SIDE, REFERENCE_SIDE))
                elif not stored:
                    picture = fit(picture, size, chain.fit)
                _check_shown(picture, mark.shows, where)
                if stored:
                    continue
                data = to_png(picture)
                named[loc] = STORED + hashlib.sha256(data).hexdigest()
                fresh.append(data)
            stages.append(item.stage.with_uploads(named) if named else item.stage)
        return chain.model_copy(update={"stages": tuple(stages)}), fresh

    def _is_stored(self, store: Store, value: str, size: Size | None, loc: str) -> bool:
        """Whether `value` is stored, at `size` if one is needed. Raises InvalidJob at `loc` where it is not stored."""
        sha256 = value.removeprefix(STORED)
        if re.fullmatch("[0-9a-f]{64}", sha256) is None or not store.exists(sha256):
            raise InvalidJob(errors=(FieldError(loc, "no such image is stored; give the file", "bad_image"),))
        if size is None:
            return True
        data = store.get_blob(sha256, self.settings.max_area * 4)
        return png_size(data) == size

    def _picture(self, store: Store, value: str, loc: str, chain: Chain, *, opaque: bool) -> Image:
        """The picture that `value` names: stored, given as bytes, or a file. Raises InvalidJob at `loc`."""
        try:
            if value.startswith(STORED):
                data = store.get_blob(value.removeprefix(STORED), self.settings.max_area * 4)
                return read_input(Stored(data), self.settings)
            return read_input(chain.given_files.get(value) or Path(value), self.settings, opaque=opaque)
        except BadBlob:
            raise InvalidJob(errors=(FieldError(loc, "no such image is stored", "bad_image"),)) from None
        except InvalidJob as error:
            raise InvalidJob(errors=tuple(FieldError(loc, each.msg, each.code) for each in error.errors)) from None

    def prepare(self, chain: Chain, source: ImageSource | None) -> tuple[bytes | None, InputImage | None]:
        """The input image as `chain` would have it: its PNG and its description; nothing is stored.

        Raises:
            InvalidJob: the file is no image, or too large, or the chain is not possible with it.
        """
        if source is None:
            return None, None
        picture = read_input(data_or_path(source), self.settings)
        size = self.input_size(chain, Size(*picture.size))
        # Before the picture is scaled: a size that the chain refuses must not cost memory.
        plan(chain, self.catalog, self.settings, size)
        data = to_png(fit(picture, size, chain.fit), None)
        return data, InputImage(sha256=hashlib.sha256(data).hexdigest(), width=size.width, height=size.height)

    def input_size(self, chain: Chain, image: Size) -> Size:
        """The size that an input image of the size `image` is fitted to, so that all stages of `chain` take it."""
        first = chain.stages[0]
        # Twice the trained side is as much as a checkpoint draws at once without repeating itself.
        area = 4 * self.catalog.checkpoint(first, "stages.0").native ** 2 if first.whole() else self.settings.max_area
        return first.input_size(natural_size(*image, area, self.settings.max_side, input_multiple(chain)))

    def store_all(self, images: Sequence[bytes]) -> None:
        """Stores the input images of a job that is about to be submitted."""
        if images:
            with within(PATIENCE_S):
                self.ledger.ping()  # where no job can be written, no image is left behind
        for image in images:
            self.inbox.put_blob(image, "image/png")

    def input_again(self, image: InputImage, source: ImageSource | None) -> bytes | None:
        """The bytes of `image`, made from `source` by the rule that gives them; None where the store has them."""
        if source is None:
            if not self.inbox.exists(image.sha256):
                raise no_input()
            return None
        return refitted(read_input(data_or_path(source), self.settings), image)


def by_name(value: Any, files: dict[str, bytes], depth: int = 0) -> Any:
    """`value` with each file's bytes in it as a name, by which they are in `files` then, and each path as text.

    No image lies deeper than `IMAGE_DEPTH`, and what YAML's aliases make of a few lines may be endless.
    """
    if isinstance(value, bytes):
        name = BYTES + hashlib.sha256(value).hexdigest()
        files[name] = value
        return name
    if isinstance(value, Mapping) and depth < IMAGE_DEPTH:
        return {key: by_name(item, files, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and depth < IMAGE_DEPTH:
        return [by_name(item, files, depth + 1) for item in value]
    return str(value) if isinstance(value, Path) else value


def _check_shown(picture: Image, wanted: str | None, loc: str) -> None:
    """Refuses a picture that shows nothing of what a stage looks for in it."""
    grey = picture.convert("L")
    # As diffusers binarises a mask.
    if wanted == "white" and not grey.point(lambda level: 255 * (level > 127)).getbbox():
        told = "all black as it is fitted: nothing would be drawn; white is what is drawn anew"
        raise InvalidJob(errors=(FieldError(loc, told, "bad_image"),))
    lowest, highest = grey.getextrema()
    if wanted == "depth" and lowest == highest:
        raise InvalidJob(errors=(FieldError(loc, "one level everywhere: brighter must be nearer", "bad_image"),))


def data_or_path(source: ImageSource) -> bytes | Path:
    """An image file's bytes, or its path. Raises InvalidJob where it is neither."""
    if not isinstance(source, str | Path | bytes):
        raise InvalidJob(errors=(FieldError("image", "a file's path, or its bytes", "bad_image"),))
    return source if isinstance(source, bytes) else Path(source)
