"""Do weights weigh, and is no word lost?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from farm.errors import StageFailed
from farm.stage import Medium
from tests.stages.conftest import call, same
from workers.stages.text2img import Text2Img
from workers.weighting import LESS, MORE, fragments


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a red apple", [("a red apple", 1)]),
        ("", [("", 1)]),
        ("a (red:1.3) apple", [("a ", 1), ("red", 1.3), (" apple", 1)]),
        ("a (red) apple", [("a ", 1), ("red", MORE), (" apple", 1)]),
        ("((red))", [("red", MORE * MORE)]),
        ("[red]", [("red", LESS)]),
        ("(a [b] c:2)", [("a ", 2), ("b", 2 * LESS), (" c", 2)]),
        (r"a \(red\) apple", [("a (red) apple", 1)]),
        ("ratio 16:9, it's 3)", [("ratio 16:9, it's 3)", 1)]),
        ("a (red", [("a ", 1), ("red", MORE)]),
        ("(red: 1.5 )", [("red", 1.5)]),
        ("(red:-0.5)", [("red", -0.5)]),
        ("(a]", [("a]", MORE)]),
        ("(a:b)", [("a:b", MORE)]),
    ],
)  # fmt: skip
def test_a1111s_brackets_are_weights(prompt: str, pieces: list[tuple[str, float]]) -> None:
    found = fragments(prompt)
    assert [text for text, _ in found] == [text for text, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


@pytest.mark.parametrize(("how", "heavier"), [("a1111", "a (red:1.5) castle"), ("compel", "a (red)1.5 castle")])
@pytest.mark.parametrize("checkpoint", ["tiny", "tiny-xl"])
def test_a_weight_changes_the_picture_and_none_does_not(
    pipe: Callable[..., Any], how: Any, heavier: str, checkpoint: str
) -> None:
    def draw(prompt: str, weighting: Any) -> Any:
        stage = Text2Img(weighting=weighting, num_inference_steps=3, checkpoint=checkpoint)
        return call(stage, pipe(stage), emits=Medium.LATENTS, prompts=[prompt])[0]

    plain = draw("a red castle", "none")
    assert draw("a red castle", how).allclose(plain, atol=1e-3)
    assert not draw(heavier, how).allclose(plain, atol=1e-3)
    # and where nobody asked for weights, brackets are brackets
    assert not same(draw("a (red) castle", "none"), plain)


def test_words_beyond_the_encoders_length_count(pipe: Callable[..., Any]) -> None:
    long = "house " * 90
    plain, weighted = (Text2Img(weighting=how, num_inference_steps=3) for how in ("none", "a1111"))

    def differ(stage: Text2Img) -> bool:
        one, other = (call(stage, pipe(stage), emits=Medium.LATENTS, prompts=[long + end])[0] for end in ("sea", "sky"))
        return not same(one, other)

    assert not differ(plain)
    assert differ(weighted)


def test_brackets_within_brackets_are_read(pipe: Callable[..., Any]) -> None:
    # 15 levels: without a memory of what was read, each takes four times as long as the one before
    stage = Text2Img(weighting="compel", num_inference_steps=1)
    assert call(stage, pipe(stage), prompts=[f"{'(' * 15}cat{')' * 15}1.1"])


@pytest.mark.parametrize("prompt", ["()", "a cat.swap(dog)", '("")-', "useLora(thing) a cat"])
def test_what_compel_cannot_encode_is_the_prompts_fault(pipe: Callable[..., Any], prompt: str) -> None:
    stage = Text2Img(weighting="compel", num_inference_steps=1)
    with pytest.raises(StageFailed) as caught:
        call(stage, pipe(stage), prompts=[prompt])
    assert caught.value.code == "bad_prompt"
