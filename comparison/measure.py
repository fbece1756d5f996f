"""Pipelines run with and without DeepCache, in turn: images, seconds, MACs, memory."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypedDict

import torch
from PIL import Image

from common.command_line import RunError
from common.environment import versions
from common.memory import peak_memory
from common.timing import CallTimes, alternate, pairwise, spread, time_call
from eval.counting.macs import count_steps, unet_inputs
from eval.metrics.distances import distance

from .progress import RunProgress

RUNS = ("baseline", "deepcache")
PARTS = {"text": "text encoder", "image_encoder": "image encoder", "controlnet": "ControlNet", "vae": "VAE"}


class UNetCall(NamedTuple):
    """The arguments of one U-Net call."""

    shape: tuple[int, ...]
    branch: int | None  # where it retrieved; None: a full step
    attention: bool  # whether attention was retrieved too


class StageMacs(TypedDict):
    """MACs of a full and of the cheapest retrieve step for one image or video without guidance; expected speed-up."""

    full_macs: int
    retrieve_macs: int
    full_macs_with_attention: int
    retrieve_macs_with_attention: int
    bound: float  # expected speed-up of the U-Net: MACs of the baseline's calls over those of DeepCache's
    share_of_bound: float  # measured speed-up over the expected one


class StageResult(TypedDict):
    """Measurements of one pipeline."""

    seconds: dict[str, dict[str, Any]]  # by run: `spread` of each part, numbers of steps
    speed_up: dict[str, float]  # of the U-Net
    operations: StageMacs


class Distances(TypedDict):
    """Of DeepCache's images to the baseline's. PSNR is None for equal images; its median is over the others."""

    psnr: list[float | None]
    ssim: list[float]
    equal_images: int
    median_psnr: float | None
    median_ssim: float


class Comparison(TypedDict):
    """What was measured, for `result.json`: times in seconds, memory in bytes."""

    seconds: dict[str, dict[str, float]]  # end-to-end, by run
    speed_up: dict[str, float]  # end-to-end: median, least and greatest ratio of neighbouring pairs
    stages: dict[str, StageResult]
    distance: Distances
    unsafe_images: dict[str, int]  # by run
    peak_memory: dict[str, int]
    versions: dict[str, str | int]


def compare(
    stages: dict[str, Any],
    call: Callable[[str, list[torch.Generator]], Any],
    *,
    num_images: int,
    seed: int,
    repeats: int,
    warm_up: int,
    device: torch.device,
    quiet: bool = False,
    show_first: Callable[[dict[str, list[Image.Image]], RunProgress], None] | None = None,
) -> tuple[dict[str, list[Image.Image]], Comparison]:
    """Makes the same images without and with the cache, in turn.

    Args:
        stages: the pipelines that `call` runs, by name.
        call: given the run's name ("baseline" or "deepcache") and a generator for each image, makes the images; an
            output with `images` (B, 3, H, W) in [0, 1]. Image k starts from the noise of `seed + k` in both runs.
        show_first: called with the images by run once both have been made, before anything else is run.

    Returns:
        The images by run, and what was measured.

    Raises:
        RunError: if an image has non-finite values.
    """
    peaks = dict.fromkeys(RUNS, 0)
    unsafe = dict.fromkeys(RUNS, 0)
    unet_calls: dict[tuple[str, str], list[UNetCall]] = {}  # by run and stage, of each run's last repeat
    outputs: dict[str, torch.Tensor] = {}  # by run, of its last repeat, (B, 3, H, W)
    processor = next(iter(stages.values())).image_processor
    progress = RunProgress(RUNS, warm_up + repeats)

    def pictures() -> dict[str, list[Image.Image]]:
        for name, tensor in outputs.items():
            if not tensor.isfinite().all():
                raise RunError(f"the {name} images have non-finite values; try --dtype float32 or bfloat16")
        return {name: processor.numpy_to_pil(processor.pt_to_numpy(tensor)) for name, tensor in outputs.items()}

    def run(name: str) -> tuple[float, list[CallTimes]]:
        generators = [torch.Generator().manual_seed(seed + k) for k in range(num_images)]
        unet_calls.update({(name, stage): [] for stage in stages})
        hooks = [
            pipe.unet.register_forward_pre_hook(partial(_record, unet_calls[name, stage]), with_kwargs=True)
            for stage, pipe in stages.items()
        ]
        for stage, pipe in stages.items():
            of = f"{name} {stage}" if len(stages) > 1 else name
            pipe.set_progress_bar_config(disable=quiet, leave=False, desc=f"{of}, {progress}")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        output, whole, times = time_call(list(stages.values()), lambda: call(name, generators), device)
        for hook in hooks:
            hook.remove()
        if device.type == "cuda":
            peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated(device))
        unsafe[name] = sum(getattr(output, "nsfw_content_detected", None) or [])
        outputs[name] = output.images.float().cpu()  # off the device, to free its memory for the next run
        progress.ended(name, whole)
        if progress.done == len(RUNS) and show_first is not None:
            show_first(pictures(), progress)
        return whole, times

    calls = [partial(run, name) for name in RUNS]
    alternate(calls, warm_up)
    measured = dict(zip(RUNS, alternate(calls, repeats), strict=True))

    images = pictures()
    whole = {name: [result[0] for result in results] for name, results in measured.items()}
    measured_stages = {
        stage: _stage(
            pipe,
            times={name: [result[1][k] for result in results] for name, results in measured.items()},
            calls={name: unet_calls[name, stage] for name in RUNS},
        )
        for k, (stage, pipe) in enumerate(stages.items())
    }
    result: Comparison = {
        "seconds": {name: spread(values) for name, values in whole.items()},
        "speed_up": pairwise(*(whole[name] for name in RUNS)),
        "stages": measured_stages,
        "distance": _distances(images),
        "unsafe_images": unsafe,
        "peak_memory": _peak_memory(device, peaks),
        "versions": versions(device),
    }
    return images, result


def _record(calls: list[UNetCall], _: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    branch = None if kwargs.get("cached_feature") is None else kwargs["cache_branch_id"]
    calls.append(UNetCall(tuple(args[0].shape), branch, kwargs.get("cached_attention") is not None))


def _stage(pipe: Any, *, times: dict[str, list[CallTimes]], calls: dict[str, list[UNetCall]]) -> StageResult:
    """One pipeline's measurements, from the times of each repeat and the U-Net calls of the last one, by run."""
    seconds: dict[str, dict[str, Any]] = {}
    for name, repeats in times.items():
        first = repeats[0]
        seconds[name] = {
            "unet": spread([t.unet for t in repeats]),
            "full_step": spread([s for t in repeats for s in t.full_steps]),
            "full_steps": len(first.full_steps),
            "retrieve_steps": len(first.retrieve_steps),
        }
        if first.retrieve_steps:
            seconds[name]["retrieve_step"] = spread([s for t in repeats for s in t.retrieve_steps])
        for part in PARTS:
            if getattr(first, part):
                seconds[name][part] = spread([sum(getattr(t, part)) for t in repeats])
    speed_up = pairwise(*([t.unet for t in times[name]] for name in RUNS))
    return {"seconds": seconds, "speed_up": speed_up, "operations": _macs(pipe, calls, speed_up["median"])}


def _macs(pipe: Any, calls: dict[str, list[UNetCall]], speed_up: float) -> StageMacs:
    """MACs for the shape of the latents; `bound` is from all calls at their actual batch sizes."""
    shape = calls["baseline"][0].shape
    tokenizer = getattr(pipe, "tokenizer", None) or getattr(pipe, "tokenizer_2", None)
    tokens = tokenizer.model_max_length if tokenizer is not None else 1
    frames = shape[1] if len(shape) == 5 else 1
    inputs = unet_inputs(pipe.unet, *shape[-2:], tokens=tokens, frames=frames)
    kinds = {(call.branch, call.attention) for call in calls["deepcache"] if call.branch is not None}
    steps = {
        (branch, attention): count_steps(pipe.unet, inputs, branch, keep_attention=attention)
        for branch, attention in kinds or {(0, False)}
    }
    full = next(iter(steps.values()))[0]
    retrieve = {kind: steps[kind][1] for kind in kinds}
    total = {
        name: sum(
            call.shape[0] * (full if call.branch is None else retrieve[call.branch, call.attention]).with_attention
            for call in calls_of_run
        )
        for name, calls_of_run in calls.items()
    }
    cheapest = min(retrieve.values(), key=lambda macs: macs.with_attention, default=full)
    bound = total["baseline"] / total["deepcache"]
    return {
        "full_macs": full.paper,
        "retrieve_macs": cheapest.paper,
        "full_macs_with_attention": full.with_attention,
        "retrieve_macs_with_attention": cheapest.with_attention,
        "bound": bound,
        "share_of_bound": speed_up / bound,
    }


def _distances(images: dict[str, list[Image.Image]]) -> Distances:
    found = distance(images["baseline"], images["deepcache"])
    finite = [value for value in found["psnr"] if math.isfinite(value)]
    return {
        "psnr": [value if math.isfinite(value) else None for value in found["psnr"]],
        "ssim": found["ssim"],
        "equal_images": len(found["psnr"]) - len(finite),
        "median_psnr": statistics.median(finite) if finite else None,
        "median_ssim": statistics.median(found["ssim"]),
    }


def _peak_memory(device: torch.device, peaks: dict[str, int]) -> dict[str, int]:
    """Bytes: on CUDA each run's peak allocation, else the peak of the process, for both runs together."""
    if device.type == "cuda":
        return peaks
    return {"process": peak_memory()}
