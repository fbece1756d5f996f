"""The CLIP Score against open_clip called by hand, and what goes wrong with prompts and models."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from common.command_line import RunError
from common.shipped import SHAPES_CLIP, SHAPES_SD
from eval import clip_score
from shapes.scenes import random_scene, render

RNG = np.random.default_rng(5)
SCENES = [random_scene(RNG, held_out=True) for _ in range(6)]
IMAGES = np.stack([render(scene, RNG)[0] for scene in SCENES])
CAPTIONS = [scene.caption for scene in SCENES]


@pytest.fixture(scope="module")
def by_hand():
    """Cosines (6, 6) of images and captions."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{SHAPES_CLIP}")
    model.eval()
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(Image.fromarray(image)) for image in IMAGES]))
        texts = model.encode_text(open_clip.get_tokenizer(f"local-dir:{SHAPES_CLIP}")(CAPTIONS))
    return (images @ texts.T / images.norm(dim=1)[:, None] / texts.norm(dim=1)).numpy()


def test_score_is_open_clips(by_hand):
    result = clip_score.compute(IMAGES, CAPTIONS, model="shapes", batch_size=4, quiet=True)
    # 1e-3 of 100: convolutions and normalisation round differently with the batch size
    np.testing.assert_allclose(result["per_image"], 100 * by_hand.diagonal(), atol=1e-3)
    assert result["mean"] == pytest.approx(np.mean(result["per_image"]), rel=1e-12)
    assert result["standard_error"] == pytest.approx(np.std(result["per_image"], ddof=1) / 6**0.5, rel=1e-12)
    assert result["num_images"] == 6


def test_negative_cosines_count_as_zero(by_hand):
    image, text = np.unravel_index(by_hand.argmin(), by_hand.shape)
    assert by_hand[image, text] < 0, "the six pictures have no pair that disagrees"
    pair = [IMAGES[image], IMAGES[text]]
    result = clip_score.compute(np.stack(pair), [CAPTIONS[text]] * 2, model=str(SHAPES_CLIP), quiet=True)
    assert result["per_image"][0] == 0
    assert result["mean"] == pytest.approx(50 * by_hand[text, text], abs=1e-3)  # rounding, as above


def test_one_image_has_no_standard_error():
    result = clip_score.compute(IMAGES[:1], CAPTIONS[:1], model=f"local-dir:{SHAPES_CLIP}", quiet=True)
    assert result["standard_error"] is None


def test_script_reads_every_source(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", IMAGES)
    torch.save({"images": torch.from_numpy(IMAGES).permute(0, 3, 1, 2), "prompts": CAPTIONS}, tmp_path / "a.pt")
    (tmp_path / "pictures").mkdir()
    for k, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{k:05d}.png")
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS) + "\n")
    (tmp_path / "prompts.json").write_text(json.dumps(CAPTIONS))
    expected = clip_score.compute(IMAGES, CAPTIONS, model="shapes", quiet=True)
    out = tmp_path / "result.json"
    for source, prompts in {"a.npz": "prompts.txt", "a.pt": None, "pictures": "prompts.json"}.items():
        argv = [str(tmp_path / source), "--model", "shapes", "--device", "cpu", "--quiet", "--out", str(out)]
        argv += ["--csv", str(tmp_path / "scores.csv")] + (["--prompts", str(tmp_path / prompts)] if prompts else [])
        assert clip_score.main(argv) == 0
        found = json.loads(out.read_text())
        assert found.pop("versions")["device"].startswith("cpu: ") and len(found.pop("code")) == 16
        assert found == {"images": str(tmp_path / source), **expected}
        rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
        assert [row["prompt"] for row in rows] == CAPTIONS
        assert [float(row["clip_score"]) for row in rows] == expected["per_image"]
    interval = f"± {1.96 * expected['standard_error']:.3f} (95 %)"
    assert f"CLIP Score {expected['mean']:.3f} {interval}\n" in capsys.readouterr().out


def test_wrong_calls(tmp_path, capsys):
    def fails(message, prompts=None, **arguments):
        with pytest.raises(ValueError, match=message):
            clip_score.compute(IMAGES, CAPTIONS if prompts is None else prompts, quiet=True, **arguments)

    fails("6 images and 5 prompts", CAPTIONS[:5], model="shapes")
    fails("unknown model 'ViT-x-3'", model="ViT-x-3")
    fails("no weights 'mine' of ViT-g-14; there are laion2b_s12b_b42k, ", pretrained="mine")
    fails(r"no open_clip_config\.json", model=str(SHAPES_SD))
    fails(r"there is no file .*nowhere\.txt; give text in UTF-8", tmp_path / "nowhere.txt")
    (tmp_path / "a.txt").write_text("one\n\nthree\n")
    fails("line 2 of .* is empty", tmp_path / "a.txt")
    for text, message in {
        '{"a": 1}': "is not a list; give",
        "[1, 2]": "is not a list of strings: prompt 0 is 1",
    }.items():
        (tmp_path / "a.json").write_text(text)
        fails(message, tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[")
    fails("is not JSON", tmp_path / "a.json")
    np.savez(tmp_path / "a.npz", IMAGES)
    assert clip_score.main([str(tmp_path / "a.npz"), "--model", "shapes"]) == 2
    assert capsys.readouterr().err == "error: there are no prompts; pass --prompts FILE, one prompt a line\n"


def test_without_a_network(tmp_path, monkeypatch, capsys):
    """One line, and exit status 1."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RunError, match=r"cannot load laion400m_e32 of ViT-B-32: .*; without a network, pass --pretr"):
        clip_score.compute(IMAGES, CAPTIONS, model="ViT-B-32", pretrained="laion400m_e32", quiet=True)
    assert capsys.readouterr().err == ""


class Evil:
    def __reduce__(self):
        return open, ("ran", "w")


@pytest.mark.parametrize("damage", ["code", "deep", "list", "cut"])
def test_a_folder_of_a_scorer_that_is_hostile_or_damaged_is_one_line(damage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SHAPES_CLIP, "scorer")
    weights, config = Path("scorer/open_clip_model.safetensors"), Path("scorer/open_clip_config.json")
    if damage == "code":
        weights.unlink()
        torch.save({"x": Evil()}, "scorer/open_clip_pytorch_model.bin")
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        config.write_text("[" * 100_000 if damage == "deep" else "[]")
    Image.new("RGB", (64, 64)).save("picture.png")
    Path("pictures").mkdir()
    shutil.move("picture.png", "pictures")
    Path("prompts.txt").write_text("a ring\n")
    call = ["pictures", "--prompts", "prompts.txt", "--model", "scorer", "--quiet", "--device", "cpu"]
    assert clip_score.main(call) in (1, 2)
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not Path("ran").exists()
