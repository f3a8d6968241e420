"""Is a farm on another machine well, of which version is it, and whom does it take the caller for?"""

from __future__ import annotations

from farm.remote.wire import Call, Steps, ask, get


def ready() -> Steps[None]:
    """Nothing, where the API, its ledger and its store answer. Raises Unavailable where one does not."""
    yield from ask(Call("GET", "/readyz"))


def version() -> Steps[str]:
    """The version of the package that serves the API."""
    return str((yield from get("openapi.json"))["info"]["version"])


def caller() -> Steps[str]:
    """Whose token it is, and what it may do. Raises Unauthorized where it does not hold."""
    found = yield from get("session")
    return f"{found['owner'] or 'nobody'}: {', '.join(found['scopes'])}"
