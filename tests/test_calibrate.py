"""Errors of steps by hand, and the script on models that take little time."""

import itertools
import json
import shlex

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import text2video_zero
from common.command_line import RunError
from ddpm import sample as ddpm_sample
from eval import calibrate, generate
from eval.calibration import cost, goals
from eval.calibration.baseline import calls_of
from eval.calibration.candidates import Candidate, Trial, spread_evenly
from eval.calibration.cost import StepMacs
from eval.calibration.goals import least_k
from eval.calibration.influence import influence
from eval.calibration.measure import BranchMeasurement
from eval.calibration.search import all_schedules
from eval.calibration.step_errors import noise_errors
from eval.counting.macs import Macs
from image_sets.batches import Batch
from pipelines.loading import new_scheduler
from unets.cache.config import CacheConfig
from unets.cache.observe import observed_calls
from unets.cache.schedule import full_steps

from .tiny import parts

FEW = ["--device", "cpu", "--quiet"]


@given(st.integers(1, 300), st.data())
def test_even_schedules_have_k_steps_and_gaps_that_differ_by_one(positions, data):
    k = data.draw(st.integers(1, positions))
    steps = spread_evenly(positions, k)
    gaps = np.diff([*steps, positions])
    assert len(steps) == k and steps[0] == 0 and gaps.min() >= 1 and np.ptp(gaps) <= 1
    if positions % k == 0:
        assert steps == full_steps(positions, positions // k)


@given(st.integers(1, 100), st.data())
def test_bisection_finds_the_least(most, data):
    least = data.draw(st.integers(1, most + 1))
    asked: list[int] = []

    def enough(k: int) -> bool:
        asked.append(k)
        return k >= least

    found = least_k(enough, most)
    assert found == (least if least <= most else None)
    assert len(asked) <= most.bit_length()


def new(name, prediction_type="epsilon", steps=20):
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.012, "set_alpha_to_one": True}
    scheduler = new_scheduler(name, {**config, "steps_offset": 0, "prediction_type": prediction_type})
    scheduler.set_timesteps(steps)
    return scheduler


def response(scheduler):
    """How far the result moves if one call's output is off by one and those of the others are held, for each call."""
    x = torch.zeros(len(scheduler.timesteps), dtype=torch.float64)  # element i has call i's off
    for i, t in enumerate(scheduler.timesteps):
        noise = torch.zeros_like(x)
        noise[i] = 1
        x = scheduler.step(noise, t, x, return_dict=False)[0]
    return x.abs().numpy()


@pytest.mark.parametrize("name, calls", [("ddim", 20), ("heun", 39)])
def test_influence_is_the_response_of_diffusers_schedulers(name, calls):
    scheduler = new(name)
    weights = influence(scheduler.timesteps.tolist(), scheduler.alphas_cumprod)
    assert len(weights) == calls
    # ᾱ is float32, and 1 less about 0.001 at the end
    np.testing.assert_allclose(weights, response(scheduler), rtol=1e-3)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_influence_of_other_outputs_moves_x_0_as_much(prediction_type):
    weights, moves = [], []
    for kind in ("epsilon", prediction_type):
        scheduler = new("ddim", kind)
        weights.append(influence(scheduler.timesteps.tolist()[:-1], scheduler.alphas_cumprod, kind))
        steps = scheduler.timesteps[:-1]  # at timestep 0 almost nothing is noise
        x, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        moves.append(np.array([float(scheduler.step(one, t, x).pred_original_sample.abs()) for t in steps]))
    np.testing.assert_allclose(weights[1] / weights[0], moves[1] / moves[0], rtol=1e-5)  # ᾱ is float32


def batch(*indices):
    return Batch.of(0, indices)


def run_of(script, *options):
    settings = script.settings_of(script.parser().parse_args([*FEW, *options]))
    return script.prepare(settings, device=torch.device("cpu"), quiet=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with a model that takes little time."""
    path = tmp_path_factory.mktemp("model") / "small"
    diffusers.StableDiffusionPipeline(**parts("bk_sdm_tiny")).save_pretrained(path)
    return ["--model", str(path), "--prompts", "shapes", "--steps", "5"]


@pytest.mark.parametrize(
    "script, options, branch, steps, calls",
    [
        (generate, ["--num-images", "4", "--scheduler", "plms"], 1, [0, 2], 6),  # PLMS calls once more
        (generate, ["--num-images", "4", "--scheduler", "heun"], 3, [0, 1, 4], 9),
        (ddpm_sample, ["--steps", "3"], 2, [0, 2], 3),
        (generate, ["--num-images", "4", "--scheduler", "plms", "--forecast", "1"], 1, [0, 2], 6),
        (ddpm_sample, ["--steps", "4", "--forecast", "0.5"], 2, [0, 2], 4),
    ],
)
def test_a_schedule_tried_on_a_run_without_a_cache_is_the_samplers_own(model, script, options, branch, steps, calls):
    options = [*model, *options] if script is generate else options
    arguments = ["--cache-steps", ",".join(map(str, steps)), "--cache-branch-id", str(branch)]
    forecast = float(options[-1]) if "--forecast" in options else 0.0
    plain = run_of(script, *options, "--cache-interval", "1")
    made = []
    assert len(calls_of(lambda: made.append(plain.make(batch(1))), plain.unet)) == calls
    cache = CacheConfig(cache_branch_id=branch, cache_steps=steps, forecast=forecast)
    again = [plain.make(batch(k), cache) for k in (1, 2)]  # a second run starts from scratch
    own = run_of(script, *options, *arguments)
    assert torch.equal(again[0], own.make(batch(1)))
    assert torch.equal(again[1], own.make(batch(2)))
    assert not torch.equal(again[0], made[0])
    assert torch.equal(plain.make(batch(1), CacheConfig()), made[0])  # nothing is left behind


@pytest.mark.parametrize("script", [generate, ddpm_sample])
def test_a_run_with_a_cache_of_its_own_is_not_observed(model, script):
    run = run_of(script, *(model if script is generate else ["--steps", "3"]), "--cache-steps", "0,2")
    seen = []
    with (
        pytest.raises(ValueError, match="cache of its own"),
        observed_calls(run.unet, 1, lambda *call: seen.append(call)),
    ):
        run.make(batch(1))
    assert not seen and not run.unet._forward_hooks and not run.unet._forward_pre_hooks
    run.make(batch(1))
    with pytest.raises(ValueError, match="cache of its own"):
        noise_errors(lambda: run.make(batch(1)), run.unet, 1, 1)


@torch.no_grad()
def test_errors_are_those_of_retrieving_at_one_step_alone(model):
    run = run_of(generate, *model, "--num-images", "2", "--steps", "3", "--cache-interval", "1", "--scheduler", "ddim")
    inputs, images = [], []
    hook = run.unet.register_forward_pre_hook(lambda _, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True)
    expected_images = run.make(batch(0, 1))
    hook.remove()
    error, kept = noise_errors(lambda: images.append(run.make(batch(0, 1))), run.unet, 1, 2, 2.5)
    assert torch.equal(images[0], expected_images)
    asked = [(args, {**kwargs, "cache_branch_id": 1}) for args, kwargs in inputs]
    features = [run.unet(*args, **kwargs).cached_feature for args, kwargs in asked]
    assert all(map(torch.equal, kept, features)) and len(kept) == 3
    for i, j in itertools.product(range(3), range(3)):
        args, kwargs = asked[j]
        full, off = (run.unet(*args, **{**kwargs, "cached_feature": f}).sample.double() for f in (None, features[i]))
        apart = full - off
        moved = apart[:2] + 2.5 * (apart[2:] - apart[:2])
        # guidance is in float32 there
        assert error[i, j] == pytest.approx(moved.square().mean().item() if i < j else 0, rel=1e-4)


@pytest.fixture(scope="module")
def found(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("calibrate") / "found.json"
    options = ["--budget", "1.6x", "--branches", "0,1", "--num-images", "2", "--out", str(out)]
    assert calibrate.main([*FEW, *model, *options]) == 0
    return json.loads(out.read_text())


def test_the_command_it_prints_has_the_quality_and_the_operations_it_says(model, found):
    words = shlex.split(found["command"])
    assert words[:3] == ["python", "-m", "eval.generate"]
    ours = run_of(generate, *words[3:], "--num-images", "4").make(batch(2, 3))  # those it was not calibrated on
    baseline = run_of(generate, *model, "--num-images", "4", "--cache-interval", "1").make(batch(2, 3))
    grey = [((images.float() + 1) * 127.5).round().clamp(0, 255).double() for images in (ours, baseline)]
    psnr = -10 * torch.log10((grey[0] - grey[1]).square().mean((1, 2, 3)) / 255**2)
    assert psnr.mean() == pytest.approx(found["chosen"]["psnr"])  # the median of two
    assert found["cache_steps"] == found["chosen"]["cache_steps"] and found["chosen"]["speed_up"] >= 1.6


def test_the_best_that_was_tried_is_chosen_and_one_full_step_more_would_miss_the_budget(found):
    assert {one["branch"] for one in found["tried"]} == {0, 1}
    assert found["chosen"]["psnr"] == max(one["psnr"] for one in found["tried"])
    for one in found["tried"]:
        full, calls = len(one["cache_steps"]), 6
        share = (calls / one["speed_up"] - full) / (calls - full)  # of a full step's operations, that a retrieve has
        assert calls / (full + 1 + (calls - full - 1) * share) < 1.6 <= one["speed_up"]


def test_a_budget_out_of_reach_is_one_line_and_2(model, monkeypatch, capsys):
    monkeypatch.setattr(cost, "count_steps", lambda *_, **__: (Macs(0, 40), Macs(0, 10)))
    assert calibrate.main([*FEW, *model, "--num-images", "1", "--budget", "3x"]) == 2
    printed = capsys.readouterr()  # 6 calls of 40, and 40 + 5 * 10
    assert printed.err.startswith("error: --budget 3x is out of reach") and "2.67x" in printed.err


@pytest.fixture(scope="module", params=["fit", "1"])
def extrapolated(request, model, tmp_path_factory):
    """Of a schedule for a forecast: the options, and what was found."""
    out = tmp_path_factory.mktemp("forecast") / "found.json"
    options = ["--forecast", request.param, "--budget", "1.6x", "--branches", "1", "--num-images", "2"]
    assert calibrate.main([*FEW, *model, *options, "--out", str(out)]) == 0
    return out, json.loads(out.read_text())


def test_a_schedule_for_a_forecast_is_what_its_command_makes(model, extrapolated):
    _, found = extrapolated
    words = shlex.split(found["command"])
    assert "--calibrated" in words and "--forecast" not in words
    ours = run_of(generate, *words[3:], "--num-images", "4").make(batch(2, 3))
    baseline = run_of(generate, *model, "--num-images", "4", "--cache-interval", "1").make(batch(2, 3))
    grey = [((images.float() + 1) * 127.5).round().clamp(0, 255).double() for images in (ours, baseline)]
    psnr = -10 * torch.log10((grey[0] - grey[1]).square().mean((1, 2, 3)) / 255**2)
    assert psnr.mean() == pytest.approx(found["chosen"]["psnr"])
    tried = {one["kind"]: one["forecast"] for one in found["tried"]}
    if isinstance(tried["calibrated"], list):
        assert len(tried["calibrated"]) == 6 and tried["uniform"] == 1.0  # PLMS calls once more than 5 times
    else:
        assert set(tried.values()) == {1.0}


def test_a_set_says_what_the_calibration_named_and_is_that_of_the_options(model, extrapolated):
    out, found = extrapolated
    run = run_of(generate, *model, "--num-images", "4", "--calibrated", str(out))
    said = {name: run.image_set.settings[name] for name in ("cache_branch_id", "cache_steps", "forecast")}
    assert said == {name: found[name] for name in said}
    assert run.image_set.out.name.split("-plms-5-")[1].startswith("calibrated-found-forecast")
    if not isinstance(found["forecast"], list):
        named = ["--cache-branch-id", "1", "--cache-steps", ",".join(map(str, found["cache_steps"])), "--forecast", "1"]
        assert run_of(generate, *model, "--num-images", "4", *named).image_set.settings == run.image_set.settings


def calibration(path, **others):
    path.write_text(json.dumps({"steps": 5, "cache_branch_id": 1, "cache_steps": [0, 3], "forecast": 1.0} | others))
    return path


@pytest.mark.parametrize(
    "script, others, options, words",
    [
        (generate, {"steps": 50}, [], "is for --steps 50, not 5; give --steps 50"),
        (generate, {}, ["--cache-steps", "0,2"], "leave out --cache-steps"),
        (generate, {}, ["--non-uniform", "--center", "2", "--pow", "1.4"], "leave out --cache-steps and --non-uniform"),
        (generate, {}, ["--forecast", "0.5"], "leave out --forecast"),
        (generate, {"forecast": [0.0, 0.0, 0.0, 0.0, 1.0]}, [], "the 6 calls of the U-Net"),
        (ddpm_sample, {"forecast": [1.0] * 6}, [], "the 5 calls of the U-Net"),
        (text2video_zero, {}, [], "has forecast, which is not offered here"),
        (ddpm_sample, {"forecast": [float("nan")] * 5}, [], "cannot be read as a calibration"),
        (ddpm_sample, {"cache_steps": "0,3"}, [], "cannot be read as a calibration"),
    ],
)
def test_a_calibration_that_does_not_fit_is_one_line_and_2(script, others, options, words, tmp_path, capsys):
    file = calibration(tmp_path / "other.json", **others)
    call = ["--device", "cpu", "--quiet", "--steps", "5", "--calibrated", str(file), "--out", str(tmp_path / "out")]
    assert script.main([*call, *options]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and words in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", [None, "", "[]", '{"steps": 5}', "\x00"])
def test_a_file_that_is_no_calibration_is_one_line_and_2(text, tmp_path, capsys):
    file = tmp_path / "none.json"
    if text is not None:
        file.write_text(text)
    assert ddpm_sample.main(["--device", "cpu", "--quiet", "--calibrated", str(file)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and str(file) in printed and "make one with python -m eval.calibrate" in printed


def test_a_calibration_and_an_interval_exclude_each_other(tmp_path, capsys):
    assert ddpm_sample.main(["--calibrated", str(calibration(tmp_path / "some.json")), "--cache-interval", "3"]) == 2
    assert "not allowed with" in capsys.readouterr().err


def branch_without_errors(branch, retrieve):
    """Of a run of 8 calls whose full steps have 4 MACs."""
    errors = np.zeros((8, 8))
    return BranchMeasurement(
        branch, StepMacs(4, retrieve, 8), 1, 0.0, errors, np.zeros((8, 8)), np.zeros(8), all_schedules(errors)
    )


BRANCHES = [branch_without_errors(0, 0), branch_without_errors(1, 1)]


def known_quality(candidate: Candidate) -> Trial:
    """10 dB for each full step, and 5 more at branch 1, which is slower."""
    return Trial(**vars(candidate), psnr=10.0 * len(candidate.cache_steps) + 5 * candidate.branch)


@pytest.mark.parametrize("quality, branch, k", [(40, 0, 4), (41, 0, 5), (10, 0, 1), (72, 1, 7)])
def test_quality_takes_the_fewest_macs_that_reach_it(quality, branch, k):
    tried, chosen = goals.cheapest_of_quality(BRANCHES, quality, known_quality)
    assert (chosen.branch, len(chosen.cache_steps)) == (branch, k)
    assert chosen in tried and len(tried) <= 7


def test_an_unreachable_quality_is_a_failed_run():
    with pytest.raises(RunError, match=r"reaches --quality 80; the best that was tried has 75.0 dB"):
        goals.cheapest_of_quality(BRANCHES, 80, known_quality)


def test_a_budget_has_as_many_full_steps_as_it_allows_and_the_best_quality_is_chosen():
    # at branch 0 k full steps are 8 / k times faster, at branch 1 32 / (3 k + 8)
    assert goals.branches_within_budget({m.branch: m.macs for m in BRANCHES}, 8, 1.5) == [0, 1]
    tried, chosen = goals.best_within_budget(BRANCHES, 1.5, known_quality)
    assert {one.branch: len(one.cache_steps) for one in tried} == {0: 5, 1: 4}
    assert chosen.branch == 0 and chosen.psnr == 50
    assert goals.branches_within_budget({m.branch: m.macs for m in BRANCHES}, 8, 4) == [0]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--budget", "1"], "give more, such as 2.5x"),
        (["--quality", "nan"], "--quality is nan"),
        (["--quality", "-3"], "from 1 to 200"),
        (["--steps", "1"], "--steps is 1"),
        (["--out", "."], "is a directory"),
        (["--num-images", "0"], "--num-images is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--branches", "12"], "branch"),
        (["--cache-steps", "0,3"], "leave out --cache-steps"),
        (["--calibrated", "some.json"], "leave out --calibrated"),
        (["--reuse-guidance"], "leave out --reuse-guidance; it is not calibrated"),
        (["--guidance-stop", "0.9"], "leave out --guidance-stop; it is not calibrated"),
        (["--reuse-attention"], "leave out --reuse-attention; it is not calibrated"),
        (["--forecast", "nan"], "--forecast is nan"),
        (["--forecast", "fit"], "--forecast fit needs --out"),
        (["--forecast", "1", "--script", "ddpm.sample", "--steps", "500"], "up to 300"),
        (["--script", "ddpm.sample", "--zero-cache"], "leave out --zero-cache"),
        (["--model", "nowhere/at/all", "--prompts", "shapes"], "nowhere"),
    ],
)
def test_a_wrong_call_is_one_line_and_2(options, words, capsys):
    assert calibrate.main([*FEW, *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert words in printed.err


def test_prompts_for_both_halves_of_the_images_are_needed(tmp_path, capsys):
    prompts = tmp_path / "few.txt"
    prompts.write_text("a red ring\na blue square\na green cross\n")
    assert calibrate.main([*FEW, "--prompts", str(prompts), "--num-images", "2"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and "few.txt has 3 prompts" in printed


@pytest.mark.parametrize(
    "options", [["--budget", "fast"], ["--forecast", "far"], ["--budget", "2", "--quality", "40"], ["--no-such-option"]]
)
def test_options_that_are_no_options_are_refused_by_the_parser(options, capsys):
    assert calibrate.main([*FEW, *options]) == 2
    assert "error: " in capsys.readouterr().err
