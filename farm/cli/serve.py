"""How is the API started, and who gets a token for it?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli.outcome import Outcome, Table, group, say, settings_here, usage
from farm.errors import Unavailable
from farm.records import instant

if TYPE_CHECKING:
    from farm.settings import Settings
    from farm.tokens import Token, Tokens

app = group("token", "Tokens of those who call the API.")
DAY_S = 86400


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any that is free.")] = 8400,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Ask nobody for a token; this machine only.")] = False,
) -> Outcome:
    """Serve the HTTP API. The first start prints an admin's token, once.

    \b
    farm serve
    farm serve --host 0.0.0.0 --port 8400
    """
    settings = settings_here("serve")
    try:
        from farm.api.serve import serve as run
    except ModuleNotFoundError as error:
        raise Unavailable(f"the API needs {error.name}", hint="pip install 'latent-farm[api]'") from None
    run(settings, host, port, auth=not no_auth, say=say)
    return Outcome()


@app.command()
def create(
    owner: Annotated[str, typer.Option(help="Whose token it is: their jobs are their own.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, submit or admin; repeatable. [read and submit]")
    ] = None,
    days: Annotated[float | None, typer.Option(help="Expire after so many days. [never]")] = None,
    max_open_jobs: Annotated[
        int | None, typer.Option(min=0, help="Unended jobs at most; 0: no limit. [FARM_MAX_OPEN_JOBS]")
    ] = None,
) -> Outcome:
    """Make a token and print it, once: what is stored is its hash.

    \b
    farm token create --owner ada
    farm token create --owner ops --scope admin --days 30
    """
    from farm.tokens import MAX_LIFE_S

    if days is not None and not 0 < days * DAY_S <= MAX_LIFE_S:
        raise usage(f"--days {days:g}: more than 0 and at most {MAX_LIFE_S // DAY_S}")
    with _open(settings_here("token")) as tokens:
        life_s = None if days is None else days * DAY_S
        token, text = tokens.create(owner, scope or ["read", "submit"], life_s, max_open_jobs)
    return Outcome({**_told(token), "token": text}, [text])


@app.command()
def ls() -> Outcome:
    """List the tokens that hold, without their secrets.

    \b
    farm token ls
    """
    with _open(settings_here("token")) as tokens:
        data = [_told(token) for token in tokens.all()]
    rows = [
        (one["id"], one["owner"], ",".join(one["scopes"]), one["created"], one["expires"] or "never") for one in data
    ]
    return Outcome(data, [Table(("ID", "OWNER", "SCOPES", "CREATED", "EXPIRES"), rows)])


@app.command()
def rm(
    token: Annotated[str, typer.Argument(metavar="ID", help="Id of a token, as `farm token ls` shows it.")],
) -> Outcome:
    """End a token at once.

    \b
    farm token rm 0f3a9c2b77d1
    """
    with _open(settings_here("token")) as tokens:
        tokens.remove(token)
    return Outcome({"id": token, "removed": True}, [f"{token}  removed"])


@contextmanager
def _open(settings: Settings) -> Iterator[Tokens]:
    """The tokens of the farm that the settings name."""
    from farm.ledger import FAN
    from farm.scripts import Server
    from farm.tokens import Tokens

    server = Server(settings, FAN)
    try:
        yield Tokens(server)
    finally:
        server.close()


def _told(token: Token) -> dict[str, Any]:
    """A token as data, without its hash."""
    scopes = [scope for scope in ("read", "submit", "admin") if scope in token.scopes]
    times = {"created": instant(token.created_ms), "expires": instant(token.expires_ms)}
    return {"id": token.id, "owner": token.owner, "scopes": scopes, "max_open_jobs": token.max_open_jobs, **times}
