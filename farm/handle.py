"""How is one submitted job watched, steered and collected?"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from farm.again import named_images
from farm.comfy_graph import Workflow, workflow
from farm.errors import Conflict, InvalidJob, StageFailed, Unavailable
from farm.program import program
from farm.records import ENDED, Event, JobRecord, Lane
from farm.shown import html_of
from farm.snapshot import Snapshot
from farm.stage import Size

if TYPE_CHECKING:
    from PIL.Image import Image

    from farm.client import Farm
    from farm.ledger import Ledger
    from farm.store import Store

ROUND_S = 0.2
"""Pause between two looks at jobs, seconds."""
AWAY_S = 60.0
"""How long the ledger may be away before waiting ends, seconds. The jobs go on without us."""
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """One final image of a job: its readable key, `s3://` URI, hash and size in pixels."""

    key: str
    uri: str
    sha256: str
    size: Size


@dataclass(frozen=True)
class Intermediate(Result):
    """What was kept of a stage before the last: an image (PNG), or a preview of it (WebP)."""

    stage: int
    keep: Literal["image", "preview"]
    size_bytes: int

    @property
    def suffix(self) -> str:
        """What a file of it ends in."""
        return ".png" if self.keep == "image" else ".webp"


def patient(call: Callable[[], T]) -> T:
    """What `call` gives, tried again while the ledger is away; a server that was killed is back within seconds.

    Raises:
        Unavailable: it was away for longer than `AWAY_S`.
    """
    away_since = None
    while True:
        try:
            return call()
        except Unavailable:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > AWAY_S:
                raise
            time.sleep(ROUND_S)


def write_pictures(
    job: str, pngs: Sequence[bytes], kept: Sequence[tuple[Intermediate, bytes]], target: Path
) -> list[Path]:
    """Writes a job's final images: into `target` as `<job>.png`, or to `target` itself if it ends in .png.

    What was `kept` of other stages goes beside them, as `<job>-<stage>.png` or `.webp`.

    Raises:
        InvalidJob: (`bad_file`) a file cannot be written.
    """
    path = target if target.suffix == ".png" else target / f"{job}.png"
    wanted = [(path, data) for data in pngs]
    wanted += [(path.with_name(f"{path.stem}-{one.stage}{one.suffix}"), data) for one, data in kept]
    for place, data in wanted:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        except OSError as error:
            raise InvalidJob(f"{place} cannot be written: {error.strerror}", code="bad_file") from None
    return [place for place, _ in wanted]


class JobHandle:
    """One submitted job. Every property asks the ledger anew.

    `existed`: a submit with the same idempotency key had made it before.
    """

    def __init__(self, farm: Farm, job_id: str, *, existed: bool = False) -> None:
        self.farm, self.id, self.existed = farm, job_id, existed

    def __repr__(self) -> str:
        return f"<job {self.id}>"

    def _repr_html_(self) -> str:
        return html_of(self)

    @property
    def record(self) -> JobRecord:
        """The job's record with its stages. Raises NotFound, Unavailable."""
        return self.farm.ledger.job(self.id)

    def history(self, after: str = "0-0", block_ms: int | None = None) -> list[Event]:
        """The job's events after the id `after`, waiting up to `block_ms` for the first."""
        return self.farm.ledger.events(self.id, after, block_ms)

    @property
    def state(self) -> str:
        """queued, running, paused, done, failed, quarantined, cancelled or expired."""
        return self.record.state

    @property
    def seed(self) -> int:
        """The job's seed, drawn at submit where none was given."""
        return int(json.loads(self.record.spec)["chain"]["seed"])

    @property
    def tags(self) -> tuple[str, ...]:
        """The job's tags, in the order in which it was given them."""
        return self.record.tags

    def events(self) -> Iterator[Snapshot]:
        """Where the job is, whenever that changes, until it has ended.

        Raises:
            Unavailable: the ledger was away for longer than `AWAY_S`.
        """
        last = None
        while True:
            record = patient(lambda: self.record)
            if (found := Snapshot.of(record)) != last:
                yield (last := found)
            if record.state in ENDED:
                return
            time.sleep(ROUND_S)

    def wait(self, timeout_s: float | None = None) -> JobHandle:
        """Returns when the job is done.

        Raises:
            StageFailed: it ended otherwise; `code` and `message` say why.
            TimeoutError: it has not ended within `timeout_s`; it goes on.
            Unavailable: the ledger was away for longer than `AWAY_S`; it goes on.
        """
        until = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        seen = "0-0"
        while (record := patient(lambda: self.record)).state not in ENDED:
            # Wakes at each of the job's events, and once a second to look at the clock.
            while not (events := patient(lambda: self.farm.ledger.events(self.id, seen, block_ms=1000))):  # noqa: B023
                if time.monotonic() > until:
                    raise TimeoutError(f"the job {self.id} is still {record.state} after {timeout_s} s")
            seen = events[-1].id
        if record.state != "done":
            why = f": {record.message}" if record.message else ""
            raise StageFailed(f"the job is {record.state}{why}", code=record.code or "job_failed")
        return self

    @property
    def results(self) -> list[Result]:
        """The final images; empty until the job is done."""
        record = self.record
        if record.state != "done":
            return []
        output = json.loads(record.stages[-1].output)
        key = key_of(record, self.farm.store, output["blob"])
        return [Result(key, self.farm.store.uri(key), output["blob"], Size(*output["size"]))]

    @property
    def images(self) -> list[Image]:
        """The final images, decoded. Raises BadBlob, Unavailable."""
        from PIL import Image

        return [Image.open(io.BytesIO(png)) for png in self.pngs()]

    @property
    def preview(self) -> Image | None:
        """The running stage's picture as it is now, small and rough; None where there is none: pictures are made once
        somebody asks for them, the first within a second or a step."""
        from PIL import Image

        data = preview_of(self.farm.ledger, self.record)
        return Image.open(io.BytesIO(data)) if data else None

    @property
    def intermediates(self) -> list[Intermediate]:
        """What was kept of the stages before the last, as far as they are done."""
        return intermediates_of(self.record, self.farm.store)

    def download(self, target: str | Path, *, intermediates: bool = False) -> list[Path]:
        """Writes the final images: into `target` as `<job>.png`, or to `target` itself if it ends in .png.

        With `intermediates` also what was kept of other stages, beside them, as `<job>-<stage>.png` or `.webp`.

        Raises:
            InvalidJob: (`bad_file`) a file cannot be written.
        """
        kept = [(one, self.read(one)) for one in self.intermediates] if intermediates else []
        return write_pictures(self.id, self.pngs(), kept, Path(target))

    def read(self, result: Result) -> bytes:
        """The bytes of a final image, or of an intermediate. Raises BadBlob, Unavailable."""
        limit = 1 << 20 | 4 * result.size.width * result.size.height
        return self.farm.store.get_blob(result.sha256, max_bytes=limit)

    def pngs(self) -> list[bytes]:
        """The bytes of all final images. Raises BadBlob, Unavailable."""
        return [self.read(result) for result in self.results]

    def cancel(self) -> str:
        """Ends the job as cancelled; the new state. Raises Conflict when it has ended otherwise."""
        return self.farm.ledger.cancel(self.id)

    def pause(self) -> None:
        """Holds the job after the stage that runs now."""
        self.farm.ledger.pause(self.id)

    def resume(self) -> None:
        """Lets a paused job go on."""
        self.farm.broker.ring(self.farm.ledger.resume(self.id))

    def retry(self) -> None:
        """Queues a failed, quarantined, cancelled or expired job again from the stage it ended in."""
        self.farm.broker.ring(self.farm.ledger.retry(self.id))

    def reprioritise(self, priority: int, lane: Lane | None = None) -> None:
        """Gives the job another priority, 0 to 100, and lane. Raises Conflict where it has ended."""
        self.farm.ledger.reprioritise(self.id, priority, lane)

    def tag(self, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Puts tags on the job, in any state, and takes others off (see `farm.tags`).

        Raises:
            InvalidJob: one is no tag, or the job would have more than 16.
        """
        self.farm.ledger.tag(self.id, add, remove)

    def delete(self) -> None:
        """Forgets the ended job, with its readable results; blobs stay for whoever shares them.

        Raises:
            Conflict: it has not ended.
            NotFound: there is no such job.
            Unavailable: the ledger or the store does not answer: call again.
        """
        if (state := self.state) not in ENDED:
            raise Conflict(f"the job is {state}")
        # The record last: while it is there, the call can be made again.
        self.farm.inbox.delete_results(self.farm.inbox.results_of(self.id))
        self.farm.ledger.delete(self.id)

    def input_images(self) -> dict[str, bytes]:
        """The PNGs that the job began from, as fitted at submit, by the name of the file that `script` opens."""
        found = dict(named_images(json.loads(self.record.spec)))
        limit = self.farm.settings.max_area * 4
        return {name: self.farm.store.get_blob(sha256, limit) for name, sha256 in found.items()}

    def script(self) -> str:
        """A plain diffusers program that makes the same pixels."""
        return program(json.loads(self.record.spec), self.farm.catalog, self.farm.store.blob_uri)

    def comfy(self) -> Workflow:
        """The job as a graph that ComfyUI runs, with what is not the same there. Raises InvalidJob."""
        return workflow(json.loads(self.record.spec), self.farm.catalog)


def preview_of(ledger: Ledger, record: JobRecord) -> bytes | None:
    """The WebP of the stage that the job is at, as it is being made; None where there is none, or none yet."""
    stage = record.stages[record.at] if record.at < len(record.stages) else None
    return ledger.preview(stage.exec) if stage is not None and stage.state == "running" else None


def key_of(record: JobRecord, store: Store, sha256: str) -> str:
    """The key of a done job's final image: its readable one, or, of a job that has none, its blob's."""
    return store.blob_key(sha256) if record.collected else store.result_key(record.job, record.n - 1, sha256)


def intermediates_of(record: JobRecord, store: Store) -> list[Intermediate]:
    """What was kept of the stages before the last."""
    outputs = {stage.index: json.loads(stage.output) for stage in record.stages[:-1] if stage.output}
    told = {index: output["kept"] for index, output in outputs.items() if "kept" in output}
    return [
        Intermediate(
            store.blob_key(kept["blob"]), store.blob_uri(kept["blob"]), kept["blob"], Size(*kept["size"]), index,
            kept["keep"], kept["bytes"],
        )
        for index, kept in told.items()
    ]  # fmt: skip
