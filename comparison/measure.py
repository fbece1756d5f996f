"""Pipelines run with and without DeepCache, in turn: pictures, seconds, operations, memory."""

from __future__ import annotations

import math
import platform
import resource
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image

from common.command_line import RunError
from common.environment import versions
from common.timing import CallTimes, alternate, pairwise, spread, time_call
from eval.counting.macs import count_steps, unet_inputs
from eval.metrics.distances import distance

RUNS = ("baseline", "deepcache")
PARTS = {"text": "text encoder", "image_encoder": "image encoder", "controlnet": "ControlNet", "vae": "VAE"}


class Call(NamedTuple):
    """One of the U-Net: the shape it was given, where it retrieved (None is a full step), and whether attention too."""

    shape: tuple[int, ...]
    branch: int | None
    attention: bool


def compare(
    stages: dict[str, Any],
    call: Callable[[str, list[torch.Generator]], Any],
    *,
    cache_branch_id: int,
    num_images: int,
    seed: int,
    repeats: int,
    warm_up: int,
    device: torch.device,
    quiet: bool = False,
) -> tuple[dict[str, list[Image.Image]], dict[str, Any]]:
    """Makes the same images without and with the cache, in turn.

    Args:
        stages: the pipelines that `call` runs, by name.
        call: given the run's name ("baseline" or "deepcache") and a generator for each image, makes the images; an
            output with `images` (B, 3, H, W) in [0, 1]. Image k starts from the noise of `seed + k` in both runs.
        cache_branch_id: m, for the count of operations.

    Returns:
        The images of both runs, and what was measured: times in seconds, speed-ups as the median, least and greatest
        ratio of neighbouring pairs, distances between the images, operations, peak memory in bytes.

    Raises:
        RunError: if an image holds values that are not finite.
    """
    peaks = dict.fromkeys(RUNS, 0)
    unsafe = dict.fromkeys(RUNS, 0)
    noted: dict[tuple[str, str], list[Call]] = {}  # by run and stage, of the last of each run
    made: dict[str, torch.Tensor] = {}  # by the last of each run, (B, 3, H, W)

    def run(name: str) -> tuple[float, list[CallTimes]]:
        generators = [torch.Generator().manual_seed(seed + k) for k in range(num_images)]
        noted.update({(name, stage): [] for stage in stages})
        hooks = [
            pipe.unet.register_forward_pre_hook(partial(_note, noted[name, stage]), with_kwargs=True)
            for stage, pipe in stages.items()
        ]
        for stage, pipe in stages.items():
            pipe.set_progress_bar_config(disable=quiet, leave=False, desc=f"{name} {stage}".strip())
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        output, whole, times = time_call(list(stages.values()), lambda: call(name, generators), device)
        for hook in hooks:
            hook.remove()
        if device.type == "cuda":
            peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated(device))
        unsafe[name] = sum(getattr(output, "nsfw_content_detected", None) or [])
        made[name] = output.images.float().cpu()  # off the device, or the next run would have less memory
        return whole, times

    calls = [partial(run, name) for name in RUNS]
    alternate(calls, warm_up)
    measured = dict(zip(RUNS, alternate(calls, repeats), strict=True))

    images: dict[str, list[Image.Image]] = {}
    processor = next(iter(stages.values())).image_processor
    for name, tensor in made.items():
        if not tensor.isfinite().all():
            raise RunError(f"the {name} images hold values that are not finite; try --dtype float32 or bfloat16")
        images[name] = processor.numpy_to_pil(processor.pt_to_numpy(tensor))

    whole = {name: [result[0] for result in results] for name, results in measured.items()}
    parts = {
        stage: _stage(pipe, {name: [r[1][k] for r in results] for name, results in measured.items()}, cache_branch_id,
                      {name: noted[name, stage] for name in RUNS})
        for k, (stage, pipe) in enumerate(stages.items())
    }  # fmt: skip
    result: dict[str, Any] = {
        "seconds": {name: spread(values) for name, values in whole.items()},
        "speed_up": pairwise(*(whole[name] for name in RUNS)),
        "stages": parts,
        "distance": _distance(images),
        "unsafe_images": unsafe,
        "peak_memory": _peak_memory(device, peaks),
        "versions": versions(device),
    }
    return images, result


def _note(calls: list[Call], _: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    branch = None if kwargs.get("cached_feature") is None else kwargs["cache_branch_id"]
    calls.append(Call(tuple(args[0].shape), branch, kwargs.get("cached_attention") is not None))


def _stage(pipe: Any, times: dict[str, list[CallTimes]], branch: int, calls: dict[str, list[Call]]) -> dict[str, Any]:
    """Of one pipeline: seconds by run and part, the speed-up of its U-Net, and how much operations would allow."""
    seconds: dict[str, Any] = {}
    for name, its in times.items():
        seconds[name] = {
            "unet": spread([t.unet for t in its]),
            "full_step": spread([s for t in its for s in t.full_steps]),
            "full_steps": len(its[0].full_steps),
            "retrieve_steps": len(its[0].retrieve_steps),
        }
        if its[0].retrieve_steps:
            seconds[name]["retrieve_step"] = spread([s for t in its for s in t.retrieve_steps])
        for part in PARTS:
            if getattr(its[0], part):
                seconds[name][part] = spread([sum(getattr(t, part)) for t in its])
    speed_up = pairwise(*([t.unet for t in times[name]] for name in RUNS))
    operations = _operations(pipe, branch, calls)
    operations["share_of_bound"] = speed_up["median"] / operations["bound"]
    return {"seconds": seconds, "speed_up": speed_up, "operations": operations}


def _operations(pipe: Any, branch: int, calls: dict[str, list[Call]]) -> dict[str, float]:
    """Multiply-accumulates of a full and a retrieve step of the U-Net, for one image or video without guidance.

    The bound on the U-Net's speed-up is the ratio of operations, matrix products of attention counted, of all calls
    with the batches that they had.
    """
    shape = calls["baseline"][0].shape
    tokenizer = getattr(pipe, "tokenizer", None) or getattr(pipe, "tokenizer_2", None)
    tokens = tokenizer.model_max_length if tokenizer is not None else 1
    frames = shape[1] if len(shape) == 5 else 1
    inputs = unet_inputs(pipe.unet, *shape[-2:], tokens=tokens, frames=frames)
    full, _ = count_steps(pipe.unet, inputs, branch)
    kinds = {(call.branch, call.attention) for call in calls["deepcache"] if call.branch is not None}
    retrieve = {kind: count_steps(pipe.unet, inputs, kind[0], keep_attention=kind[1])[1] for kind in kinds}
    run = {
        name: sum(
            c.shape[0] * (full if c.branch is None else retrieve[c.branch, c.attention]).with_attention for c in its
        )
        for name, its in calls.items()
    }
    cheapest = min(retrieve.values(), key=lambda macs: macs.with_attention, default=full)
    return {
        "full_macs": full.paper,
        "retrieve_macs": cheapest.paper,
        "full_macs_with_attention": full.with_attention,
        "retrieve_macs_with_attention": cheapest.with_attention,
        "bound": run["baseline"] / run["deepcache"],
    }


def _distance(images: dict[str, list[Image.Image]]) -> dict[str, Any]:
    """Of each DeepCache image to its baseline image; PSNR is null where they are equal, its median over the others."""
    apart = distance(images["baseline"], images["deepcache"])
    finite = [value for value in apart["psnr"] if math.isfinite(value)]
    return {
        "psnr": [value if math.isfinite(value) else None for value in apart["psnr"]],
        "ssim": apart["ssim"],
        "equal_images": len(apart["psnr"]) - len(finite),
        "median_psnr": statistics.median(finite) if finite else None,
        "median_ssim": statistics.median(apart["ssim"]),
    }


def _peak_memory(device: torch.device, peaks: dict[str, int]) -> dict[str, int]:
    """Bytes: on CUDA what each run allocated at most, else what the process held at most, both runs together."""
    if device.type == "cuda":
        return peaks
    unit = 1 if platform.system() == "Darwin" else 1024
    return {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
