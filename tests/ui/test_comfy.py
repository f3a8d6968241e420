"""Does a job get from the page into ComfyUI, and back?"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from playwright.sync_api import expect

from tests.comfy import wrongs
from tests.ui.conftest import WAIT_MS, Dashboard

expect.set_options(timeout=WAIT_MS)
DROP_JSON = """
([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0)), dropped = new DataTransfer();
  dropped.items.add(new File([bytes], name, {type: 'application/json'}));
  const told = {dataTransfer: dropped, bubbles: true, cancelable: true};
  document.querySelector('main').dispatchEvent(new DragEvent('drop', told));
}
"""


def test_a_job_is_saved_as_a_workflow_and_dropped_on_the_form(dashboard: Dashboard, tmp_path: Path) -> None:
    lora = {"name": "tiny-lora", "weight": 0.75}
    job = dashboard.rig.farm.render(
        chain={
            "prompt": "a pear (ripe)", "seed": 11,
            "stages": [
                {"kind": "text2img", "num_inference_steps": 2, "scheduler": "EulerDiscreteScheduler", "loras": [lora]},
                {"kind": "img2img", "num_inference_steps": 4, "strength": 0.5, "scheduler": "EulerDiscreteScheduler"},
            ],
        }
    )  # fmt: skip
    watched = dashboard.open(f"/jobs/{job.id}")
    page = watched.page
    # When it is saved
    with page.expect_download() as saved:
        page.get_by_role("button", name="ComfyUI workflow").click()
    path = tmp_path / "saved.json"
    saved.value.save_as(path)
    # Then it is a graph that ComfyUI would take, and what it needs there is told
    nodes = json.loads(path.read_text())
    assert [*wrongs(nodes)] == []
    told = page.get_by_role("dialog", name="The workflow is saved")
    expect(told).to_contain_text("put tiny-lora (Apache-2.0) into ComfyUI's folder models/loras")
    told.get_by_role("button", name="Close").click()
    # When it is dropped on the form, Then the whole chain is there, with its LoRA
    page.goto(dashboard.url)
    expect(page.get_by_label(re.compile("^Stage 4: "))).to_be_visible()
    # Of the dry runs the one of what was dropped: the form as it was may be asked for so late, too.
    with page.expect_request(lambda one: "/jobs/dry-run" in one.url and '"seed":11' in (one.post_data or "")) as asked:
        page.evaluate(DROP_JSON, [base64.b64encode(path.read_bytes()).decode(), "saved.json"])
    chain = json.loads(asked.value.post_data or "")
    assert [stage["kind"] for stage in chain["chain"]["stages"]] == ["text2img", "img2img"]
    assert chain["chain"]["stages"][0]["loras"] == [lora]
    assert (chain["prompt"], chain["seed"]) == ("a pear (ripe)", 11)
    # And a file that is none is said to be none
    page.evaluate(DROP_JSON, [base64.b64encode(b'{"nodes": []}').decode(), "ui.json"])
    expect(page.get_by_role("alert").filter(has_text="ui.json is not taken")).to_contain_text("Export (API)")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a pear (ripe)")
    assert not watched.trouble
