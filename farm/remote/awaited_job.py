"""How is one job on another machine watched, steered and collected, many at a time?"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from farm.api.views import JobView
from farm.comfy_graph import Workflow
from farm.handle import Intermediate, Result, write_pictures
from farm.records import Event, JobRecord, Lane
from farm.remote import words
from farm.remote.stream import Stream
from farm.remote.views import record_of
from farm.remote.wire import Call, asked, part
from farm.shown import html_of_last
from farm.snapshot import Snapshot

if TYPE_CHECKING:
    from PIL.Image import Image

    from farm.remote.awaited import AsyncFarm


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
        self._last = await self.farm.play(words.view(self.id))
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

    async def tags(self) -> tuple[str, ...]:
        """The job's tags, in the order in which it was given them."""
        return tuple((await self.view()).tags)

    async def history(self, after: str = "0-0", block_ms: int | None = None) -> list[Event]:
        """The job's events after the id `after`; where there are none yet, those of up to `block_ms` later."""
        return await self.farm.play(words.history(self.id, after, block_ms))

    def events(self) -> AsyncIterator[Snapshot]:
        """Where the job is, whenever that changes, until it has ended; a connection that breaks is made again.

        Raises:
            Unavailable: the API was away for too long.
        """
        return self.farm.follow(Stream.of_job(self.id))

    async def wait(self, timeout_s: float | None = None) -> AsyncJob:
        """Returns when the job is done.

        Raises:
            StageFailed: it ended otherwise; `code` and `message` say why.
            TimeoutError: it has not ended within `timeout_s`; it goes on.
            Unavailable: the API was away for longer than `farm.handle.AWAY_S`; it goes on.
        """
        self._last = await self.farm.play(words.wait(self.id, timeout_s))
        return self

    async def results(self) -> list[Result]:
        """The final images; empty until the job is done."""
        return await self.farm.play(words.results(self.id, self.farm.url))

    async def read(self, result: Result) -> bytes:
        """The bytes of a final image, or of an intermediate. Raises BadBlob, Unavailable."""
        return await self.farm.play(words.read(result))

    async def pngs(self) -> list[bytes]:
        """The bytes of all final images. Raises BadBlob, Unavailable."""
        self._pngs = await self.farm.play(words.read_all(self.id, self.farm.url))
        return self._pngs

    async def images(self) -> list[Image]:
        """The final images, decoded. Raises BadBlob, Unavailable."""
        from PIL import Image

        return [Image.open(io.BytesIO(png)) for png in await self.pngs()]

    async def preview(self) -> Image | None:
        """The running stage's picture as it is now, small and rough; None where there is none."""
        from PIL import Image

        data = await self.farm.play(words.preview(self.id))
        return Image.open(io.BytesIO(data)) if data else None

    async def intermediates(self) -> list[Intermediate]:
        """What was kept of the stages before the last, as far as they are done."""
        return await self.farm.play(words.intermediates(self.id, self.farm.url))

    async def download(self, target: str | Path, *, intermediates: bool = False) -> list[Path]:
        """Writes the final images: into `target` as `<job>.png`, or to `target` itself if it ends in .png.

        With `intermediates` also what was kept of other stages, beside them, as `<job>-<stage>.png` or `.webp`.

        Raises:
            InvalidJob: (`bad_file`) a file cannot be written.
        """
        kept = await self.farm.play(words.read_kept(self.id, self.farm.url)) if intermediates else []
        return await asyncio.to_thread(write_pictures, self.id, await self.pngs(), kept, Path(target))

    async def cancel(self) -> str:
        """Ends the job as cancelled; the new state. Raises Conflict when it has ended otherwise."""
        return await self.farm.play(words.steer(self.id, "cancel"))

    async def pause(self) -> None:
        """Holds the job after the stage that runs now."""
        await self.farm.play(words.steer(self.id, "pause"))

    async def resume(self) -> None:
        """Lets a paused job go on."""
        await self.farm.play(words.steer(self.id, "resume"))

    async def retry(self) -> None:
        """Queues a failed, quarantined, cancelled or expired job again from the stage it ended in."""
        await self.farm.play(words.steer(self.id, "retry"))

    async def delete(self) -> None:
        """Forgets the ended job, with its readable results. Raises Conflict where it has not ended."""
        await self.farm.play(asked(Call("DELETE", f"jobs/{part(self.id)}")))

    async def reprioritise(self, priority: int, lane: Lane | None = None) -> None:
        """Gives the job another priority, 0 to 100, and lane. Raises Conflict where it has ended."""
        await self.farm.play(words.reprioritise(self.id, priority, lane))

    async def tag(self, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Puts tags on the job, in any state, and takes others off. Raises InvalidJob where it would have too many."""
        await self.farm.play(words.tag(self.id, add, remove))

    async def input_images(self) -> dict[str, bytes]:
        """The PNGs that the job began from, as fitted at submit, by the name of the file that `script` opens."""
        return await self.farm.play(words.input_images(self.id))

    async def script(self) -> str:
        """A plain diffusers program that makes the same pixels, with the checkpoints of this machine."""
        return await self.farm.play(words.script(self.id, self.farm.settings, self.farm.url))

    async def comfy(self) -> Workflow:
        """The job as a graph that ComfyUI runs, with what is not the same there. Raises InvalidJob."""
        return await self.farm.play(words.comfy(self.id))
