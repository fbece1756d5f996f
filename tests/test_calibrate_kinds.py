"""Calibration over four kinds of steps: the loss that is predicted, the search, and the command."""

from __future__ import annotations

import itertools
import json
import shlex
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.command_line import RunError
from ddpm import sample as ddpm_sample
from eval import calibrate
from eval.calibration.kinds import Schedule, uniform
from eval.calibration.kinds_search import best_schedule
from image_sets.batches import Batch
from tests.tiny import stock_unet
from tests.toy_losses import COST, T, losses_of, schedules, walk
from unets import CacheConfig, fork_of
from unets.cache.features import FeatureCache
from unets.cache.run import CacheRun


def handed_on(values: torch.Tensor, keeps: set[int], goes_by: set[int], forecast: float, order: float) -> torch.Tensor:
    """What a loop with `FeatureCache` has at each step (T, size): its own value where it keeps, else the forecast."""
    cache, found = FeatureCache(keeps, T, forecast, order), []
    for i, value in enumerate(values.float().view(T, 1, -1, 1, 1)):
        cached = cache.get(i, 1)
        if i in keeps:
            cache.put(i, (value,))
        found.append(cached[0] if i in goes_by and cached is not None else value)
    return torch.stack(found).view(T, -1).double()


@given(schedules, st.integers(0, 50), st.sampled_from([0.0, 0.6, 1.0]))
def test_the_loss_is_the_error_of_the_run_itself(schedule, seed, forecast):
    values = {kind: walk(3 * seed + k) for k, kind in enumerate(("retrieve", "refresh", "skip"))}
    losses = losses_of(seed, forecast=forecast)
    full, refresh, skip = (set(schedule.steps(kind)) for kind in ("full", "refresh", "skip"))
    computed = set(range(T)) - skip

    # Skipped steps: how far the latents are off at each step, added as vectors.
    noises = handed_on(values["skip"], computed, skip, 1.0, schedule.skip_order)
    influence = torch.from_numpy(losses.influence)[:, None]
    apart = (influence * (noises - values["skip"])).cumsum(0)
    expected = apart.square().mean(1).mean().sqrt().item()

    # Retrieve and refresh steps: lengths, as often as their noises are used.
    counts = np.zeros(T)
    for k in computed:
        unit = torch.zeros(T, 1, dtype=torch.float64)
        unit[k] = 1.0
        counts[k] = float((influence * handed_on(unit, computed, skip, 1.0, schedule.skip_order)).sum())
    parts: list[tuple[Any, set[int]]] = [("retrieve", full | refresh), ("refresh", full)]
    for kind, keeps in parts:
        goes_by = set(schedule.steps(kind))
        found = handed_on(values[kind], keeps, goes_by, forecast, schedule.forecast_order)
        off = (found - values[kind]).square().mean(1).sqrt().numpy() * losses.sensitivity[kind]
        expected += float(np.abs(counts) @ off)
    assert losses.total(schedule) == pytest.approx(expected, rel=1e-3, abs=1e-5)  # the run's own are float32


@given(schedules)
def test_its_configuration_runs_the_schedule(schedule):
    unet = UNET
    if len(schedule.steps("full")) == T:
        return
    cache = CacheRun(schedule.cache(1, 4, 1.0), unet, T, T)
    refresh, skip = set(schedule.steps("refresh")), set(schedule.steps("skip"))
    assert cache.full_steps == set(schedule.steps("full"))
    assert cache.refreshed_steps == cache.full_steps | refresh and cache.skipped_steps == skip


UNET = fork_of(stock_unet())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [1.5, 2.5])
def test_the_search_finds_the_best_of_all(seed, budget):
    losses = losses_of(seed)
    every = (
        Schedule(kinds, a, b)
        for kinds in itertools.product(["full"], *[COST] * (T - 1))
        if losses.speed_up(kinds) >= budget
        for a in (1.0, 1.5, 2.0, 2.5)
        for b in (1.0, 1.5, 2.0, 2.5)
    )
    least = min(map(losses.total, every))
    found = best_schedule(losses, budget, moves=5000)
    assert losses.speed_up(found.kinds) >= budget
    assert losses.total(found) <= 1.02 * least  # it is not exact, and within this in all six cases


@pytest.mark.parametrize("kinds", [("retrieve",), ("skip",), ("retrieve", "skip"), ("retrieve", "refresh")])
def test_it_uses_the_available_kinds_and_is_no_worse_than_uniform(kinds):
    losses = losses_of(1, kinds)
    found = best_schedule(losses, 1.8, moves=3000)
    assert set(found.kinds) <= {"full", *kinds} and found.kinds[0] == "full"
    assert all(losses.total(found) <= losses.total(schedule) for _, schedule in uniform(losses, 1.8))
    assert found == best_schedule(losses, 1.8, moves=3000)


def test_an_unreachable_budget_is_named():
    with pytest.raises(RunError, match=r"--budget 4x is out of reach: one full step alone comes to 3.00x"):
        best_schedule(losses_of(0, ("retrieve",)), 4)


def test_calls_beyond_the_schedule_are_never_full():
    losses = losses_of(2)
    fewer = replace(losses, positions=T - 2)
    assert "full" not in best_schedule(fewer, 1.2, moves=3000).kinds[T - 2 :]


def test_the_command_has_every_step_and_its_file_makes_the_images_of_the_trial(tmp_path, capsys):
    out = tmp_path / "found.json"
    passed = ["--script", "ddpm.sample", "--steps", "6"]
    options = ["--skip", "--refresh-branches", "5", "--forecast", "1", "--num-images", "2", "--budget", "1.7x"]
    assert calibrate.main([*passed, *options, "--out", str(out), "--quiet"]) == 0
    found = json.loads(out.read_text())
    assert "uniform, skip" in capsys.readouterr().out
    words = shlex.split(found["command"])
    assert words[-2:] == ["--calibrated", str(out)]
    arguments = ddpm_sample.parser().parse_args([*words[3:], "--quiet"])
    run = ddpm_sample.prepare(ddpm_sample.settings_of(arguments), device=torch.device("cpu"), quiet=True)
    assert list(run.cache.cache_steps or ()) == found["cache_steps"]
    assert run.cache.extensions == CacheConfig.from_json(found).extensions
    ours, plain = (run.make(Batch.of(0, [2, 3]), cache) for cache in (run.cache, CacheConfig()))
    grey = [((images + 1) * 127.5).round().clamp(0, 255).double() for images in (ours, plain)]
    psnr = -10 * torch.log10((grey[0] - grey[1]).square().mean((1, 2, 3)) / 255**2)
    assert psnr.mean() == pytest.approx(found["chosen"]["psnr"])  # the median of two
    assert found["chosen"]["speed_up"] >= 1.7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--skip"], "--skip and --refresh-branches need --out FILE"),
        (["--skip", "--out", "x.json", "--forecast", "fit"], "--forecast fit supports only full and retrieve steps"),
        (["--skip", "--out", "x.json", "--sampler", "ddpm"], "--skip needs a sampler that adds no noise"),
        (["--skip", "--out", "x.json", "--eta", "0.5"], "not --eta 0.5"),
        (["--refresh-branches", "12", "--out", "x.json"], "skip branches 0 to 11"),
        (["--skip", "--out", "x.json", "--skip-interval", "3"], "leave out --skip-interval"),
    ],
)
def test_a_wrong_call_is_one_line_and_2(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert calibrate.main(["--script", "ddpm.sample", "--steps", "5", *options]) == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1
