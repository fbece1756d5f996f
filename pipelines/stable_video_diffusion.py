"""Image to video with Stable Video Diffusion, with DeepCache in the denoising loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import diffusers
import torch
from diffusers.pipelines.stable_video_diffusion import StableVideoDiffusionPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from unets.cache.config import CacheConfig, Extensions

from .base import CachedPipeline, call_back, timesteps_to_device
from .pictures import rgb


class StableVideoDiffusionPipeline(CachedPipeline, diffusers.StableVideoDiffusionPipeline):
    """diffusers' `StableVideoDiffusionPipeline`; loads the same directories and gives them the forked U-Net."""

    @functools.wraps(diffusers.StableVideoDiffusionPipeline.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fork_unet()  # replaces the stock U-Net

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
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
        cache_interval: int = 1,
        cache_branch_id: int = 0,
        uniform: bool = True,
        pow: float | None = None,
        center: int | None = None,
        cache_steps: Sequence[int] | None = None,
        **extensions: Unpack[Extensions],
    ) -> StableVideoDiffusionPipelineOutput | list[Any]:
        """Makes a video of `num_frames` frames from each image. Shapes in the comments are Stable Video Diffusion's.

        Args:
            min_guidance_scale, max_guidance_scale: of the first and the last frame, linear in between.
            decode_chunk_size: frames decoded at once; fewer need less memory but flicker more. Default: all.
            cache_interval, … cache_steps, and extensions beyond the paper: see `CacheConfig`.
            others: as in diffusers 0.24.0.

        Returns:
            `frames`, for each video a list of images, an array (F, H, W, 3) or a tensor (F, 3, H, W).

        Raises:
            ValueError: an argument out of range, by name.
        """
        # 0. Check.
        self.check_numbers(
            height=height, width=width, num_frames=num_frames, num_inference_steps=num_inference_steps,
            min_guidance_scale=min_guidance_scale, max_guidance_scale=max_guidance_scale, fps=fps,
            motion_bucket_id=motion_bucket_id, noise_aug_strength=noise_aug_strength,
            decode_chunk_size=decode_chunk_size, num_videos_per_prompt=num_videos_per_prompt,
        )  # fmt: skip
        config = CacheConfig(cache_interval, cache_branch_id, uniform, pow, center, cache_steps, **extensions)
        config.refuse("skip_interval", "skip_steps")  # not tried: no trained model available
        image = rgb(image)
        height = height or self.unet.config.sample_size * self.vae_scale_factor
        width = width or self.unet.config.sample_size * self.vae_scale_factor
        num_frames = self.unet.config.num_frames if num_frames is None else num_frames
        self.check_inputs(image, height, width)
        images = image if isinstance(image, list | Tensor) else [image]
        batch_size = len(images) * num_videos_per_prompt
        guided = max_guidance_scale > 1
        device = self._execution_device
        channels = self.unet.config.in_channels  # of the noise and of the image
        shape = (batch_size, num_frames, channels // 2, height // self.vae_scale_factor, width // self.vae_scale_factor)
        self.check_noise(batch_size, generator, latents, shape)

        # 1. Which steps are full.
        self.scheduler.set_timesteps(num_inference_steps, device="cpu")
        timesteps = self.scheduler.timesteps
        cache = self.start_cache(config, num_inference_steps, len(timesteps), frames=num_frames)

        # 2. Conditions: the image's embedding, and its latents, slightly noised, for every frame.
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

        # 4. Noise to start from, and the guidance scale of each frame.
        latents = self.prepare_latents(
            batch_size, num_frames, channels, height, width, image_embeds.dtype, device, generator, latents,
        )  # (B, F, 4, H/8, W/8)  # fmt: skip
        scales = torch.linspace(min_guidance_scale, max_guidance_scale, num_frames).to(device, latents.dtype)
        self._guidance_scale = scales[None, :, None, None, None].repeat(batch_size, 1, 1, 1, 1)  # (B, F, 1, 1, 1)

        # 5. Denoise.
        num_warmup_steps = len(timesteps) - num_inference_steps * self.scheduler.order
        self._num_timesteps = len(timesteps)
        unet_timesteps = timesteps_to_device(timesteps, device)
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, t in enumerate(timesteps):
                # cache (1): equation 6, is this step full or does it retrieve? Which halves of guidance does it run?
                step = cache.plan(i, len(latents), guided=guided)
                latent_input = self.scheduler.scale_model_input(step.expand(latents), t)
                latent_input = torch.cat([latent_input, step.select(image_latents)], dim=2)  # (2B, F, 8, H/8, W/8)

                output = self.unet(
                    latent_input,
                    unet_timesteps[i],
                    encoder_hidden_states=step.select(image_embeds),
                    added_time_ids=step.select(added_time_ids),
                    **step.unet_arguments,  # cache (2): equations 4 and 5
                )
                noise = cache.take(step, output)  # cache (3): caches the feature for later steps
                del output  # or its feature would stay in memory through the next full step

                if guided:
                    unconditional, conditional = noise.chunk(2)  # (B, F, 4, H/8, W/8) each
                    noise = unconditional + self.guidance_scale * (conditional - unconditional)
                latents = self.scheduler.step(noise, t, latents).prev_sample

                (latents,) = call_back(
                    callback_on_step_end, self, i, t, callback_on_step_end_tensor_inputs, latents=latents
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
