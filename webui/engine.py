"""One model behind the page: pictures with and without the cache, one run after the other, which can be stopped."""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from common.command_line import RunError
from common.images import fitted
from common.shipped import GUIDANCE, SHAPES_SD
from common.timing import time_call
from comparison.measure import RUNS
from comparison.run import check_run
from eval.metrics.distances import distance
from pipelines import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    TextToVideoZeroPipeline,
)
from pipelines.loading import check_steps, load_pipeline, new_scheduler, place_pipeline
from pipelines.text_to_video_zero import default_moments
from unets.cache.config import CacheConfig

from .options import Options
from .watch import StepSeen, Watch

TEXT, IMAGE, INPAINT, VIDEO = "text to image", "image to image", "inpainting", "video"
CLASSES: dict[str, Any] = {
    TEXT: StableDiffusionPipeline,
    IMAGE: StableDiffusionImg2ImgPipeline,
    INPAINT: StableDiffusionInpaintPipeline,
    VIDEO: TextToVideoZeroPipeline,
}
WARM_UP_STEPS = 3  # full, retrieve, full
MOST_FRAMES = 64
LABELS = dict(zip(RUNS, ("Baseline", "DeepCache"), strict=True))

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Outcome:
    """Both runs."""

    images: dict[str, list[Image.Image]]  # by run; a video's frames
    seconds: dict[str, float]  # of the one run of each, end-to-end
    unet_seconds: dict[str, float]
    steps: list[StepSeen]  # of DeepCache's run
    psnr: float  # in dB, for a video the median over frames; infinite if they are equal
    unsafe: int  # pictures that the safety checker blackened

    @property
    def speed_up(self) -> float:
        """Of this pair of runs, end-to-end."""
        return self.seconds["baseline"] / self.seconds["deepcache"]

    @property
    def unet_speed_up(self) -> float:
        """Of the U-Net alone."""
        return self.unet_seconds["baseline"] / self.unet_seconds["deepcache"]


class Engine:
    """A model on a device. Pipelines keep state during a call, so only one call runs at a time.

    Args:
        model: as `--model` has it; None is the shipped one.

    Attributes:
        side: pixels of the pictures, which are square.
        branches: M, of the U-Net.

    Raises:
        ValueError: as `load_pipeline`.
    """

    def __init__(self, model: str | None, device: torch.device, dtype: torch.dtype) -> None:
        self.shipped = model is None
        self.name = "the shipped model (shapes-sd)" if model is None else Path(model).name
        pipe = load_pipeline(StableDiffusionPipeline, model or SHAPES_SD, dtype=dtype, quiet=True)
        place_pipeline(pipe, device, channels_last=False, compiled=False, cpu_offload=False)
        parts = pipe.components
        self._pipes = {kind: cls(**parts, requires_safety_checker=False) for kind, cls in CLASSES.items()}
        for one in self._pipes.values():
            one.set_progress_bar_config(disable=True)
        self._own_scheduler = pipe.scheduler
        self._lock = threading.Lock()
        self.device, self.dtype = device, dtype
        self.side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        self.branches = len(pipe.unet.up_layers)
        self.guidance = GUIDANCE[self.shipped]
        self.inpaints_only = pipe.unet.config.in_channels == 9

    def text(self, options: Options, stop: threading.Event, progress: Progress) -> Outcome:
        """Text to image. Raises ValueError for options that the model refuses, `Stopped` if it was."""
        return self._compare(TEXT, options, {"height": self.side, "width": self.side}, stop, progress)

    def image(
        self, picture: Image.Image, mask: Image.Image | None, options: Options, stop: threading.Event,
        progress: Progress,
    ) -> Outcome:  # fmt: skip
        """Image to image, or with a mask (mode L, white where to redraw) inpainting. Raises as `text`."""
        size = (self.side, self.side)
        given: dict[str, Any] = {"image": [fitted(picture, size)]}
        if mask is None:
            given["strength"] = 0.8 if options.strength is None else options.strength
            return self._compare(IMAGE, options, given, stop, progress)
        fitted_mask = fitted(mask, size, Image.Resampling.NEAREST)
        if not fitted_mask.getbbox():
            raise ValueError("nothing is painted in the square around the picture's centre; paint what to redraw there")
        given["mask_image"] = [fitted_mask]
        given["strength"] = 1.0 if options.strength is None else options.strength
        given |= {"height": self.side, "width": self.side}
        return self._compare(INPAINT, options, given, stop, progress)

    def video(self, options: Options, frames: int, motion: float, stop: threading.Event, progress: Progress) -> Outcome:
        """Text2Video-Zero. Raises as `text`."""
        given = {
            "video_length": frames,
            "motion_field_strength_x": motion,
            "motion_field_strength_y": motion,
            "height": self.side,
            "width": self.side,
        }
        return self._compare(VIDEO, options, given, stop, progress)

    def _compare(
        self, kind: str, options: Options, given: dict[str, Any], stop: threading.Event, progress: Progress
    ) -> Outcome:
        with self._lock:  # a stopped run may still be in its last step
            pipe = self._pipes[kind]
            pipe.scheduler = self._scheduler(options.scheduler)
            calls = self._check(kind, pipe, options, given)
            arguments = {
                "prompt": options.prompt if kind == VIDEO else [options.prompt],
                "negative_prompt": options.negative_prompt or None,
                "guidance_scale": options.guidance_scale,
                "output_type": "pt",
                **given,
            }
            run = _Run(kind, pipe, arguments, options, self.device, stop)
            run.warm_up(progress)
            outputs: dict[str, Any] = {}
            seconds: dict[str, float] = {}
            unet_seconds: dict[str, float] = {}
            steps: list[StepSeen] = []
            for k, name in enumerate(RUNS):
                cache = options.cache if name == "deepcache" else CacheConfig()

                def on_step(done: int, k: int = k, name: str = name) -> None:
                    share = (k + min(done / calls, 1)) / len(RUNS)
                    progress(share, f"{LABELS[name]}: step {done} of {calls}")

                output, seconds[name], unet_seconds[name], steps = run.timed(cache, on_step)
                outputs[name] = output
        images = {name: _pictures(pipe, output.images, name) for name, output in outputs.items()}
        return Outcome(
            images, seconds, unet_seconds, steps, statistics.median(distance(*images.values())["psnr"]),
            sum(sum(getattr(output, "nsfw_content_detected", None) or []) for output in outputs.values()),
        )  # fmt: skip

    def _scheduler(self, name: str | None) -> Any:
        """A new one, since a stopped run leaves its own in the middle of a run."""
        if name is None:
            return type(self._own_scheduler).from_config(self._own_scheduler.config)
        return new_scheduler(name, self._own_scheduler.config)

    def _check(self, kind: str, pipe: Any, options: Options, given: dict[str, Any]) -> int:
        """How many calls of the U-Net the baseline makes. Raises ValueError for what the model refuses."""
        strength = given.get("strength")
        if kind == VIDEO:
            return _check_video(pipe, options, given)
        as_arguments = SimpleNamespace(steps=options.steps, mask=kind == INPAINT)
        check_run(pipe, as_arguments, strength, options.cache)  # type: ignore[arg-type]
        if strength is None:
            return len(pipe.scheduler.timesteps)
        return len(pipe.get_timesteps(options.steps, strength, "cpu")[0])


class _Run:
    """One pipeline, called in turn with the same arguments and from the same noise."""

    def __init__(
        self, kind: str, pipe: Any, arguments: dict[str, Any], options: Options, device: torch.device,
        stop: threading.Event,
    ) -> None:  # fmt: skip
        self.kind, self.pipe, self.arguments, self.options = kind, pipe, arguments, options
        self.device, self.stop = device, stop

    def warm_up(self, progress: Progress) -> None:
        """A few steps of each kind, so that neither run pays one-off costs."""
        progress(0, "warm-up")
        cache = self.options.cache
        cache = CacheConfig(
            2, cache.cache_branch_id, reuse_attention=cache.reuse_attention, reuse_guidance=cache.reuse_guidance
        )
        steps = min(self.options.steps, math.ceil(WARM_UP_STEPS / (self.arguments.get("strength") or 1)))
        if self.kind == VIDEO:
            steps = min(self.options.steps, 4)  # for three loops
        self._call(cache, steps, Watch(self.stop, lambda _: None))

    def timed(self, cache: CacheConfig, on_step: Callable[[int], None]) -> tuple[Any, float, float, list[StepSeen]]:
        """The output, its seconds, those of the U-Net, and its steps."""
        watch = Watch(self.stop, on_step)
        output, whole, (parts,) = time_call(
            [self.pipe], lambda: self._call(cache, self.options.steps, watch), self.device
        )
        return output, whole, parts.unet, watch.steps

    def _call(self, cache: CacheConfig, steps: int, watch: Watch) -> Any:
        generator: Any = torch.Generator().manual_seed(self.options.seed)
        arguments = {**self.arguments, **cache.arguments, "num_inference_steps": steps}
        if self.kind == VIDEO:
            arguments["t0"], arguments["t1"] = default_moments(steps)
        else:
            arguments["callback_on_step_end"] = watch.step_end
            generator = [generator]
        scheduler = self.pipe.scheduler
        try:
            with watch.watching(self.pipe.unet, each_call=self.kind == VIDEO):
                return self.pipe(**arguments, generator=generator)
        finally:
            self.pipe.scheduler = type(scheduler).from_config(scheduler.config)


def _check_video(pipe: Any, options: Options, given: dict[str, Any]) -> int:
    """As `Engine._check`, for the three loops of a video, to each of which the schedule applies."""
    if options.cache.extensions:
        raise ValueError("videos support only the paper's cache; leave out what goes beyond it")
    if not 2 <= given["video_length"] <= MOST_FRAMES:
        raise ValueError(f"{given['video_length']} frames; it must be 2 to {MOST_FRAMES}")
    if options.steps < 3:
        raise ValueError(f"--steps is {options.steps}; a video needs at least 3")
    check_steps(pipe, options.steps)
    t0, t1 = default_moments(options.steps)
    pipe.scheduler.set_timesteps(options.steps)
    count = len(pipe.scheduler.timesteps)
    loops = (count - t1 - 1, t1 - t0, t1 + 1)
    cache = options.cache
    if min(loops) <= max(cache.center or 0, *(cache.cache_steps or ()), 0):
        raise ValueError(f"--center and --cache-steps apply to each of the three loops, which have {loops} steps")
    pipe.start_cache(cache, min(loops), min(loops))
    return sum(loops)


def _pictures(pipe: Any, images: torch.Tensor, name: str) -> list[Image.Image]:
    """Images (B, 3, H, W) converted to 8 bits. Raises RunError for non-finite values."""
    images = images.float().cpu()
    if not images.isfinite().all():
        raise RunError(f"the {name} images have non-finite values; try --dtype float32 or bfloat16")
    return pipe.image_processor.numpy_to_pil(pipe.image_processor.pt_to_numpy(images))
