"""Text to video without training on videos (Text2Video-Zero), with DeepCache in its three denoising loops.

The first frame is denoised to time T_1, then to T_0. Warped there by the motion and noised back to T_1, it becomes the
start of all other frames. From T_1 on all frames are denoised together, each attending to the first.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers.pipelines.text_to_video_synthesis.pipeline_text_to_video_zero import (
    CrossFrameAttnProcessor2_0,
    TextToVideoPipelineOutput,
    create_motion_field_and_warp_latents,
)
from torch import Tensor

from unets.cache.config import CacheConfig

from .base import CachedSDPipeline, timesteps_to_device


def default_moments(num_inference_steps: int) -> tuple[int, int]:
    """t0 and t1 for a run of that length, in the proportion of 44 and 47 to 50 steps."""
    t1 = min(round(0.94 * num_inference_steps), num_inference_steps - 1)
    return min(round(0.88 * num_inference_steps), t1 - 1), t1


class CrossFrameAttention(CrossFrameAttnProcessor2_0):
    """diffusers' attention to the first frame, bit for bit, but without indexing by a list, which waits for the device.

    Args:
        batch_size: number of guidance halves in the batch, 2 or 1.
    """

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None
    ) -> Tensor:
        """Attention to the text, or without text to the first frame: (2F, HW, C)."""
        if encoder_hidden_states is not None or attention_mask is not None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)
        rows, width = len(hidden_states), hidden_states.shape[-1]
        frames = max(1, rows // self.batch_size)

        def of_first_frame(x: Tensor) -> Tensor:  # of each half, repeated for all frames
            x = x.reshape(-1, frames, *x.shape[1:])  # (2, F, HW, C)
            return x[:, :1].expand_as(x).reshape(rows, *x.shape[2:])  # (2F, HW, C)

        def split(x: Tensor) -> Tensor:  # (2F, heads, HW, C / heads)
            return x.view(rows, -1, attn.heads, width // attn.heads).transpose(1, 2)

        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        attended = F.scaled_dot_product_attention(
            split(query), split(of_first_frame(key)), split(of_first_frame(value))
        ).transpose(1, 2)
        to_out, dropout = attn.to_out
        return dropout(to_out(attended.reshape(rows, -1, width).to(query.dtype)))


class TextToVideoZeroPipeline(CachedSDPipeline, diffusers.TextToVideoZeroPipeline):
    """diffusers' `TextToVideoZeroPipeline`; loads any Stable Diffusion 1.x or 2.x directory.

    The U-Net attends across frames only during a call, so other pipelines can share it, but not at the same time.
    """

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        # Bypasses the parent's __init__, which fails in 0.24.0: it passes the last argument in the wrong position.
        super(diffusers.TextToVideoZeroPipeline, self).__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
            requires_safety_checker,
        )  # fmt: skip
        self.fork_unet()  # replaces the stock U-Net

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        video_length: int = 8,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        motion_field_strength_x: float = 12,
        motion_field_strength_y: float = 12,
        output_type: str = "tensor",
        return_dict: bool = True,
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
        callback_steps: int = 1,
        t0: int = 44,
        t1: int = 47,
        frame_ids: list[int] | None = None,
        cache_interval: int = 1,
        cache_branch_id: int = 0,
        uniform: bool = True,
        pow: float | None = None,
        center: int | None = None,
        cache_steps: Sequence[int] | None = None,
    ) -> TextToVideoPipelineOutput | tuple[Any, ...]:
        """Makes a video of `video_length` frames. Shapes in the comments are Stable Diffusion 1.5's.

        Args:
            prompt: one prompt.
            t0, t1: T_0 and T_1, counted in steps from the last one, 0 ≤ t0 < t1 < steps.
            motion_field_strength_x, motion_field_strength_y: motion from one frame to the next, in pixels at
                512 × 512.
            output_type: "latent", "pil", "pt", or else an array.
            cache_interval, … cache_steps: see `CacheConfig`; for each of the three loops separately.
            others: as in diffusers 0.24.0.

        Returns:
            `images`, the frames: (F, H, W, 3) in [0, 1], a list of images, or (F, 3, H, W).

        Raises:
            ValueError: an argument out of range, by name.
        """
        # 0. Check.
        self.check_numbers(
            video_length=video_length, height=height, width=width, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, num_videos_per_prompt=num_videos_per_prompt, eta=eta,
            motion_field_strength_x=motion_field_strength_x, motion_field_strength_y=motion_field_strength_y, t0=t0,
            t1=t1,
        )  # fmt: skip
        config = CacheConfig(cache_interval, cache_branch_id, uniform, pow, center, cache_steps)
        frame_ids = list(range(video_length)) if frame_ids is None else frame_ids
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if len(frame_ids) != video_length:
            raise ValueError(f"video_length is {video_length}; it must be as long as frame_ids, {len(frame_ids)}")
        if len(prompts) != 1 or num_videos_per_prompt != 1:
            raise ValueError("Text2Video-Zero makes one video of one prompt per call")
        height = height or self.unet.config.sample_size * self.vae_scale_factor
        width = width or self.unet.config.sample_size * self.vae_scale_factor
        self.check_inputs(prompts, height, width, callback_steps)
        device, channels = self._execution_device, self.unet.config.in_channels
        shape = (1, channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        self.check_noise(1, generator, latents, shape)
        self.scheduler.set_timesteps(num_inference_steps, device="cpu")
        timesteps = self.scheduler.timesteps
        if timesteps.is_floating_point():
            raise ValueError(f"{type(self.scheduler).__name__} does not fit Text2Video-Zero; use DDIM, PLMS or DPM++")
        if not 0 <= t0 < t1 < len(timesteps):
            raise ValueError(
                f"t0 is {t0} and t1 {t1}; they must satisfy 0 ≤ t0 < t1 < {len(timesteps)}, the number of steps"
            )

        # 1. Prompt to text embeddings.
        negative = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
        embeds, negative_embeds = self.encode_prompt(prompts, device, 1, guidance_scale > 1, negative)
        prompt_embeds = torch.cat([negative_embeds, embeds]) if guidance_scale > 1 else embeds  # (2, 77, 768)

        # 2. Noise to start from.
        latents = self.prepare_latents(
            1, channels, height, width, prompt_embeds.dtype, device, generator, latents
        )  # (1, 4, H/8, W/8)
        settings = {
            "guidance_scale": guidance_scale,
            "callback": callback,
            "callback_steps": callback_steps,
            "extra_step_kwargs": self.prepare_extra_step_kwargs(generator, eta),
            "config": config,
        }
        num_warmup_steps = len(timesteps) - num_inference_steps * self.scheduler.order
        unet_timesteps = timesteps_to_device(timesteps, device)

        def run(latents: Tensor, steps: slice, prompt_embeds: Tensor, num_warmup_steps: int = 0) -> Tensor:
            along = timesteps[steps], unet_timesteps[steps]
            return self.backward_loop(latents, *along, prompt_embeds, num_warmup_steps, **settings)

        processors = self.unet.attn_processors
        self.unet.set_attn_processor(CrossFrameAttention(batch_size=2 if guidance_scale > 1 else 1))
        try:
            # 3. The first frame to T_1, and on to T_0.
            first_at_t1 = run(latents, slice(-t1 - 1), prompt_embeds, num_warmup_steps)
            scheduler_at_t1 = copy.deepcopy(self.scheduler)
            first_at_t0 = run(first_at_t1, slice(-t1 - 1, -t0 - 1), prompt_embeds)

            # 4. The other frames: the first one warped, and noised back to T_1.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch's, of defaults that changed before 0.24.0
                others = create_motion_field_and_warp_latents(
                    motion_field_strength_x, motion_field_strength_y, frame_ids[1:],
                    first_at_t0.repeat(video_length - 1, 1, 1, 1),
                )  # (F - 1, 4, H/8, W/8)  # fmt: skip
            others = self.forward_loop(others, timesteps[-t0 - 1].item(), timesteps[-t1 - 1].item(), generator)

            # 5. All frames from T_1 to the end.
            latents = torch.cat([first_at_t1, others])  # (F, 4, H/8, W/8)
            prompt_embeds = prompt_embeds.repeat_interleave(video_length, dim=0)  # (2F, 77, 768)
            self.scheduler = scheduler_at_t1
            latents = run(latents, slice(-t1 - 1, None), prompt_embeds)
        finally:
            self.unet.set_attn_processor(processors)

        # 6. Latents to frames.
        images: Any = latents
        unsafe = None
        if output_type != "latent":
            decoded = self.vae.decode(1 / self.vae.config.scaling_factor * latents, return_dict=False)[0]
            images = self.image_processor.postprocess(decoded, "np")  # (F, H, W, 3)
            images, unsafe = self.run_safety_checker(images, device, prompt_embeds.dtype)
            if output_type == "pil":
                images = self.image_processor.numpy_to_pil(images)
            elif output_type == "pt":
                images = self.image_processor.numpy_to_pt(images)
        self.maybe_free_model_hooks()
        return (
            TextToVideoPipelineOutput(images=images, nsfw_content_detected=unsafe) if return_dict else (images, unsafe)
        )

    def backward_loop(
        self,
        latents: Tensor,
        timesteps: Tensor,
        unet_timesteps: Tensor,
        prompt_embeds: Tensor,
        num_warmup_steps: int,
        *,
        guidance_scale: float,
        callback: Callable[[int, Tensor, Tensor], None] | None,
        callback_steps: int,
        extra_step_kwargs: dict[str, Any],
        config: CacheConfig,
    ) -> Tensor:
        """Denoises latents (F, 4, H/8, W/8) along the timesteps, which the cache counts from 0.

        Args:
            unet_timesteps: the same on the U-Net's device.
        """
        num_steps = (len(timesteps) - num_warmup_steps) // self.scheduler.order
        if not len(timesteps):
            return latents
        cache = self.start_cache(config, num_steps, len(timesteps))
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=num_steps) as bar:
            for i, t in enumerate(timesteps):
                # cache (1): equation 6, is this step full or does it retrieve?
                step = cache.plan(i, len(latents), guided=guidance_scale > 1)
                latent_input = self.scheduler.scale_model_input(step.expand(latents), t)  # (2F, 4, H/8, W/8)
                output = self.unet(
                    latent_input,
                    unet_timesteps[i],
                    encoder_hidden_states=prompt_embeds,
                    **step.unet_arguments,  # cache (2): equations 4 and 5
                )
                noise = cache.take(step, output)  # cache (3): caches the feature for later steps
                del output  # or its feature would stay in memory through the next full step

                if guidance_scale > 1:
                    unconditional, conditional = noise.chunk(2)  # (F, 4, H/8, W/8) each
                    noise = unconditional + guidance_scale * (conditional - unconditional)
                latents = self.scheduler.step(noise, t, latents, **extra_step_kwargs).prev_sample
                self.report_step(bar, i, t, num_warmup_steps, latents, callback, callback_steps)
        return latents
