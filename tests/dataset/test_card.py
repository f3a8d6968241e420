"""Does the card tell the truth, whatever strangers wrote, and do its snippets run?"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard

from farm.dataset.card import COLUMNS, About, Figures, Licensed, card
from farm.dataset.choosing import ExportSpec
from farm.dataset.exporting import export
from farm.dataset.sharding import schema
from farm.dataset.shelves import ShardFolder, TargetFolder
from farm.dataset.spec import DatasetSpec
from tests.dataset.made import CHAIN, Maker

SPEC = DatasetSpec(name="fruit", chain=CHAIN, seed=7)
ABOUT = About(
    SPEC,
    "rows.csv",
    30,
    (
        Licensed("tiny", "workers.demo.tiny", "", "Apache-2.0"),
        Licensed("sd15", "runwayml/sd15", "a" * 40, "CreativeML Open RAIL-M"),
    ),
    {"pictures per minute": "120"},
    "tag",
)
FIGURES = Figures(
    {"train": 20, "validation": 3}, 28, 2, {"blank": 2, "clip_score>=0.25": 3}, 5_000_000, {"key": "string"}
)
EVIL = [
    "---\nlicense: mit\n---",
    "a | b | c\n| d |",
    "<script>alert(1)</script><img src=x onerror=y>",
    "```\n# Heading\n````",
    "[x](javascript:alert(1)) ![y](z)",
    "\n\n# Heading\n- list",
    "{{ x }} {% y %} \u202e\U0001f600 é: 'a' \"b\"",
]


def front(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_it_tells_what_was_made_and_what_was_left_out() -> None:
    spec = ExportSpec(blank_below=2, where=("clip_score >= 0.250",), dedupe="near", distance=4, limit=1000)
    told = card(ABOUT, spec, FIGURES)
    assert "23 pictures" in told
    assert "train: 20, validation: 3." in told
    assert "Of 30 samples 2 could not be made, and 5 were made and left out" in told
    rows = [
        "| blank | luma\\_std &lt; 2 | 2 |",
        "| clip\\_score&gt;=0.25 | not clip\\_score&gt;=0.25, or it has no such value | 3 |",
        "| duplicate | phash within 4 bits of an earlier sample's | 0 |",
        "| limit | after the first 1,000 | 0 |",
        "| tiny | workers.demo.tiny | local | Apache-2.0 |",
        f"| sd15 | runwayml/sd15 | {'a' * 40} | CreativeML Open RAIL-M |",
        "| pictures per minute | 120 |",
        f"| key | string | {COLUMNS['key']} |",
    ]
    assert [row for row in rows if row not in told.splitlines()] == []
    assert '"kind": "text2img"' in told
    assert "rows.csv, 30 rows" in told
    assert "its seed (7)" in told
    assert "what it found is still among them" in told


def test_the_front_matter_is_the_hubs(tmp_path: Path) -> None:
    # When the hub's own library reads it
    found = DatasetCard(card(ABOUT, ExportSpec(), FIGURES)).data.to_dict()
    # Then
    assert found == {
        "license": "other",
        "license_name": "apache-2.0-creativeml-open-rail-m",
        "task_categories": ["text-to-image"],
        "size_categories": ["n<1K"],
        "tags": ["synthetic", "diffusion", "latent-farm", "webdataset"],
        "pretty_name": "fruit",
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": "data/train-*.tar"},
                    {"split": "validation", "path": "data/validation-*.tar"},
                ],
            }
        ],
    }


@pytest.mark.parametrize(
    ("licences", "told"),
    [
        (["Apache-2.0"], "apache-2.0"),
        (["MIT", "MIT"], "mit"),
        (["CreativeML Open RAIL++-M"], "openrail++"),
        (["sai-nc-community (not for commercial use)"], "other"),
        ([], "other"),
    ],
)
def test_the_licence_is_the_weights(licences: list[str], told: str) -> None:
    weights = tuple(Licensed("x", "y", "", one) for one in licences)
    found = front(card(replace(ABOUT, weights=weights), ExportSpec(), FIGURES))
    assert found["license"] == told
    assert ("license_name" in found) is (told == "other")


@pytest.mark.parametrize(
    ("count", "told"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (100_000, "100K<n<1M"), (10**6, "1M<n<10M")],
)
def test_the_size_is_the_hubs(count: int, told: str) -> None:
    assert front(card(ABOUT, ExportSpec(), replace(FIGURES, counts={"train": count})))["size_categories"] == [told]


@pytest.mark.parametrize("evil", EVIL)
def test_a_strangers_words_stay_words(evil: str) -> None:
    # Given such a prompt, file name, column, axis, licence, source and figure
    chain = {"prompt": evil, "stages": [{"kind": "text2img"}]}
    about = About(
        DatasetSpec(name="fruit", chain=chain, sweep=[{evil: [1, 2]}]),
        evil,
        3,
        (Licensed(evil, evil, evil, evil),),
        {evil: evil},
    )
    figures = replace(FIGURES, columns={evil: evil, "key": "string"})
    plain = About(
        DatasetSpec(name="fruit", chain={**chain, "prompt": "x"}, sweep=[{"x": [1, 2]}]), "x", 3,
        (Licensed("x", "x", "x", "x"),), {"x": "x"},
    )  # fmt: skip
    # When
    told, expected = card(about, ExportSpec(), figures), card(plain, ExportSpec(), replace(figures, columns={"x": "x"}))
    # Then the front matter has what it would have
    data = DatasetCard(told).data.to_dict()
    assert {**data, "license_name": ""} == {**DatasetCard(expected).data.to_dict(), "license_name": ""}
    # And outside of code no HTML, no more headings, and tables of as many cells
    body = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", told.split("---\n", 2)[2])
    assert not re.search(r"<\w", body)
    assert "](" not in body.replace("](contact-sheet.webp)", "").replace("\\](", "")
    lines = body.splitlines()
    headings = [line for line in lines if line.startswith("#")]
    names = ["fruit", "Load it", "What made it", "What was left out", "Safety", "Figures", "Columns"]
    assert [line.lstrip("# ") for line in headings] == names
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert cells == [5, 5, 5, 4, 4, 4, 3, 3, 3, 4, 4, 4, 4]
    # And the chain is whole
    block = re.search(r"(?ms)^(`{3,})json\n(.*?)^\1$", told)
    assert block
    assert json.loads(block[2]) == chain


def test_every_column_is_explained() -> None:
    assert set(COLUMNS) == set(schema(("x",), {"steps": "integer"}).names)


@pytest.mark.parametrize("form", ["webdataset", "parquet", "imagefolder"])
def test_the_snippets_run(
    tmp_path: Path, hf: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: Any
) -> None:
    # Given an export
    maker = Maker(tmp_path)
    shard = maker.shard(tmp_path / "shards", [maker.picture(i) for i in range(6)])
    (tmp_path / "shards" / "00000_stats.json").write_text(json.dumps(shard.facts))
    spec = ExportSpec(format=form, validation=0.5)
    out = tmp_path / "out"
    found = export(ShardFolder(tmp_path / "shards"), TargetFolder(out), spec, About(maker.spec, "rows.csv", 6))
    # When its snippets are run beside it
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", (out / "README.md").read_text("utf-8"))
    assert len(blocks) == (3 if form == "webdataset" else 2)
    monkeypatch.chdir(out)
    for block in blocks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            exec(compile(block, "README.md", "exec"), {})  # noqa: S102 — the card's own
    # Then
    said = capsys.readouterr().out
    assert said.startswith(f"{found.counts['train']} {{")
    assert "pear no." in said
