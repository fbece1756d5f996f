"""A fork of diffusers' `DiTPipeline`: class to image with a diffusion transformer, with a layer cache in its loop."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from .cache import LayerCacheRun
from .config import LayerCacheConfig
from .transformer import Transformer2DModel

OFF = LayerCacheConfig()


class DiTPipeline(diffusers.DiTPipeline):
    """diffusers' class over the forked transformer. What it saves loads as diffusers' own.

    The class that stands for any is the one behind the last, which is 1000 for ImageNet; diffusers has that number in
    its code, so that its own pipeline guides models of 1,000 classes alone.
    """

    def __init__(self, transformer: Any, vae: Any, scheduler: Any, id2label: dict[Any, str] | None = None) -> None:
        super().__init__(transformer, vae, scheduler, id2label)
        self.transformer = Transformer2DModel.sharing(transformer)
        self.register_to_config(transformer=("diffusers", "Transformer2DModel"))
        if id2label is not None:
            self.register_to_config(id2label=id2label)  # or it would not be saved

    @property
    def num_classes(self) -> int:
        """Without the one that stands for any, whose label this number is."""
        return self.transformer.config.num_embeds_ada_norm

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int],
        guidance_scale: float = 4.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cache: LayerCacheConfig = OFF,
    ) -> ImagePipelineOutput | tuple[Any, ...]:
        """Makes an image of each class. Shapes in the comments are those of DiT-XL/2 for 256 × 256 pixels.

        Args:
            class_labels: B labels, 0 to `num_classes` − 1.
            guidance_scale: up to 1 leaves the unguided half out.
            generator: one for all images, or one for each.
            output_type: "pil", or "np" (B, H, W, 3) in [0, 1].
            cache: which layers are computed at which steps; off by default, and then diffusers' bit for bit.

        Raises:
            ValueError: a label out of range, or a cache that does not fit the run, by name.
        """
        # 0. Check.
        batch_size, channels = len(class_labels), self.transformer.config.in_channels
        side, device = self.transformer.config.sample_size, self._execution_device
        if not batch_size or not all(0 <= label < self.num_classes for label in class_labels):
            raise ValueError(f"class_labels is {class_labels}; it must be labels from 0 to {self.num_classes - 1}")
        guided = guidance_scale > 1

        # 1. Noise, classes, timesteps.
        latents = randn_tensor(
            (batch_size, channels, side, side), generator=generator, device=device, dtype=self.transformer.dtype
        )  # (B, 4, 32, 32)
        labels = torch.tensor(class_labels, device=device).reshape(-1)  # (B,)
        if guided:
            latents = torch.cat([latents] * 2)  # (2B, 4, 32, 32)
            labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])  # (2B,)
        self.scheduler.set_timesteps(num_inference_steps)
        timesteps = self.scheduler.timesteps
        run = LayerCacheRun(cache, len(timesteps), self.transformer.depth)  # cache (1): equation 6, layer by layer

        # 2. Denoise.
        for i, t in enumerate(self.progress_bar(timesteps)):
            if guided:
                latents = torch.cat([latents[:batch_size]] * 2)  # a sampler that draws noise draws it for both halves
            latents = self.scheduler.scale_model_input(latents, t)
            output = self.transformer(
                latents,
                timestep=torch.as_tensor(t, device=device).reshape(1).expand(len(latents)),
                class_labels=labels,
                reused=run.reused(i, len(latents)),  # cache (2): equation 5
            )
            run.keep(i, getattr(output, "outputs", None))  # cache (3): equation 4
            noise = output.sample[:, :channels]  # (2B, 4, 32, 32); behind them is the learned variance, not used
            if guided:
                conditional, unconditional = noise.chunk(2)  # (B, 4, 32, 32) each
                noise = torch.cat([unconditional + guidance_scale * (conditional - unconditional)] * 2)
            latents = self.scheduler.step(noise, t, latents).prev_sample
        del run, output  # the decoder needs the memory

        # 3. Latents to image.
        latents = 1 / self.vae.config.scaling_factor * latents[:batch_size]
        images: Any = (self.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)  # (B, 3, 256, 256)
        images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def class_names(pipe: DiTPipeline) -> dict[int, str]:
    """What each label stands for, as far as the model says."""
    names: dict[int, str] = {}
    for name, label in pipe.labels.items():
        names.setdefault(label, name)
    return names
