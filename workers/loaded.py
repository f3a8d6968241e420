"""Which weights does a child hold, and are they those that a job was submitted for?

Pipelines are loaded before anything is claimed, one per queue; adapters are checked when a job first names them. A name
says little: what counts is the hash of the files, which the recipe has.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import structlog

from farm.catalog import Catalog
from farm.errors import Failure, FarmError, InvalidJob, StageFailed
from farm.job import adapter_of, weights_of
from farm.settings import Settings
from farm.stage import kinds
from workers import adapters, pipelines
from workers.lease import Drained, Mark

_log = structlog.get_logger(__name__)


class Loaded:
    """The weights of the child called `name`, on its one device."""

    def __init__(self, settings: Settings, name: str, catalog: Catalog, mark: Mark) -> None:
        self._settings, self._name, self._catalog, self._mark = settings, name, catalog, mark
        self.device, self.pipes = "cpu", dict[str, Any]()
        self._device_name = self.device
        self.leave = False
        """Whether only a new process can go on: it has other files to load, or the device's context is lost."""
        self._weights: dict[str, dict[str, Any]] = {}
        self._checked: dict[tuple[str, str], adapters.Files] = {}

    def load(self, queues: Sequence[str]) -> None:
        """Loads the pipeline of every queue. Raises what `Stage.load` raises."""
        limit_s = self._settings.limits.load_s
        self._mark("load", limit_s)
        for queue in queues:
            kind, _, name = queue.partition(".")
            if kind not in kinds() or name not in self._catalog.checkpoints:
                raise FarmError(f"no stage or checkpoint for the queue {queue}", code="unknown_checkpoint")
            checkpoint = self._catalog.checkpoints[name]
            stage = kinds()[kind].model_validate({"kind": kind})
            if stage.needs_torch:
                self.device = pipelines.pick_device(self._settings.device)
                self._device_name = pipelines.device_name(self.device)
            started = time.monotonic()
            self.pipes[queue] = stage.load(pipelines.files_of(self._catalog, checkpoint), self.device)
            self._weights[queue] = weights_of(self._catalog, checkpoint)
            self._mark("load", limit_s)
            _log.info("loaded", queue=queue, device=self.device, seconds=round(time.monotonic() - started, 2))

    def told(self) -> dict[str, str]:
        """What a registered worker says of its device and of what it holds."""
        used, total = pipelines.memory(self.device)
        return {
            "device": self._device_name, "memory_bytes": str(used), "memory_total_bytes": str(total),
            "checkpoints": ",".join(sorted({queue.partition(".")[2] for queue in self.pipes})),
        }  # fmt: skip

    def check(self, queue: str, wanted: dict[str, Any]) -> None:
        """Refuses work for other weights than those that are loaded, though they have the same name.

        Raises:
            Drained: the files on disk are the right ones by now; the child starts again to load them.
            StageFailed: (`bad_checkpoint`) they are not; another worker may have them.
        """
        if wanted == self._weights[queue]:
            return
        checkpoint = self._catalog.checkpoints[wanted["name"]]
        if wanted == weights_of(self._catalog, checkpoint):
            _log.warning("weights_changed", queue=queue)
            self.leave = True
            raise Drained
        raise StageFailed(
            f"worker {self._name} holds other weights of {checkpoint.name} than the job was submitted for",
            failure=Failure.CRASH,
            code="bad_checkpoint",
            hint=f"run `farm models pull {checkpoint.name} --force` where they differ",
        )

    def adapter(self, name: str, wanted: dict[str, Any]) -> adapters.Files:
        """The checked files of the adapter `name`, which are those of a recipe.

        Raises:
            StageFailed: (`bad_checkpoint`) they are not those that the job was submitted for; another worker may
                have them.
        """
        entry = self._catalog.adapters.get(name)
        try:
            same = entry is not None and adapter_of(self._catalog, entry) == wanted
        except InvalidJob:
            same = False
        if entry is None or not same:
            raise StageFailed(
                f"worker {self._name} does not have the adapter {name} that the job was submitted for",
                failure=Failure.CRASH,
                code="bad_checkpoint",
                hint=f"run `farm models pull {name}` where it is missing",
            )
        key = name, wanted["manifest"]
        if key not in self._checked:
            self._checked[key] = adapters.files_of(self._catalog, entry)
        return self._checked[key]

    def blame(self, error: object) -> None:
        """Notes what `error` says of the device: after a CUDA error its context is lost for good."""
        self.leave = self.leave or "CUDA error" in str(error)
