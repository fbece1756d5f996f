"""Image to image with Stable Diffusion 1.x and 2.x, with DeepCache in the denoising loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import diffusers
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_timesteps
from torch import Tensor

from unets.cache.config import CacheConfig, Extensions

from .base import CachedSDPipeline, batch_size_of, call_back, timesteps_to_device
from .pictures import rgb


class StableDiffusionImg2ImgPipeline(CachedSDPipeline, diffusers.StableDiffusionImg2ImgPipeline):
    """diffusers' `StableDiffusionImg2ImgPipeline`; loads the same directories and gives them the forked U-Net."""

    @functools.wraps(diffusers.StableDiffusionImg2ImgPipeline.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fork_unet()  # replaces the stock U-Net

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        timesteps: Any = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
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
    ) -> StableDiffusionPipelineOutput | tuple[Any, ...]:
        """Redraws `image` to each prompt. Shapes in the comments are Stable Diffusion 1.5's.

        The loop runs the last `strength` of the steps; the cache counts them from 0.

        Args:
            cache_interval, … cache_steps, and extensions beyond the paper: see `CacheConfig`.
            others: as in diffusers 0.24.0.

        Raises:
            ValueError: an argument out of range, by name.
        """
        # 0. Check.
        self.check_numbers(
            num_inference_steps=num_inference_steps, timesteps=timesteps, num_images_per_prompt=num_images_per_prompt,
            strength=strength, guidance_scale=guidance_scale, eta=eta,
        )  # fmt: skip
        config = CacheConfig(cache_interval, cache_branch_id, uniform, pow, center, cache_steps, **extensions)
        image = rgb(image)
        self.check_inputs(
            prompt, strength, callback_steps, negative_prompt, prompt_embeds, negative_prompt_embeds,
            callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        self._guidance_scale = guidance_scale
        self._clip_skip = clip_skip
        self._cross_attention_kwargs = cross_attention_kwargs
        num_prompts = batch_size_of(prompt, prompt_embeds)
        num_images = num_prompts * num_images_per_prompt
        device = self._execution_device
        self.check_noise(num_images, generator)

        # 1. The part of the steps that is run, and which of those are full.
        _, num_inference_steps = retrieve_timesteps(self.scheduler, num_inference_steps, "cpu", timesteps)
        timesteps, num_inference_steps = self.get_timesteps(num_inference_steps, strength, device)
        if num_inference_steps < 1:
            raise ValueError(f"strength {strength} leaves no step to run; raise it or num_inference_steps")
        cache = self.start_cache(config, num_inference_steps, len(timesteps), eta=eta)

        # 2. Prompt to text embeddings.
        prompt_embeds, negative_prompt_embeds, added_cond_kwargs = self.encode_conditions(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, ip_adapter_image, num_images_per_prompt,
            device,
        )  # fmt: skip

        # 3. Image to latents, with the noise of the first step that is run.
        image = self.image_processor.preprocess(image)  # (1 or B, 3, H, W)
        latents = self.prepare_latents(
            self.for_each_generator(image, generator), timesteps[:1].repeat(num_images), num_prompts,
            num_images_per_prompt, prompt_embeds.dtype, device, generator,
        )  # (B, 4, H/8, W/8)  # fmt: skip
        timestep_cond = self.embed_guidance_scale(latents)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)

        # 4. Denoise.
        num_warmup_steps = len(timesteps) - num_inference_steps * self.scheduler.order
        self._num_timesteps = len(timesteps)
        unet_timesteps = timesteps_to_device(timesteps, device)
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, t in enumerate(timesteps):
                # cache (1): equation 6, is this step full or does it retrieve? Which halves of guidance does it run?
                step = cache.plan(i, len(latents), guided=self.do_classifier_free_guidance)
                latent_input = self.scheduler.scale_model_input(step.expand(latents), t)  # (2B, 4, H/8, W/8)

                output = None
                if not step.skips:  # a skipped step needs no U-Net
                    output = self.unet(
                        latent_input,
                        unet_timesteps[i],
                        encoder_hidden_states=step.select(prompt_embeds),
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
                latents = self.scheduler.step(noise, t, latents, **extra_step_kwargs, return_dict=False)[0]

                latents, prompt_embeds, negative_prompt_embeds = call_back(
                    callback_on_step_end, self, i, t, callback_on_step_end_tensor_inputs,
                    latents=latents, prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
                )  # fmt: skip
                self.report_step(bar, i, t, num_warmup_steps, latents, callback, callback_steps)
        del step, cache  # the decoder needs the memory

        # 5. Latents to image.
        return self.finish(latents, output_type, return_dict, prompt_embeds.dtype, generator)
