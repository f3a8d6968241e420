"""How is what a program or a person gives written, so that the API takes it?

The API reads no file: an image that a chain names by its path, or gives as bytes, is uploaded first and then named by
its hash. A chain file's images lie in its folder or the current one, as in `Farm.chain`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from farm.chain import MAX_DEPTH, override, read_chain_file
from farm.chains import FILES
from farm.errors import FieldError, InvalidJob, NotFound
from farm.protocol import ChainSource, ImageSource
from farm.remote.wire import Call, Steps, asked, get, part
from farm.stage import STORED, Stage, kinds
from farm.sweep import count_of, listed

OWN = ("negative_prompt", "seed", "fit", "exact", "reuse", "keep")
"""Fields of the chain itself beside the prompt; every other name is a stage's parameter."""
MAX_SHOWN = 400
"""Characters of a path that are shown, its last ones; a whole one may have 4096."""


def upload(source: ImageSource) -> Steps[str]:
    """The name of an image, stored: `sha256:` and its hash. The same picture has the same name.

    Raises:
        InvalidJob: it cannot be read, or is no image.
    """
    headers = {"Content-Type": "application/octet-stream"}
    found = yield from asked(Call("POST", "uploads", content=_data(source), headers=headers, again=True))
    return str(found["image"])


def job_ask(
    prompt: str | None, chain: ChainSource, image: ImageSource | None, given: Mapping[str, Any], **more: Any
) -> Steps[dict[str, Any]]:
    """The body of a submit; `given` are the chain's own fields and stage parameters, `more` its other fields."""
    own = {name: value for name, value in given.items() if name in OWN}
    written, parameters = yield from chain_ask(chain, {name: value for name, value in given.items() if name not in OWN})
    if more.get("sweep"):
        more["sweep"] = yield from sweep_ask(more["sweep"], written)
    ask: dict[str, Any] = {"chain": written, "prompt": prompt, "parameters": parameters, **own, **more}
    if image is not None:
        ask["image"] = yield from upload(image)
    return {name: value for name, value in ask.items() if value is not None}


def chain_ask(chain: ChainSource, parameters: Mapping[str, Any]) -> Steps[tuple[Any, dict[str, Any]]]:
    """A chain and the parameters over it, every image in them uploaded."""
    folder, written = Path(), chain
    if isinstance(chain, Mapping):
        written = dict(chain)
    elif not isinstance(chain, str | Path):
        raise InvalidJob(errors=(FieldError("chain", "a chain's name, a chain file's path, or a mapping"),))
    elif isinstance(chain, Path) or Path(chain).suffix in FILES:
        written, folder = read_chain_file(Path(chain)), Path(chain).parent
    elif os.path.exists(chain) and (yield from named(chain)) is None:
        raise InvalidJob(f"{chain}: a chain file ends in {', '.join(FILES)}", code="bad_file")
    if any(map(_is_file, parameters.values())):
        # A path of a file may be an image's: which parameters are is only known of a stage.
        if isinstance(written, str):
            written = (yield from named(written)) or written if written else written
        if isinstance(written, Mapping) and isinstance(written.get("stages"), list) and written["stages"]:
            written = {**written, "stages": override(written["stages"], parameters)}
            parameters = {}
    if isinstance(written, Mapping) and isinstance(written.get("stages"), list):
        written = {**written, "stages": (yield from stages_ask(written["stages"], folder))}
    return (yield from _stored(written, folder)), (yield from _stored(dict(parameters), Path()))


def sweep_ask(sweep: Any, chain: Any) -> Steps[Any]:
    """A sweep with the images in it uploaded. A file's path is one where a stage of the chain takes an image there."""
    count_of(sweep)  # refuses what is none
    sweep = yield from _stored(listed(sweep), Path())
    files = {text for axis in sweep for values in axis.values() for text in values if _is_file(text)}
    if not files:
        return sweep
    written = chain if isinstance(chain, Mapping) else (yield from named(chain)) or {}
    stages = written.get("stages", [])
    found = []
    for axis in sweep:
        placed = {}
        for name, values in axis.items():
            names: dict[str, str] = {}
            for text in files.intersection(one for one in values if isinstance(one, str)):
                if name not in ("prompt", *OWN) and _takes(override(stages, {name: text}), text):
                    names[text] = yield from upload(Path(text).expanduser())
            placed[name] = _renamed(values, names)
        found.append(placed)
    return found


def _takes(stages: Sequence[Any], image: str) -> bool:
    """Whether one of the stages takes an image that is named so."""
    read = filter(None, map(_read, stages))
    return image in {value for stage in read for value, _ in stage.uploads().values()}


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and _file(value, Path()) is not None


def _read(stage: Any) -> Stage | None:
    """A stage as in a chain file; None where it is none, which the API says."""
    cls = kinds().get(str(stage.get("kind"))) if isinstance(stage, Mapping) else None
    try:
        return cls.model_validate(dict(stage)) if cls is not None else None
    except ValidationError:
        return None


def stages_ask(stages: Sequence[Any], folder: Path) -> Steps[list[Any]]:
    """Stages as in a chain file, with the files that they name uploaded. What is wrong in them the API says."""
    found: list[Any] = []
    for stage in (yield from _stored(list(stages), folder)):
        read = _read(stage)
        named = {}
        for loc, (value, _) in (read.uploads() if read is not None else {}).items():
            if not value.startswith(STORED):
                named[loc] = yield from _placed(_file(value, folder) or Path(value), loc, len(found))
        if read is not None and named:
            stage = _renamed(stage, {value: named[loc] for loc, (value, _) in read.uploads().items() if loc in named})
        found.append(stage)
    return found


def _placed(path: Path, loc: str, index: int) -> Steps[str]:
    """The name of a stage's image. Raises InvalidJob with the field that names it."""
    try:
        return (yield from upload(path))
    except InvalidJob as error:
        told = tuple(FieldError(f"stages.{index}.{loc}", one.msg, one.code) for one in error.errors)
        raise InvalidJob(error.message if not told else None, code=error.code, errors=told) from None


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """`value` with each path that is in `names` replaced by its name there."""
    if isinstance(value, Mapping):
        return {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _stored(value: Any, folder: Path, depth: int = 0) -> Steps[Any]:
    """`value` with the images in it that are given as bytes or as a `Path` uploaded, and named."""
    if depth > MAX_DEPTH:
        raise InvalidJob(errors=(FieldError("stages", "nested too deep"),))
    if isinstance(value, bytes):
        return (yield from upload(value))
    if isinstance(value, Path):
        return (yield from upload(_file(str(value), folder) or value))
    if isinstance(value, Mapping):
        found = {}
        for key, item in value.items():
            found[key] = yield from _stored(item, folder, depth + 1)
        return found
    if isinstance(value, list | tuple):
        items = []
        for item in value:
            items.append((yield from _stored(item, folder, depth + 1)))
        return items
    return value


def named(name: str) -> Steps[dict[str, Any] | None]:
    """What a chain's name means on that farm, as in a chain file; None where it means none."""
    if not name:
        return None
    try:
        found = yield from get(f"chains/{part(name)}")
    except NotFound:
        return None
    return {**found["fields"], "stages": found["stages"]}


def save_ask(chain: ChainSource, description: str, replace: bool) -> Steps[dict[str, Any]]:
    """The body of what saves a chain, every image that it names uploaded."""
    written, _ = yield from chain_ask(chain, {})
    return {"chain": written, "description": description, "replace": replace}


def _file(value: str, folder: Path) -> Path | None:
    """The file of a path in `folder`, else in the current folder; None where there is none."""
    if value.startswith(STORED):
        return None
    try:
        path = Path(value).expanduser()
        return next((one for one in (folder / path, path) if one.is_file()), None)
    except (OSError, RuntimeError, ValueError):  # too long a name, a user that nobody is, a null byte
        return None


def _data(source: ImageSource) -> bytes:
    """The bytes of an image file. Raises InvalidJob with its path as it was given."""
    if not isinstance(source, str | Path | bytes):
        raise InvalidJob(errors=(FieldError("image", "a file's path, or its bytes", "bad_image"),))
    try:
        return source if isinstance(source, bytes) else Path(source).read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no file has such a name"
        told = f"{str(source)[-MAX_SHOWN:]} cannot be read: {why}"
        raise InvalidJob(errors=(FieldError("image", told, "bad_image"),)) from None
