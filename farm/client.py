"""How does a program submit, watch and collect? `Farm` says it in the words of the command line."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from uuid import NAMESPACE_OID, uuid5

from farm.catalog import Catalog
from farm.chain import Chain, override, parse_chain, read_chain_file
from farm.errors import BadBlob, Conflict, FieldError, InvalidJob, NotFound, Unavailable
from farm.handle import JobHandle
from farm.image import Fit, fit, natural_size, png_size, read_input, read_recipe, to_png
from farm.job import (
    InputImage,
    Job,
    Lane,
    input_multiple,
    is_number,
    make_job,
    make_jobs,
    new_id,
    plan,
    recipe_key,
    stage_of,
)
from farm.ledger import CHUNK, Ledger
from farm.records import JobRecord, Quarantined, StageEntry, Submission, Submitted
from farm.scripts import within
from farm.settings import Settings
from farm.stage import STORED, Size, kinds
from farm.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

    from farm.broker import Broker

ImageSource = str | Path | bytes
REFERENCE_SIDE = 1024
"""Longest side at which a reference picture is stored, pixels: image encoders see 224 to 448."""
BYTES = "bytes:"
"""How the client names images that were given as bytes, until they are stored."""
NEWEST = 200
"""Jobs among which one is found by the end of its id."""
SUBMIT_TRIES = 3
"""How often a submit whose reply is lost is sent."""
IMAGE_DEPTH = 5
"""Stages, a stage, its controls, one of them, its image; and one more."""
PATIENCE_S = 1.8
"""How long a submit waits for a server, all tries together. Source: design, trouble is told within 3 s; the command
line takes nearly one of them to start."""


class Farm:
    """A connection to the farm that the settings name."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.load()

    @cached_property
    def catalog(self) -> Catalog:
        """The checkpoints and presets."""
        return Catalog.load(self.settings)

    @cached_property
    def ledger(self) -> Ledger:
        """The truth in Redis."""
        return Ledger(self.settings)

    @cached_property
    def store(self) -> Store:
        """The artifacts in S3."""
        return Store(self.settings)

    @cached_property
    def inbox(self) -> Store:
        """The same store, for input images: a submit that it keeps waiting is told so within 3 s."""
        return Store(self.settings, PATIENCE_S)

    @cached_property
    def broker(self) -> Broker:
        """The doorbells."""
        from farm.broker import Broker  # Celery takes its time to import, and a look needs none

        return Broker(self.settings)

    def close(self) -> None:
        """Sends the doorbells that are still to be rung, and closes the connections."""
        for name in ("broker", "ledger"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ submit

    def chain(
        self,
        chain: str | Path | Mapping[str, Any] = "hires",
        prompt: str | None = None,
        negative_prompt: str | None = None,
        seed: int | None = None,
        fit: str | None = None,
        exact: bool | None = None,
        reuse: bool | None = None,
        **parameters: Any,
    ) -> Chain:
        """The chain of a preset's name, a chain file or a mapping, with what is given here over it.

        `parameters` are set in every stage that has them; `{"1.strength": 0.4}` sets one stage's, counted from 0.

        Raises:
            InvalidJob: names each wrong field and what would be right.
        """
        folder = Path()
        if isinstance(chain, Mapping):
            data = dict(chain)
        elif not isinstance(chain, str | Path):
            raise InvalidJob(errors=(FieldError("chain", "a preset's name, a chain file's path, or a mapping"),))
        elif isinstance(chain, Path) or Path(chain).suffix in {".json", ".yaml", ".yml"}:
            data, folder = read_chain_file(Path(chain)), Path(chain).parent
        elif chain not in self.catalog.presets and os.path.exists(chain):
            raise InvalidJob(f"{chain}: a chain file ends in .json, .yaml or .yml", code="bad_file")
        else:
            data = {"stages": self.catalog.preset(chain).stages}
        given = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "seed": seed,
            "fit": fit,
            "exact": exact,
            "reuse": reuse,
        }
        data |= {name: value for name, value in given.items() if value is not None}
        if parameters and isinstance(data.get("stages"), list):
            data["stages"] = override(data["stages"], parameters)
        files: dict[str, bytes] = {}
        parsed = parse_chain({**data, "stages": _named(data.get("stages"), files)})
        parsed.given_files.update(files)
        stages = [
            stage.with_uploads({loc: self._located(value, folder) for loc, (value, _) in found.items()})
            if (found := stage.uploads())
            else stage
            for stage in parsed.stages
        ]
        return parsed.model_copy(update={"stages": tuple(stages)})

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

    def jobs_of(
        self,
        chain: Chain,
        image: ImageSource | None = None,
        count: int = 1,
        *,
        idempotency_key: str | None = None,
        lane: Lane = "interactive",
        priority: int = 50,
        deadline_s: float | None = None,
        upload: bool = True,
    ) -> list[Job]:
        """The jobs that `submit` takes: `count` of them, image i with seed + i. Uploads the input image, once all fits.

        Without `upload` nothing is stored, and the jobs are only to be looked at.

        Raises:
            InvalidJob: something does not fit; nothing was stored.
        """
        if not is_number(count, int) or not 1 <= count <= self.settings.max_count:
            raise InvalidJob(errors=(FieldError("count", f"a whole number from 1 to {self.settings.max_count}"),))
        key = new_id() if idempotency_key is None else idempotency_key
        # Drawn from the key, so that a run sent again after a lost reply is the same run.
        run = str(uuid5(NAMESPACE_OID, repr(key))) if count > 1 else ""
        data, found = self.prepare(chain, image)
        chain, uploads = self.fitted(chain, Size(found.width, found.height) if found else None)
        jobs = make_jobs(
            chain, self.catalog, self.settings, image=found, idempotency_key=key, lane=lane, priority=priority,
            deadline_s=deadline_s, run=run, count=count,
        )  # fmt: skip
        if upload:
            self._upload([*uploads, *filter(None, [data])])
        return jobs

    def _upload(self, images: Sequence[bytes]) -> None:
        """Stores the input images of a job that is about to be submitted."""
        if images:
            with within(PATIENCE_S):
                self.ledger.ping()  # where no job can be written, no image is left behind
        for image in images:
            self.inbox.put_blob(image, "image/png")

    def fitted(self, chain: Chain, image: Size | None) -> tuple[Chain, list[bytes]]:
        """`chain` with the images that its stages name as they will see them, and those that the store lacks.

        `image` is the size of the input image, as fitted. Nothing is stored.

        Raises:
            InvalidJob: an image is missing, is none, or does not fit; names the stage and field.
        """
        if not any(stage.uploads() for stage in chain.stages):
            return chain, []
        stages, fresh = [], []
        for item in plan(chain, self.catalog, self.settings, image):
            named = {}
            for loc, (value, mark) in item.stage.uploads().items():
                where = f"stages.{item.index}.{loc}"
                size = {"given": item.given or item.size, "emitted": item.size, None: None}[mark.fitted]
                stored = value.startswith(STORED) and self._is_stored(value, size, where)
                if stored and mark.shows is None:
                    continue  # as it was fitted before
                picture = self._picture(value, where, chain, opaque=mark.shows == "white")
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

    def _is_stored(self, value: str, size: Size | None, loc: str) -> bool:
        """Whether `value` is stored, at `size` if one is needed. Raises InvalidJob at `loc` where it is not stored."""
        sha256 = value.removeprefix(STORED)
        if re.fullmatch("[0-9a-f]{64}", sha256) is None or not self.inbox.exists(sha256):
            raise InvalidJob(errors=(FieldError(loc, "no such image is stored; give the file", "bad_image"),))
        if size is None:
            return True
        data = self.inbox.get_blob(sha256, self.settings.max_area * 4)
        return png_size(data) == size

    def _picture(self, value: str, loc: str, chain: Chain, *, opaque: bool) -> Image:
        """The picture that `value` names: stored, given as bytes, or a file. Raises InvalidJob at `loc`."""
        try:
            if value.startswith(STORED):
                return read_input(
                    self.inbox.get_blob(value.removeprefix(STORED), self.settings.max_area * 4), self.settings
                )
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
        picture = read_input(_data_or_path(source), self.settings)
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

    def submit(self, jobs: Sequence[Job], owner: str = "", max_open: int = 0) -> list[JobHandle]:
        """Hands `jobs` to the ledger. What is answered is durable; where a reply is lost, the same jobs are sent again.

        They are `owner`'s, who may have `max_open` unended jobs with them (0: any number).

        Raises:
            QuotaExceeded: there would be more; nothing is stored.
            Unavailable: the ledger does not answer. With code `outcome_unknown` the jobs may be there: the hint names
                the idempotency key under which another submit yields each of them once.
        """
        submitted: list[Submitted] = []
        for start in range(0, len(jobs), CHUNK):
            submissions = [_submission(job, owner) for job in jobs[start : start + CHUNK]]
            limits = {"max_open": max_open, "beyond": len(jobs) - start - len(submissions)}
            # Each script has its own time: many jobs may take longer than one may be kept waiting.
            with within(PATIENCE_S):
                found, ready = self._send(submissions, limits, unsure=bool(submitted))
            self.broker.ring(ready)
            submitted += found
        return [JobHandle(self, found.job) for found in submitted]

    def _send(
        self, submissions: Sequence[Submission], limits: dict[str, int], unsure: bool
    ) -> tuple[list[Submitted], set[str]]:
        """What the ledger answers to one call's worth of jobs; `unsure`: jobs before these are written already."""
        for left in reversed(range(SUBMIT_TRIES)):
            try:
                return self.ledger.submit(submissions, **limits)
            except Unavailable as error:
                unsure = unsure or error.code == "outcome_unknown"
                if not unsure:
                    raise
                if error.code != "outcome_unknown" or not left:
                    # A refusal of the last try says nothing of the tries before it.
                    key = submissions[0].idem.rpartition("#")[0]
                    hint = f"submit it again with the idempotency key {key}: no job is made twice"
                    raise Unavailable(code="outcome_unknown", hint=hint) from None
        raise AssertionError("the last try returns or raises")

    def render(
        self,
        prompt: str | None = None,
        *,
        chain: str | Path | Mapping[str, Any] = "hires",
        image: ImageSource | None = None,
        **given: Any,
    ) -> JobHandle:
        """Submits one job; `run` takes the same words and a `count`."""
        if "count" in given:
            raise InvalidJob(errors=(FieldError("count", "render submits one job; run submits several"),))
        return self.run(prompt, chain=chain, image=image, count=1, **given)[0]

    def run(
        self,
        prompt: str | None = None,
        *,
        chain: str | Path | Mapping[str, Any] = "hires",
        image: ImageSource | None = None,
        count: int = 1,
        idempotency_key: str | None = None,
        lane: Lane = "interactive",
        priority: int = 50,
        deadline_s: float | None = None,
        **given: Any,
    ) -> list[JobHandle]:
        """Submits `count` jobs of one chain, image i with seed + i.

        `given` are the chain's own fields (`negative_prompt`, `seed`, `fit`, `exact`, `reuse`) and stage parameters
        (`num_inference_steps`, `strength`, …), as in `chain`.

        Raises:
            InvalidJob: something does not fit; nothing was stored.
            Unavailable: the ledger or the store does not answer.
        """
        asked = self.chain(chain, prompt, **given)
        options: dict[str, Any] = {"lane": lane, "priority": priority, "deadline_s": deadline_s}
        return self.submit(self.jobs_of(asked, image, count, idempotency_key=idempotency_key, **options))

    # ------------------------------------------------------------------------------------------------ look

    def job(self, job_id: str) -> JobHandle:
        """The job `job_id`, or the one job whose id ends so. Raises NotFound."""
        if len(job_id) == 36:
            self.ledger.job(job_id)
            return JobHandle(self, job_id)
        found = [record.job for record in self.ledger.jobs(limit=NEWEST) if record.job.endswith(job_id)]
        if len(found) != 1 or len(job_id) < 4:
            raise NotFound(
                f"{'no' if not found else 'more than one'} job among the newest {NEWEST} ends in {job_id[-40:]!r}"
            )
        return JobHandle(self, found[0])

    def jobs(self, state: str | None = None, run: str | None = None, limit: int = 50) -> list[JobRecord]:
        """The newest jobs first."""
        return self.ledger.jobs(state=state, run=run, limit=limit)

    # ------------------------------------------------------------------------------------------------ quarantine

    def quarantined(self, limit: int = 100) -> list[Quarantined]:
        """What is in quarantine, the newest first."""
        return self.ledger.quarantined(self.ledger.quarantine(limit))

    def quarantine_of(self, name: str) -> str:
        """The quarantined recipe that begins with `name` (4 or more characters), or that ended the job `name`.

        Raises NotFound.
        """
        matching = [one for one in self.ledger.quarantine() if len(name) >= 4 and one.startswith(name)]
        if not matching:
            try:
                record = self.job(name).record
            except NotFound:
                hint = "`farm quarantine ls` lists what is there"
                raise NotFound(
                    f"no quarantined recipe begins with {name[:40]!r}, and no job ends so", hint=hint
                ) from None
            matching = [record.stages[record.at].exec]
        if len(matching) > 1:
            raise NotFound(f"more than one in quarantine begins with {name!r}")
        return matching[0]

    def retry_quarantined(self, exec: str) -> list[str]:
        """Queues all jobs that the quarantine of `exec` ended again, and says which; those retried before stay so.

        Raises:
            NotFound: it ended none, or all have been retried.
        """
        waiting, retried = self.ledger.quarantined_jobs(exec), []
        if not waiting:
            raise NotFound(f"no job is held by a quarantine of {exec[:12]}")
        for job in waiting:
            with suppress(Conflict, NotFound):  # retried by somebody else, or past its retention
                self.broker.ring(self.ledger.retry(job))
                retried.append(job)
        return retried

    # ------------------------------------------------------------------------------------------------ again

    def rerun(self, picture: ImageSource, image: ImageSource | None = None) -> tuple[JobHandle, bool]:
        """Makes a result picture again from its recipe; whether everything that decides its pixels is the same here.

        `image` gives the input image of a chain that began with one, if the store no longer holds it.

        Raises:
            InvalidJob: the picture carries no recipe of this farm, or its chain is not possible here.
        """
        data = picture if isinstance(picture, bytes) else _read_file(Path(picture))
        try:
            recipes = read_recipe(data)["recipes"]
            written = {"reuse": False, "exact": recipes[0]["exact"], "stages": [stage_of(recipe) for recipe in recipes]}
            width, height = (
                kinds()[recipes[0]["kind"]].model_validate(written["stages"][0]).given_size(Size(*recipes[0]["size"]))
            )
            given = recipes[0]["given"] and InputImage(sha256=recipes[0]["given"]["image"], width=width, height=height)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise InvalidJob("the recipe in this picture cannot be read", code="bad_file") from None
        chain = parse_chain(written)
        for value, _ in (named for stage in chain.stages for named in stage.uploads().values()):
            if not self.inbox.exists(value.removeprefix(STORED)):
                raise NotFound(
                    "an image that a stage of this picture names is no longer stored",
                    hint="render its chain once more with that file, which stores it again",
                )
        missing = self._input_again(given, image) if given else None
        job = make_job(chain, self.catalog, self.settings, image=given)
        self._upload([*filter(None, [missing])])
        return self.submit([job])[0], job.keys[-1] == recipe_key(recipes[-1])

    def _input_again(self, image: InputImage, source: ImageSource | None) -> bytes | None:
        """The bytes of `image`, made from `source` by the rule that gives them; None where the store has them."""
        if source is None:
            if not self.inbox.exists(image.sha256):
                raise NotFound("the input image of this picture is no longer stored", hint="give it with --image")
            return None
        original = read_input(_data_or_path(source), self.settings)
        for rule in get_args(Fit):
            data = to_png(fit(original, Size(image.width, image.height), rule))
            if hashlib.sha256(data).hexdigest() == image.sha256:
                return data
        raise InvalidJob(errors=(FieldError("image", "not the image that this picture began from", "bad_image"),))


def _submission(job: Job, owner: str) -> Submission:
    """The job as the ledger takes it."""
    spec = job.spec
    return Submission(
        job=job.id,
        stages=tuple(StageEntry(job.execution(item.index), item.queue, job.payload(item.index)) for item in job.plan),
        spec=spec,
        idem=job.idempotency_key,
        body_hash=hashlib.sha256(spec.encode()).hexdigest(),
        lane=job.lane,
        priority=job.priority,
        deadline_s=job.deadline_s,
        run=job.run,
        owner=owner,
    )


def _named(value: Any, files: dict[str, bytes], depth: int = 0) -> Any:
    """`value` with each file's bytes in it as a name, by which they are in `files` then, and each path as text.

    No image lies deeper than `IMAGE_DEPTH`, and what YAML's aliases make of a few lines may be endless.
    """
    if isinstance(value, bytes):
        name = BYTES + hashlib.sha256(value).hexdigest()
        files[name] = value
        return name
    if isinstance(value, Mapping) and depth < IMAGE_DEPTH:
        return {key: _named(item, files, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and depth < IMAGE_DEPTH:
        return [_named(item, files, depth + 1) for item in value]
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


def _data_or_path(source: ImageSource) -> bytes | Path:
    if not isinstance(source, str | Path | bytes):
        raise InvalidJob(errors=(FieldError("image", "a file's path, or its bytes", "bad_image"),))
    return source if isinstance(source, bytes) else Path(source)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidJob(f"{path} cannot be read: {error.strerror}", code="bad_file") from None
