"""Results of the scripts of this repository, with the images of two runs, as a page shows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.reading import read_json

RESULT = "result.json"

CACHE = {  # entries that describe a cache, and their labels; `cache_steps` replaces the interval
    "cache_interval": "cache interval N",
    "cache_branch_id": "skip branch m",
    "cache_steps": "full steps",
    "center": "full steps gathered around step",
    "pow": "with power",
    "forecast": "forecast, weight",
    "forecast_order": "forecast, order",
    "refresh_interval": "refresh steps, every",
    "refresh_steps": "refresh steps",
    "refresh_branch_id": "refresh steps, at branch",
    "reuse_attention": "attention reused",
    "reuse_guidance": "guidance reused",
    "guidance_stop": "guidance always reused after this share of the run",
    "skip_interval": "of the others computed, every",
    "skip_steps": "skipped steps",
    "skip_order": "skipped steps, order",
}


@dataclass(frozen=True)
class Pair:
    """A picture of both runs."""

    baseline: Path
    deepcache: Path
    prompt: str


@dataclass(frozen=True)
class ComparedRun:
    """A folder that `comparison` wrote, whole, and its `result.json`."""

    folder: Path
    result: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> ComparedRun:
        """Raises ValueError if the record can't be read."""
        return cls(folder, read_json(folder / RESULT, dict, remedy="run the script that wrote it again"))

    @property
    def video(self) -> Path | None:
        path = self.folder / "output.gif"
        return path if path.is_file() else None

    @property
    def model(self) -> str:
        """Its name; of a run that names none, what the script then takes."""
        if name := at(self.result, "resolved", "model") or at(self.result, "arguments", "model"):
            return str(name)
        return "random weights" if at(self.result, "arguments", "tiny") else "the shipped model"

    @property
    def pairs(self) -> list[Pair]:
        prompts = at(self.result, "resolved", "prompt") or at(self.result, "arguments", "prompt") or []
        prompts = prompts if isinstance(prompts, list) else [prompts]
        baselines = sorted(self.folder.glob("baseline_*.png"))
        each = len(baselines) // len(prompts) if prompts else 0  # images of a prompt, which follow one another
        found = []
        for k, baseline in enumerate(baselines):
            deepcache = baseline.with_name(baseline.name.replace("baseline", "deepcache"))
            named = each and len(baselines) % len(prompts) == 0
            if deepcache.is_file():
                found.append(Pair(baseline, deepcache, str(prompts[k // each]) if named else f"picture {k}"))
        return found

    @property
    def speed_up(self) -> float | None:
        return number_at(self.result, "speed_up", "median")

    @property
    def psnr(self) -> float | None:
        return number_at(self.result, "distance", "median_psnr")

    @property
    def cache(self) -> list[tuple[str, str]]:
        """All that describes the cache, by name."""
        found = at(self.result, "cache")
        cache: dict[str, Any] = found if isinstance(found, dict) else {}
        left_out = {"uniform"} | ({"cache_interval"} if cache.get("cache_steps") is not None else set())
        return [
            (CACHE.get(name, name), _shown(value))
            for name, value in cache.items()
            if name not in left_out and value is not None
        ]

    def facts(self) -> Iterator[tuple[str, str]]:
        """Facts about the run, as far as its result has them."""
        result = self.result
        stages = result.get("stages")
        stages = stages if isinstance(stages, dict) else {}
        yield "model", self.model
        for title, value in (
            ("scheduler", at(result, "resolved", "scheduler")), ("steps", at(result, "arguments", "steps")),
        ):  # fmt: skip
            if value is not None:
                yield title, str(value)
        yield from self.cache
        numbers: list[tuple[str, tuple[str, ...], str]] = [
            ("baseline, end-to-end", ("seconds", "baseline", "median"), "{:.3g} s"),
            ("DeepCache, end-to-end", ("seconds", "deepcache", "median"), "{:.3g} s"),
            ("speed-up, end-to-end", ("speed_up", "median"), "{:.2f}×"),
        ]
        for name in stages:
            of = f" of {name}" if len(stages) > 1 else ""
            numbers += [
                (f"speed-up of the U-Net{of}", ("stages", name, "speed_up", "median"), "{:.2f}×"),
                (f"expected from MACs{of}", ("stages", name, "operations", "bound"), "{:.2f}×"),
            ]
        numbers += [
            ("PSNR to the baseline, median", ("distance", "median_psnr"), "{:.1f} dB"),
            ("SSIM to the baseline, median", ("distance", "median_ssim"), "{:.4f}"),
        ]
        for title, keys, form in numbers:
            if (number := number_at(result, *keys)) is not None:
                yield title, form.format(number)
        if (device := at(result, "versions", "device")) is not None:
            yield "device", str(device)


def is_compared(folder: Path) -> bool:
    """Whether a script wrote it, and measured it to the end."""
    return (folder / RESULT).is_file() and (folder / "baseline_000.png").is_file()


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def at(value: Any, *keys: str) -> Any:
    """The value under these keys, or None."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def number_at(value: Any, *keys: str) -> float | None:
    """The number there, or None."""
    found = at(value, *keys)
    return found if isinstance(found, int | float) else None
