"""Do adapters do what they say while they are asked for, and nothing afterwards?"""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from farm.catalog import Catalog
from farm.errors import StageFailed
from farm.stage import Medium, Stage
from tests.stages.conftest import call, same, some_image
from workers import adapters, pipelines
from workers.adapters import Files, files_of
from workers.diffusion import FreeU, Lora
from workers.guidance import Control, IPAdapter
from workers.stages.text2img import Text2Img

Pipe = Callable[..., Any]
QUICK: dict[str, Any] = {"num_inference_steps": 3}
LORAS = ("tiny-lora", "tiny-lora-2", "tiny-lora-3")


def draw(stage: Stage, pipe: Any, **words: Any) -> Any:
    return call(stage, pipe, emits=Medium.LATENTS, **words)[0]


@pytest.fixture
def fresh(catalog: Catalog) -> Callable[[], Any]:
    """Gives a newly loaded `tiny`, as another process would have it."""
    files = pipelines.files_of(catalog, catalog.checkpoints["tiny"])
    # by another hash, or it would share the models of what is loaded
    return lambda: Text2Img().load(dataclasses.replace(files, manifest=secrets.token_hex(8)), "cpu")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the adapters whose weights are read, in order; they are really read."""
    found: list[str] = []

    def counted(real: Callable[[Files], Any]) -> Callable[[Files], Any]:
        def read(files: Files) -> Any:
            found.append(files.name)
            return real(files)

        return read

    for name in ("_tensors", "_header"):
        monkeypatch.setattr(adapters, name, counted(getattr(adapters, name)))
    return found


def with_header(catalog: Catalog, folder: Path, **told: Any) -> Files:
    """`tiny-lora` with what its header says of itself."""
    own = files_of(catalog, catalog.adapters["tiny-lora"])
    parts = {"unet": ["to_q", "to_k", "to_v"], "text_encoder": ["q_proj", "v_proj"]}
    said = {f"{part}.{key}": value for part, targets in parts.items()
            for key, value in {"r": 4, "lora_alpha": 4, "target_modules": targets, **told}.items()}  # fmt: skip
    save_file(load_file(own.weights), folder / "lora.safetensors", {"lora_adapter_metadata": json.dumps(said)})
    return dataclasses.replace(own, weights=folder / "lora.safetensors", manifest=secrets.token_hex(8))


def test_a_lora_is_as_strong_as_its_header_says(fresh: Callable[[], Any], catalog: Catalog, tmp_path: Path) -> None:
    strong = with_header(catalog, tmp_path, lora_alpha=8)
    once, twice = (Text2Img(**QUICK, loras=[Lora(name="tiny-lora", weight=weight)]) for weight in (1.0, 2.0))
    assert same(draw(once, fresh(), files={"tiny-lora": strong}), draw(twice, fresh()))
    assert not same(draw(once, fresh()), draw(twice, fresh()))


@pytest.mark.parametrize("told", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"layer_replication": [[0, 1]]}])
def test_a_lora_that_would_change_more_is_refused(
    fresh: Callable[[], Any], catalog: Catalog, tmp_path: Path, told: dict[str, Any]
) -> None:
    # Given
    pipe, stage = fresh(), Text2Img(**QUICK, loras=[Lora(name="tiny-lora")])
    before = draw(Text2Img(**QUICK), pipe)
    # When
    with pytest.raises(StageFailed) as caught:
        draw(stage, pipe, files={"tiny-lora": with_header(catalog, tmp_path, **told)})
    # Then
    assert caught.value.code == "bad_checkpoint"
    assert same(draw(Text2Img(**QUICK), pipe), before)


def test_each_member_has_its_own_reference(pipe: Pipe) -> None:
    # Given two members with references that differ
    stage = Text2Img(**QUICK, ip_adapters=[IPAdapter(name="tiny-ip", image="r", scale=0.8)])
    pictures = [some_image(64, seed=seed) for seed in (5, 6)]

    def drawn(*which: int) -> list[Any]:
        own = [{"ip_adapters.0.image": pictures[row]} for row in which]
        return call(stage, pipe(stage), emits=Medium.LATENTS, seeds=[1] * len(which), uploads=own)

    # When they share a batch
    together = drawn(0, 1)
    # Then each is what it is alone
    assert all(same(made, *drawn(row)) for row, made in enumerate(together))
    assert not same(*together)


def test_loras_change_hands_without_being_read_again(fresh: Callable[[], Any], reads: list[str]) -> None:
    # Given one pipeline, and what new ones give for each LoRA and for none
    pipe, dice = fresh(), random.Random(3)
    stages = {name: Text2Img(**QUICK, loras=[Lora(name=name, weight=0.8)]) for name in LORAS}
    stages["both"] = Text2Img(**QUICK, loras=[Lora(name=LORAS[0]), Lora(name=LORAS[1], weight=-0.5)])
    stages["none"] = Text2Img(**QUICK)
    alone = {name: draw(stage, fresh()) for name, stage in stages.items()}
    assert not any(same(alone[one], alone[other]) for one in alone for other in alone if one != other)
    reads.clear()
    # When twenty jobs ask for them in any order
    for _ in range(20):
        name = dice.choice(list(stages))
        assert same(draw(stages[name], pipe), alone[name]), name
    # Then each file was read once, and the base is what it was
    assert sorted(reads) == sorted({*LORAS})
    assert same(draw(stages["none"], pipe), alone["none"])


def test_the_lora_unused_for_the_longest_time_makes_room(
    fresh: Callable[[], Any], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "KEPT", 2)
    pipe = fresh()
    for name in (LORAS[0], LORAS[1], LORAS[0], LORAS[2], LORAS[0], LORAS[1]):
        draw(Text2Img(**QUICK, loras=[Lora(name=name)]), pipe)
    # the second was taken off for the third
    assert reads == [LORAS[0], LORAS[1], LORAS[2], LORAS[1]]
    assert set(pipe.own.loras) == {LORAS[0], LORAS[1]}


@pytest.mark.parametrize("how", [{}, {"weighting": "a1111"}], ids=str)
def test_a_word_has_its_meaning_only_while_it_is_asked_for(fresh: Callable[[], Any], how: dict[str, Any]) -> None:
    # Given a prompt with the word
    pipe, words = fresh(), {"prompts": ["a <gleam> castle"]}
    plain, taught = Text2Img(**QUICK, **how), Text2Img(**QUICK, **how, embeddings=["tiny-word"])
    before = draw(plain, pipe, **words)
    # When it is taught, and then no more
    within = draw(taught, pipe, **words)
    after = draw(plain, pipe, **words)
    # Then
    assert not same(before, within)
    assert same(before, after)


@pytest.mark.parametrize(
    "more",
    [
        {"ip_adapters": [IPAdapter(name="tiny-ip", image="r", scale=0.8)]},
        {"ip_adapters": [IPAdapter(name="tiny-ip", image="r"), IPAdapter(name="tiny-ip", image="s", scale=0.2)]},
        {"controls": [Control(name="tiny-canny", image="c")]},
        {"controls": [Control(name="tiny-canny", image="c"), Control(name="tiny-pose", image="d", end=0.5)]},
        {"vae": "tiny-vae"},
        {"freeu": FreeU()},
        {"controls": [Control(name="tiny-canny", image="c", process="canny")], "loras": [Lora(name="tiny-lora")]},
    ],
    ids=str,
)
def test_pictures_guide_only_while_they_are_asked_for(fresh: Callable[[], Any], more: dict[str, Any]) -> None:
    pipe, plain, guided = fresh(), Text2Img(**QUICK), Text2Img(**QUICK, **more)
    before, within, after, again = (call(stage, pipe)[0] for stage in (plain, guided, plain, guided))
    assert not same(before, within)
    assert same(before, after)
    assert same(within, again)


def test_how_much_of_it_matters(fresh: Callable[[], Any]) -> None:
    pipe, without = fresh(), draw(Text2Img(**QUICK), fresh())
    for make in (
        lambda much: {"loras": [Lora(name="tiny-lora", weight=much)]},
        lambda much: {"ip_adapters": [IPAdapter(name="tiny-ip", image="r", scale=much)]},
        lambda much: {"controls": [Control(name="tiny-canny", image="c", scale=much)]},
    ):
        none, some, all_ = (draw(Text2Img(**QUICK, **make(much)), pipe) for much in (0.0, 0.5, 1.0))
        assert torch.allclose(none, without, atol=1e-4)
        assert not torch.allclose(some, all_, atol=1e-2)


@pytest.mark.parametrize("damage", ["keys", "shape", "family", "pickle", "cut", "empty"])
def test_weights_that_do_not_fit_are_refused_and_leave_nothing(
    catalog: Catalog, fresh: Callable[[], Any], tmp_path: Path, damage: str
) -> None:
    # Given a LoRA that is not one for this checkpoint
    good = files_of(catalog, catalog.adapters["tiny-lora"])
    tensors, path = load_file(good.weights), tmp_path / "bad.safetensors"
    if damage == "keys":
        save_file({name.replace("to_q", "to_z"): value for name, value in tensors.items()}, path)
    elif damage == "shape":
        save_file({name: torch.cat([value, value], 1) for name, value in tensors.items()}, path)
    elif damage == "family":
        path = files_of(catalog, catalog.adapters["tiny-xl-lora"]).weights
    elif damage == "pickle":
        path.write_bytes(pickle.dumps({name: value.numpy() for name, value in tensors.items()}))
    elif damage == "cut":
        path.write_bytes(good.weights.read_bytes()[:-100])
    else:
        save_file({"nothing": torch.zeros(1)}, path)
    bad = dataclasses.replace(good, name="bad", weights=path)
    pipe = fresh()
    before = draw(Text2Img(**QUICK), pipe)
    # When
    with pytest.raises(StageFailed) as caught:
        adapters.set_loras(pipe, [(bad, 1.0)])
    # Then the pipeline is as it was, and others still go on it
    assert (caught.value.code, "bad" in caught.value.message) == ("bad_checkpoint", True)
    assert same(draw(Text2Img(**QUICK), pipe), before)
    other = Text2Img(**QUICK, loras=[Lora(name="tiny-lora-2")])
    assert same(draw(other, pipe), draw(other, fresh()))


def test_fields_that_contradict_each_other_are_refused() -> None:
    def wrong(**fields: Any) -> list[str]:
        return [error.loc for error in Text2Img(**fields).check()]

    assert wrong(loras=[Lora(name="a"), Lora(name="a")]) == ["loras"]
    assert wrong(controls=[Control(name="a")]) == ["controls.0.image"]
    assert wrong(controls=[Control(name="a", image="c", start=0.5, end=0.5)]) == ["controls.0.end"]
    assert wrong(controls=[Control(name="a", image="c", low_threshold=300)]) == ["controls.0.high_threshold"]
    assert wrong(controls=[Control(name="a", image="c", process="inpaint")]) == ["controls.0.process"]


@pytest.mark.parametrize("kind", ["text2img", "img2img", "inpaint"])
def test_fields_that_pipelines_with_controls_do_not_know_are_refused(kind: str) -> None:
    # Given what diffusers' classes take
    import inspect

    import diffusers

    from farm.stage import kinds

    stage = kinds()[kind]
    for family, name in stage.controlled.items():  # type: ignore[attr-defined]
        taken = inspect.signature(getattr(diffusers, name).__call__).parameters
        plain = inspect.signature(getattr(diffusers, stage.by_family[family]).__call__).parameters  # type: ignore[attr-defined]
        # Then a field that the plain class takes and this one does not is in the table, and no other
        told = {field for field, families in stage.uncontrolled.items() if family in families}  # type: ignore[attr-defined]
        missing = {field for field in stage.model_fields if field in plain and field not in taken}
        assert told == missing, (kind, family)
