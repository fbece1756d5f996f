"""What can be said of apple/ without MLX: the samplers' tables, what is refused, and that nothing else needs it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from apple import sample
from apple.samplers import read_sampler, sampler_steps
from common.shipped import SHAPES_SD
from pipelines.loading import new_scheduler
from tests.layout import ROOT, absolute_imports, folder_of, product_files

SCHEDULER = json.loads((SHAPES_SD / "scheduler" / "scheduler_config.json").read_text())


def steps_of(tmp_path, name, num_steps, **changes):
    """The table for the shipped model's configuration with changes, and diffusers' scheduler for the same."""
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({**SCHEDULER, **changes}))
    scheduler = new_scheduler(name, {**SCHEDULER, **changes})
    scheduler.set_timesteps(num_steps)
    return sampler_steps(*read_sampler(path, name), num_steps), scheduler


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", ["plms", "ddim"])
def test_tables_are_diffusers_schedulers(name, spacing, prediction, tmp_path):
    for num_steps, schedule, to_one in ((1, "linear", True), (2, "linear", False), (10, "scaled_linear", False)):
        changes = {"beta_schedule": schedule, "set_alpha_to_one": to_one, "timestep_spacing": spacing}
        steps, scheduler = steps_of(tmp_path, name, num_steps, prediction_type=prediction, **changes)
        assert [step.timestep for step in steps] == scheduler.timesteps.tolist()
        outputs = torch.randn(len(steps), 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        expected = latents = before = torch.ones(50, dtype=torch.float64)
        earlier: list[torch.Tensor] = []
        for step, output in zip(steps, outputs, strict=True):
            expected = scheduler.step(output, step.timestep, expected).prev_sample
            start = before if step.again else latents
            average = sum(w * o for w, o in zip(step.weights, [output, *earlier], strict=False))
            before, latents = latents, step.of_latents * start + step.of_output * average
            earlier = earlier if step.again else [output, *earlier]
            # diffusers multiplies up to 1,000 alphas in float32, each of which is rounded by up to 6e-8.
            assert torch.allclose(latents, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (None, {"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler"),
        (None, {"skip_prk_steps": False}, "skip_prk_steps"),
        (None, {"_class_name": "DDIMScheduler", "clip_sample": True}, "clip_sample"),
        (None, {"_class_name": "DDIMScheduler"}, "clip_sample"),  # which is diffusers' default
        ("ddim", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("plms", {"trained_betas": [0.1]}, "trained_betas"),
        ("plms", {"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2"),
        ("plms", {"prediction_type": "sample"}, "prediction_type"),
        ("ddim", {"timestep_spacing": "karras"}, "karras"),
        ("ddim", {"num_train_timesteps": 10}, "10 steps"),
    ],
)
def test_samplers_that_are_not_written_out_are_refused_by_name(name, changes, said, tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({**SCHEDULER, **changes}))
    with pytest.raises(ValueError, match=said):
        sampler_steps(*read_sampler(path, name), 10)


def test_without_mlx_it_is_one_line_with_the_remedy(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "mlx", None)
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    assert sample.main(["--out", str(tmp_path / "out"), "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: MLX can't be imported (")
    assert line.endswith("); run `make mlx`, or pip install -r requirements-mlx.txt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cache-steps", "1,2"], "must begin with 0"),
        (["--non-uniform"], "--non-uniform needs --center and --pow"),
        (["--refresh-interval", "3"], "--refresh-interval"),
        (["--reuse-guidance"], "--reuse-guidance"),
        (["--skip-interval", "2"], "--skip-interval"),
        (["--reuse-attention"], "--reuse-attention"),
        (["--out", str(ROOT / "docs")], "choose another folder"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, said, capsys):
    assert sample.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


def test_nothing_else_imports_it_or_mlx():
    for path in product_files():
        if folder_of(path) != "apple":
            assert not {"mlx", "apple"} & {name[0] for name in absolute_imports(path)}, path


def test_the_library_is_not_shadowed():
    """From the top of the repository, `import mlx` is the library, if there is one."""
    found = importlib.util.find_spec("mlx")
    assert found is None or not any(Path(place).parent == ROOT for place in found.submodule_search_locations or ())
    assert not (ROOT / "mlx").exists() and not (ROOT / "mlx.py").exists()
