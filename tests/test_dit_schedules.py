"""Schedules of layers: searched for, learned by a router, written, drawn, and run."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit import compare, generate, sample, search, table, train_router
from dit.best_layers import best_table, curve, total_error
from dit.config import LayerCacheConfig
from dit.macs import LayerMacs
from dit.measure import measure
from dit.observe import guided_noise, observed_steps
from dit.router import Router, table_of, threshold_within, train
from dit.schedules import read_schedule, write_schedule
from eval import fid
from tests.tiny_dit import maker

TINY = ["--tiny", "--device", "cpu", "--quiet"]


@pytest.mark.parametrize("forecast", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_schedule_found_is_the_best_of_all(seed, forecast):
    """Of one block and four steps: 64 schedules, all tried."""
    rng = np.random.default_rng(seed)
    errors = rng.random((2, 4, 4, 4) if forecast else (2, 4, 4))
    macs = LayerMacs(rest=1, attention=5, mlp=8, depth=1)
    tables = [np.array([True, True, *rest]).reshape(4, 2) for rest in itertools.product([False, True], repeat=6)]
    for budget in (1.0, 1.2, 1.5, 2.0, 3.0):
        within = [one for one in tables if macs.speed_up(one) >= budget]
        found, error = best_table([curve(one) for one in errors], macs, budget)
        assert macs.speed_up(found) >= budget
        assert error == pytest.approx(total_error(errors, found), rel=1e-12)  # sums in another order
        assert error == pytest.approx(min(total_error(errors, one) for one in within), rel=1e-12)
    with pytest.raises(ValueError, match=r"a budget of 4x is out of reach: one full step alone comes to 3\.29x"):
        best_table([curve(one) for one in errors], macs, 4)


def test_the_best_of_two_blocks_spends_where_errors_are():
    """Hand-made: the second block's attention is all that matters, and there is room for one layer more."""
    errors = np.zeros((4, 2, 2))
    errors[2, 0, 1] = 1
    macs = LayerMacs(rest=0, attention=1, mlp=1, depth=2)
    found, error = best_table([curve(one) for one in errors], macs, 8 / 5)
    assert LayerCacheConfig.of_table(found).layers == ("xxxx", "..x.") and error == 0


def test_measured_errors_are_those_of_a_run_in_which_one_layer_is_reused():
    made = maker(steps=3)
    transformer = made.pipe.transformer
    calls: list[Any] = []
    with observed_steps(transformer, lambda inputs, output: calls.append((inputs, output))):
        expected = made.make_batch([0, 1])
    assert np.array_equal(made.make_batch([0, 1]), expected)
    measured = measure(made, range(2), quiet=True)
    assert measured.sensitivity.shape == (3, 4) and not measured.sensitivity[0].any()
    with torch.no_grad():
        for (_, before), (inputs, now), step in zip(calls, calls[1:], (1, 2), strict=False):
            full = guided_noise(now.sample, 4, 1.5)
            for layer in range(4):
                reused = [before.outputs[k] if k == layer else None for k in range(4)]
                other = guided_noise(transformer(**inputs, reused=reused).sample, 4, 1.5)
                moved = measured.influence[step] * (other - full).square().mean().sqrt().item()
                # Through a ratio to distances in float64, and back.
                assert measured.errors()[layer, step - 1, step] == pytest.approx(moved, rel=1e-5)
    line = measured.errors(forecast=1.0)
    assert line.shape == (4, 3, 3, 3)
    assert np.allclose(line[:, 0, 0], measured.errors()[:, 0])  # nothing to extrapolate from yet: the copy


def losses_of(made, router, runs, **settings):
    found = []
    train(made, router, runs=runs, first=0, see=lambda _, loss: found.append(loss), **settings)
    return found


def test_a_router_learns_on_frozen_weights():
    made = maker(steps=4)
    weights = {name: value.clone() for name, value in made.pipe.transformer.state_dict().items()}
    router = Router(4, 2)
    assert router.scores().shape == (2, 4)
    losses = losses_of(made, router, 8, learning_rate=0.3, penalty=1e-4)
    assert losses[-1] < 0.9 * losses[0]
    now = made.pipe.transformer.state_dict()
    assert all(torch.equal(now[name], value) for name, value in weights.items())
    assert router.logits.std() > 0  # layers are told apart


def test_a_router_without_a_penalty_computes_and_with_a_large_one_reuses():
    scores = []
    for penalty in (0.0, 1.0):
        router = Router(2, 2)
        losses_of(maker(steps=2), router, 3, learning_rate=5.0, penalty=penalty)
        scores.append(router.scores().detach().numpy())
    assert (scores[0] > 0.88).all()
    assert LayerCacheConfig.of_table(table_of(scores[1], 2, 0.1)).layers == ("xxxx", "....")


def test_thresholds():
    scores, macs = np.array([[0.05, 0.9, 0.2, 0.4]]), LayerMacs(rest=0, attention=1, mlp=1, depth=2)
    assert LayerCacheConfig.of_table(table_of(scores, 2, 0.1)).layers == ("xxxx", ".xxx")
    assert LayerCacheConfig.of_table(table_of(scores, 3, 0.3)).layers == ("xxxx", ".x.x", "xxxx")
    assert threshold_within(scores, 2, macs, 8 / 6) == 0.2
    assert threshold_within(scores, 2, macs, 2) == 0.9
    with pytest.raises(ValueError, match=r"every second step is full, which allows 2\.00x"):
        threshold_within(scores, 2, macs, 2.1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("{}", "holds no schedule; write it with dit.train_router or dit.search"),
        ('{"cache": {"layers": [1]}}', r"layers\[0\] is 1"),
        ('{"cache": {"layers": 3}}', "layers must be a word for each step"),
        ('{"cache": {"forecast": []}}', "forecast is \\[\\]"),
        ('{"cache": {"pow": 2}}', "has pow"),
    ],
)
def test_files_that_are_no_schedules_are_refused(content, said, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        read_schedule(tmp_path / "x.json")


def test_searched_and_learned_schedules_are_written_drawn_sampled_and_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = [*TINY, "--steps", "4", "--num-images", "2", "--batch-size", "2"]
    assert search.main([*few, "--budget", "1.3x", "--out", "searched.json"]) == 0
    assert train_router.main([*few, "--budget", "1.2x", "--out", "router.json"]) == 0
    for name in ("searched", "router"):
        assert read_schedule(tmp_path / f"{name}.json").layers is not None
        assert Image.open(tmp_path / f"{name}.png").width > 200
    learned = json.loads((tmp_path / "router.json").read_text())
    assert np.shape(learned["scores"]) == (2, 8) and len(learned["log"]) == 1
    capsys.readouterr()

    once = ["--repeats", "1", "--warm-up", "0", "--out", "out"]
    assert sample.main([*few, *once, "--schedule", "searched.json"]) == 0
    printed = capsys.readouterr().out
    assert "layer cache layers" in printed and "PSNR" in printed and "Random weights" in printed
    names = {"baseline_000.png", "baseline_001.png", "cached_000.png", "cached_001.png", "output.png", "result.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["speed_up_in_macs"] >= 1.3 and len(result["psnr"]) == 2
    baseline, cached = (np.asarray(Image.open(tmp_path / "out" / f"{way}_000.png")) for way in ("baseline", "cached"))
    assert baseline.shape == (64, 64, 3) and not np.array_equal(baseline, cached)
    assert sample.main([*few, *once]) == 2  # of another cache
    assert "holds the result of other settings" in capsys.readouterr().err

    assert compare.main(["searched.json", "router.json", *few, "--intervals", "2", "--fewer-steps", "1",
                         "--out", "compared.json"]) == 0  # fmt: skip
    rows = json.loads((tmp_path / "compared.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["searched.json", "router.json", "N2-m1", "1 step"]
    assert "to_the_first" in rows[1] and "to_the_first" not in rows[0]
    assert rows[3]["speed_up_in_macs"] == 4 and all(row["speed_up"]["min"] > 0 for row in rows)
    for row in rows:  # nothing else has fewer MACs and is nearer
        better = [other for other in rows if other["speed_up_in_macs"] > row["speed_up_in_macs"]]
        assert row["frontier"] or any(other["psnr"] >= row["psnr"] for other in rows if other is not row)
        assert not row["frontier"] or all(other["psnr"] < row["psnr"] for other in better)
    assert rows[0]["psnr"] == np.median(result["psnr"])


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (sample, ["--schedule", "x.json", "--reuse", "mlp"], "--reuse and --schedule say the same"),
        (sample, ["--schedule", "none.json"], "there is no file none.json"),
        (sample, ["--schedule", "x.json", "--steps", "5"], "a schedule of 2 steps"),
        (sample, ["--outer-blocks", "2"], "outer_blocks is 2"),
        (sample, ["--model", "x/y"], "--tiny is a model of its own"),
        (sample, ["--labels", "1000"], "classes from 0 to 999"),
        (search, ["--budget", "1"], "--budget is 1x"),
        (search, ["--budget", "40", "--steps", "2", "--num-images", "1"], "a budget of 40x is out of reach"),
        (train_router, ["--steps", "1"], "takes at least 2"),
        (train_router, ["--threshold", "0.2", "--budget", "2"], "not allowed with argument"),
        (compare, [], "there is nothing to compare"),
    ],
)
def test_wrong_calls_end_in_one_line_and_write_nothing(module, arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_schedule(tmp_path / "x.json", LayerCacheConfig(layers=["x" * 8] * 2), {})
    assert module.main([*TINY, *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and said in line
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_the_published_table_is_printed_as_it_stands_with_counted_macs(capsys):
    assert table.main([]) == 0
    printed = capsys.readouterr().out
    assert "118.67 GMACs" in printed and "each other's column" in printed
    row = next(line for line in printed.splitlines() if line.startswith("DDIM, 50 steps"))
    assert row.split()[3:] == ["238.64", "4.290", "2.264", "80.16", "59.89", "7.245", "11.87"]
    made = [line.split()[2:] for line in printed.splitlines() if line.startswith("    python -m ")]
    ways = {"dit.train_router": train_router, "dit.generate": generate, "eval.fid": fid}
    assert [call[0] for call in made] == [
        "dit.generate",
        "eval.fid",
        "dit.train_router",
        "dit.generate",
        "eval.fid",
    ] * 2
    for name, *arguments in made:
        ways[name].parser().parse_args(arguments)


def test_sets_are_made_continued_and_of_the_same_pictures_in_any_batches(tmp_path):
    few = [*TINY, "--steps", "2", "--cache-interval", "2"]
    assert generate.main([*few, "--num-images", "2", "--out", str(tmp_path / "a")]) == 0
    assert generate.main([*few, "--num-images", "3", "--out", str(tmp_path / "a")]) == 0
    assert generate.main([*few, "--num-images", "3", "--batch-size", "3", "--out", str(tmp_path / "b")]) == 0
    a, b = (np.load(tmp_path / name / "samples.npz") for name in "ab")
    assert a["arr_0"].shape == (3, 64, 64, 3) and len(a["arr_1"]) == 3
    # Batches of other sizes are summed in another order.
    assert np.abs(a["arr_0"].astype(int) - b["arr_0"]).max() <= 1
    assert generate.main([*few, "--reuse", "mlp", "--num-images", "3", "--out", str(tmp_path / "a")]) == 2
