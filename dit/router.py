"""Learning-to-Cache (Ma et al. 2024): which layers of every second step to compute, learned on frozen weights.

Steps go in pairs, a full one and a cheap one behind it. A pair's router has a score between 0 and 1 for each of the 2 L
layers. While it is trained, a layer of the cheap step gives that share of what it computes, and the rest of what the
full step's layer gave; the loss is how far the noise is from that of a full step, and a penalty on the sum of scores:

    loss = mean |ε̂ − ε|² + λ · Σ score

Afterwards the layers whose scores are above a threshold are computed, and the others reused.

Three things differ from the released code. Latents are those of the sampler's own runs with every step full, instead
of noised training pictures, so that no data is needed; all pairs of a run are trained at once; and the noise is the
guided one, which is what the sampler gets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .macs import LayerMacs
from .observe import guided_noise, observed_steps
from .options import Maker
from .transformer import CachedTransformerOutput

BEGINNING = 2.0  # of all logits: scores of 0.88
BOUND = 5.0  # of logits, as in the released code, so that none is lost for good
THRESHOLD = 0.1  # of scores, the paper's


class Router(nn.Module):
    """Scores of T // 2 pairs of steps and 2 L layers."""

    def __init__(self, num_steps: int, depth: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((num_steps // 2, 2 * depth), BEGINNING))

    def scores(self) -> Tensor:
        """(T // 2, 2 L), 0 to 1."""
        return self.logits.sigmoid()


def train(
    maker: Maker,
    router: Router,
    *,
    runs: int,
    learning_rate: float,
    penalty: float,
    first: int,
    see: Callable[..., Any],
) -> None:
    """Trains a router on so many runs of the sampler, one batch of pictures each, with Adam.

    Args:
        penalty: λ.
        first: the number of the first picture, from which noise and class follow.
        see: is given, after each run, the means over its pairs of the distance and of the whole loss.
    """
    transformer = maker.pipe.transformer.requires_grad_(False)
    channels = transformer.config.in_channels
    optimizer = torch.optim.Adam(router.parameters(), lr=learning_rate)
    for run in range(runs):
        kept: list[CachedTransformerOutput] = []
        distances: list[float] = []

        def watch(inputs: dict[str, Any], output: CachedTransformerOutput) -> None:
            kept.append(output)  # noqa: B023
            if len(kept) % 2:  # noqa: B023
                return  # the full step of a pair
            full, pair = kept[-2], len(kept) // 2 - 1  # noqa: B023
            with torch.enable_grad():
                scores = router.scores()[pair]  # (2 L,)
                arguments = inputs | {"reused": full.outputs, "shares": scores, "return_dict": False}
                mixed = guided_noise(transformer.forward(**arguments)[0], channels, maker.guidance_scale)
                wanted = guided_noise(output.sample, channels, maker.guidance_scale)
                distance = (mixed - wanted).square().mean()
                (distance + penalty * scores.sum()).backward()
            distances.append(float(distance.detach()))  # noqa: B023
            kept[-2:] = [CachedTransformerOutput(sample=None)] * 2  # noqa: B023  # their memory is needed

        with observed_steps(transformer, watch):
            maker.make_batch(range(first + run * maker.batch_size, first + (run + 1) * maker.batch_size))
        cost = penalty * float(router.scores().detach().sum()) / len(router.logits)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            router.logits.clamp_(-BOUND, BOUND)
        see(float(np.mean(distances)), float(np.mean(distances)) + cost)


def table_of(scores: np.ndarray, num_steps: int, threshold: float) -> np.ndarray:
    """Which layers a run computes, bool (T, 2 L): all of even steps, and of the others those scored above that."""
    table = np.ones((num_steps, scores.shape[1]), dtype=bool)
    table[1::2] = scores > threshold
    return table


def threshold_within(scores: np.ndarray, num_steps: int, macs: LayerMacs, budget: float) -> float:
    """The least threshold, one of the scores, with that speed-up.

    Raises:
        ValueError: a budget that is out of reach for pairs, whose first steps are full.
    """
    for threshold in np.unique(scores):
        if macs.speed_up(table_of(scores, num_steps, threshold)) >= budget:
            return float(threshold)
    most = macs.speed_up(table_of(scores, num_steps, 1.0))
    raise ValueError(f"a budget of {budget:g}x is out of reach: every second step is full, which allows {most:.2f}x")
