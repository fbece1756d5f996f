"""One progress bar over all rows of all tables, with the time left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from tqdm import tqdm

from .jobs import Job, Options, baseline_of
from .macs import tmacs_of

SCORING = 0.05  # as a share of the time for a set's images, as measured with the shipped models
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, about {remaining} left{postfix}"


class TableBar:
    """Progress over sets of images, scores and timed calls, weighted by their MACs.

    Args:
        to_make, to_score, to_time: the jobs for which this remains to be done.
    """

    def __init__(
        self, to_make: Iterable[Job], to_score: Iterable[Job], to_time: Iterable[Job], options: Options, shown: bool
    ) -> None:
        self.work: dict[tuple[str, str], float] = {}
        if shown:
            self.work |= {("images", job.name): tmacs_of(job) for job in to_make}
            self.work |= {("scores", job.name): SCORING * tmacs_of(job) for job in to_score}
            self.work |= {("speed", job.name): _timed_tmacs(job, options) for job in to_time}
        total = sum(self.work.values())
        self.bar = tqdm(total=total or None, desc="tables", bar_format=FORMAT, smoothing=0, disable=not shown)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def begins(self, kind: str, job: Job) -> None:
        """Shows what is in progress."""
        self.bar.set_postfix_str(f"{job.name}, {kind}")

    def advance(self, kind: str, job: Job, share: float = 1.0) -> None:
        """Advances by this share of the job's images, scores or speed."""
        self.bar.update(share * self.work.get((kind, job.name), 0.0))

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        tqdm.write(text)


def _timed_tmacs(job: Job, options: Options) -> float:
    """T MACs of all timed calls of a job and its baseline, a warm-up of each among them."""
    baseline = baseline_of(job, options, job.model.speed_over)
    pair = [one for one in (baseline, job) if one is not None]
    batch_size = options.speed_batch or job.model.speed_batch
    return sum(tmacs_of(one) / one.num_images for one in pair) * batch_size * (1 + options.repeats)
