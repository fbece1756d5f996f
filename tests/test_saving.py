"""What the scripts write: whole or not at all, and never over anything else."""

import argparse
import json
import os
import subprocess
import sys
from functools import partial

import pytest
from PIL import Image

from common.folders import atomic_folder
from comparison.saving import RESULT, check_out, made_from, save_comparison
from tests.layout import ROOT
from unets import CacheConfig

CACHE = CacheConfig(cache_interval=5, cache_branch_id=1)


def arguments(**changes):
    usual = {"prompt": ["a ring"], "steps": 50, "seed": 42, "repeats": 3, "out": None, "quiet": False, "image": None}
    return argparse.Namespace(**{**usual, **changes})


def save(out, colour="red", settings=None, images=2):
    settings = made_from(arguments(), CACHE) if settings is None else settings
    pictures = [Image.new("RGB", (8, 8), colour)] * images
    check_out(out, settings)
    save_comparison(out, {"baseline": pictures, "deepcache": pictures}, {"made_from": settings})


def test_a_result_takes_the_place_of_an_earlier_one_of_the_same_settings(tmp_path):
    for colour in ("red", "blue"):
        save(tmp_path / "out", colour)
    assert Image.open(tmp_path / "out" / "baseline_001.png").getpixel((0, 0)) == (0, 0, 255)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": ["a cross"]}, "prompt was \\['a ring'\\] and is now \\['a cross'\\]"),
        ({"steps": 9}, "steps was 50"),
    ],
)
def test_a_result_of_other_settings_stays(tmp_path, changes, said):
    save(tmp_path / "out")
    with pytest.raises(ValueError, match=said):
        check_out(tmp_path / "out", made_from(arguments(**changes), CACHE))
    with pytest.raises(ValueError, match="cache_interval was 5 and is now 2"):
        check_out(tmp_path / "out", made_from(arguments(), CacheConfig(2, 1)))
    check_out(tmp_path / "out", made_from(arguments(repeats=9, quiet=True, out=tmp_path), CACHE))


def test_another_picture_under_the_same_name_is_another_setting(tmp_path):
    found = []
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "picture.png")
        found.append(made_from(arguments(image=str(tmp_path / "picture.png")), CACHE))
    assert found[0] != found[1]


def test_a_record_can_not_name_what_is_to_be_removed(tmp_path):
    out = tmp_path / "out"
    save(out)
    (out / "mine").mkdir()
    (out / "mine" / "thesis.txt").write_text("three years of work")
    record = json.loads((out / RESULT).read_text())
    (out / RESULT).write_text(json.dumps({**record, "files": ["mine"]}))
    with pytest.raises(ValueError, match="something other than an earlier result"):
        save(out)
    assert (out / "mine" / "thesis.txt").is_file()


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", "", '"x"', "{}", '{"made_from": []}'])
def test_a_damaged_record_is_one_line(tmp_path, text):
    out = tmp_path / "out"
    save(out)
    (out / RESULT).write_text(text)
    with pytest.raises(ValueError, match="choose another") as raised:
        save(out)
    assert "\n" not in str(raised.value) and str(out) in str(raised.value)


def test_a_folder_of_the_same_names_without_a_record_is_somebody_elses(tmp_path):
    (tmp_path / "out").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "out" / "output.png")
    with pytest.raises(ValueError, match="something other"):
        save(tmp_path / "out")


def test_no_write_goes_through_a_planted_link(tmp_path):
    victim = tmp_path / "victim.png"
    Image.new("RGB", (4, 4), "white").save(victim)
    before = victim.read_bytes()
    out = tmp_path / "out"
    save(out)
    (out / "output.png").unlink()
    (out / "output.png").symlink_to(victim)
    save(out)
    assert victim.read_bytes() == before and not (out / "output.png").is_symlink()


def test_a_folder_that_fails_leaves_the_earlier_one(tmp_path):
    save(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out") as tmp_dir:
        (tmp_dir / "output.png").write_text("half")
        raise RuntimeError
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path):
    code = (
        "import sys, pathlib, os\nfrom common.folders import atomic_folder\n"
        "with atomic_folder(pathlib.Path(sys.argv[1])) as tmp_dir:\n"
        "    (tmp_dir / 'half').write_text('half')\n    print(flush=True)\n    sys.stdin.read()\n"
    )
    call = [sys.executable, "-c", code, str(tmp_path / "out")]
    start = partial(subprocess.Popen, call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    with start() as running, start() as killed:
        assert running.stdout and killed.stdout
        running.stdout.readline(), killed.stdout.readline()
        killed.kill()
        killed.wait()
        assert len(list(tmp_path.glob(".out.*.tmp"))) == 2
        with atomic_folder(tmp_path / "out") as tmp_dir:
            (tmp_dir / "whole").write_text("whole")
        assert len(list(tmp_path.glob(".out.*.tmp"))) == 1
        running.communicate()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["half", "whole"]
    assert os.listdir(tmp_path) == ["out"]
