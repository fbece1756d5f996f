"""What a calibration prints, and what it writes for `--calibrated` to read."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.cache_options import CALIBRATED
from unets.cache.config import PAPER

from .candidates import Trial

NEAR = 30  # dB, above which images look about the same


def table(tried: Sequence[Trial], num_calls: int) -> str:
    """A line for each trial, in runs of `num_calls` calls."""
    lines = [f"{'m':>3}{'full':>9}  {'schedule':<11}{'fewer MACs':>11}{'predicted error':>17}{'PSNR':>9}"]
    for one in tried:
        lines.append(
            f"{one.branch:>3}{len(one.cache_steps):>5}/{num_calls:<4} {one.kind:<11}{one.speed_up:>9.2f} ×"
            f"{one.predicted:>17.4g}{one.psnr:>6.2f} dB"
        )
    return "\n".join(lines)


def summary(chosen: Trial) -> str:
    """The chosen schedule in a line."""
    g = chosen.cache.forecast
    what = f"{chosen.kind}, m = {chosen.branch}"
    what += f", forecast {'fitted' if isinstance(g, tuple) else f'{g:g}'}" if g else ""
    return f"{what}: {chosen.speed_up:.2f} × fewer MACs, {chosen.psnr:.2f} dB"


def warning(chosen: Trial) -> str | None:
    """A warning about a schedule whose images are far from those without a cache."""
    if chosen.psnr >= NEAR:
        return None
    return (
        f"{chosen.psnr:.1f} dB is far from the images without a cache: below {NEAR} dB the difference is obvious. "
        f"Ask for less, such as --budget {max(1.1, (1 + chosen.speed_up) / 2):.1f}x, or for --quality {NEAR}."
    )


def to_json(
    *, script: str, model: str, steps: int, recorded: dict[str, object], num_images: int, tried: Sequence[Trial],
    chosen: Trial, command: str,
) -> dict[str, object]:  # fmt: skip
    """The content of a calibration file.

    Args:
        recorded: the settings of the set of images, as its settings.json has them.
        num_images: number of images used to calibrate, and number of others used for trials.
    """
    return {
        "script": script,
        "model": model,
        "steps": steps,
        "settings": {name: value for name, value in recorded.items() if name not in PAPER},
        "num_images": {"calibrated_on": num_images, "tried_on": num_images},
        "forecast": 0.0,
        **{name: value for name, value in chosen.cache.to_json().items() if name in CALIBRATED},
        "chosen": chosen.to_json(),
        "tried": [one.to_json() for one in tried],
        "command": command,
    }
