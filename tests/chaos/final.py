"""What is left when everything is at rest?

`final` reads the ledger, the store and the queues once the last job has ended, into one JSON-able value, so that the
checker needs no server.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from typing import Any

from PIL import Image

from farm.errors import BadBlob, FarmError
from farm.image import hash_pixels
from tests.chaos import stages
from tests.chaos.system import System


def final(system: System) -> dict[str, Any]:
    """The state at rest: `jobs` by id, `execs` by name, `rest` (what should be empty, by name), `stats`, and for later
    the exit `statuses` of the supervisors.
    """
    client, farm = system.redis, system.judge
    prefix = "{" + farm.settings.namespace + "}:"
    jobs = {job: _job(system, job) for job in client.zrange(prefix + "jobs", 0, -1)}
    execs = {}
    for key in client.scan_iter(prefix + "x:*", count=1000):
        name = key.removeprefix(prefix + "x:")
        if client.type(key) == "hash" and not name.endswith(":causes"):
            execs[name] = client.hgetall(key)
    return {"jobs": jobs, "execs": execs, "rest": at_rest(system), "stats": farm.ledger.stats(), "statuses": []}


def at_rest(system: System) -> dict[str, int]:
    """Of each thing that is empty where nothing is to be done, how much there is."""
    client = system.redis
    prefix = "{" + system.judge.settings.namespace + "}:"
    found = {name: int(client.zcard(prefix + name)) for name in ("leases", "due", "deadlines")}
    found["moving"] = int(client.scard(prefix + "moving"))
    found |= {f"ready {one.queue}": one.ready for one in system.judge.ledger.queues()}
    found |= {f"running {one.queue}": one.running for one in system.judge.ledger.queues()}
    found |= {key: int(client.scard(key)) for key in client.scan_iter(prefix + "held:*")}
    for queue in stages.QUEUES:
        name = f"{system.judge.settings.namespace}:{queue}"
        found[f"doorbells {queue}"] = int(client.llen(name)) if client.type(name) in ("list", "none") else -1
    spools = [system.folder / name for name in system.supervisors] + [system.disk] * bool(system.disk)
    found["spool"] = sum(path.is_file() for spool in spools if spool for path in spool.glob("**/spool/**/*"))
    return found


def _job(system: System, job_id: str) -> dict[str, Any]:
    """The job's record, its own stream, and its result as it lies in the store."""
    farm = system.judge
    record = asdict(farm.ledger.job(job_id))
    record["events"] = [asdict(event) for event in farm.ledger.events(job_id)]
    record["result"] = None
    if record["state"] == "done":
        (result,) = farm.job(job_id).results
        try:
            data = farm.store.get_blob(result.sha256, max_bytes=1 << 24)  # checks the hash
            named = farm.store.client.get_object(Bucket=farm.store.bucket, Key=result.key)["Body"].read()
            pixels = hash_pixels(Image.open(io.BytesIO(data)))
            record["result"] = {"sha256": result.sha256, "pixels": pixels, "named_is_same": named == data}
        except (BadBlob, FarmError, OSError) as error:
            record["result"] = {"error": f"{type(error).__name__}: {error}"}
        except farm.store.client.exceptions.ClientError as error:
            record["result"] = {"error": json.dumps(error.response["Error"])}
    return record
