"""Which checkpoints may stages load, which are on this machine, and are they what was recorded?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from farm.cli.outcome import Outcome, Table, group, load_settings, say
from farm.errors import FarmError, InvalidJob

app = group("models", "Checkpoints: list, pull, verify.")
Force = Annotated[bool, typer.Option("--force", help="Record the files anew, even if they are other ones than before.")]


@app.command()
def ls() -> Outcome:
    """List the catalog's checkpoints, and whether they are pulled.

    \b
    farm models ls
    """
    from farm.catalog import Catalog

    catalog = Catalog.load(load_settings())
    data: list[dict[str, Any]] = [
        {
            "name": found.name,
            "kinds": found.kinds,
            "space": found.space,
            "native": found.native,
            "source": found.repo or found.folder or found.file or found.build,
            "licence": found.licence,
            "pulled": catalog.lock_path(found).exists(),
        }
        for found in catalog.checkpoints.values()
    ]
    rows = [
        (found["name"], ",".join(found["kinds"]), found["space"], found["native"], "yes" if found["pulled"] else "no",
         found["licence"], found["source"])
        for found in data
    ]  # fmt: skip
    return Outcome(data, [Table(("NAME", "KINDS", "SPACE", "NATIVE", "PULLED", "LICENCE", "SOURCE"), rows)])


@app.command()
def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Checkpoints of the catalog.")],
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="A copy of the hub's cache folder, to work offline.")
    ] = None,
    force: Force = False,
) -> Outcome:
    """Fetch or build checkpoints, and record the hash of each file.

    \b
    farm models pull demo demo-x2 demo-x4
    farm models pull sd15 --from /media/usb/huggingface/hub
    """
    from farm import models
    from farm.catalog import Catalog

    catalog = Catalog.load(load_settings())
    data, lines = [], []
    for name in names:
        say(f"pulling {name}")
        lock = models.pull(catalog, name, source, force=force)
        data.append({"name": name, "revision": lock.revision, "files": len(lock.files), "manifest": lock.manifest})
        lines.append(f"{name}  {len(lock.files)} files  manifest {lock.manifest[:12]}")
    return Outcome(data, lines)


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Checkpoints. [all that are pulled]")
    ] = None,
) -> Outcome:
    """Hash the files of checkpoints again and compare with what the pull recorded.

    \b
    farm models verify
    """
    from farm import models
    from farm.catalog import Catalog

    catalog = Catalog.load(load_settings())
    pulled = [name for name, found in catalog.checkpoints.items() if catalog.lock_path(found).exists()]
    if not pulled and not names:
        raise InvalidJob("no checkpoint has been pulled", code="not_pulled", hint="run `farm models pull NAME`")
    found = {name: models.verify(catalog, name) for name in names or pulled}
    lines = [f"{name}  {'; '.join(problems) if problems else 'as recorded'}" for name, problems in found.items()]
    wrong = [name for name, problems in found.items() if problems]
    error = None
    if wrong:
        hint = f"`farm models pull {' '.join(wrong)}` fetches them again"
        error = FarmError(f"not as recorded: {', '.join(wrong)}", code="bad_checkpoint", hint=hint)
    return Outcome([{"name": name, "problems": problems} for name, problems in found.items()], lines, error)
