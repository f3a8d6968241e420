"""Does the page show what is in quarantine, what its workers said last, and let an operator try it again or drop it?"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import pytest
from playwright.sync_api import expect

from farm.errors import Failure
from farm.ledger import Ledger
from farm.records import StageEntry, Submission
from tests.ui.conftest import WAIT_MS, Dashboard
from tests.ui.test_strangers import PAYLOADS, WATCH, executed

expect.set_options(timeout=WAIT_MS)


@dataclass(frozen=True)
class Held:
    """Jobs that a quarantine holds."""

    execution: str
    jobs: list[str]


def held(dashboard: Dashboard, message: str, log: str, count: int = 2) -> Held:
    """Jobs of one recipe that has killed every worker it was given to."""
    farm, ledger = dashboard.rig.farm, Ledger(dashboard.rig.farm.settings)
    exec_, queue = secrets.token_hex(32), f"strange{secrets.token_hex(4)}.tiny"
    jobs = []
    for _ in range(count):
        (job,) = farm.jobs_of(farm.chain("txt", prompt="a cursed pear", seed=5))
        ledger.submit([Submission(job.id, (StageEntry(exec_, queue, job.payload(0)),), job.spec, "", "", owner="ada")])
        jobs.append(job.id)
    for attempt in range(farm.settings.crash_attempts):
        # Another worker each time: one that fails all it tries is given nothing for a while.
        (claim,), _ = ledger.claim([queue], f"w{attempt} {message[:12]} {secrets.token_hex(4)}", "boot")
        ledger.fail([claim], Failure.CRASH, "crashed", message, f"{log}\nattempt {attempt + 1} died")
    assert ledger.job(jobs[0]).state == "quarantined"
    ledger.close()
    return Held(exec_, jobs)


@pytest.fixture
def cursed(dashboard: Dashboard) -> Held:
    """Two jobs in quarantine."""
    return held(dashboard, "the process ended with signal 9", "loading tiny\nMemoryError: 40 GB")


def test_a_job_leads_to_the_logs_of_what_it_died_of(dashboard: Dashboard, cursed: Held) -> None:
    watched = dashboard.open(f"/jobs/{cursed.jobs[0]}")
    page = watched.page
    # When an operator follows the job's word
    page.get_by_role("link", name="Each failed attempt, with its worker's log").click()
    # Then each attempt is there: who, why, and the last lines
    first = page.get_by_role("region", name="Attempt 1", exact=True)
    expect(first).to_contain_text("on w0 the process")
    expect(first).to_contain_text("crashed: the process ended with signal 9")
    expect(page.get_by_role("region", name="Log of attempt 2")).to_contain_text("MemoryError: 40 GB")
    case = page.get_by_role("region", name="The case")
    expect(case).to_contain_text("text2img with tiny, seed 5: a cursed pear")
    expect(case.get_by_role("link")).to_have_count(2)
    # When it is retried, after a question, Then both jobs wait again, and it is no longer there
    case.get_by_role("button", name="Retry its 2 jobs").click()
    page.get_by_role("dialog").get_by_role("button", name="Retry", exact=True).click()
    expect(page.get_by_text("2 jobs are queued again.")).to_be_visible()
    assert {dashboard.rig.farm.ledger.job(job).state for job in cursed.jobs} == {"queued"}
    page.goto(f"{dashboard.url}/quarantine/{cursed.jobs[0]}")
    expect(page.get_by_role("link", name="All of the quarantine")).to_be_visible()
    assert not watched.trouble


def test_the_queue_leads_to_all_of_it_and_one_is_dropped(dashboard: Dashboard, cursed: Held) -> None:
    watched = dashboard.open("/queue")
    page = watched.page
    page.get_by_role("link", name="Quarantine: causes and logs").click()
    case = page.get_by_role("region", name=f"Case {cursed.execution[:12]}")
    expect(case).to_contain_text("2 jobs")
    # When it is dropped, after a question that says no at first
    case.get_by_role("button", name="Drop").click()
    page.get_by_role("dialog").get_by_role("button", name="No").click()
    assert dashboard.rig.farm.ledger.quarantined([cursed.execution])
    case.get_by_role("button", name="Drop").click()
    page.get_by_role("dialog").get_by_role("button", name="Drop it").click()
    # Then its jobs stay as they ended
    expect(case).to_have_count(0)
    assert dashboard.rig.farm.ledger.quarantined([cursed.execution]) == []
    assert dashboard.rig.farm.ledger.job(cursed.jobs[0]).state == "quarantined"
    assert not watched.trouble


def test_it_is_the_operators(dashboard: Dashboard, cursed: Held) -> None:
    watched = dashboard.open(f"/quarantine/{cursed.execution}", token=dashboard.token("read", "submit"))
    page = watched.page
    expect(page.get_by_text("The quarantine is the operators'.")).to_be_visible()
    expect(page.get_by_text("MemoryError")).to_have_count(0)
    page.goto(f"{dashboard.url}/queue")
    expect(page.get_by_role("heading", name="Queue")).to_be_visible()
    expect(page.get_by_role("link", name="Quarantine: causes and logs")).to_have_count(0)
    assert not watched.trouble


def test_a_phone_holds_it(dashboard: Dashboard, cursed: Held) -> None:
    watched = dashboard.open("/quarantine")
    page = watched.page
    page.set_viewport_size({"width": 320, "height": 800})
    main = page.get_by_role("main")
    for path, there in (
        ("/quarantine", main.get_by_role("region", name=f"Case {cursed.execution[:12]}").get_by_text("signal 9")),
        (f"/quarantine/{cursed.execution}", main.get_by_role("region", name="Log of attempt 2")),
        ("/queue", main.get_by_role("listitem").filter(has_text="a cursed pear")),
        ("/workers", main.get_by_role("row").filter(has_text="text2img.tiny")),
    ):
        page.goto(dashboard.url + path)
        expect(there.first).to_be_visible()
        assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0, path


def test_what_a_worker_wrote_is_text(dashboard: Dashboard) -> None:
    watched = dashboard.open("/")
    page = watched.page
    page.context.add_init_script(WATCH)
    for payload in PAYLOADS[::6]:
        found = held(dashboard, payload, payload, count=1)
        page.goto(f"{dashboard.url}/quarantine/{found.execution}")
        page.get_by_role("region", name="Log of attempt 1").wait_for()
        expect(page.get_by_role("region", name="Log of attempt 1")).to_contain_text("attempt 1 died")
        # What ran is known to the document in which it did
        assert executed(page) == []
    page.goto(f"{dashboard.url}/quarantine")
    page.get_by_role("region", name=f"Case {found.execution[:12]}").wait_for()
    assert executed(page) == []
    assert not watched.trouble
