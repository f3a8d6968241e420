"""What are schedulers called in ComfyUI, and what are its samplers called here?

Source: ComfyUI, comfy/samplers.py, KSAMPLER_NAMES, SAMPLER_NAMES and SCHEDULER_HANDLERS; samplers there are solvers,
schedulers say which noise levels they go through.
"""

from __future__ import annotations

from typing import Any

_SDE = {"algorithm_type": "sde-dpmsolver++"}
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", _SDE),
    "dpmpp_3m_sde": ("DPMSolverMultistepScheduler", {**_SDE, "solver_order": 3}),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    # The variant that diffusers has where nothing is said. Source: its `solver_type`.
    "uni_pc_bh2": ("UniPCMultistepScheduler", {}),
}
"""ComfyUI's samplers, each with the scheduler here and what that is told."""
STAND_INS = {
    "DPMSolverSinglestepScheduler": "dpmpp_2m", "PNDMScheduler": "lms", "TCDScheduler": "lcm",
}  # fmt: skip
"""What is nearest to schedulers that ComfyUI lacks."""
LEVELS: dict[str, dict[str, Any]] = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "sgm_uniform": {"timestep_spacing": "trailing"},
    "ddim_uniform": {"timestep_spacing": "leading"},
    "normal": {"timestep_spacing": "linspace"},
}
"""ComfyUI's schedulers, each with the option that picks such noise levels here."""
OWN = "normal"
"""The noise levels where a stage does not say which."""


def sampler_of(stage: Any) -> tuple[str, str, str]:
    """The sampler and scheduler of a stage in ComfyUI's words, and what is not the same of them, "" for nothing."""
    name = getattr(stage, "scheduler", None)
    if name is None:
        return "euler", OWN, "euler, normal stand for the checkpoint's own scheduler, which is not in its file there"
    options: dict[str, Any] = stage.scheduler_options.given()
    fitting = [
        (len(told), solver)
        for solver, (known, told) in SOLVERS.items()
        if known == name and told.items() <= options.items()
    ]
    solver = max(fitting)[1] if fitting else STAND_INS[name]
    levels = next((level for level, told in LEVELS.items() if told.items() <= options.items()), OWN)
    written = {**(SOLVERS[solver][1] if fitting else {}), **LEVELS[levels]}
    left = sorted(f"{key} {value}" for key, value in options.items() if written.get(key) != value)
    notes = [] if fitting else [f"ComfyUI has no {name}: {solver} stands for it"]
    notes += [f"without {', '.join(left).replace('_', ' ')}"] if left else []
    return solver, levels, "; ".join(notes)


def scheduler_of(solver: str, levels: str) -> dict[str, Any] | None:
    """The fields of a stage that a sampler and a scheduler of ComfyUI's are; None for a sampler that is not known."""
    # A variant with other arithmetic of the same solver.
    found = SOLVERS.get({"uni_pc": "uni_pc_bh2"}.get(solver, solver.removesuffix("_gpu")))
    if found is None:
        return None
    name, told = found
    options = {**told, **(LEVELS.get(levels, {}) if levels != OWN else {})}
    return {"scheduler": name, **({"scheduler_options": options} if options else {})}
