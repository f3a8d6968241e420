"""How does a program call a farm on another machine, one call at a time?"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
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
from farm.shown import Jobs, html_of
from farm.stage import Size

if TYPE_CHECKING:
    from PIL.Image import Image

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
        self._http = httpx2.Client(timeout=TIMEOUT_S)

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

    def render(self, prompt: str | None = None, **given: Any) -> RemoteJob:
        """Submits one job; `run` takes the same words, a `count` and a `sweep`."""
        if {"count", "sweep"} & set(given):
            raise InvalidJob(errors=(FieldError("count", "render submits one job; run submits several"),))
        return self.run(prompt, **given)[0]

    def run(
        self,
        prompt: str | None = None,
        *,
        chain: ChainSource = "hires",
        image: ImageSource | None = None,
        count: int = 1,
        sweep: Sequence[Mapping[str, Sequence[Any]]] = (),
        idempotency_key: str | None = None,
        lane: Lane = "interactive",
        priority: int = 50,
        deadline_s: float | None = None,
        **given: Any,
    ) -> Jobs[RemoteJob]:
        """Submits `count` jobs of each variant of one chain (see `farm.remote.words.run`)."""
        found = words.run(
            prompt, chain=chain, image=image, count=count, sweep=sweep, idempotency_key=idempotency_key, lane=lane,
            priority=priority, deadline_s=deadline_s, **given,
        )  # fmt: skip
        return Jobs(RemoteJob(self, job) for job in self._play(found))

    def dry_run(self, prompt: str | None = None, **given: Any) -> Forecast:
        """What `run` would submit, every rule checked; only images are stored. Raises InvalidJob."""
        return self._play(words.dry_run(prompt, **given))

    def edges(
        self, chain: ChainSource, size: Size | None = None, *, images: bool = False
    ) -> tuple[list[dict[str, Any]], Size | None]:
        """The typed stages of a chain, and the size of its input image, if it takes one; as in `Farm.edges`."""
        return self._play(words.edges(chain, size, images=images))

    def upload(self, source: ImageSource) -> str:
        """The name of an image file, given as its path or its bytes, by which chains of this owner may name it."""
        return self._play(upload(source))

    def rerun(self, picture: ImageSource, image: ImageSource | None = None) -> tuple[RemoteJob, bool]:
        """Makes a result picture again from its recipe; whether all that decides its pixels is the same there."""
        job, same = self._play(words.rerun(picture, image, self.settings))
        return RemoteJob(self, job), same

    def fork(self, job: str, from_stage: int, **given: Any) -> RemoteJob:
        """Submits a job once more with other stages or parameters from stage `from_stage` on; as `Farm.fork`."""
        return RemoteJob(self, self._play(words.fork(job, from_stage, **given)))

    # ------------------------------------------------------------------------------------------------ look

    def job(self, job_id: str) -> RemoteJob:
        """The job `job_id`, or the one job whose id ends so. Raises NotFound."""
        return RemoteJob(self, self._play(words.find(job_id)))

    def jobs(self, state: str | None = None, run: str | None = None, limit: int = 50) -> Jobs[JobRecord]:
        """The newest jobs first, without their stages."""
        return Jobs(self._play(words.jobs(state, run, limit)))

    def run_states(self, run: str) -> dict[str, int]:
        """How many jobs of a run are in each state. Raises NotFound."""
        return self._play(words.run_states(run))

    def cancel_run(self, run: str) -> dict[str, int]:
        """Ends all unended jobs of a run; how many are in each state then. Raises NotFound."""
        return self._play(words.cancel_run(run))

    def events(self, run: str | None = None) -> Iterator[Snapshot]:
        """Where the jobs of a run, or all that this token may see, are, whenever that changes; without end."""
        return self._follow(Stream.of_run(run) if run else Stream.of_farm())

    def queues(self) -> list[QueueState]:
        """Every queue that ever had work or a worker, by name."""
        return [queue_of(one) for one in self._play(get("queues"))]

    def workers(self) -> list[WorkerRecord]:
        """The live workers; who they are is told to an admin."""
        return [worker_of(one) for one in self._play(get("workers"))]

    def stats(self) -> dict[str, int]:
        """What the ledger has counted since it began."""
        return dict(self._play(get("stats")))

    def drain(self, worker: str) -> None:
        """Gives a worker nothing more; what it runs it finishes. An admin's call. Raises NotFound."""
        self._play(asked(Call("POST", f"workers/{part(worker)}/drain", again=True)))

    def resume(self, worker: str) -> None:
        """Gives a drained worker work again. An admin's call. Raises NotFound."""
        self._play(asked(Call("POST", f"workers/{part(worker)}/resume", again=True)))

    def quarantined(self, limit: int = 100) -> list[Quarantined]:
        """What is in quarantine, the newest first. This and what follows are an admin's calls."""
        return self._play(words.quarantined(limit))

    def quarantine_of(self, name: str) -> str:
        """The quarantined recipe that begins with `name`, or that ended the job `name`. Raises NotFound."""
        return str(self._play(get(f"quarantine/{part(name)}"))["execution"])

    def failures(self, exec: str) -> tuple[Quarantined, list[Attempt], list[str]]:
        """A quarantined recipe, its last failed attempts, and the jobs that it ended. Raises NotFound."""
        return self._play(words.failures(exec))

    def retry_quarantined(self, exec: str) -> list[str]:
        """Queues all jobs that the quarantine of `exec` ended again, and says which. Raises NotFound."""
        return list(self._play(asked(Call("POST", f"quarantine/{part(exec)}/retry")))["jobs"])

    def drop_quarantined(self, exec: str) -> None:
        """Lifts a quarantine and forgets its cause; its jobs stay ended. Raises NotFound."""
        self._play(asked(Call("DELETE", f"quarantine/{part(exec)}")))

    def presets(self) -> list[dict[str, Any]]:
        """The chains that have a name: name, description and stages."""
        return list(self._play(get("chains")))

    def kinds(self) -> list[dict[str, Any]]:
        """The stage kinds that are installed there."""
        return self._play(words.kinds_there())

    def weights(self) -> list[dict[str, Any]]:
        """The catalog's checkpoints and adapters, and whether they are pulled."""
        return self._play(words.weights())

    # ------------------------------------------------------------------------------------------------ the wire

    def _play(self, steps: Steps[T]) -> T:
        """What a word gives, its calls sent and its pauses slept."""
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
                time.sleep(step.seconds)
                continue
            try:
                answer = self._send(step)
            except Unavailable as lost:
                error = lost

    def _send(self, call: Call) -> Answer:
        with reaching(call):
            return answer_of(self._http.send(self._http.build_request(**call.request(self.url, self._token))))

    def _follow(self, stream: Stream) -> Iterator[Snapshot]:
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


class RemoteJob:
    """One submitted job. Every property asks the API anew."""

    def __init__(self, farm: RemoteFarm, job_id: str) -> None:
        self.farm, self.id = farm, job_id

    def __repr__(self) -> str:
        return f"<job {self.id}>"

    def _repr_html_(self) -> str:
        return html_of(self)

    @property
    def view(self) -> JobView:
        """The job as the API tells it. Raises NotFound, Unavailable."""
        return self.farm._play(words.view(self.id))

    @property
    def record(self) -> JobRecord:
        """The job's record with its stages, as far as the API tells it. Raises NotFound, Unavailable."""
        return record_of(self.view)

    @property
    def state(self) -> str:
        """queued, running, paused, done, failed, quarantined, cancelled or expired."""
        return self.view.state

    @property
    def seed(self) -> int:
        """The job's seed, drawn at submit where none was given."""
        return self.view.seed

    def history(self, after: str = "0-0", block_ms: int | None = None) -> list[Event]:
        """The job's events after the id `after`; where there are none yet, those of up to `block_ms` later."""
        return self.farm._play(words.history(self.id, after, block_ms))

    def events(self) -> Iterator[Snapshot]:
        """Where the job is, whenever that changes, until it has ended; a connection that breaks is made again.

        Raises:
            Unavailable: the API was away for too long.
        """
        return self.farm._follow(Stream.of_job(self.id))

    def wait(self, timeout_s: float | None = None) -> RemoteJob:
        """Returns when the job is done.

        Raises:
            StageFailed: it ended otherwise; `code` and `message` say why.
            TimeoutError: it has not ended within `timeout_s`; it goes on.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        self.farm._play(words.wait(self.id, lambda: None if until is None else until - time.monotonic()))
        return self

    @property
    def results(self) -> list[Result]:
        """The final images; empty until the job is done."""
        return self.farm._play(words.results(self.id, self.farm.url))

    def read(self, result: Result) -> bytes:
        """The bytes of a final image, or of an intermediate. Raises BadBlob, Unavailable."""
        return self.farm._play(words.read(result))

    def pngs(self) -> list[bytes]:
        """The bytes of all final images. Raises BadBlob, Unavailable."""
        return self.farm._play(words.read_all(self.id, self.farm.url))

    @property
    def images(self) -> list[Image]:
        """The final images, decoded. Raises BadBlob, Unavailable."""
        from PIL import Image

        return [Image.open(io.BytesIO(png)) for png in self.pngs()]

    @property
    def preview(self) -> Image | None:
        """The running stage's picture as it is now, small and rough; None where there is none."""
        from PIL import Image

        data = self.farm._play(words.preview(self.id))
        return Image.open(io.BytesIO(data)) if data else None

    @property
    def intermediates(self) -> list[Intermediate]:
        """What was kept of the stages before the last, as far as they are done."""
        return self.farm._play(words.intermediates(self.id, self.farm.url))

    def download(self, target: str | Path, *, intermediates: bool = False) -> list[Path]:
        """Writes the final images: into `target` as `<job>.png`, or to `target` itself if it ends in .png.

        With `intermediates` also what was kept of other stages, beside them, as `<job>-<stage>.png` or `.webp`.

        Raises:
            InvalidJob: (`bad_file`) a file cannot be written.
        """
        kept = self.farm._play(words.read_kept(self.id, self.farm.url)) if intermediates else []
        return write_pictures(self.id, self.pngs(), kept, Path(target))

    def cancel(self) -> str:
        """Ends the job as cancelled; the new state. Raises Conflict when it has ended otherwise."""
        return self.farm._play(words.steer(self.id, "cancel"))

    def pause(self) -> None:
        """Holds the job after the stage that runs now."""
        self.farm._play(words.steer(self.id, "pause"))

    def resume(self) -> None:
        """Lets a paused job go on."""
        self.farm._play(words.steer(self.id, "resume"))

    def retry(self) -> None:
        """Queues a failed, quarantined, cancelled or expired job again from the stage it ended in."""
        self.farm._play(words.steer(self.id, "retry"))

    def delete(self) -> None:
        """Forgets the ended job, with its readable results. Raises Conflict where it has not ended."""
        self.farm._play(asked(Call("DELETE", f"jobs/{part(self.id)}")))

    def reprioritise(self, priority: int, lane: Lane | None = None) -> None:
        """Gives the job another priority, 0 to 100, and lane. Raises Conflict where it has ended."""
        self.farm._play(words.reprioritise(self.id, priority, lane))

    def input_images(self) -> dict[str, bytes]:
        """The PNGs that the job began from, as fitted at submit, by the name of the file that `script` opens."""
        return self.farm._play(words.input_images(self.id))

    def script(self) -> str:
        """A plain diffusers program that makes the same pixels, with the checkpoints of this machine."""
        return self.farm._play(words.script(self.id, self.farm.settings, self.farm.url))
