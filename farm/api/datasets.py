"""How are datasets listed, looked at and steered over HTTP?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from farm.api.asks import Ask
from farm.api.callers import Caller
from farm.api.dataset_views import DatasetDetail, DatasetPage, DatasetView, PlanView, Snippet
from farm.api.desk import Desk, desk_of
from farm.api.door import Door, Reader, Submitter
from farm.api.views import BASE
from farm.dataset.desk import Datasets
from farm.dataset.folder import Folder, datasets
from farm.dataset.plans import Plan
from farm.dataset.status import Status
from farm.errors import Conflict, NotFound
from farm.named import NAME

router = APIRouter(route_class=Door, prefix="/datasets", tags=["datasets"])
READERS = 8
"""Objects that are read at the same time: each read waits for the store."""
PAGE = 50
"""Datasets of one page."""
_LOOKS = {"planning": "it is still being planned", "refused": "it was refused: ask for it again"}


class Steer(Ask):
    """Another place in the line."""

    priority: int = Field(ge=0, le=100, description="among bulk jobs; higher runs first")


@router.get("", response_model=DatasetPage)
async def ls(
    request: Request,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
    cursor: Annotated[str | None, Query(pattern=NAME, description="`next` of the page before")] = None,
) -> Response:
    """The caller's datasets, by name; an admin's are everybody's."""
    desk = desk_of(request)

    def call() -> Response:
        names = [name for name in datasets(desk.farm.store) if cursor is None or name > cursor]
        found, last = list[DatasetView](), None
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(names), READERS):
                some = names[start : start + READERS]
                for name, status in zip(some, pool.map(partial(_status, desk, caller), some), strict=True):
                    if len(found) == limit:
                        page = DatasetPage(datasets=found, next=last)
                        return Response(page.model_dump_json(), media_type="application/json")
                    if status is not None:
                        found.append(DatasetView.of(status))
                    last = name
        return Response(DatasetPage(datasets=found).model_dump_json(), media_type="application/json")

    return await desk.work(call)


@router.get("/{dataset}")
async def show(request: Request, dataset: str, caller: Reader) -> DatasetDetail:
    """A dataset: how far it is, what it was planned to be, and how it is loaded."""
    desk = desk_of(request)

    def call() -> DatasetDetail:
        status = found_dataset(desk, caller, dataset)
        plan = None if status.state in _LOOKS else PlanView.of(Datasets(desk.farm).planned(dataset))
        load = list(_load(desk, status)) if plan else []
        return DatasetDetail(**DatasetView.of(status).model_dump(), plan=plan, load=load)

    return await desk.work(call)


@router.get("/{dataset}/plan")
async def plan(request: Request, dataset: str, caller: Reader) -> Plan:
    """All of what a dataset was planned to be; who reads its shards holds them against this."""
    desk = desk_of(request)

    def call() -> Plan:
        planned_dataset(desk, caller, dataset)
        return Folder(desk.farm.store, dataset).plan()

    return await desk.ask(call)


@router.post("/{dataset}/start")
async def start(request: Request, dataset: str, caller: Submitter) -> DatasetView:
    """Has a dataset run, or go on; interactive jobs go before it."""
    return await _steer(request, dataset, caller, Datasets.start)


@router.post("/{dataset}/pause")
async def pause(request: Request, dataset: str, caller: Submitter) -> DatasetView:
    """Holds a dataset; what runs may still end, nothing new begins."""
    return await _steer(request, dataset, caller, Datasets.pause)


@router.post("/{dataset}/resume")
async def resume(request: Request, dataset: str, caller: Submitter) -> DatasetView:
    """Lets a paused dataset go on."""
    return await _steer(request, dataset, caller, Datasets.start)


@router.post("/{dataset}/retry")
async def retry(request: Request, dataset: str, caller: Submitter) -> DatasetView:
    """Tries again what of a dataset has failed, once every sample was tried."""
    return await _steer(request, dataset, caller, Datasets.retry)


@router.patch("/{dataset}")
async def move(request: Request, dataset: str, ask: Steer, caller: Submitter) -> DatasetView:
    """Puts a dataset before or behind other bulk jobs."""
    return await _steer(request, dataset, caller, lambda desk, name: desk.prioritise(name, ask.priority))


@router.delete("/{dataset}", status_code=204, response_class=Response)
async def delete(request: Request, dataset: str, caller: Submitter) -> None:
    """Deletes a dataset that does not run: its plan, shards and jobs. What was exported stays."""
    desk = desk_of(request)

    def call() -> None:
        found_dataset(desk, caller, dataset)
        Datasets(desk.farm).rm(dataset)

    await desk.work(call)


async def _steer(request: Request, dataset: str, caller: Caller, act: Callable[[Datasets, str], Status]) -> DatasetView:
    """The dataset after `act`."""
    desk = desk_of(request)

    def call() -> DatasetView:
        planned_dataset(desk, caller, dataset)
        return DatasetView.of(act(Datasets(desk.farm), dataset))

    return await desk.work(call)


def _status(desk: Desk, caller: Caller, name: str) -> Status | None:
    """How far a dataset is that the caller may see; None of another one."""
    datasets = Datasets(desk.farm)
    try:
        # Of somebody else's no more is read than whose it is.
        return datasets.status(name) if caller.is_admin or datasets.owner(name) == caller.owner else None
    except NotFound:  # its planning broke off, or it is being deleted
        return None


def found_dataset(desk: Desk, caller: Caller, name: str) -> Status:
    """How far the dataset is.

    Raises:
        NotFound: there is none, or it is somebody else's, which is told alike.
    """
    status = _status(desk, caller, name) if re.fullmatch(NAME, name) else None
    if status is None:
        raise NotFound("there is no such dataset")
    return status


def planned_dataset(desk: Desk, caller: Caller, name: str) -> Status:
    """The same of one that has a plan. Raises NotFound, Conflict."""
    status = found_dataset(desk, caller, name)
    if status.state in _LOOKS:
        raise Conflict(_LOOKS[status.state], hint=f"`farm dataset status {name}` says how far it is, or what is wrong")
    return status


def _load(desk: Desk, status: Status) -> Iterator[Snippet]:
    """How its shards come into a folder of its name, and are read there; and how without that."""
    name, store = status.name, desk.farm.store
    shards, endpoint = store.uri(Folder(store, name).key("shards")), store.endpoint
    yield Snippet(
        loader="fetch",
        text="# FARM_TOKEN is a token of yours; one that may only read is enough\n"
        'curl -fL --create-dirs -H "Authorization: Bearer $FARM_TOKEN" \\\n'
        f'  -o "{name}/#1.#2" "$FARM_URL{BASE}/datasets/{name}/shards/[00000-{status.shards - 1:05d}]/{{tar,parquet}}"',
    )
    yield Snippet(
        loader="datasets",
        text="from datasets import load_dataset\n\n"
        f'dataset = load_dataset("webdataset", data_files={{"train": "{name}/*.tar"}}, split="train", streaming=True)\n'
        "print(next(iter(dataset)))",
    )
    yield Snippet(
        loader="webdataset",
        text="from glob import glob\n\nimport webdataset\n\n"
        f'files = sorted(glob("{name}/*.tar"))\n'
        'pairs = webdataset.WebDataset(files, shardshuffle=False).decode("pil")\n'
        'for picture, prompt, known in pairs.to_tuple("png;webp;jpg", "txt", "json"):\n'
        '    print(picture.size, prompt, known["seed"])',
    )
    yield Snippet(
        loader="parquet",
        text=f'import pyarrow.dataset\n\ntable = pyarrow.dataset.dataset("{name}", format="parquet", '
        "exclude_invalid_files=True).to_table()\nprint(table.num_rows, table.column_names)",
    )
    yield Snippet(
        loader="bucket",
        # Not streamed: `datasets` gives s3fs a block size then, which that does not take.
        text="# pip install s3fs; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: a key that may read the bucket\n"
        "from datasets import load_dataset\n\n"
        f'server = {{"client_kwargs": {{"endpoint_url": "{endpoint}"}}}}\n'
        f'dataset = load_dataset("webdataset", data_files={{"train": "{shards}/*.tar"}}, split="train", '
        "storage_options=server)\nprint(len(dataset), dataset.features)",
    )
    yield Snippet(
        loader="sync",
        text=f"aws s3 sync --endpoint-url {endpoint} {shards} {name}   # with the same key",
    )
    yield Snippet(
        loader="export",
        text="# From afar, with FARM_URL and FARM_TOKEN; where the farm runs, `export` alone.\n"
        "# Also --format webdataset, imagefolder.\n"
        f"farm dataset export {name} -o {name}-export --format parquet   # its README.md has the lines that load it\n"
        f"farm dataset fetch {name} -o {name}                            # the shards as they are",
    )
