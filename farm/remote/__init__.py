"""How does a program use a farm on another machine? `RemoteFarm` and `AsyncFarm` say it over HTTP, in `Farm`'s words.

`connect` gives whichever farm is meant here. What is said is written once, as steps without any input or output
(`words`, `asks`, on the ground of `wire`); `sync` and `awaited` play them.
"""

from __future__ import annotations

from farm.protocol import AnyFarm
from farm.remote.awaited import AsyncFarm, AsyncJob
from farm.remote.sync import RemoteFarm, RemoteJob
from farm.settings import Settings

__all__ = ["AsyncFarm", "AsyncJob", "RemoteFarm", "RemoteJob", "connect"]


def connect(url: str | None = None, token: str | None = None) -> AnyFarm:
    """The farm at `url`, or that FARM_URL and FARM_TOKEN name; where neither names one, the one of this machine."""
    settings = Settings.load()
    url = settings.url if url is None else url
    if url:
        return RemoteFarm(url, token, settings)
    from farm.client import Farm

    return Farm(settings)
