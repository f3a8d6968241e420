"""What was measured of a shard's pictures later, by what, and in which tar?

A table beside the shard, `00042_scores.parquet`: `key`, and a column of numbers for each thing that was measured, null
where a picture cannot be read. Its schema says of which tar it speaks (SHA-256) and what made each column: the name of
a catalog's entry and the hash of its files. So it is known what is still to be measured, and what is out of date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from farm.job import canonical

if TYPE_CHECKING:
    import pyarrow as pa

_TOLD = b"latent-farm"
"""Where the schema's metadata says of what and by what."""


def tar_of(table: pa.Table) -> str:
    """The SHA-256 (hex) of the tar whose pictures were measured; "" for a table that does not say."""
    return str(_told(table).get("tar", ""))


def made_by(table: pa.Table) -> dict[str, Any]:
    """What made each column, as it was given to `merged`."""
    found = _told(table).get("columns")
    return found if isinstance(found, dict) else {}


def merged(
    before: pa.Table | None,
    tar: str,
    keys: Sequence[str],
    columns: Mapping[str, Sequence[float | None]],
    made: Mapping[str, Mapping[str, Any]],
) -> pa.Table:
    """The table with fresh `columns`, each as long as `keys`; what `before` has of the same tar beside them stays."""
    import pyarrow as pa

    held: dict[str, Any] = {}
    if before is not None and tar_of(before) == tar and before["key"].to_pylist() == list(keys):
        kept = made_by(before)
        held = {name: (kept[name], before[name]) for name in before.column_names if name in kept}
    held |= {name: (dict(made[name]), pa.array(values, pa.float64())) for name, values in columns.items()}
    found = {"key": pa.array(keys, pa.string()), **{name: held[name][1] for name in sorted(held)}}
    told = {"tar": tar, "columns": {name: by for name, (by, _) in held.items()}}
    return pa.table(found).replace_schema_metadata({_TOLD: canonical(told).encode()})


def written(table: pa.Table) -> bytes:
    """The table as a Parquet file; equal tables give equal bytes."""
    import pyarrow.parquet as pq

    out = BytesIO()
    pq.write_table(table.combine_chunks(), out, compression="zstd")
    return out.getvalue()


def _told(table: pa.Table) -> dict[str, Any]:
    try:
        found = json.loads((table.schema.metadata or {}).get(_TOLD, b"{}"))
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}
