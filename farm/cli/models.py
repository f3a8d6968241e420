"""Which checkpoints may stages load, which are on this machine, and are they what was recorded?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farm.cli.outcome import Outcome, Table, group, open_overview, say, settings_here
from farm.errors import FarmError, InvalidJob

app = group("models", "Checkpoints and adapters: list, pull, verify, remove, convert.")
Force = Annotated[bool, typer.Option("--force", help="Record the files anew, even if they are other ones than before.")]


@app.command()
def ls() -> Outcome:
    """List the catalog's checkpoints and adapters, whether they are pulled, and what they take on the disk.

    \b
    farm models ls
    """
    with open_overview() as farm:
        data = farm.weights()
    rows = [
        (found["name"], found["type"], found["family"], ",".join(found["kinds"]), found["space"] or "",
         found["native"] or "", " ".join(f"{key}={value}" for key, value in found["recommended"].items()),
         f"{found['size_bytes'] / 1e6:,.1f} MB" if found["pulled"] else "no", found["licence"], found["source"])
        for found in data
    ]  # fmt: skip
    header = ("NAME", "TYPE", "FAMILY", "KINDS", "SPACE", "NATIVE", "RECOMMENDED", "PULLED", "LICENCE", "SOURCE")
    return Outcome(data, [Table(header, rows)])


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Checkpoints or adapters that are pulled.")],
) -> Outcome:
    """Remove the files and hashes of checkpoints and adapters.

    What lies in a folder of your own stays, and so does the hub's cache, with which pulled files share
    their room: `hf cache rm` clears that.

    \b
    farm models rm sd15
    """
    from farm import models
    from farm.catalog import Catalog

    catalog = Catalog.load(settings_here("models rm"))
    freed = {name: models.remove(catalog, name) for name in names}
    lines = [f"{name}  removed, {size / 1e6:,.1f} MB are free again" for name, size in freed.items()]
    return Outcome([{"name": name, "size_bytes": size} for name, size in freed.items()], lines)


@app.command()
def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Checkpoints and adapters of the catalog.")],
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="A copy of the hub's cache folder, to work offline.")
    ] = None,
    force: Force = False,
) -> Outcome:
    """Fetch or build checkpoints and adapters, and record the hash of each file.

    \b
    farm models pull demo demo-x2 demo-x4
    farm models pull sd15 --from /media/usb/huggingface/hub
    """
    from farm import models
    from farm.catalog import Catalog

    catalog = Catalog.load(settings_here("models pull"))
    data, lines = [], []
    for name in names:
        say(f"pulling {name}")
        lock = models.pull(catalog, name, source, force=force, say=say)
        data.append({"name": name, "revision": lock.revision, "files": len(lock.files), "manifest": lock.manifest})
        lines.append(f"{name}  {len(lock.files)} files  manifest {lock.manifest[:12]}")
    return Outcome(data, lines)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors, or a .ckpt, .pt, .pth or .bin.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder, or for a pickle a new .safetensors.")],
    config: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder in the hub's layout whose configuration the file has.")
    ] = None,
) -> Outcome:
    """Make a folder in the hub's layout of a single file, or safetensors of a pickle.

    A pickle is read in a process of its own, by torch's reader that calls nothing that the file names. The new
    checkpoint can be used once your catalog (FARM_CATALOG) has an entry for it, and it is pulled.

    \b
    farm models convert old.ckpt new.safetensors
    farm models convert new.safetensors new/ --config sd15-config/
    """
    from farm import models

    settings_here("models convert")
    models.convert(source, target, config)
    return Outcome({"target": str(target)}, [f"{target} is made; name it in the catalog as `folder` or `file`"])


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Checkpoints and adapters. [all that are pulled]")
    ] = None,
) -> Outcome:
    """Hash the files of checkpoints again and compare with what the pull recorded.

    \b
    farm models verify
    """
    from farm import models
    from farm.catalog import Catalog

    catalog = Catalog.load(settings_here("models verify"))
    entries = (*catalog.checkpoints.values(), *catalog.adapters.values())
    pulled = [found.name for found in entries if catalog.lock_path(found).exists()]
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
