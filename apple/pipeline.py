"""Text to image with Stable Diffusion 1.x and 2.x in MLX, with DeepCache in the denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import diffusers
import mlx.core as mx
import numpy as np
import torch
import transformers

from pipelines.directory import AGAIN, check_pipeline, variant_of
from unets.cache.config import CacheConfig

from . import decoder, text_encoder, unet
from .configs import read_config
from .features import FeatureCache
from .loading import load_model
from .samplers import SamplerStep, read_sampler, sampler_steps

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
# Extensions of the cache that this loop does not have.
NOT_HERE = (
    "reuse_guidance", "guidance_stop", "refresh_interval", "refresh_steps", "reuse_attention", "skip_interval",
    "skip_steps",
)  # fmt: skip
OFF = CacheConfig()  # every step is full


@dataclass
class StableDiffusionPipeline:
    """The parts of a model. `load` reads them from a diffusers directory."""

    tokenizer: Any
    text_encoder: text_encoder.TextEncoder
    unet: unet.UNet2DConditionModel
    decoder: decoder.LatentDecoder
    sampler: str  # "plms" or "ddim"
    scheduler_config: dict[str, Any]
    latent_size: int  # H = W of the latents, unless another size is asked for
    dtype: mx.Dtype = mx.float32

    @classmethod
    def load(
        cls, folder: str | Path, *, sampler: str | None = None, variant: str | None = None, dtype: str = "float32"
    ) -> Self:
        """The model in a diffusers directory.

        Args:
            sampler: "plms" or "ddim"; None is the model's own.
            variant: of the weights, such as fp16; a directory that has one alone is loaded with it unasked.

        Raises:
            ValueError: no such directory, another kind of model, a damaged one, or an option that is not written out.
        """
        folder = Path(folder)
        check_pipeline(folder, cls)
        of_weights = {"variant": variant or variant_of(folder), "dtype": DTYPES[dtype]}
        sampler, scheduler_config = read_sampler(folder / "scheduler" / "scheduler_config.json", sampler)
        text_config = read_config(
            folder / "text_encoder" / "config.json", transformers.CLIPTextConfig, text_encoder.OPTIONS
        )
        unet_config = read_config(folder / "unet" / "config.json", diffusers.UNet2DConditionModel, unet.OPTIONS)
        vae_config = read_config(folder / "vae" / "config.json", diffusers.AutoencoderKL, decoder.OPTIONS)
        if unet_config["in_channels"] != vae_config["latent_channels"]:
            raise ValueError(f"{folder} takes more than text, such as an image to inpaint; use stable_diffusion.py")
        return cls(
            tokenizer=load_tokenizer(folder / "tokenizer"),
            text_encoder=load_model(
                text_encoder.TextEncoder, folder / "text_encoder", text_config, stem="model", prefix="text_model.",
                unused=r"text_model\.embeddings\.position_ids", **of_weights,
            ),
            unet=load_model(unet.UNet2DConditionModel, folder / "unet", unet_config, **of_weights),
            decoder=load_model(
                decoder.LatentDecoder, folder / "vae", vae_config, unused=r"(encoder|quant_conv)\.", **of_weights
            ),
            sampler=sampler,
            scheduler_config=scheduler_config,
            latent_size=unet_config["sample_size"] or 64,
            dtype=DTYPES[dtype],
        )  # fmt: skip

    def encode(self, prompts: Sequence[str]) -> mx.array:
        """Prompts to text embeddings (B, tokens, 768). What is too long is cut off."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True
        ).input_ids
        return self.text_encoder(mx.array(tokens))

    def noise(self, count: int, seed: int) -> mx.array:
        """Latents (B, H, W, 4) to start from, image k's those of `seed + k`: the same as the other scripts'."""
        shape = (self.unet.conv_in.weight.shape[-1], self.latent_size, self.latent_size)
        each = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + k)) for k in range(count)]
        return mx.array(torch.stack(each).permute(0, 2, 3, 1).numpy())

    def steps(self, num_steps: int) -> list[SamplerStep]:
        """The sampler's. Raises as `sampler_steps`."""
        return sampler_steps(self.sampler, self.scheduler_config, num_steps)

    def full_steps(self, cache: CacheConfig, num_steps: int) -> frozenset[int]:
        """Positions of the loop that are full steps, as of `CacheRun`: the one call more of PLMS retrieves.

        Raises:
            ValueError: a schedule that does not fit the run, no such branch, or an extension that is not here.
        """
        cache.refuse(*NOT_HERE)
        self.unet.check_branch(cache.cache_branch_id)
        full = cache.full_steps(num_steps)
        cached = len(full) < num_steps
        return frozenset(full if cached else range(len(self.steps(num_steps))))

    def __call__(
        self,
        prompts: Sequence[str],
        latents: mx.array,
        *,
        num_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        cache: CacheConfig = OFF,
        after_step: Callable[[int, bool], None] | None = None,
    ) -> np.ndarray:
        """An image of each prompt (B, 8H, 8W, 3) in [0, 1]. Shapes in the comments are Stable Diffusion 1.5's.

        Args:
            latents: (B, H, W, 4) noise to start from.
            cache: the paper's arguments and `forecast`; other extensions are refused.
            after_step: called with the position of each step that was made, and whether it was a full one.

        Raises:
            ValueError: an argument out of range, by name.
        """
        # 1. Which steps are full.
        if len(latents) != len(prompts):
            raise ValueError(f"there are latents for {len(latents)} images, but {len(prompts)} prompts")
        steps = self.steps(num_steps)
        full = self.full_steps(cache, num_steps)
        branch = cache.cache_branch_id if len(full) < len(steps) else None
        features = FeatureCache(full, len(steps), cache.forecast, cache.forecast_order)

        # 2. Prompt to text embeddings.
        guided = guidance_scale > 1
        text = self.encode([negative_prompt] * len(prompts) + list(prompts) if guided else prompts)

        # 3. Denoise.
        latents = before = latents.astype(self.dtype)  # (B, H/8, W/8, 4); before the step last made
        earlier: list[mx.array] = []  # outputs before this one, the newest first
        for i, step in enumerate(steps):
            # cache (1): equation 6, is this step full or does it retrieve?
            cached = features.get(i)
            latent_input = mx.concatenate([latents] * 2) if guided else latents  # (2B, H/8, W/8, 4)

            # cache (2): equations 4 and 5
            noise, kept = self.unet(latent_input, step.timestep, text, cache_branch_id=branch, cached_feature=cached)
            if cached is None and branch is not None:
                features.put(i, kept)  # cache (3): keeps the feature for the steps to come

            if guided:
                unconditional, conditional = mx.split(noise, 2)  # (B, H/8, W/8, 4) each
                noise = unconditional + guidance_scale * (conditional - unconditional)
            start = before if step.again else latents
            outputs = [noise, *earlier]
            average = sum(weight * output for weight, output in zip(step.weights, outputs, strict=False))
            before, latents = latents, step.of_latents * start + step.of_output * average
            if not step.again:
                earlier = outputs[:3]
            mx.eval(latents, kept, *earlier)  # MLX computes late; without this, all steps at once
            if after_step is not None:
                after_step(i, i in full)

        # 4. Latents to image.
        images = self.decoder(latents).astype(mx.float32)  # (B, H, W, 3)
        return np.array(mx.clip(images / 2 + 0.5, 0, 1))


def load_tokenizer(folder: Path) -> Any:
    """CLIP's. Raises ValueError if the folder is damaged."""
    try:
        return transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the readers of damaged files raise nearly everything
        raise ValueError(f"cannot load {folder}: {str(error).strip().splitlines()[0]}; {AGAIN}") from error
