"""Class to image with LDM-4-G (Rombach et al. 2022), with DeepCache in the denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, VQModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from unets.cache.config import CacheConfig, Extensions
from unets.class_embedder import ClassEmbedder

from .base import CachedPipeline, call_back, timesteps_to_device


class LDMClassPipeline(CachedPipeline, DiffusionPipeline):
    """Class-conditional latent diffusion: VQ first stage, class embedder, the forked U-Net, DDIM or PLMS.

    diffusers has neither this pipeline nor the class embedder, so a saved pipeline only loads here; its U-Net, first
    stage and scheduler load everywhere.
    """

    model_cpu_offload_seq = "class_embedder->unet->vqvae"

    def __init__(self, vqvae: VQModel, class_embedder: ClassEmbedder, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(vqvae=vqvae, class_embedder=class_embedder, unet=unet, scheduler=scheduler)
        self.fork_unet()  # replaces the stock U-Net

    @property
    def num_classes(self) -> int:
        """The number of classes without the unconditional one, which has this number as its label."""
        return self.class_embedder.config.num_classes - 1

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | Tensor,
        num_inference_steps: int = 250,
        guidance_scale: float = 1.5,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]] | None = None,
        cache_interval: int = 1,
        cache_branch_id: int = 0,
        uniform: bool = True,
        pow: float | None = None,
        center: int | None = None,
        cache_steps: Sequence[int] | None = None,
        **extensions: Unpack[Extensions],
    ) -> ImagePipelineOutput | tuple[Any, ...]:
        """Makes an image of each class. Shapes in the comments are those of the model for ImageNet.

        Args:
            class_labels: B labels, 0 to `num_classes` − 1.
            num_inference_steps: as CompVis counts them: every (1000 // steps)-th timestep, which is more than `steps`
                where that doesn't divide 1000 (63 for 59, 100 for 91).
            guidance_scale: 1 leaves out the unconditional half.
            eta: DDIM's; 0 is deterministic.
            generator: one for each image, or one for all.
            latents: (B, 3, 64, 64) noise to start from, instead of the generators'.
            output_type: "pil", "np" (B, H, W, 3), "pt" (B, 3, H, W), both in [0, 1], or "latent".
            cache_interval, … cache_steps, and extensions beyond the paper: see `CacheConfig`.

        Raises:
            ValueError: an argument out of range, by name.
        """
        # 0. Check.
        self.check_numbers(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, eta=eta)
        config = CacheConfig(cache_interval, cache_branch_id, uniform, pow, center, cache_steps, **extensions)
        labels = self.check_labels(class_labels).to(self._execution_device)  # (B,)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type is {output_type!r}; it must be pil, np, pt or latent")
        batch_size, device, dtype = len(labels), self._execution_device, self.unet.dtype
        guided = guidance_scale != 1
        side = self.unet.config.sample_size
        shape = (batch_size, self.unet.config.in_channels, side, side)
        self.check_noise(batch_size, generator, latents, shape)

        # 1. Timesteps, and which steps are full.
        timesteps = self.set_timesteps(num_inference_steps, "cpu")
        cache = self.start_cache(
            config, self.schedule_length(num_inference_steps, len(timesteps)), len(timesteps), eta=eta
        )

        # 2. Classes to context.
        if guided:
            labels = torch.cat([torch.full_like(labels, self.num_classes), labels])
        context = self.class_embedder(labels)  # (2B, 1, 512)

        # 3. Noise to start from.
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        latents = latents.to(device, dtype) * self.scheduler.init_noise_sigma  # (B, 3, 64, 64)
        extra = {"eta": eta, "generator": generator} if isinstance(self.scheduler, DDIMScheduler) else {}

        # 4. Denoise.
        unet_timesteps = timesteps_to_device(timesteps, device)
        with self.progress_bar(total=len(timesteps)) as bar:
            for i, t in enumerate(timesteps):
                # cache (1): equation 6, is this step full or does it retrieve? Which halves of guidance does it run?
                step = cache.plan(i, len(latents), guided=guided)
                latent_input = self.scheduler.scale_model_input(step.expand(latents), t)  # (2B, 3, 64, 64)

                output = None
                if not step.skips:  # a skipped step needs no U-Net
                    output = self.unet(
                        latent_input,
                        unet_timesteps[i],
                        step.select(context),
                        **step.unet_arguments,  # cache (2): equations 4 and 5
                    )
                noise = cache.take(step, output)  # cache (3): caches the feature for later steps
                del output  # or its feature would stay in memory through the next full step

                if guided:
                    unconditional, conditional = noise.chunk(2)  # (B, 3, 64, 64) each
                    noise = unconditional + guidance_scale * (conditional - unconditional)
                latents = self.scheduler.step(noise, t, latents, **extra, return_dict=False)[0]
                (latents,) = call_back(callback_on_step_end, self, i, t, ("latents",), latents=latents)
                bar.update()
        del step, cache  # the decoder needs the memory

        # 5. Latents to image; the decoder first quantises each position to the nearest code.
        images: Any = latents
        if output_type != "latent":
            images = self.vqvae.decode(latents / self.vqvae.config.scaling_factor).sample  # (B, 3, 256, 256)
            images = (images / 2 + 0.5).clamp(0, 1)
        if output_type in ("np", "pil"):
            images = images.float().permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def check_labels(self, class_labels: Any) -> Tensor:
        """Class labels (B,) as a tensor. Raises ValueError if it is not a list of labels, or one is out of range."""
        try:
            labels = torch.as_tensor(class_labels)
            if labels.is_floating_point() or labels.dtype == torch.bool:
                raise ValueError
            valid = labels.ndim == 1 and len(labels) and labels.min() >= 0 and labels.max() < self.num_classes
        except (TypeError, ValueError, RuntimeError):
            valid = False
        if not valid:
            raise ValueError(f"class_labels must be a list of labels from 0 to {self.num_classes - 1}")
        return labels

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str) -> Tensor:
        """The run's timesteps, descending: 997, …, 5, 1 for 250 steps. DDIM uses CompVis's rule, PLMS diffusers'.

        Raises:
            ValueError: a number of steps for which the rule has no timesteps.
        """
        trained = self.scheduler.config.num_train_timesteps
        if not 1 <= num_inference_steps < trained:
            raise ValueError(f"num_inference_steps is {num_inference_steps}; it must be 1 to {trained - 1}")
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        if not isinstance(self.scheduler, DDIMScheduler):
            return self.scheduler.timesteps
        offset = self.scheduler.config.steps_offset
        timesteps = torch.arange(0, trained, trained // num_inference_steps, device=device).flip(0) + offset
        if timesteps[0] >= trained:
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}, which would start above the last timestep, "
                f"{trained - 1}; use a divisor of {trained}"
            )
        # The scheduler steps by 1000 // steps from any given timestep, so it is enough to set the list.
        self.scheduler.timesteps = timesteps
        return timesteps

    def schedule_length(self, num_inference_steps: int, num_calls: int) -> int:
        """The number of steps that the schedule is made for: all of DDIM's, but without PLMS's extra call."""
        return num_calls if isinstance(self.scheduler, DDIMScheduler) else num_inference_steps
