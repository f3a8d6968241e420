"""Does the farm of one command serve the API too, through the death of its process, and end with it?"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest

from farm.errors import Unavailable
from farm.local import API_PORTS, Keeper, up
from farm.servers import Servers
from farm.settings import Settings
from tests.api.conftest import made, txt
from tests.api.listener import Listener
from tests.e2e.rig import ROOT, until

SLOT = "text2img"
JOBS = "/api/v1/jobs"


@dataclass
class Up:
    """A running `farm up`."""

    process: subprocess.Popen[str]
    data: Path
    said: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where its connection file says that the API is."""
        return str(json.loads((self.data / "farm.json").read_text())["api_url"])

    def api(self) -> psutil.Process:
        """The API's process."""
        (found,) = [one for one in psutil.Process(self.process.pid).children() if "farm.api.serve" in one.cmdline()]
        return found

    def tokens(self) -> list[str]:
        """The tokens that were told: the first one, and the one in the dashboard's link."""
        return re.findall(r"\bfarm_[0-9a-f]{12}_[A-Za-z0-9_-]{43}\b", "".join(self.said))


@contextmanager
def farm_up(data: Path, models_dir: Path) -> Iterator[Up]:
    """`farm up` with one worker, once it is up; ended by SIGTERM."""
    command = [str(Path(sys.executable).with_name("farm")), "up", "--slots", SLOT]
    env = {**os.environ, "FARM_DATA": str(data), "FARM_MODELS": str(models_dir), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    found = Up(process, data)
    assert process.stderr
    reader = threading.Thread(target=found.said.extend, args=(process.stderr,))
    reader.start()
    try:
        until(lambda: any("The farm is up" in line for line in found.said) or process.poll() is not None)
        assert process.poll() is None, found.said
        yield found
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        reader.join()


def test_one_command_serves_the_api_as_long_as_the_farm_runs(models_dir: Path, tmp_path: Path) -> None:
    # Given
    with farm_up(tmp_path, models_dir) as farm:
        # Then it says where the API is, and the first token, once
        until(lambda: any(farm.url in line for line in farm.said), 30, "the address")
        token, linked = until(lambda: len(found := farm.tokens()) == 2 and found, 30, "both tokens")
        (link,) = [line for line in farm.said if linked in line]
        assert f"{farm.url}/#token={linked}" in link
        with httpx2.Client(base_url=farm.url, headers={"Authorization": f"Bearer {linked}"}, timeout=60) as client:
            assert client.get("/api/v1/session").json()["scopes"] == ["admin"]
            assert "script-src 'self'" in client.get("/").headers["content-security-policy"]
        with httpx2.Client(base_url=farm.url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
            assert httpx2.get(f"{farm.url}{JOBS}").status_code == 401
            # When a job is submitted there
            (job,) = made(client.post(JOBS, json=txt(parameters={"num_inference_steps": 2})))["jobs"]
            with Listener(client, f"{JOBS}/{job['id']}/events") as ear:
                # Then the farm's worker does it
                assert ear.over.wait(120)
            assert ear.heard[-1].data["state"] == "done"
            # When the API's process dies
            api = farm.api()
            api.kill()
            psutil.wait_procs([api], 30)
            # Then whoever calls meanwhile waits until it is there again, at the same address
            assert client.get(f"{JOBS}/{job['id']}").json()["state"] == "done"
            assert farm.api().pid != api.pid
        children, url = psutil.Process(farm.process.pid).children(recursive=True), farm.url
    # And all of it ends with the farm
    assert farm.process.returncode == 0
    assert not psutil.wait_procs(children, 10)[1]
    assert not (tmp_path / "farm.json").exists()
    # And the next start shows no token but that of its link, and leaves a port that is taken
    port = int(url.rpartition(":")[2])
    taken = ExitStack()
    with suppress(OSError):  # another farm has it by now
        taken.enter_context(socket.create_server(("127.0.0.1", port)))
    with taken, farm_up(tmp_path, models_dir) as again:
        (fresh,) = until(again.tokens, 30, "the link")
        assert fresh not in (token, linked)
        assert int(again.url.rpartition(":")[2]) != port
        with httpx2.Client(base_url=again.url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
            assert client.get(f"{JOBS}/{job['id']}").json()["state"] == "done"


def test_the_api_ends_with_a_killed_farm(models_dir: Path, tmp_path: Path) -> None:
    with farm_up(tmp_path, models_dir) as farm:
        api = farm.api()
        farm.process.kill()
        assert not psutil.wait_procs([api], 30)[1]


def test_a_server_that_cannot_come_back_keeps_the_api_from_nothing(tmp_path: Path) -> None:
    # Given the API beside its servers
    with Servers(Settings(data=tmp_path)) as servers, socket.create_server(("127.0.0.1", 0)) as listener:
        keeper = Keeper(servers, [], listener)
        keeper.start()
        part = keeper._parts["api"]
        try:
            # When the store has gone and cannot be started again, and the API dies
            servers._running["s3"].kill()
            servers._running["s3"].wait()
            shutil.rmtree(tmp_path / "s3")
            (tmp_path / "s3").write_text("no folder")
            first = part.process
            assert first
            first.kill()
            # Then it is there again
            until(lambda: part.process is not first)
            with httpx2.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
                assert client.get("/healthz").status_code == 200
        finally:
            keeper.stop()


def test_without_any_free_port_nothing_is_started(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("farm.local.API_PORTS", range(port, port + 1))
        # When
        with pytest.raises(Unavailable) as info:
            up(settings, ["text2img.tiny"])
    # Then
    assert str(port) in info.value.message
    assert not settings.data.exists()
    assert API_PORTS[0] == 8400
