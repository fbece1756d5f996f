"""The samplers with which steps can be skipped."""

from __future__ import annotations

from typing import Any

DETERMINISTIC = (  # one call per step and no added noise, except in their stochastic variants
    "PNDMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
)
SKIPPING = (*DETERMINISTIC, "AdamsBashforthScheduler")


def check_skips(scheduler: Any, eta: float = 0.0) -> None:
    """Checks that steps can be skipped with a sampler.

    Raises:
        ValueError: an unknown sampler, or one that adds noise: no forecast can follow its latents.
    """
    name = type(scheduler).__name__
    noisy = eta > 0 or is_sde(scheduler)
    if noisy or name not in SKIPPING:
        what = f"{name} with added noise" if noisy else name
        raise ValueError(f"skip_interval and skip_steps need one of {', '.join(SKIPPING)}, not {what}")


def is_sde(scheduler: Any) -> bool:
    """Whether this is the variant of a sampler that adds noise, such as DPM++ SDE."""
    return str(scheduler.config.get("algorithm_type")).startswith("sde")
