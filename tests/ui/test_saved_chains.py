"""Can a chain be kept under a name, found by others, shared as a file and let go of, with the page alone?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.ui.conftest import WAIT_MS, Dashboard, Watched
from tests.ui.test_access import findings

expect.set_options(timeout=WAIT_MS)
DROP_FILE = """
([text, name]) => {
  const dropped = new DataTransfer();
  dropped.items.add(new File([text], name, {type: 'application/json'}));
  const told = {dataTransfer: dropped, bubbles: true, cancelable: true};
  return document.querySelector('main').dispatchEvent(new DragEvent('drop', told));
}
"""
"""Drops a file, given as its text and its name; false where the page takes it."""


@pytest.fixture(autouse=True)
def _none_saved(dashboard: Dashboard) -> Iterator[None]:
    yield
    for one in dashboard.rig.farm.presets():
        if one["saved"]:
            dashboard.rig.farm.delete_chain(one["name"])


def menu(page: Page) -> Locator:
    return page.get_by_label("Chain", exact=True)


def save(page: Page, name: str, description: str = "") -> None:
    """Fills in the dialog that saves a chain, and sends it."""
    page.get_by_role("button", name="Save the chain").click()
    dialog = page.get_by_role("dialog", name="Save the chain")
    dialog.get_by_label("Name").fill(name)
    dialog.get_by_label("What it gives").fill(description)
    dialog.get_by_role("button", name="Save", exact=True).click()


def test_a_chain_is_saved_used_by_another_replaced_and_deleted(dashboard: Dashboard) -> None:
    farm = dashboard.rig.farm
    ada = dashboard.open(token=dashboard.token("read", "submit", owner="ada"))
    bob = dashboard.open(token=dashboard.token("read", "submit", owner="bob"))
    page = ada.page
    # Given a chain that ada has arranged
    menu(page).select_option("refine")
    page.get_by_label("Prompt", exact=True).fill("a soft pear")
    page.get_by_role("button", name="Parameters of stage 2").click()
    card = page.get_by_label(re.compile("^Stage 2: img2img"))
    card.get_by_label("strength", exact=True).fill("0.75")
    card.get_by_label("strength", exact=True).press("Tab")
    # When it is saved, Then it stands in the menu as the chosen one
    save(page, "soft", "soft and slow")
    expect(page.get_by_text("The chain soft is saved")).to_be_visible()
    expect(menu(page)).to_have_value("soft")
    expect(page.get_by_text("Saved by ada: soft and slow")).to_be_visible()
    told = farm.preset("soft")
    assert (told["owner"], told["stages"][1]["strength"]) == ("ada", 0.75)
    assert "prompt" not in told["fields"]
    # And bob finds it, once he opens the menu, and draws with it, but cannot delete it
    menu(bob.page).focus()
    expect(menu(bob.page).locator("optgroup[label=Saved] option")).to_have_text(["soft: soft and slow"])
    menu(bob.page).select_option("soft")
    expect(bob.page.get_by_label(re.compile("^Stage 2: img2img"))).to_be_visible()
    expect(bob.page.get_by_text("Saved by ada: soft and slow")).to_be_visible()
    expect(bob.page.get_by_role("button", name="Delete soft")).to_have_count(0)
    bob.page.get_by_label("Prompt", exact=True).fill("a fig")
    with bob.page.expect_response(re.compile("/jobs$")) as answer:
        bob.page.get_by_role("button", name="Submit").click()
    assert answer.value.status == 201
    # And he does not take its name
    save(bob.page, "soft")
    dialog = bob.page.get_by_role("dialog", name="Save the chain")
    expect(dialog.get_by_role("alert")).to_contain_text("another chain of this name")
    bob.page.keyboard.press("Escape")
    # When ada saves another one under its name, Then she is asked before it is replaced
    menu(page).select_option("txt")
    save(page, "soft", "another")
    dialog = page.get_by_role("dialog", name="Save the chain")
    expect(dialog.get_by_text("Replace it?")).to_be_visible()
    # A double click, whose first half asked, is no answer
    dialog.get_by_role("button", name="Replace").dispatch_event("click", {"detail": 2})
    expect(dialog.get_by_text("Replace it?")).to_be_visible()
    assert farm.preset("soft") == told
    dialog.get_by_label("with the prompts").check()
    dialog.get_by_role("button", name="Replace").click()
    expect(page.get_by_text("Saved by ada: another")).to_be_visible()
    assert farm.preset("soft")["fields"]["prompt"] == "a soft pear"
    # And before it is deleted
    page.get_by_role("button", name="Delete soft").click()
    page.get_by_role("dialog", name="Delete the chain soft?").get_by_role("button", name="No").click()
    page.get_by_role("button", name="Delete soft").click()
    page.get_by_role("dialog", name="Delete the chain soft?").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("The chain soft is deleted.")).to_be_visible()
    expect(menu(page).locator("optgroup[label=Saved]")).to_have_count(0)
    assert "soft" not in {one["name"] for one in farm.presets()}
    assert not ada.trouble
    assert not bob.trouble


def test_a_chain_of_its_own_words_is_chosen_and_taken_back(watched: Watched, dashboard: Dashboard) -> None:
    page, farm = watched.page, dashboard.rig.farm
    prompt, seed = page.get_by_label("Prompt", exact=True), page.get_by_role("textbox", name=re.compile("^Seed"))
    # Given a chain that is saved with its prompt, and without the seed that is on the form
    menu(page).select_option("txt")
    prompt.fill("a soft pear")
    seed.fill("42")
    page.get_by_role("button", name="Save the chain").click()
    dialog = page.get_by_role("dialog", name="Save the chain")
    dialog.get_by_label("Name").fill("pear")
    dialog.get_by_label("with the prompts").check()
    expect(dialog.get_by_label("with the seed")).not_to_be_checked()
    dialog.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("The chain pear is saved")).to_be_visible()
    assert farm.preset("pear")["fields"] == {"prompt": "a soft pear", "keep": "preview"}
    # When it is chosen over other words
    menu(page).select_option("hires")
    prompt.fill("a long text that took its time")
    menu(page).select_option("pear")
    expect(prompt).to_have_value("a soft pear")
    # Then these come back by Undo, and another file than it takes is said to be none
    page.get_by_role("button", name="Undo").click()
    expect(prompt).to_have_value("a long text that took its time")
    page.evaluate(DROP_FILE, ["%PDF", "paper.pdf"])
    expect(page.get_by_text("paper.pdf is not taken")).to_be_visible()
    assert not watched.trouble


def test_a_name_that_is_none_is_said(watched: Watched) -> None:
    page = watched.page
    page.get_by_role("button", name="Save the chain").click()
    dialog = page.get_by_role("dialog", name="Save the chain")
    # A browser holds what is no name back; what it lets through the farm refuses, and says so in the dialog
    dialog.get_by_label("Name").fill("No Name")
    dialog.get_by_role("button", name="Save", exact=True).click()
    assert dialog.get_by_label("Name").evaluate("(one) => one.validity.patternMismatch")
    for name, told in (("hires", "catalog has a chain of this name"), ("pear.json", "not the end of a file's name")):
        dialog.get_by_label("Name").fill(name)
        dialog.get_by_role("button", name="Save", exact=True).click()
        expect(dialog.get_by_role("alert")).to_contain_text(told)
    assert findings(page) == []


def test_a_chain_is_shared_as_a_file(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    # Given a chain on the form
    menu(page).select_option("refine")
    page.get_by_label("Prompt", exact=True).fill("a shared pear")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).click()
    assert download.value.suggested_filename == "refine.json"
    path = tmp_path / "refine.json"
    download.value.save_as(path)
    written = json.loads(path.read_text())
    assert (written["prompt"], len(written["stages"])) == ("a shared pear", 2)
    # When somebody loads it over another one, Then it is on the form, and can be taken back
    menu(page).select_option("txt")
    page.get_by_label("Prompt", exact=True).fill("another")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load a file").click()
    chooser.value.set_files(path)
    expect(page.get_by_text("The chain on the form is that of refine.json.")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a shared pear")
    expect(page.get_by_label(re.compile("^Stage 2: img2img"))).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("another")
    # And so it is when it is dropped
    assert page.evaluate(DROP_FILE, [path.read_text(), "dropped.json"]) is False
    expect(page.get_by_text("The chain on the form is that of dropped.json.")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a shared pear")
    # And a file that no submit would take is named with each wrong field, and changes nothing
    alert = page.get_by_role("alert").filter(has_text="is not taken")
    wrong = {**written, "stages": [{"kind": "text2img", "steps": 0}, {"kind": "none"}], "prompt": "bad"}
    for text, name, told in (
        (json.dumps(wrong), "wrong.json", ["stage 1, steps: ", "stage 2, kind: "]),
        ("stages:\n- kind: text2img\n", "chain.yaml", ["farm chain save"]),
        ("[]", "list.json", ["an object with `stages`"]),
        (json.dumps({**written, "lights": 1}), "field.json", ["no such field"]),
    ):
        page.evaluate(DROP_FILE, [text, name])
        for one in (name, *told):
            expect(alert).to_contain_text(one)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a shared pear")
    assert findings(page) == []


def test_who_may_only_look_saves_nothing(dashboard: Dashboard) -> None:
    dashboard.rig.farm.save_chain("soft", "refine", "soft")
    watched = dashboard.open(token=dashboard.token("read"))
    page = watched.page
    menu(page).select_option("soft")
    expect(page.get_by_text("Saved: soft")).to_be_visible()
    for name in ("Save the chain", "Load a file", "Delete soft"):
        expect(page.get_by_role("button", name=re.compile(name))).to_have_count(0)
    assert not watched.trouble


def test_a_dataset_is_made_with_it(dashboard: Dashboard) -> None:
    dashboard.rig.farm.save_chain("soft", {"prompt": "a soft pear", "fit": "contain", "stages": [{"kind": "text2img"}]})
    watched = dashboard.open("/datasets?new=1")
    page = watched.page
    rows = {"name": "rows.csv", "mimeType": "text/csv", "buffer": b"label\na\nb\n"}
    page.locator("input[type=file]").first.set_input_files(rows)  # type: ignore[arg-type]
    with page.expect_request(
        lambda one: one.url.endswith("/datasets/preview") and '"fit":"contain"' in (one.post_data or "")
    ):
        page.get_by_label("Every row runs").select_option("soft")
    expect(page.get_by_label("Prompt of rows that have none", exact=True)).to_have_value("a soft pear")
    assert not watched.trouble
