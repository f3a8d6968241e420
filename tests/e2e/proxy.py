"""A TCP proxy whose connections suffer what networks do: silence, refusal, delay, resets, a reply that never comes."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tests.conftest import free_port

Look = Callable[[bytes], bool]
"""Sees what passes; whether the connection goes on."""


@dataclass(eq=False)
class _Link:
    """One client's connection; `doomed` once its next reply is to be dropped."""

    client: asyncio.StreamWriter
    hushed: bool
    doomed: bool = False


class Proxy:
    """Forwards 127.0.0.1:`port` to `target`.

    `hush` leaves all open connections half-open; new ones work. `hole` does so with new ones too, until `mend`. `cut`
    ends every connection at once until `mend`; `reset` only those that are open. `delay_s` holds back all that passes.
    """

    def __init__(self, target: int) -> None:
        self.port, self.delay_s, self.dropped = free_port(), 0.0, 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._links: set[_Link] = set()
        # The loop itself holds its tasks but weakly.
        self._tasks: set[asyncio.Task[None] | None] = set()
        self._is_cut, self._is_hole, self._pattern = False, False, b""
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)

    def hush(self) -> int:
        """Silences the connections that are open now; how many."""
        silenced = [link for link in list(self._links) if not link.hushed]
        for link in silenced:
            link.hushed = True
        return len(silenced)

    def hole(self) -> None:
        """All connections, open and new, are accepted and never answered."""
        self._is_hole = True
        self.hush()

    def cut(self) -> None:
        """The target is away."""
        self._is_cut = True
        self.reset()

    def reset(self) -> None:
        """Ends every connection that is open now, without a word."""
        self._loop.call_soon_threadsafe(lambda: [_reset(link.client) for link in self._links])

    def drop_reply(self, pattern: bytes) -> None:
        """The next request that contains `pattern` is carried out, and its connection reset in place of the reply."""
        self._pattern = pattern

    def mend(self) -> None:
        """All is well again for new connections, and for open ones that were not silenced."""
        self._is_cut, self._is_hole, self._pattern, self.delay_s = False, False, b"", 0.0

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, started: threading.Event) -> None:
        self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._loop.call_soon(started.set)
        self._loop.run_forever()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer, self._is_hole)
        self._links.add(link)
        self._tasks.add(asyncio.current_task())
        try:
            if self._is_cut:
                return _reset(writer)
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._ask(link, reader, back), self._answer(link, there, writer))
        except (OSError, asyncio.CancelledError):  # the target is away, or the proxy ends
            _reset(writer)
        finally:
            self._links.discard(link)
            self._tasks.discard(asyncio.current_task())

    async def _ask(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def look(data: bytes) -> bool:
            if self._pattern and self._pattern in data:
                self._pattern, link.doomed = b"", True
            return True

        await self._pump(link, reader, writer, look)

    async def _answer(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def look(_: bytes) -> bool:
            self.dropped += link.doomed
            return not link.doomed

        await self._pump(link, reader, writer, look)
        if link.doomed:
            _reset(writer)

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, look: Look) -> None:
        try:
            while (data := await reader.read(65536)) and look(data):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if not link.hushed:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        finally:
            # A half-open connection: the other side is never told that this one ended.
            if not link.hushed:
                writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection as a crashed peer's kernel does, by RST. Source: socket(7), SO_LINGER of zero seconds."""
    if (found := writer.get_extra_info("socket")) is not None and found.fileno() >= 0:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
