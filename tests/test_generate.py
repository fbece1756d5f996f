"""Sets of prompts, and the sets of images made of them."""

import csv
import hashlib
import io
import json
import zipfile
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.command_line import RunError
from common.download import Download
from common.shipped import SHAPES_SD
from eval import clip_score, generate
from eval.generation import published
from eval.generation.prompts import open_prompts
from image_sets.batches import image_generator, to_uint8
from image_sets.reading import read_prompts
from image_sets.sets import ImageSet
from pipelines import StableDiffusionPipeline
from shapes.scenes import held_out_scene, is_held_out, random_scene, words
from tests import tiny
from tests.local_hub import LocalHub

FEW = ["--steps", "3", "--batch-size", "3", "--device", "cpu", "--quiet"]
CAPTIONS = [open_prompts("shapes").text(k) for k in range(5)]
ONE_CAPTION = {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a ring"}]}
# NUL is no text, and a byte-order mark is none of the first prompt's.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0\ufeff")
LINES = st.lists(st.text(CHARACTERS).filter(str.strip), min_size=1, max_size=8)


def run(out: Path, *options: str) -> np.ndarray:
    assert generate.main([*FEW, *options, "--out", str(out)]) == 0
    return images_in(out)


def images_in(out: Path) -> np.ndarray:
    with np.load(out / "samples.npz") as archive:
        return archive["arr_0"]


def lines_in(out: Path) -> list[str]:
    return (out / "prompts.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """The folder of five images at the default cache."""
    out = tmp_path_factory.mktemp("sets") / "five"
    with torch.no_grad():
        run(out, "--num-images", "5", "--png")
    return out


def test_parti_prompts_are_the_column_of_a_tsv(tmp_path):
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text(
        "Category\tPrompt\tChallenge\tNote\n"
        "Abstract\tbond\tBasic\t\n"
        'Outdoor Scenes\tThe words "Fly an airplane" are written on the wall. \tComplex\t\n'
        'Illustrations\t"""G I G G L E"" painted"\tBasic\tquoted\n'
        "People\tSalvador Dalí\tBasic\t\n",
        encoding="utf-8",
    )
    found = open_prompts(str(path))
    assert found.first(4) == [
        "bond", 'The words "Fly an airplane" are written on the wall.', '"G I G G L E" painted', "Salvador Dalí",
    ]  # fmt: skip
    assert (found.name, found.count) == ("PartiPrompts.tsv", 4)
    with pytest.raises(ValueError, match=r"--num-images is 5, and PartiPrompts\.tsv has 4 prompts"):
        found.first(5)


@settings(max_examples=50)
@given(LINES)
def test_any_texts_come_back_from_every_kind_of_file(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("texts")
    with (folder / "a.tsv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("Note", "Prompt"), *(("", text) for text in texts)])
    (folder / "a.json").write_text(json.dumps(texts))
    one_line = [" ".join(text.split()) for text in texts]
    (folder / "a.txt").write_text("\n".join(one_line) + "\n", encoding="utf-8")
    found = [open_prompts(str(folder / name)) for name in ("a.tsv", "a.json", "a.txt")]
    assert [f.first(len(texts)) for f in found] == [one_line] * 3
    assert len({f.digest for f in found}) == 1
    # What is written beside the images is read back as it was.
    generate.write_prompts(folder, one_line)
    assert read_prompts(folder / "prompts.txt") == one_line


def test_coco_is_the_first_caption_of_each_image_in_the_order_of_images(tmp_path):
    path = tmp_path / "captions_val2017.json"
    annotations = [(7, 30, "A dog runs.\n"), (2, 10, "A man on  a horse."), (9, 10, "A rider."), (1, 30, "Some dog."),
                   (5, 20, "Two cats."), (3, 20, "Cats."), (4, 10, "Someone rides.")]  # fmt: skip
    content: dict[str, list] = {
        "images": [{"id": image, "file_name": f"{image:012d}.jpg"} for image in (20, 30, 10)],
        "annotations": [{"id": k, "image_id": image, "caption": text} for k, image, text in annotations],
    }
    path.write_text(json.dumps(content))
    assert open_prompts(str(path)).first(3) == ["Two cats.", "A dog runs.", "A man on a horse."]
    content["images"].append({"id": 40})  # without a caption
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not hold captions as COCO's files do"):
        open_prompts(str(path))


def test_captions_of_shapes_are_held_out_and_depend_on_their_index_alone():
    found = open_prompts("shapes")
    many = found.first(300)
    assert many[:5] == CAPTIONS == [open_prompts("shapes").text(k) for k in range(5)]
    assert found.text(299) == many[299]
    assert len(set(many)) > 250
    assert {word for text in many for word in text.split()} <= {*words(), "an"}
    rng = np.random.default_rng(0)
    drawn = (random_scene(rng, held_out=False, things=2).caption for _ in range(3000))
    assert not set(many) & set(drawn)
    scenes = [held_out_scene(k) for k in range(20)]
    assert [scene.caption for scene in scenes] == many[:20] and all(map(is_held_out, scenes))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.tsv", "Category\tText\nx\ty\n", "has no column Prompt"),
        ("a.tsv", "", "has no column Prompt"),
        ("a.tsv", "Prompt\tNote\n", "has no prompts"),
        ("a.tsv", "Note\tPrompt\nx\ty\nshort\n", "prompt 1 of .* is empty"),
        ("a.json", "[", "is not JSON"),
        ("a.json", "[]", "has no prompts"),
        ("a.json", '["a", 1]', "is not a list of strings"),
        ("a.json", '{"images": [{"id": 1}]}', "does not hold captions"),
        ("a.json", '{"images": [1], "annotations": []}', "does not hold captions"),
        ("a.json", '{"images": [], "annotations": [{"image_id": 1, "caption": null}]}', "does not hold captions"),
        ("a.txt", "one\n\nthree", "line 2 of .* is empty"),
    ],
)
def test_files_without_prompts(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_prompts(str(tmp_path / name))
    (tmp_path / name).write_bytes(b"Prompt\n\xff\n")
    with pytest.raises(ValueError, match=rf"{name} is not text in UTF-8 \(byte 7\); give text in UTF-8"):
        open_prompts(str(tmp_path / name))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("common.download.WAIT", 0)
    return tmp_path / "hub" / "prompts"


@pytest.mark.parametrize("name, file", [("parti", "PartiPrompts.tsv"), ("coco", "captions_val2017.json")])
def test_without_a_network(tmp_path, monkeypatch, capsys, cache, name, file):
    monkeypatch.setattr(published, name.upper(), Download("http://127.0.0.1:9/nothing-listens-here.zip"))
    assert generate.main([*FEW, "--prompts", name, "--out", str(tmp_path / "set")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot download http") and error.count("\n") == 1
    assert f"put {file} at {cache / file}, or pass its path to --prompts" in error
    assert not (tmp_path / "set").exists() and {path.suffix for path in cache.iterdir()} == {".lock"}
    # The file put there is all that is needed.
    (cache / file).write_text("Prompt\na ring\n" if name == "parti" else json.dumps(ONE_CAPTION))
    found = open_prompts(name)
    assert (found.name, found.first(1)) == (name, ["a ring"])


def test_parti_is_downloaded_once_and_checked(monkeypatch, cache):
    content = b"Prompt\na ring\na cross\n"
    with LocalHub(files={"parti.tsv": content}) as hub:
        monkeypatch.setattr(published, "PARTI", Download(hub.url_of("parti.tsv"), "md5:0"))
        message = r"is damaged or not the published one .*try again, or put PartiPrompts\.tsv at"
        with pytest.raises(RunError, match=message):
            open_prompts("parti", quiet=True)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        monkeypatch.setattr(published, "PARTI", Download(hub.url_of("parti.tsv"), digest))
        assert open_prompts("parti", quiet=True).first(2) == open_prompts("parti").first(2) == ["a ring", "a cross"]
        assert len(hub.requests) == 2


def test_coco_is_taken_out_of_its_archive(monkeypatch, cache):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("annotations/captions_train2017.json", "{}")
        archive.writestr("annotations/captions_val2017.json", json.dumps(ONE_CAPTION))
    digest = f"md5:{hashlib.md5(buffer.getvalue()).hexdigest()}"
    with LocalHub(files={"all.zip": buffer.getvalue()}) as hub:
        monkeypatch.setattr(published, "COCO", Download(hub.url_of("all.zip"), digest))
        assert open_prompts("coco", quiet=True).first(1) == ["a ring"]
    assert [path.name for path in cache.iterdir()] == ["captions_val2017.json"]


def by_hand(pipe, batches, **arguments) -> np.ndarray:
    """What a pipeline makes of the captions, float32 (N, H, W, 3) in [0, 1]."""
    pipe.set_progress_bar_config(disable=True)
    made = [
        pipe([CAPTIONS[k] for k in batch], generator=[image_generator(0, k) for k in batch], output_type="np",
             **arguments).images
        for batch in batches
    ]  # fmt: skip
    return np.concatenate(made)


@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
def test_the_baseline_is_diffusers_own(tmp_path, rounding):
    ours = run(tmp_path / "set", "--num-images", "5", "--cache-interval", "1", "--rounding", rounding)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(SHAPES_SD)
    theirs = by_hand(pipe, [[0, 1, 2], [3, 4]], num_inference_steps=3, guidance_scale=2.5)
    if rounding == "truncate":
        assert np.array_equal(ours, (theirs * 255).astype(np.uint8))
    else:
        assert np.array_equal(ours, np.rint((theirs * 2 - 1 + 1) * np.float32(127.5)).astype(np.uint8))
    assert lines_in(tmp_path / "set") == CAPTIONS
    assert json.loads((tmp_path / "set" / "settings.json").read_text())["rounding"] == rounding


@given(st.lists(st.floats(0, 1, width=32), min_size=12, max_size=12))
def test_truncation_is_numpys(values):
    x = np.array(values, np.float32).reshape(1, 3, 2, 2)
    images = torch.from_numpy(x).double() * 2 - 1
    assert np.array_equal(to_uint8(images, [0], "truncate"), (x * 255).astype(np.uint8).transpose(0, 2, 3, 1))


def test_deepcache_is_the_pipelines(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS[:2]))
    call = ["--prompts", str(tmp_path / "prompts.txt"), "--negative-prompt", "a green ring", "--scheduler", "dpm++"]
    call += ["--cache-interval", "2", "--cache-branch-id", "3", "--guidance-scale", "4", "--height", "72"]
    ours = run(tmp_path / "set", *call, "--steps", "4", "--rounding", "truncate")
    pipe = StableDiffusionPipeline.from_pretrained(SHAPES_SD)
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace", euler_at_final=True
    )
    theirs = by_hand(
        pipe, [[0, 1]], negative_prompt=["a green ring"] * 2, num_inference_steps=4, guidance_scale=4.0, height=72,
        cache_interval=2, cache_branch_id=3,
    )  # fmt: skip
    assert ours.shape == (2, 72, 64, 3)
    assert np.array_equal(ours, (theirs * 255).astype(np.uint8))


def test_the_batch_changes_no_image(tmp_path, five):
    singly = run(tmp_path / "one", "--num-images", "5", "--batch-size", "1")
    # A convolution may add up in another order for another batch size: that can turn a rounding to a grey level.
    assert np.abs(singly.astype(int) - images_in(five)).max() <= 1


@pytest.mark.parametrize("where", ["batch", "finish", "prompts.txt"])
def test_a_killed_run_is_continued(tmp_path, monkeypatch, five, where):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    def second(image_set, indices, *arrays, write=ImageSet.write):
        interrupted() if indices[0] else write(image_set, indices, *arrays)

    call = [*FEW, "--num-images", "5", "--out", str(tmp_path / "set")]
    with monkeypatch.context() as patch:
        if where == "batch":
            patch.setattr(ImageSet, "write", second)
        elif where == "finish":
            patch.setattr(ImageSet, "finish", interrupted)
        else:
            patch.setattr(generate, "write_prompts", interrupted)
        assert generate.main(call) == 130
    assert not (tmp_path / "set" / "prompts.txt").exists()
    assert generate.main(call) == 0
    assert np.array_equal(images_in(tmp_path / "set"), images_in(five))
    assert (tmp_path / "set" / "prompts.txt").read_bytes() == (five / "prompts.txt").read_bytes()
    files = {path.name for path in (tmp_path / "set").iterdir()}
    assert files == {".lock", "samples.json", "samples.npz", "grid.png", "settings.json", "prompts.txt"}


def test_a_set_is_extended_with_its_prompts(tmp_path, five):
    run(tmp_path, "--num-images", "3")
    assert lines_in(tmp_path) == CAPTIONS[:3]
    for number in ("5", "2"):  # to fewer, nothing is taken away
        assert np.array_equal(run(tmp_path, "--num-images", number), images_in(five))
        assert lines_in(tmp_path) == CAPTIONS


def test_other_settings_are_refused(tmp_path, five, capsys):
    before = {path: path.read_bytes() for path in five.iterdir() if path.is_file()}
    (tmp_path / "other.txt").write_text("\n".join([*CAPTIONS[:4], "a red ring"]))
    for options, named in {
        ("--prompts", str(tmp_path / "other.txt")): "prompts was {'name': 'shapes'",
        ("--rounding", "truncate"): "rounding was 'nearest' and is now 'truncate'",
        ("--scheduler", "unipc"): "scheduler was 'plms' and is now 'unipc'",
        ("--width", "72"): "width was 64 and is now 72",
    }.items():
        assert generate.main([*FEW, *options, "--num-images", "5", "--out", str(five)]) == 2
        assert f"images of other settings: {named}" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in five.iterdir() if path.is_file()}


def test_clip_score_reads_the_generated_set(five, tmp_path, capsys):
    expected = clip_score.compute(images_in(five), CAPTIONS, model="shapes", quiet=True)
    usual = ["--prompts", str(five / "prompts.txt"), "--model", "shapes", "--device", "cpu", "--quiet"]
    for source in ("samples.npz", "images"):  # the latter by --png
        assert clip_score.main([str(five / source), *usual, "--out", str(tmp_path / "score.json")]) == 0
        assert json.loads((tmp_path / "score.json").read_text())["per_image"] == expected["per_image"]
    assert "5 images, shapes" in capsys.readouterr().out


def test_images_show_their_prompts(tmp_path):
    images = run(tmp_path, "--num-images", "6", "--scheduler", "dpm++", "--steps", "10", "--cache-interval", "2")
    texts = lines_in(tmp_path)
    own = clip_score.compute(images, texts, model="shapes", quiet=True)["mean"]
    anothers = clip_score.compute(images, texts[1:] + texts[:1], model="shapes", quiet=True)["mean"]
    assert own > 80 > 40 > anothers


def test_any_diffusers_directory_without_its_safety_checker(tmp_path):
    """A pipeline of BK-SDM-Tiny's layout, whose safety checker is missing."""
    folder = tmp_path / "bk-sdm"
    diffusers.StableDiffusionPipeline(**tiny.parts("bk_sdm_tiny")).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "two.txt").write_text("a red ring\na blue cross\n")
    call = ["--model", str(folder), "--prompts", str(tmp_path / "two.txt"), "--cache-interval", "1", "--png"]
    images = run(tmp_path / "set", *call)
    assert images.shape == (2, 64, 64, 3) and not np.array_equal(*images)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "set" / "images" / "000001.png")), images[1])
    assert json.loads((tmp_path / "set" / "settings.json").read_text())["guidance_scale"] == 7.5


@pytest.mark.parametrize(
    "call, named",
    [
        (["--prompts", "nowhere.tsv"], "there is no file of prompts nowhere.tsv; --prompts is parti, coco, shapes or"),
        (["--model", "somewhere/else"], "--model needs --prompts"),
        (["--model", "./nowhere", "--prompts", "shapes"], "there is no directory ./nowhere"),
        (["--num-images", "0"], "--num-images is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--steps", "0"], "--steps is 0"),
        (["--steps", "1000"], "--steps is 1000"),
        (["--height", "12"], "--height is 12"),
        (["--cache-branch-id", "12"], "12"),
        (["--cache-steps", "0,9"], "9"),
        (["--pow", "1.4"], "--pow and --center belong together"),
    ],
)
def test_wrong_calls_end_in_one_line(tmp_path, capsys, call, named):
    assert generate.main([*FEW, *call, "--out", str(tmp_path / "set")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error
    assert not (tmp_path / "set").exists()


def test_images_that_are_not_finite(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("eval.generation.text.make_images", lambda *_, **__: torch.full((3, 3, 8, 8), np.nan))
    assert generate.main([*FEW, "--num-images", "3", "--out", str(tmp_path / "set")]) == 1
    assert "image 0 has non-finite values" in capsys.readouterr().err
