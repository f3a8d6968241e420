"""Of which parts is the HTTP API made?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from farm import __version__
from farm.api import (
    archive,
    artifacts,
    chains,
    check,
    dataset_asks,
    dataset_files,
    dataset_shards,
    datasets,
    events,
    fork,
    grants,
    health,
    jobs,
    login,
    machines,
    many,
    page,
    papers,
    problems,
    prompts,
    quarantine,
    runs,
    tags,
    uploads,
)
from farm.api.courier import Patience
from farm.api.desk import Desk
from farm.api.document import describe
from farm.api.guard import Guard
from farm.api.views import BASE
from farm.reconcile import reconciling
from farm.settings import Settings

PATIENCE = Patience()


def make_app(
    settings: Settings, *, auth: bool = True, heartbeat_s: float = 15.0, patience: Patience = PATIENCE
) -> FastAPI:
    """The app on the farm of `settings`. Without `auth` whoever reaches it may do everything.

    `heartbeat_s`: a quiet event stream says so often that it is alive, seconds. `patience`: with receivers of webhooks.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        desk = Desk(settings, auth=auth, heartbeat_s=heartbeat_s)
        app.state.desk = desk
        await desk.warm()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(desk.hub.run)
                tasks.start_soon(desk.deliverer(patience).run)
                with reconciling(settings, desk.farm.ledger, desk.farm.broker, desk.name):
                    yield
                tasks.cancel_scope.cancel()
        finally:
            desk.close()

    # No pages of documentation: theirs need scripts from elsewhere.
    app = FastAPI(
        title="latent-farm", version=__version__, lifespan=lifespan, generate_unique_id_function=_name,
        openapi_url=f"{BASE}/openapi.json", docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    api = APIRouter(prefix=BASE)
    # Events and artifacts first: their addresses go on where those of jobs and runs end.
    for room in (
        events, archive, artifacts, fork, papers, many, tags, jobs, runs, uploads, check, chains, machines, quarantine,
        grants, prompts, dataset_files, dataset_asks, dataset_shards, datasets,
    ):  # fmt: skip
        api.include_router(room.router)
    api.include_router(login.router)
    api.include_router(login.open_router)
    app.include_router(api)
    app.include_router(health.router)
    files = page.read_files(page.BUILT)
    app.include_router(page.routes(files))
    problems.install(app, page.lost(files))
    app.add_middleware(Guard, max_upload_bytes=settings.max_upload_bytes, max_dataset_bytes=settings.max_dataset_bytes)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app, settings)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation says
    return app


def _name(route: APIRoute) -> str:
    """What the call is called in the document."""
    return f"{route.tags[0]}.{route.name}"
