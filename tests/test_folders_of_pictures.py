"""Folders of pictures as sets: in the order of their numbers, every picture counted or refused, sets' own folders."""

import json
import os
import random
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval import clip_score, fid
from image_sets.reading import UNREAD, count_images, image_batches, image_files, number_order
from image_sets.sets import ImageSet
from shapes.scenes import random_scene, render

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def fill(folder, names, images=IMAGES):
    for name, image in zip(names, images, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return folder


def names_in(folder):
    return [path.relative_to(folder).as_posix() for path in image_files(folder)]


def read(source):
    return np.concatenate(list(image_batches(source, 5)))


# --- order -----------------------------------------------------------------------------------------------------------


def test_numbers_in_names_are_compared_as_numbers(tmp_path):
    plain = fill(tmp_path / "plain", [f"{k}.png" for k in range(12)])
    assert names_in(plain) == [f"{k}.png" for k in range(12)]
    assert np.array_equal(read(plain), IMAGES)


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "a1.png", "a1b.png", "a2.png", "a10.png", "b.png"],
        ["2/1.png", "2/10.png", "10/1.png", "10/2.png", "x.png"],
        ["seed9_step2.png", "seed9_step10.png", "seed10_step1.png"],
        ["01.png", "1.png", "002.png", "2.png", "10.png"],  # one number written twice: by name
        ["0.png", "00.png", "1.png"],
        ["image (2).png", "image (10).png"],
    ],
)
def test_several_numbers_and_folders_come_in_order(tmp_path, names):
    shuffled = random.Random(1).sample(names, len(names))
    assert names_in(fill(tmp_path, shuffled)) == names


@given(st.lists(st.tuples(st.text("ab._-/ A", max_size=4), st.integers(0, 9999)), min_size=2, max_size=8), st.data())
def test_names_with_equally_many_digits_sort_alphabetically(parts, data):
    """So that sets whose names are padded are read in the order in which they always were."""
    names = [f"{text}{number:04}{data.draw(st.sampled_from(['', '.png', 'b', '/x']))}" for text, number in parts]
    assert sorted(names, key=number_order) == sorted(names)


@given(st.lists(st.integers(0, 10**30), unique=True, min_size=1, max_size=9), st.sampled_from(string.ascii_letters))
def test_any_numbers_are_in_order(numbers, letter):
    names = [f"{letter}{number}.png" for number in numbers]
    assert sorted(names, key=number_order) == [f"{letter}{number}.png" for number in sorted(numbers)]


def test_pictures_called_by_numbers_meet_their_own_prompts(tmp_path):
    scenes = [random_scene(np.random.default_rng(k), things=2) for k in range(12)]
    pictures = np.stack([render(scene, np.random.default_rng(k))[0] for k, scene in enumerate(scenes)])
    folder = fill(tmp_path, [f"{k}.png" for k in range(12)], pictures)
    captions = [scene.caption for scene in scenes]
    found = clip_score.compute(folder, captions, model="shapes", quiet=True)
    assert found["per_image"] == clip_score.compute(pictures, captions, model="shapes", quiet=True)["per_image"]


# --- kinds -----------------------------------------------------------------------------------------------------------


def test_pictures_of_every_kind_are_counted(tmp_path):
    kinds = ["png", "bmp", "tif", "tiff", "ppm", "gif", "webp", "PNG", "jpg", "jfif", "pnm"]
    for k, kind in enumerate(kinds):
        Image.new("RGB", (8, 8), (20 * k,) * 3).save(tmp_path / f"{k}.{kind}")
    Image.new("L", (8, 8), 20 * len(kinds)).save(tmp_path / f"{len(kinds)}.pgm")
    assert count_images(tmp_path) == len(kinds) + 1
    means = read(tmp_path).mean((1, 2, 3))
    assert np.abs(means - 20 * np.arange(len(means))).max() < 3


def test_unsupported_formats_are_named_and_counted(tmp_path):
    fill(tmp_path, [f"{k}.png" for k in range(3)])
    for name in ("a.heic", "b.JXL", "c.psd", "d.avif", "notes.txt", "labels.csv", ".hidden.psd"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"^4 of the 7 pictures in .* not read \(a\.heic, b\.JXL, c\.psd, …\); save"):
        count_images(tmp_path)
    assert ".psd" in UNREAD


def test_unreadable_folders_are_not_skipped(tmp_path, monkeypatch):
    fill(tmp_path, ["a/0.png", "b/1.png"])
    scandir = os.scandir

    def forbid(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", forbid)
        with pytest.raises(ValueError, match=r"cannot read the folder .*b: Permission denied; change its permissions"):
            count_images(tmp_path)
    (tmp_path / "b" / "2.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"there is no image .*2\.png"):
        read(tmp_path)


def test_pixels_are_read_as_they_are_stored(tmp_path):
    """As pytorch-fid does, whose scores ours are to be compared with."""
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(IMAGES[0]).save(tmp_path / "0.png", exif=exif)
    transparent = Image.fromarray(IMAGES[1])
    transparent.putalpha(0)
    transparent.save(tmp_path / "1.png")
    assert np.array_equal(read(tmp_path), IMAGES[:2])


# --- sets' own folders -----------------------------------------------------------------------------------------------


@pytest.fixture
def image_set(tmp_path):
    """A whole set of 12, with its images as PNGs too."""
    made = ImageSet(tmp_path / "set", {"steps": 3})
    made.open()
    made.write(range(12), IMAGES, None)
    made.finish(12, png=True, quiet=True)
    return tmp_path / "set"


def test_the_folder_of_a_set_stands_for_its_images(image_set):
    assert (image_set / "grid.png").is_file()
    assert count_images(image_set) == 12 and np.array_equal(read(image_set), IMAGES)
    assert np.array_equal(read(image_set / "images"), IMAGES)


def test_the_overview_of_a_set_is_no_sample(image_set, tmp_path):
    (image_set / "samples.npz").unlink()
    assert np.array_equal(read(image_set), IMAGES)  # those in images/
    numbered = fill(tmp_path / "numbered", [*(f"{k}.png" for k in range(11)), "grid.png"])
    assert np.array_equal(read(numbered), IMAGES[:11])
    named = fill(tmp_path / "named", ["door.png", "grid.png"])
    assert names_in(named) == ["door.png", "grid.png"]
    assert names_in(fill(tmp_path / "alone", ["grid.png"])) == ["grid.png"]


def test_a_set_that_is_not_finished_is_called_so(image_set):
    (image_set / "samples.npz").unlink()
    (image_set / "parts").mkdir()
    with pytest.raises(ValueError, match=r"the set of images .*set is not finished; run again what makes it"):
        count_images(image_set)


def test_scripts_take_the_folder_of_a_set(image_set, tmp_path, capsys):
    out = tmp_path / "score.json"
    argv = ["--variant", "shapes", "--device", "cpu", "--quiet", "--replicates", "0", "--out", str(out)]
    assert fid.main([str(image_set), str(image_set / "images"), *argv]) == 0
    assert json.loads(out.read_text())["num_samples"] == 12
    assert abs(json.loads(out.read_text())["fid"]) < 1e-3
    assert fid.main([str(tmp_path / ("n" * 300)), str(image_set), *argv]) == 2
    assert capsys.readouterr().err.endswith("give a folder of images, an .npz or a .pt\n")
