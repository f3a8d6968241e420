"""Does the farm run under the README's two roles, over TLS, and without ever telling a password?"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import secrets
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from farm import models
from farm.client import Farm
from farm.errors import Unavailable
from farm.estimate import estimate
from farm.ledger import Ledger
from farm.records import OPEN, Beat, StageEntry, Submission
from farm.servers import environment
from farm.settings import Settings
from farm.stage import kinds
from tests.conftest import Valkey, free_port
from tests.e2e.rig import ROOT, Rig, install, rig_of, until
from tests.e2e.test_failures import STAGES

QUEUES = ("blank.none", "faulty.none")
CHAIN = {"stages": [{"kind": "blank", "checkpoint": "none"}, {"kind": "faulty", "checkpoint": "none"}]}
CANARY = "canary-Zx9"


def roles() -> dict[str, str]:
    """The README's ACL line of each role, as ACL SETUSER takes it."""
    lines = re.findall(r"^user (producer|worker) (.*)$", (ROOT / "README.md").read_text("utf-8"), re.M)
    return dict(lines)


def url(user: str, port: int, scheme: str = "redis", options: str = "") -> str:
    return f"{scheme}://{user}:{CANARY}@127.0.0.1:{port}/0{options}"


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A Valkey with the README's two users, whose password is the canary."""
    server = Valkey(tmp_path_factory.mktemp("roles") / "valkey").start()
    raw = redis.Redis.from_url(server.url)
    for name, rules in roles().items():
        raw.execute_command("ACL", "SETUSER", name, *rules.replace("PASSWORD", CANARY).split())
    yield server
    server.kill()


@contextlib.contextmanager
def running(valkey: Valkey, s3: dict[str, str], folder: Path, producer: str, worker: str) -> Iterator[Rig]:
    """A farm of two stages without torch, whose client and whose workers reach Redis by the URLs given."""
    redis.Redis.from_url(valkey.url).flushall()
    added = install(folder, STAGES, ["blank", "faulty"])
    times = {"lease_s": 3.0, "deaf_s": 10.0, "drain_grace_s": 5.0}
    settings = Settings.load(
        redis_url=producer,
        data=folder,
        bucket=f"roles-{secrets.token_hex(6)}",
        catalog=added["FARM_CATALOG"],
        **s3,
        **times,
    )
    env = {**environment(settings.model_copy(update={"redis_url": SecretStr(worker)})), **added, "OMP_NUM_THREADS": "1"}
    env |= {f"FARM_{name.upper()}": str(value) for name, value in times.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(added["PYTHONPATH"])
        kinds.cache_clear()
        farm = Farm(settings)
        farm.store.ensure_bucket()
        for name in ("none", "none2"):
            models.pull(farm.catalog, name)
        with rig_of(farm, env, folder, valkey) as rig:
            rig.supervise(QUEUES, **{"FARM_LOG_LEVEL": "debug"})
            rig.ready(2)
            try:
                yield rig
            except BaseException:
                print("denied:", redis.Redis.from_url(valkey.url).acl_log())
                raise
    kinds.cache_clear()


def steer(rig: Rig) -> None:
    """Runs chains to their end, and uses what a producer can do on the way."""
    farm = rig.farm
    assert farm.render("x", chain=CHAIN, seed=1).wait(20).images
    jobs = farm.run("x", chain=CHAIN, seed=10, count=5)
    assert [job.wait(20).state for job in jobs] == ["done"] * 5
    held = farm.render("y", chain={"stages": [CHAIN["stages"][0], {"kind": "faulty", "checkpoint": "none2"}]}, seed=2)
    until(lambda: held.record.stages[0].state == "committed", 30)
    held.pause()
    held.resume()
    farm.ledger.reprioritise(held.id, 90, "bulk")
    held.cancel()
    held.retry()
    held.cancel()
    assert [farm.ledger.jobs(state=state, owner="ada") for state in OPEN] == [[], [], []]
    run = jobs[0].record.run
    assert farm.ledger.run(run).states == {"done": 5}
    assert [farm.ledger.steer_run(run, verb)[0] for verb in ("pause", "resume", "retry", "cancel")] == [0] * 4
    jobs[0].delete()
    assert (len(farm.ledger.run_jobs(run)), len(farm.ledger.runs())) == (4, 1)
    assert all(estimate(farm.jobs_of(farm.chain(CHAIN), count=2, upload=False), farm.ledger).__dict__.values())
    (booked,) = farm.submit(farm.jobs_of(farm.chain(CHAIN, seed=90)), "ada", 1)
    assert booked.wait(20).record.owner == "ada"
    failed = farm.render("z", chain={"stages": [CHAIN["stages"][0], {**CHAIN["stages"][1], "how": "nan"}]}, seed=3)
    until(lambda: failed.state == "failed", 30)
    assert farm.jobs(limit=100)
    assert farm.ledger.workers()
    assert farm.ledger.stats()
    assert farm.ledger.job(held.id).waits_for == ""
    # The bells were heard: no child had to start again to find its work.
    assert "deaf" not in rig.logs()


def test_a_farm_runs_under_the_two_roles(valkey: Valkey, s3: dict[str, str], tmp_path: Path) -> None:
    # Given a client as producer, and a supervisor with its children as worker
    raw = redis.Redis.from_url(valkey.url)
    raw.execute_command("ACL", "LOG", "RESET")
    with running(valkey, s3, tmp_path, url("producer", valkey.port), url("worker", valkey.port)) as rig:
        # When
        steer(rig)
    # Then nothing that they did was refused
    assert [(entry["username"], entry["context"], entry["object"]) for entry in raw.acl_log()] == []


FORBIDDEN: list[tuple[Any, ...]] = [
    ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("SCAN", "0"), ("CONFIG", "GET", "*"), ("CONFIG", "SET", "dir", "x"),
    ("ACL", "LIST"), ("ACL", "SETUSER", "x"), ("SHUTDOWN",), ("REPLICAOF", "NO", "ONE"),
    ("MODULE", "LIST"), ("CLIENT", "LIST"), ("CLIENT", "KILL", "ID", "1"), ("MONITOR",), ("SAVE",),
    ("SCRIPT", "FLUSH"),
    ("FUNCTION", "LIST"), ("SWAPDB", "0", "1"), ("RENAME", "farm:a", "farm:b"), ("PUBLISH", "x", "y"),
    ("GET", "other:key"), ("SET", "other:key", "x"), ("HGETALL", "farm"), ("DEL", "other:key"),
    ("LPUSH", "celery", "x"),
    ("EVAL", "return redis.call('GET', KEYS[1])", 1, "other:key"),
    ("EVAL", "return redis.call('SET', 'other:key', 'x')", 0),
    ("EVAL", "return redis.call('GET', 'other:key')", 0),
    ("EVAL", "return redis.call('KEYS', '*')", 0),
    ("EVAL", "return redis.call('FLUSHALL')", 1, "{farm}:jobs"),
    ("EVAL", "return redis.call('CONFIG', 'GET', '*')", 0),
]  # fmt: skip


@pytest.mark.parametrize("role", ["producer", "worker"])
@pytest.mark.parametrize("command", FORBIDDEN, ids=[" ".join(map(str, command))[:60] for command in FORBIDDEN])
def test_a_role_can_do_nothing_else(role: str, command: tuple[Any, ...], valkey: Valkey) -> None:
    # Given somebody else's key
    raw = redis.Redis.from_url(valkey.url)
    raw.set("other:key", "whole")
    # When a role reaches for what is not its own
    with pytest.raises(redis.ResponseError, match=r"(?i)permission|not allowed from script"):
        redis.Redis.from_url(url(role, valkey.port)).execute_command(*command)
    # Then it is denied
    assert raw.get("other:key") == b"whole"


def test_a_worker_shows_pictures_and_a_producer_sees_them(valkey: Valkey, tmp_path: Path) -> None:
    # Given both roles at one ledger
    raw = redis.Redis.from_url(valkey.url)
    raw.flushall()
    raw.execute_command("ACL", "LOG", "RESET")
    producer, worker = (
        Ledger(Settings.load(redis_url=url(role, valkey.port), data=tmp_path)) for role in ("producer", "worker")
    )
    producer.submit([Submission("j", (StageEntry("x", "q", "{}"),), "{}", "", "h")])
    (claim,), _ = worker.claim(["q"], "w", "boot")
    # When
    assert producer.preview("x") is None
    assert worker.beat([claim], "step", 1, 2) == [Beat.WATCHED]
    worker.show([(claim, base64.b64encode(b"picture").decode())])
    # Then
    assert producer.job("j").stages[0].preview > 0
    assert producer.preview("x") == b"picture"
    worker.release([claim])
    assert raw.acl_log() == []
    producer.close()
    worker.close()


def test_a_producer_cannot_take_doorbells(valkey: Valkey) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        redis.Redis.from_url(url("producer", valkey.port)).brpop("farm:blank.none", 1)


# ------------------------------------------------------------------------------------------- TLS


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority of its own (ca.pem), another one, and a server's certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("papers")
    for name in ("ca", "other"):
        openssl(folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
                "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip
    openssl(folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=valkey",
            "-keyout", "server.key", "-out", "server.csr")  # fmt: skip
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(folder, "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "names", "-out", "server.pem")  # fmt: skip
    return folder


class TlsEnd:
    """The TLS end of a Valkey: 127.0.0.1:`port` speaks TLS and forwards to `target` on this machine.

    The Valkey that tests run on is built without TLS; such an end in front of it is what many installations have.
    """

    def __init__(self, target: int, papers: Path) -> None:
        self.port, self.opened = free_port(), 0
        self._target = target
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(papers / "server.pem", papers / "server.key")
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda *_: None)  # a handshake that fails is what some tests want
        self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context))
        self._loop.call_soon(started.set)
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@pytest.fixture
def tls(valkey: Valkey, papers: Path) -> Iterator[TlsEnd]:
    end = TlsEnd(valkey.port, papers)
    yield end
    end.stop()


def test_a_farm_runs_over_tls(valkey: Valkey, s3: dict[str, str], tmp_path: Path, tls: TlsEnd, papers: Path) -> None:
    # Given a client and workers that reach Redis over TLS only
    options = f"?ssl_ca_certs={papers / 'ca.pem'}"
    producer, worker = (url(role, tls.port, "rediss", options) for role in ("producer", "worker"))
    raw = redis.Redis.from_url(valkey.url)
    before = {client["id"] for client in raw.client_list()}
    with running(valkey, s3, tmp_path, producer, worker) as rig:
        # When, Then
        steer(rig)
        # and nobody came another way: every new connection ends at the TLS end
        new = [client for client in raw.client_list() if client["id"] not in before]
        assert {client["user"] for client in new} == {"producer", "worker"}
        assert len(new) <= tls.opened


@pytest.mark.parametrize("case", ["another authority", "no authority", "no TLS here", "TLS here"])
def test_a_tls_link_that_cannot_be_trusted_is_none(
    case: str, valkey: Valkey, tls: TlsEnd, papers: Path, tmp_path: Path
) -> None:
    # Given
    own = f"?ssl_ca_certs={papers / 'ca.pem'}"
    wrong = {
        "another authority": url("producer", tls.port, "rediss", f"?ssl_ca_certs={papers / 'other.pem'}"),
        "no authority": url("producer", tls.port, "rediss"),
        "no TLS here": url("producer", valkey.port, "rediss", own),
        "TLS here": url("producer", tls.port),
    }[case]
    with Farm(Settings.load(redis_url=wrong, data=tmp_path)) as farm:
        began = time.monotonic()
        # When
        with pytest.raises(Unavailable) as info:
            farm.ledger.ping()
    # Then it is said in time, with what to look at, and without the password
    assert time.monotonic() - began < 3
    assert info.value.hint
    assert ("rediss://" in info.value.hint) == ("authority" in case)
    assert CANARY not in repr(info.value) + info.value.hint


# ------------------------------------------------------------------------------------------- passwords


def test_no_password_is_ever_printed(valkey: Valkey, s3: dict[str, str], tmp_path: Path) -> None:
    # Given workers at debug level that see a healthy server, one that is gone, and one that knows another password
    good = url("worker", valkey.port)
    with running(valkey, s3, tmp_path / "good", url("producer", valkey.port), good) as rig:
        assert rig.farm.render("x", chain=CHAIN, seed=1).wait(20).images
        env = {**os.environ, **rig.env, "FARM_LOG_LEVEL": "debug", "COLUMNS": "200"}
        broken = {
            "gone": url("worker", free_port()),
            "refused": good.replace("worker:", "worker:x"),
            "unknown user": good.replace("worker:", "nobody:"),
            "another scheme": good.replace("redis:", "http:"),
            "no URL": f"redis://:{CANARY}/x@127.0.0.1:{valkey.port}/0",
            "no port": f"redis://:{CANARY}@127.0.0.1:{CANARY}/0",
            "no option": good + f"?password={CANARY}",
            "no TLS": good.replace("redis:", "rediss:"),
            "healthy": good,
        }
        code, ran = "import sys; from farm.cli import main; sys.exit(main())", []
        for name, redis_url in broken.items():
            here = {**env, "FARM_REDIS_URL": redis_url, "AWS_SECRET_ACCESS_KEY": f"{CANARY}-s3"}
            for words in (["doctor"], ["--json", "jobs", "ls"]):
                with (rig.folder / f"{name} {words[-1]}.log").open("wb") as log:
                    command = [sys.executable, "-c", code, *words]
                    ran.append(subprocess.Popen(command, env=here, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
            for process in ran:
                process.wait(60)
            if name != "healthy":
                rig.supervise(QUEUES, name=f"worker {name}", FARM_REDIS_URL=redis_url, FARM_LOG_LEVEL="debug")
        for process in rig.supervisors[1:]:
            log = rig.folder / f"{process.args[4]}.log"  # type: ignore[index]
            until(lambda log=log, process=process: process.poll() is not None or log.stat().st_size > 500, 60, str(log))
        rig.stop()
        output = rig.logs()
    # When all of what was written is searched, then the password is nowhere
    assert len(output) > 5000
    assert "the ledger's server refuses the connection" in output
    assert "Traceback" not in output.partition("celery")[0]
    assert CANARY not in output
