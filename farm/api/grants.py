"""How does an admin give others tokens over HTTP, and take them back?"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from farm.api.asks import Ask
from farm.api.desk import desk_of
from farm.api.door import Door, needs
from farm.api.views import View, instant
from farm.tokens import MAX_LIFE_S, OWNER, SCOPES, Scope, Token

router = APIRouter(route_class=Door, prefix="/tokens", tags=["tokens"], dependencies=[needs("admin")])


class TokenAsk(Ask):
    """A token to be made."""

    owner: str = Field(pattern=f"^{OWNER}$", description="whose it is: their jobs are their own")
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(SCOPES))]
    life_s: float | None = Field(None, gt=0, le=MAX_LIFE_S, description="seconds until it expires; default: never")
    max_open_jobs: int | None = Field(
        None, ge=0, le=2**53 - 1, description="unended jobs at most; 0: any number; default: FARM_MAX_OPEN_JOBS"
    )


class TokenView(View):
    """A token, without its secret."""

    id: str
    owner: str
    scopes: list[str]
    max_open_jobs: int | None
    created: str
    expires: str | None


class MadeToken(TokenView):
    """A new token. `token` is not told again: what is stored is its hash."""

    token: str


@router.get("")
async def ls(request: Request) -> list[TokenView]:
    """The tokens that hold, by owner and age."""
    desk = desk_of(request)
    return [TokenView(**_facts(one)) for one in await desk.ask(desk.tokens.all)]


@router.post("", status_code=201)
async def create(request: Request, ask: TokenAsk) -> MadeToken:
    """Makes a token."""
    desk = desk_of(request)
    made, text = await desk.ask(desk.tokens.create, ask.owner, ask.scopes, ask.life_s, ask.max_open_jobs)
    return MadeToken(**_facts(made), token=text)


@router.delete("/{token}", status_code=204)
async def remove(request: Request, token: str) -> None:
    """Ends a token at once, with its sessions."""
    desk = desk_of(request)
    await desk.ask(desk.tokens.remove, token)


def _facts(token: Token) -> dict[str, object]:
    return {
        "id": token.id, "owner": token.owner, "scopes": [one for one in SCOPES if one in token.scopes],
        "max_open_jobs": token.max_open_jobs, "created": instant(token.created_ms) or "",
        "expires": instant(token.expires_ms),
    }  # fmt: skip
