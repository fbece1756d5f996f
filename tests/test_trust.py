"""What the tables print is what was measured of these images, with this scorer: nothing stale, nothing overwritten."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.shipped import SHAPES_CLIP, SHAPES_DDPM, SHAPES_LDM, SHAPES_SD
from eval import tables
from eval.generation.prompts import shapes_caption
from eval.metrics.features import open_extractor
from eval.metrics.fid import make_reference
from eval.paper import measured
from eval.paper.data import FidScore, RowRun, Scale, load_scale, load_table
from eval.paper.images import is_made
from eval.paper.jobs import Job, Options, job_of, plan
from eval.paper.measured import Found
from eval.paper.results import results_of
from eval.paper.scores import measure_scores
from image_sets.sets import ImageSet
from tests.killed import start, with_few_references
from tests.local_hub import LocalHub
from unets.cache.config import CacheConfig

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def options(tmp_path: Path, scale: Scale | None = None) -> Options:
    places = (tmp_path / "work", tmp_path / "inputs", tmp_path / "out")
    scale = scale or with_few_references("shapes")
    return Options(scale, *places, CPU, num_images=4, quiet=True)


def job_with_images(tmp_path: Path, seed: int = 0) -> Job:
    """A job whose images are noise, made as a set is made."""
    job = job_of(RowRun("ddpm-cifar10", 100), options(tmp_path))
    assert job is not None
    image_set = ImageSet(job.out, {"seed": seed})
    image_set.open()
    image_set.write(range(4), np.random.default_rng(seed).integers(0, 256, (4, 32, 32, 3), np.uint8), None)
    image_set.finish(4, quiet=True)
    return job


def run(tmp_path: Path, *call: str, images: int = 4) -> int:
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--inputs", str(tmp_path / "inputs")]
    return tables.main([*call, "--num-images", str(images), "--device", "cpu", "--quiet", "--no-speed", *places])


@pytest.fixture
def short(monkeypatch):
    """Runs of four steps, references of few pictures."""

    def at(run: RowRun, scale: str, steps_factor: float) -> RowRun:
        return replace(
            run, steps=4 if run.steps else 0, cache=replace(run.cache, center=2 if run.cache.center else None)
        )

    monkeypatch.setattr(RowRun, "at", at)
    monkeypatch.setattr(tables, "load_scale", with_few_references)


def rows_of(tmp_path: Path, name: str) -> list[dict[str, str]]:
    with (tmp_path / "out" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_noise_in_the_place_of_samples_is_not_scored(tmp_path, short, capsys):
    assert run(tmp_path, "table5", "--rows", "1") == 0
    (samples,) = (tmp_path / "work").glob("shapes/ddpm-cifar10-*/samples.npz")
    before = rows_of(tmp_path, "table5")
    np.savez(samples, arr_0=np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8))
    assert run(tmp_path, "table5", "--rows", "1") == 2
    assert "samples.npz is not the file that was made there; remove it" in capsys.readouterr().err
    samples.unlink()
    assert run(tmp_path, "table5", "--rows", "1") == 0
    assert rows_of(tmp_path, "table5") == before  # made again: the same images


def test_another_reference_in_the_same_place_is_another_score(tmp_path):
    job = job_with_images(tmp_path)
    reference = tmp_path / "reference.npz"
    score = FidScore("shapes", str(reference))
    job = replace(job, model=replace(job.model, score=score), reference=reference)
    found = []
    for level in (0, 100):
        images = np.random.default_rng(level).integers(level, 256, (40, 32, 32, 3), np.uint8)
        np.savez(tmp_path / "pictures.npz", arr_0=images)
        make_reference(tmp_path / "pictures.npz", reference, open_extractor("shapes"), quiet=True)
        found.append(measure_scores(job, options(tmp_path)).found.values["fid"])
    assert found[0] != found[1]
    assert measure_scores(job, options(tmp_path)).found.values["fid"] == found[1]


def test_a_drawn_reference_that_was_changed_is_drawn_again(tmp_path):
    few = options(tmp_path)
    job = job_with_images(tmp_path)
    assert job.reference is not None
    first = measure_scores(job, few)
    shutil.copy(job.out / "samples.npz", job.reference)
    again = measure_scores(job, few)
    assert again.found == first.found and again.made_from == first.made_from


def test_scores_are_made_again_for_other_images_another_scorer_and_other_code(tmp_path, monkeypatch):
    few = options(tmp_path)
    job = job_with_images(tmp_path)
    first = measure_scores(job, few)

    def fail(*_: Any) -> Found:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr("eval.paper.scores._fid", fail)
        assert measure_scores(job, few) == first  # as it is in the file
        for name in ("code_version", "_weights_of"):
            with monkeypatch.context() as other:
                other.setattr(f"eval.paper.scores.{name}", lambda *_: "other")
                other.setattr("eval.paper.scores._draw_reference", lambda *_: None)
                with pytest.raises(AssertionError, match="measured again"):
                    measure_scores(job, few)
        shutil.rmtree(job.out)
        job_with_images(tmp_path, seed=1)
        with pytest.raises(AssertionError, match="measured again"):
            measure_scores(job, few)


@pytest.mark.parametrize(("model", "shipped"), [("ddpm-cifar10", SHAPES_DDPM), ("ldm4", SHAPES_LDM)])
def test_other_weights_are_another_set(tmp_path, model, shipped):
    weights = tmp_path / "weights"
    shutil.copytree(shipped, weights)
    name = "checkpoint" if model.startswith("ddpm") else "model"
    scale = load_scale("shapes")
    settings: Any = scale.models[model].settings
    own = replace(scale.models[model], settings=replace(settings, **{name: str(weights)}))
    some = options(tmp_path, replace(scale, models={model: own}))
    run = RowRun(model, 100, CacheConfig(cache_interval=5, cache_branch_id=0))

    def folder() -> Path:
        job = job_of(run, some)
        assert job is not None
        return job.out

    first = folder()
    moved = weights.rename(tmp_path / "moved")
    assert folder() != first  # they are not there
    moved.rename(weights)
    assert folder() == first
    file = next(weights.rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert folder() != first


def test_rows_that_are_not_asked_for_stay_as_they_were(tmp_path, short):
    assert run(tmp_path, "table5") == 0
    before = rows_of(tmp_path, "table5")
    assert all(row["images"] == "4" and "singular covariance" in row["not_shown"] for row in before)
    assert all(float(row["kid_here"]) > 0 for row in before[:4])
    assert run(tmp_path, "table5", "--rows", "2", images=3) == 0  # in the same folder, since --out says so
    after = rows_of(tmp_path, "table5")
    assert after[1]["images"] == "3" and before[1]["images"] == "4"
    assert [after[k] for k in (0, 2, 3)] == [before[k] for k in (0, 2, 3)]
    text = (tmp_path / "out" / "table5.md").read_text()
    assert "**Row 2 can't be compared with the others**: different number of images" in text
    assert "Scores of row 2: 3 images, 20" in text


def test_trials_have_a_folder_of_their_own(tmp_path, monkeypatch):
    for call, out in (
        ([], "shapes"), (["--num-images", "4"], "shapes-4-images"), (["--dtype", "bfloat16"], "shapes-bfloat16"),
        (["--num-images", "4", "--original-seeds"], "shapes-4-images-original-seeds"),
        (["--scale", "paper"], "paper"), (["--num-images", "4", "--out", "elsewhere"], "../elsewhere"),
    ):  # fmt: skip
        args = tables.parser().parse_args(["all", "--device", "cpu", *call])
        assert os.path.normpath(tables._options(args).out) == os.path.normpath(f"results/{out}")


@pytest.fixture
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes started here: more may add numbers up in another order
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_two_jobs_at_once_on_different_rows_end_in_one_table(tmp_path, _one_thread, monkeypatch):
    monkeypatch.setattr(tables, "load_scale", with_few_references)

    def call(folder: str, *rows: str) -> list[str]:
        places = ["--work", str(tmp_path / folder / "work"), "--out", str(tmp_path / folder / "out")]
        return ["table5", *rows, "--num-images", "4", "--device", "cpu", "--quiet", "--no-speed", *places]

    # Row 3 is wanted by both: one makes it, the other waits.
    both = [start("eval.tables", call("two", "--rows", rows)) for rows in ("1,3", "3,4")]
    assert tables.main(call("one", "--rows", "1,3-4")) == 0
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert tables.main(call("two", "--rows", "1,3-4", "--render")) == 0

    def found(folder: str) -> dict[str, Any]:
        files = (tmp_path / folder / "out" / "measured").rglob("*.json")
        return {str(path.relative_to(tmp_path / folder)): json.loads(path.read_text())["found"] for path in files}

    assert found("two") == found("one")
    assert len([name for name in found("one") if name.endswith("scores.json")]) == 3
    for name in ("table5.md", "claims.md"):
        texts = [(tmp_path / folder / "out" / name).read_text() for folder in ("two", "one")]
        assert texts[0] == texts[1]


def test_what_misses_its_scorer_keeps_the_columns_that_need_none(tmp_path, short, monkeypatch, capsys):
    from common.command_line import RunError

    def unavailable(*_: Any) -> Found:
        raise RunError("cannot download the extractor")

    monkeypatch.setattr("eval.paper.scores._clip_score", unavailable)
    assert run(tmp_path, "table13", "--rows", "1,9") == 0
    assert "no scores: cannot download the extractor" in capsys.readouterr().err
    rows = rows_of(tmp_path, "table13")
    assert rows[8]["clip_score_here"] == "" and 5 < float(rows[8]["psnr_here"]) < 168


def test_damaged_measurements_are_named(tmp_path, short, capsys):
    assert run(tmp_path, "table5", "--rows", "1") == 0
    (file,) = (tmp_path / "out" / "measured").glob("*/scores.json")
    file.write_text("{")
    assert run(tmp_path, "table5", "--render") == 2
    assert re.search(r"scores\.json is .*; remove it to have it measured again", capsys.readouterr().err)


def test_a_set_without_settings_is_no_set(tmp_path):
    job = job_with_images(tmp_path)
    assert is_made(job)
    (job.out / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"is not a set of images: it has no settings\.json"):
        is_made(job)


def test_lists_of_numbers_are_on_one_line_and_come_back(tmp_path):
    found = Found(
        {"a": 1.5, "b": None}, {"a": 1.0}, {"a": 2.0}, {"a": [1.23456789e-5, -2.0, 3.0], "b": []}, {"b": "few"}
    )
    file = tmp_path / "scores.json"
    new = measured.measured(file, {"samples": "x"}, lambda: found, CPU)
    text = file.read_text()
    assert "[ 1.234568e-05, -2.0, 3.0 ]" in text
    there = measured.read(file)
    assert there is not None and there.found.values == found.values and there.found.unreliable == found.unreliable
    assert list(there.found.each["a"]) == [1.234568e-05, -2.0, 3.0] and there.made_from == new.made_from


def test_three_cells_of_the_committed_tables_come_from_the_scores_of_every_image():
    out = ROOT / "results" / "shapes"
    some = Options(load_scale("shapes"), ROOT / "outputs", ROOT / "inputs", out, CPU)
    checked = 0
    for name, column in (("table13", "clip_score"), ("table13", "distance"), ("table1", "fid")):
        planned = plan(load_table(name), None, some)
        with (out / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        for job, result, row in zip(planned.jobs, results_of(planned, some), rows, strict=True):
            if job is None or not row[f"{column}_here"]:
                continue
            file_of = result.pairs if column == "distance" else result.scores
            assert file_of is not None
            each = np.array(file_of.found.each[column])
            factor = {"distance": 1000}.get(column, 1)
            half = (float(row[f"{column}_high"]) - float(row[f"{column}_low"])) / 2
            if column == "fid":  # of a set, not of an image: its replicates have its standard error
                error = each.std(ddof=1)
                assert half == pytest.approx(1.96 * error, rel=0.25)  # the spread of 100 replicates: ± 7 %, 3.5 of it
            else:
                assert len(each) == int(row["images"])
                error = each.std(ddof=1) / len(each) ** 0.5
                assert float(row[f"{column}_here"]) == pytest.approx(factor * each.mean(), rel=1e-6)
                assert half == pytest.approx(1.96 * factor * error, rel=1e-5)
            checked += 1
    assert checked >= 20


@pytest.mark.slow
def test_a_row_of_the_papers_scale_is_fetched_made_scored_and_put_into_its_table(tmp_path):
    prompts = "Prompt\tCategory\n" + "".join(f"{shapes_caption(k)}\tx\n" for k in range(3))
    repos = {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": SHAPES_SD,
        "laion/CLIP-ViT-g-14-laion2B-s34B-b88K": SHAPES_CLIP,
    }
    call = ["table13", "--scale", "paper", "--rows", "1,9", "--device", "cpu", "--dtype", "float32", "--quiet",
            "--no-speed", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"),
            "--inputs", str(tmp_path / "inputs")]  # fmt: skip

    def start(hub: LocalHub, *more: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "TORCH_HOME": str(tmp_path / "torch"),
            "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.row_of_the_paper", hub.url_of("PartiPrompts.tsv"), *call, *more]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    with LocalHub(repos, {"PartiPrompts.tsv": prompts.encode()}) as hub:
        without = start(hub, "--offline")
        assert without.returncode == 1 and not hub.requests
        error = without.stderr.splitlines()[-1]
        assert error.startswith("error: rows skipped; missing: parti, the PartiPrompts: python -m eval.fetch parti")
        assert [error.count(f"python -m eval.fetch {name}") for name in ("parti", "sd15", "vit-g-14")] == [1, 1, 1]
        text = (tmp_path / "out" / "table13.md").read_text()  # the table exists all the same
        assert "missing: sd15, parti, vit-g-14" in text and "| 29.51 | – |" in text
        done = start(hub)
        assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path, "table13")
    assert float(rows[0]["clip_score_here"]) > 0 and float(rows[8]["psnr_here"]) > 5
    assert rows[0]["images"] == rows[8]["images"] == "2" and rows[9]["images"] == ""
    text = (tmp_path / "out" / "table13.md").read_text()
    assert "One generator for each image; the released script seeds with 42 again" in text
    settings = json.loads(next((tmp_path / "work").glob("paper/sd15-parti-4-2-*/settings.json")).read_text())
    assert settings["rounding"] == "truncate" and settings["prompts"]["count"] == 3
