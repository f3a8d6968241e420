"""Which schedulers may a stage name, by which names do people know them, and which options does each one take?

The tables are those of diffusers' classes; a test holds that they agree with the installed version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from farm.errors import FieldError

Scheduler = Literal[
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]
"""Schedulers by class name. Source: diffusers' `KarrasDiffusionSchedulers`, and those of few-step checkpoints (LCM, Luo
et al. 2023, arXiv:2310.04378; TCD, Zheng et al. 2024, arXiv:2402.19159)."""

SCHEDULERS: tuple[str, ...] = get_args(Scheduler)

_KARRAS, _SDE = {"use_karras_sigmas": True}, {"algorithm_type": "sde-dpmsolver++"}
_PLAIN = {
    "DDIM": "DDIMScheduler",
    "DPM++ 2M": "DPMSolverMultistepScheduler",
    "DPM++ SDE": "DPMSolverSDEScheduler",
    "DPM2": "KDPM2DiscreteScheduler",
    "DPM2 a": "KDPM2AncestralDiscreteScheduler",
    "Euler": "EulerDiscreteScheduler",
    "Euler a": "EulerAncestralDiscreteScheduler",
    "Heun": "HeunDiscreteScheduler",
    "LCM": "LCMScheduler",
    "LMS": "LMSDiscreteScheduler",
    "PLMS": "PNDMScheduler",
    "UniPC": "UniPCMultistepScheduler",
}
_WITH_KARRAS = ("DPM++ 2M", "DPM++ SDE", "DPM2", "DPM2 a", "LMS")
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (scheduler, {}) for name, scheduler in _PLAIN.items()},
    **{f"{name} Karras": (_PLAIN[name], _KARRAS) for name in _WITH_KARRAS},
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", _SDE),
    "DPM++ 2M SDE Karras": ("DPMSolverMultistepScheduler", {**_SDE, **_KARRAS}),
}
"""A1111's sampler names. Source: the table in diffusers' "Schedulers" overview; "DPM++ SDE" is k-diffusion's own, which
diffusers has as DPMSolverSDEScheduler."""

_SIGMAS = (
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
KNOWN_BY: dict[str, tuple[str, ...]] = {
    "use_karras_sigmas": _SIGMAS,
    "use_exponential_sigmas": _SIGMAS,
    "use_beta_sigmas": _SIGMAS,
    "timestep_spacing": tuple(name for name in SCHEDULERS if name != "DPMSolverSinglestepScheduler"),
    "algorithm_type": ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    "solver_order": (
        "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
    ),
    "final_sigmas_type": (
        "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EulerDiscreteScheduler",
        "UniPCMultistepScheduler",
    ),
    "rescale_betas_zero_snr": (
        "DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler", "LCMScheduler", "TCDScheduler", "UniPCMultistepScheduler",
    ),
}  # fmt: skip
"""Which scheduler knows an option."""
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Options of which a scheduler takes one."""
FEW_STEPS = ("LCMScheduler", "TCDScheduler")
MOST_FEW_STEPS = 50
"""Steps that these two were distilled from: they refuse more. Source: diffusers' `original_inference_steps`."""
TAKE_TIMESTEPS = (
    "DDPMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "LCMScheduler", "TCDScheduler",
)  # fmt: skip
"""Schedulers that can be told each of their timesteps."""

NOT_OF_SAMPLE = (
    "DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler", "PNDMScheduler",
)  # fmt: skip
"""Schedulers that cannot work with a denoiser that names the picture itself (`prediction_type: sample`)."""


class SchedulerOptions(BaseModel):
    """What a scheduler is told beside the checkpoint's own settings."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    use_karras_sigmas: bool | None = Field(
        None, description="noise levels after Karras et al. 2022, arXiv:2206.00364, eq. 5"
    )
    use_exponential_sigmas: bool | None = Field(None, description="noise levels evenly spaced in their logarithm")
    use_beta_sigmas: bool | None = Field(None, description="noise levels after a beta distribution, arXiv:2407.12173")
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = Field(
        None, description="which timesteps are picked, arXiv:2305.08891, table 2; default: the checkpoint's"
    )
    algorithm_type: Literal["dpmsolver++", "sde-dpmsolver++"] | None = Field(
        None, description="whether each step adds noise anew"
    )
    solver_order: int | None = Field(None, ge=1, le=3, description="2 with a prompt, 3 without is diffusers' advice")
    final_sigmas_type: Literal["zero", "sigma_min"] | None = Field(None, description="noise level of the last step")
    rescale_betas_zero_snr: bool | None = Field(None, description="begin in pure noise, arXiv:2305.08891, §3.1")

    def given(self) -> dict[str, Any]:
        """The options that were set, by name."""
        return self.model_dump(exclude_none=True)

    def told(self, scheduler: str | None, timesteps: Sequence[int] | None) -> dict[str, Any]:
        """What a scheduler is told: the options that were set; the checkpoint's own spacing gives way to them."""
        found = self.given()
        if timesteps is not None or any(found.get(name) for name in SPACINGS):
            found = {name: False for name in SPACINGS if scheduler in KNOWN_BY[name]} | found
        return found


def a1111_name(scheduler: str | None, options: Mapping[str, Any]) -> str:
    """What A1111 calls a scheduler with these options, as nearly as it has a name for them."""
    if scheduler is None:
        return "default"
    given = options.items()
    named = [(len(told), name) for name, (cls, told) in SAMPLERS.items() if cls == scheduler and told.items() <= given]
    return max(named)[1] if named else scheduler.removesuffix("Scheduler")


def check(
    scheduler: str | None, options: SchedulerOptions, eta: float, steps: int, timesteps: Sequence[int] | None
) -> Iterator[FieldError]:
    """What `scheduler` would refuse, or silently ignore."""
    if scheduler in FEW_STEPS and steps > MOST_FEW_STEPS:
        yield FieldError("num_inference_steps", f"at most {MOST_FEW_STEPS} with {scheduler}, which needs 1 to 8")
    if eta and scheduler not in (None, "DDIMScheduler", "TCDScheduler"):
        yield FieldError("eta", f"0 with {scheduler}; only DDIMScheduler and TCDScheduler know eta")
    given = options.given()
    if scheduler is None and given:
        yield FieldError("scheduler", "name the scheduler that scheduler_options are for")
    if sum(bool(given.get(name)) for name in SPACINGS) > 1:
        yield FieldError("scheduler_options", f"at most one of {', '.join(SPACINGS)}")
    for name in given if scheduler else ():
        if scheduler not in KNOWN_BY[name]:
            yield FieldError(
                f"scheduler_options.{name}", f"{scheduler} has no {name}; {', '.join(KNOWN_BY[name])} have"
            )
    if timesteps is None:
        return
    if scheduler not in TAKE_TIMESTEPS:
        yield FieldError("timesteps", f"only with a scheduler that takes them: {', '.join(TAKE_TIMESTEPS)}")
    if any(later >= sooner for sooner, later in pairwise(timesteps)):
        yield FieldError("timesteps", "falling, such as 999, 700, 300")
    if given:
        yield FieldError("timesteps", "not together with scheduler_options, which pick timesteps of their own")
