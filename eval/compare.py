"""A pipeline run with and without DeepCache, in turn: pictures, seconds, operations, memory."""

from __future__ import annotations

import math
import os
import platform
import resource
import statistics
from functools import partial
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from .arguments import RunError
from .images import distance
from .macs import count_steps, unet_inputs
from .timing import CallTimes, alternate, pairwise, spread, time_call

RUNS = ("baseline", "deepcache")


def prepare(pipe: Any, device: torch.device, *, channels_last: bool, compiled: bool, cpu_offload: bool) -> None:
    """Puts the pipeline where it is to run, the way it is to run."""
    if channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if compiled:  # the forward alone, so that hooks which move weights or take the time stay outside of the graphs
        pipe.unet.forward = torch.compile(pipe.unet.forward, fullgraph=True)
    if cpu_offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)


def compare(
    pipe: Any,
    arguments: dict[str, Any],
    cache: dict[str, Any],
    *,
    num_images: int,
    seed: int,
    repeats: int,
    warm_up: int,
    device: torch.device,
    quiet: bool = False,
) -> tuple[dict[str, list[Image.Image]], dict[str, Any]]:
    """Runs `pipe(**arguments)` without and with the `cache` settings, in turn.

    Image k starts from the noise of `seed + k` in both runs, whatever else is made with it.

    Returns:
        The images of both runs, and what was measured: times in seconds, speed-ups as the median, least and greatest
        ratio of neighbouring pairs, distances between the images, operations, peak memory in bytes.

    Raises:
        RunError: if an image holds values that are not finite.
    """
    peaks = dict.fromkeys(RUNS, 0)
    unsafe = dict.fromkeys(RUNS, 0)

    def run(name: str) -> tuple[torch.Tensor, CallTimes]:
        pipe.set_progress_bar_config(disable=quiet, leave=False, desc=name)
        generators = [torch.Generator().manual_seed(seed + k) for k in range(num_images)]
        settings = cache if name == "deepcache" else {}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        output, times = time_call(
            pipe, lambda: pipe(**arguments, **settings, generator=generators, output_type="pt"), device
        )
        if device.type == "cuda":
            peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated(device))
        unsafe[name] = sum(output.nsfw_content_detected or [])
        return output.images.float().cpu(), times  # off the device, or the next run would have less memory

    calls = [partial(run, name) for name in RUNS]
    alternate(calls, warm_up)
    measured = dict(zip(RUNS, alternate(calls, repeats), strict=True))

    images: dict[str, list[Image.Image]] = {}
    for name, results in measured.items():
        tensor = results[-1][0]  # (B, 3, H, W)
        if not tensor.isfinite().all():
            raise RunError(f"the {name} images hold values that are not finite; try --dtype float32 or bfloat16")
        processor = pipe.image_processor
        images[name] = processor.numpy_to_pil(processor.pt_to_numpy(tensor))

    times = {name: [result[1] for result in results] for name, results in measured.items()}
    result = {
        **_times(times),
        "operations": _operations(pipe, images["baseline"][0].size, cache["cache_branch_id"], times["deepcache"][0]),
        "distance": _distance(images),
        "unsafe_images": unsafe,
        "peak_memory": _peak_memory(device, peaks),
        "versions": versions(device),
    }
    result["operations"]["share_of_bound"] = result["speed_up"]["unet"]["median"] / result["operations"]["bound"]
    return images, result


def versions(device: torch.device) -> dict[str, str | int]:
    """What the figures depend on besides the arguments."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "system": platform.platform(),
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
    }


def _times(times: dict[str, list[CallTimes]]) -> dict[str, Any]:
    """Seconds by run and part, and the speed-ups of the U-Net and of the whole call."""
    seconds = {
        name: {
            "whole": spread([t.whole for t in its]),
            "unet": spread([t.unet for t in its]),
            "text": spread([sum(t.text) for t in its]),
            "vae": spread([sum(t.vae) for t in its]),
            "full_step": spread([s for t in its for s in t.full_steps]),
            "full_steps": len(its[0].full_steps),
            "retrieve_steps": len(its[0].retrieve_steps),
        }
        for name, its in times.items()
    }
    if times["deepcache"][0].retrieve_steps:
        seconds["deepcache"]["retrieve_step"] = spread([s for t in times["deepcache"] for s in t.retrieve_steps])
    speed_up = {
        part: pairwise(*([getattr(t, part) for t in times[name]] for name in RUNS)) for part in ("whole", "unet")
    }
    return {"seconds": seconds, "speed_up": speed_up}


def _operations(pipe: Any, size: tuple[int, int], branch: int, times: CallTimes) -> dict[str, float]:
    """Multiply-accumulates of a full and a retrieve step for one image without guidance, and what they allow.

    The bound on the U-Net's speed-up is the ratio of operations, matrix products of attention counted.
    """
    width, height = (side // pipe.vae_scale_factor for side in size)
    tokens = pipe.tokenizer.model_max_length
    full, retrieve = count_steps(pipe.unet, unet_inputs(pipe.unet, height, width, tokens=tokens), branch)
    numbers = len(times.full_steps), len(times.retrieve_steps)
    run = numbers[0] * full.with_attention + numbers[1] * retrieve.with_attention
    return {
        "full_macs": full.paper,
        "retrieve_macs": retrieve.paper,
        "full_macs_with_attention": full.with_attention,
        "retrieve_macs_with_attention": retrieve.with_attention,
        "bound": sum(numbers) * full.with_attention / run,
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


def report(result: dict[str, Any]) -> str:
    """The measurements as a table to read."""
    seconds, speed_up, operations = result["seconds"], result["speed_up"], result["operations"]
    base, cached = (seconds[name] for name in RUNS)

    def row(title: str, part: str, ratio: dict[str, float] | None = None) -> str:
        cells = [_seconds(run[part]["median"]) if part in run else "–" for run in (base, cached)]
        gain = f"{ratio['median']:.2f}× ({ratio['min']:.2f}–{ratio['max']:.2f})" if ratio else ""
        return f"{title:<16}{cells[0]:>12}{cells[1]:>12}   {gain}".rstrip()

    share = operations["share_of_bound"]
    apart, memory, unsafe = result["distance"], result["peak_memory"], result["unsafe_images"]
    if apart["median_psnr"] is None:
        distances = "equal to the baseline's, pixel for pixel"
    else:
        least = min(value for value in apart["psnr"] if value is not None)
        equal = f"{apart['equal_images']} equal, the others " if apart["equal_images"] else ""
        distances = (
            f"{equal}PSNR {apart['median_psnr']:.1f} dB (least {least:.1f}), "
            f"SSIM {apart['median_ssim']:.4f} (least {min(apart['ssim']):.4f}) to the baseline's"
        )
    return "\n".join(
        [
            f"{'':<16}{'baseline':>12}{'DeepCache':>12}   speed-up, median (least–greatest of the pairs)",
            row("whole call", "whole", speed_up["whole"]),
            row("U-Net", "unet", speed_up["unet"]),
            row("  full step", "full_step"),
            row("  retrieve step", "retrieve_step"),
            row("text encoder", "text"),
            row("VAE", "vae"),
            f"Steps            {cached['full_steps']} full, {cached['retrieve_steps']} retrieve",
            f"Bound            {operations['bound']:.2f}× by operations; the U-Net reached {share:.0%} of it",
            f"Images           {distances}",
            *([f"Safety checker   blackened images: {unsafe}"] if any(unsafe.values()) else []),
            "Peak memory      " + ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in memory.items()),
        ]
    )


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"
