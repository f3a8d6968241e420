"""What is there of a dataset, and what could not be made, over HTTP?

Shards are gone through by number, so many at a time: a dataset may have a hundred thousand.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.responses import RedirectResponse

from farm.api.callers import Caller
from farm.api.dataset_views import FailedSample, FailurePage, ShardPage, ShardView
from farm.api.datasets import READERS, found_dataset, planned_dataset
from farm.api.desk import Desk, desk_of
from farm.api.door import Door, Reader, Submitter
from farm.api.views import BASE
from farm.dataset.desk import Datasets
from farm.dataset.folder import Folder
from farm.dataset.sheets import sheet
from farm.dataset.spec import MAX_SHARDS
from farm.errors import BadBlob, NotFound
from farm.snapshot import told

router = APIRouter(route_class=Door, prefix="/datasets", tags=["datasets"])
SHARDS = 100
"""Shards of one page."""
MOST_OF_CARD = 1000
"""A card counts all shards, which are read for it: of more than so many no call waits."""
FOR_EVER = "private, max-age=31536000, immutable"
"""Cache header of what never changes under its address. Source: RFC 8246."""
_WEBP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}}, "description": "a WebP"},
}
_MARKDOWN: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/markdown": {"schema": {"type": "string"}}}, "description": "Markdown"},
}
Number = Annotated[int, Path(ge=0, lt=MAX_SHARDS, description="a shard's number, from 0")]
After = Annotated[int, Query(ge=0, lt=MAX_SHARDS, description="the shard that the page begins with")]


@router.get("/{dataset}/failures")
async def failures(
    request: Request,
    dataset: str,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=10_000, description="so many, and those of the last one's shard")] = 100,
    after: After = 0,
) -> FailurePage:
    """The samples of a dataset that could not be made, each with what its job said."""
    desk = desk_of(request)

    def call() -> FailurePage:
        status, found = found_dataset(desk, caller, dataset), list[FailedSample]()
        if not status.failed:
            return FailurePage(failures=[], next=None)
        end = min(status.shards, after + SHARDS)
        for number, stats in _stats(desk, dataset, range(after, end)):
            found += [FailedSample.of(one) for one in (stats or {}).get("failures", ())]
            if len(found) >= limit:
                end = number + 1
                break
        return FailurePage(failures=found, next=end if end < status.shards else None)

    return await desk.work(call)


@router.get("/{dataset}/shards")
async def shards(
    request: Request,
    dataset: str,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=SHARDS)] = SHARDS,
    after: After = 0,
) -> ShardPage:
    """The shards of a dataset that are there, among the `limit` next ones."""
    desk = desk_of(request)

    def call() -> ShardPage:
        status = found_dataset(desk, caller, dataset)
        end, here = min(status.shards, after + limit), f"{BASE}/datasets/{dataset}/shards"
        found, damaged = list[ShardView](), list[int]()
        for number, stats in _stats(desk, dataset, range(after, end)):
            if stats is not None:
                try:
                    found.append(ShardView.of(stats, here))
                except (KeyError, TypeError, ValueError):
                    damaged.append(number)
        return ShardPage(shards=found, damaged=damaged, next=end if end < status.shards else None)

    return await desk.work(call)


@router.get("/{dataset}/shards/{shard}/tar", status_code=307, response_class=RedirectResponse)
async def tar(request: Request, dataset: str, shard: Number, caller: Reader) -> RedirectResponse:
    """Leads on to a signed URL of a shard's tar, which needs no token and holds for a while."""
    return await _lead(request, dataset, shard, caller, "tar")


@router.get("/{dataset}/shards/{shard}/parquet", status_code=307, response_class=RedirectResponse)
async def parquet(request: Request, dataset: str, shard: Number, caller: Reader) -> RedirectResponse:
    """Leads on to a signed URL of a shard's table, likewise."""
    return await _lead(request, dataset, shard, caller, "parquet")


@router.get("/{dataset}/shards/{shard}/scores", status_code=307, response_class=RedirectResponse)
async def scores(request: Request, dataset: str, shard: Number, caller: Reader) -> RedirectResponse:
    """Leads on to a signed URL of what was measured of a shard's pictures later, a table by key; 404: nothing was."""
    return await _lead(request, dataset, shard, caller, "scores")


@router.get("/{dataset}/shards/{shard}/samples", status_code=307, response_class=RedirectResponse)
async def samples(request: Request, dataset: str, shard: Number, caller: Reader) -> RedirectResponse:
    """Leads on to a signed URL of a shard's samples as they were planned, JSON lines with gzip."""
    return await _lead(request, dataset, shard, caller, "samples")


async def _lead(request: Request, dataset: str, shard: int, caller: Caller, end: str) -> RedirectResponse:
    desk = desk_of(request)

    def call() -> str:
        folder = _shard(desk, caller, dataset, shard)
        path, name = f"shards/{shard:05d}.{end}", f"{dataset}-{shard:05d}.{end}"
        if end == "scores":
            path, name = f"shards/{shard:05d}_scores.parquet", f"{dataset}-{shard:05d}-scores.parquet"
            if not folder.names(path):
                raise NotFound("nothing was measured of the shard's pictures")
        elif end == "samples":
            path, name = folder.plan().path_of(shard), f"{dataset}-{shard:05d}-samples.jsonl.gz"
        return desk.farm.store.presign(folder.key(path), name)

    return RedirectResponse(await desk.ask(call), 307)


@router.get("/{dataset}/shards/{shard}/stats")
async def stats(request: Request, dataset: str, shard: Number, caller: Reader) -> dict[str, Any]:
    """What was written down of a shard: counts, times, each file's length and hash, and what failed."""
    desk = desk_of(request)

    def call() -> dict[str, Any]:
        found = _shard(desk, caller, dataset, shard).stats(shard)
        if isinstance(found.get("failures"), list):
            found["failures"] = [_failure(one) for one in found["failures"]]
        return found

    return await desk.work(call)


def _failure(one: Any) -> Any:
    """What a shard notes of a failure, in the words that callers are told."""
    if not isinstance(one, dict) or "message" not in one:
        return one
    return {**one, "message": told(str(one.get("code")), str(one["message"]))}


@router.delete("/{dataset}/shards/{shard}", status_code=204, response_class=Response)
async def lose(request: Request, dataset: str, shard: Number, caller: Submitter) -> None:
    """Takes a damaged shard for lost, so that `start` has it made again."""
    desk = desk_of(request)

    def call() -> None:
        _shard(desk, caller, dataset, shard)
        Datasets(desk.farm).lose(dataset, shard)

    await desk.ask(call)


@router.get("/{dataset}/shards/{shard}/sheet", response_class=Response, responses=_WEBP)
async def contact_sheet(
    request: Request,
    dataset: str,
    shard: Number,
    caller: Reader,
    v: Annotated[str, Query(max_length=64, description="of a shard's address")] = "",
) -> Response:
    """A picture of a shard's first pictures, small and side by side."""
    desk = desk_of(request)
    folder = await desk.ask(_shard, desk, caller, dataset, shard)
    data = await desk.shrink(sheet, folder, shard)
    return Response(data, media_type="image/webp", headers={"Cache-Control": FOR_EVER if v else "private, no-cache"})


@router.get("/{dataset}/card", response_class=Response, responses=_MARKDOWN)
async def card(request: Request, dataset: str, caller: Reader) -> Response:
    """What an export of a whole dataset would say of itself, its README.md; while nothing is made, what it is to be."""
    desk = desk_of(request)

    def call() -> str:
        if planned_dataset(desk, caller, dataset).shards_done > MOST_OF_CARD:
            most = f"a card counts all shards, and these are more than the {MOST_OF_CARD:,} that a call waits for"
            raise NotFound(most, hint="an export has its card, README.md")
        return Datasets(desk.farm).card(dataset)

    return Response(await desk.work(call), media_type="text/markdown")


def _shard(desk: Desk, caller: Caller, name: str, number: int) -> Folder:
    """Where the dataset lies that has this shard. Raises NotFound."""
    found_dataset(desk, caller, name)
    folder = Folder(desk.farm.store, name)
    if not folder.has(number):
        raise NotFound("the dataset has no such shard")
    return folder


def _stats(desk: Desk, name: str, numbers: range) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """What is known of each of these shards, by number; None of those that are not there, nothing of damaged ones."""
    folder = Folder(desk.farm.store, name)

    def found(number: int) -> dict[str, Any] | None:
        try:
            return folder.found(number)
        except BadBlob:
            return {}

    with ThreadPoolExecutor(READERS) as pool:
        for start in range(numbers.start, numbers.stop, READERS):
            some = range(start, min(start + READERS, numbers.stop))
            yield from zip(some, pool.map(found, some), strict=True)
