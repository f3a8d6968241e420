"""Are LoRAs chosen by the stage, and is one that a prompt names never drawn as words without a warning?"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from playwright.sync_api import Page, expect

from tests.test_recall import A1111, png
from tests.ui.conftest import DROP, WAIT_MS, Watched

expect.set_options(timeout=WAIT_MS)


def asked(page: Page) -> dict[str, Any]:
    """The next dry run that the form asks for."""
    with page.expect_request(re.compile("/jobs/dry-run")) as told:
        page.get_by_label("Negative prompt", exact=True).press("x")
    found: dict[str, Any] = json.loads(told.value.post_data or "")
    return found


def loras(page: Page) -> list[Any]:
    """The LoRAs of each stage."""
    return [stage.get("loras") for stage in asked(page)["chain"]["stages"]]


def test_a_stage_has_loras_with_weights(watched: Watched) -> None:
    page = watched.page
    page.get_by_role("button", name="Parameters of stage 1").click()
    group = page.get_by_role("group", name="LoRAs of stage 1")
    add = group.get_by_label("Add a LoRA to stage 1")
    # Given that only those of its checkpoint's family are offered, those that are not pulled with what helps
    expect(add.locator("option[value='tiny-lora']")).to_be_enabled()
    expect(add.locator("option[value='tiny-xl-lora']")).to_have_count(0)
    expect(add.locator("option[value='lcm-lora']")).to_be_disabled()
    # When two are added, and one is weighed
    add.select_option("tiny-lora")
    add.select_option("tiny-lora-2")
    weight = group.get_by_label("Weight of tiny-lora", exact=True)
    weight.fill("0.6")
    weight.press("Tab")
    # Then they are asked for, and no weight goes beyond what a stage takes
    assert loras(page)[0] == [{"name": "tiny-lora", "weight": 0.6}, {"name": "tiny-lora-2", "weight": 1}]
    weight.fill("9")
    weight.press("Tab")
    expect(weight).to_have_value("4")
    expect(page.get_by_text("1 picture, 4 stages")).to_be_visible()
    # When one is removed, Then the other stays, and the one that may be added again has the focus
    group.get_by_role("button", name="Remove the LoRA tiny-lora", exact=True).click()
    expect(add).to_be_focused()
    assert loras(page)[0] == [{"name": "tiny-lora-2", "weight": 1}]
    # When the stage draws with another family, Then it is said of the LoRA, and others are offered
    page.get_by_label("checkpoint", exact=True).select_option("tiny-xl")
    expect(group.get_by_text("for sd", exact=False).first).to_be_visible()
    expect(add.locator("option[value='tiny-xl-lora']")).to_be_enabled()
    expect(group.get_by_role("alert")).to_contain_text("tiny-lora-2")
    # And the card says so when it is closed
    page.get_by_role("button", name="Parameters of stage 1").click()
    expect(page.get_by_role("region", name=re.compile("^Stage 1"))).to_contain_text("loras tiny-lora-2 1")


def test_a_prompt_that_names_loras_is_warned_of_and_one_click_mends_it(watched: Watched) -> None:
    page = watched.page
    field = page.get_by_label("Prompt", exact=True)
    # Given one that is known, one that is misspelt, one of another family, and one that is nothing like any
    field.fill("a pear, <lora:Tiny_Lora:0.8>, ripe, <lora:tiny-loraa> <lora:tiny-xl-lora:1> <lora:zzz:0.5>")
    expect(page.get_by_text("would be drawn with the words")).to_have_count(4)
    expect(page.get_by_text("tiny-xl-lora is for sdxl, which no such stage draws with")).to_be_visible()
    expect(page.get_by_text("There is no LoRA of this name here.")).to_be_visible()
    expect(page.get_by_text("There is no LoRA of this name here; perhaps")).to_be_visible()
    # When the known one is taken, Then every stage that goes by the prompt and can has it, and its word is gone
    page.get_by_role("button", name="Put tiny-lora (0.8) on stages 1–2").click()
    expect(field).to_have_value("a pear, ripe, <lora:tiny-loraa> <lora:tiny-xl-lora:1> <lora:zzz:0.5>")
    one = [{"name": "tiny-lora", "weight": 0.8}]
    assert loras(page) == [one, one, None, None]
    # And that can be undone
    page.get_by_role("button", name="Undo").click()
    expect(field).to_have_value(re.compile("Tiny_Lora"))
    assert loras(page) == [None] * 4
    # When a near one is taken for the misspelt one, and the rest is taken out, Then nothing is warned of
    page.get_by_role("button", name="Put tiny-lora (0.8) on stages 1–2").click()
    page.get_by_role("button", name="Put tiny-lora (1) on stages 1–2").click()
    for _ in range(2):
        page.get_by_role("button", name="Take it out").first.click()
    expect(field).to_have_value("a pear, ripe")
    expect(page.get_by_text("would be drawn with the words")).to_have_count(0)
    # And a stage's own prompt is looked at, too
    page.get_by_role("button", name="Parameters of stage 2").click()
    card = page.get_by_label(re.compile("^Stage 2"))
    card.get_by_text(re.compile("^More")).click()
    own = card.get_by_label("prompt", exact=True)
    own.fill("a fig <lora:tiny-lora-3:-0.5>")
    own.press("Tab")
    page.get_by_role("button", name="Put tiny-lora-3 (-0.5) on stage 2").click()
    expect(own).to_have_value("a fig")
    assert loras(page)[1][-1] == {"name": "tiny-lora-3", "weight": -0.5}


def test_the_loras_of_a_picture_are_offered(watched: Watched) -> None:
    page = watched.page
    expect(page.get_by_label("Chain", exact=True)).to_have_value("hires")
    data = png(parameters=A1111.replace("(a dog", "<lora:tiny-lora:0.7>, <lora:gone:1>, (a dog"))
    page.evaluate(DROP, [base64.b64encode(data).decode(), "drawn.png"])
    expect(page.get_by_text("The picture was drawn with the LoRA")).to_have_count(2)
    # When one is put on the stage and the other left, Then they are offered no more, after a reload either
    page.get_by_role("button", name="Put tiny-lora (0.7) on stage 1").click()
    page.get_by_role("button", name="Leave it").click()
    expect(page.get_by_text("The picture was drawn with the LoRA")).to_have_count(0)
    assert loras(page) == [[{"name": "tiny-lora", "weight": 0.7}]]
    page.wait_for_timeout(400)  # the form is noted 300 ms after the last change
    page.reload()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(re.compile("a cat"))
    expect(page.get_by_text("The picture was drawn with the LoRA")).to_have_count(0)
