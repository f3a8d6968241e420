"""How does a job look in a notebook?

As plain HTML: no script, no style of its own, every text escaped, the pictures small and inline.
"""

from __future__ import annotations

import base64
import io
import json
from html import escape
from typing import Any, Protocol, TypeVar

from farm.errors import FarmError
from farm.records import JobRecord

SIDE = 256
"""Longest side of a picture in a notebook, pixels."""
SMALL_SIDE = 96
"""Longest side of one in a list."""
MOST = 50
"""Jobs of a list that are shown."""
PICTURED = 12
"""Jobs of a list that are shown with their pictures: each is fetched whole."""


class Pictured(Protocol):
    """A job that can be looked at, and whose pictures can be fetched."""

    id: str

    @property
    def record(self) -> JobRecord: ...
    def pngs(self) -> list[bytes]: ...


T = TypeVar("T")


class Jobs(list[T]):
    """Jobs, or their records, that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        rows = [_row(one, index < PICTURED) for index, one in enumerate(self[:MOST])]
        more = f"<p>… and {len(self) - MOST} more</p>" if len(self) > MOST else ""
        heads = "".join(f"<th>{head}</th>" for head in ("job", "state", "stage", "seed", "prompt", ""))
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>{more}"


def html_of(job: Pictured) -> str:
    """A job with its stages, and its pictures once it is done; where the farm is away, that it is."""
    record, pictures, trouble = _looked(job, SIDE)
    told = f"<b>job <code>{escape(job.id)}</code></b>"
    if record is not None:
        told += html_of_record(record)
    return f"<div>{told}{_trouble(trouble)}{pictures}</div>"


def html_of_last(job: str, record: JobRecord | None, pngs: list[bytes]) -> str:
    """A job as it was when somebody last looked."""
    told = html_of_record(record) if record is not None else ""
    return f"<div><b>job <code>{escape(job)}</code></b>{told}{''.join(map(picture, pngs))}</div>"


def html_of_record(record: JobRecord) -> str:
    """Where a job is, and its stages."""
    chain = json.loads(record.spec)["chain"]
    words = [record.state, f"seed {chain['seed']}", record.waits_for, record.code, record.message]
    lines = [" · ".join(escape(str(word)) for word in words if word), escape(str(chain.get("prompt", "")))]
    lines.append(f'<progress max="1" value="{record.progress:.3f}"></progress>')
    rows = [
        _cells(
            stage.index, stage.queue, stage.state, f"{stage.step}/{stage.steps}" if stage.steps else "", stage.message
        )
        for stage in record.stages
    ]
    return f"<br>{'<br>'.join(line for line in lines if line)}<table><tbody>{''.join(rows)}</tbody></table>"


def _row(one: Any, pictured: bool) -> str:
    """A row of a list: of a job, or of a record."""
    if isinstance(one, JobRecord):
        record, pictures, trouble = one, "", ""
    else:
        found, pictures, trouble = _looked(one, SMALL_SIDE, pictured)
        if found is None:
            return f"<tr>{_cells(one.id)}<td colspan='5'>{_trouble(trouble)}</td></tr>"
        record = found
    chain = json.loads(record.spec)["chain"]
    stage = f"{min(record.at + 1, record.n)}/{record.n}"
    state = f"{record.state}{f' ({record.code})' if record.code else ''}"
    cells = _cells(record.job, state, stage, chain["seed"], chain.get("prompt", ""))
    return f"<tr>{cells}<td>{pictures}{_trouble(trouble)}</td></tr>"


def _looked(job: Pictured, side: int, pictured: bool = True) -> tuple[JobRecord | None, str, str]:
    """A job's record, its pictures as HTML, and what hindered looking."""
    try:
        record = job.record
    except FarmError as error:
        return None, "", f"{error.code}: {error.message}"
    if record.state != "done" or not pictured:
        return record, "", ""
    try:
        return record, "".join(picture(png, side) for png in job.pngs()), ""
    except FarmError as error:
        return record, "", f"{error.code}: {error.message}"


def picture(png: bytes, side: int = SIDE) -> str:
    """An image, small, inline as WebP."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png)) as opened:
            small = opened.convert("RGB")
        small.thumbnail((side, side))
        out = io.BytesIO()
        small.save(out, "WEBP", quality=85)
    except (OSError, ValueError) as error:
        return _trouble(f"the picture cannot be shown: {type(error).__name__}")
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img width="{small.width}" height="{small.height}" alt="" src="data:image/webp;base64,{data}">'


def _cells(*values: object) -> str:
    return "".join(f"<td>{escape(str(value))}</td>" for value in values)


def _trouble(text: str) -> str:
    return f"<i>{escape(text)}</i>" if text else ""
