"""Is the API alive, and can it do its work?

Open to everybody, and telling nothing but that.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from farm.api.desk import Desk, desk_of
from farm.api.views import View

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
    """The ledger and the store answer; 503 where one does not."""
    desk = desk_of(request)
    await desk.ask(_look, desk)
    return Alive()


def _look(desk: Desk) -> None:
    desk.farm.ledger.ping()
    desk.farm.inbox.exists("0" * 64)
