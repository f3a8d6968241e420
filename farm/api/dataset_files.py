"""How does a file of rows get in over HTTP, and what does it begin with?

As the body of a call, streamed to a file of this machine's and counted, then put into the store under its owner and its
hash. It is read by a process of its own: what a stranger sends is nothing to open beside everybody's calls.
"""

from __future__ import annotations

import errno
import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Query, Request

from farm.api.callers import Caller
from farm.api.dataset_views import FileView
from farm.api.desk import Desk, desk_of
from farm.api.door import Door, Submitter
from farm.dataset.files import Files, safe_name
from farm.dataset.peeking import peek
from farm.dataset.sources import format_of
from farm.errors import BadMediaType, Busy, NotFound

router = APIRouter(route_class=Door, prefix="/datasets", tags=["datasets"])
TYPES = (
    "application/octet-stream", "text/csv", "text/tab-separated-values", "text/plain", "application/json",
    "application/jsonl", "application/x-ndjson", "application/vnd.apache.parquet", "application/gzip",
)  # fmt: skip
"""What a file may call itself; what it is its name's end says, and its content must be that."""
BODY = {
    "requestBody": {
        "required": True,
        "content": {name: {"schema": {"type": "string", "format": "binary"}} for name in TYPES},
    }
}
AT_ONCE, OWNERS = 16, 2
"""Files that are on their way at the same time, and those of one owner: each takes its room on the disk."""
BLOCK_BYTES = 1 << 20
"""So much is written to the disk at once."""
NameOf = Annotated[
    str,
    Query(
        min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$",
        description="the file's name; its end tells the format: csv, tsv, json, jsonl, txt, also with .gz, or parquet",
    ),
]  # fmt: skip


@router.post("/files", status_code=201, openapi_extra=BODY)
async def upload(request: Request, caller: Submitter, name: NameOf) -> FileView:
    """Stores a file of rows, sent as the body, and tells its first rows; the same bytes are the same file."""
    desk, safe = desk_of(request), safe_name(name)
    format_of(safe, None)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in TYPES:
        raise BadMediaType(f"send the raw file as the body, not a form, with Content-Type: one of {', '.join(TYPES)}")
    async with _received(request, desk, caller.owner, safe) as (path, sha256):
        return await desk.work(_keep, desk, caller, path, f"{sha256}/{safe}")


@asynccontextmanager
async def _received(request: Request, desk: Desk, owner: str, name: str) -> AsyncIterator[tuple[Path, str]]:
    """The body as a file of this machine's, and its SHA-256 (hex); nothing of it is left afterwards.

    Raises:
        Busy: too many files are on their way, or the disk is full.
    """
    if desk.receiving.total() >= AT_ONCE or desk.receiving[owner] >= OWNERS:
        raise Busy("too many files are being uploaded at once")
    desk.receiving[owner] += 1
    found, waiting, folder = hashlib.sha256(), bytearray(), tempfile.TemporaryDirectory(prefix="upload-")
    try:
        path = Path(folder.name) / name

        def write() -> None:
            found.update(waiting)
            file.write(waiting)
            waiting.clear()

        try:
            with path.open("xb") as file:
                async for part in request.stream():
                    waiting += part
                    if len(waiting) >= BLOCK_BYTES:
                        await anyio.to_thread.run_sync(write)
                await anyio.to_thread.run_sync(write)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Busy("this machine's disk has no room for the file", code="disk_full") from None
        yield path, found.hexdigest()
    finally:
        desk.receiving[owner] -= 1
        folder.cleanup()


def _keep(desk: Desk, caller: Caller, path: Path, file: str) -> FileView:
    """The stored file."""
    format, _ = format_of(path.name, None)
    size, files = path.stat().st_size, Files(desk.farm.inbox, caller.owner)
    with suppress(NotFound):
        # Also asks the store whether it is there, before much is sent to it.
        head = files.head(file)
        files.renew(file, head)
        if files.is_there(file):
            return FileView.of(file, format, size, head)
    head = peek(path)
    Files(desk.patient, caller.owner).put(file, path, head)
    return FileView.of(file, format, size, head)
