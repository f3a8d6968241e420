"""What can be imported from the farm's top level: `Farm`, the client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from farm.client import Farm

__all__ = ["Farm", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The client, imported on first use: `import farm` stays free of its dependencies."""
    if name == "Farm":
        from farm.client import Farm

        return Farm
    raise AttributeError(f"module 'farm' has no attribute {name!r}")
