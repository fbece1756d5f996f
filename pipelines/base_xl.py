"""What the SDXL pipelines share before and after their denoising loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput
from torch import Tensor

from .base import CachedPipeline


class CachedXLPipeline(CachedPipeline):
    """The steps of the SDXL pipelines."""

    # Attributes of the diffusers class that are used here.
    image_processor: Any
    text_encoder_2: Any
    watermark: Any
    vae_scale_factor: int
    clip_skip: int | None
    cross_attention_kwargs: dict[str, Any] | None
    do_classifier_free_guidance: bool
    encode_prompt: Callable[..., Any]
    encode_image: Callable[..., Any]
    upcast_vae: Callable[..., Any]
    _get_add_time_ids: Callable[..., Any]
    maybe_free_model_hooks: Callable[..., Any]

    def encode_conditions(
        self, ip_adapter_image: Any, num_images_per_prompt: int, device: torch.device, **texts: Any
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Embeds the texts and an IP-Adapter's image for the U-Net.

        Args:
            texts: `encode_prompt`'s arguments: prompts, or embeddings instead of them.

        Returns:
            `prompt_embeds` (2B, tokens, 2048) and `add_text_embeds` (2B, 1280), negative first if there is guidance,
            and their negative halves, under the names that callbacks use; and `image_embeds` if any.
        """
        positive, negative, pooled, negative_pooled = self.encode_prompt(
            **texts,
            device=device,
            num_images_per_prompt=num_images_per_prompt,
            do_classifier_free_guidance=self.do_classifier_free_guidance,
            lora_scale=(self.cross_attention_kwargs or {}).get("scale"),
            clip_skip=self.clip_skip,
        )
        if self.do_classifier_free_guidance:
            positive = torch.cat([negative, positive])
            pooled = torch.cat([negative_pooled, pooled])
        conditions = {
            "prompt_embeds": positive.to(device),
            "negative_prompt_embeds": negative,
            "add_text_embeds": pooled.to(device),
            "negative_pooled_prompt_embeds": negative_pooled,
        }
        if ip_adapter_image is None:
            return conditions, {}
        image_embeds, negative_image_embeds = self.encode_image(ip_adapter_image, device, num_images_per_prompt)
        if self.do_classifier_free_guidance:
            image_embeds = torch.cat([negative_image_embeds, image_embeds])
        return conditions, {"image_embeds": image_embeds.to(device)}

    def time_ids(self, *sizes: Any, dtype: torch.dtype, pooled: Tensor) -> Any:
        """The parent's micro-conditioning from sizes, crops and scores: (1, 6), or (1, 5) for the refiner."""
        encoder = self.text_encoder_2
        width = pooled.shape[-1] if encoder is None else encoder.config.projection_dim
        return self._get_add_time_ids(*sizes, dtype=dtype, text_encoder_projection_dim=width)

    def scored_time_ids(
        self,
        latents: Tensor,
        pooled: Tensor,
        original_size: tuple[int, int] | None,
        crops_coords_top_left: tuple[int, int],
        target_size: tuple[int, int] | None,
        aesthetic_score: float,
        negative_aesthetic_score: float,
        negative_original_size: tuple[int, int] | None,
        negative_crops_coords_top_left: tuple[int, int],
        negative_target_size: tuple[int, int] | None,
    ) -> dict[str, Tensor]:
        """Micro-conditioning for runs that start from an image (2B, 5 or 6). Sizes default to the latents', in pixels.

        The keys are the names that callbacks use; with guidance the negative half comes first.
        """
        height, width = (side * self.vae_scale_factor for side in latents.shape[-2:])
        original_size, target_size = original_size or (height, width), target_size or (height, width)
        pair = self.time_ids(
            original_size, crops_coords_top_left, target_size, aesthetic_score, negative_aesthetic_score,
            negative_original_size or original_size, negative_crops_coords_top_left,
            negative_target_size or target_size, dtype=latents.dtype, pooled=pooled,
        )  # fmt: skip
        positive, negative = (ids.repeat(len(latents), 1).to(latents.device) for ids in pair)
        ids = torch.cat([negative, positive]) if self.do_classifier_free_guidance else positive
        return {"add_time_ids": ids, "add_neg_time_ids": negative}

    def until(self, timesteps: Tensor, num_inference_steps: int, denoising_end: float | None) -> tuple[Tensor, int]:
        """The timesteps of a run that ends when the fraction `denoising_end` of the noise is gone, and their number.

        Raises:
            ValueError: if no step is left.
        """
        if denoising_end is None or not 0 < denoising_end < 1:
            return timesteps, num_inference_steps
        trained = self.scheduler.config.num_train_timesteps
        count = int((timesteps >= round(trained - denoising_end * trained)).sum())
        if count < 1:
            raise ValueError(f"denoising_end {denoising_end} leaves no step to run; raise it or num_inference_steps")
        return timesteps[:count], count

    def finish(
        self, latents: Tensor, output_type: str, return_dict: bool
    ) -> StableDiffusionXLPipelineOutput | tuple[Any, ...]:
        """Latents (B, 4, H/8, W/8) to the output: decoded, in float32 if needed, watermarked if enabled, converted."""
        image = latents
        if output_type != "latent":
            upcast = self.vae.dtype == torch.float16 and self.vae.config.force_upcast  # it overflows in float16
            if upcast:
                self.upcast_vae()
                latents = latents.to(next(self.vae.post_quant_conv.parameters()).dtype)
            image = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]  # (B, 3, H, W)
            if upcast:
                self.vae.to(torch.float16)
            if self.watermark is not None:
                image = self.watermark.apply_watermark(image)
            image = self.image_processor.postprocess(image, output_type=output_type)
        self.maybe_free_model_hooks()
        return StableDiffusionXLPipelineOutput(images=image) if return_dict else (image,)
