"""Arguments of every fork's call that are wrong: one line names them before anything is computed."""

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from tests import tiny_ldm
from tests.families import FAMILIES, PROMPT, image

NAMES = ["sd", "sd-img2img", "sd-inpaint", "xl", "xl-img2img", "xl-inpaint-4", "svd", "t2v-zero", "controlnet", "ldm"]
NAN, INF = math.nan, math.inf
STEPS: dict[str, list[Any]] = {"num_inference_steps": [0, -1, 2.5, "3", None]}
SIDES: dict[str, list[Any]] = {name: [60, 0, -64, 10**9, 64.0, "64"] for name in ("height", "width")}
GUIDED: dict[str, list[Any]] = {**STEPS, "guidance_scale": [NAN, INF, -INF, "7", None], "eta": [NAN, -0.1, INF, [0.5]]}
MANY = {**GUIDED, "num_images_per_prompt": [0, -1, 1.5, None]}
XL = {"guidance_rescale": [NAN]}
REDRAWN = {"strength": [NAN, 1.5, -0.1]}
WRONG: dict[str, dict[str, list[Any]]] = {
    "sd": {**MANY, **SIDES, "guidance_rescale": [INF]},
    "sd-img2img": {**MANY, **REDRAWN},
    "sd-inpaint": {**MANY, **SIDES, **REDRAWN},
    "xl": {**MANY, **SIDES, **XL, "denoising_end": [NAN]},
    "xl-img2img": {**MANY, **XL, **REDRAWN, "denoising_start": [NAN]},
    "xl-inpaint-4": {**MANY, **SIDES, **XL, **REDRAWN},
    "svd": {
        **STEPS,
        **SIDES,
        "num_videos_per_prompt": [0],
        "min_guidance_scale": [NAN],
        "max_guidance_scale": [INF],
        "decode_chunk_size": [0, -1, 2.5],
        "num_frames": [0, -1, 2.5],
        "fps": [0, NAN, "7"],
        "motion_bucket_id": [NAN],
        "noise_aug_strength": [NAN, -1],
    },
    "t2v-zero": {
        **GUIDED,
        **SIDES,
        "video_length": [0, -1, 2.5],
        "t0": [-1, 4, 1.5],
        "t1": [2, 8, "4"],
        "motion_field_strength_x": [NAN],
    },
    "controlnet": {**MANY, **SIDES, "controlnet_conditioning_scale": [NAN, [NAN]], "control_guidance_end": [NAN]},
    "ldm": {
        **GUIDED,
        "class_labels": [[4], [-1], [], 3, ["cat"], [1.5], [True], "0", None, [[1]], torch.tensor([4])],
    },
}


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    """A fork by name; it fails the test where any of its models is called."""
    name = request.param
    fork = tiny_ldm.pipeline() if name == "ldm" else FAMILIES[name].pair()[1]

    def computed(*_: Any) -> None:
        pytest.fail("something was computed")

    for part in fork.components.values():
        if isinstance(part, torch.nn.Module):
            for module in part.modules():
                if list(module.parameters(recurse=False)):  # activations are shared by all of diffusers' models
                    module.register_forward_pre_hook(computed)
    return name, fork


def refused(family, said: str, **extra) -> None:
    """Checks that the call raises a one-line ValueError with this text."""
    name, fork = family
    arguments = {"class_labels": [1, 2]} if name == "ldm" else FAMILIES[name].arguments
    with pytest.raises(ValueError, match=said) as error:
        fork(**{**arguments, "num_inference_steps": 8, **extra})
    assert "\n" not in str(error.value)


def test_a_wrong_number_is_named_before_anything_is_computed(family):
    for argument, values in WRONG[family[0]].items():
        for value in values:
            refused(family, argument, **{argument: value})


def generators(count):
    return [torch.Generator().manual_seed(k) for k in range(count)]


def test_generators_that_are_not_as_many_as_the_outputs_are_refused(family):
    name, _ = family
    outputs = 2 if name == "ldm" else 1
    several = "num_videos_per_prompt" if name == "svd" else "num_images_per_prompt"
    for count in {0, 1, 2, 3} - {outputs}:
        refused(family, f"generator is a list of {count}", generator=generators(count))
    if name not in ("t2v-zero", "ldm"):
        refused(family, "generator is a list of 3, but the call makes 2", generator=generators(3), **{several: 2})
    refused(family, "generator", generator=3)
    refused(family, "generator", generator=[None] * outputs)


SHAPES = {"svd": (1, 3, 4, 8, 8), "ldm": (2, 3, 8, 8)}


def test_latents_of_another_shape_or_without_a_number_are_refused(family):
    name, _ = family
    if name in ("sd-img2img", "xl-img2img"):  # the one has none, the other ignores them as diffusers does
        return
    right = SHAPES.get(name, (1, 4, 8, 8))
    for k in range(len(right)):
        wrong = [side + (i == k) for i, side in enumerate(right)]
        if name != "controlnet" or k < 2:  # there, the sides are those of the picture, which are known later
            refused(family, "latents are", latents=torch.zeros(wrong))
    refused(family, "latents are", latents=torch.zeros(right)[0])
    refused(family, "latents are", latents=np.zeros(right))
    for bad in (NAN, INF):
        latents = torch.zeros(right)
        latents.flatten()[-1] = bad
        refused(family, "latents hold a number that is not finite", latents=latents)


def test_latents_of_another_size_than_the_picture_that_a_controlnet_follows_are_refused():
    fork = FAMILIES["controlnet"].pair()[1]
    with pytest.raises(ValueError, match=r"latents are \(1, 4, 8, 16\); they must be \(1, 4, 8, 8\)"):
        FAMILIES["controlnet"].run(fork, latents=torch.zeros(1, 4, 8, 16))


@pytest.mark.parametrize("guidance_scale", [0, -1.5, np.float32(2), torch.tensor(3.0)])
def test_any_finite_guidance_is_run_as_by_the_stock_pipeline(guidance_scale):
    family = FAMILIES["sd"]
    stock, fork = family.pair()
    extra = {"guidance_scale": guidance_scale}
    assert np.array_equal(family.run(fork, 3, **extra), family.run(stock, 3, **extra))


@pytest.mark.parametrize("name", ["sd-img2img", "xl-img2img"])
def test_one_picture_is_redrawn_with_each_of_a_list_of_generators(name):
    fork = FAMILIES[name].pair()[1]

    def run(generator, **extra):
        arguments = {**FAMILIES[name].arguments, "num_inference_steps": 5, "output_type": "np", **extra}
        return fork(**arguments, generator=generator).images

    together = run(generators(2), num_images_per_prompt=2)
    prompts = run(generators(2), prompt=[PROMPT["prompt"]] * 2)
    for k in range(2):
        (alone,) = run([generators(2)[k]])
        for images in (together, prompts):
            # Other batch sizes may take other kernels, whose sums round differently.
            np.testing.assert_allclose(images[k], alone, atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 0.01
    with pytest.raises(ValueError, match="generator is a list of 4, but image holds 2"):
        run(generators(4), image=[image(), image(1)], num_images_per_prompt=2, prompt=["a ring", "a circle"])


@pytest.mark.parametrize("name", ["sd-img2img", "sd-inpaint", "xl-img2img", "xl-inpaint-4", "svd"])
def test_as_many_pictures_as_generators_are_run_as_by_the_stock_pipeline(name):
    results = []
    for pipe in FAMILIES[name].pair("euler"):
        arguments = {**FAMILIES[name].arguments, "num_inference_steps": 4, "output_type": "np"}
        arguments |= {key: [value] * 2 for key, value in arguments.items() if key in ("prompt", "image", "mask_image")}
        output = pipe(**arguments, generator=generators(2))
        results.append(np.asarray(output.frames if name == "svd" else output.images))
    assert np.array_equal(results[0], results[1])


def test_steps_may_be_left_out_where_timesteps_are_given():
    _, fork = FAMILIES["sd"].pair()
    fork.scheduler = diffusers.DDPMScheduler.from_config(fork.scheduler.config)
    fork(**PROMPT, num_inference_steps=None, timesteps=[900, 500, 100])
    assert fork.num_timesteps == 3
