"""A call of a pipeline whose U-Net runs in parts."""

from __future__ import annotations

import copy
from typing import Any

from pipelines import StableDiffusionPipeline, StableDiffusionXLPipeline, StableVideoDiffusionPipeline
from unets.cached_unet import share_weights_as
from unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel

from .image_unet import PartedUNet2DConditionModel
from .plan import Plan
from .run import AsyncRun
from .video_unet import PartedUNetSpatioTemporalConditionModel

PIPELINES = (StableDiffusionPipeline, StableDiffusionXLPipeline, StableVideoDiffusionPipeline)


def call_in_parts(pipe: Any, plan: Plan, processes: Any, **arguments: Any) -> Any:
    """`pipe(**arguments)`, in every process alike, with the U-Net in parts; `pipe` itself stays as it is.

    The call has a U-Net object of its own, over the same weights, so that nothing is left for the next one.

    Args:
        plan: which process runs which part when.
        processes: `processes.joined`'s, or `processes.OneProcess()`.

    Raises:
        ValueError: another pipeline; a plan for another U-Net, or for another number of processes; an argument of the
            cache.
        RunError: another process ended.
    """
    if not isinstance(pipe, PIPELINES):
        names = ", ".join(cls.__name__ for cls in PIPELINES)
        raise ValueError(f"{type(pipe).__name__} can't run in parts; these can: {names}")
    num_layers = 2 * pipe.unet.num_skip_branches + 1
    if plan.last_layer + 1 != num_layers:
        raise ValueError(f"the plan is for a U-Net of {plan.last_layer + 1} layers; this one has {num_layers}")
    is_video = isinstance(pipe.unet, UNetSpatioTemporalConditionModel)
    cls = PartedUNetSpatioTemporalConditionModel if is_video else PartedUNet2DConditionModel
    unet = share_weights_as(cls, pipe.unet)
    unet.run = AsyncRun(plan, processes, pipe.scheduler)
    of_this_call = copy.copy(pipe)
    of_this_call.unet = unet
    return of_this_call(**arguments)
