"""The cache of one sampling run in ComfyUI: where it begins and ends, and the step and conditions of each call.

ComfyUI batches conditions as memory allows, leaves some out of parts of the run, and its samplers call the model at
any sigma. So the position comes from sigmas, and every condition has its own features.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import Any

from DeepCache.cache.config import CacheConfig
from DeepCache.cache.split_run import SplitRun
from DeepCache.ldm import LdmUNet, run_cached
from torch import Tensor

from .unet_call import ComfyCall

ROUNDING = 1e-4  # relative error of sigmas that a sampler has recomputed


class CachedSampling:
    """The wrappers of a model with DeepCache. Features are only held during a sampling run."""

    def __init__(self, config: CacheConfig, unet: Any, start_percent: float, end_percent: float) -> None:
        SplitRun(config, LdmUNet(unet), 1)  # raises for what this U-Net does not support
        self._config = config
        self._percent = (start_percent, end_percent)
        self._limits: tuple[float, float] | None = None  # sigmas at which the cache starts and ends; None: not sampling
        self._run: _Run | None = None

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Wraps one sampling run. A nested run, as in a sampler's callback, restores the outer one when it ends."""
        outer = self._limits, self._run
        sampling = executor.class_obj.model_patcher.get_model_object("model_sampling")
        start, end = (float(sampling.percent_to_sigma(percent)) for percent in self._percent)
        self._limits, self._run = (start, end), None
        try:
            return executor(*args, **kwargs)
        finally:
            self._limits, self._run = outer

    def diffusion_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Wraps one call of the U-Net: the other wrappers run as usual, and finally our forward instead of its own."""
        forward = functools.partial(self._forward, executor.class_obj, executor.original)
        inner = type(executor).new_class_executor(forward, executor.class_obj, executor.wrappers, executor.idx + 1)
        return inner.execute(*args, **kwargs)

    def _forward(
        self, unet: Any, original: Any, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None,
        control: Any = None, transformer_options: Any = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        options = {} if transformer_options is None else transformer_options
        position = None
        if self._limits is not None and {"sigmas", "sample_sigmas"} <= options.keys():
            sigmas = options["sample_sigmas"]
            if self._run is None or self._run.sigmas is not sigmas or self._run.unet is not unet:
                self._run = _Run(self._config, unet, sigmas, *self._limits)
            position = self._run.position(float(options["sigmas"].max()))
        if position is None or self._run is None or self._run.cache is None:
            return original(x, timesteps, context, y, control, options, **kwargs)
        call = ComfyCall(unet, x, timesteps, context, y, control, options, kwargs)
        return run_cached(self._run.cache, call, position, _keys(x, control, options))


class _Run:
    """One run's sigmas, and the caches of its conditions; no caches if no step is between `start` and `end`."""

    def __init__(self, config: CacheConfig, unet: Any, sigmas: Tensor, start: float, end: float) -> None:
        self.unet, self.sigmas = unet, sigmas
        self._sigmas: list[float] = sigmas.tolist()
        self._end = end
        active = [i for i, sigma in enumerate(self._sigmas[:-1]) if end <= sigma <= start]
        self._first, steps = (active[0] if active else 0), len(active)
        # A second-order sampler can also call the model at the last sigma.
        self.cache = SplitRun(config, LdmUNet(unet), steps, steps + 1) if active else None
        self._last = self._first + steps

    def position(self, sigma: float) -> int | None:
        """The position of the last step whose sigma is not below this one, counted from where the cache starts.

        So a call between two steps belongs to the earlier one. None outside the cached part, where all steps are full.
        """
        i = max(0, sum(s >= sigma * (1 - ROUNDING) for s in self._sigmas) - 1)
        return i - self._first if self._first <= i <= self._last and self._sigmas[i] >= self._end else None


def _keys(x: Tensor, control: Any, options: dict[str, Any]) -> Sequence[Hashable]:
    """A key for each condition of the batch: a feature is only reused for an equal key.

    The key contains which lists of residuals a ControlNet gives, so a step where one begins or ends is full.
    """
    conditions = list(options.get("cond_or_uncond") or [0])
    uuids = list(options.get("uuids") or [None] * len(conditions))
    window = getattr(options.get("context_window"), "index_list", ())  # of a video that is sampled in parts
    names = (name for name, residuals in (control or {}).items() if any(r is not None for r in residuals))
    same = (len(x) // len(conditions), *x.shape[1:], x.dtype, tuple(window), *sorted(names))
    return [(*one, *same) for one in zip(conditions, uuids, strict=True)]
