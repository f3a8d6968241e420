"""What does a command give, and how do people and programs read it?

A command returns an `Outcome`. For people its lines go to stdout and what went wrong to stderr, one line each. With
`--json` stdout holds one envelope, `{ok, command, version, data, error}`. Progress and prose always go to stderr.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

import typer

from farm import __version__
from farm.errors import FarmError, InvalidJob, StageFailed, Unavailable

if TYPE_CHECKING:
    from farm.protocol import AnyFarm, AnyOverview
    from farm.settings import Settings

INTERRUPTED = 130
"""Exit status after Ctrl+C. Source: the shells' 128 + SIGINT."""
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True)
class Table:
    """Rows under headings."""

    heads: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Outcome:
    """What a command gives: `data` for programs, `lines` for people, `error` if it did not all go well."""

    data: Any = None
    lines: Sequence[str | Table] = ()
    error: FarmError | None = None

    @property
    def status(self) -> int:
        """The exit status: 0 ok, 1 failure, 2 usage or invalid job, 3 job failed, 4 unreachable, 130 interrupted."""
        if self.error is None:
            return 0
        if self.error.code == "interrupted":
            return INTERRUPTED
        if self.error.code == "usage" or isinstance(self.error, InvalidJob):
            return 2
        return 3 if isinstance(self.error, StageFailed) else 4 if isinstance(self.error, Unavailable) else 1

    def envelope(self, command: str) -> str:
        """The outcome as one line of JSON."""
        error = self.error and {
            "code": self.error.code,
            "message": self.error.message,
            "hint": self.error.hint,
            "errors": [asdict(wrong) for wrong in getattr(self.error, "errors", ())],
        }
        found = {"ok": error is None, "command": command, "version": __version__, "data": self.data, "error": error}
        return json.dumps(found, default=_plain)

    def show(self) -> None:
        """Prints the lines to stdout, and the error with its hint to stderr."""
        for line in self.lines:
            if isinstance(line, Table):
                show_table(line)
            else:
                print(printable(line))
        sys.stdout.flush()
        if self.error is not None:
            wrong = [f"{found.loc}: {found.msg}" for found in getattr(self.error, "errors", ())]
            for message in wrong or [self.error.message]:
                say(f"error: {message}")
            if self.error.hint:
                say(f"hint: {self.error.hint}")


def _plain(value: Any) -> Any:
    """What JSON has no word for."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


def group(name: str, purpose: str) -> typer.Typer:
    """An empty group of commands."""
    return typer.Typer(
        name=name, help=purpose, callback=need_command, invoke_without_command=True, context_settings=HELP_OPTIONS
    )


def need_command(ctx: typer.Context) -> None:
    """Shows the help of a group that was called without a command, and raises the usage error."""
    if ctx.invoked_subcommand is None:
        say(ctx.get_help())
        raise usage(f"`{ctx.command_path}` needs a command")


def usage(message: str, hint: str = "") -> FarmError:
    """The error of a command line that cannot be meant."""
    return FarmError(message, code="usage", hint=hint)


def say(line: str) -> None:
    """Prints one line of prose to stderr."""
    print(printable(line), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """`text` as a terminal may have it: what would steer it, or turn the direction of writing, stands escaped."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_plain(stream: Any) -> bool:
    """Whether `stream` gets bare lines: it is no terminal, or the user wants no colours."""
    return not stream.isatty() or bool(os.environ.get("NO_COLOR"))


def show_table(table: Table) -> None:
    """Prints a table to stdout: aligned columns, never wrapped or cut; bold headings on a terminal."""
    rows = [[printable(str(cell)) for cell in row] for row in (table.heads, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for index, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        print(line if index or is_plain(sys.stdout) else f"\033[1m{line}\033[0m")


def load_settings(**given: Any) -> Settings:
    """The settings, with logging set up as they say."""
    # Here and not above: structlog takes longer to import than `farm --help` runs.
    from farm.log import log_to_stderr
    from farm.settings import Settings

    settings = Settings.load(**given)
    log_to_stderr(settings.log_level)
    return settings


def settings_here(command: str) -> Settings:
    """The settings, for a command that needs the farm's own machine.

    Raises:
        FarmError: (`usage`) FARM_URL names a farm elsewhere.
    """
    settings = load_settings()
    if settings.url:
        message = f"`farm {command}` works on the farm's own machine, and FARM_URL names a farm elsewhere"
        raise usage(message, "unset FARM_URL to use this machine")
    return settings


@contextmanager
def open_farm() -> Iterator[AnyFarm]:
    """The farm that the settings name: by FARM_URL over HTTP, else by its own servers."""
    settings = load_settings()
    farm: AnyFarm
    if settings.url:
        farm = _elsewhere(settings)
    else:
        from farm.client import Farm

        farm = Farm(settings)
    with closing(farm):
        yield farm


@contextmanager
def open_overview() -> Iterator[AnyOverview]:
    """The same farm, for commands that submit nothing and need no job: without what takes its time to import."""
    settings = load_settings()
    farm: AnyOverview
    if settings.url:
        farm = _elsewhere(settings)
    else:
        from farm.overview import Overview

        farm = Overview(settings)
    with closing(farm):
        yield farm


def _elsewhere(settings: Settings) -> AnyFarm:
    """The farm that FARM_URL names."""
    try:
        from farm.remote import RemoteFarm
    except ModuleNotFoundError as error:
        raise Unavailable(f"FARM_URL needs {error.name}", hint="pip install 'latent-farm[client]'") from None
    return RemoteFarm(settings=settings)
