"""How does a shard look, byte by byte?

A shard is a tar as WebDataset has it, and a table beside it. In the tar, sample by sample in the order of their keys:

    000420031.png            the picture (or .webp, .jpg)
    000420031.txt            its prompt
    000420031.json           all that is known of it
    000420031.stage0.png     of a stage before the last, where the dataset keeps that: its picture
    000420031.stage0.safetensors   and its latents

The table has one row for each sample: what its JSON has. Both depend on nothing but the samples: no time, no owner, no
order in which the samples came, so a shard that is made again from the same pictures has the same bytes.

Every JSON of a dataset has the same fields of the same types, and no list that may be empty: loaders take the types of
a dataset from its first few samples. So a template's choices are JSON in a string there, as recipes are, and a list in
the table. `parameters` (see `farm.dataset.parameters`) and `columns`, the file's other ones, are objects there and
structs in the table; a dataset that has none of them is without.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from farm.dataset.encoding import decode, encode
from farm.dataset.parameters import NONE, Kinds, values_of
from farm.dataset.quality import measure
from farm.dataset.spec import DatasetSpec, Failed, Picture, sample_id
from farm.dataset.tars import PICTURES, TarWriter, entries
from farm.errors import BadBlob
from farm.image import hash_pixels
from farm.job import canonical
from farm.stage import Medium

if TYPE_CHECKING:
    import pyarrow as pa

TEXTS = ("key", "sample", "prompt", "negative_prompt", "recipe", "made", "sha256", "pixels", "phash")
NUMBERS = ("row", "variant", "seed", "width", "height")
MEASURED = ("luma_mean", "luma_std", "luma_top")
STRUCTS = ("parameters", "columns")
ROWS = 1000
"""Samples of a row group of the table; a long recipe makes a row of some 100 KB."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard that was written: its files, and what is told of it.

    `facts`: `shard` (its number), `count`, `successes`, `failed` (samples), `image_bytes`, `kept` (the extensions of
    what samples have of earlier stages), `files` (name to `bytes` and `sha256`) and `failures`, each with `key`,
    `sample`, `row`, `variant`, `state`, `code` and `message`.
    """

    number: int
    tar: Path
    parquet: Path
    facts: dict[str, Any]


class ShardWriter:
    """One shard in `folder`, `00042.tar` and `00042.parquet`; its samples may come in any order.

    Use it in a `with`: without `finish` nothing is left behind. A picture is on the disk when `add` returns, so of a
    shard only the one in hand is in memory.
    """

    def __init__(
        self, folder: Path, number: int, spec: DatasetSpec, columns: Sequence[str], parameters: Kinds = NONE
    ) -> None:
        self._folder, self._number, self._spec = folder, number, spec
        self._columns, self._parameters = tuple(columns), parameters
        self._fresh = folder / f".{number:05d}.parquet.part"
        self._tar = TarWriter(folder / f".{number:05d}.tar.part")
        self._table = TableWriter(self._fresh, columns, parameters)
        self._in_order, self._last, self._kept = True, "", set[str]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *what: object) -> None:
        self._table.close()
        self._tar.__exit__(*what)
        for path in (self._tar.path, self._fresh):
            path.unlink(missing_ok=True)

    def add(self, picture: Picture) -> None:
        """Adds one sample. Raises Conflict where it is in the shard already, and as `write`."""
        self.put(write(picture, self._spec, self._columns, self._parameters))

    def put(self, written: Written) -> None:
        """Adds one sample that was made ready elsewhere. Raises Conflict where it is in the shard already."""
        self._tar.add(written.key, written.files)
        self._in_order, self._last = self._in_order and written.key > self._last, written.key
        self._kept.update(name for name in written.files if is_kept(name))
        self._table.add(written.known, len(written.files[self._spec.image_format]))

    def keep(self, tar: Path) -> None:
        """Adds the samples of an earlier try of this shard, byte by byte; those that were added since stay.

        Raises:
            BadBlob: it is no whole tar, or the picture of one of them is damaged; those before it are added.
        """
        self._in_order = False
        with entries(tar) as found:
            for entry in found:
                if entry.key not in self._tar.places:
                    if hashlib.sha256(entry.picture()[1]).hexdigest() != entry.known().get("sha256"):
                        raise BadBlob(f"the picture of the sample {entry.key} is not the one that was written")
                    self._tar.copy(entry)
                    self._kept.update(name for name in entry.files if is_kept(name))

    def finish(self, failed: Sequence[Failed]) -> Shard:
        """Writes both files under their names, and says what is in them; what was made after all has not failed."""
        self._tar.close()
        self._table.close()
        if not self._in_order:
            self._again()
        tar, parquet = (self._folder / f"{self._number:05d}.{end}" for end in ("tar", "parquet"))
        self._tar.path.replace(tar)
        self._fresh.replace(parquet)
        failures = [
            {
                "key": one.sample.key,
                "sample": sample_id(self._spec.name, one.sample.row, one.sample.variant),
                "row": one.sample.row,
                "variant": one.sample.variant,
                "state": one.state,
                "code": one.code,
                "message": one.message,
            }
            for one in sorted(failed, key=lambda one: one.sample.place)
            if one.sample.key not in self._tar.places
        ]
        made = len(self._tar.places)
        facts = {
            "shard": self._number,
            "count": made + len(failures),
            "successes": made,
            "failed": len(failures),
            "image_bytes": self._table.image_bytes,
            "kept": sorted(self._kept),
            "files": {path.name: file_facts(path) for path in (tar, parquet)},
            "failures": failures,
        }
        return Shard(self._number, tar, parquet, facts)

    def _again(self) -> None:
        """The table once more, from the tar: its samples did not come in the order of their keys."""
        self._table = TableWriter(self._fresh, self._columns, self._parameters)
        with entries(self._tar.path) as found:
            for entry in found:
                size = sum(size for name, (_, size) in entry.files.items() if name in PICTURES)
                self._table.add(entry.known(), size)
        self._table.close()


@dataclass(frozen=True, slots=True)
class Written:
    """One sample as a shard has it: its files by extension, and what its JSON says."""

    key: str
    files: Mapping[str, bytes]
    known: Mapping[str, Any]


def write(picture: Picture, spec: DatasetSpec, columns: Sequence[str], parameters: Kinds = NONE) -> Written:
    """What a shard has of a picture. Threads may do this for several at once.

    Raises:
        BadBlob: the picture cannot be decoded, carries no recipe, or lacks a kept file that others have.
    """
    sample = picture.sample
    expected = kept_files(picture.recipes, spec)
    if sorted(picture.kept) != expected:
        raise BadBlob(
            f"of the sample {sample.key} there is {', '.join(sorted(picture.kept)) or 'nothing'} beside the "
            f"picture, where all have {', '.join(expected) or 'nothing'}"
        )
    image = decode(picture.data)
    data = encode(picture.data, image, spec.image_format, spec.image_quality)
    known = {
        "key": sample.key,
        "sample": sample_id(spec.name, sample.row, sample.variant),
        "row": sample.row,
        "variant": sample.variant,
        "prompt": sample.prompt,
        "negative_prompt": sample.negative_prompt,
        "seed": sample.seed,
        "width": image.width,
        "height": image.height,
        "choices": canonical(list(sample.choices)),
        "checkpoints": [recipe["checkpoint"]["name"] for recipe in picture.recipes],
        "recipe": canonical(picture.recipes),
        "made": canonical(picture.made),
        "sha256": hashlib.sha256(data).hexdigest(),
        "pixels": hash_pixels(image),
        **asdict(measure(image)),
    }
    if parameters:
        known["parameters"] = values_of(sample, spec, parameters, picture.recipes)
    if columns:
        known["columns"] = {name: sample.columns.get(name, "") for name in columns}
    files = {spec.image_format: data, "txt": sample.prompt.encode(), "json": canonical(known).encode()}
    return Written(sample.key, files | {name: picture.kept[name] for name in expected}, known)


def kept_files(recipes: Sequence[Mapping[str, Any]], spec: DatasetSpec) -> list[str]:
    """The extensions of what a sample of `recipes` has beside its picture, sorted: of each stage before the last."""
    found = []
    for place, recipe in enumerate(recipes[:-1]):
        if "base" in spec.keep:
            found.append(f"stage{place}.png")
        if "latents" in spec.keep and recipe["emits"] == Medium.LATENTS:
            found.append(f"stage{place}.safetensors")
    return sorted(found)


def is_kept(extension: str) -> bool:
    """Whether it is that of something which a stage before the last made: `stage0.png`, `stage0.safetensors`."""
    return extension.startswith("stage")


def schema(columns: Sequence[str], parameters: Kinds = NONE) -> pa.Schema:
    """The fields of a shard's table: structs of the parameters and of the file's other columns, if any, come last."""
    import pyarrow as pa

    fields = [(name, pa.string()) for name in TEXTS] + [(name, pa.int64()) for name in NUMBERS]
    fields += [(name, pa.float64()) for name in MEASURED]
    fields += [(name, pa.list_(pa.string())) for name in ("choices", "checkpoints")]
    if parameters:
        types = {"truth": pa.bool_(), "integer": pa.int64(), "number": pa.float64(), "text": pa.string()}
        fields.append(("parameters", pa.struct([(name, types[kind]) for name, kind in parameters.items()])))
    if columns:
        fields.append(("columns", pa.struct([(name, pa.string()) for name in columns])))
    return pa.schema(fields)


def flat(fields: pa.Schema) -> pa.Schema:
    """The same with the fields of its structs in their places, as `parameters.NAME` and `columns.NAME`."""
    import pyarrow as pa

    found = list[pa.Field]()
    for field in fields:
        inner = [pa.field(f"{field.name}.{one.name}", one.type) for one in field.type] if field.name in STRUCTS else []
        found += inner or [field]
    return pa.schema(found)


class TableWriter:
    """The table of samples that come one by one; `image_bytes` counts their pictures' bytes."""

    def __init__(self, path: Path, columns: Sequence[str], parameters: Kinds) -> None:
        import pyarrow.parquet as pq

        self._fields, self._rows, self.image_bytes = schema(columns, parameters), list[dict[str, Any]](), 0
        self._writer = pq.ParquetWriter(path, self._fields, compression="zstd")

    def add(self, known: Mapping[str, Any], image_bytes: int) -> None:
        """Adds the row of one sample."""
        self._rows.append({**known, "choices": json.loads(known["choices"])})
        self.image_bytes += image_bytes
        if len(self._rows) == ROWS:
            self._flush()

    def close(self) -> None:
        """Ends the file; once more does nothing."""
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, self._fields))
        self._rows.clear()


def file_facts(path: Path) -> dict[str, Any]:
    """How long a file is, in bytes, and its SHA-256."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
