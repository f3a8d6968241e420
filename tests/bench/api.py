"""How soon does the API answer, and how far behind are its events, under load? `python -m tests.bench.api`

A whole farm on loopback, with one worker whose stage does nothing. One process keeps event streams open, all of them
of the whole farm, which is the most that there is to tell; another submits at a fixed rate, whatever the answers take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
from rich.console import Console
from rich.table import Table

from farm import models
from farm.catalog import Catalog
from farm.client import Farm
from farm.ledger import FAN
from farm.scripts import Server
from farm.servers import Servers, environment
from farm.settings import Settings
from farm.tokens import Tokens
from tests.bench.overhead import STAGE_FILE, process_of, wait_for
from tests.e2e.rig import ROOT, install

CHAIN = {"stages": [{"kind": "noop_source", "checkpoint": "none"}]}
ENDED = re.compile(rb'"id":"([0-9a-f-]{36})","run":[^,]*,"state":"done".*?"ended":"([^"]*)"')
DRAIN_S = 60.0
"""How long the last events are waited for, seconds."""
PROBES = 10
"""Streams of which the lag is measured: to look at each event of all of them would measure the load itself."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, or is one of the two processes that make the load."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.api", description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50, help="submits per second")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--load", choices=["listen", "submit"], help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.load == "listen":
        asyncio.run(listen(given.url, given.streams))
    elif given.load == "submit":
        print(json.dumps(asyncio.run(submit(given.url, given.rate, given.seconds))))
    else:
        console = Console()
        console.print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
        with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder:
            console.print(table_of(Path(folder), given.streams, given.rate, given.seconds))


def measure(folder: Path, streams: int, rate: float, seconds: float) -> dict[str, float]:
    """The figures: times in milliseconds, memory in MiB."""
    with farm_of(folder) as (url, api, env):
        command = [sys.executable, "-m", "tests.bench.api", "--url", url]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env, "cwd": ROOT}
        # Once without anybody listening, so that what is loaded at the first call is there before memory is looked at.
        subprocess.run(
            [*command, "--load", "submit", "--seconds", "2"], env=env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        ears = subprocess.Popen([*command, "--load", "listen", "--streams", str(streams)], **pipes)  # type: ignore[call-overload]
        assert ears.stdout.readline() == "all are open\n"
        before, cpu = api.memory_info().rss, sum(api.cpu_times()[:2])
        words = ["--load", "submit", "--rate", str(rate), "--seconds", str(seconds)]
        done = subprocess.run([*command, *words], env=env, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        told = json.loads(done.stdout)
        heard, _ = ears.communicate(json.dumps(told["jobs"]))
        after, cpu = api.memory_info().rss, sum(api.cpu_times()[:2]) - cpu
    took, lags = sorted(told["took_ms"]), json.loads(heard)
    return {
        "submits": len(took),
        "refused": told["refused"],
        "submit p50 ms": statistics.median(took),
        "submit p99 ms": took[int(len(took) * 0.99)],
        "submit max ms": took[-1],
        "lag of an end p50 ms": statistics.median(lags["lag_ms"]),
        "lag of an end p99 ms": sorted(lags["lag_ms"])[int(len(lags["lag_ms"]) * 0.99)],
        "events heard": lags["events"],
        "ends lost": lags["lost"],
        "API MiB before": before / 2**20,
        "API MiB after": after / 2**20,
        "API CPU seconds": cpu,
    }


def table_of(folder: Path, streams: int = 200, rate: float = 50, seconds: float = 30) -> Table:
    """The figures of a run in `folder`, for people."""
    found = measure(folder, streams, rate, seconds)
    title = f"the API: {streams} streams of the whole farm, {rate:g} submits/s for {seconds:g} s"
    table = Table(title=title, title_justify="left")
    for head in ("", "measured"):
        table.add_column(head)
    for name, value in found.items():
        table.add_row(name, f"{value:.0f}")
    return table


@contextmanager
def farm_of(folder: Path) -> Iterator[tuple[str, psutil.Process, dict[str, str]]]:
    """A farm: the API's URL with a token in it, its process, and what the processes of the load need to know."""
    added = install(folder, STAGE_FILE, ["noop_source", "noop"])
    sys.path.insert(0, added["PYTHONPATH"])
    paths = os.pathsep.join(filter(None, [added["PYTHONPATH"], os.environ.get("PYTHONPATH", "")]))
    settings = Settings.load(data=folder / "data", catalog=folder / "catalog.toml")
    models.pull(Catalog.load(settings), "none")
    read, write = os.pipe()
    with Servers(settings) as servers, socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        env = {**os.environ, **environment(servers.settings), **added, "PYTHONPATH": paths}
        env["FARM_RATE_PER_S"] = "0"  # one token submits more than one person does
        server = Server(servers.settings, FAN)
        token = Tokens(server).first()
        parent = ["--parent", str(os.getpid())]
        worker = [sys.executable, "-m", "tests.bench.bare", "--name", "bench", "--queues", "noop_source.none"]
        api = [sys.executable, "-m", "farm.api.serve", "--socket", str(listener.fileno()), *parent]
        with (
            Farm(servers.settings) as farm,
            process_of([*worker, *parent, "--marks", str(write)], env, write) as hand,
            process_of(api, env, listener.fileno()) as found,
        ):
            wait_for(farm.ledger.workers, hand)
            where = f"127.0.0.1:{listener.getsockname()[1]}"
            wait_for(lambda: httpx2.get(f"http://{where}/readyz", timeout=60).status_code == 200, found)
            yield f"http://{token}@{where}", found, env
        server.close()
    for end in (read, write):
        os.close(end)


async def call(url: str, method: str, path: str, body: bytes = b"") -> tuple[asyncio.StreamReader, Any, bytes]:
    """A connection on which the call was sent, by hand: a library would take more of the machine than the API does."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 22)
    head = f"{method} {path} HTTP/1.1\r\nHost: {parts.hostname}\r\nAuthorization: Bearer {parts.username}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer, await reader.readuntil(b"\r\n\r\n")


async def submit(url: str, rate: float, seconds: float) -> dict[str, Any]:
    """Submits, each at its time on a connection of its own: how long each took, and which jobs there are."""
    began, took, jobs, refused = time.perf_counter(), list[float](), list[str](), 0
    draw = int(time.time() * 1000) % 2**30

    async def one(number: int) -> None:
        nonlocal refused
        await asyncio.sleep(began + number / rate - time.perf_counter())
        sent = time.perf_counter()
        body = json.dumps({"chain": CHAIN, "seed": draw + number}).encode()
        reader, writer, head = await call(url, "POST", "/api/v1/jobs", body)
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        answer = await reader.readexactly(int(length[1])) if length else b""
        took.append((time.perf_counter() - sent) * 1000)
        writer.close()
        if head.startswith(b"HTTP/1.1 201"):
            jobs.append(json.loads(answer)["jobs"][0]["id"])
        else:
            refused += 1

    await asyncio.gather(*(one(number) for number in range(int(rate * seconds))))
    return {"took_ms": took, "jobs": jobs, "refused": refused}


async def listen(url: str, streams: int) -> None:
    """Keeps streams open until each has told the end of every job that stdin names, and prints how it went."""
    told: list[set[bytes]] = [set() for _ in range(streams)]
    lags, events = list[float](), 0

    async def one(number: int, reader: asyncio.StreamReader) -> None:
        nonlocal events
        rest = b""
        while data := await reader.read(1 << 20):
            now = time.time() * 1000
            whole, end, rest = (rest + data).rpartition(b"\n\n")
            events += whole.count(b"\nevent: job")
            for job, ended in ENDED.findall(whole + end):
                if number < PROBES and job not in told[number]:
                    lags.append(now - datetime.fromisoformat(ended.decode()).astimezone(UTC).timestamp() * 1000)
                told[number].add(job)

    tasks, lines = [], []
    for number in range(streams):
        reader, writer, head = await call(url, "GET", "/api/v1/events")
        assert b" 200 " in head, head
        lines.append(writer)
        tasks.append(asyncio.create_task(one(number, reader)))
    print("all are open", flush=True)
    wanted = {job.encode() for job in json.loads(await asyncio.to_thread(sys.stdin.read))}
    until = time.perf_counter() + DRAIN_S
    while any(wanted - found for found in told) and time.perf_counter() < until:
        await asyncio.sleep(0.1)
    lost = sum(len(wanted - found) for found in told)
    for task in tasks:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks)
    for line in lines:
        line.close()
    print(json.dumps({"lag_ms": lags, "events": events, "lost": lost}))


if __name__ == "__main__":
    main()
