"""A TCP proxy whose open connections can be made to say nothing more, as a lost peer does."""

from __future__ import annotations

import asyncio
import threading

from tests.conftest import free_port


class Proxy:
    """Forwards 127.0.0.1:`port` to `target`.

    `hush` leaves all open connections half-open; new ones work. `cut` ends every connection at once until `mend`.
    """

    def __init__(self, target: int) -> None:
        self.port, self._target = free_port(), target
        self._loop = asyncio.new_event_loop()
        self._hushed: set[int] = set()
        self._opened, self._is_cut = 0, False
        self._writers: set[asyncio.StreamWriter] = set()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)

    def hush(self) -> int:
        """Silences the connections that are open now; how many."""
        silenced = set(range(self._opened)) - self._hushed
        self._hushed |= silenced
        return len(silenced)

    def cut(self) -> None:
        """The target is away."""
        self._is_cut = True
        self._loop.call_soon_threadsafe(lambda: [writer.transport.abort() for writer in self._writers])

    def mend(self) -> None:
        """The target is back."""
        self._is_cut = False

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
        if self._is_cut:
            writer.transport.abort()
            return
        number, self._opened = self._opened, self._opened + 1
        self._writers.add(writer)
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(self._pump(number, reader, back), self._pump(number, there, writer))

    async def _pump(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if number not in self._hushed:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        finally:
            # A half-open connection: the other side is never told that this one ended.
            if number not in self._hushed:
                writer.close()
