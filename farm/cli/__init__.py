"""How does a person or a script use the farm from a terminal?

`main` is the console script. Each command lies in the module of its noun and imports what it needs when it runs, so
that `farm --help` starts in a blink.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from farm import __version__
from farm.cli import chains, collect, jobs, machine, models, quarantine, queues, render, runs, serve, webhook
from farm.cli.outcome import HELP_OPTIONS, INTERRUPTED, Outcome, is_plain, need_command, usage
from farm.errors import FarmError

UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a command line it does not understand. It exports only this child of it."""
GLOBAL = ("--json", "--no-color")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that knows ASCII only gets a ? for an arrow, not a traceback.
            stream.reconfigure(errors="replace")
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    asked = [word for word in words[:end] if word in GLOBAL]
    words = asked + [word for word in words[:end] if word not in GLOBAL] + words[end:]
    if "--no-color" in asked:
        os.environ["NO_COLOR"] = "1"
    as_json = "--json" in asked
    tree = typer.main.get_command(_app(rich=not as_json and not is_plain(sys.stdout)))
    try:
        outcome = _run(tree, words)
    except Exception:
        if as_json:
            print(
                Outcome(error=FarmError(code="internal", hint="the traceback is on stderr")).envelope(
                    _name(tree, words)
                )
            )
        raise
    if isinstance(outcome, int):
        return outcome
    try:
        if as_json:
            print(outcome.envelope(_name(tree, words)), flush=True)
        else:
            outcome.show()
    except BrokenPipeError:
        # The reader (`head`) has seen enough. Nothing more may be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return outcome.status


def _run(tree: Any, words: list[str]) -> Outcome | int:
    """What the command gives; an int where typer itself has answered (`--help`)."""
    try:
        found = tree.main(args=words, prog_name="farm", standalone_mode=False)
    except FarmError as error:
        return Outcome(error=error)
    except UsageError as error:
        where = error.ctx.command_path if error.ctx else "farm"
        return Outcome(error=usage(error.format_message().rstrip("."), f"`{where} --help` shows how"))
    except typer.Abort:
        found = INTERRUPTED
    if found == INTERRUPTED:
        return Outcome(error=FarmError(code="interrupted"))
    return found if isinstance(found, Outcome) else int(found or 0)


def _name(tree: Any, words: Sequence[str]) -> str:
    """The words of the command in a command line: `jobs ls`."""
    names = []
    for word in words:
        if word.startswith("-"):
            continue
        tree = getattr(tree, "commands", {}).get(word)
        if tree is None:
            break
        names.append(word)
    return " ".join(names)


def _app(rich: bool) -> typer.Typer:
    """The tree of commands; `rich` asks for coloured help in boxes."""
    app = typer.Typer(
        rich_markup_mode="rich" if rich else None,
        context_settings=HELP_OPTIONS,
        invoke_without_command=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    commands = (
        machine.up, machine.demo, render.render, render.rerun, render.script, chains.stages, machine.worker,
        serve.serve,
    )  # fmt: skip
    for command in commands:
        app.command()(command)
    app.command()(machine.doctor)
    groups = (
        jobs.app, runs.app, queues.app, queues.workers, quarantine.app, collect.app, chains.app, models.app, serve.app,
        webhook.app,
    )  # fmt: skip
    for group in groups:
        app.add_typer(group)
    return app


def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    # Known here for the help and the order of words; `main` has looked at them before.
    _json: Annotated[bool, typer.Option("--json", help="Print one JSON envelope to stdout.")] = False,
    _no_color: Annotated[bool, typer.Option("--no-color", help="Plain output, as with NO_COLOR.")] = False,
) -> Outcome | None:
    """A rendering farm for diffusion models.

    \b
    farm up                                        a whole farm on this machine
    farm render "a red apple" --wait -o out/       one picture through four stages
    farm jobs ls                                   what was asked for, and how far it is
    farm doctor                                    what works here, and how to mend the rest

    Exit status: 0 ok, 1 failure, 2 usage or invalid job, 3 a job did not end done, 4 unreachable, 130 interrupted.
    """
    if version:
        return Outcome({"version": __version__}, [f"farm {__version__}"])
    need_command(ctx)
    return None
