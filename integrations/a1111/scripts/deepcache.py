"""DeepCache for AUTOMATIC1111's web UI: a panel under the settings, and the U-Net's forward during each sampling."""

from __future__ import annotations

from typing import Any

import gradio as gr
from DeepCache.cache.config import CacheConfig
from DeepCache.ldm import CachedForward
from modules import script_callbacks, scripts, sd_unet

# The number of calls depends on the sampler, so the schedule is made for more calls than any run has.
MOST_CALLS = 2000


class DeepCacheScript(scripts.Script):  # type: ignore[misc]
    """The panel. Enabled, most steps run only the shallow layers."""

    def __init__(self) -> None:
        self._cached: CachedForward | None = None
        self._step = 0
        script_callbacks.on_cfg_denoiser(self._before_step)

    def title(self) -> str:
        return "DeepCache"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        with gr.Accordion("DeepCache", open=False):
            enabled = gr.Checkbox(False, label="Enable")
            interval = gr.Slider(1, 20, 3, step=1, label="Interval N: every N-th step is full")
            branch = gr.Slider(0, 11, 0, step=1, label="Branch: 0 is fastest, deeper is more accurate")
            forecast = gr.Slider(
                0.0, 1.0, 0.0, step=0.05, label="Forecast: 0 copies the feature, 1 extrapolates linearly"
            )
        return [enabled, interval, branch, forecast]

    def process(self, p: Any, *_: Any) -> None:
        self._end()  # in case an earlier picture failed

    def process_before_every_sampling(
        self, p: Any, enabled: bool, interval: float, branch: float, forecast: float, **_: Any
    ) -> None:
        """Starts the cache. The second pass of a high-resolution fix is a run of its own.

        Raises:
            ValueError: another extension has replaced the U-Net's forward, or the U-Net is not ldm-style. The web UI
                shows it, and makes the picture without the cache.
        """
        self._end()
        if not enabled:
            return
        if sd_unet.current_unet is not None:
            raise ValueError("another U-Net is selected in the settings; DeepCache needs the checkpoint's own")
        unet = p.sd_model.model.diffusion_model
        config = CacheConfig(int(interval), int(branch), forecast=forecast)
        self._step = 0
        self._cached = CachedForward(unet, config, MOST_CALLS, position=lambda: self._step)
        self._cached.__enter__()
        p.extra_generation_params["DeepCache"] = config.name()

    def postprocess_batch(self, p: Any, *_: Any, **__: Any) -> None:
        self._end()

    def postprocess(self, p: Any, processed: Any, *_: Any) -> None:
        self._end()

    def _before_step(self, params: Any) -> None:
        """Notes the step: it can be several calls of the U-Net, for prompts and pictures one after the other."""
        self._step = params.denoiser.step

    def _end(self) -> None:
        cached, self._cached = self._cached, None
        if cached is not None:
            cached.__exit__()
