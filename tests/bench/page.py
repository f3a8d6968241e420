"""How heavy is the dashboard, how soon can it be used, and do long lists scroll smoothly? `python -m tests.bench.page`

In Chromium without a GPU, on the farm's own machine: 10,000 jobs that wait, and 5,000 pictures, among which 200 differ,
so that each is fetched and drawn, and its thumbnail is there. A frame is late where it comes more than 50 ms after the
one before. Source: RAIL model, a response to input within 50 ms.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

from farm.client import Farm
from farm.job import canonical
from farm.records import Commit
from farm.settings import Settings
from tests.bench.api import CHAIN, farm_of
from tests.ui.browser import find, flags

JOBS, PICTURES, DIFFERENT = 10_000, 5_000, 200
QUEUE = "noop_source.none"
SIDE = 512
"""Of a picture, pixels."""
SECONDS = 10
LATE_MS = 50
SCROLL = """
async ([seconds, by]) => {
  const box = document.querySelector('.box'), times = [];
  let last = await new Promise(requestAnimationFrame), down = by;
  for (const until = last + 1000 * seconds; last < until; ) {
    box.scrollTop += down;
    if (box.scrollTop + box.clientHeight >= box.scrollHeight - 1 || box.scrollTop === 0) down = -down;
    const now = await new Promise(requestAnimationFrame);
    times.push(now - last);
    last = now;
  }
  return times;
}
"""
WARM = """
async (jobs) => {
  for (const job of jobs) {
    const answer = await fetch(`/api/v1/jobs/${job}/artifacts/0/thumbnail?side=256`, {cache: 'reload'});
    if (!answer.ok) throw new Error(`no thumbnail: ${answer.status}`);
  }
}
"""
WEIGHT = """
() => [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
  .filter((one) => new URL(one.name).pathname.match(/^\\/($|assets|icon)/))
  .reduce((sum, one) => sum + one.encodedBodySize, 0)
"""


def main() -> None:
    """Measures, and prints."""
    console = Console()
    console.print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder:
        console.print(table_of(Path(folder)))


def table_of(folder: Path) -> Table:
    """The figures of a run in `folder`, for people."""
    table = Table(title=f"the dashboard: {JOBS} jobs in the queue, {PICTURES} pictures", title_justify="left")
    for head in ("", "measured"):
        table.add_column(head)
    for name, value in measure(folder).items():
        table.add_row(name, f"{value:.0f}" if value >= 10 else f"{value:.1f}")
    return table


def measure(folder: Path) -> dict[str, float]:
    """The figures: times in milliseconds, sizes in KiB, shares in percent."""
    found: dict[str, float] = {}
    with farm_of(folder) as (url, _, env):
        os.environ.update(env)
        parts = urlsplit(url)
        with (
            Farm(Settings.load()) as farm,
            page_of(f"http://{parts.hostname}:{parts.port}", str(parts.username)) as page,
        ):
            found["first page, KiB gzip"] = page.evaluate(WEIGHT) / 1024
            found["usable after, first visit, ms"] = first_ms(page)
            found["usable after, loaded again, ms"] = usable_ms(page)
            for worker in farm.ledger.workers():
                farm.ledger.drain(worker.worker)
            farm.run(chain=CHAIN, count=PICTURES, seed=0, lane="bulk")
            draw(farm)
            (run,) = {job.record.run for job in farm.run(chain=CHAIN, count=JOBS, seed=PICTURES)}
            base = base_of(page)
            for name, path in (("queue", f"queue?state=queued&run={run}"), ("gallery", "gallery")):
                page.goto(f"{base}/{path}")
                page.locator(".box [role=listitem]").first.wait_for()
                if name == "gallery":
                    page.evaluate(WARM, [one.job for one in farm.jobs(state="done", limit=DIFFERENT)])
                    shown = "() => [...document.querySelectorAll('.box img')].some((one) => one.naturalWidth > 0)"
                    page.wait_for_function(shown)
                for by in (60, 600):
                    times = sorted(page.evaluate(SCROLL, [SECONDS, by]))
                    told = f"{name}, {by} px a frame"
                    found[f"{told}: frame p50, ms"] = statistics.median(times)
                    found[f"{told}: frame p99, ms"] = times[int(len(times) * 0.99)]
                    found[f"{told}: late frames, %"] = 100 * sum(one > LATE_MS for one in times) / len(times)
    return found


def draw(farm: Farm) -> None:
    """Ends every job that waits with a picture; the worker that is there would give none."""
    numbers, pictures = np.random.default_rng(0), list[str]()
    for _ in range(DIFFERENT):
        out = BytesIO()
        coarse = Image.fromarray(numbers.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(out, "PNG")
        blob = farm.store.put_blob(out.getvalue(), "image/png")
        pictures.append(canonical({"blob": blob, "bytes": out.tell(), "medium": "image", "size": [SIDE, SIDE]}))
    for number in count():
        claims, _ = farm.ledger.claim([QUEUE], "painter", "boot")
        if not claims:
            break
        (claim,) = claims
        farm.ledger.commit([Commit(claim, pictures[number % DIFFERENT], claim.finishing)])
    assert number == PICTURES


def first_ms(page: Page) -> float:
    """How long after somebody's first visit began the page can be used, a median of five: nothing is kept of any other.

    The browser runs already, and the visitor has a session, as after a login.
    """
    assert page.context.browser is not None
    base, kept, seen = base_of(page), page.context.cookies(), []
    for _ in range(5):
        with page.context.browser.new_context(viewport=page.viewport_size) as context:
            context.add_cookies(kept)  # type: ignore[arg-type]
            visit = context.new_page()
            visit.goto(base, wait_until="commit")
            seen.append(usable_at(visit))
    return statistics.median(seen)


def usable_ms(page: Page) -> float:
    """How long after it is loaded again the page can be used, a median of five."""
    seen = []
    for _ in range(5):
        page.reload(wait_until="commit")
        seen.append(usable_at(page))
    return statistics.median(seen)


def usable_at(page: Page) -> float:
    """When the page can be typed into and submitted with, milliseconds since its navigation began."""
    page.wait_for_function("() => document.querySelectorAll('section.stage').length === 4")
    return float(page.evaluate("() => performance.now()"))


def base_of(page: Page) -> str:
    """The farm's address."""
    parts = urlsplit(page.url)
    return f"{parts.scheme}://{parts.netloc}"


@contextmanager
def page_of(url: str, token: str) -> Iterator[Page]:
    """The page, logged in."""
    path = find()
    assert path is not None, "install Chromium: python -m tests.ui.browser"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags())
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(600_000)
        page.goto(f"{url}/#token={token}")
        page.locator("section.stage").nth(3).wait_for()
        yield page
        browser.close()


if __name__ == "__main__":
    main()
