"""How does a program use a farm on another machine? `RemoteFarm` and `AsyncFarm` say it over HTTP, in `Farm`'s words.

`connect` gives whichever farm is meant here. What is said is written once, as steps without any input or output
(`words`, `asks`, on the ground of `wire`); `sync` and `awaited` play them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from farm.settings import Settings

if TYPE_CHECKING:
    from farm.protocol import AnyFarm
    from farm.remote.awaited import AsyncFarm
    from farm.remote.awaited_job import AsyncJob
    from farm.remote.datasets import RemoteDatasets
    from farm.remote.job import RemoteJob
    from farm.remote.sync import RemoteFarm

__all__ = ["AsyncFarm", "AsyncJob", "RemoteDatasets", "RemoteFarm", "RemoteJob", "connect"]
_MODULES = {
    "AsyncFarm": "awaited", "AsyncJob": "awaited_job", "RemoteDatasets": "datasets", "RemoteFarm": "sync",
    "RemoteJob": "job",
}  # fmt: skip


def connect(url: str | None = None, token: str | None = None) -> AnyFarm:
    """The farm at `url`, or that FARM_URL and FARM_TOKEN name; where neither names one, the one of this machine.

    Raises:
        ModuleNotFoundError: there is an address, and the extra `client` is not installed.
    """
    settings = Settings.load()
    url = settings.url if url is None else url
    if url:
        from farm.remote import RemoteFarm

        return RemoteFarm(url, token, settings)
    from farm.client import Farm

    return Farm(settings)


def __getattr__(name: str) -> Any:
    """The clients, imported on first use: a farm of this machine needs nothing that speaks HTTP.

    Raises:
        ModuleNotFoundError: the extra `client` is not installed.
    """
    if name not in _MODULES:
        raise AttributeError(f"module 'farm.remote' has no attribute {name!r}")
    try:
        return getattr(import_module(f"farm.remote.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        told = f"a farm elsewhere needs {error.name}: pip install 'latent-farm[client]'"
        raise ModuleNotFoundError(told, name=error.name) from None
