"""DeepCache as a plug-in for unmodified diffusers pipelines.

helper = DeepCacheSDHelper(pipe)
helper.set_params(cache_interval=3, cache_branch_id=0)
with helper:
    pipe(prompt)
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from types import FrameType
from typing import Any, Self, Unpack

import torch
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers import DiffusionPipeline

from .cache.config import CacheConfig, Extensions
from .cache.run import CacheRun, Step
from .cache.samplers import check_skips
from .cached_unet import shallow_clone
from .forks import fork_of
from .guided_batch import conditional_half, is_guided

SKIP_MODES = ("uniform", "non_uniform")


@dataclass
class Loop:
    """The state of a running denoising loop."""

    num_steps: int  # as the pipeline's progress bar counts them
    thread: int = field(default_factory=threading.get_ident)
    position: int = 0  # calls of the U-Net so far
    cache: CacheRun | None = None  # set at the first call
    timesteps: Any = None  # the scheduler's at the first call; setting it for another call replaces them
    guided_rows: int | None = None  # set at the first call, with guidance reuse: rows of a batch of both halves
    output: Any = None  # class of the U-Net's output, known after the first call


class DeepCacheSDHelper:
    """Replaces a pipeline's U-Net with its fork, and carries the feature from step to step of each denoising loop.

    While enabled, `pipe.unet` is a fork that shares the weights, and a denoising loop begins where the pipeline opens
    its progress bar. Other pipelines with the same U-Net are not affected, even if they run at the same time, in a
    callback or in another thread.

    A diffusers pipeline stores the state of its call. Nested or concurrent calls of one pipeline therefore change its
    images, unless they have the same arguments and a scheduler without memory such as DDIM. While enabled, the second
    call is refused. The first one stops if its scheduler was set for a call of another pipeline.
    """

    def __init__(self, pipe: Any = None) -> None:
        self.pipe: Any = pipe
        self._stock: Any = None  # the U-Net that `disable` restores
        self._stock_class: Any = None  # the pipeline's class that `disable` restores
        self._fork: Any = None  # the U-Net while enabled
        self._loop: Loop | None = None
        self._eta = 0.0  # of the pipeline's running call
        self.set_params()

    def set_params(
        self,
        cache_interval: int = 1,
        cache_branch_id: int = 0,
        skip_mode: str = "uniform",
        *,
        pow: float | None = None,
        center: int | None = None,
        cache_steps: Sequence[int] | None = None,
        **extensions: Unpack[Extensions],
    ) -> None:
        """Sets the parameters, from the next denoising loop on.

        Args:
            cache_interval: N. Every N-th step is full; 1 turns the cache off.
            cache_branch_id: m, the skip branch at which the deep feature is cached, 0 to M − 1.
            skip_mode: "uniform", or "non_uniform" with `pow` and `center`, which concentrates full steps around
                `center`.
            cache_steps: explicit list of full steps, instead of interval and mode.
            extensions: those of `CacheConfig`, by name.

        Raises:
            ValueError: an argument out of range, by name. What depends on the run is checked when it begins.
        """
        if skip_mode not in SKIP_MODES:
            raise ValueError(f"skip_mode is {skip_mode!r}; it must be {' or '.join(map(repr, SKIP_MODES))}")
        uniform = skip_mode == "uniform"
        self.set_config(CacheConfig(cache_interval, cache_branch_id, uniform, pow, center, cache_steps, **extensions))

    def set_config(self, config: CacheConfig | Mapping[str, Any]) -> None:
        """Sets the parameters from a `CacheConfig`, or from the content of a file written by `eval.calibrate --out`.

        Raises:
            ValueError: as `CacheConfig`; content that is not a calibration's.
        """
        steps = None
        if isinstance(config, Mapping):
            steps = config.get("steps")
            if type(steps) is not int or not config.get("cache_steps"):
                raise ValueError(
                    "this is not a calibration: steps or cache_steps is missing; make one with eval.calibrate"
                )
            config = CacheConfig.from_json(config)
        self._config, self._calibrated_steps = config, steps

    @property
    def params(self) -> dict[str, Any]:
        """Interval, branch and kind of schedule, and the extensions that are on."""
        return {
            "cache_interval": self._config.cache_interval,
            "cache_branch_id": self._config.cache_branch_id,
            "skip_mode": SKIP_MODES[not self._config.uniform],
            **self._config.extensions,
        }

    @property
    def enabled(self) -> bool:
        """Whether the pipeline runs with the cache."""
        return self._stock is not None

    def enable(self, pipe: Any = None) -> None:
        """Switches the cache on; does nothing if it is on.

        Raises:
            ValueError: a pipeline or a U-Net that is not supported, by name.
        """
        if pipe is not None and pipe is not self.pipe:
            self.disable()
            self.pipe = pipe
        if self.enabled:
            return
        pipe = self.pipe
        if pipe is None:
            raise ValueError("no pipeline was given; use DeepCacheSDHelper(pipe) or enable(pipe)")
        for name in ("unet", "scheduler", "progress_bar"):
            if not hasattr(pipe, name):
                raise ValueError(
                    f"{type(pipe).__name__} has no {name}; the helper is for diffusers pipelines that have one"
                )
        if "progress_bar" in vars(pipe):
            raise ValueError("another helper is enabled on this pipeline; disable it first")
        if "cache_interval" in signature(type(pipe).__call__).parameters:
            raise ValueError(
                f"this {type(pipe).__name__} has the cache in its own loop; pass cache_interval to its call instead"
            )
        stock = pipe.unet
        fork = _fork_with_offloading(stock)
        fork.check_branch(self._config.cache_branch_id)
        # If the U-Net is another helper's, the fork's plain class.
        fork.__class__ = _with_steps(getattr(type(fork), "plain_class", type(fork)))
        vars(fork)["cache_helper"] = self  # an attribute of the U-Net, so that a copy of the pipeline copies it too
        self._own = vars(fork).keys() - vars(stock).keys()
        self._stock, self._stock_class, self._fork = stock, type(pipe), fork
        pipe.__class__ = self._non_reentrant(type(pipe))  # Python looks up `__call__` only on the class
        # Bypasses the pipeline's `__setattr__`, which would write the fork's class into the saved configuration.
        vars(pipe)["unet"] = fork
        vars(pipe)["progress_bar"] = self._progress_bar

    def disable(self) -> None:
        """Restores the pipeline; does nothing if the cache is off."""
        if not self.enabled:
            return
        fork, stock = self._fork, self._stock
        if hasattr(fork, "_hf_hook"):  # every call of an offloaded pipeline puts new hooks on its U-Net
            hook = fork._hf_hook
            remove_hook_from_module(fork)
            add_hook_to_module(stock, hook)
            for offload in getattr(self.pipe, "_all_hooks", ()):
                if offload.model is fork:
                    offload.model = stock
        self._copy_changes(fork, stock)
        if getattr(self.pipe.unet, "_orig_mod", self.pipe.unet) is fork:  # else the user replaced it
            vars(self.pipe)["unet"] = stock
        del vars(self.pipe)["progress_bar"]
        self.pipe.__class__ = self._stock_class
        self._stock = self._stock_class = self._fork = self._loop = None

    def _copy_changes(self, fork: Any, stock: Any) -> None:
        """Copies changes made while enabled to the stock U-Net, such as a LoRA's or an IP-Adapter's configuration."""

        def is_state(name: str) -> bool:
            temporary = ("cache_helper", "forward", "_old_forward", "_compiled_call_impl", *self._own)
            return "_hook" not in name and name not in temporary

        for name in [*vars(stock)]:
            # An attribute that was None and is a module now is in `_modules` only.
            if is_state(name) and (name not in vars(fork) or name in stock._modules):
                del vars(stock)[name]
        vars(stock).update({name: value for name, value in vars(fork).items() if is_state(name)})

    def __enter__(self) -> Self:
        self.enable()
        return self

    def __exit__(self, *_: Any) -> None:
        self.disable()

    def _non_reentrant(self, cls: Any) -> Any:
        """A subclass of the pipeline's class that refuses a call while another one is running."""
        running, parameters = threading.Lock(), signature(cls.__call__)

        @functools.wraps(cls.__call__)
        def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            if pipe is not self.pipe:  # another pipeline, created with this class
                return cls.__call__(pipe, *args, **kwargs)
            if not running.acquire(blocking=False):
                raise self._already_running()
            try:
                self._eta = parameters.bind(pipe, *args, **kwargs).arguments.get("eta", 0.0)
                return cls.__call__(pipe, *args, **kwargs)
            finally:
                self._eta = 0.0
                running.release()

        return _subclass(cls, call)

    def _already_running(self) -> RuntimeError:
        return RuntimeError(
            f"this {type(self.pipe).__name__} is already running; use a separate pipeline, with its own scheduler, for "
            "each thread and for calls in a callback"
        )

    def _progress_bar(self, iterable: Any = None, total: int | None = None, **options: Any) -> Any:
        """The pipeline's own progress bar, which is open exactly as long as a denoising loop runs."""
        bar = type(self.pipe).progress_bar(self.pipe, iterable, total, **options)
        return self._around(bar, total or 0) if iterable is None else self._along(bar, len(iterable))

    @contextmanager
    def _around(self, bar: Any, num_steps: int) -> Iterator[Any]:
        outer = self._loop
        # Marigold's denoising loops are nested in a loop over pictures, which itself calls no U-Net. Any other outer
        # loop belongs to a generator that was not closed, or was opened by hand in another thread.
        if outer is not None and (outer.cache is not None or outer.thread != threading.get_ident()):
            raise self._already_running()
        loop = Loop(num_steps)
        try:
            self._loop = loop
            with bar:
                yield bar
        finally:
            if self._loop is loop:
                self._loop = outer

    def _along(self, bar: Any, num_steps: int) -> Iterator[Any]:
        with self._around(bar, num_steps):
            yield from bar

    def _begin(self, loop: Loop, unet: Any, sample: Any, kwargs: dict[str, Any]) -> CacheRun:
        """The cache of a loop, as in the forked pipelines: second-order samplers count calls, PLMS makes one more."""
        config, video, name = self._config, unet.frame_axis is not None, type(self.pipe).__name__
        if self._calibrated_steps not in (None, loop.num_steps):
            raise ValueError(
                f"the calibration is for {self._calibrated_steps} steps, not {loop.num_steps}; give "
                f"num_inference_steps={self._calibrated_steps}, or calibrate again"
            )
        if config.skips:
            if video or name.startswith("TextToVideoZero"):
                config.refuse("skip_interval", "skip_steps")  # not tried: no trained model available
            check_skips(self.pipe.scheduler, self._eta)
        if config.reuse_guidance or config.guidance_stop < 1:
            if kwargs.get("down_block_additional_residuals") is not None:  # a ControlNet's, whose fork has neither
                config.refuse("reuse_guidance", "guidance_stop")
            loop.guided_rows = len(sample) if is_guided(self.pipe, unet, sample) else None
        loop.timesteps = self.pipe.scheduler.timesteps
        order, one_more = self.pipe.scheduler.order, len(loop.timesteps) == loop.num_steps + 1
        num_calls = getattr(self.pipe, "_num_timesteps", None) or loop.num_steps * order + (order == 1 and one_more)
        frames = sample.shape[unet.frame_axis] if video else 1
        return CacheRun(config, unet, loop.num_steps, num_calls, order=order, frames=frames)

    def _before_step(
        self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Step, tuple[Any, ...], dict[str, Any]] | None:
        """Plans this call of the U-Net; None for a call that is not part of the loop."""
        loop = self._loop_of_this_thread()
        if unet is not self._fork or loop is None or self._called_by_another_pipeline():  # or by hand, outside a loop
            return None
        sample = args[0] if args else kwargs["sample"]
        if loop.cache is None:
            loop.cache = self._begin(loop, unet, sample, kwargs)
        self._check_scheduler(loop)
        if loop.position >= len(loop.timesteps):
            raise ValueError(
                f"{type(self.pipe).__name__} calls its U-Net more than once a step, which is not supported"
            )
        guided = len(sample) == loop.guided_rows  # a callback can switch guidance off
        batch_size = len(sample) // 2 if guided else len(sample)
        step = loop.cache.plan(loop.position, batch_size, guided)  # cache (1): equation 6, is this step full?
        if step.guidance_delta is not None:
            args, kwargs = conditional_half((args, kwargs), len(sample))
        return step, args, {**kwargs, **step.unet_arguments, "return_dict": True}  # cache (2): equations 4 and 5

    def _after_step(self, step: Step, output: Any, return_dict: bool) -> Any:
        """The output for the pipeline."""
        loop = self._loop
        assert loop is not None and loop.cache is not None
        self._check_scheduler(loop)
        if output is not None:
            loop.output = type(output)
        noise = loop.cache.take(step, output)  # cache (3): the helper owns the feature, for this loop alone
        loop.position += 1
        return loop.output(sample=noise) if return_dict else (noise,)

    def _loop_of_this_thread(self) -> Loop | None:
        loop = self._loop
        return loop if loop is not None and loop.thread == threading.get_ident() else None

    def _called_by_another_pipeline(self) -> bool:
        """Whether the call comes from another pipeline with the same U-Net, in a callback of this one's loop.

        The U-Net's arguments do not tell, so this inspects the call stack.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            caller = frame.f_locals.get("self")
            if isinstance(caller, DiffusionPipeline):
                return caller is not self.pipe
            frame = frame.f_back
        return False

    def _check_scheduler(self, loop: Loop) -> None:
        if self.pipe.scheduler.timesteps is not loop.timesteps:
            raise RuntimeError(
                f"the scheduler of this {type(self.pipe).__name__} was set for another call while this one ran; give "
                "each pipeline that is called in a callback or another thread its own scheduler"
            )


def _with_steps(cls: Any) -> Any:
    """A subclass of a fork whose calls run, or skip, the planned step of its helper's loop.

    Hooks of the U-Net would come too late: a skipped step must not load offloaded weights either. Only the U-Net is
    compiled, not this wrapper or what it calls.
    """
    before = torch.compiler.disable(DeepCacheSDHelper._before_step)  # type: ignore[no-untyped-call]
    after = torch.compiler.disable(DeepCacheSDHelper._after_step)  # type: ignore[no-untyped-call]

    def call(unet: Any, *args: Any, **kwargs: Any) -> Any:
        helper = vars(unet)["cache_helper"]
        planned = before(helper, unet, args, kwargs)
        if planned is None:
            return cls.__call__(unet, *args, **kwargs)
        step, step_args, step_kwargs = planned
        output = None if step.skips else cls.__call__(unet, *step_args, **step_kwargs)
        return after(helper, step, output, kwargs.get("return_dict", True))

    subclass = _subclass(cls, torch.compiler.disable(call, recursive=False))  # type: ignore[no-untyped-call]
    subclass.plain_class = cls
    return subclass


def _subclass(cls: Any, call: Any) -> Any:
    """A subclass that differs from `cls` only in `__call__`."""
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls,), {**names, "__call__": call})


def _fork_with_offloading(stock: Any) -> Any:
    """The fork of a U-Net, with its accelerate hook if it has one."""
    bare, hook = shallow_clone(stock), getattr(stock, "_hf_hook", None)
    if hook is None:
        return fork_of(bare)
    for name in ("forward", "_old_forward", "_hf_hook"):
        vars(bare).pop(name, None)
    return add_hook_to_module(fork_of(bare), hook)
