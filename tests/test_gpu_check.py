"""The GPU checks on small models on the CPU, with replacements for what only a GPU has."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu import bench, checks, correct, speed
from benchmarks.gpu.bench import Bench, Finding
from benchmarks.gpu.checks import Check
from benchmarks.gpu.record import NEEDS_CUDA, NO_MEMORY, NO_TIME, OK, TOO_LONG, WRONG, Record
from benchmarks.gpu.settings import SETTINGS
from benchmarks.gpu.subjects import make_subject

CPU = torch.device("cpu")
OF_EACH_KIND = (
    "noise", "waiting", "clock", "offload", "near the CPU, sd15", "decode, sd15", "steps, sd15, float32, batch 1",
    "loops, sd15, float32, batch 1", "graphs, sd15", "loops, ldm4, float32, batch 1", "ddpm-cifar10, float32, batch 8",
)  # fmt: skip


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command: its exit status, the rows by name, and what it printed."""
    monkeypatch.setattr(Bench, "dtypes", ["float32"])
    monkeypatch.setattr(gpu_check, "code_digest", lambda: "of now")  # reading all of it takes a second

    def run(*arguments: str) -> tuple[int, dict[str, Any], Any]:
        places = ["--device", "cpu", "--tiny", "--name", "here", "--out", str(tmp_path)]
        status = gpu_check.main([*places, *arguments])
        path = tmp_path / "here.json"
        rows = {row["name"]: row for row in json.loads(path.read_text())["checks"]} if path.exists() else {}
        return status, rows, capsys.readouterr()

    return run


@pytest.fixture
def listed(monkeypatch):
    """Has the command run these checks, each a function of no arguments; says how often each was called.

    They use no model, so there is none to free, which takes half a second.
    """
    monkeypatch.setattr(Bench, "clear", lambda bench: None)
    called: list[str] = []

    def use(**finds: Callable[[], Finding]) -> list[str]:
        def find(name: str) -> Callable[[Bench, float], Finding]:
            return lambda bench, seconds: called.append(name) or finds[name]()  # type: ignore[func-returns-value]

        made = [Check(name, 0.2, find(name)) for name in finds]
        monkeypatch.setattr(gpu_check, "all_checks", lambda dtypes: made)
        called.clear()
        return called

    return use


def fine() -> Finding:
    return Finding("all well")


def raises(error: BaseException) -> Callable[[], Finding]:
    def find() -> Finding:
        raise error

    return find


def test_the_checks_run_on_small_models(command, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    monkeypatch.setattr(speed, "macs_of", lambda *_: (200, 100))
    status, rows, printed = command("--only", *OF_EACH_KIND)
    assert {row["state"] for row in rows.values()} == {OK, NEEDS_CUDA}, rows
    assert status == 0
    assert [name for name, row in rows.items() if row["state"] == NEEDS_CUDA] == [
        "no waiting, sd15, float32", "offload, sd15, float32",
    ]  # fmt: skip
    assert {"compiled loops, sd15, float32, batch 1", "loops, ddpm-cifar10, float32, batch 8"} <= rows.keys()
    loops = {row["run"]: row for row in rows["loops, sd15, float32, batch 1"]["rows"]}
    assert {"baseline", "plain N = 5", "safe", "balanced", "fast", "package N = 5"} <= loops.keys()
    assert loops["plain N = 5"]["share_of_bound"] == loops["plain N = 5"]["speed_up"] / loops["plain N = 5"]["bound"]
    assert "written" in printed.out


@pytest.mark.slow
def test_steps_of_the_other_models_and_decoders_run_too(command, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    monkeypatch.setattr(speed, "macs_of", lambda *_: (200, 100))
    models = [f"steps, {name}, float32, batch 1" for name in ("sd21", "sdxl", "svd-xt", "ldm4")]
    status, rows, _ = command("--only", *models, "decode")
    assert status == 0 and {row["state"] for row in rows.values()} == {OK}, rows
    assert {*models, "decode, sdxl, float32", "decode, svd-xt, float32"} <= rows.keys()


def test_the_bound_is_of_all_calls_of_the_unet():
    here = Bench(CPU, tiny=True)
    subject = here.subject("ddpm-cifar10", "float32")
    full, retrieve = speed.macs_of("ddpm-cifar10", True, 2, False)
    assert full > retrieve > 0
    measured = speed._loop(here, subject, 3, {"cache_interval": 5, "cache_branch_id": 2})
    assert measured["macs"] == 3 * (2 * full + 6 * retrieve)  # eight steps
    (row, plain, *_) = speed.loops(here, 0.0, "ddpm-cifar10", "float32", 1).rows
    assert plain["bound"] == pytest.approx(8 * full / (2 * full + 6 * retrieve)) and "bound" not in row


def test_an_interrupted_run_keeps_what_it_has_and_goes_on_from_there(command, listed):
    listed(first=fine, second=raises(KeyboardInterrupt()), third=fine)
    status, rows, printed = command()
    assert status == 130 and list(rows) == ["first"]
    assert "rerun the same command to resume" in printed.err
    called = listed(first=fine, second=fine, third=fine)
    status, rows, _ = command()
    assert (status, called) == (0, ["second", "third"]) and list(rows) == ["first", "second", "third"]


def test_a_failed_check_is_a_row_and_does_not_stop_the_others(command, listed):
    called = listed(
        bug=raises(RuntimeError("boom\nat line 3")), small=raises(torch.OutOfMemoryError("CUDA out of memory")),
        off=lambda: Finding("2.0 apart", right=False), last=fine,
    )  # fmt: skip
    status, rows, printed = command()
    assert called == ["bug", "small", "off", "last"] and status == 1
    assert [row["state"] for row in rows.values()] == ["failed", NO_MEMORY, WRONG, OK]
    assert rows["bug"]["text"] == "RuntimeError: boom"
    assert printed.err.strip() == "error: 2 of 4 checks failed: bug; off"
    called = listed(bug=fine, small=fine, off=fine, last=fine)
    command()
    assert called == ["bug", "small"]  # finished checks are kept


def test_without_time_nothing_is_run_and_all_checks_are_named(command, listed):
    called = listed(first=fine, second=fine)
    status, rows, printed = command("--minutes", "0")
    assert status == 0 and called == [] and [row["state"] for row in rows.values()] == [NO_TIME, NO_TIME]
    assert "no time was left for 2 of 2 checks" in printed.out
    assert command()[1]["second"]["state"] == OK
    called = listed(first=fine, second=fine)
    assert command("--minutes", "0")[1]["first"]["state"] == OK  # existing results stay


def test_a_check_that_takes_too_long_is_stopped(command, listed):
    listed(slow=lambda: time.sleep(30), last=fine)
    start = time.monotonic()
    status, rows, _ = command()
    assert time.monotonic() - start < 10
    assert status == 0 and [row["state"] for row in rows.values()] == [TOO_LONG, OK]
    called = listed(slow=fine, last=fine, new=fine)
    command()
    assert called == ["new", "slow"]


def test_other_code_and_again_rerun_all_checks(command, listed, monkeypatch):
    listed(first=fine)
    command()
    called = listed(first=fine)
    command()
    assert called == []
    command("--again")
    assert called == ["first"]
    monkeypatch.setattr(gpu_check, "code_digest", lambda: "another")
    assert "starting over" in command()[2].out and called == ["first", "first"]


def test_some_checks_alone_leave_the_others(command, listed):
    listed(one=fine, two=fine)
    command()
    called = listed(one=fine, two=fine)
    _, rows, _ = command("--only", "tw")
    assert called == [] and list(rows) == ["one", "two"]
    _, rows, _ = command("--only", "tw", "--again")
    assert called == ["two"] and list(rows) == ["one", "two"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "../x"], "--name is '../x'"),
        (["--name", ""], "--name"),
        (["--only", "none"], "--only none matches no check"),
    ],
)
def test_names_that_are_none(command, listed, tmp_path, arguments, said):
    listed(first=fine)
    status, _, printed = command(*arguments)
    assert status == 2 and printed.err.startswith(f"error: {said}") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["[]", "{", '{"about": 1, "checks": 3}'])
def test_a_damaged_file_is_one_line(command, listed, tmp_path, monkeypatch, content):
    listed(first=fine)
    monkeypatch.setattr(gpu_check, "versions", lambda device: {"device": "cpu: x", "torch": "2", "diffusers": "0"})
    monkeypatch.setattr(gpu_check, "code_digest", lambda: "c")
    about = {"tiny": True, "code": "c", "versions": {"device": "cpu: x", "torch": "2", "diffusers": "0"}}
    (tmp_path / "here.json").write_text(content.replace('"about": 1', f'"about": {json.dumps(about)}'))
    status = gpu_check.main(["--device", "cpu", "--tiny", "--name", "here", "--out", str(tmp_path)])
    assert status == 2
    (tmp_path / "here.json").unlink()
    assert command()[0] == 0


def test_the_tables(tmp_path):
    versions = {"device": "cuda: NVIDIA H100", "torch": "2.14.1", "diffusers": "0.24.0"}
    record = Record(tmp_path / "x.json", {"tiny": False, "code": "abc", "versions": versions}, ["a", "b", "c"])
    steps = [{"step": "full", "seconds": 0.05, "rounds": 7}, {"step": "retrieve", "seconds": 0.01, "speed_up": 5.0}]
    record.add("b", OK, 3.04, "5 × | 6", steps)
    record.add("c", OK, 1.0, "", [{"run": "fast", "seconds": 1.0, "share_of_bound": 0.9, "peak_bytes": 3 * 2**29}])
    record.add("a", NO_TIME, 0, "")
    text = (tmp_path / "x.md").read_text()
    assert text.split("\n\n")[0] == "# cuda: NVIDIA H100"
    assert text.split("| check | state | seconds | found |\n")[1].splitlines()[1:] == [
        "| a | not run: time | 0.0 |  |",
        "| b | ok | 3.0 | 5 × \\| 6 |",
        "| c | ok | 1.0 |  |",
        "",
        "## Steps",
        "",
        "| check | step | seconds (median) | rounds | speed-up |",
        "|---|---|--:|--:|--:|",
        "| b | full | 0.0500 | 7 | – |",
        "| b | retrieve | 0.0100 | – | 5.00× |",
        "",
        "## Loops",
        "",
        "| check | run | seconds (median) | of it | GiB at most |",
        "|---|---|--:|--:|--:|",
        "| c | fast | 1.0000 | 90% | 1.50 |",
    ]


def test_the_code_has_a_digest():
    assert len(gpu_check.code_digest()) == 16


def test_a_name_is_made_of_the_devices():
    assert gpu_check.default_name("cuda: NVIDIA H100 80GB HBM3", False) == "nvidia-h100-80gb-hbm3"
    assert gpu_check.default_name("cpu: ", True) == "tiny"


def test_as_many_rounds_as_time_allows():
    assert bench.rounds([lambda: 1, lambda: 2], 0) == [[1], [2]]
    assert bench.rounds([lambda: 1, lambda: 2], 60) == [[1] * bench.MOST_ROUNDS, [2] * bench.MOST_ROUNDS]


# --- what only a GPU has ---------------------------------------------------------------------------------------------


def test_offloading_is_compared_and_leaves_nothing_offloaded(monkeypatch):
    here = Bench(CPU, tiny=True)
    found = correct.offload(here, 0.0, "sd15", "float32")
    assert found.right and "at most 0.00 grey levels" in found.text
    assert not hasattr(here.subject("sd15", "float32").unet, "_hf_hook")


@pytest.fixture
def debug_mode(monkeypatch):
    """torch's debug mode, with vectors of one value standing for device tensors: reading one is a wait."""
    mode = ["default"]
    item = torch.Tensor.item

    def read(tensor: torch.Tensor) -> Any:
        if mode[0] == "warn" and tensor.shape == (1,):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
        return item(tensor)

    monkeypatch.setattr(torch.Tensor, "item", read)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda new: mode.__setitem__(0, new))
    return mode


def test_waits_are_found_where_they_are(debug_mode, monkeypatch):
    here = Bench(CPU, tiny=True)
    assert correct.waits(here, 0.0, "sd15", "float32") == Finding("none with plms, ddim, dpm++, euler")
    assert debug_mode == ["default"]
    make = correct.new_scheduler

    def waiting(name: str, config: Any) -> Any:
        scheduler = make(name, config)
        step = scheduler.step
        scheduler.step = lambda noise, *rest, **more: (noise.flatten()[:1].item(), step(noise, *rest, **more))[1]
        return scheduler

    monkeypatch.setattr(correct, "new_scheduler", waiting)
    found = correct.waits(here, 0.0, "sd15", "float32")
    assert not found.right and found.text.startswith("plms: 10 × test_gpu_check.py:")
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    assert "does not report" in correct.waits(here, 0.0, "sd15", "float32").text


def test_what_a_graph_overwrites_is_found(monkeypatch):
    """As if nothing were copied out of a graph's own memory."""

    def overwriting(pipe: Any, *_: Any, **__: Any) -> None:
        forward = pipe.unet.forward
        held: dict[bool, torch.Tensor] = {}

        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            own = held.setdefault(kwargs.get("cached_feature") is None, output.sample.clone())
            output.sample = own.copy_(output.sample)
            return output

        pipe.unet.forward = run

    here = Bench(CPU, tiny=True)
    monkeypatch.setattr(bench, "place_pipeline", overwriting)
    found = correct.graphs(here, 0.0, "sd15", "float32")
    assert not found.right and "overwritten: output; overwritten: output of a retrieve step" in found.text


def test_noise_that_is_not_the_cpus_is_found(monkeypatch):
    here = Bench(CPU, tiny=True)
    assert correct.noise(here, 0.0, "sd15", "float32").right
    subject = here.subject("sd15", "float32")
    prepare = subject.pipe.prepare_latents
    monkeypatch.setattr(subject.pipe, "prepare_latents", lambda *args: prepare(*args) + 1e-6)
    assert not correct.noise(here, 0.0, "sd15", "float32").right


def test_weights_are_the_same_at_every_call():
    first, second = (make_subject("sd15", torch.float32, CPU, True).unet.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_the_published_layouts_run_in_16_bit(name):
    """Without memory: all shapes and dtypes fit, from the conditions to the picture."""
    subject = make_subject(name, torch.float16, torch.device("meta"), False)
    plain = {"cache_interval": 5, "cache_branch_id": subject.settings.branch}
    for steps, cache in ((2, plain), (6, list(subject.settings.recommended.values())[-1])):
        subject.run(2, num_inference_steps=steps, **cache)
    if name != "ddpm-cifar10":
        assert subject.run(1, num_inference_steps=1, output_type="pt").shape[-3] == 3


def test_the_published_layouts_are_those_that_are_checked():
    names = {check.name for check in checks.all_checks(["float16", "bfloat16"])}
    for name in ("sd15", "sd21", "sdxl", "svd-xt", "ldm4", "ddpm-cifar10"):
        for dtype in ("float16", "bfloat16"):
            for batch in (1, 8):
                assert f"steps, {name}, {dtype}, batch {batch}" in names
    assert {"compiled graphs, sd15, bfloat16", "no waiting, sd15, float16"} <= names
