"""How does the dashboard log in, and learn who it is?"""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter, Request, Response
from pydantic import Field

from farm.api.asks import Ask
from farm.api.callers import Caller
from farm.api.desk import desk_of
from farm.api.door import Door, Known, caller_of, cookie_of, identify, is_secure, prove, refuse_pages
from farm.api.sessions import second_word
from farm.api.views import View
from farm.errors import NotFound, Unavailable
from farm.tokens import SCOPES


class Lobby(Door):
    """A route that is open to everybody but pages of elsewhere."""

    async def enter(self, request: Request) -> None:
        """Refuses what a browser sends for another site's page."""
        refuse_pages(request)


open_router = APIRouter(route_class=Lobby, prefix="/session", tags=["session"])
router = APIRouter(route_class=Door, prefix="/session", tags=["session"])


class Login(Ask):
    """What proves who one is."""

    token: str = Field(min_length=1, max_length=200, description="as `farm token create` printed it")


class SessionView(View):
    """Who one is, and what one may do."""

    owner: str
    scopes: list[str]
    csrf_token: str | None = Field(description="for X-CSRF-Token; none where the call came without a session's cookie")
    last_event: str = Field(
        "",
        description="the last event there is, where one asks who one is: who begins `GET /events` with it as `last` "
        "misses nothing of what is listed meanwhile",
    )

    @classmethod
    def of(cls, caller: Caller, last_event: str = "") -> SessionView:
        """The view of a caller."""
        scopes = [scope for scope in SCOPES if scope in caller.scopes]
        word = second_word(caller.session) if caller.session else None
        return cls(owner=caller.owner, scopes=scopes, csrf_token=word, last_event=last_event)


@open_router.post("", status_code=201)
async def begin(request: Request, response: Response, login: Login) -> SessionView:
    """Begins a session: its cookie stands for the token until it has been unused for twelve hours."""
    desk = desk_of(request)
    if not desk.auth:
        return SessionView.of(await identify(request))
    token = await prove(request, login.token)
    await desk.ask(desk.limits.write, token.id)
    secret = await desk.ask(desk.sessions.begin, token)
    # Without an age: the farm knows it better, and a browser that is closed forgets it.
    response.set_cookie(cookie_of(request), secret, httponly=True, samesite="strict", secure=is_secure(request))
    return SessionView.of(caller_of(desk, token, secret))


@router.get("")
async def show(request: Request, caller: Known) -> SessionView:
    """Who one is."""
    desk, last = desk_of(request), ""
    with suppress(Unavailable):  # the next call tells of it
        last = await desk.ask(desk.farm.ledger.last_event)
    return SessionView.of(caller, last)


@router.delete("", status_code=204)
async def end(request: Request, response: Response, caller: Known) -> None:
    """Ends the session, for every window of the browser."""
    if not caller.session:
        raise NotFound("the call came without a session")
    desk = desk_of(request)
    await desk.ask(desk.sessions.end, caller.session)
    response.delete_cookie(cookie_of(request), httponly=True, samesite="strict", secure=is_secure(request))
