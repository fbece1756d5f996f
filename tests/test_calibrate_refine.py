"""Calibration by real runs: what it keeps, what it may cost, and the command that goes on with attention reused."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval import calibrate, generate
from eval.calibration.kinds import Schedule, uniform
from eval.calibration.kinds_search import best_schedule
from eval.calibration.refine import UNUSED, refine
from eval.counting.macs import unet_inputs
from eval.counting.runs import count_run, speed_up
from tests.toy_losses import T, losses_of, schedules


def worth_of(losses: Any) -> tuple[Any, list[Schedule]]:
    """A quality that stands for the images', and the schedules that it was asked for."""
    asked: list[Schedule] = []

    def quality(schedule: Schedule) -> float:
        asked.append(schedule)
        return -float(losses.total(schedule))

    return quality, asked


@pytest.mark.parametrize("seed", range(3))
def test_no_try_costs_more_and_the_best_of_all_is_returned(seed):
    losses = losses_of(seed)
    start = uniform(losses, 1.8)[0][1]
    quality, asked = worth_of(losses)
    found = refine(losses, start, quality, 8, quiet=True)
    assert asked[0] == start and len(asked) == len(set(asked)) == 8
    most = losses.macs(start.kinds)
    assert all((1 - UNUSED) * most <= losses.macs(one.kinds) <= most for one in asked)
    assert losses.total(found) == min(map(losses.total, asked))


def test_it_goes_by_the_images_and_not_by_the_prediction():
    predicted, true = losses_of(0), losses_of(7)
    start = best_schedule(predicted, 1.8, moves=2000)
    quality, _ = worth_of(true)
    found = refine(predicted, start, quality, 200, quiet=True)
    assert true.total(found) < true.total(start) and predicted.total(found) > predicted.total(start)


def test_it_is_deterministic_and_ends_if_nothing_is_left_to_try():
    losses = losses_of(1)
    start = uniform(losses, 1.5)[0][1]
    (quality, asked), (again, asked_again) = worth_of(losses), worth_of(losses)
    assert refine(losses, start, quality, 30, quiet=True) == refine(losses, start, again, 30, quiet=True)
    assert asked == asked_again
    every, asked = worth_of(losses)
    all_full = Schedule(tuple(["full"] * T))
    assert refine(losses, all_full, every, 1000, quiet=True).kinds == all_full.kinds and len(asked) < 1000


@given(schedules, st.sampled_from([0.6, 1.0]))
def test_a_schedule_is_read_off_its_configuration(schedule, forecast):
    found = Schedule.of(schedule.cache(1, 4, forecast), T)
    assert found.kinds == schedule.kinds and found.forecast_order == schedule.forecast_order
    if "skip" in schedule.kinds:
        assert found.skip_order == schedule.skip_order


def test_reused_attention_and_guidance_are_counted_tried_and_in_the_command(tmp_path, capsys):
    out = tmp_path / "found.json"
    passed = ["--steps", "6", "--batch-size", "2", "--reuse-attention", "--reuse-guidance"]
    options = ["--refresh-branches", "3", "--branches", "0", "--forecast", "1", "--num-images", "2", "--budget", "2x"]
    assert calibrate.main([*passed, *options, "--refine", "3", "--out", str(out), "--quiet"]) == 0
    assert "refined" in capsys.readouterr().out
    found = json.loads(out.read_text())
    words = shlex.split(found["command"])
    assert words[3:] == [*passed, "--calibrated", str(out)]
    run = generate.prepare(
        generate.settings_of(generate.parser().parse_args(words[3:])), device=torch.device("cpu"), quiet=True
    )
    assert {"reuse_attention", "reuse_guidance"} <= set(run.cache.extensions)
    assert [one["kind"] for one in found["tried"]][-1] == "refined"
    assert found["chosen"]["psnr"] == max(one["psnr"] for one in found["tried"])
    unet = run.unet
    fork = type(unet).from_config(unet.config).to("meta").eval()
    inputs = unet_inputs(unet, 8, 8, batch=2, tokens=24)
    counted = count_run(fork, inputs, run.cache, 7, num_steps=6, guided=True)  # PLMS calls once more
    assert speed_up(counted) == pytest.approx(found["chosen"]["speed_up"], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--refine", "5"], "--refine needs --skip or --refresh-branches"),
        (["--reuse-guidance"], "leave out --reuse-guidance"),
        (["--skip", "--out", "x.json", "--guidance-stop", "0.5"], "leave out --guidance-stop"),
        (["--skip", "--out", "x.json", "--refine", "0"], "--refine"),
    ],
)
def test_a_wrong_call_is_one_line_and_2(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert calibrate.main(["--steps", "5", *options]) == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1
