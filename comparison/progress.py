"""The progress of a comparison, and the time left."""

from __future__ import annotations

from collections.abc import Sequence


class RunProgress:
    """Counts alternating runs, and estimates the time left from the last run of each."""

    def __init__(self, names: Sequence[str], rounds: int) -> None:
        self.names = names
        self.total = rounds * len(names)
        self.done = 0
        self.seconds: dict[str, float] = {}  # of the last run of each name

    def ended(self, name: str, seconds: float) -> None:
        self.done += 1
        self.seconds[name] = seconds

    def seconds_left(self) -> float | None:
        """None until each has run once."""
        if len(self.seconds) < len(self.names):
            return None
        return sum(self.seconds[self.names[k % len(self.names)]] for k in range(self.done, self.total))

    def __str__(self) -> str:
        """Which run comes next, such as "run 3 of 8, about 40 s left"."""
        left = self.seconds_left()
        return f"run {self.done + 1} of {self.total}" + ("" if left is None else f", about {duration(left)} left")


def duration(seconds: float) -> str:
    """40 s, 12 min, 2.5 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"
