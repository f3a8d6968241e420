"""Does the running API do what its document says, and nothing else?

schemathesis asks, in every phase and with every check.
`SCHEMA_EXAMPLES=200 pytest tests/api/test_schema.py` asks for longer; the seed is always the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.settings import Settings
from tests.api.conftest import Site, made, open_site, txt
from tests.e2e.rig import ROOT

EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "10"))
SEED = 20261122
CONFIG = """
seed = {seed}
continue-on-failure = true
max-stream-events = 1
request-timeout = 15

[auth.wfc]
path = {users}
peers = ["ada", "bob"]

[generation]
no-shrink = true

# A document says of a chain what its fields are, not whether its stages fit each other, and not what a farm has or an
# image shows: that is answered 422 too. The check of our own in `schema_hooks` holds that nothing else is.
[[operations]]
include-operation-id = [
    "jobs.create", "jobs.dry_run", "jobs.fork", "jobs.ls", "jobs.tag", "jobs.tag_many", "runs.ls", "farm.check",
    "uploads.upload", "farm.read", "farm.picture", "datasets.upload", "datasets.look", "datasets.create", "datasets.ls",
    "farm.save_chain",
]
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429", "503"]

[[operations]]
include-operation-id = [
    "farm.drain", "farm.resume", "quarantine.ls", "quarantine.show", "quarantine.drop", "quarantine.retry",
    "tokens.ls", "tokens.create", "tokens.remove",
]
headers.Authorization = {admin}
"""


@pytest.fixture(scope="module")
def site(site_settings: Settings) -> Iterator[Site]:
    """A farm whose runs are small: schemathesis gives an answer ten seconds."""
    with open_site(site_settings.model_copy(update={"max_count": 50}), heartbeat_s=0.5) as found:
        yield found


def run(site: Site, folder: Path, *words: str) -> tuple[int, str]:
    """The exit status of schemathesis, and what it said."""
    users = []
    for owner in ("ada", "bob"):
        text = site.token(owner)
        users.append({"name": owner, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {text}"}]})
        with site.anonymous(Authorization=f"Bearer {text}") as client:
            made(client.post("/api/v1/jobs", json=txt()))  # so that their streams have something to tell
    (folder / "users.json").write_text(json.dumps({"auth": users}))
    told = {
        "users": json.dumps(str(folder / "users.json")),
        "admin": json.dumps(f"Bearer {site.token('ops', 'admin')}"),
    }
    config = CONFIG.format(seed=SEED, **told)
    (folder / "schemathesis.toml").write_text(config)
    script = Path(sys.executable).with_name("st")
    ended = subprocess.run(
        [script, "--config-file", folder / "schemathesis.toml", "run", f"{site.url}/api/v1/openapi.json",
         "--phases", "examples,coverage,fuzzing,stateful", "--checks", "all", "--max-examples", str(EXAMPLES), *words],
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.api.schema_hooks", "PYTHONPATH": str(ROOT)},
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280 + 60 * EXAMPLES,
    )  # fmt: skip
    return ended.returncode, ended.stdout


@pytest.mark.timeout(300 + 60 * EXAMPLES)
def test_the_api_is_what_its_document_says(site: Site, tmp_path: Path) -> None:
    status, said = run(site, tmp_path)
    assert status == 0, said
