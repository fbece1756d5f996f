"""What a calibration tells people to run, and when it warns them."""

import shlex
from types import SimpleNamespace
from typing import Any

import stable_diffusion
from eval import calibrate, generate
from eval.calibration import report
from pipelines.cache_options import cache_config

FEW = ["--device", "cpu", "--quiet"]


def test_the_printed_command_runs(capsys):
    options = ["--steps", "4", "--budget", "1.5x", "--num-images", "1"]
    assert calibrate.main([*FEW, *options]) == 0
    *_, sets, compared = capsys.readouterr().out.splitlines()
    title, _, compared = compared.partition(": ")
    assert title == "side by side with the baseline"
    sets_words, words = shlex.split(sets), shlex.split(compared)
    assert sets_words[:3] == ["python", "-m", "eval.generate"] and words[:2] == ["python", "stable_diffusion.py"]
    cache = cache_config(generate.parser().parse_args(sets_words[3:]))
    args = stable_diffusion.parser().parse_args(words[2:])
    assert cache_config(args) == cache and args.steps == 4 and args.scheduler == "plms"

    for script in ("ldm.sample", "ddpm.sample"):
        assert calibrate.main(["--script", script, *FEW, *options]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[-1].startswith(f"python -m {script} ")
        calibrate.SCRIPTS[script].parser().parse_args(shlex.split(said[-1])[3:])


def test_a_schedule_whose_pictures_are_far_from_the_baselines_is_named_as_such():
    trials: list[Any] = [SimpleNamespace(psnr=psnr, speed_up=2.0) for psnr in (30.1, 13.9)]
    near, far = map(report.warning, trials)
    assert near is None
    assert far is not None and "13.9 dB is far from" in far and "--budget 1.5x" in far
