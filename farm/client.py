"""How does a program submit, watch and collect? `Farm` says it in the words of the command line."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

from farm.again import no_input, read_again, refitted
from farm.chain import Chain, override, parse_chain, read_chain_file
from farm.errors import BadBlob, FieldError, InvalidJob, NotFound, Unavailable
from farm.estimate import Estimate, estimate
from farm.fork import StagesSource, forked_chain, kept_executions, read_stages
from farm.handle import JobHandle
from farm.image import fit, natural_size, png_size, read_input, to_png
from farm.job import Forecast, InputImage, Job, Lane, is_number, make_job, make_jobs, new_id
from farm.ledger import CHUNK
from farm.overview import Overview
from farm.plan import input_multiple, plan
from farm.protocol import ImageSource
from farm.records import JobRecord, StageEntry, Submission, Submitted
from farm.scripts import within
from farm.shown import Jobs
from farm.stage import STORED, Size
from farm.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

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


class Farm(Overview):
    """A connection to the farm that the settings name."""

    @cached_property
    def store(self) -> Store:
        """The artifacts in S3."""
        return Store(self.settings)

    @cached_property
    def inbox(self) -> Store:
        """The same store, for input images: a submit that it keeps waiting is told so within 3 s."""
        return Store(self.settings, PATIENCE_S)

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
        keep: str | None = None,
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
            "keep": keep,
        }
        data |= {name: value for name, value in given.items() if value is not None}
        if parameters and isinstance(data.get("stages"), list):
            data["stages"] = override(data["stages"], parameters)
        files: dict[str, bytes] = {}
        parsed = parse_chain({**data, "stages": _named(data.get("stages"), files)})
        return self._with_files(parsed, files, folder)

    def _with_files(self, chain: Chain, files: Mapping[str, bytes], folder: Path) -> Chain:
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

    def submit(self, jobs: Sequence[Job], owner: str = "", max_open: int = 0) -> Jobs[JobHandle]:
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
        return Jobs(JobHandle(self, found.job, existed=found.existed) for found in submitted)

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
    ) -> Jobs[JobHandle]:
        """Submits `count` jobs of one chain, image i with seed + i.

        `given` are the chain's own fields (`negative_prompt`, `seed`, `fit`, `exact`, `reuse`, `keep`) and stage
        parameters (`num_inference_steps`, `strength`, …), as in `chain`.

        Raises:
            InvalidJob: something does not fit; nothing was stored.
            Unavailable: the ledger or the store does not answer.
        """
        asked = self.chain(chain, prompt, **given)
        options: dict[str, Any] = {"lane": lane, "priority": priority, "deadline_s": deadline_s}
        return self.submit(self.jobs_of(asked, image, count, idempotency_key=idempotency_key, **options))

    def dry_run(
        self,
        prompt: str | None = None,
        *,
        chain: str | Path | Mapping[str, Any] = "hires",
        image: ImageSource | None = None,
        count: int = 1,
        lane: Lane = "interactive",
        priority: int = 50,
        deadline_s: float | None = None,
        **given: Any,
    ) -> Forecast:
        """What `run` would submit, every rule checked; nothing is stored. Raises InvalidJob."""
        asked = self.chain(chain, prompt, **given)
        options: dict[str, Any] = {"lane": lane, "priority": priority, "deadline_s": deadline_s}
        jobs = self.jobs_of(asked, image, count, upload=False, **options)
        seed = None if asked.seed is None else jobs[0].seed
        took = Estimate()
        with suppress(Unavailable), within(PATIENCE_S):  # what a dry run says holds without the farm
            took = estimate(jobs, self.ledger)
        return Forecast(len(jobs), seed, [item.facts for item in jobs[0].plan], took.cost_s, took.eta_s)

    def edges(
        self, chain: str | Path | Mapping[str, Any], size: Size | None = None, *, images: bool = False
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

    def jobs(self, state: str | None = None, run: str | None = None, limit: int = 50) -> Jobs[JobRecord]:
        """The newest jobs first, without their stages."""
        return Jobs(self.ledger.jobs(state=state, run=run, limit=limit))

    # ------------------------------------------------------------------------------------------------ quarantine

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

    # ------------------------------------------------------------------------------------------------ again

    def rerun(self, picture: ImageSource, image: ImageSource | None = None) -> tuple[JobHandle, bool]:
        """Makes a result picture again from its recipe; whether everything that decides its pixels is the same here.

        `image` gives the input image of a chain that began with one, if the store no longer holds it.

        Raises:
            InvalidJob: the picture carries no recipe of this farm, or its chain is not possible here.
        """
        again = read_again(picture if isinstance(picture, bytes) else _read_file(Path(picture)))
        chain = parse_chain(again.chain)
        for value, _ in (named for stage in chain.stages for named in stage.uploads().values()):
            if not self.inbox.exists(value.removeprefix(STORED)):
                raise NotFound(
                    "an image that a stage of this picture names is no longer stored",
                    hint="render its chain once more with that file, which stores it again",
                )
        missing = self._input_again(again.image, image) if again.image else None
        job = make_job(chain, self.catalog, self.settings, image=again.image)
        self._upload([*filter(None, [missing])])
        return self.submit([job])[0], job.keys[-1] == again.key

    def _input_again(self, image: InputImage, source: ImageSource | None) -> bytes | None:
        """The bytes of `image`, made from `source` by the rule that gives them; None where the store has them."""
        if source is None:
            if not self.inbox.exists(image.sha256):
                raise no_input()
            return None
        return refitted(read_input(_data_or_path(source), self.settings), image)

    # ------------------------------------------------------------------------------------------------ otherwise

    def fork(
        self,
        job: str,
        from_stage: int,
        *,
        stages: StagesSource | None = None,
        idempotency_key: str | None = None,
        lane: Lane | None = None,
        priority: int | None = None,
        deadline_s: float | None = None,
        **parameters: Any,
    ) -> JobHandle:
        """Submits the job `job` once more with other stages or parameters from stage `from_stage` on (see `farm.fork`).

        Lane and priority are the job's own where they are not given.

        Raises:
            InvalidJob: something does not fit; names each wrong field.
            NotFound: there is no such job.
        """
        record = self.job(job).record
        options: dict[str, Any] = {"idempotency_key": idempotency_key, "deadline_s": deadline_s}
        options |= {"lane": lane or record.lane, "priority": record.priority if priority is None else priority}
        tail, folder = (None, Path()) if stages is None else read_stages(stages)
        return self.submit([self.fork_of(record, from_stage, tail, parameters, folder=folder, **options)])[0]

    def fork_of(
        self,
        record: JobRecord,
        from_stage: int,
        stages: Sequence[Mapping[str, Any]] | None,
        parameters: Mapping[str, Any],
        *,
        folder: Path = Path(),
        upload: bool = True,
        **options: Any,
    ) -> Job:
        """The fork that `submit` takes. Files that its stages name lie in `folder`, or the current one.

        Without `upload` nothing is stored. `options` are those of `make_job`.

        Raises:
            InvalidJob: something does not fit; nothing was stored.
        """
        files: dict[str, bytes] = {}
        tail = _named(stages, files) if stages is not None else None
        chain, image = forked_chain(record, from_stage, tail, _named(parameters, files))
        chain = self._with_files(chain, files, folder)
        chain, uploads = self.fitted(chain, Size(image.width, image.height) if image else None)
        job = make_job(chain, self.catalog, self.settings, image=image, **options)
        job = replace(job, kept=kept_executions(record, job, from_stage))
        if upload:
            self._upload(uploads)
        return job


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
