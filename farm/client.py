"""How does a program submit, watch and collect? `Farm` says it in the words of the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from farm.again import read_again
from farm.chain import Chain, parse_chain
from farm.errors import FieldError, InvalidJob, NotFound, Unavailable
from farm.estimate import Estimate, estimate
from farm.fork import StagesSource, forked_chain, kept_executions, read_stages
from farm.handle import JobHandle
from farm.inputs import PATIENCE_S, Inputs, by_name
from farm.job import Forecast, Job, Lane, images_of, is_number, make_job, make_jobs, new_id
from farm.ledger import CHUNK
from farm.plan import wrong
from farm.protocol import ChainSource, ImageSource
from farm.records import JobRecord, StageEntry, Submission, Submitted
from farm.scripts import within
from farm.shown import Jobs
from farm.snapshot import Snapshot
from farm.stage import STORED, Size
from farm.sweep import Sweep, count_of, refuse_several, variants
from farm.watch import changes_of

NEWEST = 200
"""Jobs among which one is found by the end of its id."""
SUBMIT_TRIES = 3
"""How often a submit whose reply is lost is sent."""
VariantOf = Callable[[Mapping[str, Any]], Chain]
"""Gives the chain of a sweep's variant from what that changes."""


class Farm(Inputs):
    """A connection to the farm that the settings name."""

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ submit

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
        tags: Sequence[str] = (),
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
            deadline_s=deadline_s, run=run, count=count, tags=tags,
        )  # fmt: skip
        if upload:
            self.store_all([*uploads, *filter(None, [data])])
        return jobs

    def swept(
        self,
        variant_of: VariantOf,
        sweep: Sweep,
        image: ImageSource | None = None,
        count: int = 1,
        *,
        idempotency_key: str | None = None,
        upload: bool = True,
        **options: Any,
    ) -> list[Job]:
        """The jobs that `submit` takes: `count` of each variant of a sweep, in one run; of no sweep, as `jobs_of`.

        `variant_of` gives the chain with what a variant changes. Variants without a seed share one.

        Raises:
            InvalidJob: something does not fit; nothing was stored. Names the variant.
        """
        most, number = self.settings.max_count, count_of(sweep)
        if sweep and is_number(count, int) and number * count > most:
            raise wrong("count", f"{number * count} jobs, and a run has at most {most}")
        key = new_id() if idempotency_key is None else idempotency_key
        if not sweep:
            return self.jobs_of(variant_of({}), image, count, idempotency_key=key, upload=upload, **options)
        # Drawn from the key, as a single job's is: nothing differs but what is swept.
        seed = int.from_bytes(hashlib.sha256(str(key).encode()).digest()[:4])
        run, jobs, named = str(uuid5(NAMESPACE_OID, repr(key))), list[Job](), set[str]()
        fresh: list[tuple[Chain, dict[str, Any]]] = []
        for number, changes in enumerate(variants(sweep)):
            own = {**options, "idempotency_key": f"{key}~{number}"}
            try:
                chain = variant_of(changes)
                chain = chain if chain.seed is not None else chain.model_copy(update={"seed": seed})
                made = self.jobs_of(chain, image, count, upload=False, **own)
            except InvalidJob as error:
                told = tuple(FieldError(one.loc, f"{one.msg} (variant {number})", one.code) for one in error.errors)
                raise InvalidJob(error.message, code=error.code, errors=told) from None
            # Most sweeps change no size, so that all variants begin with the same stored image.
            if not (images := images_of(made[0])) <= named:
                fresh.append((chain, own))
                named |= images
            jobs += [replace(job, run=run) for job in made]
        for chain, own in fresh if upload else ():
            self.jobs_of(chain, image, count, **own)
        return jobs

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
        chain: ChainSource = "hires",
        image: ImageSource | None = None,
        idempotency_key: str | None = None,
        lane: Lane = "interactive",
        priority: int = 50,
        deadline_s: float | None = None,
        tags: Sequence[str] = (),
        **given: Any,
    ) -> JobHandle:
        """Submits one job; `run` takes the same words, a `count` and a `sweep`."""
        refuse_several(given)
        return self.run(
            prompt, chain=chain, image=image, idempotency_key=idempotency_key, lane=lane, priority=priority,
            deadline_s=deadline_s, tags=tags, **given,
        )[0]  # fmt: skip

    def run(
        self,
        prompt: str | None = None,
        *,
        chain: ChainSource = "hires",
        image: ImageSource | None = None,
        count: int = 1,
        sweep: Sweep = (),
        idempotency_key: str | None = None,
        lane: Lane = "interactive",
        priority: int = 50,
        deadline_s: float | None = None,
        tags: Sequence[str] = (),
        **given: Any,
    ) -> Jobs[JobHandle]:
        """Submits `count` jobs of each variant of one chain, image i with seed + i.

        `given` are the chain's own fields (`negative_prompt`, `seed`, `fit`, `exact`, `reuse`, `keep`) and stage
        parameters (`num_inference_steps`, `strength`, …), as in `chain`; `sweep` says what the variants have otherwise
        (see `farm.sweep`). All of the jobs get the `tags`, words that find them again (see `farm.tags`).

        Raises:
            InvalidJob: something does not fit; nothing was stored.
            Unavailable: the ledger or the store does not answer.
        """
        options: dict[str, Any] = {"lane": lane, "priority": priority, "deadline_s": deadline_s, "tags": tags}
        asked = self._variant_of(chain, prompt, given)
        return self.submit(self.swept(asked, sweep, image, count, idempotency_key=idempotency_key, **options))

    def dry_run(
        self,
        prompt: str | None = None,
        *,
        chain: ChainSource = "hires",
        image: ImageSource | None = None,
        count: int = 1,
        sweep: Sweep = (),
        lane: Lane = "interactive",
        priority: int = 50,
        deadline_s: float | None = None,
        tags: Sequence[str] = (),
        **given: Any,
    ) -> Forecast:
        """What `run` would submit, every rule checked; nothing is stored. Raises InvalidJob."""
        options: dict[str, Any] = {"lane": lane, "priority": priority, "deadline_s": deadline_s, "tags": tags}
        jobs = self.swept(self._variant_of(chain, prompt, given), sweep, image, count, upload=False, **options)
        seed = None if jobs[0].chain.seed is None else jobs[0].seed
        took = Estimate()
        with suppress(Unavailable), within(PATIENCE_S):  # what a dry run says holds without the farm
            took = estimate(jobs, self.ledger)
        return Forecast(len(jobs), seed, [item.facts for item in jobs[0].plan], took.cost_s, took.eta_s)

    def _variant_of(self, chain: ChainSource, prompt: str | None, given: Mapping[str, Any]) -> VariantOf:
        asked = self.resolved(chain)  # once: all variants are of the same chain, whoever saves another one meanwhile
        return lambda changes: self.chain(asked, **{"prompt": prompt, **given, **changes})

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

    def jobs(
        self, state: str | None = None, run: str | None = None, limit: int = 50, *, tag: str | None = None
    ) -> Jobs[JobRecord]:
        """The newest jobs first, without their stages."""
        return Jobs(self.ledger.jobs(state=state, run=run, limit=limit, tag=tag))

    def tag(self, jobs: Sequence[str], add: Sequence[str] = (), remove: Sequence[str] = ()) -> int:
        """How many of the jobs (whole ids, in any state) have the tags to `add` now, and none of those to `remove`.

        The others stay as they are: they are no more, or would have more than 16 tags. Raises InvalidJob.
        """
        return self.ledger.tag_all(list(dict.fromkeys(jobs)), add, remove)

    def tags(self) -> dict[str, int]:
        """How many jobs have each tag, the one of the most jobs first; 1000 tags at most."""
        return self.ledger.tags()

    def events(self, run: str | None = None) -> Iterator[Snapshot]:
        """Where the jobs of a run, or all, are, whenever that changes; without end (see `farm.watch`).

        Raises:
            NotFound: there is no such run.
            Unavailable: the ledger was away for longer than `farm.handle.AWAY_S`.
        """
        return changes_of(self.ledger, run)

    # ------------------------------------------------------------------------------------------------ quarantine

    def quarantine_of(self, name: str) -> str:
        """The quarantined recipe that begins with `name` (4 or more characters), or that ended the job `name`.

        Raises NotFound.
        """
        matching = [one for one in self.ledger.quarantine() if len(name) >= 4 and one.startswith(name)]
        if not matching and self.ledger.quarantined_jobs(name):
            return name  # in full, where a retry was broken off: the first job that is retried lifts the quarantine
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
        missing = self.input_again(again.image, image) if again.image else None
        job = make_job(chain, self.catalog, self.settings, image=again.image)
        self.store_all([*filter(None, [missing])])
        return self.submit([job])[0], job.keys[-1] == again.key

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
        tail = by_name(stages, files) if stages is not None else None
        chain, image = forked_chain(record, from_stage, tail, by_name(parameters, files))
        chain = self.with_files(chain, files, folder)
        chain, uploads = self.fitted(chain, Size(image.width, image.height) if image else None)
        job = make_job(chain, self.catalog, self.settings, image=image, **options)
        job = replace(job, kept=kept_executions(record, job, from_stage))
        if upload:
            self.store_all(uploads)
        return job


def _submission(job: Job, owner: str) -> Submission:
    """The job as the ledger takes it."""
    spec = job.spec
    return Submission(
        job=job.id,
        stages=tuple(
            StageEntry(job.execution(item.index), item.queue, job.payload(item.index), item.work) for item in job.plan
        ),
        spec=spec,
        idem=job.idempotency_key,
        body_hash=hashlib.sha256(spec.encode()).hexdigest(),
        lane=job.lane,
        priority=job.priority,
        deadline_s=job.deadline_s,
        run=job.run,
        owner=owner,
        collected=job.collected,
        tags=job.tags,
    )


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidJob(f"{path} cannot be read: {error.strerror}", code="bad_file") from None
