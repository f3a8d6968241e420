"""How does a program call a farm on another machine, one call at a time?"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from farm.errors import NotFound, Unavailable
from farm.fork import StagesSource
from farm.job import Forecast
from farm.protocol import ChainSource, ImageSource
from farm.records import Attempt, JobRecord, Lane, Quarantined, QueueState, RunRecord, WorkerRecord
from farm.remote import words
from farm.remote.asks import upload
from farm.remote.job import RemoteJob
from farm.remote.stream import Stream
from farm.remote.views import queue_of, worker_of
from farm.remote.wire import (
    LONG_S,
    LOOPBACK,
    Answer,
    Call,
    Done,
    Pause,
    Steps,
    answer_of,
    asked,
    check,
    get,
    go_on,
    part,
    place,
    reaching,
)
from farm.settings import Settings
from farm.shown import Jobs
from farm.snapshot import Snapshot
from farm.stage import Size
from farm.sweep import Sweep, refuse_several

if TYPE_CHECKING:
    pass

T = TypeVar("T")


class RemoteFarm:
    """A farm whose API answers at `url`; `token` is the text that `farm token create` printed.

    Where they are not given, FARM_URL and FARM_TOKEN say them (the token only for that address). It has the words of
    `farm.client.Farm`. What it reads of this machine are files that chains name, and for `script` the catalog and
    folders of checkpoints (`settings`).
    """

    round_s = words.ROUND_S
    """Pause between two looks at jobs, seconds."""

    def __init__(self, url: str | None = None, token: str | None = None, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.load()
        self.url, self._token = place(url, token, self.settings)
        self._http = httpx2.Client(mounts={f"all://{host}": None for host in LOOPBACK})

    def __repr__(self) -> str:
        return f"<farm at {self.url}>"

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> RemoteFarm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ submit

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
    ) -> RemoteJob:
        """Submits one job; `run` takes the same words, a `count` and a `sweep`."""
        refuse_several(given)
        asked = words.run(
            prompt, chain=chain, image=image, idempotency_key=idempotency_key, lane=lane, priority=priority,
            deadline_s=deadline_s, tags=tags, **given,
        )  # fmt: skip
        (made,) = self.play(asked)
        return RemoteJob(self, made)

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
    ) -> Jobs[RemoteJob]:
        """Submits `count` jobs of each variant of one chain (see `farm.remote.words.run`)."""
        asked = words.run(
            prompt, chain=chain, image=image, count=count, sweep=sweep, idempotency_key=idempotency_key, lane=lane,
            priority=priority, deadline_s=deadline_s, tags=tags, **given,
        )  # fmt: skip
        return Jobs(RemoteJob(self, made) for made in self.play(asked))

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
        """What `run` would submit, every rule checked; only images are stored. Raises InvalidJob."""
        asked = words.dry_run(
            prompt, chain=chain, image=image, count=count, sweep=sweep, lane=lane, priority=priority,
            deadline_s=deadline_s, tags=tags, **given,
        )  # fmt: skip
        return self.play(asked)

    def edges(
        self, chain: ChainSource, size: Size | None = None, *, images: bool = False
    ) -> tuple[list[dict[str, Any]], Size | None]:
        """The typed stages of a chain, and the size of its input image, if it takes one; as in `Farm.edges`."""
        return self.play(words.edges(chain, size, images=images))

    def save_chain(self, name: str, chain: ChainSource, description: str = "", replace: bool = False) -> dict[str, Any]:
        """Keeps a chain under a name, by which everybody may ask for it from then on; as `Farm.save_chain`.

        Raises:
            InvalidJob: names each wrong field; nothing was saved.
            Conflict: the catalog, or another chain, has this name and `replace` is not said.
            Forbidden: it is somebody else's.
        """
        return self.play(words.save_chain(name, chain, description, replace))

    def upload(self, source: ImageSource) -> str:
        """The name of an image file, given as its path or its bytes, by which chains of this owner may name it."""
        return self.play(upload(source))

    def rerun(self, picture: ImageSource, image: ImageSource | None = None) -> tuple[RemoteJob, bool]:
        """Makes a result picture again from its recipe; whether all that decides its pixels is the same there."""
        job, same = self.play(words.rerun(picture, image, self.settings))
        return RemoteJob(self, job), same

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
    ) -> RemoteJob:
        """Submits a job once more with other stages or parameters from stage `from_stage` on; as `Farm.fork`."""
        asked = words.fork(
            job, from_stage, stages=stages, idempotency_key=idempotency_key, lane=lane, priority=priority,
            deadline_s=deadline_s, **parameters,
        )  # fmt: skip
        return RemoteJob(self, self.play(asked))

    # ------------------------------------------------------------------------------------------------ look

    def job(self, job_id: str) -> RemoteJob:
        """The job `job_id`, or the one job whose id ends so. Raises NotFound."""
        return RemoteJob(self, self.play(words.find(job_id)))

    def jobs(
        self, state: str | None = None, run: str | None = None, limit: int = 50, *, tag: str | None = None
    ) -> Jobs[JobRecord]:
        """The newest jobs first, without their stages."""
        return Jobs(self.play(words.jobs(state, run, limit, tag)))

    def tag(self, jobs: Sequence[str], add: Sequence[str] = (), remove: Sequence[str] = ()) -> int:
        """How many of the jobs have the tags to `add` now, and none of those to `remove`; as `Farm.tag`."""
        return self.play(words.tag_all(jobs, add, remove))

    def tags(self) -> dict[str, int]:
        """How many of the jobs that this token may see have each tag, the one of the most jobs first."""
        return self.play(words.tags())

    def runs(self, limit: int = 50) -> list[RunRecord]:
        """The newest runs first."""
        return self.play(words.runs(limit))

    def run_record(self, run: str) -> RunRecord:
        """A run: how many of its jobs are in each state. Raises NotFound."""
        return self.play(words.run_record(run))

    def cancel_run(self, run: str) -> RunRecord:
        """Ends all unended jobs of a run; how it is then. Raises NotFound."""
        return self.play(words.steer_run(run, "cancel"))

    def pause_run(self, run: str) -> RunRecord:
        """Holds all unended jobs of a run after the stages that run now. Raises NotFound."""
        return self.play(words.steer_run(run, "pause"))

    def resume_run(self, run: str) -> RunRecord:
        """Lets the paused jobs of a run go on. Raises NotFound."""
        return self.play(words.steer_run(run, "resume"))

    def retry_run(self, run: str) -> RunRecord:
        """Queues the failed, quarantined, cancelled and expired jobs of a run again. Raises NotFound."""
        return self.play(words.steer_run(run, "retry"))

    def events(self, run: str | None = None) -> Iterator[Snapshot]:
        """Where the jobs of a run, or all that this token may see, are, whenever that changes; without end."""
        return self.follow(Stream.of_run(run) if run else Stream.of_farm())

    def queues(self) -> list[QueueState]:
        """Every queue that ever had work or a worker, by name."""
        return [queue_of(one) for one in self.play(get("queues"))]

    def workers(self) -> list[WorkerRecord]:
        """The live workers; who they are is told to an admin."""
        return [worker_of(one) for one in self.play(get("workers"))]

    def stats(self) -> dict[str, int]:
        """What the ledger has counted since it began."""
        return dict(self.play(get("stats")))

    def drain(self, worker: str) -> None:
        """Gives a worker nothing more; what it runs it finishes. An admin's call. Raises NotFound."""
        self.play(asked(Call("POST", f"workers/{part(worker)}/drain", again=True)))

    def resume(self, worker: str) -> None:
        """Gives a drained worker work again. An admin's call. Raises NotFound."""
        self.play(asked(Call("POST", f"workers/{part(worker)}/resume", again=True)))

    def quarantined(self, limit: int = 100) -> list[Quarantined]:
        """What is in quarantine, the newest first. This and what follows are an admin's calls."""
        return self.play(words.quarantined(limit))

    def quarantine_of(self, name: str) -> str:
        """The quarantined recipe that begins with `name`, or that ended the job `name`. Raises NotFound."""
        return str(self.play(get(f"quarantine/{part(name)}"))["execution"])

    def failures(self, exec: str) -> tuple[Quarantined, list[Attempt], list[str]]:
        """A quarantined recipe, its last failed attempts, and the jobs that it ended. Raises NotFound."""
        return self.play(words.failures(exec))

    def retry_quarantined(self, exec: str) -> list[str]:
        """Queues all jobs that the quarantine of `exec` ended again, and says which. Raises NotFound."""
        return list(self.play(asked(Call("POST", f"quarantine/{part(exec)}/retry", timeout_s=LONG_S)))["jobs"])

    def drop_quarantined(self, exec: str) -> None:
        """Lifts a quarantine and forgets its cause; its jobs stay ended. Raises NotFound."""
        self.play(asked(Call("DELETE", f"quarantine/{part(exec)}")))

    def presets(self, saved: bool = True) -> list[dict[str, Any]]:
        """The chains that have a name, and whose they are; without `saved` the catalog's alone; as `Farm.presets`."""
        return list(self.play(get("chains", saved=None if saved else "false")))

    def preset(self, name: str) -> dict[str, Any]:
        """One chain that has a name. Raises NotFound."""
        return dict(self.play(get(f"chains/{part(name)}")))

    def delete_chain(self, name: str) -> None:
        """Deletes a saved chain of the token's owner, an admin everybody's. Raises NotFound, Conflict, Forbidden."""
        self.play(words.delete_chain(name))

    def kinds(self) -> list[dict[str, Any]]:
        """The stage kinds that are installed there."""
        return self.play(words.kinds_there())

    def weights(self) -> list[dict[str, Any]]:
        """The catalog's checkpoints and adapters, and whether they are pulled."""
        return self.play(words.weights())

    # ------------------------------------------------------------------------------------------------ the wire

    def play(self, steps: Steps[T]) -> T:
        """What a word gives, its calls sent and its pauses slept."""
        told: Answer | Unavailable | None = None
        while not isinstance(step := go_on(steps, told), Done):
            told = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                continue
            try:
                told = self._send(step)
            except Unavailable as lost:
                told = lost
        return step.found

    def _send(self, call: Call) -> Answer:
        with reaching(call), ExitStack() as open_:
            given = call.request(self.url, self._token)
            if isinstance(call.content, Path):
                given["content"] = open_.enter_context(call.content.open("rb"))
            return answer_of(self._http.send(self._http.build_request(**given)))

    def save_to(self, path: Path, call: Call) -> str:
        """The SHA-256 (hex) of what answers a call, which goes to a file of any size.

        Raises as `check`, and NotFound where the farm's store has no such file.
        """
        digest = hashlib.sha256()
        with reaching(call), self._http.stream(**call.request(self.url, self._token)) as response:
            if response.status_code != 200:
                response.read()
                if response.status_code == 404 and not call.known:
                    # Source: S3 API, error codes. What else answers so stands in the store's place, or has no bucket.
                    if b"<Code>NoSuchKey</Code>" in response.content:
                        raise NotFound("the store has no such file")
                    raise Unavailable("the address of the farm's store leads to no store (HTTP 404)")
                check(answer_of(response))
            with path.open("wb") as file:
                for data in response.iter_raw():
                    digest.update(data)
                    file.write(data)
        return digest.hexdigest()

    def follow(self, stream: Stream) -> Iterator[Snapshot]:
        """The snapshots of a stream; a connection that breaks is made again."""
        while not stream.over:
            try:
                with self._http.sse(**stream.request(self.url, self._token)) as told:
                    if told.response.status_code != 200:
                        told.response.read()
                        stream.refused(answer_of(told.response))
                    else:
                        for event in told:
                            found = stream.take(event.id, event.event, event.data)
                            if found is not None:
                                yield found
                            if stream.over:
                                return
            except (httpx2.TransportError, Unavailable) as error:
                stream.broke(error, time.monotonic())
            if not stream.over:
                time.sleep(words.ROUND_S)
