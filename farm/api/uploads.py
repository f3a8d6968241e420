"""How does an image get in over HTTP?

As the body of a call, streamed and counted, or as a picture of a job, never as an address. What is stored are its
pixels alone: the file is decoded by its content, turned, laid on white, and written anew, so nothing else of a
stranger's file is kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Request

from farm.api.callers import Caller
from farm.api.desk import DECODER_S, Desk, desk_of
from farm.api.door import Door, Submitter
from farm.api.threads import queue_for
from farm.api.views import View
from farm.errors import BadMediaType, BodyTooLarge, Busy, InvalidJob
from farm.image import FORMATS, read_input, size_of, to_png
from farm.stage import STORED

router = APIRouter(route_class=Door, tags=["uploads"])
TYPES = (*(f"image/{name.lower()}" for name in FORMATS), "application/octet-stream")
"""What an upload may call itself; what it is its content says."""
MAX_UPLOADING = 256 << 20
"""Bytes of all uploads that are under way; more would be memory that nobody bounds."""
BODY = {
    "requestBody": {
        "required": True,
        "content": {name: {"schema": {"type": "string", "format": "binary"}} for name in TYPES},
    }
}


class Uploaded(View):
    """A stored image. `image` is its name in a job; width and height are in pixels."""

    image: str
    width: int
    height: int
    size_bytes: int


@router.post("/uploads", status_code=201, openapi_extra=BODY)
async def upload(request: Request, caller: Submitter) -> Uploaded:
    """Stores an image, sent as the body: a PNG, JPEG or WebP. The same pixels give the same name."""
    desk = desk_of(request)
    async with body_of(request) as data:
        size = await desk.ask(size_of, data)
        return await desk.decode(size.width * size.height, store_image, desk, caller, data)


@asynccontextmanager
async def body_of(request: Request) -> AsyncIterator[bytes]:
    """The image that is a call's body; while it is used, its bytes count among those of all uploads.

    Raises:
        BadMediaType: it is not sent as an image.
        Busy: too many are being uploaded at once.
    """
    desk = desk_of(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in TYPES:
        raise BadMediaType(f"send the raw file as the body, not a form, with Content-Type: one of {', '.join(TYPES)}")
    parts, held = list[bytes](), 0
    try:
        async for part in request.stream():
            held, desk.uploading = held + len(part), desk.uploading + len(part)
            if desk.uploading > MAX_UPLOADING:
                raise Busy()
            parts.append(part)
        data = b"".join(parts)
        parts.clear()
        queue_for(DECODER_S)  # here its bytes are in memory already
        yield data
    finally:
        desk.uploading -= held


def store_image(desk: Desk, caller: Caller, data: bytes) -> Uploaded:
    """An image file, stored as its pixels alone, and noted as the caller's. Raises InvalidJob, BodyTooLarge."""
    try:
        picture = read_input(data, desk.settings)
    except InvalidJob as error:
        if error.code == "too_large":
            raise BodyTooLarge(error.errors[0].msg) from None
        raise
    png = to_png(picture)
    desk.farm.ledger.ping()  # where nobody can be noted as its owner, no image is left behind
    sha256 = desk.farm.inbox.put_blob(png, "image/png")
    desk.kept.own_image(caller.owner, sha256)
    return Uploaded(image=STORED + sha256, width=picture.width, height=picture.height, size_bytes=len(png))
