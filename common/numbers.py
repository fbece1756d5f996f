"""Numbers of a command line: `type=` functions with bounds, so that invalid values are rejected on parsing."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

MOST_PIXELS = 16384  # per side; attention over more needs terabytes
MOST_STEPS = 10_000
MOST_IMAGES = 10_000_000
MOST_LISTED = 1000
LARGEST = 2**31 - 1  # where there is no other bound


def whole(least: int = 1, most: int = LARGEST) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"is {_shown(text)}; it must be a whole number from {least:,} to {most:,}")
        return number

    return parse


def real(least: float, most: float) -> Callable[[str], float]:
    """A number from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"is {_shown(text)}; it must be a number from {least:,g} to {most:,g}")
        return number

    return parse


def wholes(least: int = 0, most: int = LARGEST) -> Callable[[str], list[int]]:
    """Whole numbers from `least` to `most`, separated by commas."""
    parse_one = whole(least, most)

    def parse(text: str) -> list[int]:
        parts = text.split(",")
        if len(parts) > MOST_LISTED:
            raise argparse.ArgumentTypeError(f"is a list of {len(parts):,} numbers; give at most {MOST_LISTED:,}")
        return [parse_one(part) for part in parts]

    return parse


def pixels(text: str) -> int:
    """A height or width in pixels; latents have an eighth of it."""
    side = whole(8, MOST_PIXELS)(text)
    if side % 8:
        raise argparse.ArgumentTypeError(
            f"is {side}; it must be divisible by 8, as {side // 8 * 8} and {side // 8 * 8 + 8} are"
        )
    return side


steps = whole(1, MOST_STEPS)
images = whole(1, MOST_IMAGES)  # how many of them
batch = whole(1, 100_000)
repeats = whole(1, 10_000)
warm_up = whole(0, 10_000)
seed = whole(0, 2**63 - 1)
branch = whole(0, 1000)
branches = wholes(0, 1000)
interval = whole(1, MOST_STEPS)
intervals = wholes(1, MOST_STEPS)
guidance = real(0, 1000)
forecast = real(-10, 10)


def _shown(text: str) -> str:
    text = text if len(text) <= 40 else f"{text[:37]}…"
    return text if text.isprintable() and text.strip() == text != "" else repr(text)
