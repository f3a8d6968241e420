"""Whose is a stored image, and may a chain name it?

The store knows bytes, not owners: who has uploaded an image is marked in the ledger's Redis, for the retention.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from farm.chain import Chain
from farm.plan import wrong
from farm.scripts import Server
from farm.stage import STORED

Owns = Callable[[str], bool]
"""Whether the image of this SHA-256 (hex) may be named."""
_STORED = re.compile(f"{STORED}[0-9a-f]{{64}}")


def own_image(server: Server, owner: str, sha256: str, retention_s: str) -> None:
    """Notes that the owner may name the stored image. Raises Unavailable."""
    server.run("SET", _key(owner, sha256), "1", "EX", retention_s)


def owns_image(server: Server, owner: str, sha256: str) -> bool:
    """Whether the owner may name the stored image. Raises Unavailable."""
    return bool(server.run("EXISTS", _key(owner, sha256)))


def _key(owner: str, sha256: str) -> str:
    return f"upload:{owner}:{sha256}"


def check_images(chain: Chain, owns: Owns, first: int = 0) -> None:
    """Refuses images that stages, from `first` on, name otherwise than as uploads that `owns` knows.

    Raises:
        InvalidJob: (`bad_image`) there is one; names its stage and field.
    """
    for index, stage in enumerate(chain.stages[first:], first):
        for loc, (value, _) in stage.uploads().items():
            check_own(value, f"stages.{index}.{loc}", owns)


def check_own(name: str, loc: str, owns: Owns) -> None:
    """Refuses what is no name of an upload that `owns` knows: no path, no address. Raises InvalidJob."""
    if not _STORED.fullmatch(name):
        raise wrong(loc, "sha256:HEX, as an upload answers; files and addresses are not read", "bad_image")
    # Somebody else's is told as if there were none: a hash must not tell who has a picture.
    if not owns(name.removeprefix(STORED)):
        raise wrong(loc, "no such image is stored; upload it", "bad_image")
