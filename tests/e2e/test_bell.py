"""Whatever lies in a doorbell list, and however its connection dies: the same process goes on, and no code runs."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from farm import models
from farm.broker import RING, bell_queue, make_app
from farm.client import Farm
from farm.settings import Settings
from farm.stage import kinds
from tests.e2e.proxy import Proxy
from tests.e2e.rig import Rig, install, until
from tests.e2e.test_failures import STAGES

QUEUE = "blank.none"


@pytest.fixture(scope="module")
def farm(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A client of a farm with one worker without torch, which reaches Redis through `rig.proxy`."""
    added = install(tmp_path_factory.mktemp("blank"), STAGES, ["blank", "faulty"])
    proxy = Proxy(rig.valkey.port)
    through = rig.valkey.url.replace(str(rig.valkey.port), str(proxy.port))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(added["PYTHONPATH"])
        kinds.cache_clear()
        rig.plugin = {"proxy": proxy}  # type: ignore[dict-item]
        client = Farm(rig.farm.settings.model_copy(update={"catalog": Path(added["FARM_CATALOG"])}))
        models.pull(client.catalog, "none")
        rig.supervise([QUEUE], **added, FARM_REDIS_URL=through)
        rig.ready(1)
        yield client
        client.close()
        rig.stop()
    proxy.stop()
    kinds.cache_clear()


@pytest.fixture
def raw(rig: Rig, farm: Farm) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(rig.valkey.url)
    yield client
    client.close()


@pytest.fixture
def key(rig: Rig) -> str:
    return str(bell_queue(rig.farm.settings, QUEUE).name)


def works(farm: Farm, seed: int) -> None:
    """A job of one stage is done, by the worker that is there."""
    assert farm.render(chain={"stages": [{"kind": "blank", "checkpoint": "none"}]}, seed=seed).wait(30).results


def bell(rig: Rig, raw: redis.Redis) -> dict[str, Any]:
    """A true doorbell as it lies in the list."""
    app, spare = make_app(Settings.load(redis_url=rig.valkey.url)), bell_queue(rig.farm.settings, "spare")
    app.send_task(RING, queue=spare, ignore_result=True)
    found: dict[str, Any] = json.loads(raw.rpop(spare.name))  # type: ignore[arg-type]
    app.close()
    return found


class Bomb:
    """Leaves a file where somebody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return (open, (str(self.path), "w"))


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def garbage(bell: dict[str, Any], bomb: bytes) -> dict[str, list[bytes]]:
    """Lists of elements that are no honest doorbell, by what is wrong with them."""

    def other(**changed: Any) -> bytes:
        return json.dumps({**bell, **changed}).encode()

    headers = bell["headers"]
    pickled = {"content-type": "application/x-python-serialize", "content-encoding": "binary"}
    return {
        "no JSON": [b"\x80\x04garbage", b"", b"{", b"\xff\xfe", b"[" * 100_000],
        "other JSON": [b"{}", b"[]", b"1", b'"x"', b"null", b"NaN", b'{"body": 1}'],
        "pickle": [pickle.dumps(Bomb), other(body=encoded(bomb), **pickled)],
        "yaml": [other(body=encoded(b"!!python/object/apply:os.getpid []"), **{"content-type": "application/x-yaml"})],
        "unknown task": [other(headers={**headers, "task": "os.system"})],
        "a task of Celery's own": [other(headers={**headers, "task": "celery.backend_cleanup"})],
        "arguments": [other(body=encoded(b'[["x", 2], {"y": 3}, {}]'))],
        "a broken body": [other(body="%%%"), other(body=encoded(b"[[")), other(body=None)],
        "far in the future": [other(headers={**headers, "eta": "2999-01-01T00:00:00+00:00"})],
        "large": [other(body=encoded(b"x" * 10_000_000))],
        "old": [other(headers={"task": RING}), other(headers={}), other(properties={})],
        "of a newer schema": [other(headers={**headers, "v": 99, "schema": {"x": 1}})],
        "replayed": [other()] * 1000,
    }


NAMES = list(garbage({"headers": {}}, b""))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_worker_outlives_what_is_no_doorbell(
    rig: Rig, farm: Farm, raw: redis.Redis, key: str, tmp_path: Path, name: str
) -> None:
    # Given a live worker
    pid = rig.pid(QUEUE)
    # When
    raw.lpush(key, *garbage(bell(rig, raw), pickle.dumps(Bomb(tmp_path / "run")))[name])
    # Then it takes all of it away, still works, and nothing was run
    until(lambda: not raw.llen(key), 30, "the list to be empty")
    works(farm, seed=NAMES.index(name))
    assert rig.pid(QUEUE) == pid
    assert not (tmp_path / "run").exists()


def test_celery_keeps_nothing_but_the_doorbells(farm: Farm, raw: redis.Redis, key: str) -> None:
    # Given a worker that has answered one doorbell, and begun with another
    for seed in (98, 99):
        works(farm, seed=seed)
    # Then there are no results, remote control, events, gossip or acknowledgements
    known = (b"{farm}:", key.encode())
    assert [name for name in raw.scan_iter() if not name.startswith(known)] == []  # type: ignore[union-attr]
    assert (raw.pubsub_channels(), raw.pubsub_numpat()) == ([], 0)


def test_a_bomb_goes_off_where_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "run"))).close()  # noqa: S301 — shows that the test above can fail
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["set", "sadd", "hset", "zadd"])
def test_a_key_that_is_no_list_is_replaced(rig: Rig, farm: Farm, raw: redis.Redis, key: str, kind: str) -> None:
    pid = rig.pid(QUEUE)
    # When the list's name is taken by something else
    words = {"set": ["x"], "sadd": ["x"], "hset": ["x", "y"], "zadd": ["1", "x"]}[kind]
    raw.execute_command("DEL", key)
    raw.execute_command(kind.upper(), key, *words)
    # Then it is gone, and the same worker works
    until(lambda: raw.type(key) in (b"none", b"list"), 30, "the key to be replaced")
    works(farm, seed=100 + len(kind) + ord(kind[0]))
    assert rig.pid(QUEUE) == pid


@pytest.mark.parametrize(
    "name",
    [
        "{key}\x06\x163",
        "{key}\x06\x169",
        "farm:unacked",
        "farm:unacked_index",
        "unacked_index",
        "_kombu.binding.celery",
    ],
)
def test_kombu_s_other_keys_are_of_no_account(rig: Rig, farm: Farm, raw: redis.Redis, key: str, name: str) -> None:
    # Given a key of kombu's that holds what kombu would not put there
    pid, full = rig.pid(QUEUE), name.format(key=key)
    raw.delete(full)
    raw.set(full, "x")
    # When the worker has to connect anew
    rig.plugin["proxy"].cut()  # type: ignore[attr-defined]
    rig.plugin["proxy"].mend()  # type: ignore[attr-defined]
    # Then it works
    works(farm, seed=300 + sum(map(ord, full)))
    assert rig.pid(QUEUE) == pid
    raw.delete(full)


@pytest.mark.parametrize("fault", ["half-open", "reset", "restart"])
def test_the_same_worker_hears_again(rig: Rig, farm: Farm, raw: redis.Redis, fault: str) -> None:
    # Given an idle worker that listens
    pid, proxy = rig.pid(QUEUE), rig.plugin["proxy"]
    # When its connections die
    if fault == "half-open":
        assert proxy.hush() >= 2  # type: ignore[attr-defined]
    elif fault == "reset":
        proxy.cut()  # type: ignore[attr-defined]
        proxy.mend()  # type: ignore[attr-defined]
    else:
        raw.execute_command("WAITAOF", 1, 0, 5000)
        rig.valkey.kill()
        rig.valkey.start()
    # Then it works on, without a restart
    works(farm, seed=200 + len(fault))
    assert rig.pid(QUEUE) == pid
