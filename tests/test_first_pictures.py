"""What a command shows while it runs: pictures before they are timed, and the time left."""

import io
import json
import sys

import pytest

import ddpm.sample
import stable_diffusion
from comparison import measure
from comparison.progress import RunProgress, duration

CALL = ["--steps", "2", "--prompt", "a large red ring", "--repeats", "1", "--warm-up", "1", "--quiet"]
CALL += ["--device", "cpu"]
PICTURES = {"output.png", "baseline_000.png", "deepcache_000.png"}


@pytest.fixture
def interrupted_at(monkeypatch):
    """Makes the run of that number, counted from 1, end as Ctrl-C does."""

    def interrupt(number):
        runs, time_call = [], measure.time_call

        def call(*arguments):
            runs.append(arguments)
            if len(runs) == number:
                raise KeyboardInterrupt
            return time_call(*arguments)

        monkeypatch.setattr(measure, "time_call", call)

    return interrupt


def names(folder):
    return {path.name for path in folder.iterdir()}


def run(out):
    return stable_diffusion.main([*CALL, "--out", str(out)])


def test_a_run_that_ends_before_it_is_timed_leaves_its_pictures_and_can_be_run_again(tmp_path, capsys, interrupted_at):
    out = tmp_path / "out"
    interrupted_at(3)
    assert run(out) == 130
    assert names(out) == PICTURES | {"made_from.json"}
    assert json.loads((out / "made_from.json").read_text())["made_from"]["steps"] == 2
    said = capsys.readouterr().out
    assert f"{out}: output.png" in said and "2 more runs, about" in said
    first = {name: (out / name).read_bytes() for name in PICTURES}

    assert run(out) == 0
    assert names(out) == PICTURES | {"result.json"}
    assert {name: (out / name).read_bytes() for name in PICTURES} == first


def test_nothing_is_written_before_both_are_made(tmp_path, interrupted_at):
    interrupted_at(2)
    assert run(tmp_path / "out") == 130
    assert not list(tmp_path.iterdir())


def test_a_whole_result_stays_until_there_is_another(tmp_path, interrupted_at):
    out = tmp_path / "out"
    assert run(out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    interrupted_at(4)
    assert run(out) == 130
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_pictures_of_other_settings_are_not_replaced(tmp_path, capsys, interrupted_at):
    out = tmp_path / "out"
    interrupted_at(3)
    assert run(out) == 130
    assert stable_diffusion.main([*CALL, "--out", str(out), "--seed", "7"]) == 2
    assert "seed was 42 and is now 7" in capsys.readouterr().err


def test_time_left_is_that_of_the_runs_to_come():
    progress = RunProgress(("a", "b"), 3)
    assert str(progress) == "run 1 of 6"
    progress.ended("a", 10.0)
    assert str(progress) == "run 2 of 6"
    progress.ended("b", 4.0)
    assert str(progress) == "run 3 of 6, about 28 s left"
    progress.ended("a", 20.0)
    assert str(progress) == "run 4 of 6, about 28 s left"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (7200, "2.0 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_bars_are_for_terminals_and_leave_no_frames_in_a_log(tmp_path, monkeypatch, stream):
    stderr = stream()
    monkeypatch.setattr(sys, "stderr", stderr)
    call = ["--steps", "2", "--num-images", "2", "--batch-size", "1", "--device", "cpu"]
    assert ddpm.sample.main([*call, "--out", str(tmp_path / "set")]) == 0
    shown = stderr.getvalue()
    assert ("images: 100%|" in shown) == (stream is Terminal)
    assert ("\r" in shown) == (stream is Terminal)


def test_bars_of_a_comparison_name_the_run(tmp_path, monkeypatch):
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert stable_diffusion.main([*(word for word in CALL if word != "--quiet"), "--out", str(tmp_path / "out")]) == 0
    shown = stderr.getvalue()
    assert "baseline, run 1 of 4:" in shown and "deepcache, run 4 of 4, about" in shown and "s left:" in shown
