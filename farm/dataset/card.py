"""What does the dataset say of itself?

The README.md that the hub and people read: front matter for programs, then what it is, how it is loaded, what made it,
and what was left out. Nothing that a stranger wrote (a prompt, a file's name, a column's) can end a table, a code block
or the front matter, or become HTML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

import yaml
from PIL import Image

from farm.dataset.encoding import decode
from farm.dataset.sharding import STRUCTS
from farm.dataset.spec import DatasetSpec

if TYPE_CHECKING:
    from farm.dataset.choosing import ExportSpec

LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "BSD-3-Clause": "bsd-3-clause",
    "CreativeML Open RAIL-M": "creativeml-openrail-m",
    "CreativeML Open RAIL++-M": "openrail++",
}
"""The catalog's words, and the hub's. Source: huggingface.co/docs/hub/repositories-licenses."""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
"""The hub's size categories, by the first number that is too many. Source: huggingface.co/docs/hub/datasets-cards."""
COLUMNS = {
    "key": "its name in the shards it was made in: five digits for the shard, four for the place",
    "sample": "its id for good",
    "prompt": "what was to be drawn",
    "negative_prompt": "what was to be kept out",
    "recipe": "JSON: all that decides the pixels, stage by stage",
    "made": "JSON: the versions and the kind of device that ran each stage",
    "sha256": "SHA-256 of the picture's file",
    "pixels": "SHA-256 of width, height and the RGB pixels that the last stage made",
    "phash": "64-bit perceptual hash, 16 hex digits",
    "row": "row of the source, from 1",
    "variant": "which sample of that row, from 0",
    "seed": "seed of the first stage; later stages' follow from it and are in the recipe",
    "width": "pixels",
    "height": "pixels",
    "luma_mean": "mean brightness, 0 to 255",
    "luma_std": "its standard deviation, 0 to 127.5",
    "luma_top": "share of pixels of the most frequent brightness, 0 to 1",
    "choices": "what the template's options came to, in order",
    "checkpoints": "the checkpoint of each stage",
    "parameters": "what axes and columns gave the sample beside its prompts and seed",
    "columns": "other columns of the source",
}
THUMBNAIL, ACROSS = 192, 6
"""Side of a picture on the contact sheet, pixels, and how many stand side by side."""
TOLD = 200
"""So many characters of a text are told."""


@dataclass(frozen=True, slots=True)
class Licensed:
    """A checkpoint or adapter as the card names it: where its files come from, at which revision, and its licence."""

    name: str
    source: str
    revision: str
    licence: str


@dataclass(frozen=True, slots=True)
class About:
    """What a dataset's shards do not say: what was asked for, and whence it came.

    `source` is the file of rows by its name, `rows` how many it has. `throughput` are figures by what they are of, as
    they are to be read. `safety` is the farm's policy: off, tag, blur or refuse.
    """

    dataset: DatasetSpec
    source: str
    rows: int
    weights: tuple[Licensed, ...] = ()
    throughput: Mapping[str, str] = field(default_factory=dict)
    safety: str = "off"


@dataclass(frozen=True, slots=True)
class Figures:
    """What an export counted.

    `counts`: samples by split. `made`: samples in the shards. `failed`: those that could not be made. `dropped`:
    samples by reason. `bytes`: of the data files. `columns`: each column's Arrow type.
    """

    counts: Mapping[str, int]
    made: int
    failed: int
    dropped: Mapping[str, int]
    bytes: int
    columns: Mapping[str, str]


def card(about: About, spec: ExportSpec, figures: Figures) -> str:
    """The README.md of an export."""
    total = sum(figures.counts.values())
    parts = [
        f"---\n{_front(about, spec, figures)}---\n",
        f"# {about.dataset.name}\n",
        f"{total:,} pictures with their prompts and the recipes that made them, all drawn by machine. "
        f"{_counts(figures.counts)} {figures.bytes / 1e6:,.1f} MB.\n",
        "![Pictures of this dataset](contact-sheet.webp)\n",
        "## Load it\n",
        *_snippets(spec, figures.counts),
        "## What made it\n",
        *_recipe(about),
        "## What was left out\n",
        f"Of {figures.made + figures.failed:,} samples {figures.failed:,} could not be made, and "
        f"{figures.made - total:,} were made and left out (`rejects.parquet` says which and why; "
        "a sample may have several reasons).\n",
        _table(("reason", "rule", "samples"), _rules(spec, figures.dropped)),
        "## Safety\n",
        f"{_SAFETY[about.safety]} {_OFFENCE}\n",
    ]
    if about.throughput:
        parts += ["## Figures\n", _table(("what", "value"), list(about.throughput.items()))]
    parts += ["## Columns\n", _columns(spec, figures.columns)]
    return "\n".join(parts)


def promise(about: About, samples: int, shards: int, sizes: Sequence[tuple[int, int]]) -> str:
    """What is told of a dataset of which nothing is made yet: what it is to be, by `sizes` [width, height] in pixels.

    It has no front matter, no figures and no lines that load it: none of them could be true.
    """
    name, told = about.dataset.name, ", ".join(f"{width}x{height}" for width, height in sizes[:5])
    parts = [
        f"# {name}\n",
        f"Nothing of it is made yet; `farm dataset run {name}` makes it. Planned are {samples:,} pictures"
        + (f" of {told}" if told else "")
        + (", …" if len(sizes) > 5 else "")
        + f", with their prompts and recipes, in {shards:,} shard{'s' if shards > 1 else ''}.\n",
        "## What will make it\n",
        *_recipe(about),
        "## Safety\n",
        f"The farm's policy was `{about.safety}` when it was planned. {_OFFENCE}\n",
    ]
    return "\n".join(parts)


def _recipe(about: About) -> list[str]:
    """What the samples come from: weights, chain, prompts, axes, seeds."""
    dataset = about.dataset
    drawn = f", {dataset.variants} drawn from each" if dataset.templates == "random" else ""
    return [
        _table(
            ("weights", "source", "revision", "licence"),
            [(one.name, one.source, one.revision or "local", one.licence) for one in about.weights],
        ),
        "Every sample runs this chain, with the prompt and the parameters of its row:\n",
        _code("json", json.dumps(dataset.chain, indent=2, ensure_ascii=False)),
        f"Prompts come from {_plain(about.source)}, {about.rows:,} rows; templates: {dataset.templates}{drawn}.",
        *(f"Each row is varied along {_plain(', '.join(axis))}." for axis in dataset.sweep),
        "A sample that was given no seed has one that follows from the dataset's name, its seed "
        f"({dataset.seed}), the row and the variant, so it can be made again.\n",
    ]


_OFFENCE = "Whatever a model draws may offend or repeat the prejudices of what it was trained on."
_SAFETY = {
    "off": "No safety checker looked at these pictures.",
    "tag": "A safety checker looked at these pictures; what it found is still among them.",
    "blur": "A safety checker looked at these pictures; what it found is blurred.",
    "refuse": "A safety checker looked at these pictures; what it found is not among them.",
}


def thumbnail(data: bytes) -> bytes:
    """A picture as it goes on the contact sheet: square RGB pixels, the middle of it."""
    from PIL import ImageOps

    return ImageOps.fit(decode(data), (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS).tobytes()


def contact_sheet(thumbnails: Sequence[bytes]) -> bytes:
    """One WebP of pictures that `thumbnail` made, row by row."""
    across = min(ACROSS, len(thumbnails))
    down = -(-len(thumbnails) // across)
    sheet, out = Image.new("RGB", (across * THUMBNAIL, down * THUMBNAIL), "white"), BytesIO()
    for place, pixels in enumerate(thumbnails):
        one = Image.frombytes("RGB", (THUMBNAIL, THUMBNAIL), pixels)
        sheet.paste(one, (place % across * THUMBNAIL, place // across * THUMBNAIL))
    sheet.save(out, "WEBP", quality=85)
    return out.getvalue()


def _front(about: About, spec: ExportSpec, figures: Figures) -> str:
    """The YAML that the hub reads."""
    total = sum(figures.counts.values())
    licences = list(dict.fromkeys(one.licence for one in about.weights))
    told = LICENCES.get(licences[0], "other") if len(licences) == 1 else "other"
    ends = {"webdataset": "data/{}-*.tar", "parquet": "data/{}-*.parquet", "imagefolder": "{}/**"}
    front = {
        "license": told,
        **({"license_name": _word("-".join(licences)) or "unknown"} if told == "other" else {}),
        "task_categories": ["text-to-image"],
        "size_categories": [next((name for below, name in SIZES if total < below), "1M<n<10M")],
        "tags": ["synthetic", "diffusion", "latent-farm", spec.format],
        "pretty_name": about.dataset.name,
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": one, "path": ends[spec.format].format(one)} for one in figures.counts],
            }
        ],
    }
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000)


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9.+]+", "-", text.lower()).strip("-")[:100]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{split}: {count:,}" for split, count in counts.items()) + "."


def _snippets(spec: ExportSpec, counts: Mapping[str, int]) -> list[str]:
    """How each loader reads it, from the folder that this card is in."""
    split = next(iter(counts))
    files = {"webdataset": "data/{}-*.tar", "parquet": "data/{}-*.parquet"}
    if spec.format == "imagefolder":
        given = 'data_dir="."'
    else:
        listed = ", ".join(f'"{one}": "{files[spec.format].format(one)}"' for one in counts)
        given = f"data_files={{{listed}}}"
    found = [
        _code(
            "python",
            "from datasets import load_dataset\n\n"
            f'dataset = load_dataset("{spec.format}", {given}, split="{split}")\n'
            "print(len(dataset), dataset.features)",
        ),
        "Streamed, without a copy of all of it:\n",
        _code(
            "python",
            "from datasets import load_dataset\n\n"
            f'dataset = load_dataset("{spec.format}", {given}, split="{split}", streaming=True)\n'
            "print(next(iter(dataset)))",
        ),
    ]
    if spec.format == "webdataset":
        found += [
            "Or with `webdataset`:\n",
            _code(
                "python",
                "from glob import glob\n\nimport webdataset\n\n"
                f'files = sorted(glob("data/{split}-*.tar"))\n'
                'pairs = webdataset.WebDataset(files, shardshuffle=False).decode("pil")\n'
                'for picture, prompt, known in pairs.to_tuple("png;webp;jpg", "txt", "json"):\n'
                '    print(picture.size, prompt, known["seed"])\n'
                "    break",
            ),
        ]
    return found


def _rules(spec: ExportSpec, dropped: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """Each filter that was asked for: its name among the reasons, what it asks, how many it left out."""
    from farm.dataset.choosing import Condition

    rules: dict[str, str] = {}
    if spec.blank_below is not None:
        rules["blank"] = f"luma_std < {spec.blank_below:g}"
    for text in spec.where:
        rules[str(Condition.parse(text))] = f"not {Condition.parse(text)}, or it has no such value"
    if spec.dedupe == "exact":
        rules["duplicate"] = "pixels equal to an earlier sample's"
    if spec.dedupe == "near":
        rules["duplicate"] = f"phash within {spec.distance} bits of an earlier sample's"
    if spec.unique_prompts:
        rules["prompt"] = "an earlier sample has the prompt, but for case and space"
    if spec.limit is not None:
        rules["limit"] = f"after the first {spec.limit:,}"
    return [(name, rule, f"{dropped.get(name, 0):,}") for name, rule in rules.items()] or [("none", "", "0")]


def _columns(spec: ExportSpec, columns: Mapping[str, str]) -> str:
    where = {
        "webdataset": "The JSON of each sample, `.txt` (the prompt) and the Parquet file beside each tar have:\n\n",
        "parquet": "Beside `image`:\n\n",
        "imagefolder": "Beside `image`; `choices`, `parameters` and `columns` are JSON in a string, and what is in the "
        "latter two has a column of its own unless loaders would take it for a date or a file:\n\n",
    }
    note = ""
    if spec.format == "webdataset":
        note = "\nIn the JSON `choices` is JSON in a string. Scores that were measured later are in the table alone.\n"
    rows = [(name, kind, _meaning(name)) for name, kind in columns.items()]
    return where[spec.format] + _table(("column", "type", "what it is"), rows) + note


def _meaning(name: str) -> str:
    """What a column is."""
    first, _, rest = name.partition(".")
    if rest and first in STRUCTS:
        return f"of {first}: {rest}"
    if re.fullmatch(r"stage\d\.(png|safetensors)", name):
        return f"{'latents' if rest == 'safetensors' else 'the picture'} of that stage, counted from 0"
    return COLUMNS.get(name, "a score that was measured later")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_plain(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _code(language: str, text: str) -> str:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}\n"


def _plain(text: str) -> str:
    """A stranger's text on one line, in which nothing is Markdown or HTML."""
    line = " ".join(text.split())
    line = line if len(line) <= TOLD else line[: TOLD - 1] + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)
