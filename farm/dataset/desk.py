"""What can be asked of a farm's datasets?

`Datasets` is what the command line and the API have of this room. Planning takes everything that is needed out of files
and into the store; after that the dataset's name is enough, on any machine that reaches the store.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from farm.dataset.choosing import ExportSpec
from farm.dataset.collecting import card_of, exported, verified
from farm.dataset.drafts import Drafts
from farm.dataset.exporting import Exported
from farm.dataset.feeding import RESTED
from farm.dataset.folder import Folder, datasets
from farm.dataset.moulds import run_of
from farm.dataset.plans import Plan
from farm.dataset.seats import ANY, Seats
from farm.dataset.status import Status
from farm.dataset.verifying import Report, still_wrong
from farm.errors import BadBlob, Conflict, FieldError, InvalidJob, NotFound, Unavailable
from farm.inputs import PATIENCE_S
from farm.scripts import within

_log = structlog.get_logger(__name__)
LOOK_S = 0.2
"""Pause between two looks at a seat that is waited for, seconds."""
PLANNER_S = 5.0
"""So long it is waited at least for a planner to end, seconds: it looks every second whether it is wanted."""
SILENT_S = 30.0
"""A feeder that tells nothing for so long says nothing of its speed."""


class Datasets(Drafts):
    """The datasets of one farm. Every call may raise Unavailable."""

    # ------------------------------------------------------------------------------------------------ look

    def ls(self) -> list[Status]:
        """All datasets, by name."""
        found = []
        for name in datasets(self._farm.store):
            try:
                found.append(self.status(name))
            except NotFound:  # its planning broke off, or it is being deleted
                continue
            except BadBlob as error:
                _log.warning("dataset_unreadable", dataset=name, error=error.message)
        return found

    def owner(self, name: str) -> str:
        """Whose a dataset is; "" for nobody's in particular. Raises NotFound."""
        folder = Folder(self._farm.store, name)
        if folder.planned() is None and (asked := folder.read("asked.json")) is not None:
            return str(json.loads(asked)["owner"])
        return folder.plan().owner

    def status(self, name: str) -> Status:
        """How far a dataset is. Raises NotFound."""
        folder = Folder(self._farm.store, name)
        told = json.loads(folder.read("progress.json") or b"{}")
        if (plan := folder.planned()) is None:
            return self._unplanned(folder, told)
        control = folder.control()
        fed = self._is_fed(name)
        done, failed, open_ = told.get("done", 0), told.get("failed", 0), told.get("open", {})
        if control.held and open_.get("running"):  # nobody has looked since it was held
            open_ = self._open_now(plan, told)
        awake = fed and control.state == "running" and time.time() - told.get("updated", 0) < SILENT_S
        rate = told.get("rate") if awake else None
        # What failed in an earlier try and is tried again is left as well.
        left = plan.samples - done - failed + told.get("again", 0)
        left -= sum(open_.get(each, 0) for each in ("done", "failed"))
        return Status(
            name=name, state=control.state, samples=plan.samples, done=done, failed=failed, shards=plan.shards,
            shards_done=told.get("shards", 0), size_bytes=told.get("size_bytes", 0), rows=plan.rows,
            rejected=plan.rejected, priority=control.priority, fed=fed, open=open_, rate=rate,
            eta_s=round(max(0, left) / rate, 1) if rate else None, owner=plan.owner,
            trouble=json.loads(folder.read("trouble.json") or b"null") if control.state == "running" else None,
        )  # fmt: skip

    def _open_now(self, plan: Plan, told: dict[str, Any]) -> dict[str, int]:
        """The jobs of the shards in work by state, as the ledger has them now; as told where it does not answer."""
        states = Counter[str]()
        try:
            for number in told["open_shards"]:
                states.update(self._farm.ledger.run(run_of(plan.identity, number, told["round"])).states)
        except (NotFound, Unavailable):
            return dict(told["open"])
        return dict(states)

    def _unplanned(self, folder: Folder, told: dict[str, Any]) -> Status:
        """A dataset that was asked for. Raises NotFound where none was."""
        asked, refused = folder.read("asked.json"), folder.read("refused.json")
        if asked is None:
            folder.plan()
        return Status(
            name=folder.name, state="planning" if refused is None else "refused", samples=0, done=0, failed=0, shards=0,
            shards_done=0, size_bytes=0, rows=told.get("planning", 0), rejected=0, priority=50,
            fed=refused is None and self._is_fed(folder.name), open={},
            rate=None, eta_s=None, owner=json.loads(asked or b"{}").get("owner", ""),
            refused=json.loads(refused) if refused else None,
        )  # fmt: skip

    def folder(self, name: str) -> Folder:
        """Where it lies. Raises NotFound, Conflict: it was asked for and has no plan."""
        folder = Folder(self._farm.store, name)
        if folder.planned() is None and (state := self.status(name).state) in ("planning", "refused"):
            hint = f"`farm dataset status {name}` says how far it is, or what is wrong"
            raise Conflict(f"{name} is {state}, and has no plan", hint=hint)
        return folder

    def failures(self, name: str, limit: int = 100) -> list[dict[str, Any]]:
        """The first samples that could not be made, with what their jobs said. Raises NotFound."""
        folder, found = self.folder(name), list[dict[str, Any]]()
        for number in folder.numbers():
            found += folder.stats(number)["failures"]
            if len(found) >= limit:
                break
        return found[:limit]

    # ------------------------------------------------------------------------------------------------ collect

    def export(
        self, name: str, out: str, spec: ExportSpec, work: Path | None = None, *, partial: bool = False
    ) -> Exported:
        """Writes a dataset to a folder or `s3://bucket/prefix`; raises NotFound, and as `collecting.exported`."""
        return exported(self.folder(name), out, spec, self._farm.store, work, partial=partial)

    def mend(self, name: str, report: Report) -> list[int]:
        """Takes damaged shards for lost, so that `start` has them made again; their numbers. Raises NotFound.

        What was written again since `report` is left alone.
        """
        found = list[int]()
        for number in still_wrong(self.folder(name), report):
            with suppress(NotFound, BadBlob):  # it could not be made again
                self.lose(name, number)
                found.append(number)
        return found

    def lose(self, name: str, number: int) -> None:
        """Takes a shard for lost: what says that it is whole is deleted.

        Raises:
            NotFound: there is no such dataset, or no plan of the shard any more, so that it could not be made again.
            BadBlob: that plan cannot be read.
        """
        folder = self.folder(name)
        folder.samples(number)
        folder.delete([f"shards/{number:05d}_stats.json"])

    def has_feeder(self) -> bool:
        """Whether a process feeds all datasets that are to run, as far as Redis answers."""
        return self._is_fed(ANY)

    def verify(self, name: str) -> Report:
        """What is wrong with its shards, held against its plan: all of them are read. Raises NotFound."""
        folder = self.folder(name)
        return verified(folder, whole=folder.control().state == "done")

    def card(self, name: str) -> str:
        """What an export of all of it would say of itself; while nothing is made, what it is to be. Raises NotFound."""
        return card_of(self.folder(name))

    # ------------------------------------------------------------------------------------------------ steer

    def start(self, name: str, priority: int | None = None) -> Status:
        """Has it run, or go on, also where shards are lost: whoever feeds the farm's datasets does so within seconds.

        Raises NotFound.
        """
        status = self.status(name)
        if (state := status.state) == "done" and len(Folder(self._farm.store, name).numbers()) >= status.shards:
            return self.status(name) if priority is None else self._steer(name, state=state, priority=priority)
        more = {} if priority is None else {"priority": priority}
        return self._steer(name, state="running", held=False, **more)

    def pause(self, name: str) -> Status:
        """Holds it: stages that run may still commit, nothing new begins. Raises Conflict, NotFound."""
        if (state := self.status(name).state) not in ("running", "paused"):
            raise Conflict(f"{name} is {state}; only what runs can be paused")
        return self._steer(name, state="paused", held=False)

    def retry(self, name: str) -> Status:
        """Has what failed tried again; shards without failures stay as they are. Raises Conflict, NotFound."""
        folder = self.folder(name)
        status = self.status(name)
        if status.state != "done":
            raise Conflict(f"{name} is {status.state}; retry it when every sample was tried")
        if not any(folder.stats(number)["failed"] for number in folder.numbers()):
            raise Conflict(f"nothing of {name} has failed")
        return self._steer(name, state="running", held=False, round=folder.control().round + 1)

    def prioritise(self, name: str, priority: int) -> Status:
        """Puts its samples before or behind other bulk jobs: 0 to 100, higher runs first. Raises NotFound."""
        return self._steer(name, priority=priority)

    def _steer(self, name: str, **changes: Any) -> Status:
        try:
            Folder(self._farm.store, name).steer(**changes)
        except ValidationError:
            raise InvalidJob(errors=(FieldError("priority", "a whole number from 0 to 100"),)) from None
        return self.status(name)

    def rm(self, name: str, wait_s: float = 0.0) -> None:
        """Deletes it: plan, shards, and its jobs in the ledger. What was exported stays.

        Also what a deletion that broke off has left. `wait_s`: so long its feeder may take to leave it.

        Raises:
            NotFound: there is nothing of this name.
            Conflict: it is running, or its feeder has not left it yet; or its planner, of what is not wanted any more.
        """
        folder = Folder(self._farm.store, name)
        if not folder.names(""):
            folder.plan()
        plan, control = folder.planned(), folder.control()
        if plan and control.state == "running":
            raise Conflict(f"{name} is running; pause it first")
        if plan is None:
            # Now, for its planner goes on as long as it is there. One that is there later is of who asked meanwhile.
            folder.delete(["asked.json"])
            wait_s = max(wait_s, PLANNER_S)
        seats, until = Seats(self._farm.settings), time.monotonic() + wait_s
        with seats.held():
            # Nobody else writes to it from now on.
            while not seats.take(name):
                if time.monotonic() >= until:
                    who = "feeder" if plan else "planner"
                    raise Conflict(f"{name} is being left by its {who}; try again in a few seconds")
                time.sleep(LOOK_S)
            if plan:
                self._drop_jobs(folder, plan, control.round)
            # First what makes it one: what is left of a deletion that breaks off is no dataset.
            others = set() if plan else {"asked.json"}
            folder.delete({"plan.json", "asked.json", "control.json"} - others)
            folder.delete(set(folder.names("")) - others)

    def _drop_jobs(self, folder: Folder, plan: Plan, round: int) -> None:
        """Cancels and forgets the jobs of the shards that may be in work."""
        numbers = list(range(plan.shards))
        if not round:
            there = set(folder.numbers())
            most = RESTED * max(2, self._farm.settings.dataset_open // plan.spec.shard_samples)
            numbers = [number for number in numbers if number not in there][:most]
        for number in numbers:
            run = run_of(plan.identity, number, round)
            with suppress(NotFound):
                self._farm.ledger.cancel_run(run)
                self._farm.ledger.forget(self._farm.ledger.run_jobs(run))

    def _is_fed(self, name: str) -> bool:
        """Whether a process has its seat, as far as Redis answers."""
        with suppress(Unavailable), within(PATIENCE_S):
            return bool(self._seats(lambda seats: seats.holder(name)))
        return False

    def _seats(self, call: Callable[[Seats], str]) -> str:
        seats = Seats(self._farm.settings)
        try:
            return call(seats)
        finally:
            seats.close()
