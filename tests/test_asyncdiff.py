"""AsyncDiff on tiny models: one process, several, one of which dies; the command."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from asyncdiff import sample
from asyncdiff.call import call_in_parts
from asyncdiff.plan import Plan, cut
from asyncdiff.processes import LAUNCHED, OneProcess
from comparison.saving import check_out
from tests.async_peers import STEPS, die_at_step_2, ends, latents, save_latents, start, tiny_pipeline

LAYERS = [1] * 9  # of the tiny U-Nets, as if they cost the same
TWO, THREE = cut(LAYERS, 2), cut(LAYERS, 3)


@pytest.fixture(autouse=True)
def _one_thread():
    """More may add numbers up in another order than the processes do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "extra"), [("sd", {"height": 72, "width": 88}), ("sd", {}), ("xl", {}), ("svd", {})])
def test_a_warm_up_of_all_steps_is_the_plain_run(name, extra):
    plain = latents(name, None, None, **extra)
    assert np.array_equal(latents(name, Plan(THREE, warm_up=STEPS), OneProcess(), **extra), plain)
    in_parts = latents(name, Plan(THREE, warm_up=STEPS - 1), OneProcess(), **extra)
    assert in_parts.shape == plain.shape and not np.array_equal(in_parts, plain)
    assert np.array_equal(latents(name, None, None, **extra), plain)  # the pipeline is as it was


def test_nothing_of_a_call_is_left_for_the_next():
    first = latents("sd", Plan(THREE), OneProcess())
    latents("sd", Plan(TWO, warm_up=2), OneProcess(), prompt="a small blue square")
    assert np.array_equal(latents("sd", Plan(THREE), OneProcess()), first)


CASES: dict[int, list[Any]] = {
    2: [
        ("sd", Plan(TWO), {"scheduler": "plms"}),
        ("sd", Plan(cut(LAYERS, 2), warm_up=3, time_shift=True), {"height": 72}),
        ("xl", Plan((range(0, 7), range(7, 9))), {"guidance_scale": 1.0}),
    ],
    3: [
        ("sd", Plan(THREE), {}),
        ("xl", Plan(THREE, warm_up=2), {"scheduler": "euler-a"}),
        ("svd", Plan(THREE, time_shift=True), {"scheduler": "euler"}),
        ("sd", Plan(TWO, stride=2), {"scheduler": "dpm++"}),
        ("svd", Plan(TWO, stride=2), {"scheduler": "euler"}),
    ],
}


@pytest.mark.parametrize("size", CASES)
def test_several_processes_are_the_emulation_in_one_bit_for_bit(size, tmp_path):
    """All of them, which are started while this one emulates."""
    processes = start(size, save_latents, CASES[size], tmp_path)
    emulated = [latents(name, plan, OneProcess(), **extra) for name, plan, extra in CASES[size]]
    assert ends(processes) == [0] * size
    for k, expected in enumerate(emulated):
        for rank in range(size):
            assert np.array_equal(np.load(tmp_path / f"{k}-{rank}.npy"), expected), (CASES[size][k], rank)


@pytest.mark.parametrize(("how", "timeout"), [("killed", 300), ("asleep", 4)])
def test_a_process_that_dies_ends_the_others_with_one_line(how, timeout, tmp_path):
    first, second = start(2, die_at_step_2, how, timeout, errors=tmp_path)
    assert ends([first]) == [1]
    (line,) = (tmp_path / "0.txt").read_text().splitlines()
    assert line.startswith("error: process 0 lost the others") and f"within {timeout} s" in line
    if how == "asleep":
        second.kill()
    second.join()


def test_a_plan_for_another_number_of_processes_is_refused_by_each(tmp_path):
    cases: list[Any] = [("sd", Plan(TWO, stride=2), {})]
    assert ends(start(2, save_latents, cases, tmp_path, errors=tmp_path)) == [2, 2]
    for rank in range(2):
        (line,) = (tmp_path / f"{rank}.txt").read_text().splitlines()
        assert line == "error: 2 parts and a stride of 2 need 3 processes; there are 2"


@pytest.mark.parametrize(
    ("name", "plan", "arguments", "said"),
    [
        ("sd", Plan(TWO), {"cache_interval": 2}, "can't be combined with DeepCache"),
        ("svd", Plan(TWO), {"cache_interval": 2}, "can't be combined with DeepCache"),
        ("sd", Plan(cut([1] * 25, 2)), {}, "for a U-Net of 25 layers; this one has 9"),
        ("xl-img2img", Plan(TWO), {}, "XLImg2ImgPipeline can't run in parts"),
    ],
)
def test_what_can_t_run_in_parts_is_refused(name, plan, arguments, said):
    with pytest.raises(ValueError, match=said):
        latents(name, plan, OneProcess(), **arguments)


def test_freeu_is_refused():
    pipe = tiny_pipeline("sd")
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    try:
        with pytest.raises(ValueError, match="FreeU"):
            call_in_parts(pipe, Plan(TWO), OneProcess(), prompt="a ring", num_inference_steps=2)
    finally:
        pipe.disable_freeu()


# --- the command -----------------------------------------------------------------------------------------------------

SHORT = ["--tiny", "--steps", "4", "--repeats", "1", "--warm-up", "0", "--device", "cpu"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "torchrun --nproc_per_node 2 -m asyncdiff.sample"),
        (["--emulate", "2", "--stride", "2"], "--stride 2 needs at least 3 processes; there are 2"),
        (["--emulate", "3", "--cut", "5"], "--cut has 1 layer; give 2 for 3 parts"),
        (["--emulate", "2", "--cut", "25"], "must rise, from 1 to 24"),
        (["--emulate", "26"], "25 layers, which can't be cut into 26 parts"),
        (["--emulate", "2", "--warm-up-steps", "6"], "--warm-up-steps is 6; the U-Net is called 5 times"),
    ],
)
def test_wrong_arguments_are_one_line(options, said, capsys, tmp_path, monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert sample.main([*SHORT, *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and said in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["sd", "svd"])
def test_the_command_writes_both_and_what_it_measured(kind, capsys, tmp_path):
    call = [*SHORT, "--model_type", kind, "--emulate", "3", "--out", str(tmp_path / "out")]
    call += ["--num-frames", "2", "--steps", "2"] if kind == "svd" else ["--prompt", "a large red ring"]
    assert sample.main(call) == 0
    printed = capsys.readouterr().out
    assert "3 parts on 3 processes (emulated)" in printed and "speed-up" not in printed and "Sent" in printed
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    plan = result["plan"]
    assert (plan["processes"], plan["warm_up"], len(plan["parts"])) == (3, 1, 3)
    assert 1 < plan["bound"] < 3 and result["bytes_sent"][0] > 0 and result["distance"]["psnr"][0] is not None
    assert (tmp_path / "out" / "asyncdiff_000.png").is_file() and (tmp_path / "out" / "baseline_000.png").is_file()
    check_out(tmp_path / "out", result["made_from"])  # which the same command may replace
