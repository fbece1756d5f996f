"""The benchmark of quality against time: distances, intervals, points, and a whole run on pictures of noise."""

import csv
import json

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import pareto
from benchmarks.macs import Layout
from benchmarks.pareto_output import INTERVALS, KINDS
from benchmarks.points import LISTED, MODELS, Model, Point, Run, ldm_points, skip
from eval.counting.layouts import MODELS as LAYOUTS
from eval.counting.macs import count_steps, unet_inputs
from eval.metrics.features import ShapesFeatures
from image_sets.batches import Batch
from unets.cache.config import CacheConfig
from unets.cache.run import CacheRun


def test_distances_of_equal_pictures_and_of_others():
    judge = ShapesFeatures()
    images = (np.random.default_rng(0).random((3, 64, 64, 3)) * 255).astype(np.uint8)
    same = pareto.distances(images, images, judge)
    assert same["mse"] == 0 and same["ssim"] == pytest.approx(1) and same["features"] == pytest.approx(0, abs=1e-6)
    moved = pareto.distances(np.clip(images, 0, 245) + np.uint8(10), np.clip(images, 0, 245), judge)
    assert moved["mse"] == pytest.approx(1e4 * (10 / 255) ** 2)
    assert moved["psnr"] == pytest.approx(20 * np.log10(25.5))
    assert moved["psnr_low"] == moved["psnr_high"] == pytest.approx(moved["psnr"])  # all are as far off


def test_the_interval_of_a_median_is_that_of_order_statistics():
    """95 % for the median of 100 values is from about the 40th to the 61st, by the binomial distribution."""
    low, high = pareto.median_interval(np.random.default_rng(0).permutation(100).astype(float))
    assert low == pytest.approx(39, abs=1.5) and high == pytest.approx(60, abs=1.5)


# --- the points ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def points_of():
    return {name: model.points() for name, model in MODELS.items()}


def test_points_have_names_of_their_own_from_the_baseline_to_the_fine_solution(points_of):
    for points in points_of.values():
        assert len({pareto.named(point) for point in points}) == len(points)
        assert points[0].kind == "baseline" and points[-1].kind == "fine"
        assert {point.kind for point in points[:-1]} <= KINDS.keys()


def test_every_cache_fits_its_model(points_of):
    for points in points_of.values():
        for point in points:
            if point.run is not None:
                CacheRun(point.run.cache, point.unet, point.run.num_steps, point.run.num_calls)


def test_only_runs_of_our_own_loops_have_operations(points_of):
    for points in points_of.values():
        for point in points:
            assert (point.run is None) == (point.kind in ("other packages", "published"))


def test_operations_are_those_of_the_steps_of_each_kind():
    layout = Layout("sd15", guided=True)
    fork = LAYOUTS["sd15"].on_meta()
    full, retrieve = count_steps(fork, unet_inputs(fork, 64, 64, batch=2), 1)
    assert layout.macs(CacheConfig(), 51, 50) == 51 * full.with_attention
    # PLMS: 10 of the 50 steps are full, and the call more retrieves.
    plain = layout.macs(CacheConfig(5, 1), 51, 50)
    assert plain == 10 * full.with_attention + 41 * retrieve.with_attention
    # With skipping, 13 and step 1 are full, and nothing else is called.
    assert layout.macs(CacheConfig(**skip(4, 0, 1)), 51, 50) == 14 * full.with_attention
    assert (
        4.6
        < 51 * full.with_attention / layout.macs(CacheConfig(**LISTED["dense at the beginning, branch 5"]), 51, 50)
        < 4.7
    )


# --- whole runs ------------------------------------------------------------------------------------------------------


def of_noise(name, kind, offset, made):
    """A point whose pictures are the noise that they start from, and so much lighter."""

    unet = nn.Identity()

    def make(batch):
        made.append((name, batch.indices))
        unet(torch.empty(0))  # for its time
        return torch.stack([torch.rand(3, 32, 32, generator=g) for g in batch.generators]) - 0.5 + offset

    return Point(name, kind, unet, make, Run(CacheConfig(), 10 if kind == "baseline" else 5, 5))


@pytest.fixture
def made(monkeypatch):
    """What is made in a run over a baseline, a point and a fine solution, of pictures of 32 pixels."""
    made: list[tuple[str, list[int]]] = []
    points = [("base", "baseline", 0.0), ("half", "fewer steps", 0.2), ("exact", "fine", 0.02)]

    def noise_points():
        """Noise."""
        return [of_noise(*point, made) for point in points]

    draw = pareto.draw
    layouts = {"operations": Layout("ddpm-cifar10", guided=False)}
    monkeypatch.setitem(pareto.MODELS, "ddpm", Model("ddpm-cifar10", noise_points, layouts))
    monkeypatch.setattr(pareto, "draw", lambda name, _, out, quiet: draw(name, 64, out, quiet))
    return made


def test_a_run_writes_distances_to_the_baseline_and_to_the_fine_solution(made, tmp_path, capsys):
    call = ["--models", "ddpm", "--count", "4", "--batch-size", "2", "--time-batch", "1", "--repeats", "1", "--quiet",
            "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]  # fmt: skip
    assert pareto.main([*call, "--fine-count", "3"]) == 0
    capsys.readouterr()
    with (tmp_path / "out" / "ddpm.csv").open(encoding="utf-8") as file:
        base, half = csv.DictReader(file)
    assert base["psnr"] == "" and half["operations"] == "2.0"
    for row, name, offset in ((half, "psnr", 0.2), (half, "psnr_fine", 0.18), (base, "psnr_fine", 0.02)):
        assert float(row[name]) == pytest.approx(-20 * np.log10(offset / 2), abs=0.5)  # rounded to whole grey levels
        assert float(row[f"{name}_low"]) <= float(row[name]) <= float(row[f"{name}_high"])
    text = (tmp_path / "out" / "ddpm.md").read_text(encoding="utf-8")
    assert "| exact |" not in text and "The fine solution is exact" in text and "for the first 3 pictures" in text
    assert (tmp_path / "out" / "ddpm.png").is_file() and set(INTERVALS) < half.keys()

    # In batches of 2, the fine solution of 3 pictures has 2 and 1; the last calls are for the time.
    kept = [(name, indices) for name, indices in made if indices != [0]]
    assert kept == [(n, i) for n in ("base", "exact", "half") for i in ([0, 1], [2] if n == "exact" else [2, 3])]
    made.clear()
    assert pareto.main([*call, "--fine-count", "3", "--quality-only"]) == 0
    assert not made  # all of it is kept
    assert pareto.main([*call, "--fine-count", "4", "--quality-only"]) == 0
    assert made == [("exact", [2, 3])]
    assert len(json.loads((tmp_path / "work" / "ddpm" / "half-4-4.json").read_text())) == 12


def test_more_fine_pictures_than_pictures_are_refused(capsys):
    assert pareto.main(["--models", "ddpm", "--count", "4", "--fine-count", "5"]) == 2
    assert "--fine-count is 5; it must be at most --count, 4" in capsys.readouterr().err


def test_a_point_that_is_not_there_is_refused_by_name(capsys):
    assert pareto.main(["--models", "ldm", "--points", "forecast N=5, m=0", "forecast N=6"]) == 2
    assert "'forecast N=6' is not among those of ldm" in capsys.readouterr().err


@pytest.mark.slow
def test_a_point_makes_pictures_of_its_own():
    points = {point.name: point for point in ldm_points()}
    made = {}
    for name in ("DDIM, 100 steps", "forecast N=20, m=0"):
        batch = Batch.of(pareto.SEED, [0])
        made[name] = points[name].make(batch)
    assert made["DDIM, 100 steps"].shape == (1, 3, 64, 64)
    assert not torch.equal(*made.values())
