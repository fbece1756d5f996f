"""DeepCache as a plug-in: on an unmodified diffusers pipeline, switched on and off.

helper = DeepCacheSDHelper(pipe)
helper.set_params(cache_interval=3, cache_branch_id=0)
with helper:
    pipe(prompt)
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from types import FrameType
from typing import Any, Self

from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers import DiffusionPipeline

from .cache.config import CacheConfig
from .cache.run import CacheRun, Step
from .cached_unet import shallow_clone
from .forks import fork_of

SKIP_MODES = ("uniform", "non_uniform")


@dataclass
class Loop:
    """One denoising loop under way."""

    num_steps: int  # as the pipeline's progress bar counts them
    thread: int = field(default_factory=threading.get_ident)
    position: int = 0  # calls of the U-Net so far
    cache: CacheRun | None = None  # known from the first call on
    timesteps: Any = None  # likewise: the scheduler's, which are others as soon as it is set for another call
    step: Step | None = None  # of the call under way
    return_dict: bool = True  # what that call asked for


class DeepCacheSDHelper:
    """Gives a pipeline's U-Net the forked `forward`, and keeps the feature from step to step of each denoising loop.

    While enabled, `pipe.unet` is the fork over the same weights, and a denoising loop begins where the pipeline opens
    its progress bar. Other pipelines that hold the same U-Net see nothing of it, be they called before, meanwhile in a
    callback, or in another thread.

    A pipeline keeps what its call goes by, so in diffusers a call of it within a call of it, or in two threads, gives
    other images unless both have the same arguments and a scheduler without memory such as DDIM. While enabled, the
    second call is refused; and the first goes no further if its scheduler was set for a call of another pipeline.
    """

    def __init__(self, pipe: Any = None) -> None:
        self.pipe: Any = pipe
        self._stock: Any = None  # the U-Net that `disable` puts back
        self._stock_class: Any = None  # of the pipeline, likewise
        self._fork: Any = None  # what stands in its place
        self._loop: Loop | None = None
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
    ) -> None:
        """Sets what the next denoising loop goes by.

        Args:
            cache_interval: N. Every N-th step is full; 1 changes nothing.
            cache_branch_id: m, the skip branch at which the deep feature is kept, 0 to M − 1.
            skip_mode: "uniform", or "non_uniform" with `pow` and `center`, which gathers full steps around `center`.
            cache_steps: the full steps themselves, instead.

        Raises:
            ValueError: an argument out of range, by name. What depends on the run is checked when it begins.
        """
        if skip_mode not in SKIP_MODES:
            raise ValueError(f"skip_mode is {skip_mode!r}; it must be {' or '.join(map(repr, SKIP_MODES))}")
        self._config = CacheConfig(cache_interval, cache_branch_id, skip_mode == "uniform", pow, center, cache_steps)

    @property
    def params(self) -> dict[str, Any]:
        """Interval, branch and kind of schedule, as `set_params` was told."""
        return {
            "cache_interval": self._config.cache_interval,
            "cache_branch_id": self._config.cache_branch_id,
            "skip_mode": SKIP_MODES[not self._config.uniform],
        }

    @property
    def enabled(self) -> bool:
        """Whether the pipeline runs with the cache."""
        return self._stock is not None

    def enable(self, pipe: Any = None) -> None:
        """Switches the cache on; twice is once.

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
                    f"{type(pipe).__name__} has no {name}; the helper is for diffusers' pipelines with one"
                )
        if "progress_bar" in vars(pipe):
            raise ValueError("another helper is enabled on this pipeline; disable that first")
        if "cache_interval" in signature(type(pipe).__call__).parameters:
            raise ValueError(
                f"this {type(pipe).__name__} has the cache in its own loop; give cache_interval to its call instead"
            )
        stock = pipe.unet
        fork = _fork_with_offloading(stock)
        fork.check_branch(self._config.cache_branch_id)
        fork.register_forward_pre_hook(self._before_step, with_kwargs=True)
        fork.register_forward_hook(self._after_step)
        self._stock, self._stock_class, self._fork = stock, type(pipe), fork
        pipe.__class__ = self._one_call_at_a_time(type(pipe))  # Python looks `__call__` up nowhere else
        # Past the pipeline's own way, which would write the fork's class into the configuration that it saves.
        vars(pipe)["unet"] = fork
        vars(pipe)["progress_bar"] = self._progress_bar

    def disable(self) -> None:
        """Restores the pipeline as it was; without an `enable` before, does nothing."""
        if not self.enabled:
            return
        fork, stock = self._fork, self._stock
        if hasattr(fork, "_hf_hook"):  # every call of an offloaded pipeline puts new hooks on the U-Net it finds
            hook = fork._hf_hook
            remove_hook_from_module(fork)
            add_hook_to_module(stock, hook)
            for offload in getattr(self.pipe, "_all_hooks", ()):
                if offload.model is fork:
                    offload.model = stock
        for name in stock._modules:  # what was None before and is a module now, such as an IP-Adapter's projection
            vars(stock).pop(name, None)
        if getattr(self.pipe.unet, "_orig_mod", self.pipe.unet) is fork:  # else the user put another there
            vars(self.pipe)["unet"] = stock
        del vars(self.pipe)["progress_bar"]
        self.pipe.__class__ = self._stock_class
        self._stock = self._stock_class = self._fork = self._loop = None

    def __enter__(self) -> Self:
        self.enable()
        return self

    def __exit__(self, *_: Any) -> None:
        self.disable()

    def _one_call_at_a_time(self, cls: Any) -> Any:
        """The pipeline's class, but for a call that begins while another is under way."""
        under_way = threading.Lock()

        @functools.wraps(cls.__call__)
        def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            if pipe is not self.pipe:  # one that was made of this one's class meanwhile
                return cls.__call__(pipe, *args, **kwargs)
            if not under_way.acquire(blocking=False):
                raise self._called_already()
            try:
                return cls.__call__(pipe, *args, **kwargs)
            finally:
                under_way.release()

        names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
        return type(cls.__name__, (cls,), {**names, "__call__": call})

    def _called_already(self) -> RuntimeError:
        return RuntimeError(
            f"this {type(self.pipe).__name__} is being called already; use a pipeline of its own, with a scheduler of "
            "its own, for each thread and for a call in a callback"
        )

    def _progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """The pipeline's own, which is open exactly as long as a denoising loop runs."""
        bar = type(self.pipe).progress_bar(self.pipe, iterable, total)
        return self._around(bar, total or 0) if iterable is None else self._along(bar, len(iterable))

    @contextmanager
    def _around(self, bar: Any, num_steps: int) -> Iterator[Any]:
        if self._loop is not None:  # of a generator that is not closed yet, or by hand in another thread
            raise self._called_already()
        loop = Loop(num_steps)
        try:
            self._loop = loop
            with bar:
                yield bar
        finally:
            if self._loop is loop:
                self._loop = None

    def _along(self, bar: Any, num_steps: int) -> Iterator[Any]:
        with self._around(bar, num_steps):
            yield from bar

    def _new_cache(self, unet: Any, loop: Loop, sample: Any) -> CacheRun:
        """As in the forked pipelines: of second-order samplers, calls are counted."""
        order, num_calls = self.pipe.scheduler.order, loop.num_steps
        if order > 1:
            num_calls = getattr(self.pipe, "_num_timesteps", loop.num_steps * order)
        frames = sample.shape[1] if sample.ndim == 5 else 1  # of a video
        return CacheRun(self._config, unet, loop.num_steps, num_calls, order=order, frames=frames)

    def _before_step(
        self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        loop = self._loop_of_this_thread()
        if loop is None or self._called_by_another_pipeline():  # or by hand, outside of a pipeline's loop
            return None
        sample = args[0] if args else kwargs["sample"]
        if loop.cache is None:
            loop.cache, loop.timesteps = self._new_cache(unet, loop, sample), self.pipe.scheduler.timesteps
        self._check_scheduler(loop)
        if loop.position >= len(loop.timesteps):
            raise ValueError(
                f"{type(self.pipe).__name__} calls its U-Net more than once a step, which is not supported"
            )
        loop.step = loop.cache.plan(loop.position, len(sample))  # cache (1): equation 6, is this step full?
        loop.return_dict = kwargs.get("return_dict", True)
        return args, {**kwargs, **loop.step.unet_arguments, "return_dict": True}  # cache (2): equations 4 and 5

    def _after_step(self, _: Any, __: tuple[Any, ...], output: Any) -> Any:
        loop = self._loop_of_this_thread()
        if loop is None or loop.cache is None or loop.step is None:
            return output
        self._check_scheduler(loop)
        sample = loop.cache.take(loop.step, output)  # cache (3): the helper owns the feature, for this loop alone
        loop.position, loop.step = loop.position + 1, None
        return output if loop.return_dict else (sample,)

    def _loop_of_this_thread(self) -> Loop | None:
        loop = self._loop
        return loop if loop is not None and loop.thread == threading.get_ident() else None

    def _called_by_another_pipeline(self) -> bool:
        """Whether it is one that was built of this one's parts, in a callback of this one's loop.

        Nothing that a U-Net is given tells that, so the callers are looked at.
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
                "each pipeline that is called in a callback or another thread a scheduler of its own"
            )


def _fork_with_offloading(stock: Any) -> Any:
    """The fork of a U-Net, with accelerate's hook if that has one."""
    bare, hook = shallow_clone(stock), getattr(stock, "_hf_hook", None)
    if hook is None:
        return fork_of(bare)
    for name in ("forward", "_old_forward", "_hf_hook"):
        vars(bare).pop(name, None)
    return add_hook_to_module(fork_of(bare), hook)
