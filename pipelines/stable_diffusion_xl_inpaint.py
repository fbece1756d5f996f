"""Inpainting with SDXL, with DeepCache in the denoising loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import diffusers
import torch
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    rescale_noise_cfg,
    retrieve_timesteps,
)
from torch import Tensor

from unets.cache.config import CacheConfig, Extensions

from .base import batch_size_of, call_back, noised, timesteps_to_device
from .base_xl import CachedXLPipeline
from .pictures import masks, rgb


class StableDiffusionXLInpaintPipeline(CachedXLPipeline, diffusers.StableDiffusionXLInpaintPipeline):
    """diffusers' `StableDiffusionXLInpaintPipeline`, for U-Nets that see the mask (9 channels) or do not (4)."""

    @functools.wraps(diffusers.StableDiffusionXLInpaintPipeline.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fork_unet()  # replaces the stock U-Net

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 0.9999,
        num_inference_steps: int = 50,
        timesteps: Any = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] = (0, 0),
        negative_target_size: tuple[int, int] | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
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
        **extensions: Unpack[Extensions],
    ) -> StableDiffusionXLPipelineOutput | tuple[Any, ...]:
        """Redraws what the mask covers. Shapes in the comments are SDXL's.

        Args:
            cache_interval, … cache_steps, and extensions beyond the paper: see `CacheConfig`.
            others: as in diffusers 0.24.0.

        Raises:
            ValueError: an argument out of range, by name.
        """
        # 0. Check.
        self.check_numbers(
            height=height, width=width, num_inference_steps=num_inference_steps, timesteps=timesteps,
            num_images_per_prompt=num_images_per_prompt, strength=strength, guidance_scale=guidance_scale, eta=eta,
            guidance_rescale=guidance_rescale, denoising_start=denoising_start, denoising_end=denoising_end,
        )  # fmt: skip
        config = CacheConfig(cache_interval, cache_branch_id, uniform, pow, center, cache_steps, **extensions)
        image, mask_image = rgb(image), masks(mask_image)
        height = height or self.unet.config.sample_size * self.vae_scale_factor
        width = width or self.unet.config.sample_size * self.vae_scale_factor
        self.check_inputs(
            prompt, prompt_2, height, width, strength, callback_steps, negative_prompt, negative_prompt_2,
            prompt_embeds, negative_prompt_embeds, callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        if denoising_start is not None and denoising_end is not None and denoising_start >= denoising_end:
            raise ValueError(f"denoising_start {denoising_start} must be below denoising_end {denoising_end}")
        self._guidance_scale = guidance_scale
        self._guidance_rescale = guidance_rescale
        self._clip_skip = clip_skip
        self._cross_attention_kwargs = cross_attention_kwargs
        self._denoising_end = denoising_end
        self._denoising_start = denoising_start
        batch_size = batch_size_of(prompt, prompt_embeds) * num_images_per_prompt
        device = self._execution_device
        channels = self.vae.config.latent_channels
        shape = (batch_size, channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        self.check_noise(batch_size, generator, latents, shape)
        sees_mask = self.unet.config.in_channels == 9
        if self.unet.config.in_channels not in (4, 9):
            raise ValueError(f"this U-Net has {self.unet.config.in_channels} input channels; inpainting needs 4 or 9")

        # 1. The part of the steps that is run, and which of those are full.
        _, num_inference_steps = retrieve_timesteps(self.scheduler, num_inference_steps, "cpu", timesteps)
        timesteps, num_inference_steps = self.get_timesteps(
            num_inference_steps, strength, device, denoising_start=denoising_start
        )
        if num_inference_steps < 1:
            raise ValueError(f"strength {strength} leaves no step to run; raise it or num_inference_steps")
        noised_to = timesteps[:1]
        num_warmup_steps = max(0, len(timesteps) - num_inference_steps * self.scheduler.order)
        timesteps, num_inference_steps = self.until(timesteps, num_inference_steps, denoising_end)
        cache = self.start_cache(config, num_inference_steps, len(timesteps), eta=eta)

        # 2. Prompt to text embeddings.
        conditions, added = self.encode_conditions(
            ip_adapter_image, num_images_per_prompt, device,
            prompt=prompt, prompt_2=prompt_2, negative_prompt=negative_prompt, negative_prompt_2=negative_prompt_2,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds, negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
        )  # fmt: skip
        dtype = conditions["prompt_embeds"].dtype

        # 3. Image and mask to latents, with the noise of the first step that is run.
        init_image = self.image_processor.preprocess(image, height=height, width=width).float()  # (1 or B, 3, H, W)
        outputs = self.prepare_latents(
            batch_size, channels, height, width, dtype, device, generator, latents,
            image=init_image,
            timestep=noised_to.repeat(batch_size),
            is_strength_max=strength == 1.0,
            add_noise=denoising_start is None,
            return_noise=True,
            return_image_latents=not sees_mask,
        )  # fmt: skip
        latents, start_noise, *image_latents = outputs  # (B, 4, H/8, W/8) each
        mask = self.mask_processor.preprocess(mask_image, height=height, width=width)  # (1 or B, 1, H, W)
        masked_image = masked_image_latents
        if masked_image is None and init_image.shape[1] != 4:  # latents can't be masked
            masked_image = init_image * (mask < 0.5)
        mask, masked_image_latents = self.prepare_mask_latents(
            mask, masked_image, batch_size, height, width, dtype, device, generator, self.do_classifier_free_guidance
        )  # (2B, 1, H/8, W/8), (2B, 4, H/8, W/8)
        timestep_cond = self.embed_guidance_scale(latents)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)

        # 4. Micro-conditioning: sizes and crop.
        conditions |= self.scored_time_ids(
            latents, conditions["add_text_embeds"], original_size, crops_coords_top_left, target_size, aesthetic_score,
            negative_aesthetic_score, negative_original_size, negative_crops_coords_top_left, negative_target_size,
        )  # fmt: skip

        # 5. Denoise.
        self._num_timesteps = len(timesteps)
        unet_timesteps = timesteps_to_device(timesteps, device)
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, t in enumerate(timesteps):
                # cache (1): equation 6, is this step full or does it retrieve? Which halves of guidance does it run?
                step = cache.plan(i, len(latents), guided=self.do_classifier_free_guidance)
                latent_input = self.scheduler.scale_model_input(step.expand(latents), t)  # (2B, 4, H/8, W/8)
                if sees_mask:
                    seen = (step.select(part) for part in (mask, masked_image_latents))
                    latent_input = torch.cat([latent_input, *seen], dim=1)  # (2B, 9, H/8, W/8)

                added_cond_kwargs = {
                    "text_embeds": conditions["add_text_embeds"],
                    "time_ids": conditions["add_time_ids"],
                    **added,
                }
                output = None
                if not step.skips:  # a skipped step needs no U-Net
                    output = self.unet(
                        latent_input,
                        unet_timesteps[i],
                        encoder_hidden_states=step.select(conditions["prompt_embeds"]),
                        timestep_cond=timestep_cond,
                        cross_attention_kwargs=self.cross_attention_kwargs,
                        added_cond_kwargs=step.select(added_cond_kwargs),
                        **step.unet_arguments,  # cache (2): equations 4 and 5
                    )
                noise = cache.take(step, output)  # cache (3): caches the feature for later steps
                del output  # or its feature would stay in memory through the next full step

                if self.do_classifier_free_guidance:
                    unconditional, conditional = noise.chunk(2)  # (B, 4, H/8, W/8) each
                    noise = unconditional + self.guidance_scale * (conditional - unconditional)
                    if self.guidance_rescale > 0:
                        noise = rescale_noise_cfg(noise, conditional, guidance_rescale=self.guidance_rescale)
                latents = self.scheduler.step(noise, t, latents, **extra_step_kwargs, return_dict=False)[0]
                if not sees_mask:
                    outside = image_latents[0]
                    if i < len(timesteps) - 1:
                        outside = noised(self.scheduler, outside, start_noise, timesteps[i + 1 : i + 2])
                    inside = mask[: len(latents)]  # (B, 1, H/8, W/8)
                    latents = (1 - inside) * outside + inside * latents

                latents, mask, masked_image_latents, *rest = call_back(
                    callback_on_step_end, self, i, t, callback_on_step_end_tensor_inputs,
                    latents=latents, mask=mask, masked_image_latents=masked_image_latents, **conditions,
                )  # fmt: skip
                conditions = dict(zip(conditions, rest, strict=True))
                self.report_step(bar, i, t, num_warmup_steps, latents, callback, callback_steps)
        del step, cache  # the decoder needs the memory

        # 6. Latents to image.
        return self.finish(latents, output_type, return_dict)
