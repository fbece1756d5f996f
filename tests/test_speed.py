"""Throughput of variants: what they do, in which order, and the statistics of their seconds."""

import json
import re

import pytest
import torch

from common.timing import pairwise
from eval.counting.macs import average, count_steps, unet_inputs
from eval.pages.markdown import to_html
from eval.speed import Variant, add_bounds, main, make_variants, measure
from pipelines import StableDiffusionPipeline
from pipelines.competitors import is_installed, stock_pipeline
from pipelines.loading import new_scheduler
from tests.tiny import parts

CPU = torch.device("cpu")
CALL = {"prompt": ["a red ring", "a blue cross"], "num_inference_steps": 6, "guidance_scale": 2.5}


@pytest.fixture
def pipe():
    pipe = StableDiffusionPipeline(**parts())
    pipe.scheduler = new_scheduler("ddim", pipe.scheduler.config)  # the package miscounts PLMS
    pipe.set_progress_bar_config(disable=True)
    return pipe


def variants_of(pipe, *names, intervals=(1, 3)):
    return make_variants(pipe, names, CALL, intervals=intervals, branch=1, seed=5)


def test_variants_are_timed_in_turn_after_the_warm_up(pipe):
    order = []

    def call(name):
        def run(batch_size):
            order.append((name, batch_size))
            return pipe("a ring", num_inference_steps=2)

        return run

    rows = measure([Variant("A", pipe, call("A")), Variant("B", pipe, call("B"))], 4, repeats=2, warm_up=1, device=CPU)
    assert order == [("A", 4), ("B", 4)] * 3
    for row in rows:
        assert row["throughput"] == 4 / row["seconds"]["median"]
        assert row["unet_throughput"] == 4 / row["unet_seconds"]["median"]
        assert row["unet_seconds"]["max"] < row["seconds"]["max"]
        assert (row["full_steps"], row["retrieve_steps"]) == (2, 0)
    assert rows[0]["speed_up"] == {"median": 1, "min": 1, "max": 1}
    # Of two rounds the least and the greatest second are both there, in one order or the other.
    seconds = [[row["seconds"]["min"], row["seconds"]["max"]] for row in rows]
    assert rows[1]["speed_up"] in (pairwise(seconds[0], seconds[1]), pairwise(seconds[0], seconds[1][::-1]))


def test_the_variants_make_the_images_they_should_and_leave_nothing_behind(pipe):
    """DeepCache is the package's, bit for bit, and the baseline before is the baseline afterwards."""
    merging = ["tomesd"] if is_installed("tomesd") else []
    variants, notes = variants_of(pipe, "package", "ddim2", *merging)
    assert not notes
    images = {variant.name: variant.call(2).images for variant in variants}
    assert torch.equal(images["DeepCache N=3"], images["package N=3"])
    assert not torch.equal(images["DeepCache N=3"], images["baseline"])
    assert torch.equal(variants[0].call(2).images, images["baseline"])
    stock = stock_pipeline(pipe)
    stock.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(5 + k) for k in range(2)]
    assert torch.equal(stock(**CALL, generator=generators, output_type="pt").images, images["baseline"])
    assert not torch.equal(images["ddim 2 steps"], images["baseline"])


def test_image_k_has_its_prompt_and_its_noise_at_every_batch_size(pipe):
    baseline = variants_of(pipe)[0][0]
    # Sums over another batch are rounded otherwise; another prompt or noise moves pixels by far more.
    torch.testing.assert_close(baseline.call(3).images[:2], baseline.call(2).images, atol=1e-4, rtol=0)


def test_tomesd_merges_tokens_while_it_runs(pipe):
    pytest.importorskip("tomesd", reason="tomesd is not installed")
    variants, _ = variants_of(pipe, "tomesd75", intervals=())
    assert [variant.name for variant in variants] == ["baseline", "tomesd 75 %"]
    assert not torch.equal(variants[1].call(1).images, variants[0].call(1).images)


def test_what_is_not_installed_is_named_with_the_remedy(pipe, monkeypatch):
    monkeypatch.setattr("eval.speed.is_installed", lambda module: False)
    variants, notes = variants_of(pipe, "package", "tomesd")
    assert [variant.name for variant in variants] == ["baseline", "DeepCache N=3"]
    assert ["pip install DeepCache" in notes[0], "pip install tomesd" in notes[1]] == [True, True]


@pytest.mark.parametrize("name", ["nonsense", "plms", "plms0", "abacus25", "tomesd90"])
def test_an_unknown_competitor_is_refused(pipe, name):
    with pytest.raises(ValueError, match=name):
        variants_of(pipe, name)


def test_the_bound_is_the_ratio_of_macs(pipe):
    rows = measure(variants_of(pipe, intervals=(4,))[0], 1, repeats=1, warm_up=0, device=CPU)
    add_bounds(rows, pipe, (8, 8), branch=1)
    tokens = pipe.tokenizer.model_max_length
    full, retrieve = (m.with_attention for m in count_steps(pipe.unet, unet_inputs(pipe.unet, 8, 8, tokens=tokens), 1))
    assert "bound" not in rows[0]
    assert rows[1]["bound"] == pytest.approx(full / average(full, retrieve, 6, 4), rel=1e-12)


def test_the_script_writes_figures_and_a_table_that_the_report_reads(tmp_path, capsys):
    out = tmp_path / "speed.json"
    few = ["--steps", "4", "--repeats", "1", "--warm-up", "0", "--device", "cpu", "--quiet"]
    assert main([*few, "--batch-sizes", "1,2", "--intervals", "1,2", "--competitors", "plms2", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    names = ["baseline", "DeepCache N=2", "plms 2 steps"]
    assert [(row["batch_size"], row["name"]) for row in result["rows"]] == [(b, n) for b in (1, 2) for n in names]
    assert [row["full_steps"] + row["retrieve_steps"] for row in result["rows"][:3]] == [5, 5, 3]  # PLMS: one more
    text = out.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out
    _, page = to_html(text)
    assert page.count("<table>") == 1
    assert [re.findall("<td[^>]*>(.*?)</td>", row)[1] for row in page.split("<tr>")[2:]] == names * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-sizes", "0"], "--batch-sizes is 0"),
        (["--intervals", "0,2"], "--intervals is 0"),
        (["--branch", "12"], "cache_branch_id is 12"),
        (["--height", "60"], "--height is 60"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--model", "nowhere"], "no directory nowhere"),
        (["--competitors", "nonsense"], "--competitors has 'nonsense'"),
        (["--competitors", "plms5000"], "plms5000, whose number of steps is 5000; it must be below the 1000 steps"),
    ],
)
def test_a_wrong_call_ends_in_2(tmp_path, capsys, options, said):
    assert main(["--quiet", "--device", "cpu", "--out", str(tmp_path / "x.json"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
