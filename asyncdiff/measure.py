"""A pipeline run in one process and in all of them, in turn: pictures, seconds, bytes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from common.command_line import RunError
from common.environment import versions
from common.timing import CallTimes, alternate, pairwise, spread, time_call
from eval.metrics.distances import distance

from .call import call_in_parts
from .plan import Plan, layer_name

RUNS = ("baseline", "asyncdiff")

Timed = tuple[float, CallTimes, float]
"""Seconds, those of the pipeline's parts, and those in which this process had a processor."""


def compare(
    pipe: Any,
    plan: Plan,
    processes: Any,
    arguments: Callable[[], dict[str, Any]],
    *,
    repeats: int,
    warm_up: int,
    device: torch.device,
) -> tuple[dict[str, list[Image.Image]], dict[str, Any]]:
    """Makes the same pictures plainly in process 0 and in parts in all processes, in turn.

    Args:
        arguments: new ones for each call of `pipe`, with generators in their first state.
        warm_up: untimed pairs before the `repeats` timed ones.

    Returns:
        In process 0 the images by run, and what was measured; elsewhere nothing.

    Raises:
        RunError: another process ended; an image has non-finite values; the processes ended with different latents.
    """
    first = processes.rank == 0
    outputs: dict[str, torch.Tensor] = {}  # by run, of its last repeat, (B, 3, H, W)
    latents: dict[str, torch.Tensor] = {}
    sent: list[int] = []  # bytes of each run in parts, by this process

    def timed(name: str, call: Callable[[], Any]) -> Timed:
        busy = time.process_time()
        output, seconds, (parts,) = time_call([pipe], call, device)
        busy = time.process_time() - busy
        if first:
            images = output.frames[0] if hasattr(output, "frames") else output.images
            if not images.isfinite().all():
                raise RunError(f"the {name} images have non-finite values; try --dtype float32 or bfloat16")
            outputs[name] = images.float().cpu()
        return seconds, parts, busy

    def baseline() -> Timed | None:
        found = timed("baseline", lambda: pipe(**arguments(), output_type="pt")) if first else None
        processes.wait()
        return found

    def asyncdiff() -> Timed:
        def remember(_: Any, __: int, ___: Any, values: dict[str, Any]) -> dict[str, Any]:
            latents.update(values)
            return values

        kind = "pt" if first else "latent"  # process 0 alone decodes
        settings = {**arguments(), "output_type": kind, "callback_on_step_end": remember}
        before = processes.bytes_sent
        found = timed("asyncdiff", lambda: call_in_parts(pipe, plan, processes, **settings))
        sent.append(processes.bytes_sent - before)
        if not all(torch.equal(one, latents["latents"]) for one in processes.gather(latents["latents"])):
            raise RunError("the processes ended with different latents; give each the same kind of device and threads")
        return found

    alternate([baseline, asyncdiff], warm_up)
    measured = dict(zip(RUNS, alternate([baseline, asyncdiff], repeats), strict=True))
    all_sent = processes.gather(torch.tensor(sent[-1], device=device))
    of_process = torch.tensor([found[2] for found in measured["asyncdiff"]], device=device)
    busy = [one.tolist() for one in processes.gather(of_process)]  # by process and repeat
    if not first:
        return {}, {}
    processor = pipe.image_processor
    images = {name: processor.numpy_to_pil(processor.pt_to_numpy(tensor)) for name, tensor in outputs.items()}
    whole = {name: [found[0] for found in all_found] for name, all_found in measured.items()}
    unet = {name: [found[1].unet for found in all_found] for name, all_found in measured.items()}
    result = {
        "seconds": {name: {"end_to_end": spread(whole[name]), "unet": spread(unet[name])} for name in RUNS},
        "speed_up": {
            "end_to_end": pairwise(*(whole[name] for name in RUNS)),
            "unet": pairwise(*(unet[name] for name in RUNS)),
        },
        "processor_seconds": {
            "baseline": statistics.median(found[2] for found in measured["baseline"]),
            "asyncdiff": [statistics.median(one) for one in busy],  # by process
        },
        "bytes_sent": [int(one) for one in all_sent],  # in one run, by process
        "distance": _distances(images),
        "versions": versions(device),
    }
    return images, result


def describe(plan: Plan, costs: list[int], num_calls: int) -> dict[str, Any]:
    """The plan for `result.json`: the parts by their layers' names, with their MACs; the bound on the speed-up."""
    last = plan.last_layer
    return {
        "parts": [
            {
                "layers": [layer_name(part.start, last), layer_name(part.stop - 1, last)],
                "macs": sum(costs[i] for i in part),
            }
            for part in plan.parts
        ],
        "starts": [part.start for part in plan.parts[1:]],
        "warm_up": plan.warm_up,
        "stride": plan.stride,
        "time_shift": plan.time_shift,
        "processes": plan.num_processes,
        "unet_calls": num_calls,
        "bound": plan.bound(costs, num_calls),
    }


def _distances(images: dict[str, list[Image.Image]]) -> dict[str, Any]:
    """Of AsyncDiff's images to the baseline's. PSNR is None for equal images; the median is over the others."""
    found = distance(images["baseline"], images["asyncdiff"])
    finite = [value for value in found["psnr"] if math.isfinite(value)]
    return {
        "psnr": [value if math.isfinite(value) else None for value in found["psnr"]],
        "ssim": found["ssim"],
        "median_psnr": statistics.median(finite) if finite else None,
        "median_ssim": statistics.median(found["ssim"]),
    }
