"""What can be imported from the farm's top level? The clients: `Farm` here, `RemoteFarm` and `AsyncFarm` over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from farm.client import Farm
    from farm.remote import AsyncFarm, RemoteFarm, connect

__all__ = ["AsyncFarm", "Farm", "RemoteFarm", "__version__", "connect"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The clients, imported on first use: `import farm` stays free of their dependencies."""
    if name == "Farm":
        from farm.client import Farm

        return Farm
    if name in ("AsyncFarm", "RemoteFarm", "connect"):
        from farm import remote

        return getattr(remote, name)
    raise AttributeError(f"module 'farm' has no attribute {name!r}")
