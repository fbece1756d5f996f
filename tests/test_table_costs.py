"""Costs and missing inputs of tables, shown before anything is run; and the released script's noise."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eval import tables
from eval.generation import text
from eval.paper.data import RowRun, load_scale
from eval.paper.estimate import cost_of, printed_throughput
from eval.paper.jobs import Options, job_of
from eval.paper.progress import TableBar
from unets.cache.config import CacheConfig


def options(scale: str, tmp_path: Path, **more: Any) -> Options:
    places = (tmp_path / "work" / scale, tmp_path / "inputs", tmp_path / "out")
    return Options(load_scale(scale), *places, torch.device("cpu"), **more)


def test_a_dry_run_says_what_is_missing_once_and_makes_nothing(tmp_path, capsys):
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--inputs", str(tmp_path / "in")]
    call = ["all", "--scale", "paper", "--dry-run", "--device", "cpu"]
    assert tables.main([*call, *places]) == 0
    said = capsys.readouterr().out
    first, *lines = said.split("\n\n")[0].splitlines()
    wanted = {name for model in load_scale("paper").models.values() for name in model.inputs}
    assert first == f"Missing: {len(wanted)}"
    assert {line.strip().split(",")[0] for line in lines} == wanted and len(lines) == len(wanted)
    assert all("python -m eval." in line for line in lines)
    assert "100 of 100" in said and "50 of 100" in said and "on one rtx2080" in said
    assert list(tmp_path.iterdir()) == []


def test_hours_are_those_of_the_printed_throughput_and_of_faster_gpus_in_proportion(tmp_path):
    some = options("paper", tmp_path)
    for run, expected, faster in (
        (RowRun("ldm4", 250), 50000 / 0.178, 19.5 / 10.1), (RowRun("ddpm-cifar10", 100), 50000 / 9.79, 19.5 / 10.1),
        (RowRun("sd15-parti", 50), 1632 / 0.230, 312 / 40.3),  # in float16
    ):  # fmt: skip
        job = job_of(run, some)
        assert job is not None
        assert cost_of(job, "rtx2080", some).seconds == pytest.approx(expected)
        assert cost_of(job, "a100", some).seconds == pytest.approx(expected / faster)
    # Without a printed figure, by MACs: zeros take as long as what they replace.
    cache = CacheConfig(cache_interval=10, cache_branch_id=2)
    zeros, kept = (job_of(RowRun("ddpm-cifar10", 100, cache, zero), some) for zero in (True, False))
    assert zeros is not None and kept is not None
    assert printed_throughput(zeros) == pytest.approx(printed_throughput(kept), rel=0.35)


def test_the_released_scripts_noise_is_an_option(tmp_path):
    run = RowRun("sd15-parti", 50)
    ours, theirs = (job_of(run, options("paper", tmp_path, original_seeds=given)) for given in (False, True))
    assert ours is not None and theirs is not None
    assert isinstance(theirs.settings, text.Settings) and isinstance(ours.settings, text.Settings)
    assert (theirs.settings.seed, theirs.settings.noise_period) == (42, 16)
    assert (ours.settings.seed, ours.settings.noise_period) == (0, None)
    assert ours.out != theirs.out


@pytest.mark.parametrize("shown", [True, False])
def test_one_bar_is_over_all_that_tables_make_and_measure(tmp_path, monkeypatch, capsys, shown):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    some = options("shapes", tmp_path)
    job, baseline = (job_of(RowRun("ddpm-cifar10", 100, cache), some) for cache in (CacheConfig(5, 2), CacheConfig()))
    assert job is not None and baseline is not None
    with TableBar([job, baseline], [job, baseline], [job], some, shown) as bar:
        for one in (job, baseline):
            bar.begins("images", one)
            bar.advance("images", one, 0.5)
            bar.advance("images", one, 0.5)
            bar.advance("scores", one)
        bar.say("a line")
        bar.advance("speed", job)
        bar.advance("speed", baseline)  # which is not to be timed
        assert not shown or bar.bar.n == pytest.approx(bar.bar.total)
    assert capsys.readouterr().out == "a line\n"
    assert ("tables: 100%" in stderr.getvalue()) == shown
    assert (f"left, {baseline.name}, images" in stderr.getvalue()) == shown
