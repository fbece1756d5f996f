"""DeepCache as a plug-in: on an unmodified diffusers pipeline, switched on and off.

helper = DeepCacheSDHelper(pipe)
helper.set_params(cache_interval=3, cache_branch_id=0)
with helper:
    pipe(prompt)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, Self

from accelerate.hooks import add_hook_to_module, remove_hook_from_module

from .cache.config import CacheConfig
from .cache.run import CacheRun, Step
from .cached_unet import shallow_clone
from .forks import fork_of

SKIP_MODES = ("uniform", "non_uniform")


@dataclass
class Loop:
    """One denoising loop under way."""

    num_steps: int  # as the pipeline's progress bar counts them
    position: int = 0  # calls of the U-Net so far
    cache: CacheRun | None = None  # known from the first call on
    step: Step | None = None  # of the call under way
    return_dict: bool = True  # what that call asked for


class DeepCacheSDHelper:
    """Gives a pipeline's U-Net the forked `forward`, and keeps the feature from step to step of each denoising loop.

    While enabled, `pipe.unet` is the fork over the same weights, and a denoising loop begins where the pipeline opens
    its progress bar. Other pipelines that hold the same U-Net see nothing of it.
    """

    def __init__(self, pipe: Any = None) -> None:
        self.pipe: Any = pipe
        self._stock: Any = None  # the U-Net that `disable` puts back
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
        self._stock, self._fork = stock, fork
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
        self._stock = self._fork = self._loop = None

    def __enter__(self) -> Self:
        self.enable()
        return self

    def __exit__(self, *_: Any) -> None:
        self.disable()

    def _progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """The pipeline's own, which is open exactly as long as a denoising loop runs."""
        bar = type(self.pipe).progress_bar(self.pipe, iterable, total)
        return self._around(bar, total or 0) if iterable is None else self._along(bar, len(iterable))

    @contextmanager
    def _around(self, bar: Any, num_steps: int) -> Iterator[Any]:
        self._loop = Loop(num_steps)
        try:
            with bar:
                yield bar
        finally:
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
        loop = self._loop
        if loop is None:  # called by hand, outside of a pipeline's loop
            return None
        if loop.position >= len(self.pipe.scheduler.timesteps):
            raise ValueError(
                f"{type(self.pipe).__name__} calls its U-Net more than once a step, which is not supported"
            )
        sample = args[0] if args else kwargs["sample"]
        if loop.cache is None:
            loop.cache = self._new_cache(unet, loop, sample)
        loop.step = loop.cache.plan(loop.position, len(sample))  # cache (1): equation 6, is this step full?
        loop.return_dict = kwargs.get("return_dict", True)
        return args, {**kwargs, **loop.step.unet_arguments, "return_dict": True}  # cache (2): equations 4 and 5

    def _after_step(self, _: Any, __: tuple[Any, ...], output: Any) -> Any:
        loop = self._loop
        if loop is None or loop.cache is None or loop.step is None:
            return output
        sample = loop.cache.take(loop.step, output)  # cache (3): the helper owns the feature, for this loop alone
        loop.position += 1
        return output if loop.return_dict else (sample,)


def _fork_with_offloading(stock: Any) -> Any:
    """The fork of a U-Net, with accelerate's hook if that has one."""
    bare, hook = shallow_clone(stock), getattr(stock, "_hf_hook", None)
    if hook is None:
        return fork_of(bare)
    for name in ("forward", "_old_forward", "_hf_hook"):
        vars(bare).pop(name, None)
    return add_hook_to_module(fork_of(bare), hook)
