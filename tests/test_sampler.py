"""The tables of schedulers are those of the diffusers that is installed."""

from __future__ import annotations

import inspect

import diffusers
import pytest

from farm.chain import parse_chain
from farm.sampler import KNOWN_BY, SAMPLERS, SCHEDULERS, TAKE_TIMESTEPS, SchedulerOptions


@pytest.mark.parametrize("option", KNOWN_BY)
def test_an_option_is_known_by_the_schedulers_that_have_it(option: str) -> None:
    assert option in SchedulerOptions.model_fields
    having = {name for name in SCHEDULERS if option in inspect.signature(getattr(diffusers, name).__init__).parameters}
    # DEIS and UniPC have other algorithms, and Singlestep's end is its own affair.
    assert set(KNOWN_BY[option]) <= having
    assert having - set(KNOWN_BY[option]) <= {"DEISMultistepScheduler"}


def test_timesteps_are_taken_by_the_schedulers_that_say_so() -> None:
    taking = {
        name
        for name in SCHEDULERS
        if "timesteps" in inspect.signature(getattr(diffusers, name).set_timesteps).parameters
    }
    assert set(TAKE_TIMESTEPS) == taking


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_of_a1111_is_a_scheduler_with_options_that_it_knows(sampler: str) -> None:
    # `parse_chain` checks the options
    (stage,) = parse_chain({"stages": [{"kind": "text2img", "sampler_name": sampler}]}).stages
    name, options = SAMPLERS[sampler]
    assert (stage.scheduler, stage.scheduler_options.given()) == (name, options)  # type: ignore[attr-defined]
    made = getattr(diffusers, name)(**options)
    assert all(made.config[option] == value for option, value in options.items())
