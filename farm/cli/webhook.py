"""Who is told when something has ended, and how does the operator look after that?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli.outcome import Outcome, Table, group, settings_here
from farm.errors import Unavailable
from farm.records import instant

if TYPE_CHECKING:
    from farm.webhooks import Endpoint, Health, Webhooks

app = group("webhook", "Receivers that are told when jobs and runs have ended.")
Id = Annotated[str, typer.Argument(metavar="ID", help="Id of an endpoint, as `farm webhook ls` shows it.")]


@app.command()
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where messages are sent to, by POST.")],
    owner: Annotated[str, typer.Option(help="Whose jobs are told. [everybody's]")] = "",
    event: Annotated[
        list[str] | None, typer.Option(help="job.done, job.failed, …, dataset.done; repeatable. [all]")
    ] = None,
) -> Outcome:
    """Add a receiver and print the secret that it checks signatures by, once. Signed as Standard Webhooks.

    \b
    farm webhook create https://example.org/hook --owner ada --event job.done --event job.failed
    """
    with _open() as webhooks:
        endpoint, secret = webhooks.create(url, owner, event or ())
    return Outcome({**_told(endpoint), "secret": secret}, [f"{endpoint.id}  {secret}"])


@app.command()
def ls() -> Outcome:
    """List the receivers, and how they fare.

    \b
    farm webhook ls
    """
    from farm.webhooks import Health

    with _open() as webhooks:
        health = webhooks.health()
        data = [
            {**_told(one), **_fares(health.get(one.id, Health())), "waiting": webhooks.waiting(one.id)}
            for one in webhooks.all()
        ]
    rows = [
        (one["id"], one["state"], one["waiting"], one["given_up"], one["said"], one["owner"] or "everybody", one["url"])
        for one in data
    ]
    return Outcome(data, [Table(("ID", "STATE", "WAITING", "GIVEN UP", "LAST", "OWNER", "URL"), rows)])


@app.command()
def rm(endpoint: Id) -> Outcome:
    """Remove a receiver, with the messages that wait for it.

    \b
    farm webhook rm 0f3a9c2b77d1
    """
    with _open() as webhooks:
        webhooks.remove(endpoint)
    return Outcome({"id": endpoint, "removed": True}, [f"{endpoint}  removed"])


@app.command()
def rotate(endpoint: Id) -> Outcome:
    """Give a receiver a new secret and print it, once. The old one signs along for a day.

    \b
    farm webhook rotate 0f3a9c2b77d1
    """
    with _open() as webhooks:
        changed, secret = webhooks.rotate(endpoint)
    return Outcome({**_told(changed), "secret": secret}, [f"{changed.id}  {secret}"])


@app.command()
def test(endpoint: Id) -> Outcome:
    """Send a message now, from here. A disabled receiver that takes it is enabled again.

    \b
    farm webhook test 0f3a9c2b77d1
    """
    try:
        import anyio

        from farm.api.messages import trial
        from farm.api.posting import open_client, post
    except ModuleNotFoundError as error:
        raise Unavailable(f"a message needs {error.name}", hint="pip install 'latent-farm[api]'") from None
    from farm.webhooks import now_ms

    async def send(found: Endpoint) -> Any:
        message = trial(found.id, now_ms())
        async with open_client() as client:
            return await post(client, found, message.id, message.body)

    with _open() as webhooks:
        found = webhooks.get(endpoint)
        attempt = anyio.run(send, found)
        if attempt.arrived:
            webhooks.enable(found.id)
    data = {"id": found.id, "arrived": attempt.arrived, "said": attempt.said}
    refused = None if attempt.arrived else Unavailable(f"the receiver has not taken it: {attempt.said}")
    return Outcome(data, [f"{found.id}  {attempt.said}"] if attempt.arrived else [], refused)


@contextmanager
def _open() -> Iterator[Webhooks]:
    """The endpoints of the farm that the settings name."""
    from farm.ledger import FAN
    from farm.scripts import Server
    from farm.webhooks import Webhooks

    server = Server(settings_here("webhook"), FAN)
    try:
        yield Webhooks(server)
    finally:
        server.close()


def _told(endpoint: Endpoint) -> dict[str, Any]:
    """An endpoint as data, without its secrets."""
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "owner": endpoint.owner,
        "events": list(endpoint.events),
        "created": instant(endpoint.created_ms),
    }


def _fares(health: Health) -> dict[str, Any]:
    """How an endpoint fares, as data."""
    state = "disabled" if health.disabled_ms else "failing" if health.failing_since_ms else "ok"
    return {
        "state": state,
        "said": health.why or health.said,
        "since": instant(health.disabled_ms or health.failing_since_ms),
        "last": instant(health.last_ms),
        "given_up": health.given_up,
    }
