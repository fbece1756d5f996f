"""What it costs to reuse a layer's output at a later step, measured on runs in which every step is full.

For each layer and step: how far the (guided) noise moves if that layer alone reuses the output of the step before. For
every other pair of steps it is taken to move in proportion to the distance between the layer's outputs, which the runs
give without running the transformer again (as `eval.calibration.forecast_errors` does for U-Nets); so do the errors of
extrapolated outputs. The noise is weighted by how far the result moves with it (`eval.calibration.influence`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.command_line import RunError
from eval.calibration.forecast_errors import forecast_errors, squared_distances
from eval.calibration.influence import influence

from .observe import guided_noise, observed_steps
from .options import Maker
from .transformer import CachedTransformerOutput


@dataclass(frozen=True, eq=False)
class Measurement:
    """Of a model's runs of T steps.

    Attributes:
        sensitivity: (T, 2 L), by how much the noise moves with the layer's output, ratio of squares; 0 at step 0.
        distances: (2 L, T, T), squared, between outputs of the layer at two steps.
        influence: (T,), how far the result moves with the noise.
        num_images: on which it was measured.
    """

    sensitivity: np.ndarray
    distances: np.ndarray
    influence: np.ndarray
    num_images: int

    def errors(self, forecast: float = 0.0) -> np.ndarray:
        """Of each layer, how far the result moves: (2 L, T, T) at [i, j], or of forecasts (2 L, T, T, T).

        Lengths, not squares: neighbouring steps reuse the same output and are off in much the same direction.
        """
        weights = np.sqrt(self.sensitivity.T) * self.influence  # (2 L, T)
        if not forecast:
            return np.sqrt(self.distances) * weights[:, None]
        squares = np.stack([forecast_errors(one, forecast, self.num_images) for one in self.distances])
        return np.sqrt(squares) * weights[:, None, None]


@torch.no_grad()
def measure(maker: Maker, indices: range, *, quiet: bool = False) -> Measurement:
    """Measures on the images of these indices. The outputs of all layers at all steps of a batch are held at once.

    Raises:
        RunError: the transformer's output holds values that are not finite.
    """
    transformer, num_steps = maker.pipe.transformer, maker.num_calls
    channels, layers = transformer.config.in_channels, 2 * maker.depth
    moved = np.zeros((num_steps, layers))
    distances = np.zeros((layers, num_steps, num_steps))
    for batch in maker.batches(indices):
        steps: list[tuple[Tensor, ...]] = []
        bar = tqdm(total=num_steps, desc="errors", disable=quiet, leave=False)

        def noise_of(output: CachedTransformerOutput) -> Tensor:
            return guided_noise(output.sample, channels, maker.guidance_scale)

        def see(inputs: dict[str, Any], output: CachedTransformerOutput) -> None:
            assert output.outputs is not None
            if steps:
                full = noise_of(output)
                for layer, old in enumerate(steps[-1]):
                    # Layers before it give what they gave; those behind it are computed anew.
                    reused = [*output.outputs[:layer], old, *[None] * (layers - layer - 1)]
                    other = noise_of(transformer.forward(**inputs | {"reused": reused}))
                    moved[len(steps), layer] += len(batch) * float((other - full).square().mean())  # noqa: B023
            steps.append(output.outputs)
            bar.update()  # noqa: B023

        with observed_steps(transformer, see):
            maker.make_batch(batch)
        bar.close()
        for layer in range(layers):
            distances[layer] += len(batch) * squared_distances([outputs[layer] for outputs in steps])
    if not (np.isfinite(moved).all() and np.isfinite(distances).all()):
        raise RunError("the transformer's predictions hold values that are not finite; try --dtype float32")
    moved, distances = moved / len(indices), distances / len(indices)
    between = np.column_stack([np.zeros(layers), distances.diagonal(1, 1, 2)]).T  # (T, 2 L), of the step before
    scheduler = maker.pipe.scheduler
    scheduler.set_timesteps(maker.steps)
    return Measurement(
        sensitivity=np.divide(moved, between, out=np.zeros_like(moved), where=between > 0),
        distances=distances,
        influence=influence(scheduler.timesteps.tolist(), scheduler.alphas_cumprod, scheduler.config.prediction_type),
        num_images=len(indices),
    )
