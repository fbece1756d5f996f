"""Image to video with Stable Video Diffusion, with DeepCache in the denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_video_diffusion import StableVideoDiffusionPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .guidance_economy import GuidanceEconomy, half_if
from .kept_features import Forecast
from .run_cache import RunCache
from .shared_steps import CachedPipeline, call_back, on_device


class StableVideoDiffusionPipeline(CachedPipeline, diffusers.StableVideoDiffusionPipeline):
    """diffusers' `StableVideoDiffusionPipeline`; loads the same directories and gives them the forked U-Net."""

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        height: int = 576,
        width: int = 1024,
        num_frames: int | None = None,
        num_inference_steps: int = 25,
        min_guidance_scale: float = 1.0,
        max_guidance_scale: float = 3.0,
        fps: int = 7,
        motion_bucket_id: int = 127,
        noise_aug_strength: float = 0.02,
        decode_chunk_size: int | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[[Any, int, Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
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
    ) -> StableVideoDiffusionPipelineOutput | list:
        """Makes a video of `num_frames` frames from each image. Shapes in the comments are Stable Video Diffusion's.

        Args:
            min_guidance_scale, max_guidance_scale: of the first and the last frame; in between it rises evenly.
            decode_chunk_size: frames decoded at once; fewer need less memory, and flicker more. All, if not given.
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

        Returns:
            `frames`, for each video a list of images, an array (F, H, W, 3) or a tensor (F, 3, H, W).

        Raises:
            ValueError: an argument out of range, by name.
        """
        # 0. Check.
        height = height or self.unet.config.sample_size * self.vae_scale_factor
        width = width or self.unet.config.sample_size * self.vae_scale_factor
        num_frames = self.unet.config.num_frames if num_frames is None else num_frames
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; it must be at least 1")
        self.check_inputs(image, height, width)
        images = image if isinstance(image, list | Tensor) else [image]
        batch_size = len(images) * num_videos_per_prompt
        guided = max_guidance_scale > 1
        device = self._execution_device

        # 1. Which steps are full.
        self.scheduler.set_timesteps(num_inference_steps, device="cpu")
        timesteps = self.scheduler.timesteps
        full, m = self.plan_cache(
            num_inference_steps, len(timesteps), cache_interval, cache_branch_id,
            uniform=uniform, pow=pow, center=center, cache_steps=cache_steps,
            refresh_branch_id=refresh_branch_id,
        )  # fmt: skip
        cache = RunCache(full, len(timesteps), m, forecast, refresh_interval, refresh_branch_id)
        economy = GuidanceEconomy(cache.renewed, len(timesteps), reuse_guidance, guidance_stop, forecast)

        # 2. What the video is to show: the image's embedding, and its latents, slightly noised, for every frame.
        image_embeds = self._encode_image(image, device, num_videos_per_prompt, guided)  # (2B, 1, 1024)
        pixels = self.image_processor.preprocess(image, height=height, width=width)  # (B, 3, H, W)
        noise = randn_tensor(pixels.shape, generator=generator, device=pixels.device, dtype=pixels.dtype)
        pixels = pixels + noise_aug_strength * noise
        upcast = self.vae.dtype == torch.float16 and self.vae.config.force_upcast  # it overflows in float16
        if upcast:
            self.vae.to(torch.float32)
        image_latents = self._encode_vae_image(pixels.to(self.vae.dtype), device, num_videos_per_prompt, guided).to(
            image_embeds.dtype
        )
        if upcast:
            self.vae.to(torch.float16)
        image_latents = image_latents.unsqueeze(1).repeat(1, num_frames, 1, 1, 1)  # (2B, F, 4, H/8, W/8)

        # 3. Micro-conditioning. The model was trained on the frame rate less one.
        added_time_ids = self._get_add_time_ids(
            fps - 1, motion_bucket_id, noise_aug_strength, image_embeds.dtype, len(images), num_videos_per_prompt,
            guided,
        ).to(device)  # (2B, 3)  # fmt: skip

        # 4. Noise to start from, and how far each frame is guided.
        latents = self.prepare_latents(
            batch_size, num_frames, self.unet.config.in_channels, height, width, image_embeds.dtype, device, generator,
            latents,
        )  # (B, F, 4, H/8, W/8)  # fmt: skip
        scales = torch.linspace(min_guidance_scale, max_guidance_scale, num_frames).to(device, latents.dtype)
        self._guidance_scale = scales[None, :, None, None, None].repeat(batch_size, 1, 1, 1, 1)  # (B, F, 1, 1, 1)

        # 5. Denoise.
        num_warmup_steps = len(timesteps) - num_inference_steps * self.scheduler.order
        self._num_timesteps = len(timesteps)
        unet_timesteps = on_device(timesteps, device)
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, t in enumerate(timesteps):
                # economy (1): with a difference, the conditional half of the batch is run alone
                difference = economy.difference(i, len(latents)) if guided else None
                alone = difference is not None
                latent_input = torch.cat([latents] * 2) if guided and not alone else latents
                latent_input = self.scheduler.scale_model_input(latent_input, t)
                latent_input = torch.cat([latent_input, half_if(alone, image_latents)], dim=2)  # (2B, F, 8, H/8, W/8)

                # cache (1): equation 6, a full step keeps anew and gets None; all others retrieve
                step = cache.step(i, len(latent_input) * num_frames, alone)
                output = self.unet(
                    latent_input,
                    unet_timesteps[i],
                    encoder_hidden_states=half_if(alone, image_embeds),  # economy (2)
                    added_time_ids=half_if(alone, added_time_ids),
                    cache_branch_id=step.branch,
                    cached_feature=step.feature,
                    keep_branch_id=step.keep_branch,
                    keep_attention=reuse_attention,
                )
                noise = output.sample
                cache.keep(i, step, output)  # cache (2): the loop owns the feature
                del output  # else the last feature would live through the next full step

                if guided:
                    # economy (3): (B, F, 4, H/8, W/8) each
                    unconditional, conditional = economy.halves(i, noise, difference)
                    noise = unconditional + self.guidance_scale * (conditional - unconditional)
                latents = self.scheduler.step(noise, t, latents).prev_sample

                (latents,) = call_back(
                    callback_on_step_end, self, i, t, callback_on_step_end_tensor_inputs, {"latents": latents}
                )
                self.report_step(bar, i, t, num_warmup_steps, latents, None, None)

        del step, cache, noise, latent_input, image_latents  # the decoder needs the memory

        # 6. Latents to frames.
        frames: Any = latents
        if output_type != "latent":
            if upcast:
                self.vae.to(torch.float16)
            decoded = self.decode_latents(latents, num_frames, decode_chunk_size or num_frames)  # (B, 3, F, H, W)
            frames = [self.image_processor.postprocess(video.transpose(0, 1), output_type) for video in decoded]
        self.maybe_free_model_hooks()
        return StableVideoDiffusionPipelineOutput(frames=frames) if return_dict else frames
