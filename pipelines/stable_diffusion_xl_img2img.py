"""Image to image with SDXL, and its refiner, with DeepCache in the denoising loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import diffusers
import torch
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    rescale_noise_cfg,
    retrieve_timesteps,
)
from torch import Tensor

from unets.cache.config import CacheConfig, Extensions

from .base import batch_size_of, call_back, timesteps_to_device
from .base_xl import CachedXLPipeline
from .pictures import rgb


class StableDiffusionXLImg2ImgPipeline(CachedXLPipeline, diffusers.StableDiffusionXLImg2ImgPipeline):
    """diffusers' `StableDiffusionXLImg2ImgPipeline`; with `denoising_start` it continues where a base model stopped."""

    @functools.wraps(diffusers.StableDiffusionXLImg2ImgPipeline.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fork_unet()  # replaces the stock U-Net

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        image: Any = None,
        strength: float = 0.3,
        num_inference_steps: int = 50,
        timesteps: Any = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 5.0,
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
        """Redraws images, or continues from latents. Shapes in the comments are SDXL's.

        Args:
            cache_interval, … cache_steps, and extensions beyond the paper: see `CacheConfig`.
            others: as in diffusers 0.24.0.

        Raises:
            ValueError: an argument out of range, by name.
        """
        # 0. Check.
        self.check_numbers(
            num_inference_steps=num_inference_steps, timesteps=timesteps, num_images_per_prompt=num_images_per_prompt,
            strength=strength, guidance_scale=guidance_scale, guidance_rescale=guidance_rescale, eta=eta,
            denoising_start=denoising_start, denoising_end=denoising_end,
        )  # fmt: skip
        config = CacheConfig(cache_interval, cache_branch_id, uniform, pow, center, cache_steps, **extensions)
        image = rgb(image)
        self.check_inputs(
            prompt, prompt_2, strength, num_inference_steps, callback_steps, negative_prompt, negative_prompt_2,
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
        num_prompts = batch_size_of(prompt, prompt_embeds)
        batch_size = num_prompts * num_images_per_prompt
        device = self._execution_device
        self.check_noise(batch_size, generator)  # latents are not used, as in diffusers 0.24.0

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

        # 3. Image to latents, with the noise of the first step that is run unless the image is latents of that step.
        latents = self.prepare_latents(
            self.for_each_generator(self.image_processor.preprocess(image), generator), noised_to.repeat(batch_size),
            num_prompts, num_images_per_prompt, dtype, device, generator, denoising_start is None,
        )  # (B, 4, H/8, W/8)  # fmt: skip
        timestep_cond = self.embed_guidance_scale(latents)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)

        # 4. Micro-conditioning: sizes and crop, for the refiner a score.
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

                latents, *rest = call_back(
                    callback_on_step_end, self, i, t, callback_on_step_end_tensor_inputs,
                    latents=latents, **conditions,
                )  # fmt: skip
                conditions = dict(zip(conditions, rest, strict=True))
                self.report_step(bar, i, t, num_warmup_steps, latents, callback, callback_steps)
        del step, cache  # the decoder needs the memory

        # 6. Latents to image.
        return self.finish(latents, output_type, return_dict)
