"""Image to image with Stable Diffusion 1.x and 2.x, with DeepCache in the denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_timesteps
from torch import Tensor

from .guidance_economy import GuidanceEconomy, half_if
from .kept_features import Forecast
from .run_cache import RunCache
from .shared_steps import CachedSDPipeline, batch_size_of, call_back, on_device


class StableDiffusionImg2ImgPipeline(CachedSDPipeline, diffusers.StableDiffusionImg2ImgPipeline):
    """diffusers' `StableDiffusionImg2ImgPipeline`; loads the same directories and gives them the forked U-Net."""

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
        callback_on_step_end: Callable[[Any, int, Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
        callback_steps: int | None = None,
        cache_interval: int = 1,
        cache_branch_id: int = 0,
        uniform: bool = True,
        pow: float | None = None,
        center: int | None = None,
        cache_steps: Sequence[int] | None = None,
        forecast: Forecast = 0.0,
        reuse_guidance: bool = False,
        guidance_stop: float = 1.0,
        refresh_interval: int | None = None,
        refresh_branch_id: int | None = None,
        reuse_attention: bool = False,
    ) -> StableDiffusionPipelineOutput | tuple:
        """Redraws `image` to each prompt. Shapes in the comments are Stable Diffusion 1.5's.

        The loop runs the last `strength` of the steps; the cache counts them from 0.

        Args:
            cache_interval: N. Every N-th step is full; 1, the default, is the stock pipeline bit for bit.
            cache_branch_id: m, the skip branch at which the deep feature is kept, 0 to M − 1.
            uniform, pow, center: `uniform=False` with `pow` and `center` gathers full steps around step `center`.
            cache_steps: the full steps themselves, instead of interval and schedule.
            forecast: g, how far a retrieve step's feature is carried on from the last two kept (`KeptFeatures`): 0
                copies as in the paper, 1 is the straight line; or a table of g.
            reuse_guidance: retrieve steps run the conditional half alone (`GuidanceEconomy`).
            guidance_stop: and so does every step after this share of them.
            refresh_interval, refresh_branch_id: every so many steps from a full one, retrieve at this deeper branch
                instead, and keep anew at `cache_branch_id` (`RunCache`).
            reuse_attention: retrieve steps take what attention adds from earlier steps too (`ShallowAttention`).
            others: as diffusers 0.24.0's.

        Raises:
            ValueError: an argument out of range, by name.
        """
        # 0. Check.
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

        # 1. The part of the steps that is run, and which of those are full.
        _, num_inference_steps = retrieve_timesteps(self.scheduler, num_inference_steps, "cpu", timesteps)
        timesteps, num_inference_steps = self.get_timesteps(num_inference_steps, strength, device)
        if num_inference_steps < 1:
            raise ValueError(f"strength {strength} leaves no step to run; raise it or num_inference_steps")
        full, m = self.plan_cache(
            num_inference_steps, len(timesteps), cache_interval, cache_branch_id,
            uniform=uniform, pow=pow, center=center, cache_steps=cache_steps,
            refresh_branch_id=refresh_branch_id,
        )  # fmt: skip
        cache = RunCache(full, len(timesteps), m, forecast, refresh_interval, refresh_branch_id)
        economy = GuidanceEconomy(cache.renewed, len(timesteps), reuse_guidance, guidance_stop, forecast)

        # 2. Prompt to text embeddings.
        prompt_embeds, negative_prompt_embeds, added_cond_kwargs = self.encode_conditions(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, ip_adapter_image, num_images_per_prompt,
            device,
        )  # fmt: skip

        # 3. Image to latents, with the noise of the first step that is run.
        image = self.image_processor.preprocess(image)  # (1 or B, 3, H, W)
        latents = self.prepare_latents(
            image, timesteps[:1].repeat(num_images), num_prompts, num_images_per_prompt, prompt_embeds.dtype, device,
            generator,
        )  # (B, 4, H/8, W/8)  # fmt: skip
        timestep_cond = self.embed_guidance_scale(latents)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)

        # 4. Denoise.
        num_warmup_steps = len(timesteps) - num_inference_steps * self.scheduler.order
        self._num_timesteps = len(timesteps)
        unet_timesteps = on_device(timesteps, device)
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, t in enumerate(timesteps):
                # economy (1): with a difference, the conditional half of the batch is run alone
                difference = economy.difference(i, len(latents)) if self.do_classifier_free_guidance else None
                alone = difference is not None
                latent_input = torch.cat([latents] * 2) if self.do_classifier_free_guidance and not alone else latents
                latent_input = self.scheduler.scale_model_input(latent_input, t)  # (2B, 4, H/8, W/8)

                # cache (1): equation 6, a full step keeps anew and gets None; all others retrieve
                step = cache.step(i, len(latent_input), alone)
                output = self.unet(
                    latent_input,
                    unet_timesteps[i],
                    encoder_hidden_states=half_if(alone, prompt_embeds),  # economy (2)
                    timestep_cond=timestep_cond,
                    cross_attention_kwargs=self.cross_attention_kwargs,
                    added_cond_kwargs=half_if(alone, added_cond_kwargs),
                    cache_branch_id=step.branch,
                    cached_feature=step.feature,
                    keep_branch_id=step.keep_branch,
                    keep_attention=reuse_attention,
                )
                noise = output.sample
                cache.keep(i, step, output)  # cache (2): the loop owns the feature
                del output  # else the last feature would live through the next full step

                if self.do_classifier_free_guidance:
                    # economy (3): (B, 4, H/8, W/8) each
                    unconditional, conditional = economy.halves(i, noise, difference)
                    noise = unconditional + self.guidance_scale * (conditional - unconditional)
                latents = self.scheduler.step(noise, t, latents, **extra_step_kwargs, return_dict=False)[0]

                latents, prompt_embeds, negative_prompt_embeds = call_back(
                    callback_on_step_end, self, i, t, callback_on_step_end_tensor_inputs,
                    {
                        "latents": latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                    },
                )  # fmt: skip
                self.report_step(bar, i, t, num_warmup_steps, latents, callback, callback_steps)
        del step, cache  # the decoder needs the memory

        # 5. Latents to image.
        return self.finish(latents, output_type, return_dict, prompt_embeds.dtype, generator)
