"""What goes beyond the paper, where the forked pipelines can't be asked: what is run, and what is refused by name."""

from typing import Any

import pytest
import torch

from tests.plugin.cases import CASES, stock, with_sampler
from tests.plugin.ways import offload
from unets import DeepCacheSDHelper

REUSE: dict[str, Any] = {"cache_interval": 3, "reuse_guidance": True}
SKIP: dict[str, Any] = {"cache_interval": 4, "skip_interval": 8}


def helper_on(name, **settings):
    pipe = stock(name)
    if CASES[name].samplers:
        with_sampler(pipe, "ddim")
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(**settings)
    return helper


def rows_run(pipe):
    """A list that will hold the number of rows at every run of the U-Net."""
    rows = []
    pipe.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


@pytest.mark.parametrize("name", ["sd", "xl", "sd-inpaint", "t2i-adapter-xl", "kolors", "svd"])
def test_with_guidance_reused_steps_that_retrieve_run_one_half(name):
    if not CASES[name].is_there:
        pytest.skip(f"this diffusers has no {CASES[name].class_name}")
    helper = helper_on(name, **REUSE)
    with helper:
        rows = rows_run(helper.pipe)
        assert CASES[name].run(helper.pipe).isfinite().all()
    assert rows == [2, 1, 1, 2, 1, 1]


def test_a_skipped_step_neither_runs_the_unet_nor_loads_its_weights():
    pipe = CASES["sd"].build()
    offload(pipe, "model")
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(**SKIP)
    with helper:
        rows, loads, load = rows_run(pipe), [], pipe.unet._hf_hook.pre_forward

        def counted(*args, **kwargs):
            loads.append(1)
            return load(*args, **kwargs)

        pipe.unet._hf_hook.pre_forward = counted
        CASES["sd"].run(pipe)
    assert len(loads) == len(rows) == 3  # steps 0, 1 and 4 are full


REFUSED = [
    ("pag", REUSE, {}, "perturbed"),
    ("pix2pix", REUSE, {}, "3 rows"),
    ("upscaler", REUSE, {}, "does not say"),
    ("controlnet", REUSE, {}, "reuse_guidance is not available"),
    ("lcm", SKIP, {}, "not LCMScheduler"),
    ("svd", SKIP, {}, "skip_interval is not available"),
    ("animatediff", SKIP, {}, "skip_interval is not available"),
    ("sd", SKIP, {"eta": 0.5}, "DDIMScheduler with added noise"),
]


@pytest.mark.parametrize(("name", "settings", "extra", "said"), REFUSED)
def test_where_it_cant_be_right_it_is_refused_by_name(name, settings, extra, said):
    if not CASES[name].is_there:
        pytest.skip(f"this diffusers has no {CASES[name].class_name}")
    helper = helper_on(name, **settings)
    with helper, pytest.raises(ValueError, match=said):
        CASES[name].run(helper.pipe, **extra)
    expected = CASES[name].run(helper.pipe)
    helper.set_params()
    with helper:
        assert torch.equal(CASES[name].run(helper.pipe), expected)


def test_three_equal_parts_are_not_taken_for_two():
    """InstructPix2Pix for two pictures from the same noise."""
    helper = helper_on("pix2pix", **REUSE)
    latents = torch.ones(2, 4, 8, 8)
    picture = CASES["pix2pix"].arguments["image"].expand(2, -1, -1, -1)
    with helper, pytest.raises(ValueError, match="6 rows"):
        CASES["pix2pix"].run(helper.pipe, batch=2, latents=latents, image=picture)
