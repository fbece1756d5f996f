"""Text to image with Stable Diffusion and ControlNet, with DeepCache in the denoising loop.

On a retrieve step at branch m the U-Net only uses the residuals of skips 0 … m, so the ControlNet stops there: its
residuals are up to date, at a fraction of its cost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import diffusers
import torch
from diffusers.pipelines.controlnet import MultiControlNetModel as StockMultiControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet import retrieve_timesteps
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from torch import Tensor

from unets.cache.config import CacheConfig, FeatureExtensions
from unets.controlnet import ControlNetModel, MultiControlNetModel

from .base import CachedSDPipeline, batch_size_of, call_back, timesteps_to_device
from .pictures import rgb


class StableDiffusionControlNetPipeline(CachedSDPipeline, diffusers.StableDiffusionControlNetPipeline):
    """diffusers' `StableDiffusionControlNetPipeline` with forked U-Net and ControlNets; one ControlNet or several."""

    controlnet: Any

    @functools.wraps(diffusers.StableDiffusionControlNetPipeline.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fork_unet()  # replaces the stock U-Net
        self.fork_controlnet()  # replaces the stock ControlNets

    def fork_controlnet(self) -> None:
        """Replaces stock ControlNets with forks that share their weights; the configuration keeps the stock names."""
        if isinstance(self.controlnet, StockMultiControlNetModel):
            if not isinstance(self.controlnet, MultiControlNetModel):  # else it would lose its hooks
                self.controlnet = MultiControlNetModel([ControlNetModel.sharing(net) for net in self.controlnet.nets])
            self.register_to_config(controlnet=("controlnet", "MultiControlNetModel"))
        elif isinstance(self.controlnet, diffusers.ControlNetModel):
            self.controlnet = ControlNetModel.sharing(self.controlnet)
            self.register_to_config(controlnet=("diffusers", "ControlNetModel"))

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As the parent's, also if the ControlNet was replaced meanwhile."""
        self.fork_controlnet()
        super().save_pretrained(*args, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Any = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        controlnet_conditioning_scale: float | list[float] = 1.0,
        guess_mode: bool = False,
        control_guidance_start: float | list[float] = 0.0,
        control_guidance_end: float | list[float] = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
        callback_steps: int | None = None,
        cache_interval: int = 1,
        cache_branch_id: int = 0,
        uniform: bool = True,
        pow: float | None = None,
        center: int | None = None,
        cache_steps: Sequence[int] | None = None,
        **extensions: Unpack[FeatureExtensions],
    ) -> StableDiffusionPipelineOutput | tuple[Any, ...]:
        """Makes images that follow `image`, such as edges. Shapes in the comments are Stable Diffusion 1.5's.

        Args:
            image: the conditioning image; with several ControlNets a list with one for each.
            cache_interval, … cache_steps, and extensions beyond the paper: see `CacheConfig`.
            others: as in diffusers 0.24.0.

        Raises:
            ValueError: an argument out of range, by name.
        """
        # 0. Check. Arguments of each ControlNet become lists.
        self.check_numbers(
            height=height, width=width, num_inference_steps=num_inference_steps, timesteps=timesteps,
            num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale, eta=eta,
            controlnet_conditioning_scale=controlnet_conditioning_scale, control_guidance_start=control_guidance_start,
            control_guidance_end=control_guidance_end,
        )  # fmt: skip
        config = CacheConfig(cache_interval, cache_branch_id, uniform, pow, center, cache_steps, **extensions)
        image = rgb(image)
        config.refuse("reuse_guidance", "guidance_stop")
        self.fork_controlnet()  # it may have been replaced meanwhile
        nets = self.controlnet.nets if isinstance(self.controlnet, MultiControlNetModel) else [self.controlnet]
        starts, ends, scales = (
            value if isinstance(value, list) else [value] * len(nets)
            for value in (control_guidance_start, control_guidance_end, controlnet_conditioning_scale)
        )
        self.check_inputs(
            prompt, image, callback_steps, negative_prompt, prompt_embeds, negative_prompt_embeds,
            controlnet_conditioning_scale, starts, ends, callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        self._guidance_scale = guidance_scale
        self._clip_skip = clip_skip
        self._cross_attention_kwargs = cross_attention_kwargs
        num_images = batch_size_of(prompt, prompt_embeds) * num_images_per_prompt
        device = self._execution_device
        channels = self.unet.config.in_channels
        self.check_noise(num_images, generator, latents, (num_images, channels, None, None))
        guess_mode = guess_mode or nets[0].config.global_pool_conditions

        # 1. Which steps are full.
        timesteps, num_inference_steps = retrieve_timesteps(self.scheduler, num_inference_steps, "cpu", timesteps)
        cache = self.start_cache(config, num_inference_steps, len(timesteps), eta=eta)

        # 2. Prompt to text embeddings.
        prompt_embeds, negative_prompt_embeds, added_cond_kwargs = self.encode_conditions(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, ip_adapter_image, num_images_per_prompt,
            device,
        )  # fmt: skip

        # 3. Conditioning images.
        hints_given: Any = image if len(nets) > 1 else [image]
        hints = [
            self.prepare_image(
                hint, width, height, num_images, num_images_per_prompt, device, net.dtype,
                do_classifier_free_guidance=self.do_classifier_free_guidance, guess_mode=guess_mode,
            )  # (2B, 3, H, W)
            for hint, net in zip(hints_given, nets, strict=True)
        ]  # fmt: skip
        height, width = hints[0].shape[-2:]

        # 4. Noise to start from.
        shape = (num_images, channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        self.check_noise(num_images, generator, latents, shape)
        latents = self.prepare_latents(
            num_images, channels, height, width, prompt_embeds.dtype, device, generator, latents
        )  # (B, 4, H/8, W/8)
        timestep_cond = self.embed_guidance_scale(latents)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)

        # 5. Denoise.
        num_warmup_steps = len(timesteps) - num_inference_steps * self.scheduler.order
        self._num_timesteps = len(timesteps)
        unet_timesteps = timesteps_to_device(timesteps, device)
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, t in enumerate(timesteps):
                # cache (1): equation 6, is this step full or does it retrieve?
                step = cache.plan(i, len(latents), guided=self.do_classifier_free_guidance)
                latent_input = self.scheduler.scale_model_input(step.expand(latents), t)  # (2B, 4, H/8, W/8)

                output = None
                if not step.skips:  # a skipped step needs no U-Net
                    now, later = i / len(timesteps), (i + 1) / len(timesteps)
                    strengths = [s * (a <= now and later <= b) for s, a, b in zip(scales, starts, ends, strict=True)]
                    # cache (2): a retrieve step uses the residuals of skips 0 … m
                    residuals, middle = self.run_controlnets(
                        hints, strengths, latent_input, unet_timesteps[i], prompt_embeds, guess_mode,
                        step.retrieve_branch,
                    )  # fmt: skip
                    output = self.unet(
                        latent_input,
                        unet_timesteps[i],
                        encoder_hidden_states=prompt_embeds,
                        timestep_cond=timestep_cond,
                        cross_attention_kwargs=self.cross_attention_kwargs,
                        added_cond_kwargs=added_cond_kwargs,
                        down_block_additional_residuals=residuals,
                        mid_block_additional_residual=middle,
                        **step.unet_arguments,  # cache (3): equations 4 and 5
                    )
                noise = cache.take(step, output)  # cache (4): caches the feature for later steps
                del output  # or its feature would stay in memory through the next full step

                if self.do_classifier_free_guidance:
                    unconditional, conditional = noise.chunk(2)  # (B, 4, H/8, W/8) each
                    noise = unconditional + self.guidance_scale * (conditional - unconditional)
                latents = self.scheduler.step(noise, t, latents, **extra_step_kwargs, return_dict=False)[0]

                latents, prompt_embeds, negative_prompt_embeds = call_back(
                    callback_on_step_end, self, i, t, callback_on_step_end_tensor_inputs,
                    latents=latents, prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
                )  # fmt: skip
                self.report_step(bar, i, t, num_warmup_steps, latents, callback, callback_steps)
        del step, cache  # the decoder needs the memory

        # 6. Latents to image.
        return self.finish(latents, output_type, return_dict, prompt_embeds.dtype, generator)

    def run_controlnets(
        self,
        hints: list[Tensor],
        strengths: list[float],
        latent_input: Tensor,
        t: Tensor,
        prompt_embeds: Tensor,
        guess_mode: bool,
        cache_branch_id: int | None,
    ) -> tuple[list[Tensor], Tensor | None]:
        """The ControlNet's residuals: for skips 0 to the branch if it is given, else for all skips and the middle.

        In guess mode the half of the batch without a prompt is not controlled.
        """
        guess_half = guess_mode and self.do_classifier_free_guidance
        if guess_half:
            latent_input, prompt_embeds = latent_input.chunk(2)[1], prompt_embeds.chunk(2)[1]
        several = isinstance(self.controlnet, MultiControlNetModel)
        residuals, middle = self.controlnet(
            latent_input,
            t,
            encoder_hidden_states=prompt_embeds,
            controlnet_cond=hints if several else hints[0],
            conditioning_scale=strengths if several else strengths[0],
            guess_mode=guess_mode,
            return_dict=False,
            cache_branch_id=cache_branch_id,
        )
        if guess_half:
            residuals = [torch.cat([torch.zeros_like(r), r]) for r in residuals]
            middle = middle if middle is None else torch.cat([torch.zeros_like(middle), middle])
        return residuals, middle
