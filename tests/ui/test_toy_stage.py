"""Does a stage kind that the page has never heard of appear in its form, in the queue and in the job's view?"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from playwright.sync_api import Browser, expect

from farm.scripts import Server
from farm.tokens import Tokens
from tests.e2e.rig import ROOT, Rig, install, until
from tests.e2e.test_toy_stage import STAGE
from tests.ui.conftest import WAIT_MS, Dashboard

expect.set_options(timeout=WAIT_MS)


@contextmanager
def serving(env: dict[str, str]) -> Iterator[str]:
    """The API's URL while it runs in a process of its own, which knows what is installed for it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd, url = listener.fileno(), f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "farm.api.serve", "--socket", str(fd), "--parent", str(os.getpid())]
        process = subprocess.Popen(command, env=env, cwd=ROOT, pass_fds=(fd,))
        try:
            until(lambda: httpx2.get(f"{url}/readyz", timeout=60, trust_env=False).status_code == 200, 120)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def test_a_new_kind_needs_no_change_to_the_page(rig: Rig, browser: Browser, tmp_path: Path) -> None:
    # Given a farm where a package with one stage was installed, and workers for it
    added = install(tmp_path, STAGE, ["flip"])
    env = {**os.environ, **rig.env, **added}
    subprocess.run(
        [str(Path(sys.executable).with_name("farm")), "models", "pull", "none"], env=env, cwd=ROOT, check=True
    )
    rig.supervise(["text2img.tiny", "flip.none"], "toy", **added)
    rig.ready(2)
    server = Server(rig.farm.settings)
    with serving(env) as url:
        watched = Dashboard(url, rig, Tokens(server), browser).open()
        page = watched.page
        # When it is put behind a stage of this repository
        page.get_by_label("Chain", exact=True).select_option("txt")
        page.get_by_role("button", name="Add a stage").click()
        page.get_by_label("Kind of stage 2").select_option("flip")
        page.get_by_role("button", name="Parameters of stage 2").click()
        card = page.get_by_label(re.compile("^Stage 2: flip"))
        # Then its own words, parameter, and checkpoint are there
        expect(card).to_contain_text("Turn the image upside down.")
        card.get_by_label("checkpoint").select_option("none")
        card.get_by_label("times", exact=True).fill("3")
        card.get_by_label("times", exact=True).press("Tab")
        # And what it refuses is said there
        card.get_by_label("times", exact=True).fill("9")
        card.get_by_label("times", exact=True).press("Tab")
        expect(card.get_by_role("alert").first).to_contain_text("3")
        card.get_by_label("times", exact=True).fill("3")
        card.get_by_label("times", exact=True).press("Tab")
        page.get_by_label("Prompt", exact=True).fill("a toy")
        page.get_by_label("Prompt", exact=True).press("Control+Enter")
        # And it is seen in the queue and in the job's view
        page.get_by_role("link", name="Queue").click()
        row = page.get_by_role("listitem").filter(has_text="a toy")
        expect(row).to_contain_text("done")
        row.get_by_role("link", name="a toy").click()
        expect(page.get_by_role("row", name=re.compile("^2 flip none"))).to_contain_text("committed")
        expect(page.get_by_text("text2img → flip")).to_be_visible()
        assert not watched.trouble
        page.context.close()
    server.close()
