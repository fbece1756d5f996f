"""Inpainting with Stable Diffusion 1.x and 2.x, with DeepCache in the denoising loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import diffusers
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import retrieve_timesteps
from torch import Tensor

from unets.cache.config import CacheConfig, Extensions

from .base import CachedSDPipeline, batch_size_of, call_back, noised, timesteps_to_device
from .pictures import masks, rgb


class StableDiffusionInpaintPipeline(CachedSDPipeline, diffusers.StableDiffusionInpaintPipeline):
    """diffusers' `StableDiffusionInpaintPipeline`; loads the same directories and gives them the forked U-Net."""

    @functools.wraps(diffusers.StableDiffusionInpaintPipeline.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fork_unet()  # replaces the stock U-Net

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
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
        """Redraws `image` to each prompt where `mask_image` is white. Shapes in the comments are SD 1.5's.

        A U-Net with 9 input channels sees mask and masked image at every step; with 4 channels, the area outside the
        mask is restored after every step. The loop runs the last `strength` of the steps; the cache counts from 0.

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
        )  # fmt: skip
        config = CacheConfig(cache_interval, cache_branch_id, uniform, pow, center, cache_steps, **extensions)
        image, mask_image = rgb(image), masks(mask_image)
        height = height or self.unet.config.sample_size * self.vae_scale_factor
        width = width or self.unet.config.sample_size * self.vae_scale_factor
        self.check_inputs(
            prompt, height, width, strength, callback_steps, negative_prompt, prompt_embeds, negative_prompt_embeds,
            callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        self._guidance_scale = guidance_scale
        self._clip_skip = clip_skip
        self._cross_attention_kwargs = cross_attention_kwargs
        num_prompts = batch_size_of(prompt, prompt_embeds)
        num_images = num_prompts * num_images_per_prompt
        device = self._execution_device
        channels = self.vae.config.latent_channels
        shape = (num_images, channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        self.check_noise(num_images, generator, latents, shape)

        sees_mask = self.unet.config.in_channels == 9
        if self.unet.config.in_channels not in (4, 9):
            raise ValueError(f"this U-Net has {self.unet.config.in_channels} input channels; inpainting needs 4 or 9")

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

        # 3. Image and mask to latents, with the noise of the first step that is run.
        init_image = self.image_processor.preprocess(image, height=height, width=width).float()  # (1 or B, 3, H, W)
        outputs = self.prepare_latents(
            num_images, channels, height, width, prompt_embeds.dtype, device, generator, latents,
            image=init_image,
            timestep=timesteps[:1].repeat(num_images),
            is_strength_max=strength == 1.0,
            return_noise=True,
            return_image_latents=not sees_mask,
        )  # fmt: skip
        latents, start_noise, *image_latents = outputs  # (B, 4, H/8, W/8) each
        mask_condition = self.mask_processor.preprocess(mask_image, height=height, width=width)  # (1 or B, 1, H, W)
        masked_image = init_image * (mask_condition < 0.5) if masked_image_latents is None else masked_image_latents
        mask, masked_image_latents = self.prepare_mask_latents(
            mask_condition, masked_image, num_images, height, width, prompt_embeds.dtype, device, generator,
            self.do_classifier_free_guidance,
        )  # (2B, 1, H/8, W/8), (2B, 4, H/8, W/8)  # fmt: skip
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
                if sees_mask:
                    seen = (step.select(part) for part in (mask, masked_image_latents))
                    latent_input = torch.cat([latent_input, *seen], dim=1)  # (2B, 9, H/8, W/8)

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
                if not sees_mask:
                    outside = image_latents[0]
                    if i < len(timesteps) - 1:
                        outside = noised(self.scheduler, outside, start_noise, timesteps[i + 1 : i + 2])
                    inside = mask[: len(latents)]  # (B, 1, H/8, W/8)
                    latents = (1 - inside) * outside + inside * latents

                latents, prompt_embeds, negative_prompt_embeds, mask, masked_image_latents = call_back(
                    callback_on_step_end, self, i, t, callback_on_step_end_tensor_inputs,
                    latents=latents, prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
                    mask=mask, masked_image_latents=masked_image_latents,
                )  # fmt: skip
                self.report_step(bar, i, t, num_warmup_steps, latents, callback, callback_steps)
        del step, cache  # the decoder needs the memory

        # 5. Latents to image. An asymmetric autoencoder also takes the image and the mask.
        decoder_arguments = {}
        if isinstance(self.vae, diffusers.AsymmetricAutoencoderKL) and output_type != "latent":
            kind = {"device": device, "dtype": masked_image_latents.dtype}
            decoder_arguments = {"image": init_image.to(**kind), "mask": mask_condition.to(**kind)}
        return self.finish(latents, output_type, return_dict, prompt_embeds.dtype, generator, **decoder_arguments)
