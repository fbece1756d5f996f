"""What it costs to reuse a layer's output at a later step, measured on runs in which every step is full.

For each layer and step: how far the (guided) noise moves if that layer alone reuses the output of the step before. For
every other pair of steps it is taken to move in proportion to the distance between the layer's outputs, which the runs
give without running the transformer again (as `eval.calibration.forecast_errors` does for U-Nets); so do the errors of
extrapolated outputs. The noise is weighted by how far the result moves with it (`eval.calibration.influence`).
"""

from __future__ import annotations

from collections.abc import Sequence
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
    num_steps, layers = maker.num_calls, 2 * maker.depth
    moved = np.zeros((num_steps, layers))
    distances = np.zeros((layers, num_steps, num_steps))
    for batch in maker.batches(indices):
        of_batch, steps = _measure_batch(maker, batch, quiet)
        moved += len(batch) * of_batch
        for layer in range(layers):
            distances[layer] += len(batch) * squared_distances([outputs[layer] for outputs in steps])
        del steps
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


def _measure_batch(maker: Maker, batch: Sequence[int], quiet: bool) -> tuple[np.ndarray, list[tuple[Tensor, ...]]]:
    """How far the noise moves, mean squares (T, 2 L); and the outputs of all layers at all steps."""
    transformer, layers = maker.pipe.transformer, 2 * maker.depth
    channels = transformer.config.in_channels
    moved = np.zeros((maker.num_calls, layers))
    steps: list[tuple[Tensor, ...]] = []
    bar = tqdm(total=len(moved), desc="errors", disable=quiet, leave=False)

    def see(inputs: dict[str, Any], output: CachedTransformerOutput) -> None:
        assert output.outputs is not None
        full = guided_noise(output.sample, channels, maker.guidance_scale)
        for layer, old in enumerate(steps[-1] if steps else ()):
            # Layers before it give what they gave; those behind it are computed anew.
            reused = [*output.outputs[:layer], old, *[None] * (layers - layer - 1)]
            sample = transformer.forward(**inputs | {"reused": reused, "return_dict": False})[0]
            other = guided_noise(sample, channels, maker.guidance_scale)
            moved[len(steps), layer] = float((other - full).square().mean())
        steps.append(output.outputs)
        bar.update()

    with observed_steps(transformer, see):
        maker.make_batch(batch)
    bar.close()
    return moved, steps
