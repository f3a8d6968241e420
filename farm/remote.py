"""How does a program use a farm on another machine? `RemoteFarm` says it over HTTP, in the words of `Farm`."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx2

from farm.api.views import BASE, Artifact, JobView, Snapshot
from farm.chain import MAX_DEPTH, read_chain_file
from farm.client import SUBMIT_TRIES, ImageSource
from farm.errors import (
    BadBlob,
    BadMediaType,
    BadRequest,
    BodyTooLarge,
    Conflict,
    FarmError,
    FieldError,
    Forbidden,
    InvalidJob,
    NotFound,
    RateLimited,
    StageFailed,
    Unauthorized,
    Unavailable,
)
from farm.job import new_id
from farm.records import ENDED

if TYPE_CHECKING:
    from PIL.Image import Image

TIMEOUT_S = 30.0
"""How long one call may take, seconds; the API itself answers trouble within 3."""
QUIET_S = 60.0
"""An event stream that says nothing for so long is gone, seconds: it shows every 15 that it lives."""
PATIENCE_S = 60.0
"""How long the API may be away while a job is watched, seconds."""
RATE_TRIES = 5
"""How often a call is made that comes too early, each time after as long as the API says."""
ROUND_S = 0.5
"""Pause between two looks at a job that is waited for, seconds."""
_OCTETS = "application/octet-stream"
_OWN = ("negative_prompt", "seed", "fit", "exact", "reuse")
_CLASSES: tuple[type[FarmError], ...] = (
    InvalidJob, BadRequest, BodyTooLarge, BadMediaType, Unauthorized, Forbidden, NotFound, Conflict,
)  # fmt: skip
_OF_STATUS = {cls.http: cls for cls in _CLASSES}


class RemoteFarm:
    """A farm whose API answers at `url`; `token` is the text that `farm token create` printed."""

    def __init__(self, url: str, token: str = "") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=TIMEOUT_S)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> RemoteFarm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def render(
        self,
        prompt: str | None = None,
        *,
        chain: str | Path | Mapping[str, Any] = "hires",
        image: ImageSource | None = None,
        **given: Any,
    ) -> RemoteJob:
        """Submits one job; `run` takes the same words, a `count` and a `sweep`."""
        if {"count", "sweep"} & set(given):
            raise InvalidJob(errors=(FieldError("count", "render submits one job; run submits several"),))
        return self.run(prompt, chain=chain, image=image, **given)[0]

    def run(
        self,
        prompt: str | None = None,
        *,
        chain: str | Path | Mapping[str, Any] = "hires",
        image: ImageSource | None = None,
        count: int = 1,
        sweep: Sequence[Mapping[str, Sequence[Any]]] = (),
        idempotency_key: str | None = None,
        lane: str = "interactive",
        priority: int = 50,
        deadline_s: float | None = None,
        **given: Any,
    ) -> list[RemoteJob]:
        """Submits `count` jobs of each variant of one chain, image i with seed + i.

        `given` are the chain's own fields and stage parameters, as in `Farm.chain`. Images are uploaded: the input
        image, and those that stages of a mapping name as bytes or as a `Path`.

        Raises:
            InvalidJob: something does not fit; nothing was submitted.
            Unavailable: the API, or what is behind it, does not answer. With code `outcome_unknown` the jobs may be
                there: the hint names the idempotency key under which another submit yields each of them once.
        """
        ask: dict[str, Any] = {
            "chain": self._chain(chain), "prompt": prompt, "count": count, "sweep": list(sweep), "lane": lane,
            "priority": priority, "deadline_s": deadline_s,
            "parameters": {name: value for name, value in given.items() if name not in _OWN},
            **{name: value for name, value in given.items() if name in _OWN},
        }  # fmt: skip
        if image is not None:
            ask["image"] = self.upload(image)
        key = new_id() if idempotency_key is None else idempotency_key
        found = self._submit({name: value for name, value in ask.items() if value is not None}, key)
        return [RemoteJob(self, job["id"]) for job in found["jobs"]]

    def upload(self, source: ImageSource) -> str:
        """The name of an image file, given as its path or its bytes, by which chains of this owner may name it.

        Raises:
            InvalidJob: it cannot be read, or is no image.
        """
        return str(self._call("POST", "uploads", content=_data(source), headers={"Content-Type": _OCTETS})["image"])

    def job(self, job_id: str) -> RemoteJob:
        """The job of the id `job_id`. Raises NotFound."""
        return RemoteJob(self, self._view(job_id).id)

    def jobs(self, state: str | None = None, run: str | None = None, limit: int = 50) -> list[JobView]:
        """The newest jobs first."""
        asked: dict[str, Any] = {"state": state, "run": run}
        found: list[JobView] = []
        while len(found) < limit:
            query = {name: value for name, value in asked.items() if value is not None}
            page = self._call("GET", "jobs", params={**query, "limit": min(limit - len(found), 200)})
            found += [JobView.model_validate(job) for job in page["jobs"]]
            asked["cursor"] = page["next"]
            if page["next"] is None:
                break
        return found

    def _view(self, job: str) -> JobView:
        return JobView.model_validate(self._call("GET", f"jobs/{_part(job)}"))

    def _chain(self, chain: str | Path | Mapping[str, Any]) -> Any:
        """The chain as the API takes it."""
        if isinstance(chain, Mapping):
            return self._stored(dict(chain))
        if isinstance(chain, Path) or Path(chain).suffix in {".json", ".yaml", ".yml"}:
            return read_chain_file(Path(chain))
        return chain

    def _stored(self, value: Any, depth: int = 0) -> Any:
        """`value` with each image in it uploaded, and named."""
        if depth > MAX_DEPTH:
            raise InvalidJob(errors=(FieldError("stages", "nested too deep"),))
        if isinstance(value, bytes | Path):
            return self.upload(value)
        if isinstance(value, Mapping):
            return {key: self._stored(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._stored(item, depth + 1) for item in value]
        return value

    def _submit(self, ask: Mapping[str, Any], key: str) -> Any:
        """What the API made of `ask`, sent again with the same key where no answer comes."""
        unsure = False
        for left in reversed(range(SUBMIT_TRIES)):
            try:
                return self._call("POST", "jobs", json=ask, headers={"Idempotency-Key": key}, lost="outcome_unknown")
            except Unavailable as error:
                unsure = unsure or error.code == "outcome_unknown"
                if left:
                    time.sleep(min(error.retry_after_s, 2.0))
                elif unsure:
                    hint = f"submit it again with the idempotency key {key}: no job is made twice"
                    raise Unavailable(code="outcome_unknown", hint=hint) from None
                else:
                    raise
        raise AssertionError("the last try returns or raises")

    def _call(self, method: str, path: str, *, lost: str = "unavailable", **how: Any) -> Any:
        """The answer's JSON. Raises the farm's own errors; `lost` is the code where no answer came."""
        for left in reversed(range(RATE_TRIES)):
            answer = self._send(method, f"{BASE}/{path}", lost=lost, **how)
            try:
                check(answer)
                break
            except RateLimited as error:
                if not left:
                    raise
                time.sleep(error.retry_after_s)
        return answer.json()

    def _send(self, method: str, url: str, *, lost: str = "unavailable", **how: Any) -> httpx2.Response:
        try:
            return self._http.request(method, url, **how)
        except httpx2.ConnectError:
            raise Unavailable("the farm's API cannot be reached", hint="is `farm serve` running there?") from None
        except httpx2.TransportError as error:
            message = None if lost != "unavailable" else f"the farm's API does not answer ({type(error).__name__})"
            raise Unavailable(message, code=lost) from None


class RemoteJob:
    """One submitted job. Every property asks the API anew."""

    def __init__(self, farm: RemoteFarm, job_id: str) -> None:
        self.farm, self.id = farm, job_id

    def __repr__(self) -> str:
        return f"<job {self.id}>"

    @property
    def view(self) -> JobView:
        """The job with its stages. Raises NotFound, Unavailable."""
        return self.farm._view(self.id)

    @property
    def state(self) -> str:
        """queued, running, paused, done, failed, quarantined, cancelled or expired."""
        return self.view.state

    @property
    def seed(self) -> int:
        """The job's seed, drawn at submit where none was given."""
        return self.view.seed

    def events(self) -> Iterator[Snapshot]:
        """Where the job is, whenever that changes, until it has ended; a connection that breaks is made again.

        Raises:
            Unavailable: the API was away for too long.
        """
        last, url, away_since = "", f"{BASE}/jobs/{_part(self.id)}/events", None
        while True:
            headers = {"Last-Event-ID": last} if last else {}
            try:
                with self.farm._http.sse(url, headers=headers, timeout=httpx2.Timeout(TIMEOUT_S, read=QUIET_S)) as told:
                    if told.response.status_code == 204:
                        return
                    if told.response.status_code != 200:
                        told.response.read()
                        check(told.response)
                    for event in told:
                        last, away_since = event.id or last, None
                        if event.event == "end":
                            return
                        if event.event == "job":
                            yield Snapshot.model_validate_json(event.data)
            except (httpx2.TransportError, Unavailable) as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > PATIENCE_S:
                    raise Unavailable("the farm's API does not answer") from error
            time.sleep(ROUND_S)

    def wait(self, timeout_s: float | None = None) -> RemoteJob:
        """Returns when the job is done.

        Raises:
            StageFailed: it ended otherwise; `code` and `message` say why.
            TimeoutError: it has not ended within `timeout_s`; it goes on.
        """
        until = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while (view := self.view).state not in ENDED:
            if time.monotonic() > until:
                raise TimeoutError(f"the job {self.id} is still {view.state} after {timeout_s} s")
            time.sleep(ROUND_S)
        if view.state != "done":
            why = f": {view.message}" if view.message else ""
            raise StageFailed(f"the job is {view.state}{why}", code=view.code or "job_failed")
        return self

    @property
    def results(self) -> list[Artifact]:
        """The final images; empty until the job is done."""
        return [Artifact.model_validate(one) for one in self._call("GET", "/artifacts")]

    @property
    def images(self) -> list[Image]:
        """The final images, decoded. Raises BadBlob, Unavailable."""
        from PIL import Image

        return [Image.open(io.BytesIO(self._read(result))) for result in self.results]

    def download(self, target: str | Path) -> list[Path]:
        """Writes the final images: into `target` as `<job>.png`, or to `target` itself if it ends in .png.

        Raises:
            InvalidJob: (`bad_file`) the file cannot be written.
        """
        target, written = Path(target), []
        for result in self.results:
            path = target if target.suffix == ".png" else target / f"{self.id}.png"
            data = self._read(result)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            except OSError as error:
                raise InvalidJob(f"{path} cannot be written: {error.strerror}", code="bad_file") from None
            written.append(path)
        return written

    def cancel(self) -> str:
        """Ends the job as cancelled; the new state. Raises Conflict when it has ended otherwise."""
        return str(self._call("POST", "/cancel")["state"])

    def pause(self) -> None:
        """Holds the job after the stage that runs now."""
        self._call("POST", "/pause")

    def resume(self) -> None:
        """Lets a paused job go on."""
        self._call("POST", "/resume")

    def retry(self) -> None:
        """Queues a failed, quarantined, cancelled or expired job again from the stage it ended in."""
        self._call("POST", "/retry")

    def _call(self, method: str, path: str) -> Any:
        return self.farm._call(method, f"jobs/{_part(self.id)}{path}")

    def _read(self, result: Artifact) -> bytes:
        leads = self.farm._send("GET", result.url)
        if leads.status_code != 307:
            check(leads)
        try:
            # Without the token: who stores the image has no business with it.
            found = httpx2.get(leads.headers["location"], timeout=TIMEOUT_S)
        except httpx2.TransportError as error:
            raise Unavailable(f"the farm's store does not answer ({type(error).__name__})") from None
        if found.status_code != 200 or hashlib.sha256(found.content).hexdigest() != result.sha256:
            raise BadBlob("the store does not have the image as it was made")
        return found.content


def check(answer: httpx2.Response) -> None:
    """Nothing, if the call succeeded.

    Raises:
        FarmError: the one that the answer tells, in its own class.
    """
    if answer.is_success:
        return
    try:
        found = answer.json()
        code, detail = str(found["code"]), str(found["detail"])
        errors = tuple(FieldError(one["loc"], one["msg"], one["code"]) for one in found.get("errors", ()))
    except (ValueError, KeyError, TypeError):
        raise Unavailable(f"what answers is no farm (HTTP {answer.status_code})") from None
    if answer.status_code == 503:
        raise Unavailable(detail, code=code, retry_after_s=float(found.get("retry_after", 2)))
    if code == RateLimited.code:
        raise RateLimited(detail, retry_after_s=float(found.get("retry_after", 1)))
    cls = _OF_STATUS.get(answer.status_code, FarmError)
    if cls is InvalidJob:
        raise InvalidJob(detail, code=code, errors=errors)
    raise cls(detail, code=code)


def _part(name: str) -> str:
    """`name` as one part of an address, whatever characters it has."""
    return quote(name, safe="")


def _data(source: ImageSource) -> bytes:
    """The bytes of an image file."""
    try:
        return source if isinstance(source, bytes) else Path(source).read_bytes()
    except (OSError, ValueError) as error:
        told = f"the file cannot be read: {type(error).__name__}"
        raise InvalidJob(errors=(FieldError("image", told, "bad_image"),)) from None
