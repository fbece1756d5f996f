"""Which layers of a transformer each step computes, in one frozen description.

A transformer of L blocks has 2 L layers: 2 k is the attention of block k, 2 k + 1 its MLP. A step computes a layer, or
reuses the output of the last step that computed it. A step that computes all layers is full, any other is cheap.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from unets.cache.schedule import full_steps

REUSED = {"both": (True, True), "attention": (True, False), "mlp": (False, True)}  # of a block: attention, MLP
COMPUTED, REUSES = "x", "."  # a layer in a row of `layers`


@dataclass(frozen=True)
class LayerCacheConfig:
    """How a run of a diffusion transformer caches. The default is off: diffusers' pipeline bit for bit.

    Args:
        cache_interval: N. Every N-th step is full, as in DeepCache's equation 6.
        outer_blocks: m. Cheap steps compute the first m and the last m blocks too, and reuse the layers of those
            between; a transformer has no skips, and these stand for the shallow part of a U-Net.
        reuse: which layers of a block are reused: attention, mlp or both.
        layers: all of it by hand instead, for each step of the run a word of 2 L letters, x for a layer that is
            computed and . for one that is reused. It is what routers and searches come to.
        forecast: g of `FeatureCache`: 0 reuses the last output as it is, 1 extrapolates the outputs computed last.
        forecast_order: of the polynomial through them, 1 the line.

    Raises:
        ValueError: an argument out of range, by name. What depends on the run is checked by `table`.
    """

    cache_interval: int = 1
    outer_blocks: int = 0
    reuse: str = "both"
    layers: Sequence[str] | None = None
    forecast: float = 0.0
    forecast_order: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("cache_interval", 1), ("outer_blocks", 0)):
            try:
                right = operator.index(getattr(self, name)) >= least
            except TypeError:
                right = False
            if not right:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a whole number of at least {least}")
        for name, least, most in (("forecast", -10, 10), ("forecast_order", 1, 3)):
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int | float) or not least <= given <= most:
                raise ValueError(f"{name} is {given!r}; it must be a number from {least} to {most}")
        if self.reuse not in REUSED:
            raise ValueError(f"reuse is {self.reuse!r}; it must be one of {', '.join(REUSED)}")
        if self.layers is not None:
            self._check_layers()

    def _check_layers(self) -> None:
        if self.cache_interval != 1 or self.outer_blocks or self.reuse != "both":
            raise ValueError("layers says all of a schedule; give it without cache_interval, outer_blocks and reuse")
        rows = self.layers
        if isinstance(rows, str) or not isinstance(rows, Sequence) or not rows:
            raise ValueError('layers must be a word for each step, such as ["xxxx", "x..x"] for two blocks')
        for k, row in enumerate(rows):
            if not isinstance(row, str) or not row or set(row) - {COMPUTED, REUSES} or len(row) != len(rows[0]):
                raise ValueError(f"layers[{k}] is {row!r}; each must be a word of x and ., all of the same length")
        if REUSES in rows[0]:
            raise ValueError("layers[0] reuses a layer, but the first step has nothing to reuse; it must be all x")
        object.__setattr__(self, "layers", tuple(rows))

    def table(self, num_steps: int, depth: int) -> np.ndarray:
        """Whether each step computes each layer, bool (T, 2 L), of a run of T steps and a transformer of L blocks.

        Raises:
            ValueError: a schedule of another number of steps or layers; as many outer blocks as there are blocks.
        """
        if self.layers is not None:
            shape = (len(self.layers), len(self.layers[0]))
            if shape != (num_steps, 2 * depth):
                raise ValueError(
                    f"layers is a schedule of {shape[0]} steps and {shape[1]} layers; this run has {num_steps} steps "
                    f"and the transformer {2 * depth} layers (two a block)"
                )
            return np.array([[letter == COMPUTED for letter in row] for row in self.layers])
        if self.cache_interval > 1 and 2 * self.outer_blocks >= depth:
            raise ValueError(
                f"outer_blocks is {self.outer_blocks}, first and last, which leaves none of {depth} blocks to reuse; "
                f"it must be at most {(depth - 1) // 2}"
            )
        cheap = np.ones((depth, 2), dtype=bool)
        cheap[self.outer_blocks : depth - self.outer_blocks] = ~np.array(REUSED[self.reuse])
        table = np.tile(cheap.flatten(), (num_steps, 1))
        table[full_steps(num_steps, self.cache_interval)] = True
        return table

    @classmethod
    def of_table(cls, table: np.ndarray, **others: Any) -> Self:
        """The description with these layers computed, bool (T, 2 L)."""
        return cls(layers=tuple("".join(COMPUTED if x else REUSES for x in row) for row in table), **others)

    def name(self) -> str:
        """Short, for a folder's name, such as N2-m1; a schedule by hand is `layers`."""
        parts = ["layers"] if self.layers is not None else [f"N{self.cache_interval}"]
        if self.layers is None and self.cache_interval > 1:
            parts += [f"m{self.outer_blocks}"] + ([self.reuse] if self.reuse != "both" else [])
        if self.forecast:
            parts.append(f"f{self.forecast:g}" + (f"o{self.forecast_order:g}" if self.forecast_order != 1 else ""))
        return "-".join(parts)

    def to_json(self) -> dict[str, Any]:
        """What differs from the default, for `from_json`."""
        default = type(self)()
        content = {k: v for k, v in asdict(self).items() if v != getattr(default, k)}
        return content | ({"layers": list(self.layers)} if self.layers is not None else {})

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Raises ValueError for what `to_json` does not write."""
        if not isinstance(content, dict) or (unknown := content.keys() - {field.name for field in fields(cls)}):
            what = f"has {', '.join(sorted(unknown))}" if isinstance(content, dict) else f"is {content!r}"
            raise ValueError(f"the description of a layer cache {what}; write it with to_json")
        return cls(**content)


def shares(table: np.ndarray) -> tuple[float, float]:
    """Which part of all attentions and of all MLPs of a run is computed."""
    return float(table[:, ::2].mean()), float(table[:, 1::2].mean())


def is_off(table: np.ndarray) -> bool:
    """Whether every step computes every layer."""
    return bool(math.prod(table.shape) == table.sum())
