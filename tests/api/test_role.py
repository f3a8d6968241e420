"""Does the API run under the README's role of Redis?"""

from __future__ import annotations

from pathlib import Path

import redis
from pydantic import SecretStr

from farm.ledger import FAN
from farm.scripts import Server
from farm.settings import Settings
from farm.webhooks import Webhooks
from tests.api.conftest import made, open_site, txt
from tests.api.listener import Listener
from tests.api.receiver import receiving
from tests.conftest import Valkey
from tests.e2e.test_roles import CANARY, roles, url


def test_the_producers_role_is_enough(s3: dict[str, str], tmp_path: Path) -> None:
    # Given a Valkey with the README's producer
    valkey = Valkey(tmp_path / "valkey").start()
    admin = redis.Redis.from_url(valkey.url)
    admin.execute_command("ACL", "SETUSER", "producer", *roles()["producer"].replace("PASSWORD", CANARY).split())
    straight = Settings.load(redis_url=valkey.url, bucket="roles", data=tmp_path / "data", **s3)
    through = straight.model_copy(update={"redis_url": SecretStr(url("producer", valkey.port))})
    # When the API is served as that user, by tokens that it made
    with open_site(through, heartbeat_s=0.5) as site, site.client("ada") as ada, Listener(ada, "/api/v1/events") as ear:
        # Then it does all of its work
        (job,) = made(ada.post("/api/v1/jobs", json=txt(), headers={"Idempotency-Key": "x"}))["jobs"]
        ear.hears(job["id"], "queued")
        for call in ("pause", "resume", "cancel", "retry", "cancel"):
            assert ada.post(f"{job['url']}/{call}").status_code == 200
        ear.hears(job["id"], "cancelled")
        with Listener(ada, "/api/v1/events", next(one.id for one in ear.heard if one.id)) as again:
            again.hears(job["id"], "cancelled")
        assert ada.get("/api/v1/queues").status_code == 200
        with receiving() as receiver:
            Webhooks(Server(through, FAN)).create(receiver.url)
            run = made(ada.post("/api/v1/jobs", json=txt(count=2)))["run"]
            ada.post(f"/api/v1/runs/{run}/cancel")
            receiver.hears(run)
        (token,) = site.tokens.all()
        site.tokens.remove(token.id)
    # And nothing that it asked for was refused
    assert admin.acl_log() == []
    valkey.kill()
