"""How does a program call a farm on another machine, many calls at a time?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from farm.errors import Unavailable
from farm.fork import StagesSource
from farm.job import Forecast
from farm.protocol import ChainSource, ImageSource
from farm.records import Attempt, JobRecord, Lane, Quarantined, QueueState, RunRecord, WorkerRecord
from farm.remote import words
from farm.remote.asks import upload
from farm.remote.awaited_job import AsyncJob
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
AT_ONCE = 16
"""Calls that are under way at the same time; event streams are not counted."""


class AsyncFarm:
    """`farm.remote.RemoteFarm`, awaited: the same words, of which many may be said at once.

    At most `at_once` calls are under way at the same time, so that a thousand `wait`s do not flood the farm; whoever
    opens event streams opens as many connections.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        settings: Settings | None = None,
        *,
        at_once: int = AT_ONCE,
    ) -> None:
        self.settings = settings or Settings.load()
        self.url, self._token = place(url, token, self.settings)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=at_once)
        self._http = httpx2.AsyncClient(limits=limits, mounts={f"all://{host}": None for host in LOOPBACK})
        self._turns = asyncio.Semaphore(at_once)

    def __repr__(self) -> str:
        return f"<farm at {self.url}>"

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncFarm:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ------------------------------------------------------------------------------------------------ submit

    async def render(
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
    ) -> AsyncJob:
        """Submits one job; `run` takes the same words, a `count` and a `sweep`."""
        refuse_several(given)
        asked = words.run(
            prompt, chain=chain, image=image, idempotency_key=idempotency_key, lane=lane, priority=priority,
            deadline_s=deadline_s, tags=tags, **given,
        )  # fmt: skip
        (made,) = await self.play(asked)
        return AsyncJob(self, made)

    async def run(
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
    ) -> Jobs[AsyncJob]:
        """Submits `count` jobs of each variant of one chain (see `farm.remote.words.run`)."""
        asked = words.run(
            prompt, chain=chain, image=image, count=count, sweep=sweep, idempotency_key=idempotency_key, lane=lane,
            priority=priority, deadline_s=deadline_s, tags=tags, **given,
        )  # fmt: skip
        return Jobs(AsyncJob(self, made) for made in await self.play(asked))

    async def dry_run(
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
        return await self.play(asked)

    async def edges(
        self, chain: ChainSource, size: Size | None = None, *, images: bool = False
    ) -> tuple[list[dict[str, Any]], Size | None]:
        """The typed stages of a chain, and the size of its input image, if it takes one; as in `Farm.edges`."""
        return await self.play(words.edges(chain, size, images=images))

    async def save_chain(
        self, name: str, chain: ChainSource, description: str = "", replace: bool = False
    ) -> dict[str, Any]:
        """Keeps a chain under a name, by which everybody may ask for it from then on; as `Farm.save_chain`.

        Raises:
            InvalidJob: names each wrong field; nothing was saved.
            Conflict: the catalog, or another chain, has this name and `replace` is not said.
            Forbidden: it is somebody else's.
        """
        return await self.play(words.save_chain(name, chain, description, replace))

    async def upload(self, source: ImageSource) -> str:
        """The name of an image file, given as its path or its bytes, by which chains of this owner may name it."""
        return await self.play(upload(source))

    async def rerun(self, picture: ImageSource, image: ImageSource | None = None) -> tuple[AsyncJob, bool]:
        """Makes a result picture again from its recipe; whether all that decides its pixels is the same there."""
        job, same = await self.play(words.rerun(picture, image, self.settings))
        return AsyncJob(self, job), same

    async def fork(
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
    ) -> AsyncJob:
        """Submits a job once more with other stages or parameters from stage `from_stage` on; as `Farm.fork`."""
        asked = words.fork(
            job, from_stage, stages=stages, idempotency_key=idempotency_key, lane=lane, priority=priority,
            deadline_s=deadline_s, **parameters,
        )  # fmt: skip
        return AsyncJob(self, await self.play(asked))

    # ------------------------------------------------------------------------------------------------ look

    async def job(self, job_id: str) -> AsyncJob:
        """The job `job_id`, or the one job whose id ends so. Raises NotFound."""
        return AsyncJob(self, await self.play(words.find(job_id)))

    async def jobs(
        self, state: str | None = None, run: str | None = None, limit: int = 50, *, tag: str | None = None
    ) -> Jobs[JobRecord]:
        """The newest jobs first, without their stages."""
        return Jobs(await self.play(words.jobs(state, run, limit, tag)))

    async def tag(self, jobs: Sequence[str], add: Sequence[str] = (), remove: Sequence[str] = ()) -> int:
        """How many of the jobs have the tags to `add` now, and none of those to `remove`; as `Farm.tag`."""
        return await self.play(words.tag_all(jobs, add, remove))

    async def tags(self) -> dict[str, int]:
        """How many of the jobs that this token may see have each tag, the one of the most jobs first."""
        return await self.play(words.tags())

    async def runs(self, limit: int = 50) -> list[RunRecord]:
        """The newest runs first."""
        return await self.play(words.runs(limit))

    async def run_record(self, run: str) -> RunRecord:
        """A run: how many of its jobs are in each state. Raises NotFound."""
        return await self.play(words.run_record(run))

    async def cancel_run(self, run: str) -> RunRecord:
        """Ends all unended jobs of a run; how it is then. Raises NotFound."""
        return await self.play(words.steer_run(run, "cancel"))

    async def pause_run(self, run: str) -> RunRecord:
        """Holds all unended jobs of a run after the stages that run now. Raises NotFound."""
        return await self.play(words.steer_run(run, "pause"))

    async def resume_run(self, run: str) -> RunRecord:
        """Lets the paused jobs of a run go on. Raises NotFound."""
        return await self.play(words.steer_run(run, "resume"))

    async def retry_run(self, run: str) -> RunRecord:
        """Queues the failed, quarantined, cancelled and expired jobs of a run again. Raises NotFound."""
        return await self.play(words.steer_run(run, "retry"))

    def events(self, run: str | None = None) -> AsyncIterator[Snapshot]:
        """Where the jobs of a run, or all that this token may see, are, whenever that changes; without end."""
        return self.follow(Stream.of_run(run) if run else Stream.of_farm())

    async def queues(self) -> list[QueueState]:
        """Every queue that ever had work or a worker, by name."""
        return [queue_of(one) for one in await self.play(get("queues"))]

    async def workers(self) -> list[WorkerRecord]:
        """The live workers; who they are is told to an admin."""
        return [worker_of(one) for one in await self.play(get("workers"))]

    async def stats(self) -> dict[str, int]:
        """What the ledger has counted since it began."""
        return dict(await self.play(get("stats")))

    async def drain(self, worker: str) -> None:
        """Gives a worker nothing more; what it runs it finishes. An admin's call. Raises NotFound."""
        await self.play(asked(Call("POST", f"workers/{part(worker)}/drain", again=True)))

    async def resume(self, worker: str) -> None:
        """Gives a drained worker work again. An admin's call. Raises NotFound."""
        await self.play(asked(Call("POST", f"workers/{part(worker)}/resume", again=True)))

    async def quarantined(self, limit: int = 100) -> list[Quarantined]:
        """What is in quarantine, the newest first. This and what follows are an admin's calls."""
        return await self.play(words.quarantined(limit))

    async def quarantine_of(self, name: str) -> str:
        """The quarantined recipe that begins with `name`, or that ended the job `name`. Raises NotFound."""
        return str((await self.play(get(f"quarantine/{part(name)}")))["execution"])

    async def failures(self, exec: str) -> tuple[Quarantined, list[Attempt], list[str]]:
        """A quarantined recipe, its last failed attempts, and the jobs that it ended. Raises NotFound."""
        return await self.play(words.failures(exec))

    async def retry_quarantined(self, exec: str) -> list[str]:
        """Queues all jobs that the quarantine of `exec` ended again, and says which. Raises NotFound."""
        return list((await self.play(asked(Call("POST", f"quarantine/{part(exec)}/retry", timeout_s=LONG_S))))["jobs"])

    async def drop_quarantined(self, exec: str) -> None:
        """Lifts a quarantine and forgets its cause; its jobs stay ended. Raises NotFound."""
        await self.play(asked(Call("DELETE", f"quarantine/{part(exec)}")))

    async def presets(self, saved: bool = True) -> list[dict[str, Any]]:
        """The chains that have a name, and whose they are; without `saved` the catalog's alone; as `Farm.presets`."""
        return list(await self.play(get("chains", saved=None if saved else "false")))

    async def preset(self, name: str) -> dict[str, Any]:
        """One chain that has a name. Raises NotFound."""
        return dict(await self.play(get(f"chains/{part(name)}")))

    async def delete_chain(self, name: str) -> None:
        """Deletes a saved chain of the token's owner, an admin everybody's. Raises NotFound, Conflict, Forbidden."""
        await self.play(words.delete_chain(name))

    async def kinds(self) -> list[dict[str, Any]]:
        """The stage kinds that are installed there."""
        return await self.play(words.kinds_there())

    async def weights(self) -> list[dict[str, Any]]:
        """The catalog's checkpoints and adapters, and whether they are pulled."""
        return await self.play(words.weights())

    # ------------------------------------------------------------------------------------------------ the wire

    async def play(self, steps: Steps[T]) -> T:
        """What a word gives, its calls sent and its pauses awaited."""
        told: Answer | Unavailable | None = None
        while True:
            # In a thread: between two calls files are read and images decoded.
            step = await asyncio.to_thread(go_on, steps, told)
            if isinstance(step, Done):
                return step.found
            told = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                told = await self._send(step)
            except Unavailable as lost:
                told = lost

    async def _send(self, call: Call) -> Answer:
        async with self._turns:
            with reaching(call):
                return answer_of(await self._http.send(self._http.build_request(**call.request(self.url, self._token))))

    async def follow(self, stream: Stream) -> AsyncIterator[Snapshot]:
        """The snapshots of a stream; a connection that breaks is made again."""
        while not stream.over:
            try:
                async with self._http.sse(**stream.request(self.url, self._token)) as told:
                    if told.response.status_code != 200:
                        await told.response.aread()
                        stream.refused(answer_of(told.response))
                    else:
                        async for event in told:
                            found = stream.take(event.id, event.event, event.data)
                            if found is not None:
                                yield found
                            if stream.over:
                                return
            except (httpx2.TransportError, Unavailable) as error:
                stream.broke(error, time.monotonic())
            if not stream.over:
                await asyncio.sleep(words.ROUND_S)
