"""The shipped models: small enough, loadable by the libraries whose formats they have, and good at their task."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import nn

from common.shipped import SHAPES_CLIP, SHAPES_SD
from pipelines import StableDiffusionPipeline
from shapes.prompt_agreement import CaptionClassifier, summary
from shapes.scenes import random_scene, render
from shapes.training import train
from tests.tiny import tokenizer


@pytest.fixture(scope="module")
def classifier():
    return CaptionClassifier(SHAPES_CLIP)


@pytest.mark.parametrize("folder", [SHAPES_SD, SHAPES_CLIP], ids=lambda folder: folder.name)
def test_weights_are_at_most_16_mb(folder):
    assert 0 < sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= 16e6


def test_the_classifier_reads_captions_as_the_text_to_image_model_does():
    ours = tokenizer()("a large red ring", padding="max_length").input_ids
    assert open_clip.get_tokenizer(f"local-dir:{SHAPES_CLIP}")("a large red ring")[0].tolist() == ours


def test_the_classifier_beats_hard_negatives_on_held_out_renders(classifier):
    rng = np.random.default_rng(21)
    scenes = [random_scene(rng, held_out=True, things=2) for _ in range(60)]
    shares = summary([classifier.verdicts(Image.fromarray(render(scene, rng)[0]), scene) for scene in scenes])
    assert shares["hard negatives"] > 0.9
    assert shares["colour"] > 0.9


def test_the_classifier_does_not_find_a_caption_in_noise(classifier):
    rng = np.random.default_rng(22)
    scenes = [random_scene(rng, held_out=True, things=2) for _ in range(30)]
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in scenes]
    shares = summary([classifier.verdicts(image, scene) for image, scene in zip(noise, scenes, strict=True)])
    assert shares["colour"] < 0.2


def test_a_killed_training_run_goes_on_as_if_nothing_had_been(tmp_path):
    def run(work: Path, dies_at: int | None) -> Any:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)

        def loss_of(step):
            if step == dies_at:
                raise KeyboardInterrupt
            return model(torch.full((1, 3), step / 10.0)).square().sum()

        return train(
            "tiny", model, loss_of, steps=8, learning_rate=0.1, work=work, held_out=lambda average: {"x": 1.0}, every=2
        )

    with torch.enable_grad():
        whole = run(tmp_path / "whole", None)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", 5)
        resumed = run(tmp_path / "killed", None)
    assert torch.equal(resumed.weight, whole.weight)
    steps = [line.split(",")[0] for line in (tmp_path / "killed" / "tiny.jsonl").read_text().splitlines()]
    assert steps == [f'{{"step": {k}' for k in (2, 4, 6, 8)]


@pytest.mark.slow
def test_pictures_of_the_shipped_model_show_what_their_captions_say(classifier):
    pipe = StableDiffusionPipeline.from_pretrained(SHAPES_SD)
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(23)
    scenes = [random_scene(rng, held_out=True, things=2) for _ in range(24)]
    generators = [torch.Generator().manual_seed(k) for k in range(24)]
    settings = {"num_inference_steps": 20, "guidance_scale": 2.5, "generator": generators}
    images: Any = pipe([scene.caption for scene in scenes], **settings)
    shares = summary([classifier.verdicts(image, scene) for image, scene in zip(images.images, scenes, strict=True)])
    assert shares["hard negatives"] > 0.9
    assert min(shares["colour"], shares["relation"], shares["size"]) > 0.9
