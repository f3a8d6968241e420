"""What are the words of a farm on another machine, whoever plays them?

Each is a generator of calls (see `wire`). `RemoteFarm` and `AsyncFarm` say the same ones.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from farm.again import named_images, no_input, read_again, refitted
from farm.api.views import JobView
from farm.chains import check_name
from farm.comfy_graph import Workflow
from farm.errors import BadBlob, InvalidJob, NotFound, StageFailed, Unavailable
from farm.fork import StagesSource, read_stages
from farm.handle import AWAY_S, Intermediate, Result
from farm.image import read_input
from farm.job import Forecast, new_id, recipe_key
from farm.program import program
from farm.protocol import ChainSource, ImageSource
from farm.records import ENDED, Attempt, Event, JobRecord, Quarantined, RunRecord
from farm.remote.asks import chain_ask, job_ask, save_ask, stages_ask, upload
from farm.remote.views import attempt_of, event_of, intermediate_of, quarantined_of, record_of, result_of, run_of
from farm.remote.wire import LONG_S, Call, Pause, Steps, ask, asked, get, part
from farm.settings import Settings
from farm.snapshot import BASE
from farm.stage import STORED, Size, kinds
from farm.sweep import Sweep
from farm.tags import check_change, check_tags

PAGE = 200
"""Jobs or runs that one call lists."""
TAGGED = 1000
"""Jobs that one call tags."""
NEWEST = 200
"""Jobs among which one is found by the end of its id."""
ROUND_S = 0.5
"""First pause between two looks at a job that is waited for; grows to `LONGEST_S`, seconds."""
LONGEST_S = 2.0


def run(
    prompt: str | None = None,
    *,
    chain: ChainSource = "hires",
    image: ImageSource | None = None,
    count: int = 1,
    sweep: Sweep = (),
    idempotency_key: str | None = None,
    lane: str = "interactive",
    priority: int = 50,
    deadline_s: float | None = None,
    tags: Sequence[str] = (),
    **given: Any,
) -> Steps[list[str]]:
    """The ids of `count` submitted jobs of each variant of one chain, image i with seed + i.

    `given` are the chain's own fields and stage parameters, as in `Farm.chain`; `sweep` is a list of axes (see
    `farm.sweep`). Images are uploaded: the input image, and those that stages name as bytes or by a path.

    Raises:
        InvalidJob: something does not fit; nothing was submitted.
        Unavailable: the API, or what is behind it, does not answer. With code `outcome_unknown` the jobs may be there:
            the hint names the idempotency key under which another submit yields each of them once.
    """
    more = {"count": count, "sweep": list(sweep), "lane": lane, "priority": priority, "deadline_s": deadline_s}
    more["tags"] = list(check_tags(tags)) or None
    body = yield from job_ask(prompt, chain, image, given, **more)
    return (yield from submit("jobs", body, idempotency_key))


def submit(path: str, body: Mapping[str, Any], idempotency_key: str | None) -> Steps[list[str]]:
    """The ids of the jobs that a submit makes. Every try has the same key, so none is made twice."""
    key = new_id() if idempotency_key is None else idempotency_key
    headers = {"Idempotency-Key": key}
    try:
        found = yield from asked(
            Call("POST", path, json=dict(body), headers=headers, again=True, lost="outcome_unknown", timeout_s=LONG_S)
        )
    except Unavailable as error:
        if error.code != "outcome_unknown":
            raise
        hint = f"submit it again with the idempotency key {key}: no job is made twice"
        raise Unavailable(code="outcome_unknown", hint=hint) from None
    return [str(job["id"]) for job in found["jobs"]]


def fork(
    job: str,
    from_stage: int,
    *,
    stages: StagesSource | None = None,
    idempotency_key: str | None = None,
    lane: str | None = None,
    priority: int | None = None,
    deadline_s: float | None = None,
    **parameters: Any,
) -> Steps[str]:
    """The id of the job that goes on otherwise from stage `from_stage` on (see `farm.fork`)."""
    whole = yield from find(job)
    body: dict[str, Any] = {"from_stage": from_stage, "lane": lane, "priority": priority, "deadline_s": deadline_s}
    if stages is not None:
        body["stages"] = yield from stages_ask(*read_stages(stages))
    _, body["parameters"] = yield from chain_ask("", parameters)
    body = {name: value for name, value in body.items() if value is not None}
    return (yield from submit(f"jobs/{part(whole)}/fork", body, idempotency_key))[0]


def dry_run(
    prompt: str | None = None,
    *,
    chain: ChainSource = "hires",
    image: ImageSource | None = None,
    count: int = 1,
    sweep: Sweep = (),
    lane: str = "interactive",
    priority: int = 50,
    deadline_s: float | None = None,
    tags: Sequence[str] = (),
    **given: Any,
) -> Steps[Forecast]:
    """What `run` would submit, every rule checked; only images are stored. Raises InvalidJob."""
    more = {"count": count, "sweep": list(sweep), "lane": lane, "priority": priority, "deadline_s": deadline_s}
    more["tags"] = list(check_tags(tags)) or None
    body = yield from job_ask(prompt, chain, image, given, **more)
    found = yield from asked(Call("POST", "jobs/dry-run", json=body, again=True, timeout_s=LONG_S))
    return Forecast(found["count"], found["seed"], found["stages"], found["cost_s"], found["eta_s"])


def edges(
    chain: ChainSource, size: Size | None = None, *, images: bool = False
) -> Steps[tuple[list[dict[str, Any]], Size | None]]:
    """The typed stages of a chain, and the size of its input image, if it takes one; as in `Farm.edges`."""
    written, _ = yield from chain_ask(chain, {})
    body: dict[str, Any] = {"chain": written, "images": images}
    if size is not None:
        body["image_size"] = list(size)
    found = yield from asked(Call("POST", "chains/check", json=body, again=True))
    return found["stages"], Size(*found["image_size"]) if found["image_size"] else None


def save_chain(name: str, chain: ChainSource, description: str, replace: bool) -> Steps[dict[str, Any]]:
    """A chain that is kept under a name, as `presets` tells it; images that it names are uploaded."""
    check_name(name)
    body = yield from save_ask(chain, description, replace)
    # Twice it is the same chain.
    return dict((yield from asked(Call("PUT", f"chains/{part(name)}", json=body, again=True))))


def delete_chain(name: str) -> Steps[None]:
    """Deletes a saved chain. Raises NotFound, Conflict, Forbidden."""
    yield from ask(Call("DELETE", f"chains/{part(name)}"))


def rerun(picture: ImageSource, image: ImageSource | None, settings: Settings) -> Steps[tuple[str, bool]]:
    """The id of a job that makes a result picture again, and whether its recipe is the same there.

    The recipe is read here. `image` gives the input image of a chain that began with one, if the store no longer holds
    it for this caller.

    Raises:
        InvalidJob: the picture carries no recipe of a farm, or its chain is not possible there.
    """
    again = read_again(picture if isinstance(picture, bytes) else _read(Path(picture)))
    body: dict[str, Any] = {"chain": again.chain}
    if again.image is not None:
        fields = kinds()[again.chain["stages"][0]["kind"]].model_fields
        size = {"width": again.image.width, "height": again.image.height}
        # As it was fitted, so that it is not fitted anew; the size is no part of the recipe.
        again.chain["stages"][0] |= {name: side for name, side in size.items() if name in fields}
        body["image"] = STORED + again.image.sha256
        if image is not None:
            given = image if isinstance(image, bytes) else Path(image)
            body["image"] = yield from upload(refitted(read_input(given, settings), again.image))
    try:
        (job,) = yield from submit("jobs", body, None)
    except InvalidJob as error:
        if again.image is None or image is not None or [one.loc for one in error.errors] != ["image"]:
            raise
        raise no_input() from None
    recipes = (yield from get(f"jobs/{part(job)}/spec"))["recipes"]
    return job, recipe_key(recipes[-1]) == again.key


def find(job_id: str) -> Steps[str]:
    """The whole id of the job `job_id`, or of the one job whose id ends so. Raises NotFound."""
    if len(job_id) == 36 or not job_id.isascii() or not job_id.replace("-", "").isalnum():
        return (yield from view(job_id)).id
    found = [one.job for one in (yield from jobs(None, None, NEWEST)) if one.job.endswith(job_id)]
    if len(found) != 1 or len(job_id) < 4:
        told = "no" if not found else "more than one"
        raise NotFound(f"{told} job among the newest {NEWEST} ends in {job_id[-40:]!r}")
    return found[0]


def view(job: str) -> Steps[JobView]:
    """A job with its stages, as the API tells it. Raises NotFound."""
    return JobView.model_validate((yield from get(f"jobs/{part(job)}")))


def jobs(state: str | None, run: str | None, limit: int, tag: str | None = None) -> Steps[list[JobRecord]]:
    """The newest jobs first, without their stages."""
    found = yield from _listed("jobs", limit, state=state, run=run, tag=tag)
    return [record_of(JobView.model_validate(job)) for job in found]


def _listed(what: str, limit: int, **filters: str | None) -> Steps[list[dict[str, Any]]]:
    """What pages of a list hold, the newest first, at most `limit`."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(found) < limit:
        page = yield from get(what, limit=min(limit - len(found), PAGE), cursor=cursor, **filters)
        found += page[what]
        cursor = page["next"]
        if cursor is None:
            break
    return found


def runs(limit: int) -> Steps[list[RunRecord]]:
    """The newest runs first."""
    return [run_of(one) for one in (yield from _listed("runs", limit))]


def run_record(run: str) -> Steps[RunRecord]:
    """A run: how many of its jobs are in each state. Raises NotFound."""
    return run_of((yield from get(f"runs/{part(run)}")))


def steer_run(run: str, how: str) -> Steps[RunRecord]:
    """A run after `how`: cancel, pause, resume or retry. Raises NotFound."""
    call = Call("POST", f"runs/{part(run)}/{how}", again=how != "retry", timeout_s=LONG_S)
    return run_of((yield from asked(call)))


def wait(job: str, timeout_s: float | None) -> Steps[JobView]:
    """The job once it has ended.

    Raises:
        StageFailed: it ended otherwise than done; `code` and `message` say why.
        TimeoutError: it has not ended within `timeout_s`; it goes on.
        Unavailable: the API was away for longer than `AWAY_S`; it goes on.
    """
    until = math.inf if timeout_s is None else time.monotonic() + timeout_s
    pause_s, away_since = ROUND_S, math.inf
    while True:
        try:
            found = yield from view(job)
        except Unavailable:
            away_since = min(away_since, time.monotonic())
            if time.monotonic() - away_since > AWAY_S:
                raise
            told = "not known to have ended"
        else:
            if found.state in ENDED:
                break
            away_since, told = math.inf, f"still {found.state}"
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"the job {job} is {told} after {timeout_s} s")
        yield Pause(min(pause_s, left_s))
        pause_s = min(pause_s * 1.2, LONGEST_S)
    if found.state != "done":
        why = f": {found.message}" if found.message else ""
        raise StageFailed(f"the job is {found.state}{why}", code=found.code or "job_failed")
    return found


def history(job: str, after: str, block_ms: int | None) -> Steps[list[Event]]:
    """The job's events after the id `after`; where there are none yet, a little later."""
    found = yield from get(f"jobs/{part(job)}/history", after=after)
    if not found and block_ms:
        yield Pause(block_ms / 1000)
        found = yield from get(f"jobs/{part(job)}/history", after=after)
    return [event_of(one, job) for one in found]


def steer(job: str, how: str) -> Steps[str]:
    """The state of a job after `how`: cancel, pause, resume or retry. Raises Conflict, NotFound."""
    found = yield from asked(Call("POST", f"jobs/{part(job)}/{how}", again=how != "retry"))
    return str(found["state"])


def reprioritise(job: str, priority: int, lane: str | None) -> Steps[None]:
    """Another priority, 0 to 100, and lane for a job. Raises Conflict where it has ended."""
    body = {"priority": priority} | ({"lane": lane} if lane else {})
    yield from asked(Call("PATCH", f"jobs/{part(job)}", json=body, again=True))


def tag(job: str, add: Sequence[str], remove: Sequence[str]) -> Steps[None]:
    """Other tags for a job. Raises InvalidJob where it would have too many."""
    added, removed = check_change(add, remove)
    body = {"add": list(added), "remove": list(removed)}
    yield from asked(Call("PATCH", f"jobs/{part(job)}/tags", json=body, again=True))


def tag_all(jobs: Sequence[str], add: Sequence[str], remove: Sequence[str]) -> Steps[int]:
    """How many of the jobs have the tags to `add` now, and none of those to `remove`."""
    added, removed = check_change(add, remove)
    asked_for, count = list(dict.fromkeys(jobs)), 0
    for start in range(0, len(asked_for), TAGGED):
        body = {"jobs": asked_for[start : start + TAGGED], "add": list(added), "remove": list(removed)}
        count += (yield from asked(Call("POST", "jobs/tags", json=body, again=True)))["count"]
    return count


def tags() -> Steps[dict[str, int]]:
    """How many jobs have each tag, the one of the most jobs first."""
    return {one["tag"]: one["count"] for one in (yield from get("tags"))}


def results(job: str, base: str) -> Steps[list[Result]]:
    """The final images; empty until the job is done. Intermediates that were kept are not among them."""
    found = yield from get(f"jobs/{part(job)}/artifacts")
    return [result_of(one, base) for one in found if one["kind"] == "result"]


def intermediates(job: str, base: str) -> Steps[list[Intermediate]]:
    """What was kept of the stages before the last, as far as they are done."""
    found = yield from get(f"jobs/{part(job)}/artifacts")
    return [intermediate_of(one, base) for one in found if one["kind"] == "intermediate"]


def preview(job: str) -> Steps[bytes | None]:
    """The WebP of the running stage's picture as it is now; None where there is none."""
    answer = yield from ask(Call("GET", f"jobs/{part(job)}/preview", again=True), 404)
    return answer.content if answer.status == 200 else None


def read(result: Result) -> Steps[bytes]:
    """The bytes of a final image, or of an intermediate. Raises BadBlob, Unavailable."""
    return (yield from _fetch(result.key.removeprefix(f"{BASE}/"), result.sha256))


def read_all(job: str, base: str) -> Steps[list[bytes]]:
    """The bytes of all final images."""
    found = []
    for result in (yield from results(job, base)):
        found.append((yield from read(result)))
    return found


def read_kept(job: str, base: str) -> Steps[list[tuple[Intermediate, bytes]]]:
    """Each intermediate with its bytes."""
    found = []
    for one in (yield from intermediates(job, base)):
        found.append((one, (yield from read(one))))
    return found


def _fetch(path: str, sha256: str) -> Steps[bytes]:
    """The bytes at an address that leads on to the store."""
    leads = yield from ask(Call("GET", path, again=True), 307)
    # Without the token: who stores the image has no business with it.
    answer = yield from ask(Call("GET", leads.headers["location"], again=True, known=False), 403, 404)
    if answer.status != 200 or hashlib.sha256(answer.content).hexdigest() != sha256:
        raise BadBlob("the store does not have the image as it was made")
    return answer.content


def input_images(job: str) -> Steps[dict[str, bytes]]:
    """The PNGs that the job began from, as fitted at submit, by the name of the file that `script` opens."""
    found = {}
    for name, sha256 in dict(named_images((yield from get(f"jobs/{part(job)}/spec")))).items():
        found[name] = yield from _fetch(f"jobs/{part(job)}/inputs/{sha256}", sha256)
    return found


def script(job: str, settings: Settings, base: str) -> Steps[str]:
    """A plain diffusers program that makes the same pixels, with the checkpoints of this machine."""
    from farm.catalog import Catalog

    spec = yield from get(f"jobs/{part(job)}/spec")
    inputs = f"{base.rstrip('/')}{BASE}/jobs/{job}/inputs/"
    return program(spec, Catalog.load(settings), lambda sha256: inputs + sha256)


def comfy(job: str) -> Steps[Workflow]:
    """The job as a graph that ComfyUI runs, with what is not the same there."""
    found = yield from get(f"jobs/{part(job)}/comfy")
    return Workflow(found["workflow"], found["notes"])


def quarantined(limit: int) -> Steps[list[Quarantined]]:
    """What is in quarantine, the newest first."""
    return [quarantined_of(one) for one in (yield from get("quarantine", limit=limit))]


def failures(exec: str) -> Steps[tuple[Quarantined, list[Attempt], list[str]]]:
    """A quarantined recipe, its last failed attempts, and the jobs that it ended. Raises NotFound."""
    found = yield from get(f"quarantine/{part(exec)}")
    return quarantined_of(found), [attempt_of(one) for one in found["failures"]], list(found["job_ids"])


def kinds_there() -> Steps[list[dict[str, Any]]]:
    """The stage kinds that are installed there (see `farm.manual.about`)."""
    return [{**one, "schema": one["parameters"]} for one in (yield from get("stages"))]


def weights() -> Steps[list[dict[str, Any]]]:
    """The catalog's checkpoints and adapters, as `Farm.weights` tells them. Where files lie is not told."""
    found = yield from get("catalog")
    rows = [{**one, "type": "checkpoint"} for one in found["checkpoints"]]
    rows += [{"kinds": [], "space": None, "native": None, "recommended": {}, **one} for one in found["adapters"]]
    return [{name: value for name, value in one.items() if name != "default_for"} for one in rows]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidJob(f"{path} cannot be read: {error.strerror}", code="bad_file") from None
