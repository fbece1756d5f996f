"""What a row of a table needs: the command that makes its images, and what that takes. Nothing is run here.

A table is a file of `paper/`: the published numbers as they are printed, and the settings of each row that can be run.
`paper/scales.json` says which model a row's settings are run on, and with what.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from unets.cache.schedule import equation_7, full_steps

from ..counting.layouts import open_model
from ..counting.macs import Macs, count_steps, unet_inputs

PAPER = Path(__file__).parent / "paper"
ROOT = Path(__file__).parent.parent
TABLES = [f"table{k}" for k in range(1, 15)]
SCALES = ("shapes", "paper")


@dataclass(frozen=True)
class Options:
    """Of the command line, what all rows share."""

    scale: str
    work: Path
    inputs: Path
    num_images: int | None = None
    device: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Job:
    """The set of images of one row, or of several: equal settings have equal names."""

    name: str
    model: dict[str, Any]  # its entry of scales.json
    run: dict[str, Any]  # the row's settings at this scale
    num_images: int
    out: Path
    argv: list[str]  # of the sampling script, without --num-images, --batch-size and --out
    reference: Path | None
    missing: list[str]

    @property
    def command(self) -> str:
        """What a user would type."""
        module = {"ldm": "ldm.sample", "ddpm": "ddpm.sample", "text": "eval.generate"}[self.model["sampler"]]
        return " ".join(["python -m", module, *self.argv, "--num-images", str(self.num_images), "--out", str(self.out)])


def load_table(name: str) -> dict[str, Any]:
    """A table of the paper, by its name such as table3."""
    return json.loads((PAPER / f"{name}.json").read_text())


def load_scale(name: str) -> dict[str, Any]:
    """Which models stand for the paper's, by the name of the scale."""
    return json.loads((PAPER / "scales.json").read_text())[name]


def job_of(run: dict[str, Any], options: Options) -> Job | None:
    """The job of a row's settings; None where this scale has no such model."""
    model = load_scale(options.scale)["models"].get(run["model"])
    if model is None:
        return None
    run = scaled(run, model.get("time", 1), options.scale)
    num_images = options.num_images or model["num_images"]
    places = {"{inputs}": str(options.inputs), "{work}": str(options.work / options.scale)}

    def placed(text: str) -> str:
        for name, path in places.items():
            text = text.replace(name, path)
        return text

    argv = [*map(placed, model["arguments"]), *cache_arguments(run)]
    name = f"{run['model']}-{slug(run)}"
    for flag, value in (("--device", options.device), ("--dtype", options.dtype)):
        if value is not None:
            argv += [flag, value]
    if options.dtype is not None:
        name += f"-{options.dtype}"
    reference = Path(placed(model["score"]["reference"])) if "reference" in model["score"] else None
    missing = [
        f"{options.inputs / file} ({source})"
        for file, source in model.get("files", {}).items()
        if not (options.inputs / file).exists()
    ]
    if "hub" in model and not _is_in_hub_cache(model["hub"]):
        missing.append(f"{model['hub']} is not in the hub's cache")
    out = options.work / options.scale / f"{name}-{num_images}"
    return Job(name, model, run, num_images, out, argv, reference, missing)


def baseline_of(job: Job, options: Options, of: str | None = None) -> Job:
    """The job without a cache that this one is compared with, of the same model or of the one named."""
    name = of or job.run["model"]
    baseline = job_of({"model": name, **load_scale(options.scale)["models"][name]["baseline"]}, options)
    assert baseline is not None
    return baseline


def scaled(run: dict[str, Any], time: float, scale: str) -> dict[str, Any]:
    """The settings with another number of steps, the centre of the schedule moved alike.

    Where the row itself says what it is at a scale, that stands: LDM-4-G's sampler does not take any number of steps.
    """
    own = run.get(scale, {})
    settings = {name: value for name, value in run.items() if name not in SCALES}
    moved = {name: round(settings[name] * time) for name in ("steps", "center") if name in settings}
    return dict(settings, **moved) | own


def slug(run: dict[str, Any]) -> str:
    """Settings as part of a file's name."""
    parts = [str(run["steps"])]
    if run.get("cache_interval", 1) > 1:
        parts += [f"n{run['cache_interval']}", f"m{run['cache_branch_id']}"]
    if "center" in run:
        parts.append(f"c{run['center']}-p{run['pow']:g}")
    return "-".join(parts) + ("-zero" if run.get("zero_cache") else "")


def cache_arguments(run: dict[str, Any]) -> list[str]:
    """Steps, interval, branch and schedule on the command line of a sampling script."""
    argv = ["--steps", str(run["steps"]), "--cache-interval", str(run.get("cache_interval", 1))]
    if "cache_branch_id" in run:
        argv += ["--cache-branch-id", str(run["cache_branch_id"])]
    if "center" in run:
        argv += ["--non-uniform", "--center", str(run["center"]), "--pow", str(run["pow"])]
    return argv + (["--zero-cache"] if run.get("zero_cache") else [])


def num_full(run: dict[str, Any]) -> int:
    """How many of a run's steps are full."""
    shape = {"uniform": False, "pow": run["pow"], "center": run["center"]} if "center" in run else {}
    return len(full_steps(run["steps"], run.get("cache_interval", 1), **shape))


@functools.cache
def steps_of(unet: str, cache_branch_id: int) -> tuple[Macs, Macs]:
    """Operations of a full and a retrieve step of a model by its name or path, without guidance."""
    model = open_model(str(ROOT / unet) if "/" in unet else unet)
    fork = model.on_meta()
    inputs = unet_inputs(fork, *model.size, tokens=model.tokens)
    return count_steps(fork, inputs, cache_branch_id, model.exceptions)


def macs_of(run: dict[str, Any], unet: str, over: int | None = None, convention: str = "paper") -> float:
    """G operations of a run for one image without guidance: all of it, or divided by `over` steps, as tables do."""
    full, retrieve = (getattr(step, convention) / 1e9 for step in steps_of(unet, run.get("cache_branch_id", 0)))
    full_count, steps = num_full(run), run["steps"]
    return (full_count * full + (steps - full_count) * retrieve) / (over or 1)


def cost(job: Job) -> dict[str, float]:
    """What a job takes: tera-operations (attention counted) and bytes on disk."""
    each = macs_of(job.run, job.model["unet"], convention="with_attention")
    copies = 2 if job.model.get("guided") else 1
    return {
        "tmacs": job.num_images * each * copies / 1e3,
        "bytes": job.num_images * job.model["size"] ** 2 * 3,
    }


def schedule_row(schedule: dict[str, Any]) -> dict[str, Any]:
    """Tables 9 and 10: the full steps that the printed parameters give."""
    shape = {"pow": schedule["pow"], "center": schedule["center"]}
    steps = full_steps(schedule["num_steps"], schedule["cache_interval"], uniform=False, **shape)
    printed = equation_7(schedule["num_steps"], schedule["cache_interval"], **shape)
    return {
        "center": schedule["center"],
        "pow": schedule["pow"],
        "num_full": len(steps),
        "num_equation_7": len(printed),
        "full_steps": " ".join(map(str, steps)),
    }


def _is_in_hub_cache(model: str) -> bool:
    return Path(model).is_dir() or isinstance(try_to_load_from_cache(model, "model_index.json"), str)
