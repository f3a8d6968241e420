"""Which chains have a name, and how is one saved, replaced and deleted over HTTP?"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import Field

from farm.api.asks import Ask, check_images, grant, written
from farm.api.callers import Caller
from farm.api.desk import UNKNOWN, Desk, desk_of
from farm.api.door import Door, Reader, Submitter, needs
from farm.api.views import View
from farm.chain import parse_chain
from farm.chains import NamedChain, check_name
from farm.named import NAME
from farm.stage import Prompt

router = APIRouter(route_class=Door, prefix="/chains", tags=["farm"])


class ChainView(View):
    """A chain that has a name: the catalog's, or one that somebody saved."""

    name: str
    description: str
    stages: list[dict[str, Any]]
    fields: dict[str, Any] = Field(description="what is the chain's own: its prompts, `fit`, `keep` and so on")
    owner: str = Field(description="who saved it; empty for the catalog's, and for one that was saved past the API")
    saved: str | None = Field(description="when it was saved; none for the catalog's")

    @classmethod
    def of(cls, found: NamedChain) -> ChainView:
        """The view of a named chain."""
        return cls(**found.facts)


class SaveAsk(Ask):
    """A chain to be saved, with what stands beside its stages."""

    chain: str | dict[str, Any] = Field(description="a chain as in a chain file, or the name of one that is copied")
    description: Prompt = Field("", description="what it gives")
    replace: bool = Field(False, description="whether it takes the place of the one that has this name")


@router.get("", dependencies=[needs("read")], response_model=list[ChainView])
async def chains(
    request: Request,
    saved: Annotated[bool, Query(description="false: the catalog's alone, for which no store is asked")] = True,
) -> list[ChainView]:
    """The chains that have a name: the catalog's, then those that were saved."""
    desk = desk_of(request)
    return [ChainView.of(one) for one in await desk.ask(desk.farm.chains.ls, saved=saved)]


@router.get("/{name}")
async def chain(request: Request, name: str, caller: Reader) -> ChainView:
    """One of them; the images that its stages name are the caller's to name from then on."""
    desk = desk_of(request)

    def call() -> ChainView:
        found = desk.farm.chains.show(name)
        grant(found, desk.kept, caller)
        return ChainView.of(found)

    return await desk.ask(call)


@router.put("/{name}", responses={201: {"model": ChainView, "description": "It is saved."}})
async def save_chain(
    request: Request,
    response: Response,
    name: Annotated[str, Path(json_schema_extra={"pattern": NAME})],
    ask: SaveAsk,
    caller: Submitter,
) -> ChainView:
    """Saves a chain under a name, checked as at a submit; everybody may use it, its owner or an admin replace it.

    The same once more is the same.
    """
    desk = desk_of(request)
    found, fresh = await desk.decode(UNKNOWN, _save, desk, caller, name, ask)
    response.status_code = 201 if fresh else 200
    return ChainView.of(found)


def _save(desk: Desk, caller: Caller, name: str, ask: SaveAsk) -> tuple[NamedChain, bool]:
    """The saved chain, and whether there was none of this name."""
    check_name(name)
    asked = parse_chain(written(desk.farm, desk.kept, caller, ask.chain))
    check_images(asked, desk.kept, caller)
    desk.farm.edges_of(asked, images=True)
    told = asked.model_dump(mode="json", exclude_unset=True)
    who: dict[str, Any] = {"owner": caller.owner, "admin": caller.is_admin}
    return desk.farm.chains.save(name, told, ask.description, replace=ask.replace, **who)


@router.delete("/{name}", status_code=204, response_class=Response)
async def delete_chain(request: Request, name: str, caller: Submitter) -> None:
    """Deletes a saved chain; jobs and datasets that were asked for with it stay as they are."""
    desk = desk_of(request)
    await desk.ask(desk.farm.chains.delete, name, owner=caller.owner, admin=caller.is_admin)
