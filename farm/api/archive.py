"""What can be made of pictures: a zip of several, a film of one job's stages, or what another job begins with?"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from PIL import Image
from starlette.responses import StreamingResponse

from farm.api.artifacts import artifact_of, artifacts_of
from farm.api.callers import Caller
from farm.api.desk import UNKNOWN, Desk, desk_of
from farm.api.door import Door, Reader, Submitter
from farm.api.jobs import record_of
from farm.api.uploads import Uploaded, store_image
from farm.errors import BadBlob, NotFound
from farm.image import UNREADABLE
from farm.records import JobRecord

router = APIRouter(route_class=Door, tags=["artifacts"])
MOST = 180
"""Pictures of one archive: so many ids stand in an address of 8 KiB. Source: nginx's large_client_header_buffers."""
WORDS = 60
"""Characters of a prompt that a file's name has. Source: Windows' longest path is 260, and people nest folders."""
FILM_SIDE = 512
"""Longest side of a film, pixels: that of a thumbnail."""
SHOWN_MS, LAST_MS = 700, 2000
"""How long a film shows each stage, and the last one, milliseconds."""


class _Out(BytesIO):
    """What is written and not yet sent: a file that nobody can go back in."""

    def seekable(self) -> bool:
        """That a zip is written in one go, with each size behind its file."""
        return False

    def tell(self) -> int:
        """Not known: zipfile counts for itself."""
        raise OSError

    def drain(self) -> bytes:
        """What has been written since the last time."""
        data = self.getvalue()
        self.seek(0)
        self.truncate()
        return data


@router.get(
    "/archive",
    response_class=Response,
    responses={200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def archive(
    request: Request, caller: Reader, job: Annotated[list[str], Query(min_length=1, max_length=MOST)]
) -> Response:
    """Results of several jobs as a zip, called by prompt, seed and id; what is gone meanwhile is left out."""
    desk = desk_of(request)
    found = await desk.work(_found, desk, caller, list(dict.fromkeys(job)))
    headers = {"Content-Disposition": 'attachment; filename="pictures.zip"'}
    return StreamingResponse(_zipped(desk, found), media_type="application/zip", headers=headers)


def _found(desk: Desk, caller: Caller, jobs: list[str]) -> list[JobRecord]:
    """The jobs that are done, of those that are named.

    Raises:
        NotFound: one is somebody else's or nobody's, or none is done.
    """
    records = [caller.check(record_of(desk, one)) for one in jobs]
    done = [record for record in records if record.state == "done"]
    if not done:
        raise NotFound("none of these jobs is done")
    return done


async def _zipped(desk: Desk, records: list[JobRecord]) -> AsyncIterator[bytes]:
    """The zip, a picture at a time: no more than one is held. Pictures are packed already."""
    out = _Out()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as into:
        for record in records:
            try:
                data = await desk.work(_result, desk, record)
            except (BadBlob, NotFound):  # gone meanwhile; whatever else goes wrong breaks the download off
                continue
            into.writestr(zipfile.ZipInfo(_name(record)), data)
            yield out.drain()
    yield out.drain()


def _name(record: JobRecord) -> str:
    """What a result is called in a zip: it stays its own by the job's id, and is found by what people remember."""
    chain = json.loads(record.spec)["chain"]
    words = re.sub(r"[^a-z0-9]+", "-", chain.get("prompt", "").lower()).strip("-")[:WORDS].rstrip("-")
    return "-".join(filter(None, (words, str(chain["seed"]), record.job))) + ".png"


def _result(desk: Desk, record: JobRecord) -> bytes:
    output = json.loads(record.stages[-1].output)
    return desk.farm.inbox.get_blob(output["blob"], output.get("bytes") or desk.settings.max_area * 4)


@router.get(
    "/jobs/{job}/stages.gif",
    response_class=Response,
    responses={200: {"content": {"image/gif": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def film(request: Request, job: str, caller: Reader) -> Response:
    """What was kept of each stage, and the result, one after the other: a GIF."""
    desk = desk_of(request)
    data = await desk.decode(UNKNOWN, _film, desk, caller.check(await desk.ask(record_of, desk, job)))
    return Response(data, media_type="image/gif", headers={"Cache-Control": "private, no-cache"})


def _film(desk: Desk, record: JobRecord) -> bytes:
    found = sorted(artifacts_of(record, desk.farm.inbox), key=lambda one: (one.stage, one.kind == "result"))
    if len(found) < 2:
        raise NotFound("nothing was kept of the job's stages: submit with keep=preview or keep=image")
    frames = list(_frames(desk, [(one.sha256, one.size_bytes) for one in found]))[::-1]
    out = BytesIO()
    frames[0].save(
        out, "GIF", save_all=True, append_images=frames[1:], loop=0,
        duration=[SHOWN_MS] * (len(frames) - 1) + [LAST_MS],
    )  # fmt: skip
    return out.getvalue()


def _frames(desk: Desk, found: list[tuple[str, int | None]]) -> Iterator[Image.Image]:
    """The pictures, the last first, each enlarged to its size."""
    size: tuple[int, int] | None = None
    for sha256, size_bytes in reversed(found):
        data = desk.farm.inbox.get_blob(sha256, size_bytes or desk.settings.max_area * 4)
        try:
            with Image.open(BytesIO(data), formats=("PNG", "WEBP")) as opened:
                picture = opened.convert("RGB")
        except UNREADABLE:
            raise BadBlob("a picture of the job cannot be read") from None
        if size is None:
            picture.thumbnail((FILM_SIDE, FILM_SIDE), Image.Resampling.LANCZOS)
            size = picture.size
        yield picture.resize(size, Image.Resampling.LANCZOS) if picture.size != size else picture


@router.post("/jobs/{job}/artifacts/{index}/use", status_code=201)
async def use(request: Request, job: str, index: int, caller: Submitter) -> Uploaded:
    """Takes a picture of a job as an upload: other jobs may begin with it."""
    desk = desk_of(request)
    record = caller.check(await desk.ask(record_of, desk, job))
    found = artifact_of(record, desk.farm.inbox, index)
    limit = found.size_bytes or desk.settings.max_upload_bytes
    pixels = found.width * found.height
    return await desk.decode(pixels, lambda: store_image(desk, caller, desk.farm.inbox.get_blob(found.sha256, limit)))
