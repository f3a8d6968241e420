"""What does a worker's child do between two doorbells: claim, fetch, run, store, commit.

A child owns one device and the pipelines of its queues. It loads them before it claims anything, then listens for
doorbells as a Celery worker of pool solo. One doorbell, one claim. Its supervisor starts it, watches its progress
marks and starts it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import platform
import signal
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import stamina
import structlog
from celery.platforms import SecurityWarning
from celery.signals import worker_ready, worker_shutting_down

from farm import __version__
from farm.bell import Connection
from farm.broker import RING, Broker, make_app
from farm.catalog import Catalog
from farm.errors import BadBlob, Failure, FarmError, InvalidJob, StageFailed, StaleToken, Unavailable
from farm.image import hash_pixels, to_png
from farm.job import adapter_of, safety_of, stage_of, weights_of
from farm.label import label
from farm.ledger import Ledger
from farm.log import log_to_stderr
from farm.parent import EX_TEMPFAIL, die_with_parent
from farm.records import Claim, Commit
from farm.settings import Settings
from farm.stage import STORED, Batch, Medium, Size, Stage, kinds
from farm.store import Store
from workers import adapters, codec, pipelines, preview, safety
from workers.lease import Cancelled, Drain, Drained, Lease, Lost, Mark, StageStop
from workers.preview import Screen
from workers.result import Result, kept, publish, upload
from workers.spool import Full, Spool

_log = structlog.get_logger(__name__)
T = TypeVar("T")
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "compel", "opencv-python-headless")
UNSEEN = ("blur", "refuse")
"""Safety policies under which no picture is seen that was not judged."""
PATIENT = 3
"""A deaf child has so many times `deaf_s` for connecting anew: Celery first waits for what hangs on the old link."""
PATIENCE_S = 10.0
"""How long a child waits for one upload before it lets the spool go on with it, seconds: it costs the device's time."""


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
        recipes = _recipes(claim)
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


def _recipes(claim: Claim) -> list[dict[str, Any]]:
    """The recipes of the claimed stage and of all before it."""
    found: list[dict[str, Any]] = json.loads(claim.payload)["recipes"]
    return found


class Worker:
    """Claims and runs the stages of `queues` on one device."""

    def __init__(self, settings: Settings, name: str, queues: Sequence[str], mark: Mark) -> None:
        self.settings, self.name, self.queues, self.mark = settings, name, list(queues), mark
        self.boot = uuid.uuid4().hex
        self.catalog, self.ledger, self.store = Catalog.load(settings), Ledger(settings), Store(settings)
        self.broker, self.drain = Broker(settings), Drain(settings.drain_grace_s)
        self.spool = Spool(settings, self.boot, self.ledger, self.store, self.drain, self.broker.ring)
        self.device, self._leave = "cpu", False
        self._consumer: Any = None
        self.running: Lease | None = None
        self.heard = time.monotonic()
        self._pipes: dict[str, Any] = {}
        self._loaded: dict[str, dict[str, Any]] = {}
        self._checked: dict[tuple[str, str], adapters.Files] = {}
        self._checkers: dict[tuple[str, str], safety.Checker] = {}
        self._lock = threading.Lock()

    def load(self) -> None:
        """Loads the pipeline of every queue. Raises what `Stage.load` raises."""
        self.mark("load", self.settings.limits.load_s)
        for queue in self.queues:
            kind, _, name = queue.partition(".")
            if kind not in kinds() or name not in self.catalog.checkpoints:
                raise FarmError(f"no stage or checkpoint for the queue {queue}", code="unknown_checkpoint")
            checkpoint = self.catalog.checkpoints[name]
            stage = kinds()[kind].model_validate({"kind": kind})
            if stage.needs_torch:
                self.device = pipelines.pick_device(self.settings.device)
            started = time.monotonic()
            self._pipes[queue] = stage.load(pipelines.files_of(self.catalog, checkpoint), self.device)
            self._loaded[queue] = weights_of(self.catalog, checkpoint)
            self.mark("load", self.settings.limits.load_s)
            _log.info("loaded", queue=queue, device=self.device, seconds=round(time.monotonic() - started, 2))

        if self.settings.safety != "off":
            # Now, not after the first picture: a farm without its checker must not begin.
            checker = safety_of(self.catalog, self.settings)
            self._safety_checker(checker["name"], checker["checker"])

    # ---------------------------------------------------------------------------------------- one doorbell

    def answer(self) -> None:
        """One doorbell: claims what there is and runs it. Never raises for what a job did."""
        self.heard = time.monotonic()
        # Without room for another result nothing is claimed; the reconciler rings again.
        if self.drain.asked or self.spool.state:
            return
        try:
            claims, more = self.ledger.claim(self.queues, self.name, self.boot, limit=1, keep=self.spool.tokens())
        except Unavailable as error:
            _log.warning("claim_failed", error=error.code)
            return
        self.broker.ring(more)
        if claims:
            try:
                self.broker.ring(self._run(claims))
            finally:
                with self._lock:
                    self.running = None
                    self.heard = time.monotonic()
                    self.mark("idle", self.settings.limits.idle_s)
            if self._leave:
                self.broker.close()
                os._exit(EX_TEMPFAIL)

    def _run(self, claims: Sequence[Claim]) -> set[str]:
        """Runs `claims` in one pipeline call and settles them; the queues that have work now."""
        began = time.monotonic()
        for claim in claims:
            _log.info("claimed", queue=claim.queue, stage=claim.stage, jobs=claim.waiters[:3], attempt=claim.attempt)
        try:
            with self._lock:
                lease = self.running = Lease(self.ledger, claims, self.settings, self.drain, self.mark)
            try:
                if claims[0].publish:
                    commits = [_again(lease, partial(self._publish, claim)) for claim in claims]
                    _, ready = _again(lease, lambda: self.ledger.commit(commits))
                else:
                    ready = self._deliver(self._make([Work.of(claim) for claim in claims], lease), lease)
            except BadBlob as error:
                _log.warning("input_lost", exec=claims[0].exec, error=error.message)
                return (
                    self.ledger.rewind(claims[0])
                    if len(claims) == 1
                    else self.ledger.fail(claims, Failure.TRANSIENT, error.code, error.message)
                )
            _log.info("finished", queue=claims[0].queue, seconds=round(time.monotonic() - began, 3))
            return ready
        except (Cancelled, Drained) as stop:
            _log.info("stopped", queue=claims[0].queue, why=type(stop).__name__.lower())
            return self._settle(lambda: self.ledger.release(claims))
        except (Lost, StaleToken):
            _log.warning("lease_lost", queue=claims[0].queue)
            return set()
        except Exception as error:  # noqa: BLE001 — every failure is classified and charged, none is swallowed
            return self._failed(claims, error)

    def _check_weights(self, work: Work) -> None:
        """Refuses work for other weights than those that are loaded, though they have the same name.

        Raises:
            Drained: the files on disk are the right ones by now; the child starts again to load them.
            StageFailed: (`bad_checkpoint`) they are not; another worker may have them.
        """
        wanted, queue = work.recipe["checkpoint"], work.claim.queue
        if wanted == self._loaded[queue]:
            return
        checkpoint = self.catalog.checkpoints[wanted["name"]]
        if wanted == weights_of(self.catalog, checkpoint):
            _log.warning("weights_changed", queue=queue)
            self._leave = True
            raise Drained
        raise StageFailed(
            f"worker {self.name} holds other weights of {checkpoint.name} than the job was submitted for",
            failure=Failure.CRASH,
            code="bad_checkpoint",
            hint=f"run `farm models pull {checkpoint.name} --force` where they differ",
        )

    def _adapters(self, work: Work) -> dict[str, adapters.Files]:
        """The checked files of the adapters that a stage names, by name.

        Raises:
            StageFailed: (`bad_checkpoint`) they are not those that the job was submitted for; another worker may
                have them.
        """
        return {name: self._adapter(name, wanted) for name, wanted in work.recipe.get("adapters", {}).items()}

    def _adapter(self, name: str, wanted: dict[str, Any]) -> adapters.Files:
        """The checked files of the adapter `name`, which are those of a recipe. Raises as `_adapters`."""
        entry = self.catalog.adapters.get(name)
        try:
            same = entry is not None and adapter_of(self.catalog, entry) == wanted
        except InvalidJob:
            same = False
        if entry is None or not same:
            raise StageFailed(
                f"worker {self.name} does not have the adapter {name} that the job was submitted for",
                failure=Failure.CRASH,
                code="bad_checkpoint",
                hint=f"run `farm models pull {name}` where it is missing",
            )
        key = name, wanted["manifest"]
        if key not in self._checked:
            self._checked[key] = adapters.files_of(self.catalog, entry)
        return self._checked[key]

    def _make(self, works: Sequence[Work], lease: Lease) -> list[Result]:
        """Fetches, runs and encodes: the results of one pipeline call."""
        first = works[0]
        self._check_weights(first)
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
            adapters=self._adapters(first),
            frugal=any(work.claim.oom for work in works),
        )
        lease.screen = self._screen(works)
        outputs = first.stage.run(self._pipes[first.claim.queue], batch, lease)
        lease.phase("upload")
        rows = enumerate(zip(works, outputs, strict=True))
        encoded = [(work, self._encode(work, output, batch, row), output) for row, (work, output) in rows]
        return [self._kept(*each, batch, lease) for each in encoded]

    def _screen(self, works: Sequence[Work]) -> Screen | None:
        """Where the call shows its pictures while it runs; nobody has judged them, so not where somebody should."""
        rows = self.catalog.spaces[works[0].recipe["checkpoint"]["space"]].preview
        if not rows or not self.settings.preview_s or self.settings.safety in UNSEEN:
            return None
        return Screen(self.ledger, [work.claim for work in works], rows, self.settings.preview_s)

    def _generator(self, work: Work) -> Any:
        seed = work.recipe["seed"]
        return pipelines.generator(seed) if work.stage.needs_torch else seed

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
        space = self.catalog.spaces[source["space"]]
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
            size, largest = sizes[mark.fitted], Size(self.settings.max_side, self.settings.max_side)
            try:
                data = self._get(value.removeprefix(STORED), size or largest)
                found[loc] = codec.decode_image(data, size or codec.image_size(data, self.settings.max_area))
            except BadBlob as error:
                raise StageFailed(
                    f"{loc}: the image {value[:19]}… {error.message}", code="image_lost", hint="submit it again"
                ) from error
        return found

    def _get(self, sha256: str, size: Size) -> bytes:
        # No honest hand-off is larger than raw float32 pixels with a header.
        return self.store.get_blob(sha256, max_bytes=(1 << 16) + 16 * size.width * size.height)

    def _encode(self, work: Work, output: Any, batch: Batch, row: int) -> Result:
        """One output as bytes, and what the ledger will say of it."""
        made = [*(work.given or {}).get("made", []), self._made(row, len(batch.given))]
        unread = self._unread(work)
        found: dict[str, Any] = {"v": 1, "medium": batch.emits.value, "size": list(batch.size), "made": made}
        if batch.emits is Medium.LATENTS:
            space, checkpoint = self.catalog.spaces[work.recipe["checkpoint"]["space"]], work.recipe["checkpoint"]
            denoised = work.recipe["parameters"].get("denoising_end") or 1.0
            data = codec.encode_latents(output, space.name, space.channels, space.factor, checkpoint["dtype"], denoised)
            content_type = "application/octet-stream"
            found["space"] = space.name
        else:
            output, tags = self._judged(work, output)
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
        if work.keep == "none":
            return result
        try:
            image = output
            if batch.emits is Medium.LATENTS:
                image = self._picture(work, output, batch, lease)
            if image is None:
                return result
            seen = self._seen(image)
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
            _log.warning("not_kept", queue=work.claim.queue, stage=work.claim.stage, error=type(error).__name__)
            return result

    def _picture(self, work: Work, latents: Any, batch: Batch, lease: Lease) -> Any:
        """What is kept of latents: decoded, or a projection; None where there is none, or nobody could judge it."""
        if work.keep == "preview":
            rows = self.catalog.spaces[work.recipe["checkpoint"]["space"]].preview
            return preview.picture(latents, rows) if rows and self.settings.safety not in UNSEEN else None
        lease.phase("decode")
        found = work.stage.decoded(self._pipes[work.claim.queue], latents, batch)
        lease.phase("upload")
        return found

    def _seen(self, image: Any) -> Any:
        """The image that people may see under the farm's safety policy. Raises as `_judged`."""
        if self.settings.safety == "off":
            return image
        told = safety_of(self.catalog, self.settings)
        return safety.applied(told["policy"], self._safety_checker(told["name"], told["checker"]), image)[0]

    def _unread(self, work: Work) -> str:
        """What a stage's text encoder did not read of its prompts."""
        if not work.stage.needs_torch or getattr(work.stage, "weighting", "none") != "none":
            return ""
        pipe = self._pipes[work.claim.queue]
        texts = (work.stage.prompt or "", work.stage.negative_prompt or "")
        return " … ".join(filter(None, (pipelines.unread(pipe, text) for text in texts)))

    def _judged(self, work: Work, image: Any) -> tuple[Any, list[str]]:
        """The image that the safety policy of the job hands on, and its tags.

        Raises:
            StageFailed: (`unsafe_output`) it is refused; (`wrong_policy`) the job was submitted without the farm's.
        """
        told = work.recipe.get("safety")
        if work.claim.finishing:
            self._check_policy(work.recipe)
        if told is None:
            return image, []
        return safety.applied(told["policy"], self._safety_checker(told["name"], told["checker"]), image)

    def _check_policy(self, recipe: dict[str, Any]) -> None:
        """Refuses to give out a result under another safety policy than this farm's.

        Raises:
            StageFailed: (`wrong_policy`) says how to submit.
        """
        policy = self.settings.safety
        if policy != "off" and recipe.get("safety") != safety_of(self.catalog, self.settings):
            raise StageFailed(
                f"the job was submitted without the safety policy of this farm, which is {policy} by "
                f"{self.settings.safety_checker}",
                code="wrong_policy",
                hint="set FARM_SAFETY and FARM_SAFETY_CHECKER to these where jobs are submitted",
            )

    def _safety_checker(self, name: str, wanted: dict[str, Any]) -> safety.Checker:
        """The checker `name` of these files, loaded once."""
        key = name, wanted["manifest"]
        if key not in self._checkers:
            self._checkers[key] = safety.Checker(self._adapter(name, wanted), self.device)
        return self._checkers[key]

    def _publish(self, claim: Claim) -> Commit:
        """Writes the readable results of an output that is in the store already; the commit that says so."""
        # It may be the middle of another chain, which nobody has judged.
        self._check_policy(_recipes(claim)[-1])
        output = json.loads(claim.input)
        return publish(self.store, claim, output, self.store.get_blob(output["blob"], max_bytes=output["bytes"]))

    # ---------------------------------------------------------------------------------------- delivery

    def _deliver(self, results: Sequence[Result], lease: Lease) -> set[str]:
        """Uploads and commits `results`, or leaves them to the spool; the queues that have work now.

        Where neither the servers nor the disk take them, it tries one after the other until one does.
        """
        try:
            for attempt in stamina.retry_context(on=Full, attempts=None, timeout=None, wait_max=0.5):
                with attempt:
                    if attempt.num > 1 or not self.spool.away:
                        try:
                            return self._commit(results, lease)
                        except Unavailable as error:
                            _log.warning("not_delivered", error=error.message)
                    # Told before the file is there: a child that dies now is no crash of the stage.
                    lease.phase("spool")
                    lease.renew()
                    self.spool.put(results)
                    lease.hand_over()
                    return set()
            raise AssertionError("the last try returns or raises")
        finally:
            self.spool.refused = ""

    def _commit(self, results: Sequence[Result], lease: Lease) -> set[str]:
        """Uploads and commits `results`; the queues made ready.

        Raises:
            Unavailable: the store or the ledger is away, or the upload took too long.
        """
        uploaded: Future[list[Commit]] = Future()
        threading.Thread(target=_upload_all, args=(self.store, results, uploaded), daemon=True).start()
        until = time.monotonic() + min(PATIENCE_S, self.settings.limits.upload_s)
        while not uploaded.done():
            lease.phase("upload")
            if time.monotonic() > until:
                # The thread goes on: what it still writes is what the spool writes too.
                raise Unavailable("the store takes too long")
            wait([uploaded], timeout=0.5)
        taken, ready = self.ledger.commit(uploaded.result())
        if not all(taken):
            _log.warning("not_taken", queue=results[0].claim.queue, outputs=taken.count(False))
        return ready

    def _made(self, row: int, bucket: int) -> dict[str, Any]:
        """What made an output: library versions, device type, and the place in its batch."""
        return {**_versions(), "device": self.device.partition(":")[0], "bucket": bucket, "row": row}

    # ---------------------------------------------------------------------------------------- when it fails

    def _failed(self, claims: Sequence[Claim], error: Exception) -> set[str]:
        """Classifies `error` and charges it; the queues that have work now."""
        if isinstance(error, StageFailed):
            failure, code, message = error.failure, error.code, error.message
        elif isinstance(error, Unavailable):
            failure, code, message = Failure.TRANSIENT, "transient", error.message
        else:
            failure, code, message = Failure.CRASH, "internal", f"{type(error).__name__}: {str(error)[:300]}"
        _log.error(
            "stage_failed", queue=claims[0].queue, failure=failure.value, code=code, exc_info=failure is Failure.CRASH
        )
        log = "" if isinstance(error, FarmError) else "".join(traceback.format_exception(error))
        ready = self._settle(lambda: self.ledger.fail(claims, failure, code, message, log))
        # After a CUDA error the context is lost for good, whatever makes everything fail may be, and a pipeline that
        # went to the host's memory and back may lie in both: only a new process heals it.
        lost = "CUDA error" in message or (failure is Failure.OOM and any(claim.oom for claim in claims))
        self._leave = self._leave or lost or self._is_isolated()
        return ready

    def _is_isolated(self) -> bool:
        try:
            return self.ledger.isolated(self.name) > 0
        except Unavailable:
            return False

    def _settle(self, call: Any) -> set[str]:
        """`call`, which settles claims; if the ledger is away or gave them to another, they are not ours to settle."""
        try:
            ready: set[str] = call()
        except (StaleToken, Unavailable) as error:
            _log.warning("not_settled", error=error.code)
            return set()
        return ready

    # ---------------------------------------------------------------------------------------- the pulse

    def pulse(self, stop: threading.Event) -> None:
        """Renews the lease and the registry entry, shows the supervisor a sign of life, and cures deafness.

        Deaf is an idle child whose doorbells lie unheard for `deaf_s`: what counts is that they arrive, not that the
        consumer polls, which a half-open connection lets it do for ever. A healthy one hears within a second, so 5 s
        are enough, where the design's 30 s were for a look at the polling. It first connects anew, which keeps the
        loaded pipelines; one that is still deaf after that leaves, to be started again.
        """
        period = min(self.settings.beat_s, 1.0)
        registered, shown, silent_since, hung_up = 0.0, "", None, False
        while not stop.is_set():
            now, lease = time.monotonic(), self.running
            try:
                if lease is not None:
                    lease.renew()
                else:
                    with self._lock:
                        if self.running is None:
                            self.mark("idle", self.settings.limits.idle_s)
                state = self.spool.state or ("busy" if lease is not None else "idle")
                state = "draining" if self.drain.asked else state
                if state != shown or now - registered >= self.settings.beat_s:
                    self._register(state)
                    registered, shown = now, state
                # All are looked at, for that is what mends a list's key that is none.
                unheard = any([self.broker.outstanding(queue) for queue in self.queues])  # noqa: C419
                if not unheard or lease is not None or self.drain.asked:
                    silent_since, hung_up = None, False
                    continue
                silent_since = max(silent_since or now, self.heard)
                if now - silent_since > self.settings.deaf_s * (PATIENT if hung_up else 1):
                    _log.error("deaf", queues=self.queues, reconnects=not hung_up)
                    if hung_up:
                        os._exit(EX_TEMPFAIL)
                    self.heard, hung_up = time.monotonic(), True
                    with suppress(AttributeError):  # it has no connection now: it is making one
                        self._consumer.connection.transport.hang_up()
            except Exception as error:  # noqa: BLE001 — a server is away; the pulse goes on
                _log.debug("pulse", error=type(error).__name__)
                silent_since = None
            finally:
                stop.wait(period)

    def _register(self, state: str) -> None:
        info = {"host": platform.node(), "pid": str(os.getpid()), "device": self.device}
        self.ledger.register(self.name, self.boot, self.queues, state, info)

    def _listens(self, sender: Any, **_: Any) -> None:
        self._consumer = sender

    def serve(self) -> None:
        """Registers, then answers doorbells until SIGTERM."""
        app = make_app(self.settings, self.queues)
        app.amqp.Connection = Connection
        app.task(name=RING, ignore_result=True)(self.answer)
        worker_shutting_down.connect(lambda **_: self.drain.start(), weak=False)
        worker_ready.connect(self._listens, weak=False)
        stop = threading.Event()
        thread = threading.Thread(target=self.pulse, args=(stop,), name="pulse", daemon=True)
        thread.start()
        # What was ready before this child was there has no doorbell yet, perhaps.
        self.broker.ring(self.queues)
        options = [
            "--quiet",
            "worker",
            "--pool=solo",
            "--concurrency=1",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
        app.worker_main([*options, "--loglevel=WARNING", f"--hostname={self.name}@%h"])
        self.spool.close()
        stop.set()
        with suppress(Unavailable):
            self.ledger.unregister(self.name, self.boot)
        self.broker.close()


def _upload_all(store: Store, results: Sequence[Result], uploaded: Future[list[Commit]]) -> None:
    """Settles `uploaded` with the commits that name what the store has now, or with what went wrong."""
    try:
        uploaded.set_result([upload(store, result) for result in results])
    except Exception as error:  # noqa: BLE001 — whoever waits for it raises it
        uploaded.set_exception(error)


def _again(lease: Lease, call: Callable[[], T]) -> T:
    """`call`, again while a server is away. Each try is a sign of life, and heeds a cancel or drain.

    Raises:
        Unavailable: the server was away for as long as an upload may take; the stage is tried again later.
    """
    for attempt in stamina.retry_context(on=Unavailable, attempts=None, timeout=lease.limits.upload_s, wait_max=2):
        with attempt:
            lease.phase("upload")
            return call()
    raise AssertionError("the last try returns or raises")


def _versions() -> dict[str, str]:
    """The versions of what makes pixels."""
    found = {"farm": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """The child's process. Started by the supervisor; not a command for people."""
    parser = argparse.ArgumentParser(prog="workers.worker", description=main.__doc__)
    parser.add_argument("--name", required=True, help="the worker's name in the registry")
    parser.add_argument("--queues", required=True, help="queues it serves, separated by commas")
    parser.add_argument("--parent", type=int, required=True, help="pid of the supervisor")
    parser.add_argument("--marks", type=int, required=True, help="file descriptor for progress marks")
    given = parser.parse_args(argv)
    die_with_parent(given.parent, signal.SIGKILL)
    # The stage runs in this thread alone; the others would push what matters out of the last lines.
    faulthandler.enable(all_threads=False)
    warnings.filterwarnings("ignore", category=SecurityWarning)  # of Celery, to whoever is root in a container
    settings = Settings.load()
    log_to_stderr(settings.log_level)
    os.set_blocking(given.marks, False)
    worker = Worker(
        settings, given.name, given.queues.split(","), lambda phase, limit_s: _tell(given.marks, phase, limit_s)
    )
    _tell(given.marks, "boot", worker.boot)
    # Before the pipelines: what the child's last life finished should not lapse while they load.
    worker.spool.start()
    worker.load()
    worker.serve()


def _tell(marks: int, word: str, value: object) -> None:
    """One line to the supervisor. A full pipe means that it is frozen: the mark is dropped, the stage goes on."""
    with suppress(BlockingIOError):
        os.write(marks, f"{word} {value}\n".encode())


if __name__ == "__main__":
    main()
