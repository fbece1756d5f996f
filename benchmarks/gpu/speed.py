"""Checks of speed: full and retrieve steps, and end-to-end loops, each beside the speed-up expected from MACs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from common.timing import Clock, alternate, pairwise, spread, time_call
from eval.counting.layouts import MODELS
from eval.counting.macs import count_steps, unet_inputs
from pipelines import StableDiffusionPipeline
from pipelines.competitors import is_installed, package_enabled, stock_pipeline

from .bench import Bench, Finding, rounds
from .settings import PLAIN_INTERVAL
from .subjects import TINY, Subject

REFRESH_BRANCH = 5
WARM_UP_STEPS = 6  # of a loop: enough for a step of each kind


@functools.cache
def macs_of(name: str, small: bool, branch: int, attention: bool) -> tuple[int, int]:
    """MACs of a full and of a retrieve step for one row of the batch, attention's matrix products included."""
    model = (TINY if small else MODELS)[name]
    unet = model.on_meta()
    inputs = unet_inputs(unet, *model.size, tokens=model.tokens, frames=model.frames)
    full, retrieve = count_steps(unet, inputs, branch, keep_attention=attention)
    return full.with_attention, retrieve.with_attention


def steps(bench: Bench, seconds: float, name: str, dtype: str, batch: int, compiled: bool = False) -> Finding:
    """A full step and retrieve steps, in turn; if compiled, one branch only, since each branch adds two graphs."""
    subject = bench.subject(name, dtype, batch if compiled else None)
    unet, paper = subject.unet, subject.settings.branch
    branches = [paper] if compiled or name == "ddpm-cifar10" else sorted({0, paper, REFRESH_BRANCH})
    inputs = subject.inputs(batch * subject.rows)
    clock = Clock(bench.device)

    def timed(call: Callable[[], Any]) -> float:
        clock.synchronise()
        start = clock.mark()
        call()
        return clock.seconds(start, clock.mark())

    features = {m: unet(**inputs, cache_branch_id=m).cached_feature for m in branches}
    calls = [partial(unet, **inputs, cache_branch_id=paper)]
    calls += [partial(unet, **inputs, cache_branch_id=m, cached_feature=features[m]) for m in branches]
    timers = [partial(timed, call) for call in calls]
    alternate(timers, 2)  # warm-up
    full, *retrieves = rounds(timers, seconds)
    rows = [{"step": "full", **_times(full)}]
    for m, retrieve in zip(branches, retrieves, strict=True):
        whole, cheap = macs_of(name, bench.tiny, m, False)
        rows.append({"step": f"retrieve, m = {m}", **_times(retrieve), **_speed_up(full, retrieve, whole / cheap)})
    own = next(row for row in rows if row["step"].endswith(f"m = {paper}"))
    text = f"full {rows[0]['seconds'] * 1e3:.1f} ms, retrieve at m = {paper} {_summary(own)}"
    return Finding(text, rows=tuple(rows))


def loops(bench: Bench, seconds: float, name: str, dtype: str, batch: int, compiled: bool = False) -> Finding:
    """End-to-end loops in turn: no cache, the paper's, the package's, and the recommended settings."""
    subject = bench.subject(name, dtype, batch if compiled else None)
    plain = {"cache_interval": PLAIN_INTERVAL, "cache_branch_id": subject.settings.branch}
    caches: dict[str, dict[str, Any]] = {"baseline": {}, f"plain N = {PLAIN_INTERVAL}": plain}
    recommended = subject.settings.recommended
    if compiled:  # only one: each setting has three graphs, and torch compiles at most eight per forward
        recommended = {name: cache for name, cache in recommended.items() if name == "balanced"}
    caches |= recommended
    calls = {run: partial(_loop, bench, subject, batch, cache) for run, cache in caches.items()}
    if isinstance(subject.pipe, StableDiffusionPipeline) and not compiled and is_installed("DeepCache"):
        calls[f"package N = {PLAIN_INTERVAL}"] = partial(_package_loop, bench, subject, batch)
    for call in calls.values():
        call(num_inference_steps=min(WARM_UP_STEPS, subject.steps))
    results = dict(zip(calls, rounds(list(calls.values()), seconds), strict=True))
    baseline = results["baseline"]
    rows = []
    for run, measured in results.items():
        row: dict[str, Any] = {"run": run, **_times([one["seconds"] for one in measured])}
        if run != "baseline":
            bound = baseline[0]["macs"] / measured[0]["macs"] if measured[0]["macs"] else None
            row |= _speed_up([one["seconds"] for one in baseline], [one["seconds"] for one in measured], bound)
        rows.append({**row, "peak_bytes": max(one["peak"] for one in measured)})
    finite = all(one["finite"] for measured in results.values() for one in measured)
    text = ", ".join(f"{row['run']} {_summary(row) if 'speed_up' in row else _in_seconds(row)}" for row in rows)
    return Finding(text + ("" if finite else "; non-finite latents"), finite, tuple(rows))


def _loop(bench: Bench, subject: Subject, batch: int, cache: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One loop: seconds, peak memory, MACs of all U-Net calls, whether the latents are finite."""
    calls: list[tuple[int, int | None, bool]] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        branch = None if kwargs.get("cached_feature") is None else kwargs["cache_branch_id"]
        calls.append((len(args[0]), branch, kwargs.get("cached_attention") is not None))

    hook = subject.unet.register_forward_pre_hook(note, with_kwargs=True)
    try:
        measured = _measured(bench, subject.pipe, partial(subject.run, batch, **cache, **more))
    finally:
        hook.remove()
    measured["macs"] = sum(
        rows * macs_of(subject.name, bench.tiny, branch or 0, attention)[branch is not None]
        for rows, branch, attention in calls
    )
    return measured


def _package_loop(bench: Bench, subject: Subject, batch: int, **more: Any) -> dict[str, Any]:
    """The same for the authors' package, whose calls are not counted."""
    stock = stock_pipeline(subject.pipe)
    stock.set_progress_bar_config(disable=True)
    with package_enabled(stock, PLAIN_INTERVAL, subject.settings.branch):
        return {**_measured(bench, stock, partial(subject.run, batch, on=stock, **more)), "macs": None}


def _measured(bench: Bench, pipe: Any, call: Callable[[], torch.Tensor]) -> dict[str, Any]:
    bench.reset_peak()
    latents, seconds, _ = time_call([pipe], call, bench.device)
    return {"seconds": seconds, "peak": bench.peak(), "finite": bool(latents.isfinite().all())}


def _times(values: list[float]) -> dict[str, Any]:
    found = spread(values)
    return {"seconds": found["median"], "least": found["min"], "greatest": found["max"], "rounds": len(values)}


def _speed_up(slow: list[float], fast: list[float], bound: float | None) -> dict[str, Any]:
    ratio = pairwise(slow, fast)["median"]
    return {"speed_up": ratio} | ({"bound": bound, "share_of_bound": ratio / bound} if bound else {})


def _summary(row: dict[str, Any]) -> str:
    bound = f" of {row['bound']:.2f}×" if "bound" in row else ""
    return f"{row['speed_up']:.2f}×{bound}"


def _in_seconds(row: dict[str, Any]) -> str:
    return f"{row['seconds']:.2f} s"
