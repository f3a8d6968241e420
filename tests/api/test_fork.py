"""Does a fork keep what its job has made, and is what cannot be forked refused by field?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import pytest

from farm.errors import InvalidJob
from farm.handle import JobHandle
from farm.records import Claim
from tests.api.conftest import PNG, Site, locs, made, picture, problem, txt
from tests.test_cli import Hand

STAGES = [
    {"kind": "text2img", "num_inference_steps": 2},
    {"kind": "inpaint", "mask": "", "strength": 0.5},
    {"kind": "upscale", "num_inference_steps": 2},
]
QUEUES = ("text2img.tiny", "inpaint.tiny", "upscale.tiny-x4")


@pytest.fixture
def mask(ada: httpx2.Client) -> str:
    """An uploaded mask of hers."""
    return str(ada.post("/api/v1/uploads", content=picture("white"), headers=PNG).json()["image"])


@pytest.fixture
def job(site: Site, ada: httpx2.Client, mask: str) -> Iterator[str]:
    """A job of three stages that pass images, of which none has run."""
    yield submit(ada, mask)
    site.empty()


def submit(ada: httpx2.Client, mask: str, **more: Any) -> str:
    """Such a job's id."""
    stages = [{**stage, **({"mask": mask} if "mask" in stage else {})} for stage in STAGES]
    ask = {key: value for key, value in txt().items() if key not in ("chain",)}
    found = made(ada.post("/api/v1/jobs", json={**ask, "chain": {"stages": stages, **more}}))
    return str(found["jobs"][0]["id"])


def fork(client: httpx2.Client, job: str, from_stage: int, key: str = "", **ask: Any) -> httpx2.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post(f"/api/v1/jobs/{job}/fork", json={"from_stage": from_stage, **ask}, headers=headers)


def forked(answer: httpx2.Response) -> str:
    return str(made(answer)["jobs"][0]["id"])


def draw(hand: Hand, queues: Sequence[str]) -> list[str]:
    """Serves the next work on each of `queues` in turn; whose it was."""
    found: list[str] = []
    for queue in queues:
        claim = hand.claim(queue)
        found += claim.waiters
        hand.serve(claim)
    return found


def nothing_waits(hand: Hand, *queues: str) -> bool:
    claims: list[Claim] = hand.ledger.claim(queues, "hand", "boot")[0]
    return not claims


def kinds(site: Site, job: str) -> list[str]:
    """The queues in which something was claimed for the job."""
    record = site.farm.ledger.job(job)
    return [record.stages[one.stage].queue for one in site.farm.ledger.events(job) if one.type == "claimed"]


@pytest.mark.parametrize("reuse", [True, False])
def test_only_the_later_stages_run_again(site: Site, ada: httpx2.Client, hand: Hand, mask: str, reuse: bool) -> None:
    # Given a job that is done
    job = submit(ada, mask, reuse=reuse)
    draw(hand, QUEUES)
    assert site.farm.job(job).state == "done"
    # When its last stage is asked for otherwise
    other = forked(fork(ada, job, 2, parameters={"noise_level": 7}))
    # Then that alone is run, on what the job made
    claim = hand.claim(*QUEUES)
    assert (claim.queue, claim.waiters) == ("upscale.tiny-x4", (other,))
    assert claim.input == site.farm.ledger.job(job).outputs[1]
    hand.serve(claim)
    record = site.farm.ledger.job(other)
    assert (record.state, kinds(site, other)) == ("done", ["upscale.tiny-x4"])
    assert record.outputs[:2] == site.farm.ledger.job(job).outputs[:2]
    recipes = json.loads(record.spec)["recipes"]
    assert recipes[:2] == json.loads(site.farm.ledger.job(job).spec)["recipes"][:2]
    assert recipes[2]["parameters"]["noise_level"] == 7


def test_a_job_that_runs_is_forked_and_both_share_what_is_made(
    site: Site, ada: httpx2.Client, hand: Hand, job: str
) -> None:
    # Given a job whose first stage is being drawn
    claim = hand.claim("text2img.tiny")
    # When it is forked
    other = forked(fork(ada, job, 1, parameters={"strength": 0.9}))
    hand.serve(claim)
    # Then the stage is drawn once for both, and what differs for each
    assert nothing_waits(hand, "text2img.tiny")
    assert sorted(draw(hand, ("inpaint.tiny", "inpaint.tiny"))) == sorted([job, other])


def test_what_is_gone_runs_again(site: Site, ada: httpx2.Client, hand: Hand, mask: str) -> None:
    # Given a done job whose executions the ledger has forgotten
    job = submit(ada, mask)
    draw(hand, QUEUES)
    record = site.farm.ledger.job(job)
    for stage in record.stages[:2]:
        site.farm.ledger._server.run("DEL", f"x:{stage.exec}")
    # When it is forked
    other = forked(fork(ada, job, 2, parameters={"noise_level": 9}))
    # Then all its stages run
    draw(hand, QUEUES)
    assert site.farm.job(other).state == "done"
    assert kinds(site, other) == list(QUEUES)


def test_stages_are_replaced_or_go_on_after_the_last(site: Site, ada: httpx2.Client, hand: Hand, mask: str) -> None:
    # Given a done job
    job = submit(ada, mask)
    draw(hand, QUEUES)
    # Then other stages may stand in place of its end, or after it, where it handed on what they take
    shorter = forked(fork(ada, job, 2, stages=[{"kind": "inpaint", "mask": mask, "prompt": "a plum", "seed": 5}]))
    draw(hand, ["inpaint.tiny"])
    longer = forked(fork(ada, job, 3, stages=[{"kind": "img2img", "strength": 0.4}], priority=80))
    draw(hand, ["img2img.tiny"])
    for one, count in ((shorter, 3), (longer, 4)):
        record = site.farm.ledger.job(one)
        assert (record.state, record.n, len(kinds(site, one))) == ("done", count, 1)
    assert site.farm.ledger.job(longer).priority == 80
    assert site.farm.job(longer).images[0].size == (256, 256)


def test_the_same_key_is_the_same_fork(ada: httpx2.Client, job: str) -> None:
    first = fork(ada, job, 2, "k", parameters={"noise_level": 7})
    again = fork(ada, job, 2, "k", parameters={"noise_level": 7})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["jobs"] == again.json()["jobs"]
    problem(fork(ada, job, 2, "k", parameters={"noise_level": 8}), 409, "idempotency_conflict")


@pytest.mark.parametrize(
    ("from_stage", "ask", "loc", "code"),
    [
        (0, {}, "from_stage", "invalid_field"),
        (3, {}, "from_stage", "invalid_field"),
        (4, {"stages": [{"kind": "img2img"}]}, "from_stage", "invalid_field"),
        (2, {"parameters": {"1.strength": 0.3}}, "1.strength", "invalid_field"),
        (2, {"parameters": {"strength": 0.3}}, "strength", "unknown_field"),
        (2, {"parameters": {"noise_level": 1000}}, "stages.2.noise_level", "invalid_field"),
        (2, {"stages": [{"kind": "text2img"}]}, "stages.2", "medium_mismatch"),
        (1, {"stages": [{"kind": "img2img"}]}, "stages.1", "medium_mismatch"),
        (1, {"stages": []}, "stages", "bad_length"),
        (2, {"stages": [{"kind": "inpaint", "mask": "/etc/passwd"}]}, "stages.2.mask", "bad_image"),
        (2, {"stages": [{"kind": "inpaint", "mask": "sha256:" + "0" * 64}]}, "stages.2.mask", "bad_image"),
        (2, {"seed": 5}, "seed", "unknown_field"),
        (2, {"prompt": "a plum"}, "prompt", "unknown_field"),
    ],
)
def test_what_cannot_be_forked_is_refused_by_field(
    site: Site, ada: httpx2.Client, job: str, from_stage: int, ask: dict[str, Any], loc: str, code: str
) -> None:
    before = len(site.farm.jobs(limit=1000))
    assert (loc, code) in locs(problem(fork(ada, job, from_stage, **ask), 422, code))
    assert len(site.farm.jobs(limit=1000)) == before


def test_another_hand_on_is_said(ada: httpx2.Client, job: str) -> None:
    """text2img handed on an image; img2img would have had its latents."""
    found = problem(fork(ada, job, 1, stages=[{"kind": "img2img"}]), 422, "medium_mismatch")
    assert "stage 0 handed on an image and would have to hand on latents" in found["detail"]


def test_somebody_elses_job_is_not_there(site: Site, job: str) -> None:
    with site.client("bob") as bob:
        problem(fork(bob, job, 2), 404, "not_found")
    with site.client("carl", "read") as carl:
        problem(fork(carl, job, 2), 403, "forbidden")


def test_the_farm_here_forks_too(site: Site, hand: Hand, job: str) -> None:
    # When the same is asked for without HTTP, by the end of the id
    draw(hand, QUEUES)
    other = site.farm.fork(job[-12:], 2, noise_level=3)
    # Then it is the same
    assert isinstance(other, JobHandle)
    draw(hand, ["upscale.tiny-x4"])
    assert other.state == "done"
    with pytest.raises(InvalidJob):
        site.farm.fork(job, 1, stages=[{"kind": "inpaint", "mask": "no-such-file.png"}])
