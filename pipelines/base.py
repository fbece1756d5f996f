"""What the pipelines share before and after their denoising loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from torch import Tensor

from unets.cache.config import CacheConfig
from unets.cache.run import CacheRun
from unets.cache.samplers import check_skips
from unets.cached_unet import CachedUNetMixin
from unets.forks import fork_of, stock_class

from . import checks


class CachedPipeline:
    """A mixin for diffusers pipeline classes: the forked U-Net and the steps that all forks share.

    Every call has its own cache. But as in diffusers, a call keeps state in the pipeline, above all in its scheduler,
    so nested calls from a callback, and calls in several threads, give wrong images. For these, use a second pipeline
    over the same components, with its own scheduler.
    """

    # Attributes of the diffusers class that are used here.
    unet: Any
    vae: Any
    scheduler: Any
    guidance_scale: float
    num_timesteps: int
    get_guidance_scale_embedding: Callable[..., Any]
    register_to_config: Callable[..., Any]

    check_numbers = staticmethod(checks.check_numbers)
    check_noise = staticmethod(checks.check_noise)
    for_each_generator = staticmethod(checks.for_each_generator)

    def fork_unet(self) -> None:
        """Replaces the stock U-Net with a fork that shares its weights.

        The configuration keeps the stock class's name, so that a saved pipeline loads everywhere.

        Raises:
            ValueError: a U-Net that has no fork, or a compiled one.
        """
        unet = getattr(self.unet, "_orig_mod", self.unet)  # the module that torch.compile wrapped
        if unet is None:
            return
        if not isinstance(unet, CachedUNetMixin):
            if unet is not self.unet:
                raise ValueError("this U-Net is already compiled; build the pipeline first, then compile its U-Net")
            unet = self.unet = fork_of(unet)
        self.register_to_config(unet=("diffusers", stock_class(unet).__name__))

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As the parent's, also if the U-Net was replaced meanwhile."""
        self.fork_unet()
        super().save_pretrained(*args, **kwargs)  # type: ignore[misc]

    def start_cache(
        self, config: CacheConfig, num_steps: int, num_calls: int, *, frames: int = 1, eta: float = 0.0
    ) -> CacheRun:
        """The cache of a run with that many inference steps and calls of the U-Net.

        Raises:
            ValueError: as `CacheRun`; skipped steps with a sampler that does not allow them.
        """
        self.fork_unet()
        if config.skips:
            check_skips(self.scheduler, eta)
        return CacheRun(config, self.unet, num_steps, num_calls, order=self.scheduler.order, frames=frames)

    def embed_guidance_scale(self, latents: Tensor) -> Tensor | None:
        """The embedding (B, D) for a U-Net distilled to take the guidance scale as input (LCM), else None."""
        width = self.unet.config.time_cond_proj_dim
        if width is None:
            return None
        scales = torch.tensor(self.guidance_scale - 1).repeat(len(latents))
        return self.get_guidance_scale_embedding(scales, embedding_dim=width).to(latents.device, latents.dtype)

    def report_step(
        self,
        bar: Any,
        i: int,
        t: Tensor,
        num_warmup_steps: int,
        latents: Tensor,
        callback: Callable[..., Any] | None,
        callback_steps: int | None,
    ) -> None:
        """Updates the progress bar and calls the legacy `callback`, once for each inference step."""
        order = self.scheduler.order
        if i == self.num_timesteps - 1 or (i + 1 > num_warmup_steps and (i + 1) % order == 0):
            bar.update()
            if callback is not None and i % (callback_steps or 1) == 0:
                callback(i // order, t, latents)


class CachedSDPipeline(CachedPipeline):
    """The steps of the Stable Diffusion 1.x and 2.x pipelines."""

    # Attributes of the diffusers class that are used here.
    image_processor: Any
    clip_skip: int | None
    cross_attention_kwargs: dict[str, Any] | None
    do_classifier_free_guidance: bool
    encode_prompt: Callable[..., Any]
    encode_image: Callable[..., Any]
    run_safety_checker: Callable[..., Any]
    maybe_free_model_hooks: Callable[..., Any]

    def encode_conditions(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        ip_adapter_image: Any,
        num_images_per_prompt: int,
        device: torch.device,
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor] | None]:
        """Text (2B, tokens, 768), its negative half (B, tokens, 768), and image embeddings for the U-Net.

        With guidance the batch is [negative, positive]; without, it is (B, tokens, 768) and there is no negative.
        """
        lora_scale = (self.cross_attention_kwargs or {}).get("scale")
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt,
            device,
            num_images_per_prompt,
            self.do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            lora_scale=lora_scale,
            clip_skip=self.clip_skip,
        )
        if self.do_classifier_free_guidance:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])
        if ip_adapter_image is None:
            return prompt_embeds, negative_prompt_embeds, None
        image_embeds, negative_image_embeds = self.encode_image(ip_adapter_image, device, num_images_per_prompt)
        if self.do_classifier_free_guidance:
            image_embeds = torch.cat([negative_image_embeds, image_embeds])
        return prompt_embeds, negative_prompt_embeds, {"image_embeds": image_embeds}

    def finish(
        self,
        latents: Tensor,
        output_type: str,
        return_dict: bool,
        dtype: torch.dtype,
        generator: torch.Generator | list[torch.Generator] | None,
        **decoder_arguments: Tensor,
    ) -> StableDiffusionPipelineOutput | tuple[Any, ...]:
        """Latents (B, 4, H/8, W/8) to the output: decoded, checked for safety if the model has a checker, converted."""
        unsafe: Sequence[bool] | None = None
        image = latents
        if output_type != "latent":
            scaled = latents / self.vae.config.scaling_factor
            image = self.vae.decode(scaled, return_dict=False, generator=generator, **decoder_arguments)[0]
            image, unsafe = self.run_safety_checker(image, latents.device, dtype)  # (B, 3, H, W)
        safe = [not u for u in unsafe] if unsafe is not None else [True] * len(image)
        image = self.image_processor.postprocess(image, output_type=output_type, do_denormalize=safe)
        self.maybe_free_model_hooks()
        if not return_dict:
            return image, unsafe
        return StableDiffusionPipelineOutput(images=image, nsfw_content_detected=unsafe)


def batch_size_of(prompt: str | list[str] | None, prompt_embeds: Tensor | None) -> int:
    """Number of prompts."""
    if isinstance(prompt, str):
        return 1
    given = prompt if prompt is not None else prompt_embeds
    assert given is not None  # ensured by the pipeline's check_inputs
    return len(given)


def call_back(
    callback_on_step_end: Callable[..., Any] | None,
    pipeline: Any,
    i: int,
    t: Tensor,
    names: Sequence[str],
    **values: Any,
) -> list[Any]:
    """The values, in order; the user's callback gets those in `names`, and replaces those that it returns."""
    if callback_on_step_end is not None:
        seen = {name: values[name] for name in names}
        replaced = callback_on_step_end(pipeline, i, t, seen)
        values = {name: replaced.get(name, value) for name, value in values.items()}
    return list(values.values())


def timesteps_to_device(timesteps: Tensor, device: torch.device | str) -> Tensor:
    """All timesteps of a run for the U-Net, copied at once: a copy at each step would wait for the device.

    For the same reason the scheduler's own stay on the host, where it looks them up.
    """
    dtype = torch.float32 if timesteps.is_floating_point() else timesteps.dtype  # MPS has no float64
    return timesteps.to(device, dtype)


def noised(scheduler: Any, image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """`scheduler.add_noise` at timestep t (1,), with its two factors computed on the host.

    diffusers copies its whole table and the timestep to the device, and some schedulers look up the timestep there:
    both make the loop wait.
    """
    one, zero = torch.ones(1, dtype=image.dtype), torch.zeros(1, dtype=image.dtype)
    return scheduler.add_noise(one, zero, t)[0] * image + scheduler.add_noise(zero, one, t)[0] * noise
