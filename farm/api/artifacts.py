"""How are a job's pictures seen over HTTP: while they are made, once they are there, and small?

A thumbnail is made when it is first asked for, and kept in the store under the hash of what it shows. What never
changes under its address may be kept by a browser for ever, but by nobody in between: it was told to one caller.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from io import BytesIO
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from PIL import Image
from starlette.responses import RedirectResponse

from farm.api.callers import Caller
from farm.api.desk import Desk, desk_of
from farm.api.door import Door, Reader
from farm.api.jobs import record_of
from farm.api.views import BASE, Artifact
from farm.errors import BadBlob, NotFound, Unavailable
from farm.handle import intermediates_of, key_of, preview_of
from farm.image import UNREADABLE
from farm.records import JobRecord
from farm.stage import Size
from farm.store import Store

router = APIRouter(route_class=Door, prefix="/jobs", tags=["artifacts"])
FOR_EVER = "private, max-age=31536000, immutable"
"""Cache header of what never changes under its address. Source: RFC 8246."""
STEP = 64
"""Sides of thumbnails are multiples of it, pixels: a picture has eight of them, not hundreds."""
QUALITY = 80
"""Of a thumbnail's WebP, 0 to 100. Source: Pillow's own default."""
_WEBP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}}, "description": "a WebP"},
    304: {"description": "what `If-None-Match` names is still it"},
}


@router.get("/{job}/artifacts")
async def ls(request: Request, job: str, caller: Reader) -> list[Artifact]:
    """The final image, once there is one, and what was kept of earlier stages."""
    desk = desk_of(request)
    return artifacts_of(await desk.ask(_record, desk, caller, job), desk.farm.inbox)


@router.get("/{job}/artifacts/{index}", status_code=307, response_class=RedirectResponse)
async def show(request: Request, job: str, index: int, caller: Reader) -> RedirectResponse:
    """Leads on to a signed URL of one picture, which needs no token and holds for a while."""
    desk = desk_of(request)
    record, store = await desk.ask(_record, desk, caller, job), desk.farm.inbox
    found = artifact_of(record, store, index)
    if found.kind == "result":
        key, name = key_of(record, store, found.sha256), f"{job}-{index}.png"
    else:
        suffix = "png" if found.medium == "image" else "webp"
        key, name = store.blob_key(found.sha256), f"{job}-stage-{found.stage}.{suffix}"
    return RedirectResponse(await desk.ask(store.presign, key, name), 307)


@router.get("/{job}/artifacts/{index}/thumbnail", response_class=Response, responses=_WEBP)
async def thumbnail(
    request: Request,
    job: str,
    index: int,
    caller: Reader,
    side: Annotated[int, Query(ge=64, le=512, multiple_of=STEP, description="longest side, pixels")] = 256,
) -> Response:
    """A WebP of one picture, at most `side` pixels a side; never larger than the picture."""
    desk = desk_of(request)
    found = artifact_of(await desk.ask(_record, desk, caller, job), desk.farm.inbox, index)
    etag = f'"{found.sha256}-{side}"'
    if _has(request, etag):
        return Response(status_code=304, headers={"ETag": etag, "Cache-Control": FOR_EVER})
    data = await desk.ask(desk.farm.inbox.thumbnail, found.sha256, side)
    if data is None:
        data = await desk.shrink(_make, desk, found, side)
    return Response(data, media_type="image/webp", headers={"ETag": etag, "Cache-Control": FOR_EVER})


@router.get("/{job}/preview", response_class=Response, responses=_WEBP)
async def preview(
    request: Request,
    job: str,
    caller: Reader,
    v: Annotated[int, Query(ge=0, description="of a snapshot's address")] = 0,  # noqa: ARG001 — it is for browsers
) -> Response:
    """The running stage's picture as it is now, small and rough; the newest, whatever `v` a snapshot gave."""
    desk = desk_of(request)
    data = await desk.ask(_preview, desk, caller, job)
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if _has(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/webp", headers=headers)


def _has(request: Request, etag: str) -> bool:
    """Whether the caller says that it has this one. Source: RFC 9110 §13.1.2, weak comparison."""
    given = [word.strip().removeprefix("W/") for word in request.headers.get("if-none-match", "").split(",")]
    return etag in given or given == ["*"]


def _record(desk: Desk, caller: Caller, job: str) -> JobRecord:
    return caller.check(record_of(desk, job))


def _preview(desk: Desk, caller: Caller, job: str) -> bytes:
    data = preview_of(desk.farm.ledger, _record(desk, caller, job))
    if data is None:
        raise NotFound("the job has no picture to show now")
    return data


def artifacts_of(record: JobRecord, store: Store) -> list[Artifact]:
    """The pictures of a job, by index."""
    found = [
        _view(record, one.stage + 1, one.stage, "intermediate", one.keep, one.sha256, one.size, one.size_bytes)
        for one in intermediates_of(record, store)
    ]
    if record.state == "done":
        last, output = record.n - 1, json.loads(record.stages[-1].output)
        size, size_bytes = Size(*output["size"]), output.get("bytes")
        found.insert(0, _view(record, 0, last, "result", "image", output["blob"], size, size_bytes))
    return found


def _view(
    record: JobRecord,
    index: int,
    stage: int,
    kind: Literal["result", "intermediate"],
    medium: Literal["image", "preview"],
    sha256: str,
    size: Size,
    size_bytes: int | None,
) -> Artifact:
    here = f"{BASE}/jobs/{record.job}/artifacts/{index}"
    return Artifact(
        index=index, kind=kind, stage=stage, medium=medium, sha256=sha256, width=size.width, height=size.height,
        size_bytes=size_bytes, url=here, thumbnail=f"{here}/thumbnail",
    )  # fmt: skip


def artifact_of(record: JobRecord, store: Store, index: int) -> Artifact:
    """The picture of a job that has this index. Raises NotFound."""
    for found in artifacts_of(record, store):
        if found.index == index:
            return found
    raise NotFound("the job has no such artifact")


def _make(desk: Desk, found: Artifact, side: int) -> bytes:
    """A thumbnail, which the store has afterwards."""
    store = desk.farm.inbox
    limit = found.size_bytes or (1 << 20 | 4 * found.width * found.height)
    try:
        with Image.open(BytesIO(store.get_blob(found.sha256, limit)), formats=("PNG", "WEBP")) as opened:
            opened.thumbnail((side, side), Image.Resampling.LANCZOS)
            small = opened.convert("RGB")
    except UNREADABLE:
        raise BadBlob("the picture cannot be read") from None
    out = BytesIO()
    small.save(out, "WEBP", quality=QUALITY)
    with suppress(Unavailable):  # it was made anyway, and is made again
        store.put_thumbnail(found.sha256, side, out.getvalue())
    return out.getvalue()
