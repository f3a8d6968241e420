"""How does a program call a farm on another machine, many calls at a time?"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from farm.api.views import JobView, Snapshot
from farm.errors import FieldError, InvalidJob, Unavailable
from farm.handle import Intermediate, Result, write_pictures
from farm.job import Forecast
from farm.protocol import ChainSource, ImageSource
from farm.records import Attempt, Event, JobRecord, Lane, Quarantined, QueueState, WorkerRecord
from farm.remote import words
from farm.remote.asks import upload
from farm.remote.stream import Stream
from farm.remote.views import queue_of, record_of, worker_of
from farm.remote.wire import TIMEOUT_S, Answer, Call, Pause, Steps, answer_of, asked, get, part, place, reaching
from farm.settings import Settings
from farm.shown import Jobs, html_of_last
from farm.stage import Size

if TYPE_CHECKING:
    from PIL.Image import Image

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
        self._http = httpx2.AsyncClient(timeout=TIMEOUT_S, limits=limits)
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

    async def render(self, prompt: str | None = None, **given: Any) -> AsyncJob:
        """Submits one job; `run` takes the same words, a `count` and a `sweep`."""
        if {"count", "sweep"} & set(given):
            raise InvalidJob(errors=(FieldError("count", "render submits one job; run submits several"),))
        return (await self.run(prompt, **given))[0]

    async def run(self, prompt: str | None = None, **given: Any) -> Jobs[AsyncJob]:
        """Submits several jobs; the words are those of `RemoteFarm.run`."""
        return Jobs(AsyncJob(self, job) for job in await self._play(words.run(prompt, **given)))

    async def dry_run(self, prompt: str | None = None, **given: Any) -> Forecast:
        """What `run` would submit, every rule checked; only images are stored. Raises InvalidJob."""
        return await self._play(words.dry_run(prompt, **given))

    async def edges(
        self, chain: ChainSource, size: Size | None = None, *, images: bool = False
    ) -> tuple[list[dict[str, Any]], Size | None]:
        """The typed stages of a chain, and the size of its input image, if it takes one; as in `Farm.edges`."""
        return await self._play(words.edges(chain, size, images=images))

    async def upload(self, source: ImageSource) -> str:
        """The name of an image file, given as its path or its bytes, by which chains of this owner may name it."""
        return await self._play(upload(source))

    async def rerun(self, picture: ImageSource, image: ImageSource | None = None) -> tuple[AsyncJob, bool]:
        """Makes a result picture again from its recipe; whether all that decides its pixels is the same there."""
        job, same = await self._play(words.rerun(picture, image, self.settings))
        return AsyncJob(self, job), same

    async def fork(self, job: str, from_stage: int, **given: Any) -> AsyncJob:
        """Submits a job once more with other stages or parameters from stage `from_stage` on; as `Farm.fork`."""
        return AsyncJob(self, await self._play(words.fork(job, from_stage, **given)))

    # ------------------------------------------------------------------------------------------------ look

    async def job(self, job_id: str) -> AsyncJob:
        """The job `job_id`, or the one job whose id ends so. Raises NotFound."""
        return AsyncJob(self, await self._play(words.find(job_id)))

    async def jobs(self, state: str | None = None, run: str | None = None, limit: int = 50) -> Jobs[JobRecord]:
        """The newest jobs first, without their stages."""
        return Jobs(await self._play(words.jobs(state, run, limit)))

    async def run_states(self, run: str) -> dict[str, int]:
        """How many jobs of a run are in each state. Raises NotFound."""
        return await self._play(words.run_states(run))

    async def cancel_run(self, run: str) -> dict[str, int]:
        """Ends all unended jobs of a run; how many are in each state then. Raises NotFound."""
        return await self._play(words.cancel_run(run))

    def events(self, run: str | None = None) -> AsyncIterator[Snapshot]:
        """Where the jobs of a run, or all that this token may see, are, whenever that changes; without end."""
        return self._follow(Stream.of_run(run) if run else Stream.of_farm())

    async def queues(self) -> list[QueueState]:
        """Every queue that ever had work or a worker, by name."""
        return [queue_of(one) for one in await self._play(get("queues"))]

    async def workers(self) -> list[WorkerRecord]:
        """The live workers; who they are is told to an admin."""
        return [worker_of(one) for one in await self._play(get("workers"))]

    async def stats(self) -> dict[str, int]:
        """What the ledger has counted since it began."""
        return dict(await self._play(get("stats")))

    async def drain(self, worker: str) -> None:
        """Gives a worker nothing more; what it runs it finishes. An admin's call. Raises NotFound."""
        await self._play(asked(Call("POST", f"workers/{part(worker)}/drain", again=True)))

    async def resume(self, worker: str) -> None:
        """Gives a drained worker work again. An admin's call. Raises NotFound."""
        await self._play(asked(Call("POST", f"workers/{part(worker)}/resume", again=True)))

    async def quarantined(self, limit: int = 100) -> list[Quarantined]:
        """What is in quarantine, the newest first. This and what follows are an admin's calls."""
        return await self._play(words.quarantined(limit))

    async def quarantine_of(self, name: str) -> str:
        """The quarantined recipe that begins with `name`, or that ended the job `name`. Raises NotFound."""
        return str((await self._play(get(f"quarantine/{part(name)}")))["execution"])

    async def failures(self, exec: str) -> tuple[Quarantined, list[Attempt], list[str]]:
        """A quarantined recipe, its last failed attempts, and the jobs that it ended. Raises NotFound."""
        return await self._play(words.failures(exec))

    async def retry_quarantined(self, exec: str) -> list[str]:
        """Queues all jobs that the quarantine of `exec` ended again, and says which. Raises NotFound."""
        return list((await self._play(asked(Call("POST", f"quarantine/{part(exec)}/retry"))))["jobs"])

    async def drop_quarantined(self, exec: str) -> None:
        """Lifts a quarantine and forgets its cause; its jobs stay ended. Raises NotFound."""
        await self._play(asked(Call("DELETE", f"quarantine/{part(exec)}")))

    async def presets(self) -> list[dict[str, Any]]:
        """The chains that have a name: name, description and stages."""
        return list(await self._play(get("chains")))

    async def kinds(self) -> list[dict[str, Any]]:
        """The stage kinds that are installed there."""
        return await self._play(words.kinds_there())

    async def weights(self) -> list[dict[str, Any]]:
        """The catalog's checkpoints and adapters, and whether they are pulled."""
        return await self._play(words.weights())

    # ------------------------------------------------------------------------------------------------ the wire

    async def _play(self, steps: Steps[T]) -> T:
        """What a word gives, its calls sent and its pauses awaited."""
        answer: Answer | None = None
        error: Unavailable | None = None
        while True:
            try:
                step = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as end:
                found: T = end.value
                return found
            answer = error = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                answer = await self._send(step)
            except Unavailable as lost:
                error = lost

    async def _send(self, call: Call) -> Answer:
        async with self._turns:
            with reaching(call):
                return answer_of(await self._http.send(self._http.build_request(**call.request(self.url, self._token))))

    async def _follow(self, stream: Stream) -> AsyncIterator[Snapshot]:
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


class AsyncJob:
    """One submitted job. Every call asks the API anew; a notebook shows what the last one told."""

    def __init__(self, farm: AsyncFarm, job_id: str) -> None:
        self.farm, self.id = farm, job_id
        self._last: JobView | None = None
        self._pngs: list[bytes] = []

    def __repr__(self) -> str:
        return f"<job {self.id}>"

    def _repr_html_(self) -> str:
        return html_of_last(self.id, record_of(self._last) if self._last else None, self._pngs)

    async def view(self) -> JobView:
        """The job as the API tells it. Raises NotFound, Unavailable."""
        self._last = await self.farm._play(words.view(self.id))
        return self._last

    async def record(self) -> JobRecord:
        """The job's record with its stages, as far as the API tells it. Raises NotFound, Unavailable."""
        return record_of(await self.view())

    async def state(self) -> str:
        """queued, running, paused, done, failed, quarantined, cancelled or expired."""
        return (await self.view()).state

    async def seed(self) -> int:
        """The job's seed, drawn at submit where none was given."""
        return (await self.view()).seed

    async def history(self, after: str = "0-0", block_ms: int | None = None) -> list[Event]:
        """The job's events after the id `after`; where there are none yet, those of up to `block_ms` later."""
        return await self.farm._play(words.history(self.id, after, block_ms))

    def events(self) -> AsyncIterator[Snapshot]:
        """Where the job is, whenever that changes, until it has ended; a connection that breaks is made again.

        Raises:
            Unavailable: the API was away for too long.
        """
        return self.farm._follow(Stream.of_job(self.id))

    async def wait(self, timeout_s: float | None = None) -> AsyncJob:
        """Returns when the job is done.

        Raises:
            StageFailed: it ended otherwise; `code` and `message` say why.
            TimeoutError: it has not ended within `timeout_s`; it goes on.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        left = words.wait(self.id, lambda: None if until is None else until - time.monotonic())
        self._last = await self.farm._play(left)
        return self

    async def results(self) -> list[Result]:
        """The final images; empty until the job is done."""
        return await self.farm._play(words.results(self.id, self.farm.url))

    async def read(self, result: Result) -> bytes:
        """The bytes of a final image, or of an intermediate. Raises BadBlob, Unavailable."""
        return await self.farm._play(words.read(result))

    async def pngs(self) -> list[bytes]:
        """The bytes of all final images. Raises BadBlob, Unavailable."""
        self._pngs = await self.farm._play(words.read_all(self.id, self.farm.url))
        return self._pngs

    async def images(self) -> list[Image]:
        """The final images, decoded. Raises BadBlob, Unavailable."""
        from PIL import Image

        return [Image.open(io.BytesIO(png)) for png in await self.pngs()]

    async def preview(self) -> Image | None:
        """The running stage's picture as it is now, small and rough; None where there is none."""
        from PIL import Image

        data = await self.farm._play(words.preview(self.id))
        return Image.open(io.BytesIO(data)) if data else None

    async def intermediates(self) -> list[Intermediate]:
        """What was kept of the stages before the last, as far as they are done."""
        return await self.farm._play(words.intermediates(self.id, self.farm.url))

    async def download(self, target: str | Path, *, intermediates: bool = False) -> list[Path]:
        """Writes the final images: into `target` as `<job>.png`, or to `target` itself if it ends in .png.

        With `intermediates` also what was kept of other stages, beside them, as `<job>-<stage>.png` or `.webp`.

        Raises:
            InvalidJob: (`bad_file`) a file cannot be written.
        """
        kept = await self.farm._play(words.read_kept(self.id, self.farm.url)) if intermediates else []
        return write_pictures(self.id, await self.pngs(), kept, Path(target))

    async def cancel(self) -> str:
        """Ends the job as cancelled; the new state. Raises Conflict when it has ended otherwise."""
        return await self.farm._play(words.steer(self.id, "cancel"))

    async def pause(self) -> None:
        """Holds the job after the stage that runs now."""
        await self.farm._play(words.steer(self.id, "pause"))

    async def resume(self) -> None:
        """Lets a paused job go on."""
        await self.farm._play(words.steer(self.id, "resume"))

    async def retry(self) -> None:
        """Queues a failed, quarantined, cancelled or expired job again from the stage it ended in."""
        await self.farm._play(words.steer(self.id, "retry"))

    async def delete(self) -> None:
        """Forgets the ended job, with its readable results. Raises Conflict where it has not ended."""
        await self.farm._play(asked(Call("DELETE", f"jobs/{part(self.id)}")))

    async def reprioritise(self, priority: int, lane: Lane | None = None) -> None:
        """Gives the job another priority, 0 to 100, and lane. Raises Conflict where it has ended."""
        await self.farm._play(words.reprioritise(self.id, priority, lane))

    async def input_images(self) -> dict[str, bytes]:
        """The PNGs that the job began from, as fitted at submit, by the name of the file that `script` opens."""
        return await self.farm._play(words.input_images(self.id))

    async def script(self) -> str:
        """A plain diffusers program that makes the same pixels, with the checkpoints of this machine."""
        return await self.farm._play(words.script(self.id, self.farm.settings, self.farm.url))
