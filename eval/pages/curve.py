"""A plot of speed against distance for the settings that were tried."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 48, 24, 16, 44  # margins
COLOURS = ("#2a62a5", "#c2571a", "#3b7d3b", "#8a4fa3", "#8a6d1d")


class Point(NamedTuple):
    """One setting: its speed-up, the PSNR of its pictures to the baseline's, and where it is shown."""

    name: str
    model: str
    speed_up: float
    psnr: float
    anchor: str


class Mark(NamedTuple):
    """A place on the drawing, with what is written there."""

    x: float
    y: float
    text: str


class Line(NamedTuple):
    model: str
    colour: str
    marks: list[Mark]


class Curve(NamedTuple):
    """What the template draws; marks are numbered as the rows of the table beside it."""

    points: list[Point]
    lines: list[Line]
    across: list[Mark]  # ticks of the speed-up
    up: list[Mark]  # ticks of the PSNR


def curve_of(points: Sequence[Point]) -> Curve:
    """Points in the order of their speed-up, a line for each model."""
    ordered = sorted(points, key=lambda point: (point.model, point.speed_up))
    speeds, distances = _ticks([point.speed_up for point in ordered]), _ticks([point.psnr for point in ordered])

    def x(value: float) -> float:
        share = (value - speeds[0]) / (speeds[-1] - speeds[0])
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        share = (value - distances[0]) / (distances[-1] - distances[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    lines: dict[str, list[Mark]] = {}
    for k, point in enumerate(ordered, 1):
        lines.setdefault(point.model, []).append(Mark(x(point.speed_up), y(point.psnr), str(k)))
    return Curve(
        ordered,
        [Line(model, COLOURS[k % len(COLOURS)], marks) for k, (model, marks) in enumerate(lines.items())],
        [Mark(x(tick), HEIGHT - BOTTOM, f"{tick:g}×") for tick in speeds],
        [Mark(LEFT, y(tick), f"{tick:g}") for tick in distances],
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, three to seven of them, from below the least value to above the greatest."""
    low, high = min(values), max(values)
    span = max(high - low, 0.1 * abs(high), 1e-3)
    power = 10 ** math.floor(math.log10(span))
    step = next(power * factor for factor in (0.2, 0.5, 1, 2, 5) if span / (power * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    last += first == last
    return [round(k * step, 6) for k in range(first, last + 1)]
