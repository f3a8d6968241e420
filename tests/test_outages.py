"""Is trouble of Redis or S3 told at submit, within 3 seconds and without a trace, and is a lost reply no lost job?"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image
from pydantic import SecretStr

from farm.client import Farm
from farm.errors import Failure, FarmError, Unavailable
from farm.settings import Settings
from farm.store import Store
from tests.conftest import Valkey, free_port, own_bucket
from tests.test_cli import Run, record_tiny, run
from tests.test_store import keys

__all__ = ["run"]

CAP_S = 3.0
"""Within so many seconds trouble is told, where no other program has the processor. Source: design, trouble at submit.
"""
SLOW_S = 5.0


class Line:
    """A TCP line to 127.0.0.1:`target` whose replies can be troubled, from the first request that holds `since` on.

    `hush`: no reply comes. `delay_s`: each comes so much
    later. `cut`: half a reply comes, then a reset; so many times.
    `says` is what it answers instead of the target: always, or once it has cut.
    """

    def __init__(
        self, target: int, since: bytes = b"", hush: bool = False, delay_s: float = 0, cut: int = 0,
        says: bytes = b"",
    ) -> None:  # fmt: skip
        self._target, self._since, self._hush, self._delay_s = target, since, hush, delay_s
        self._cut, self._says = cut, says
        self._door = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._door]
        self.port = int(self._door.getsockname()[1])
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *given: Any) -> None:
        threading.Thread(target=work, args=given, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._door.accept()
                self._sockets.append(client)
                if self._says and not self._cut:
                    self._start(self._answer, client)
                    continue
                server, troubled = socket.create_connection(("127.0.0.1", self._target)), threading.Event()
                self._sockets.append(server)
                self._start(self._requests, client, server, troubled)
                self._start(self._replies, server, client, troubled)

    def _answer(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while client.recv(1 << 16):
                client.sendall(self._says)

    def _requests(self, client: socket.socket, server: socket.socket, troubled: threading.Event) -> None:
        seen = b""
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                seen = seen[-len(self._since) :] + data
                if self._since in seen:
                    troubled.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _replies(self, server: socket.socket, client: socket.socket, troubled: threading.Event) -> None:
        cuts = self._cut > 0
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if not troubled.is_set() or (cuts and not self._cut):
                    client.sendall(data)
                elif cuts:
                    self._cut -= 1
                    client.sendall(data[: len(data) // 2])
                    # Lingering for no time makes a reset of the end.
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                elif not self._hush:
                    threading.Event().wait(self._delay_s)
                    client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RD)  # wakes the other thread, so that the close is one
        client.close()

    def close(self) -> None:
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


OFTEN = 1000


@dataclass
class Place:
    """A farm whose two servers can be troubled: `farm` reaches them straight, the settings of `through` do not."""

    farm: Farm
    store: Store
    valkey: Valkey
    raw: redis.Redis
    image: Path
    monkeypatch: pytest.MonkeyPatch

    def through(self, redis_port: int = 0, password: str = "", **changes: Any) -> Settings:
        """The farm's settings with some of them changed, for Python and for the command line."""
        url = self.valkey.url.replace(str(self.valkey.port), str(redis_port or self.valkey.port))
        url = url.replace(self.valkey.password, password or self.valkey.password)
        found = self.farm.settings.model_copy(update={"redis_url": SecretStr(url), **changes})
        assert found.s3_endpoint and found.s3_access_key and found.s3_secret_key  # noqa: PT018
        for name, value in {
            "FARM_REDIS_URL": url,
            "FARM_BUCKET": found.bucket,
            "FARM_MODELS": str(found.models_dir),
            "AWS_ENDPOINT_URL_S3": found.s3_endpoint,
            "AWS_ACCESS_KEY_ID": found.s3_access_key.get_secret_value(),
            "AWS_SECRET_ACCESS_KEY": found.s3_secret_key.get_secret_value(),
            "AWS_REGION": "us-east-1",
        }.items():
            self.monkeypatch.setenv(name, value)
        return found

    def trace(self) -> tuple[set[bytes], set[str]]:
        """Every key in Redis and in S3."""
        return set(self.raw.keys("*")), set(keys(self.store))


@contextlib.contextmanager
def open_place(valkey: Valkey, s3: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A farm on this Valkey and S3, with a bucket and a data folder of its own, in which one job has been submitted."""
    redis.Redis.from_url(valkey.url).flushall()
    bucket = f"test-{secrets.token_hex(8)}"
    settings = Settings.load(redis_url=valkey.url, data=folder / "data", bucket=bucket, **s3)
    image = folder / "in.png"
    Image.new("RGB", (64, 64), "teal").save(image)
    with Farm(settings) as farm, own_bucket(farm.store):
        record_tiny(farm.catalog)
        farm.render("before", chain="txt", seed=1)
        # Its doorbell has been rung afterwards.
        farm.broker.close()
        del farm.broker
        yield Place(farm, farm.store, valkey, redis.Redis.from_url(valkey.url), image, monkeypatch)


@pytest.fixture
def place(
    shared_valkey: Valkey, s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    with open_place(shared_valkey, s3, tmp_path, monkeypatch) as found:
        yield found


def own_s() -> float:
    """The time, seconds, without that in which this thread could have gone on but others had the processor.

    Two of them are as far apart as on a machine that does nothing else; where the system does not tell it, as far as by
    the clock. Source: Linux, Documentation/scheduler/sched-stats.rst: the second figure is the time spent waiting to
    run, nanoseconds.
    """
    starved_ns = "0"
    with contextlib.suppress(OSError):
        _, starved_ns, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return time.monotonic() - int(starved_ns) / 1e9


def trouble(call: Callable[[], Any]) -> FarmError:
    """The error that `call` ends with, within the cap."""
    began = own_s()
    with pytest.raises(FarmError) as info:
        call()
    assert own_s() - began < CAP_S
    return info.value


def asked(run: Run, *words: object) -> dict[str, Any]:
    """The error of a command line, within the cap; people are told the same, without a traceback or an address."""
    began = own_s()
    found = run("--json", "render", "a pear", "--seed", "7", *words)
    assert own_s() - began < CAP_S
    assert found.status == 4, found
    assert "Traceback" not in found.err
    error: dict[str, Any] = found.envelope["error"]
    assert "127.0.0.1" not in error["message"] + error["hint"]
    return error


# ------------------------------------------------------------------------------------------- Redis


Trouble = Callable[[Place], contextlib.AbstractContextManager[Settings]]


@contextlib.contextmanager
def opened(target: int, **how: Any) -> Iterator[int]:
    """The port of a troubled line."""
    line = Line(target, **how)
    try:
        yield line.port
    finally:
        line.close()


@contextlib.contextmanager
def refused(place: Place) -> Iterator[Settings]:
    yield place.through(free_port())


@contextlib.contextmanager
def wrong_password(place: Place) -> Iterator[Settings]:
    yield place.through(password="wrong")


def redis_line(**how: Any) -> Trouble:
    """Trouble on the line to the real Valkey."""

    @contextlib.contextmanager
    def troubled(place: Place) -> Iterator[Settings]:
        with opened(place.valkey.port, **how) as port:
            yield place.through(port)

    return troubled


@contextlib.contextmanager
def replica(place: Place) -> Iterator[Settings]:
    place.raw.execute_command("REPLICAOF", "127.0.0.1", free_port())
    try:
        yield place.through()
    finally:  # other modules have the same Valkey
        place.raw.execute_command("REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def full(place: Place) -> Iterator[Settings]:
    place.raw.config_set("maxmemory", "1mb")
    try:
        yield place.through()
    finally:
        place.raw.config_set("maxmemory", "0")


LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"
REDIS: dict[str, tuple[Trouble, str]] = {
    "refused": (refused, "does not answer"),
    "black hole": (redis_line(hush=True), "does not answer"),
    "reset": (redis_line(cut=OFTEN), "does not answer"),
    "slow": (redis_line(delay_s=SLOW_S), "does not answer"),
    "slow in every reply": (redis_line(delay_s=0.7), "does not answer"),
    "wrong password": (wrong_password, "refuses the connection"),
    "read-only": (replica, "ReadOnlyError"),
    "loading": (redis_line(says=LOADING * 3), "loading"),
    "full": (full, "OutOfMemoryError"),
    "no Redis": (redis_line(says=b"HTTP/1.1 400 Bad Request\r\n\r\n"), "no Redis"),
}


@pytest.mark.parametrize("chain", ["txt", "img"])
@pytest.mark.parametrize(("how", "told"), REDIS.values(), ids=REDIS)
def test_trouble_with_redis_is_told_in_time_and_leaves_no_trace(
    place: Place, run: Run, how: Trouble, told: str, chain: str
) -> None:
    # Given a Redis in trouble, and a job that may begin with an image
    image = place.image if chain == "img" else None
    before = place.trace()
    with how(place) as settings, Farm(settings) as farm:
        # When it is submitted
        error = trouble(lambda: farm.render("a pear", chain=chain, image=image, seed=7))
        data = asked(run, "--chain", chain, *(["--image", image] if image else []))
    # Then it is said what is wrong, in time
    assert isinstance(error, Unavailable)
    assert (error.code, data["code"]) == ("unavailable", "unavailable")
    assert told in error.message
    assert told in data["message"]
    assert error.hint or "loading" in told
    # And nothing is left behind
    assert place.trace() == before


@pytest.mark.parametrize("how", [{"hush": True}, {"delay_s": SLOW_S}, {"cut": OFTEN}], ids=["hush", "slow", "cut"])
@pytest.mark.parametrize("door", ["python", "cli"])
def test_a_submit_whose_reply_is_lost_says_so_and_its_key_yields_one_job(
    place: Place, run: Run, how: dict[str, Any], door: str
) -> None:
    # Given a line that carries a submit there, and nothing back
    with opened(place.valkey.port, since=b"EVALSHA", **how) as port, Farm(place.through(port)) as farm:
        # When a job is submitted with a key
        if door == "python":
            error = trouble(lambda: farm.render("a pear", chain="txt", idempotency_key="mine"))
            code, hint = error.code, error.hint
        else:
            data = asked(run, "--chain", "txt", "--idempotency-key", "mine")
            code, hint = data["code"], data["hint"]
    # Then it is said that it may be there, and what to do
    assert code == "outcome_unknown"
    assert "idempotency key mine" in hint
    # And it is there once, also when it is submitted again
    assert len(place.farm.jobs()) == 2
    again = place.farm.render("a pear", chain="txt", idempotency_key="mine", **({"seed": 7} if door == "cli" else {}))
    assert again.id in [record.job for record in place.farm.jobs()]
    assert len(place.farm.jobs()) == 2


def test_a_refusal_after_a_lost_reply_says_nothing_of_the_first_try(place: Place) -> None:
    # Given a server that carries a submit out, breaks the connection, and is loading when it is asked again
    how = {"since": b"EVALSHA", "cut": 1, "says": LOADING * 3}
    with opened(place.valkey.port, **how) as port, Farm(place.through(port)) as farm:
        # When
        error = trouble(lambda: farm.render("a pear", chain="txt"))
    # Then it is not called refused, for it is there
    assert error.code == "outcome_unknown"
    assert len(place.farm.jobs()) == 2


def test_a_run_that_broke_off_is_the_same_run_when_it_is_sent_again(place: Place) -> None:
    # Given a run of two calls' worth of jobs (the last 20 not sent yet), and a line that breaks at the second
    jobs = place.farm.jobs_of(place.farm.chain("txt", "a pear", seed=1), count=250, idempotency_key="mine")
    with opened(place.valkey.port, since=b"mine#229", cut=OFTEN) as port, Farm(place.through(port)) as farm:
        # When
        error = trouble(lambda: farm.submit(jobs[:230]))
    # Then
    assert error.code == "outcome_unknown"
    assert "idempotency key mine" in error.hint
    found = place.farm.run("a pear", chain="txt", seed=1, count=250, idempotency_key="mine")
    assert len({handle.id for handle in found}) == 250
    assert len(place.farm.jobs(limit=1000)) == 251
    assert len(place.farm.jobs(run=found[0].record.run, limit=1000)) == 250


def test_a_retry_whose_reply_is_lost_is_no_conflict(place: Place) -> None:
    # Given a failed job, which was retried once before (so that the server knows the script)
    (found,) = place.farm.jobs()

    def fail() -> None:
        claims, _ = place.farm.ledger.claim(["text2img.tiny"], "hand", "boot")
        place.farm.ledger.fail(claims, Failure.DETERMINISTIC, "nan_output", "")
        assert place.farm.job(found.job).state == "failed"

    fail()
    place.farm.job(found.job).retry()
    fail()
    with opened(place.valkey.port, since=b"EVALSHA", cut=1) as port, Farm(place.through(port)) as farm:
        # When the first reply to another retry is lost
        queues = farm.ledger.retry(found.job)
    # Then it is answered all the same, and has happened once
    assert queues <= {"text2img.tiny"}
    assert place.farm.job(found.job).state == "queued"
    assert [event.type for event in place.farm.ledger.events(found.job)].count("retried") == 2


# ------------------------------------------------------------------------------------------- S3


def http(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()


S3: dict[str, tuple[dict[str, Any], str, bool]] = {
    "refused": ({}, "EndpointConnectionError", True),
    "black hole": ({"hush": True}, "Timeout", False),
    "reset": ({"cut": OFTEN}, "ConnectionClosed", False),
    "slow": ({"delay_s": SLOW_S}, "Timeout", False),
    "503": ({"says": http("503 Service Unavailable")}, "503", True),
    "500": ({"says": http("500 Internal Server Error")}, "500", True),
    "403": ({"says": http("403 Forbidden")}, "403", True),
}


@pytest.mark.parametrize(("how", "told", "untouched"), S3.values(), ids=S3)
def test_trouble_with_s3_is_told_in_time_and_makes_no_job(
    place: Place, run: Run, how: dict[str, Any], told: str, untouched: bool
) -> None:
    # Given an S3 in trouble, and a job that begins with an image
    before = place.trace()
    port = int(str(place.farm.settings.s3_endpoint).rpartition(":")[2])
    with opened(port, **how) as troubled:
        endpoint = f"http://127.0.0.1:{troubled if how else free_port()}"
        with Farm(place.through(s3_endpoint=endpoint)) as farm:
            _ = farm.inbox.client  # boto3 takes its time to import, once
            # When it is submitted
            error = trouble(lambda: farm.render("a pear", chain="img", image=place.image, seed=7))
            data = asked(run, "--chain", "img", "--image", place.image)
    # Then it is said what is wrong, in time
    assert isinstance(error, Unavailable)
    assert (error.code, data["code"]) == ("unavailable", "unavailable")
    assert told in error.message
    assert told in data["message"]
    # And nothing is left behind: no job, and no image but where the store took it and its answer was lost
    after = place.trace()
    assert after[0] == before[0]
    assert not untouched or after[1] == before[1]


def test_a_wrong_s3_key_is_told_in_time_and_leaves_no_trace(place: Place, run: Run) -> None:
    # Given
    before = place.trace()
    with Farm(place.through(s3_secret_key=SecretStr("wrong"))) as farm:
        _ = farm.inbox.client
        # When
        error = trouble(lambda: farm.render("a pear", chain="img", image=place.image, seed=7))
        data = asked(run, "--chain", "img", "--image", place.image)
    # Then
    assert (error.code, data["code"]) == ("unavailable", "unavailable")
    assert "AWS_SECRET_ACCESS_KEY" in error.hint
    assert place.trace() == before
