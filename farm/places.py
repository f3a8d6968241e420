"""At which ports, and with which secrets, do the embedded servers run?"""

from __future__ import annotations

import random
import secrets
import socket
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from farm.errors import FarmError, Unavailable

SERVERS_FILE = "servers.json"
PORTS = range(12000, 22000)
"""Ports are taken here: a server of SeaweedFS also takes port + 10000, and from 32768 on Linux gives ports to clients.
Source: net.ipv4.ip_local_port_range."""
S3_PARTS = ("s3", "master", "volume", "filer", "admin")


class Places(BaseModel):
    """Ports and secrets of the embedded servers; what `servers.json` holds."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    redis_port: int
    redis_password: str
    s3_ports: dict[str, int]
    s3_access_key: str
    s3_secret_key: str

    @classmethod
    def new(cls) -> Places:
        """Free ports and fresh secrets."""
        ports = free_ports(1 + len(S3_PARTS))
        return cls(
            redis_port=ports[0],
            redis_password=secrets.token_hex(24),
            s3_ports=dict(zip(S3_PARTS, ports[1:], strict=True)),
            s3_access_key=secrets.token_hex(10),
            s3_secret_key=secrets.token_hex(24),
        )

    @classmethod
    def kept(cls, data: Path) -> Places:
        """Those of the last start, with other ports where somebody else took theirs; new ones where there was no start.

        Raises:
            FarmError: (`bad_file`) the file is damaged.
        """
        path = data / SERVERS_FILE
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls.new()
        except (OSError, ValidationError):
            raise FarmError(
                f"{path} is damaged",
                code="bad_file",
                hint="delete it: there will be new keys, the data stays",
            ) from None
        used = [port + further for port in found.s3_ports.values() for further in (0, 10000)]
        if all(map(_is_free, [found.redis_port, *used])):
            return found
        fresh = cls.new()
        return found.model_copy(update={"redis_port": fresh.redis_port, "s3_ports": fresh.s3_ports})

    def connection(self) -> dict[str, str]:
        """How to reach the servers, in the words of `Settings`."""
        return {
            "redis_url": f"redis://:{self.redis_password}@127.0.0.1:{self.redis_port}/0",
            "s3_endpoint": f"http://127.0.0.1:{self.s3_ports['s3']}",
            "s3_access_key": self.s3_access_key,
            "s3_secret_key": self.s3_secret_key,
        }


def free_ports(count: int) -> list[int]:
    """So many ports that are free now, and free with 10000 added."""
    ports = random.sample(PORTS, 50 * count)
    found = [port for port in ports if _is_free(port) and _is_free(port + 10000)][:count]
    if len(found) < count:
        raise Unavailable("no free ports between 12000 and 32000 on 127.0.0.1")
    return found


def _is_free(port: int) -> bool:
    """Whether nobody listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        # As servers do: connections of an earlier server that still close do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
