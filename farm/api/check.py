"""Is a chain possible, and what passes between its stages? Asked without submitting anything."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from farm.api.asks import Ask, check_images, written
from farm.api.callers import Caller
from farm.api.desk import UNKNOWN, Desk, desk_of
from farm.api.door import Door, Submitter
from farm.api.views import PlannedView, View
from farm.chain import parse_chain
from farm.stage import Size

router = APIRouter(route_class=Door, prefix="/chains", tags=["farm"])


class CheckAsk(Ask):
    """A chain to be looked at."""

    chain: str | dict[str, Any] = Field(description="a chain's name, or a chain as in a chain file")
    image_size: Annotated[list[Annotated[int, Field(ge=1, le=999999)]], Field(min_length=2, max_length=2)] | None = (
        Field(None, description="width and height of the input image, pixels; default: the checkpoint's own")
    )
    images: bool = Field(False, description="whether the images that stages name are looked at, too")


class Checked(View):
    """The typed stages of a chain; `image_size` is that of its input image, where it takes one."""

    image_size: list[int] | None
    stages: list[PlannedView]


@router.post("/check")
async def check(request: Request, ask: CheckAsk, caller: Submitter) -> Checked:
    """Checks a chain as a submit would, without an input image."""
    desk = desk_of(request)
    if ask.images:
        return await desk.decode(UNKNOWN, _check, desk, caller, ask)
    return await desk.work(_check, desk, caller, ask)


def _check(desk: Desk, caller: Caller, ask: CheckAsk) -> Checked:
    chain = parse_chain(written(desk.farm, desk.kept, caller, ask.chain))
    check_images(chain, desk.kept, caller)
    found, size = desk.farm.edges_of(chain, Size(*ask.image_size) if ask.image_size else None, images=ask.images)
    return Checked(image_size=size and list(size), stages=[PlannedView(**one) for one in found])
