"""Sets of images are the same however they are made: in any batches, by any number of processes, killed and resumed."""

import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import ddpm.sample
import image_sets.sets
import ldm.sample
from common.command_line import RunError
from image_sets.generate import generate
from image_sets.sets import ImageSet
from tests.fake_sets import DISK_FULL, SETTINGS, Interrupted, arrays, assert_same_set, forked, make, run, run_of
from tests.killed import start

ROOT = Path(__file__).parent.parent
SCRIPTS = {"ddpm": ddpm.sample.main, "ldm": ldm.sample.main}
FEW = ["--steps", "4", "--device", "cpu", "--quiet"]
FILES = {".lock", "grid.png", "samples.json", "samples.npz", "settings.json"}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes started here: more may add numbers up in another order
    yield
    torch.set_num_threads(threads)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_two_processes_make_the_set_of_one(tmp_path):
    call = [*FEW, "--num-images", "10", "--batch-size", "3", "--eta", "0.5"]
    port = ["--nproc_per_node", "2", "--master_port", str(free_port())]
    command = [sys.executable, "-m", "torch.distributed.run", *port, "-m", "ldm.sample", *call]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "two")], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # Batches 0-2 and 6-8 are the first process's, 3-5 and 9 the second's.
    # Unbuffered, the two may print at once and share a line.
    assert sorted(map(int, re.findall(r"(\d+) images made", done.stdout))) == [4, 6]
    assert ldm.sample.main([*call, "--out", str(tmp_path / "one")]) == 0
    assert_same_set(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_a_killed_script_is_continued(tmp_path):
    call = [*FEW, "--num-images", "64", "--batch-size", "2", "--sampler", "ddpm"]
    out = tmp_path / "killed"
    process = start("ddpm.sample", [*call, "--out", str(out)])
    while process.is_alive() and len(list(out.glob("parts/0*.npz"))) < 3:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    there = {path: path.stat().st_mtime_ns for path in out.glob("parts/0*.npz")}
    assert 3 <= len(there) < 32
    assert ddpm.sample.main([*call, "--out", str(out)]) == 0
    assert ddpm.sample.main([*call, "--out", str(tmp_path / "unbroken")]) == 0
    assert_same_set(out, tmp_path / "unbroken")


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_any_moment(tmp_path, monkeypatch, seed):
    run(tmp_path / "unbroken", 40, 2)
    out, read = tmp_path / "killed", image_sets.sets.image_batches

    def slowly_made(batch):
        time.sleep(0.02)
        return make(batch)

    def slowly_read(*args):
        time.sleep(0.02)
        yield from read(*args)

    with monkeypatch.context() as patch:
        patch.setattr(image_sets.sets, "image_batches", slowly_read)
        pid = forked(lambda: run(out, 40, 2, slowly_made))
        # 20 batches are made in 0.4 s or more, and put together in 0.4 s or more.
        time.sleep(random.Random(seed).uniform(0.0, 0.8))
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    there = len(list(out.glob("parts/0*.npz")))
    assert run(out, 40, 2) == 40 - 2 * there
    assert_same_set(out, tmp_path / "unbroken")
    assert {path.name for path in out.iterdir()} == FILES


def test_killed_while_the_settings_were_written(tmp_path):
    (tmp_path / ".settings.01234567.tmp.json").write_text("{")
    assert run(tmp_path, 2, 2) == 2


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=4))
def test_any_sequence_of_runs_makes_the_set_made_at_once(tmp_path_factory, runs):
    folder, seen = tmp_path_factory.mktemp("runs"), []

    for num_images, batch_size, until in runs:
        left = iter(range(until))

        def failing(batch, left=left):
            if next(left, None) is None:
                raise Interrupted
            seen.extend(batch.indices)
            return make(batch)

        try:
            run(folder / "many", num_images, batch_size, failing)
        except Interrupted:
            continue
        assert len(arrays(folder / "many")["arr_0"]) >= num_images
    most = max(num_images for num_images, *_ in runs)
    missing = ImageSet(folder / "many", SETTINGS).missing(most)
    seen += [k for gap in missing for k in gap]
    assert run(folder / "many", most, 3) == sum(map(len, missing))
    run(folder / "once", most, 12)
    assert sorted(seen) == list(range(most))  # none twice
    assert_same_set(folder / "many", folder / "once")


def test_parts_behind_a_gap_wait_for_it_to_be_filled(tmp_path):
    # What the second of two processes finished before both were killed.
    run(tmp_path / "once", 12, 4)
    whole = arrays(tmp_path / "once")
    image_set = ImageSet(tmp_path / "gap", SETTINGS)
    image_set.open()
    for part in (range(0, 4), range(8, 12)):
        image_set.write(part, whole["arr_0"][part], whole["arr_1"][part])
    assert run(tmp_path / "gap", 4, 4) == 0
    assert np.array_equal(arrays(tmp_path / "gap")["arr_0"], whole["arr_0"][:4])
    assert np.array_equal(arrays(tmp_path / "gap")["arr_1"], whole["arr_1"][:4])
    assert run(tmp_path / "gap", 12, 4) == 4
    assert_same_set(tmp_path / "gap", tmp_path / "once")


def test_a_set_is_extended_and_asked_for_again(tmp_path):
    assert run(tmp_path / "grown", 5, 2) == 5
    assert run(tmp_path / "grown", 11, 3) == 6
    assert run(tmp_path / "grown", 11, 3) == 0
    assert run(tmp_path / "grown", 4, 3) == 0
    assert run(tmp_path / "once", 11, 11) == 11
    assert_same_set(tmp_path / "grown", tmp_path / "once")


def test_images_of_different_indices_and_seeds_differ(tmp_path):
    run(tmp_path / "0", 8, 8)
    generate(run_of(tmp_path / "1", {"seed": 1}), 8, 8, quiet=True)
    both = np.concatenate([arrays(tmp_path / name)["arr_0"] for name in "01"])
    assert len(np.unique(both.reshape(16, -1), axis=0)) == 16
    assert "arr_1" not in arrays(tmp_path / "1")


def test_other_settings_are_refused(tmp_path):
    run(tmp_path, 2, 2)
    before = (tmp_path / "samples.npz").read_bytes()
    with pytest.raises(ValueError, match=r"other settings: model was 'fake' and is now 'real'; choose another --out"):
        run(tmp_path, 4, 2, model="real")
    with pytest.raises(ValueError, match=r"eta was None and is now 0\.5"):
        run(tmp_path, 4, 2, eta=0.5)
    assert (tmp_path / "samples.npz").read_bytes() == before


def test_a_set_of_other_timesteps_is_refused_by_their_number(tmp_path):
    first = list(range(0, 1000, 20))
    ImageSet(tmp_path / "set", {"timesteps": first}).open()
    with pytest.raises(ValueError, match=r"other settings: there were 50 steps and are now 1; choose another --out"):
        ImageSet(tmp_path / "set", {"timesteps": [0]}).open()
    with pytest.raises(ValueError, match=r"the timestep of step 1 was 20 and is now 25"):
        ImageSet(tmp_path / "set", {"timesteps": [0, 25, *first[2:]]}).open()


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="something other than a set of images; choose another --out"):
        run(tmp_path, 2, 2)
    with pytest.raises(ValueError, match="something other than a set of images; choose another --out"):
        run(tmp_path / "notes.txt", 2, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def short_of_memory(most: int, sizes: list[int]):
    def limited(batch):
        sizes.append(len(batch.indices))
        if len(batch.indices) > most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return make(batch)

    return limited


def test_out_of_memory_halves_the_batch_once(tmp_path):
    sizes: list[int] = []
    assert run(tmp_path / "halved", 18, 8, short_of_memory(4, sizes)) == 18
    assert sizes == [8, 4, 4, 4, 4, 2]
    run(tmp_path / "once", 18, 8)
    assert_same_set(tmp_path / "halved", tmp_path / "once")


def test_out_of_memory_twice_is_an_error(tmp_path):
    sizes: list[int] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, 18, 8, short_of_memory(3, sizes))
    assert sizes == [8, 4]


def test_other_errors_are_not_taken_for_out_of_memory(tmp_path):
    def broken(batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run(tmp_path, 8, 8, broken)


@pytest.mark.parametrize("limit, parts", [(2000, 0), (8000, 6)], ids=["a part", "samples.npz"])
def test_disk_full(tmp_path, limit, parts):
    # 4 images are 3 kB, all 24 are 18 kB.
    run(tmp_path / "once", 24, 4)
    out = tmp_path / "full"

    def with_a_full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        run(out, 24, 4)

    _, status = os.waitpid(forked(with_a_full_disk), 0)
    assert os.waitstatus_to_exitcode(status) == DISK_FULL
    assert {path.name for path in out.iterdir()} == {".lock", "settings.json", "parts"}  # nothing half written
    assert len(list((out / "parts").iterdir())) == parts
    assert run(out, 24, 4) == 24 - 4 * parts
    assert_same_set(out, tmp_path / "once")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path, value):
    def broken(batch):
        images = make(batch)
        if 5 in batch.indices:
            images[batch.indices.index(5), 1, 2, 3] = value
        return images

    with pytest.raises(RunError, match="image 5 has non-finite values"):
        run(tmp_path, 8, 4, broken)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["00000000-00000003.npz"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_on_the_shipped_models(tmp_path, capsys, script):
    main, call = SCRIPTS[script], [*FEW, "--num-images", "9", "--png", "--seed", "3"]
    out = tmp_path / "eight"
    assert main([*call, "--batch-size", "8", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("9 images made in ")
    assert {path.name for path in out.iterdir()} == {*FILES, "images"}
    ours = arrays(out)
    images = ours["arr_0"]
    assert images.dtype == np.uint8 and images.shape[0] == 9 and images.shape[3] == 3
    assert len(np.unique(images.reshape(9, -1), axis=0)) == 9
    pngs = sorted((out / "images").iterdir())
    assert [path.name for path in pngs] == [f"{k:06d}.png" for k in range(9)]
    assert np.array_equal(np.stack([np.asarray(Image.open(path)) for path in pngs]), images)
    with Image.open(out / "grid.png") as grid:
        side = images.shape[1]
        assert grid.width >= 8 * side and grid.height >= 2 * side
    there = json.loads((out / "settings.json").read_text())
    assert there["seed"] == 3 and there["cache_interval"] == 5 and there["eta"] == 0
    (machine,) = there["made_on"]
    assert machine["torch"] == torch.__version__ and machine["threads"] == 1 and machine["deterministic"] is False
    if script == "ldm":
        assert np.array_equal(ours["arr_1"], ldm.sample.labels_of(range(9), "random", 40, 3))

    assert main([*call, "--batch-size", "1", "--out", str(tmp_path / "one")]) == 0
    singly = arrays(tmp_path / "one")
    # A convolution may add up in another order for another batch size: that can turn a rounding to a grey level.
    assert np.abs(singly["arr_0"].astype(int) - images).max() <= 1
    assert np.array_equal(singly.get("arr_1", []), ours.get("arr_1", []))

    assert main([*call, "--eta", "0.5", "--out", str(out)]) == 2
    assert "eta was 0.0 and is now 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    "script, call, named",
    [
        ("ddpm", ["--config", "cifar10"], "--checkpoint"),
        ("ddpm", ["--cache-branch-id", "12"], "12"),
        ("ddpm", ["--steps", "0"], "--steps is 0"),
        ("ddpm", ["--eta", "-1"], "--eta is -1"),
        ("ddpm", ["--eta", "0.5", "--sampler", "ddpm"], "--eta is 0.5"),
        ("ldm", ["--labels", "99999"], "--labels is 99999"),
        ("ldm", ["--labels", "one"], "--labels is one"),
        ("ldm", ["--cache-branch-id", "12"], "12"),
        ("ldm", ["--steps", "0"], "--steps is 0"),
        ("ldm", ["--eta", "-1"], "--eta is -1"),
    ],
)
def test_wrong_calls_end_in_one_line(tmp_path, capsys, script, call, named):
    out = tmp_path / "set"
    assert SCRIPTS[script]([*call, "--device", "cpu", "--quiet", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error
    assert not out.exists()
