"""The cache of one sampling in ComfyUI: where it begins and ends, at which step a call is, and of what it is.

ComfyUI batches conditions as memory allows, leaves some out of parts of the sampling, and lets samplers call the model
where they like. So the position comes from sigmas, and every condition has features of its own.
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

ROUNDING = 1e-4  # relative, of sigmas that a sampler computes back from something else


class CachedSampling:
    """What a model with DeepCache is wrapped in. It holds features while a sampling runs, and none between two."""

    def __init__(self, config: CacheConfig, unet: Any, start_percent: float, end_percent: float) -> None:
        SplitRun(config, LdmUNet(unet), 1)  # refuses what this U-Net does not have
        self._config = config
        self._percent = (start_percent, end_percent)
        self._limits: tuple[float, float] | None = None  # sigmas at which the cache starts and ends; None: no sampling
        self._run: _Run | None = None

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around one whole sampling. Within another, as in a sampler's callback, that other goes on afterwards."""
        others = self._limits, self._run
        sampling = executor.class_obj.model_patcher.get_model_object("model_sampling")
        start, end = (float(sampling.percent_to_sigma(percent)) for percent in self._percent)
        self._limits, self._run = (start, end), None
        try:
            return executor(*args, **kwargs)
        finally:
            self._limits, self._run = others

    def diffusion_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around one call of the U-Net: further wrappers run as ever, and at last our forward in its own's place."""
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
    """One sampling's sigmas, and the caches of its conditions; None if no step is between `start` and `end`."""

    def __init__(self, config: CacheConfig, unet: Any, sigmas: Tensor, start: float, end: float) -> None:
        self.unet, self.sigmas = unet, sigmas
        self._sigmas: list[float] = sigmas.tolist()
        self._end = end
        active = [i for i, sigma in enumerate(self._sigmas[:-1]) if end <= sigma <= start]
        self._first, steps = (active[0] if active else 0), len(active)
        # A sampler of second order can call the model at the last sigma too.
        self.cache = SplitRun(config, LdmUNet(unet), steps, steps + 1) if active else None
        self._last = self._first + steps

    def position(self, sigma: float) -> int | None:
        """That of the last sigma of the sampling which is not below, counted from where the cache starts.

        So calls between two steps are of the earlier one. None where every step is to be full.
        """
        i = max(0, sum(s >= sigma * (1 - ROUNDING) for s in self._sigmas) - 1)
        return i - self._first if self._first <= i <= self._last and self._sigmas[i] >= self._end else None


def _keys(x: Tensor, control: Any, options: dict[str, Any]) -> Sequence[Hashable]:
    """For each condition of the batch, what must be the same for a feature to be used.

    Which lists of residuals a ControlNet gives is part of it: one that begins or ends makes a full step.
    """
    conditions = list(options.get("cond_or_uncond") or [0])
    uuids = list(options.get("uuids") or [None] * len(conditions))
    window = getattr(options.get("context_window"), "index_list", ())  # of a video that is made in parts
    names = (name for name, residuals in (control or {}).items() if any(r is not None for r in residuals))
    same = (len(x) // len(conditions), *x.shape[1:], x.dtype, tuple(window), *sorted(names))
    return [(*one, *same) for one in zip(conditions, uuids, strict=True)]
