"""Other training-free methods to compare with: T-GATE, EasyCache, PFDiff, Align Your Steps.

They are implemented from their papers, for the pipelines and samplers of this repository; none of their code is here,
and their published results are for other models. Each has its authors' settings; our own choices are listed under
"Ours". SADA (Jiang et al. 2025, arXiv 2507.17135) is left out: it decides its steps together with the tokens that it
prunes, and the paper does not describe that in enough detail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor, nn

from ddpm.sampler import alphas_cumprod, denoise, noise_like, timesteps_of
from image_sets.batches import Batch

AYS_TIMESTEPS = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0)  # for Stable Diffusion 1.5, 10 steps and the end


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While open, calls of the module run `forward`."""
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward  # uncovers the class's own


@contextmanager
def tgate(unet: Any, gate_step: int) -> Iterator[None]:
    """T-GATE (Zhang et al. 2024, arXiv 2404.02747), on one run of a guided pipeline.

    The first `gate_step` calls are unchanged. In the last of them each cross-attention's output is cached, averaged
    over the two halves of guidance. All later calls add that instead of running cross-attention, and since the two
    halves are then the same, they run only one, whose noise is used without guidance.

    The authors use 10 of 25 steps, and 5 in their table of MACs (SD 1.5: 16.938 → 9.875 T, which is 5 whole steps and
    20 halves without cross-attention). Their later version, which also skips self-attention before the gate, is not
    implemented. Ours: with 50 steps the gate is at the same fraction of the run.
    """
    run, calls = unet.forward, 0
    kept: dict[str, Tensor] = {}

    def attention(name: str, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if calls > gate_step:
                return kept[name]
            added = attend(*args, **kwargs)
            if calls == gate_step:
                unconditional, conditional = added.chunk(2)  # (B, positions, C) each
                kept[name] = (unconditional + conditional) / 2
            return added

        return forward

    def forward(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= gate_step:
            return run(sample, timestep, encoder_hidden_states=encoder_hidden_states, **kwargs)
        sample, encoder_hidden_states = sample.chunk(2)[1], encoder_hidden_states.chunk(2)[1]
        noise = run(sample, timestep, encoder_hidden_states=encoder_hidden_states, **kwargs).sample
        return SimpleNamespace(sample=torch.cat([noise, noise]))

    with ExitStack() as stack:
        for name, layer in unet.named_modules():
            if name.endswith(".attn2"):
                stack.enter_context(forward_replaced(layer, attention(name, layer.forward)))
        stack.enter_context(forward_replaced(unet, forward))
        yield


@contextmanager
def easycache(
    unet: Any, num_calls: int, threshold: float = 0.05, warm_up: int = 10, guided: bool = False
) -> Iterator[None]:
    """EasyCache (Zhou et al. 2025, arXiv 2507.02860), on one run of `num_calls` calls of the U-Net.

    With input x and output v of a call, the next calls reuse the difference Δ = v − x of the last computed call,
    v ≈ x + Δ, as long as the sum E of their expected errors is below `threshold`:

        E ← E + k ‖x − x′‖ / ‖v′‖,    k = ‖v_i − v_i′‖ / ‖x_i − x_i′‖ of the last computed call i,

    where ′ is the previous call and norms are means of absolute values. The call at which E reaches the threshold is
    computed, and E is reset to 0. The first `warm_up` calls and the last are always computed. 5 % and 10 are the
    authors' settings for 50 steps of Wan2.1, a flow model of videos.

    Ours: one decision for all pictures of a batch, by their means. With guidance the conditional half decides, as in
    the original.
    """
    run, calls = unet.forward, 0
    before: tuple[Tensor, Tensor] | None = None  # x and v of the last call
    rate = error = 0.0
    delta = torch.empty(0)

    def norm(x: Tensor) -> float:
        return float((x.chunk(2)[1] if guided else x).abs().mean())

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls, before, rate, error, delta
        calls += 1
        if before is not None and warm_up < calls < num_calls:
            error += rate * norm(x - before[0]) / norm(before[1])
            if error < threshold:
                before = x, x + delta
                return SimpleNamespace(sample=before[1])
        output = run(x, *args, **kwargs)
        if before is not None:
            rate = norm(output.sample - before[1]) / norm(x - before[0])
        before, error, delta = (x, output.sample), 0.0, output.sample - x
        return output

    with forward_replaced(unet, forward):
        yield


class PFDiff:
    """PFDiff-1 (Wang et al. 2024, arXiv 2408.08822) on DDIM: n calls of the model on a grid of 2n − 1 timesteps.

    From x at the grid's position i, the noise ε′ of the last call takes DDIM to a springboard at i + 1; the model's
    noise ε there takes it from x at i to i + 2, and is the next ε′. The first step is plain DDIM. With
    y = x / √ᾱ and σ = √(1/ᾱ − 1) a DDIM step is y ← y + (σ_next − σ) ε, so that from springboard to springboard

        y_{i+3} = y_{i+1} + (σ_{i+3} − σ_i) ε_{i+1} + (σ_i − σ_{i+1}) ε_{i−1}.

    Args:
        sigmas: of the grid and of the run's end, falling, 2n numbers.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        self._sigmas = list(sigmas)
        self._earlier: Tensor | None = None
        self._k = 0  # position of the next call

    def add(self, noise: Tensor) -> Tensor:
        """The change of y (B, …) from this call, given its predicted noise, to the next one or to the end."""
        k, last = self._k, len(self._sigmas) - 1
        target = self._sigmas[min(k + 2, last)]
        if self._earlier is None:
            way = (target - self._sigmas[0]) * noise
        else:
            base = self._sigmas[k - 1]
            way = (target - base) * noise + (base - self._sigmas[k]) * self._earlier
        self._earlier, self._k = noise, k + 2
        return way


class PFDiffScheduler(DDIMScheduler):
    """PFDiff-1 for a pipeline, `num_inference_steps` being the calls of the model.

    Ours: the grid is evenly spaced from the last timestep to 0, as for DPM++ here; for a model that predicts v, the
    noise is what is carried over.
    """

    def set_timesteps(self, num_inference_steps: int, *args: Any, **kwargs: Any) -> None:
        """Every other one of a grid of 2n − 1 timesteps; starts a new run."""
        super().set_timesteps(num_inference_steps, *args, **kwargs)
        grid = np.linspace(self.config.num_train_timesteps - 1, 0, 2 * num_inference_steps).round().astype(np.int64)
        self._sigmas = (1 / self.alphas_cumprod.double() - 1).sqrt().numpy()
        self.timesteps = torch.from_numpy(grid[:-1:2].copy())
        self._targets = dict(zip(grid[:-1:2].tolist(), [*grid[2::2].tolist(), 0], strict=True))
        self._pfdiff = PFDiff(self._sigmas[grid].tolist())

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *, return_dict: bool = True, **_: Any) -> Any:
        """x at the next timestep (B, …), from x and the model's prediction."""
        sigma, target = self._sigmas[int(timestep)], self._sigmas[self._targets[int(timestep)]]
        alpha = 1 / (1 + sigma**2)  # ᾱ
        noise = model_output
        if self.config.prediction_type == "v_prediction":
            noise = alpha**0.5 * model_output + (1 - alpha) ** 0.5 * sample
        sample = (sample / alpha**0.5 + self._pfdiff.add(noise)) / float(1 + target**2) ** 0.5
        return DDIMSchedulerOutput(prev_sample=sample) if return_dict else (sample,)


def pfdiff_sample(unet: Any, batch: Batch, calls: int) -> Tensor:
    """Pictures (B, 3, H, W) of a DDPM with PFDiff-1, on a quadratic grid."""
    grid = timesteps_of(2 * calls - 1, "quad")[::-1]
    sigmas = (1 / alphas_cumprod().double() - 1).sqrt()
    pfdiff = PFDiff([float(sigmas[t + 1]) for t in (*grid, -1)])

    def step(x: Tensor, eps: Tensor, alpha: Tensor, alpha_next: Tensor) -> Tensor:
        return (x / alpha.sqrt() + pfdiff.add(eps)) * alpha_next.sqrt()

    side = unet.config.sample_size
    x = noise_like(torch.empty(len(batch.indices), unet.config.in_channels, side, side), batch.generators)
    with torch.no_grad():
        return denoise(unet, x, grid[::2][::-1], step)


class AlignYourStepsScheduler(DPMSolverMultistepScheduler):
    """DPM++ on the timesteps of Align Your Steps (Sabour et al. 2024, arXiv 2404.14507) for Stable Diffusion 1.5.

    They give 10 timesteps; for other numbers log σ is interpolated linearly, as they advise. Those were optimised for
    that model's images; the model here has the same noise schedule but other images.
    """

    def set_timesteps(self, num_inference_steps: int, *args: Any, **kwargs: Any) -> None:
        """Like the parent's, on those timesteps."""
        super().set_timesteps(num_inference_steps, *args, **kwargs)
        log_sigmas = (1 / self.alphas_cumprod.double() - 1).sqrt().log().numpy()
        theirs = log_sigmas[list(AYS_TIMESTEPS)]
        wanted = np.interp(np.linspace(0, len(theirs) - 1, num_inference_steps + 1), range(len(theirs)), theirs)
        timesteps = np.interp(wanted, log_sigmas, range(len(log_sigmas))).round().astype(np.int64)
        self.sigmas = torch.from_numpy(np.exp(log_sigmas[timesteps])).float()
        self.timesteps = torch.from_numpy(timesteps[:-1])
