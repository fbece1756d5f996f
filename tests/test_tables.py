"""The paper's tables: what is printed, what is planned for each row, and the whole command on the shipped models."""

import csv
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ddpm.sample
import ldm.sample
import shapes.renders
from eval import generate, tables
from eval.counting.macs import average
from eval.generation import text
from eval.metrics.distances import psnr
from eval.paper.data import FOLDER, SCALES, TABLES, RowRun, load_scale, load_table, parse_scale, parse_table
from eval.paper.estimate import tmacs_of
from eval.paper.jobs import Job, Options, baseline_of, job_of
from eval.paper.macs import macs_of, steps_of
from eval.paper.output import agrees
from eval.paper.scores import measure_pairs
from image_sets.sets import ImageSet
from ldm.checkpoint import new_scheduler
from pipelines import LDMClassPipeline
from tests.killed import start, with_few_references
from unets.cache.config import CacheConfig
from unets.cache.zeroed import zero_cached_features

ROOT = Path(__file__).parent.parent
ROWS = [(name, k, row) for name in TABLES for k, row in enumerate(load_table(name).rows, 1)]
RUNS = [(name, k, row.run) for name, k, row in ROWS if row.run is not None]
EXCEPTIONS = {("table12", k) for k in (6, 7, 8, 9)} | {("table3", 6), ("table3", 12)}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def options(scale: str, tmp_path: Path, **more: Any) -> Options:
    places = (tmp_path / "work" / scale, tmp_path / "inputs", tmp_path / "out")
    return Options(load_scale(scale), *places, torch.device("cpu"), **more)


def published_macs() -> dict[str, set[str]]:
    data = json.loads((Path(__file__).parent / "data" / "paper_macs.json").read_text())
    found: dict[str, set[str]] = {}
    for table, _, printed, *_ in data["rows"]:
        found.setdefault(f"table{table}", set()).add(printed)
    return found


@pytest.mark.parametrize("name", published_macs())
def test_every_printed_macs_cell_is_counted_and_agrees_but_for_the_exceptions_named(name):
    table = load_table(name)
    models = load_scale("paper").models
    apart, seen = set(), set()
    for k, row in enumerate(table.rows, 1):
        if row.run is None:
            continue
        unet = models[row.run.model].unet
        assert unet is not None
        counted = macs_of(row.run, unet, table.macs_over)
        seen.add(row.paper["macs_g"])
        if not agrees(row.paper["macs_g"], counted):
            apart.add((name, k))
    assert published_macs()[name] <= seen
    assert apart == {exception for exception in EXCEPTIONS if exception[0] == name}


def test_macs_of_a_run_are_the_average_of_its_steps():
    full, retrieve = (step.paper / 1e9 for step in steps_of("ddpm-cifar10", 2))
    run = RowRun("ddpm-cifar10", 100, CacheConfig(cache_interval=3, cache_branch_id=2))
    assert macs_of(run, "ddpm-cifar10", 100) == pytest.approx(average(full, retrieve, 100, 3), rel=1e-12)


@pytest.mark.parametrize(
    ("printed", "value", "same"),
    [("23.50", 23.505, True), ("23.50", 23.515, False), ("6.1", 6.0655, True), ("156.0", 155.96, True),
     ("1.60", 1.6059, True), ("5.31", 5.325, False)],
)  # fmt: skip
def test_a_number_agrees_rounded_or_cut_off(printed, value, same):
    assert agrees(printed, value) is same


def typed_in(job: Job) -> Any:
    """The settings that the sampling script makes of a row's options as a user would type them."""
    script: Any = {ddpm.sample.Settings: ddpm.sample, ldm.sample.Settings: ldm.sample, text.Settings: generate}[
        type(job.settings)
    ]
    run, cache = job.run, job.run.cache
    argv = ["--steps", str(run.steps), "--cache-interval", str(cache.cache_interval)]
    if cache.cache_interval > 1:
        argv += ["--cache-branch-id", str(cache.cache_branch_id)]
    if cache.center is not None:
        argv += ["--non-uniform", "--center", str(cache.center), "--pow", str(cache.pow)]
    if run.zero_cache:
        argv += ["--zero-cache"]
    names = ("model", "config", "checkpoint", "prompts", "seed", "dtype", "rounding", "guidance_scale")
    for name in names:
        if (value := getattr(job.settings, name, None)) is not None:
            argv += [f"--{name.replace('_', '-')}", str(value)]
    args = script.parser().parse_args([*argv, "--num-images", str(job.num_images)])
    return replace(script.settings_of(args), cache_label=None)  # which names the folder of a set that has no --out


@pytest.mark.parametrize("scale", SCALES)
def test_every_row_has_the_settings_that_its_script_would_make_of_its_options(tmp_path, scale):
    by_out: dict[Path, Any] = {}
    pipe: Any = SimpleNamespace(scheduler=new_scheduler())
    for _, _, run in RUNS:
        job = job_of(run, options(scale, tmp_path))
        if job is None:
            continue
        interval = run.cache.cache_interval
        assert job.settings == typed_in(job)
        assert not isinstance(job.settings, shapes.renders.Settings)
        assert (job.settings.steps, job.settings.cache.cache_interval) == (job.run.steps, interval)
        assert job.run.num_full == -(-job.run.steps // interval)
        assert getattr(job.settings, "zero_cache", False) == run.zero_cache
        assert by_out.setdefault(job.out, job.settings) == job.settings  # equal places are equal settings, and
        assert tmacs_of(job) > 0
        if isinstance(job.settings, ldm.sample.Settings):  # whose timesteps can begin too high
            LDMClassPipeline.set_timesteps(pipe, job.run.steps, "cpu")
    # only prompts' or models' stand-ins differ where the settings don't
    assert len({(path.name.split("-")[0], settings) for path, settings in by_out.items()}) == len(by_out)


def test_every_row_has_a_model_at_the_papers_scale():
    models = load_scale("paper").models
    assert {run.model for _, _, run in RUNS} == set(models)
    for model in models.values():
        assert (model.speed_of or "sd15-parti") in models


def test_the_small_scale_shortens_runs_and_moves_centres(tmp_path):
    cache = CacheConfig(cache_interval=20, cache_branch_id=0, uniform=False, center=120, pow=1.2)
    run = RowRun("ldm4", 250, cache)
    job = job_of(run, options("shapes", tmp_path))
    assert job is not None
    assert (job.run.steps, job.run.cache.center) == (100, 48)
    assert run.steps == 250
    paper = job_of(run, options("paper", tmp_path))
    assert paper is not None
    assert (paper.run.steps, paper.run.cache.center, paper.num_images) == (250, 120, 50000)
    assert job_of(RowRun("ddpm-church", 100), options("shapes", tmp_path)) is None


def test_a_row_can_have_steps_of_its_own_at_a_scale(tmp_path):
    run = load_table("table4").rows[0].run
    assert run is not None and run.steps == 59
    steps = [job.run.steps for scale in SCALES if (job := job_of(run, options(scale, tmp_path))) is not None]
    assert dict(zip(SCALES, steps, strict=True)) == {"shapes": 25, "paper": 59}


@pytest.mark.parametrize(
    ("path", "says"),
    [((), "table3: .*'colour'"), (("rows", 0), "table3, row 1: .*'colour'"),
     (("rows", 0, "run"), "table3, row 1: .*'colour'")],
)  # fmt: skip
def test_an_unknown_key_of_a_table_is_refused(path, says):
    part = content = json.loads((FOLDER / "table3.json").read_text())
    for key in path:
        part = part[key]
    part["colour"] = 1
    with pytest.raises(ValueError, match=says):
        parse_table("table3", content)


@pytest.mark.parametrize("path", [(), ("models", "ldm4"), ("models", "ldm4", "settings"), ("models", "ldm4", "score")])
def test_an_unknown_key_of_a_scale_is_refused(path):
    part = content = json.loads((FOLDER / "scales.json").read_text())["paper"]
    for key in path:
        part = part[key]
    part["colour"] = 1
    with pytest.raises(ValueError, match=r"paper.*'colour'"):
        parse_scale("paper", content)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    run = RowRun("ddpm-cifar10", 100)
    job = job_of(run, options("paper", tmp_path))
    assert job is not None
    assert job.missing == ("ema-cifar10",)
    assert job.missing_for_scores == ("cifar10-reference", "inception")
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "ema_cifar10.ckpt").touch()
    (tmp_path / "inputs" / "cifar10-reference.npz").touch()
    job = job_of(run, options("paper", tmp_path))
    assert job is not None
    assert (job.missing, job.missing_for_scores) == ((), ("inception",))


def test_zeros_take_the_place_of_what_is_retrieved_and_of_nothing_else():
    class Echo(torch.nn.Module):
        def forward(self, x, *, cached_feature=None):
            return x if cached_feature is None else cached_feature

    echo = Echo()
    x, feature = torch.ones(2), torch.full((3,), 2.0)
    handle = zero_cached_features(echo)
    assert echo(x) is x
    assert torch.equal(echo(x, cached_feature=feature), torch.zeros(3))
    handle.remove()
    assert echo(x, cached_feature=feature) is feature


def run(tmp_path: Path, *names: str, num_images: int = 4) -> int:
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--inputs", str(tmp_path / "inputs")]
    return tables.main([*names, "--num-images", str(num_images), "--device", "cpu", "--quiet", *places])


def written(tmp_path: Path) -> dict[str, bytes]:
    out = tmp_path / "out"
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def short(monkeypatch) -> None:
    """Runs of a fifth of their steps, references of few pictures."""

    def at(run: RowRun, scale: str, steps_factor: float) -> RowRun:
        cache = run.cache if run.cache.center is None else replace(run.cache, center=4)
        return replace(run, steps=10, cache=cache)

    monkeypatch.setattr(RowRun, "at", at)
    monkeypatch.setattr(tables, "load_scale", with_few_references)


def test_a_table_from_nothing_and_nothing_the_second_time(tmp_path, monkeypatch, capsys):
    short(monkeypatch)
    assert run(tmp_path, "table5", "table9") == 0
    assert "6 sets of images made" in capsys.readouterr().out
    files = written(tmp_path)
    assert {name for name in files if not name.startswith("measured")} == {
        "README.md", "claims.md", "index.html", "table5.md", "table5.csv", "table9.md", "table9.csv",
    }  # fmt: skip
    with (tmp_path / "out" / "table5.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["fid_paper"] for row in rows] == ["9.74", "192.98", "7.36", "312.12", "", ""]
    # Zeroing the cached feature destroys quality at any number of steps.
    assert all(float(rows[k + 1]["kid_here"]) != float(rows[k]["kid_here"]) for k in (0, 2))

    def fail(*_, **__):
        raise AssertionError("something was done again")

    for name in ("paper.images.make_images", "paper.images.make_set", "paper.speed.alternate", "paper.scores.draw",
                 "metrics.fid.measure"):  # fmt: skip
        monkeypatch.setattr(f"eval.{name}", fail)
    assert run(tmp_path, "table5", "table9") == 0
    assert "0 sets of images made" in capsys.readouterr().out
    assert written(tmp_path) == files


def test_rows_are_shared_between_tables_timed_and_compared_with_the_baseline(tmp_path, monkeypatch, capsys):
    short(monkeypatch)
    assert tables.main(
        ["table2", "table6", "table12", "--rows", "2,3", "--num-images", "2", "--device", "cpu", "--quiet", "--repeats",
         "1", "--speed-batch", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    ) == 0  # fmt: skip
    with (tmp_path / "out" / "table2.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["throughput_here"]) > 0 and float(rows[1]["speedup_here"]) == 1
    assert rows[1]["psnr_here"] == ""  # the baseline itself
    with (tmp_path / "out" / "table12.csv").open() as file:
        branches = list(csv.DictReader(file))
    assert float(branches[1]["speedup_here"]) > 0
    assert 5 < float(branches[1]["psnr_here"]) < 80
    assert branches[0]["fid_here"] == ""  # not chosen
    assert float(branches[0]["macs_g_here"]) == pytest.approx(1.6, abs=0.01)  # which costs nothing to count
    # Table 2's baseline, Table 6's DeepCache with N = 2 and Table 12's two branches. With as many steps for all runs,
    # Table 6's DDIM is the baseline, and the third row of Table 2 is another method's.
    assert "4 sets of images made" in capsys.readouterr().out


def test_psnr_is_the_median_over_pairs(tmp_path):
    some, jobs = options("shapes", tmp_path, num_images=9), []
    for level, steps in ((100, 100), (110, 50)):
        job = job_of(RowRun("ddpm-cifar10", steps), some)
        assert job is not None
        images = np.full((9, 32, 32, 3), level, np.uint8)
        images[2] += level // 10 - 10  # one pair further apart
        image_set = ImageSet(job.out, {"level": level})
        image_set.open()
        image_set.write(range(9), images, None)
        image_set.finish(9, quiet=True)
        jobs.append(job)
    baseline, job = jobs
    other = baseline_of(job, some)
    assert other is not None and other.out == baseline.out
    found = measure_pairs(job, baseline, some).found
    assert found.values["psnr"] == pytest.approx(20 * np.log10(255 / 10), rel=1e-12)
    median = found.values["psnr"]
    assert median is not None and len(found.each["psnr"]) == 9 and found.each["psnr"][2] < median
    # The interval of a median of nine: the second and the eighth, here equal.
    assert found.low["psnr"] == found.high["psnr"] == found.values["psnr"]
    assert found.values["distance"] == pytest.approx(np.mean(found.each["distance"]), rel=1e-6)  # kept with 7 digits


def test_psnr_of_each_image_by_its_definition():
    images, reference = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 6, 3), np.uint8)
    images[3] = reference[3]
    found = psnr(images, reference)
    errors = [((a.astype(float) - b) ** 2).mean() for a, b in zip(images, reference, strict=True)]
    assert found.dtype == np.float64 and found.shape == (4,)
    assert found[:3] == pytest.approx([10 * np.log10(255**2 / error) for error in errors[:3]], rel=1e-12)
    assert found[3] == pytest.approx(10 * np.log10(255**2 / 1e-12), rel=1e-12)  # equal ones


@pytest.mark.slow
def test_a_killed_table_is_continued_and_ends_as_an_unbroken_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "load_scale", with_few_references)
    call = [
        "table5",
        "--rows",
        "1,3",
        "--num-images",
        "4",
        "--batch-size",
        "1",
        "--no-speed",
        "--quiet",
        "--device",
        "cpu",
    ]

    def command(folder: str) -> list[str]:
        return [*call, "--work", str(tmp_path / folder), "--out", str(tmp_path / f"{folder}-out")]

    process = start("eval.tables", command("killed"))
    while process.is_alive() and len(list((tmp_path / "killed").glob("shapes/*/parts/0*.npz"))) < 2:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert tables.main(command("killed")) == 0
    assert tables.main(command("whole")) == 0
    for name in ("table5.md", "table5.csv"):
        ours, theirs = ((tmp_path / f"{folder}-out" / name).read_bytes() for folder in ("killed", "whole"))
        assert ours == theirs


def test_missing_weights_leave_the_table_with_what_can_be_counted(tmp_path, capsys):
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--inputs", str(tmp_path / "in")]
    assert tables.main(["table12", "--scale", "paper", "--rows", "1", "--device", "cpu", "--quiet", *places]) == 1
    assert "ema-cifar10" in capsys.readouterr().err
    text = (tmp_path / "out" / "table12.md").read_text()
    assert "| 1.60 | 1.61 ✓ |" in text or "| 1.60 | 1.60 ✓ |" in text
    assert text.count("**≠**") == 4  # branches 6 to 9, named in the notes
    assert "5.325, 5.574, 5.732 and 5.890" in text
    assert "Rows 1–12 not scored; missing: ema-cifar10, cifar10-reference, inception" in text


def test_figure_4_and_the_page_over_it(tmp_path):
    assert run(tmp_path, "figure4") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "claims.md", "index.html", "figure4-ddpm-cifar10.md", "figure4-ddpm-cifar10.png",
        "figure4-sd15.md", "figure4-sd15.png",
    }  # fmt: skip
    lines = (tmp_path / "out" / "figure4-sd15.md").read_text().splitlines()
    assert "57.3285" in next(line for line in lines if line.startswith("| 1 |"))  # tests/data/macs_verified.json


@pytest.mark.parametrize(
    ("call", "says"),
    [(["table99"], "there is no table99"), (["table5", "--rows", "9"], "table5 has 6 rows"),
     (["table5", "--num-images", "1"], "--num-images is 1; it must be a whole number from 2")],
)  # fmt: skip
def test_wrong_calls(call, says, capsys, tmp_path):
    assert tables.main([*call, "--work", str(tmp_path / "w"), "--out", str(tmp_path / "o"), "--device", "cpu"]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_notes_name_where_the_paper_contradicts_itself():
    notes = {name: " ".join(load_table(name).notes) for name in TABLES}
    assert "113.63" in notes["table3"] and "130.52" in notes["table3"]
    assert "50.6" in notes["table4"]
    assert "10.38" in notes["table6"] and "9.74" in notes["table6"]
    assert "7.11" in notes["table11"] and "7.36" in notes["table11"]
    assert "equation 7" in notes["table1"]
    assert {path.stem for path in FOLDER.glob("table*.json")} == set(TABLES)
