"""What may people see of a picture under the farm's safety policy?"""

from __future__ import annotations

from typing import Any

from farm.catalog import Catalog
from farm.errors import StageFailed
from farm.job import safety_of
from farm.records import Claim
from farm.settings import Settings
from workers import safety
from workers.loaded import Loaded

UNSEEN = ("blur", "refuse")
"""Policies under which no picture is seen that was not judged."""


class Judge:
    """The policy of one child's farm, and the checkers that it has loaded."""

    def __init__(self, settings: Settings, catalog: Catalog, loaded: Loaded) -> None:
        self._settings, self._catalog, self._loaded = settings, catalog, loaded
        self._checkers: dict[tuple[str, str], safety.Checker] = {}

    @property
    def shows_unjudged(self) -> bool:
        """Whether people may see what nobody has judged."""
        return self._settings.safety not in UNSEEN

    def load(self) -> None:
        """Loads the checker, if the farm has one: it must not begin without, and learn that from its first picture."""
        if self._settings.safety != "off":
            self._checker(safety_of(self._catalog, self._settings))

    def judged(self, claim: Claim, recipe: dict[str, Any], image: Any) -> tuple[Any, list[str]]:
        """The image that the safety policy of the job hands on, and its tags.

        Raises:
            StageFailed: (`unsafe_output`) it is refused; (`wrong_policy`) the job was submitted without the farm's.
        """
        told = recipe.get("safety")
        if claim.finishing:
            self.check_policy(recipe)
        if told is None:
            return image, []
        return safety.applied(told["policy"], self._checker(told), image)

    def seen(self, image: Any) -> Any:
        """The image that people may see under the farm's policy. Raises StageFailed (`unsafe_output`)."""
        if self._settings.safety == "off":
            return image
        told = safety_of(self._catalog, self._settings)
        return safety.applied(told["policy"], self._checker(told), image)[0]

    def check_policy(self, recipe: dict[str, Any]) -> None:
        """Refuses to give out a result under another safety policy than this farm's.

        Raises:
            StageFailed: (`wrong_policy`) says how to submit.
        """
        policy = self._settings.safety
        if policy != "off" and recipe.get("safety") != safety_of(self._catalog, self._settings):
            raise StageFailed(
                f"the job was submitted without the safety policy of this farm, which is {policy} by "
                f"{self._settings.safety_checker}",
                code="wrong_policy",
                hint="set FARM_SAFETY and FARM_SAFETY_CHECKER to these where jobs are submitted",
            )

    def _checker(self, told: dict[str, Any]) -> safety.Checker:
        """The checker that a recipe's `safety` names, loaded once."""
        name, wanted = told["name"], told["checker"]
        key = name, wanted["manifest"]
        if key not in self._checkers:
            self._checkers[key] = safety.Checker(self._loaded.adapter(name, wanted), self._loaded.device)
        return self._checkers[key]
