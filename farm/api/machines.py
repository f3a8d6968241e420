"""What can the farm draw, in which queues, and who works on it?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, TypeAdapter

from farm.api.callers import Caller
from farm.api.desk import Desk, desk_of
from farm.api.door import Admin, Door, Reader, needs
from farm.api.views import View, instant
from farm.catalog import ADAPTED_AS
from farm.errors import NotFound
from farm.manual import about
from farm.records import QueueState, WorkerRecord
from farm.stage import Stage, kinds

router = APIRouter(route_class=Door, tags=["farm"])


class CheckpointView(View):
    """Base weights that a stage may name."""

    name: str
    kinds: list[str]
    family: str
    adapter_family: str = Field(description="the family of the adapters that go on it")
    space: str
    native: int
    licence: str
    pulled: bool
    default_for: list[str]
    recommended: dict[str, Any]
    source: str = Field(description="its repository, where it has one")
    size_bytes: int = Field(description="what its files take on the disk of the API")


class AdapterView(View):
    """Weights on top of a checkpoint's."""

    name: str
    type: str
    family: str
    licence: str
    pulled: bool
    source: str
    size_bytes: int


class CatalogView(View):
    """Checkpoints and adapters that a chain may name. Where their files lie is not told."""

    checkpoints: list[CheckpointView]
    adapters: list[AdapterView]


class KindView(View):
    """A stage kind: what it takes and gives, and its parameters as JSON Schema."""

    kind: str
    about: str
    takes: list[str]
    gives: list[str]
    scale: int
    multiple: int = Field(description="pixels: the sides of what it is given are multiples of it")
    parameters: dict[str, Any]
    fields: list[list[str]] = Field(description="name, type, default and meaning of each parameter, in words")

    @classmethod
    def of(cls, kind: str, stage: type[Stage]) -> KindView:
        """The view of a stage class."""
        told = about(kind, stage)
        return cls(**{**told, "parameters": told["schema"]})


class QueueView(View):
    """One queue: executions that are ready and running, and live workers that serve it."""

    queue: str
    ready: int
    running: int
    workers: int
    mean_s: float | None = Field(description="measured device-seconds of one execution; none before the first")
    wall_s: float | None = Field(description="measured seconds of the whole call that it is in")

    @classmethod
    def of(cls, state: QueueState) -> QueueView:
        """The view of a queue's state."""
        return cls(
            queue=state.queue, ready=state.ready, running=state.running, workers=state.live, mean_s=state.mean_s,
            wall_s=state.wall_s,
        )  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """What each worker did in the last minute, by its name: stages committed, and pictures finished."""

    stages: Mapping[str, float]
    images: Mapping[str, float]


class WorkerView(View):
    """One live worker. Its name, host and process are the operator's to know."""

    name: str | None
    host: str | None
    pid: int | None
    state: str
    draining: bool
    isolated_s: float
    queues: list[str]
    running: int
    device: str
    memory_bytes: int | None = Field(description="in use on a device; of a CPU's worker by its process")
    memory_total_bytes: int | None
    checkpoints: list[str] = Field(description="whose pipelines it holds")
    jobs: list[str] = Field(description="some of those that wait for what it runs; an admin is told")
    per_minute: float = Field(description="stages that it committed in the last minute")
    images_per_minute: float = Field(
        description="pictures that it finished in the last minute: jobs that it ended as done, by their last stage or "
        "by publishing what another job had drawn"
    )

    @classmethod
    def of(cls, worker: WorkerRecord, caller: Caller, rates: Rates) -> WorkerView:
        """The view of a record, as `caller` may see it."""
        told, info = caller.is_admin, worker.info
        return cls(
            name=worker.worker if told else None, host=worker.host if told else None, pid=worker.pid if told else None,
            state=worker.state, draining=worker.draining, isolated_s=worker.isolated_s, queues=list(worker.queues),
            running=len(worker.held), device=info.get("device", ""), memory_bytes=_bytes(info, "memory_bytes"),
            memory_total_bytes=_bytes(info, "memory_total_bytes"),
            checkpoints=[name for name in info.get("checkpoints", "").split(",") if name],
            jobs=list(worker.jobs) if told else [], per_minute=rates.stages.get(worker.worker, 0.0),
            images_per_minute=rates.images.get(worker.worker, 0.0),
        )  # fmt: skip


class Throughput(View):
    """Stages that were committed in each minute, the oldest minute first; the last one is not over yet."""

    minutes: list[str] = Field(description="when each begins")
    queues: dict[str, list[int]] = Field(description="so many in each minute, by queue")


@router.get("/catalog", dependencies=[needs("read")])
async def catalog(request: Request) -> CatalogView:
    """Checkpoints and adapters."""
    desk = desk_of(request)
    return await desk.ask(_catalog, desk)


def _catalog(desk: Desk) -> CatalogView:
    catalog, told = desk.farm.catalog, desk.farm.weights()
    entries = {**catalog.checkpoints, **catalog.adapters}
    rows = [{**row, "source": entries[row["name"]].repo or ""} for row in told]
    return CatalogView(
        checkpoints=[
            CheckpointView(
                **row,
                adapter_family=ADAPTED_AS.get(row["family"], row["family"]),
                default_for=[kind for kind, name in catalog.defaults.items() if name == row["name"]],
            )
            for row in rows
            if row["type"] == "checkpoint"
        ],
        adapters=[AdapterView(**row) for row in rows if row["type"] != "checkpoint"],
    )


@router.get("/stages", dependencies=[needs("read")], response_model=list[KindView])
async def stages(request: Request) -> Response:
    """The stage kinds that are installed."""
    return Response(await desk_of(request).ask(_stages), media_type="application/json")


@cache
def _stages() -> bytes:
    """All kinds as JSON, made once: what is installed stays so."""
    return TypeAdapter(list[KindView]).dump_json([KindView.of(kind, stage) for kind, stage in kinds().items()])


@router.get("/stages/{kind}", dependencies=[needs("read")])
async def stage(kind: str) -> KindView:
    """One stage kind."""
    if kind not in kinds():
        raise NotFound("there is no such stage kind")
    return KindView.of(kind, kinds()[kind])


@router.get("/queues", dependencies=[needs("read")])
async def queues(request: Request) -> list[QueueView]:
    """The queues: what is ready and running in each, and how many workers serve it."""
    desk = desk_of(request)
    return [QueueView.of(state) for state in await desk.ask(desk.farm.ledger.queues)]


@router.get("/stats", dependencies=[needs("read")])
async def stats(request: Request) -> dict[str, int]:
    """What the ledger has counted since it began: submitted, claims, commits, lapses and so on."""
    desk = desk_of(request)
    return await desk.ask(desk.farm.stats)


@router.get("/workers")
async def workers(request: Request, caller: Reader) -> list[WorkerView]:
    """The live workers."""
    desk = desk_of(request)
    found, rates = await desk.ask(lambda: (desk.farm.ledger.workers(), _last_minute(desk)))
    return [WorkerView.of(worker, caller, rates) for worker in found]


@router.get("/throughput", dependencies=[needs("read")])
async def throughput(request: Request, minutes: Annotated[int, Query(ge=1, le=1440)] = 60) -> Throughput:
    """How many stages were done in each of the last minutes, queue by queue."""
    desk = desk_of(request)
    found = await desk.ask(desk.farm.ledger.minutes, minutes)
    names = sorted({name for one in found for name in one.queues})
    return Throughput(
        minutes=[instant(one.t) or "" for one in found],
        queues={name: [one.queues.get(name, 0) for one in found] for name in names},
    )


@router.post("/workers/{worker}/drain")
async def drain(request: Request, worker: str, caller: Admin) -> WorkerView:
    """Gives a worker nothing more; what it runs it finishes."""
    return await _drain(request, worker, caller, on=True)


@router.post("/workers/{worker}/resume")
async def resume(request: Request, worker: str, caller: Admin) -> WorkerView:
    """Gives a drained worker work again."""
    return await _drain(request, worker, caller, on=False)


async def _drain(request: Request, worker: str, caller: Caller, *, on: bool) -> WorkerView:
    desk = desk_of(request)

    def call() -> WorkerView:
        def find() -> Any:
            return next((one for one in desk.farm.ledger.workers() if one.worker == worker), None)

        if find() is None:
            raise NotFound("there is no such live worker")
        desk.farm.ledger.drain(worker, on)
        if (found := find()) is None:
            raise NotFound("there is no such live worker")
        return WorkerView.of(found, caller, _last_minute(desk))

    return await desk.ask(call)


def _last_minute(desk: Desk) -> Rates:
    """What each worker did in the last sixty seconds, the minute before taken as even."""
    before, now = desk.farm.ledger.minutes(2)
    left = 1 - max(0.0, min((time.time() * 1000 - now.t) / 60000, 1.0))

    def rate(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, float]:
        return {name: round(old.get(name, 0) * left + new.get(name, 0), 1) for name in {*old, *new}}

    return Rates(rate(before.workers, now.workers), rate(before.images, now.images))


def _bytes(info: Mapping[str, str], name: str) -> int | None:
    """A number of bytes that a worker says; None where it says none."""
    return int(info[name]) if info.get(name, "").isdigit() else None
