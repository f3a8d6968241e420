"""Is it one choice with which model everything is drawn, and does the page tell which models there are?"""

from __future__ import annotations

import json
import re

from playwright.sync_api import Page, expect

from tests.ui.conftest import WAIT_MS, Watched

expect.set_options(timeout=WAIT_MS)


def asked(page: Page) -> list[dict[str, object]]:
    """The stages of the next dry run that the form asks for."""
    with page.expect_request(re.compile("/jobs/dry-run")) as told:
        page.get_by_label("Prompt", exact=True).press("x")
    stages: list[dict[str, object]] = json.loads(told.value.post_data or "")["chain"]["stages"]
    return stages


def test_one_choice_is_every_stages_that_can_take_it(watched: Watched) -> None:
    page = watched.page
    model = page.get_by_label("Model", exact=True)
    # Given a chain of four stages, of which the defaults of the first two are the same
    expect(page.get_by_label(re.compile("^Stage 4: upscale"))).to_be_visible()
    expect(model).to_have_value("tiny")
    # Then those that are not pulled cannot be chosen, and say what helps; those that no worker has ready are marked
    none = model.locator("option[value='sd15']")
    expect(none).to_have_text(re.compile("not pulled, farm models pull sd15"))
    assert none.is_disabled()
    expect(model.locator("option[value='tiny']")).to_have_text("tiny · sd")
    expect(model.locator("option[value='tiny-style']")).to_have_text(re.compile("no worker serves it"))
    # When another one is chosen, Then the stages that it can draw have it, and the others their own
    model.select_option("tiny-style")
    assert [stage.get("checkpoint") for stage in asked(page)] == ["tiny-style", "tiny-style", None, None]
    expect(page.get_by_label("Chain", exact=True)).to_have_value("hires")
    # When one stage gets another, Then the choice says that they are mixed, and each stage keeps its own
    page.get_by_role("button", name="Parameters of stage 2").click()
    page.get_by_label("checkpoint", exact=True).select_option("tiny")
    expect(model.locator("option:checked")).to_have_text("mixed: tiny-style, tiny")
    assert [stage.get("checkpoint") for stage in asked(page)] == ["tiny-style", "tiny", None, None]
    # And it is as it was after a reload
    page.wait_for_timeout(400)  # the form is noted 300 ms after the last change
    page.reload()
    expect(model.locator("option:checked")).to_have_text("mixed: tiny-style, tiny")
    # When the default is chosen, Then nothing is written, and the stage that is off has it, too
    page.get_by_label("Stage 2 is on").uncheck()
    model.select_option("tiny")
    page.get_by_label("Stage 2 is on").check()
    assert [stage.get("checkpoint") for stage in asked(page)] == [None] * 4


def test_all_models_are_listed_with_who_holds_them(watched: Watched) -> None:
    page = watched.page
    page.get_by_role("link", name="Workers").click()
    table = page.get_by_role("region", name="Checkpoints and adapters")
    # Given that some are pulled, and one of them is served
    row = table.get_by_role("row", name=re.compile("^tiny text2img"))
    expect(row).to_contain_text("Apache-2.0")
    expect(row).to_contain_text(re.compile("pulled .*B"))
    expect(row).to_contain_text(re.compile("held by|not loaded"))
    expect(table.get_by_role("row", name=re.compile("^tiny-style "))).to_contain_text("none serves it")
    expect(table.get_by_role("row", name=re.compile("^sdxl-turbo"))).to_contain_text("farm models pull sdxl-turbo")
    expect(table.get_by_role("row", name=re.compile("^tiny-lora "))).to_contain_text("lora")
    # When some are looked for, Then only those stand there
    page.get_by_label("Look for models").fill("lora sdxl")
    expect(table.get_by_role("row", name=re.compile("^tiny-xl-lora"))).to_be_visible()
    expect(table.get_by_role("row", name=re.compile("^tiny-lora "))).to_have_count(0)
    page.get_by_label("pulled only").check()
    expect(table.get_by_role("row", name=re.compile("^lcm-lora-xl"))).to_have_count(0)
    page.get_by_label("Look for models").fill("nothing like it")
    expect(page.get_by_text("No model is like that.")).to_be_visible()
