"""Does each extra bring what its part needs, and is it named where it is missing?"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import free_port

SERVING = ("fastapi", "starlette", "uvicorn")
"""What the extra `api` has, and `client` lacks."""
BARE = (*SERVING, "httpx2")
"""What neither has."""
BLOCK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def without(names: tuple[str, ...], code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """What a program says where the packages `names` are not installed."""
    text = BLOCK.format(names=names) + code
    given = {**os.environ, "FARM_URL": "", "COLUMNS": "300", **env}
    return subprocess.run([sys.executable, "-c", text], env=given, capture_output=True, text=True, timeout=60)


def test_the_client_needs_nothing_of_the_api() -> None:
    # Given what `latent-farm[client]` installs
    code = """
import asyncio
from farm.errors import Unavailable
from farm.remote import AsyncFarm, AsyncJob, RemoteFarm, RemoteJob, connect

async def main():
    async with AsyncFarm({url!r}) as farm:
        await farm.jobs()

for call in (lambda: connect({url!r}).jobs(), lambda: asyncio.run(main())):
    try:
        call()
    except Unavailable as error:
        print(error.message)
""".format(url=f"http://127.0.0.1:{free_port()}")
    # When it is used
    found = without(SERVING, code)
    # Then it asks
    assert found.stdout == "the farm's API cannot be reached\n" * 2, found.stderr


def test_datasets_elsewhere_are_planned_and_fetched_without_what_exports_them() -> None:
    # Given what `latent-farm[client]` installs
    code = """
from pathlib import Path
from farm.errors import Unavailable
from farm.remote import RemoteFarm
from farm.remote.datasets import RemoteDatasets

there = RemoteDatasets(RemoteFarm({url!r}))
calls = (
    there.ls, lambda: list(there.fetch("x", Path("x"))), lambda: there.verify("x"),
    lambda: there.export("x", "x", None),
)
for call in calls:
    try:
        call()
    except Unavailable as error:
        print(error.message, error.hint)
""".format(url=f"http://127.0.0.1:{free_port()}")
    found = without((*SERVING, "pyarrow", "numpy", "imagehash", "dynamicprompts"), code)
    # Then only what reads tables says what it needs
    away = "the farm's API cannot be reached is `farm serve` running there? FARM_URL says where\n"
    needs = "datasets need pyarrow pip install 'latent-farm[dataset]'\n"
    assert found.stdout == 2 * away + 2 * needs, found.stderr


def test_a_bare_installation_has_the_farm_of_this_machine() -> None:
    found = without(BARE, "from farm.remote import connect; print(type(connect('')).__name__)")
    assert found.stdout == "Farm\n", found.stderr


@pytest.mark.parametrize(
    "code", ["from farm.remote import RemoteFarm", "from farm.remote import connect; connect('x')"]
)
def test_a_program_is_told_what_a_farm_elsewhere_needs(code: str) -> None:
    found = without(BARE, code)
    told = "ModuleNotFoundError: a farm elsewhere needs httpx2: pip install 'latent-farm[client]'"
    assert found.stderr.splitlines()[-1] == told


@pytest.mark.parametrize(
    ("words", "env", "error", "hint"),
    [
        (["jobs", "ls"], {"FARM_URL": "http://127.0.0.1:1"}, "FARM_URL needs httpx2", "latent-farm[client]"),
        (["serve"], {}, "the API needs uvicorn", "latent-farm[api]"),
        (["webhook", "test", "x"], {}, "a message needs httpx2", "latent-farm[api]"),
    ],
    ids=["jobs ls", "serve", "webhook test"],
)
def test_a_command_names_the_extra_that_it_needs(words: list[str], env: dict[str, str], error: str, hint: str) -> None:
    found = without(BARE, f"from farm.cli import main; sys.exit(main({words!r}))", **env)
    assert (found.returncode, found.stdout) == (4, "")
    assert found.stderr == f"error: {error}\nhint: pip install '{hint}'\n"


def test_doctor_names_it_too() -> None:
    code = "from farm.cli import main; sys.exit(main(['doctor']))"
    found = without(BARE, code, FARM_URL="http://127.0.0.1:1")
    assert found.returncode == 1
    assert "client: pip install 'latent-farm[client]'" in found.stdout
