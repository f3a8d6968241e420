"""Is the API alive, and can it do its work?

Open to everybody, and telling nothing but that.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from farm.api.desk import Desk, desk_of
from farm.api.views import View
from farm.errors import Unavailable

router = APIRouter(tags=["health"])


class Alive(View):
    """All is well."""

    status: str = "ok"


@router.get("/healthz")
async def healthz() -> Alive:
    """The process answers; nothing else is asked."""
    return Alive()


@router.get("/readyz")
async def readyz(request: Request) -> Alive:
    """The ledger and the store answer; 503 where one does not, and `part` says which."""
    desk = desk_of(request)
    await desk.ask(_look, desk)
    return Alive()


def _look(desk: Desk) -> None:
    part = "ledger"
    try:
        desk.farm.ledger.ping()
        part = "store"
        desk.farm.inbox.exists("0" * 64)
    except Unavailable as error:
        error.part = part
        raise
