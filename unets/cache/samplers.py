"""With which samplers steps can be skipped."""

from __future__ import annotations

from typing import Any

DETERMINISTIC = (  # samplers of one call a step without noise of their own, but for their variants that add it
    "PNDMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
)
SKIPPING = (*DETERMINISTIC, "AdamsBashforthScheduler")


def check_skips(scheduler: Any, eta: float = 0.0) -> None:
    """Whether steps can be skipped with a sampler.

    One that adds noise of its own moves the latents, and with them the predicted noise, where no forecast can follow.

    Raises:
        ValueError: one that does, or that is not known here.
    """
    name = type(scheduler).__name__
    noisy = eta > 0 or is_sde(scheduler)
    if noisy or name not in SKIPPING:
        what = f"{name} with noise of its own" if noisy else name
        raise ValueError(f"skip_interval and skip_steps need one of {', '.join(SKIPPING)}, not {what}")


def is_sde(scheduler: Any) -> bool:
    """Whether it is the variant of a sampler that adds noise, as DPM++ SDE."""
    return str(scheduler.config.get("algorithm_type")).startswith("sde")
