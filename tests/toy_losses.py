"""Runs of six steps whose features and noises move at random, and schedules of four kinds for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from eval.calibration.kinds import Losses, Schedule

T = 6
COST: dict[Any, int] = {"full": 10, "refresh": 5, "retrieve": 2, "skip": 0}


def walk(seed: int, size: int = 6) -> torch.Tensor:
    """T values (T, size) that move at random."""
    return torch.randn(T, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).cumsum(0)


def squares(values: torch.Tensor) -> np.ndarray:
    return ((values[:, None] - values[None]) ** 2).mean(-1).numpy()


def losses_of(seed: int, kinds: Any = ("retrieve", "refresh", "skip"), forecast: float = 1.0) -> Losses:
    values = {kind: walk(3 * seed + k) for k, kind in enumerate(("retrieve", "refresh", "skip"))}
    chance = np.random.default_rng(seed)
    factors: dict[Any, np.ndarray] = {kind: np.abs(chance.normal(size=T)) + 0.1 for kind in ("retrieve", "refresh")}
    influence = np.abs(chance.normal(size=T)) + 0.1
    squared = {kind: squares(values[kind]) for kind in kinds}
    return Losses(squared, {k: f for k, f in factors.items() if k in kinds}, influence, COST, forecast, T)


schedules = st.builds(
    Schedule,
    st.lists(st.sampled_from(list(COST)), min_size=T - 1, max_size=T - 1).map(lambda rest: ("full", *rest)),
    st.sampled_from([1.0, 1.5, 2.0]),
    st.sampled_from([1.0, 2.0, 2.5]),
)
