"""The outputs that one run keeps of its layers, and what a step is given of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from unets.cache.features import FeatureCache

from .config import LayerCacheConfig, is_off

Outputs = Sequence[Tensor | None]
"""Of each of the 2 L layers what it is to reuse, (B, tokens, width), or None where it is computed."""


class LayerCacheRun:
    """The cache of one run of T steps of a transformer of L blocks: a `FeatureCache` for each layer.

    Attributes:
        table: bool (T, 2 L), which layers are computed at which steps.

    Raises:
        ValueError: a description that does not fit, by name.
    """

    def __init__(self, config: LayerCacheConfig, num_steps: int, depth: int) -> None:
        self.table = config.table(num_steps, depth)
        self._off = is_off(self.table)
        self._layers = [
            FeatureCache(column.nonzero()[0].tolist(), num_steps, config.forecast, config.forecast_order)
            for column in self.table.T
        ]

    def reused(self, i: int, batch_size: int) -> Outputs | None:
        """What the step at position i reuses, for a batch of that many rows; None if nothing is cached in this run."""
        if self._off:
            return None
        outputs = []
        for layer in self._layers:
            cached = layer.get(i, batch_size)
            outputs.append(None if cached is None else cached[0])
        return outputs

    def keep(self, i: int, outputs: Outputs | None) -> None:
        """Keeps, of the outputs of all layers (2 L) at position i, those that were computed there."""
        for computed, layer, output in zip(self.table[i], self._layers, outputs or (), strict=False):
            if computed and output is not None:
                layer.put(i, (output,))
