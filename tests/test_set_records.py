"""What a set says of itself: its settings, the digest of its samples, and who is at work on it."""

import json
import os
import signal

import numpy as np
import pytest

import image_sets.sets
from common.command_line import RunError
from image_sets.generate import generate
from image_sets.sets import ImageSet
from tests.fake_sets import SETTINGS, SIDE, Interrupted, arrays, assert_same_set, forked, run, run_of


def test_what_lies_in_the_place_of_the_samples_is_not_the_set(tmp_path):
    run(tmp_path, 4, 2)
    samples = tmp_path / "samples.npz"
    whole, noise = arrays(tmp_path), np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    np.savez(samples, arr_0=noise)
    with pytest.raises(ValueError, match=r"samples\.npz is not the file that was made there; remove it"):
        run(tmp_path, 4, 2)
    samples.unlink()
    assert run(tmp_path, 4, 2) == 4
    assert all(np.array_equal(arrays(tmp_path)[name], whole[name]) for name in whole)
    (tmp_path / "samples.json").unlink()
    with pytest.raises(ValueError, match="is not the file that was made there"):
        run(tmp_path, 4, 2)


@pytest.mark.parametrize("text", ["{", "[]", "\0"])
def test_damaged_settings_are_no_set(tmp_path, text):
    run(tmp_path, 2, 2)
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=r"settings\.json is not .* it is damaged; remove the folder"):
        run(tmp_path, 2, 2)


def test_killed_between_the_samples_and_their_digest(tmp_path, monkeypatch):
    run(tmp_path / "once", 6, 2)
    out = tmp_path / "killed"
    run(out, 4, 2)

    def cut_short(_path):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(image_sets.sets, "count_images", cut_short)  # the parts are made, nothing is put together
        with pytest.raises(Interrupted):
            run(out, 6, 2)
    record = (out / "samples.json").read_text()
    write = image_sets.sets.write_json

    def write_once(path, content):
        if path.name == "samples.json" and len(content["sha256"]) == 1:
            raise Interrupted
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(image_sets.sets, "write_json", write_once)
        with pytest.raises(Interrupted):
            run(out, 6, 2)
    both = json.loads((out / "samples.json").read_text())["sha256"]
    assert len(both) == 2 and both[:1] == json.loads(record)["sha256"]
    assert run(out, 6, 2) == 0
    assert_same_set(out, tmp_path / "once")


def test_a_second_process_is_told_at_once(tmp_path):
    run(tmp_path, 2, 2)
    ready, done = os.pipe(), os.pipe()

    def hold():
        with ImageSet(tmp_path, SETTINGS).lock():
            os.write(ready[1], b"1")
            os.read(done[0], 1)

    pid = forked(hold)
    os.read(ready[0], 1)
    with pytest.raises(RunError, match="another process is making"):
        run(tmp_path, 4, 2)
    os.kill(pid, signal.SIGKILL)  # a killed one holds nothing
    os.waitpid(pid, 0)
    assert run(tmp_path, 4, 2) == 2


def test_the_noise_of_a_period_comes_again(tmp_path):
    generate(run_of(tmp_path / "3", {"seed": 0}, noise_period=3), 7, 2, quiet=True)
    generate(run_of(tmp_path / "0", {"seed": 0}), 3, 2, quiet=True)
    again, first = (arrays(tmp_path / name)["arr_0"] for name in "30")
    assert np.array_equal(again, first[[0, 1, 2, 0, 1, 2, 0]])
