"""What did a stage make, how does it get to the farm, and how does it lie on a disk until then?

A file holds one result: the SHA-256 of its second line, then that line, which is JSON (claim, output, content type),
then the bytes, whose SHA-256 the output names, and those of a picture that is kept of them, if there is one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import structlog

from farm.errors import Unavailable
from farm.job import canonical
from farm.ledger import Ledger
from farm.records import Claim, Commit
from farm.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

_log = structlog.get_logger(__name__)
FORMATS = (1, 2)
"""Versions of the files: in the second the bytes of a kept picture follow those of the result."""
TYPES = {"image": "image/png", "preview": "image/webp"}
"""What a kept picture is, by how it is kept."""


@dataclass(frozen=True)
class Result:
    """What a stage made, before the farm has it. `output` is what the ledger will say of `data`."""

    claim: Claim
    output: dict[str, Any]
    content_type: str
    data: bytes
    beside: bytes = b""
    """The picture that `output` says is kept, where that is not `data` itself."""


def kept(result: Result, how: str, image: Image, data: bytes) -> Result:
    """`result` with a picture of it, whose file is `data`, to be kept for people to see; `how` is image or preview."""
    sha256 = hashlib.sha256(data).hexdigest()
    told = {"keep": how, "blob": sha256, "bytes": len(data), "size": list(image.size)}
    beside = b"" if sha256 == result.output["blob"] else data
    return replace(result, output={**result.output, "kept": told}, beside=beside)


def upload(store: Store, result: Result) -> Commit:
    """Writes a result's bytes, then what `publish` writes; the commit that names them. Raises as `Store.put_blob`."""
    if result.beside:
        store.put_blob(result.beside, TYPES[result.output["kept"]["keep"]])
    store.put_blob(result.data, result.content_type)
    return publish(store, result.claim, result.output, result.data)


def publish(store: Store, claim: Claim, output: dict[str, Any], data: bytes) -> Commit:
    """Writes the readable result of every job that ends with `output`; the commit that says so.

    Raises:
        Unavailable: the store does not answer.
    """
    recipes = json.loads(claim.payload)["recipes"]
    for job in claim.finishing:
        sidecar = {"job": job, "index": len(recipes) - 1, "output": output, "recipes": recipes}
        store.put_result(job, len(recipes) - 1, data, sidecar, output["blob"])
    return Commit(claim, canonical(output), claim.finishing)


def commit(ledger: Ledger, store: Store, commits: Sequence[Commit]) -> tuple[list[bool], set[str]]:
    """What `Ledger.commit` says to outputs that are written already.

    A job may be deleted while its result is written, and its folder be emptied before that is in there: it goes again.

    Raises:
        Unavailable: the ledger does not answer.
    """
    answer = ledger.commit(commits)
    if published := [job for one in commits for job in one.published]:
        try:
            for job in ledger.gone(published):
                store.delete_results(store.results_of(job))
        except Unavailable as error:
            _log.warning("result_left", error=error.code)
    return answer


def pieces(result: Result) -> tuple[bytes, bytes, bytes]:
    """The file of `result` in three pieces: what it is, its bytes, and those of the picture that is kept of it."""
    version = FORMATS[bool(result.beside)]
    about = {"v": version, "claim": asdict(result.claim), "output": result.output, "content_type": result.content_type}
    header = json.dumps(about).encode()
    return hashlib.sha256(header).hexdigest().encode() + b"\n" + header + b"\n", result.data, result.beside


def write(path: Path, pieces: Sequence[bytes]) -> None:
    """Writes a file that is whole and on the disk when it appears under its name. Raises OSError and leaves nothing."""
    partial = path.with_suffix(".tmp")
    try:
        with partial.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        partial.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise


def read(path: Path) -> Result:
    """The result in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what was written, or not by a build that wrote it as this one does.
    """
    with path.open("rb") as file:
        claim, about = read_header(file)
        output = about["output"]
        data = file.read(output["bytes"]) if about["v"] == FORMATS[1] else file.read()
        beside = file.read()
    wrong = beside and hashlib.sha256(beside).hexdigest() != output["kept"]["blob"]
    if wrong or hashlib.sha256(data).hexdigest() != output["blob"]:
        raise ValueError("the bytes of a spooled result are not those that were written")
    return Result(claim, output, about["content_type"], data, beside)


def read_header(file: BinaryIO) -> tuple[Claim, dict[str, Any]]:
    """The claim at the head of a file, and all that stands there. Raises as `read`."""
    digest, header = file.readline().rstrip(b"\n"), file.readline().rstrip(b"\n")
    if hashlib.sha256(header).hexdigest().encode() != digest:
        raise ValueError("the head of a spooled result is not what was written")
    about = json.loads(header)
    shape = Claim.__dataclass_fields__.keys()
    if not isinstance(about, dict) or about.get("v") not in FORMATS or about.get("claim", {}).keys() != shape:
        raise ValueError("a spooled result of another build")
    lists = {name: tuple(about["claim"][name]) for name in ("waiters", "finishing")}
    return Claim(**{**about["claim"], **lists}), about
