"""The forked pipelines against diffusers' own and against the package DeepCache."""

import inspect
import json
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from transformers import BatchFeature

import pipelines
from benchmarks.unet_step import peak_memory
from common.shipped import SHAPES_SD
from pipelines.loading import SCHEDULERS, new_scheduler
from tests.original_helper import original_helper
from tests.recorders import full_steps_of
from tests.tiny import mask, parts, picture
from unets import UNet2DConditionModel

# What each kind of run needs besides a prompt: class, channels of the U-Net, arguments.
KINDS = {
    "text": ("StableDiffusionPipeline", 4, {}),
    "img2img": ("StableDiffusionImg2ImgPipeline", 4, {"image": picture(), "strength": 0.7}),
    "inpaint-4": ("StableDiffusionInpaintPipeline", 4, {"image": picture(), "mask_image": mask(), "strength": 0.9}),
    "inpaint-9": ("StableDiffusionInpaintPipeline", 9, {"image": picture(), "mask_image": mask()}),
}
PROMPTS = ["a large red circle above a small blue square", "a small ring"]


def pair(kind, scheduler="plms", **layout):
    """The stock pipeline and the fork over the same parts."""
    name, channels, arguments = KINDS[kind]
    components = parts(in_channels=channels, out_channels=4, **layout)
    components["scheduler"] = new_scheduler(scheduler, components["scheduler"].config)
    pipes = [getattr(module, name)(**components) for module in (diffusers, pipelines)]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    return *pipes, arguments


def run(pipe, arguments, prompts=1, steps=8, **extra):
    generators = [torch.Generator().manual_seed(k) for k in range(prompts)]
    arguments = {"prompt": PROMPTS[:prompts], "num_inference_steps": steps, **arguments, **extra}
    for name in {"image", "mask_image"} & arguments.keys():
        arguments[name] = torch.cat([arguments[name]] * prompts)  # img2img's generators need an image each
    return pipe(**arguments, generator=generators, output_type="np").images


@pytest.mark.parametrize(("prompts", "layers"), [(1, 1), (2, 2)])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("scheduler", ["plms", "ddim", "dpm++", "euler-a"])
@pytest.mark.parametrize("kind", KINDS)
def test_interval_1_is_the_stock_pipeline_bit_for_bit(kind, scheduler, guidance_scale, prompts, layers):
    stock, fork, arguments = pair(kind, scheduler, layers_per_block=layers)
    expected = run(stock, arguments, prompts, steps=5, guidance_scale=guidance_scale)
    assert np.array_equal(run(fork, arguments, prompts, steps=5, guidance_scale=guidance_scale), expected)


@pytest.mark.parametrize(("kind", "scheduler"), [("text", "plms"), ("img2img", "euler-a"), ("inpaint-4", "dpm++")])
def test_interval_1_is_the_stock_pipeline_on_the_shipped_model(kind, scheduler):
    """Every kind; every kind with every sampler is above, on small models."""
    name, _, arguments = KINDS[kind]
    results = []
    for module in (diffusers, pipelines):
        pipe = getattr(module, name).from_pretrained(SHAPES_SD)
        pipe.scheduler = new_scheduler(scheduler, pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        results += [run(pipe, arguments, n, steps=5, guidance_scale=g) for n in (1, 2) for g in (1.0, 2.5)]
    for expected, ours in zip(results[:4], results[4:], strict=True):
        assert np.array_equal(ours, expected)


@cache
def uncached(kind):
    stock, _, arguments = pair(kind, "ddim")
    return run(stock, arguments, steps=6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("branch", range(12))
def test_with_ddim_it_is_the_package_deepcache_bit_for_bit(kind, branch):
    stock, fork, arguments = pair(kind, "ddim")
    settings = {"cache_interval": 3, "cache_branch_id": branch}
    ours = run(fork, arguments, steps=6, **settings)
    with original_helper(stock, **settings):
        assert np.array_equal(ours, run(stock, arguments, steps=6))
    assert not np.array_equal(ours, uncached(kind))  # the cache did something


@pytest.mark.parametrize("branch", [1, 5])
def test_with_ddim_it_is_the_package_deepcache_on_the_shipped_model(branch):
    fork = pipelines.StableDiffusionPipeline.from_pretrained(SHAPES_SD)
    stock = diffusers.StableDiffusionPipeline.from_pretrained(SHAPES_SD)
    for pipe in (fork, stock):
        pipe.scheduler = new_scheduler("ddim", pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
    settings = {"cache_interval": 5, "cache_branch_id": branch}
    ours = run(fork, {}, prompts=2, steps=7, guidance_scale=2.5, **settings)
    with original_helper(stock, **settings):
        assert np.array_equal(ours, run(stock, {}, prompts=2, steps=7, guidance_scale=2.5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_runs_with_a_cache(kind, scheduler):
    _, fork, arguments = pair(kind, scheduler, layers_per_block=1)
    baseline = run(fork, arguments, steps=5)
    cached = run(fork, arguments, steps=5, cache_interval=2, cache_branch_id=1)
    assert np.isfinite(cached).all()
    assert not np.array_equal(cached, baseline)


def test_plms_makes_one_call_more_than_steps_and_it_retrieves():
    _, fork, _ = pair("text")
    full = full_steps_of(fork)
    run(fork, {}, steps=50, cache_interval=5)
    assert [i for i, is_full in enumerate(full) if is_full] == list(range(0, 50, 5))
    assert len(full) == 51


def test_a_sampler_of_second_order_counts_calls():
    _, fork, _ = pair("text", "heun")
    full = full_steps_of(fork)
    run(fork, {}, steps=10, cache_interval=4)
    assert [i for i, is_full in enumerate(full) if is_full] == [0, 4, 8, 12, 16]
    assert len(full) == 19


def test_img2img_counts_the_steps_it_runs_from_0():
    _, fork, arguments = pair("img2img", "ddim")
    full = full_steps_of(fork)
    run(fork, {**arguments, "strength": 0.5}, steps=20, cache_interval=4)
    assert [i for i, is_full in enumerate(full) if is_full] == [0, 4, 8]
    assert len(full) == 10


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"cache_steps": [6, 0, 1]}, [0, 1, 6]),
        ({"cache_interval": 5, "uniform": False, "pow": 1.4, "center": 4}, [0, 4]),
        ({"cache_interval": 100}, [0]),
    ],
)
def test_every_kind_of_schedule_reaches_the_loop(settings, expected):
    _, fork, _ = pair("text", "ddim")
    full = full_steps_of(fork)
    run(fork, {}, steps=10, **settings)
    assert [i for i, is_full in enumerate(full) if is_full] == expected


def test_nothing_is_left_over_from_one_run_to_the_next():
    _, fork, _ = pair("text", "ddim")
    settings = {"cache_interval": 4, "cache_branch_id": 2}
    first = run(fork, {}, **settings)
    run(fork, {}, prompts=2, height=32, width=96, **settings)
    with pytest.raises(ZeroDivisionError):
        run(fork, {}, callback_on_step_end=lambda *_: 1 / 0, **settings)
    assert np.array_equal(run(fork, {}, **settings), first)


@pytest.mark.parametrize("branch", [1, 5])
def test_a_run_holds_no_more_memory_than_the_baseline_and_the_kept_feature(branch):
    _, fork, _ = pair("text", "ddim")

    def peak(**settings):
        call = {"prompt": PROMPTS[0], "num_inference_steps": 6, "output_type": "latent", "height": 256, "width": 256}
        return peak_memory(lambda: fork(**call, **settings), torch.device("cpu"))

    latents, text = torch.zeros(2, 4, 32, 32), torch.zeros(2, 24, 24)
    feature = fork.unet(latents, 1, text, cache_branch_id=branch).cached_feature
    assert peak(cache_interval=2, cache_branch_id=branch) <= 1.02 * peak() + feature.nbytes


def test_image_k_does_not_depend_on_the_images_beside_it():
    _, fork, _ = pair("text", "euler-a")
    settings = {"cache_interval": 3, "cache_branch_id": 1}
    together = run(fork, {}, prompts=2, **settings)
    alone = run(fork, {}, prompts=1, **settings)
    # Other batch sizes may take other kernels, whose sums round differently.
    np.testing.assert_allclose(together[0], alone[0], atol=1e-4)


def test_a_callback_sees_and_replaces_what_the_stock_one_would():
    stock, fork, _ = pair("text", "ddim")
    seen = []

    def halve(pipe, i, t, values):
        seen.append((i, int(t), sorted(values)))
        return {"latents": values["latents"] * 0.5}

    names = ["latents", "negative_prompt_embeds"]
    extra = {"callback_on_step_end": halve, "callback_on_step_end_tensor_inputs": names}
    expected = run(stock, {}, **extra)
    stock_seen = seen.copy()
    seen.clear()
    assert np.array_equal(run(fork, {}, **extra), expected)
    assert seen == stock_seen


def test_the_old_kind_of_callback_is_called_as_by_the_stock_pipeline():
    calls: dict[str, list] = {}
    for name, pipe in zip(("stock", "fork"), pair("text", "heun")[:2], strict=True):
        seen = calls.setdefault(name, [])
        run(pipe, {}, callback=lambda i, t, _, seen=seen: seen.append((i, float(t))), callback_steps=2)
    assert calls["fork"] == calls["stock"] != []


def test_guidance_may_be_switched_off_in_the_middle_of_a_run():
    _, fork, _ = pair("text", "ddim")
    full = full_steps_of(fork)

    def switch_off(pipe, i, t, values):
        if i == 4:
            pipe._guidance_scale = 0.0
            return {"prompt_embeds": values["prompt_embeds"].chunk(2)[1]}
        return {}

    run(
        fork,
        {},
        callback_on_step_end=switch_off,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
        cache_interval=4,
    )
    assert full == [True, False, False, False, True, True, False, False]  # step 5 has another batch than was kept


@pytest.mark.parametrize(
    "extra",
    [
        {"num_images_per_prompt": 2, "generator": [torch.Generator(), torch.Generator()]},
        {"eta": 0.7},
        {"clip_skip": 1, "negative_prompt": ["ring"]},
        {"cross_attention_kwargs": {"scale": 0.5}},
        {"output_type": "latent"},
        {"output_type": "pt", "return_dict": False},
        {"callback_on_step_end": lambda pipe, i, t, values: {"latents": values["latents"] * 0.9}},
    ],
    ids=lambda extra: next(iter(extra)),
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_argument_means_what_it_means_to_the_stock_pipeline(kind, extra):
    stock, fork, arguments = pair(kind, "ddim")
    results = []
    for pipe in (stock, fork):
        if "generator" in extra:
            arguments = {**arguments, "image": torch.cat([picture()] * 2)} if kind == "img2img" else arguments
            for k, generator in enumerate(extra["generator"]):
                generator.manual_seed(k)
        generator = [torch.Generator().manual_seed(0)]
        call = {"prompt": PROMPTS[:1], "num_inference_steps": 5, "output_type": "np", "generator": generator}
        results.append(pipe(**{**call, **arguments, **extra})[0])
    assert np.array_equal(*results)


def test_latents_of_the_user_are_the_start():
    stock, fork, _ = pair("text", "ddim")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    assert np.array_equal(run(fork, {}, latents=latents), run(stock, {}, latents=latents))


def test_a_safety_checker_is_asked_as_by_the_stock_pipeline():
    class Checker(torch.nn.Module):
        dtype, device = torch.float32, torch.device("cpu")  # a pipeline asks whichever of its models comes first

        def forward(self, images, clip_input):
            return images * 0, [True] * len(images)

    class Extractor:
        def __call__(self, images, return_tensors):
            return BatchFeature({"pixel_values": torch.zeros(len(images), 3, 8, 8)})

    outputs = []
    for pipe in pair("text", "ddim")[:2]:
        pipe.register_modules(safety_checker=Checker(), feature_extractor=Extractor())
        outputs.append(pipe("a ring", num_inference_steps=2, output_type="np"))
    assert outputs[0].nsfw_content_detected == outputs[1].nsfw_content_detected == [True]
    assert np.array_equal(outputs[0].images, outputs[1].images)


def test_whatever_unet_is_given_it_runs_as_the_fork_and_is_saved_under_the_stock_name(tmp_path):
    stock, fork, _ = pair("text", "ddim")
    expected = run(fork, {}, cache_interval=3)
    again = pipelines.StableDiffusionPipeline(**fork.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(run(again, {}, cache_interval=3), expected)
    for given in (stock.unet, fork.unet):
        again.unet = given
        again.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DConditionModel"]
    again.unet = stock.unet
    assert np.array_equal(run(again, {}, cache_interval=3), expected)
    assert type(again.unet) is UNet2DConditionModel
    assert type(stock.unet) is diffusers.UNet2DConditionModel
    for pipe in (fork, again):
        assert pipe.config.unet == ("diffusers", "UNet2DConditionModel")


def test_guidance_rescale_clip_skip_and_prompt_embeds_are_the_stock_ones():
    stock, fork, _ = pair("text", "ddim")
    extra = {"guidance_rescale": 0.7, "clip_skip": 1, "negative_prompt": ["ring"]}
    assert np.array_equal(run(fork, {}, **extra), run(stock, {}, **extra))
    positive, negative = stock.encode_prompt(PROMPTS[0], "cpu", 1, True)
    embeds = {"prompt": None, "prompt_embeds": positive, "negative_prompt_embeds": negative}
    assert np.array_equal(run(fork, embeds), run(stock, embeds))


def test_a_guidance_distilled_unet_gets_its_scale():
    stock, fork, _ = pair("text", "lcm", layout="lcm")
    expected = run(stock, {}, steps=4, guidance_scale=8.0)
    assert np.array_equal(run(fork, {}, steps=4, guidance_scale=8.0), expected)
    assert not np.array_equal(run(fork, {}, steps=4, guidance_scale=2.0), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_call_accepts_every_argument_of_the_stock_call(kind):
    name = KINDS[kind][0]
    stock, fork = (inspect.signature(getattr(module, name).__call__).parameters for module in (diffusers, pipelines))
    expected = [p for p in stock if p != "kwargs"]
    assert list(fork)[: len(expected)] == expected
    for parameter in expected:
        theirs, ours = stock[parameter].default, fork[parameter].default
        assert ours == (tuple(theirs) if isinstance(theirs, list) else theirs), parameter
    cache = ["cache_interval", "cache_branch_id", "uniform", "pow", "center", "cache_steps"]
    assert list(fork)[len(expected) :] == ["callback", "callback_steps", *cache, "extensions"]
    assert fork["extensions"].kind is inspect.Parameter.VAR_KEYWORD


def test_from_pretrained_gives_the_forked_unet_and_save_pretrained_what_the_stock_class_loads(tmp_path):
    _, fork, _ = pair("text", "ddim")
    fork.save_pretrained(tmp_path)
    loaded = pipelines.StableDiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded.unet) is UNet2DConditionModel
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    assert type(again.unet) is diffusers.UNet2DConditionModel
    for pipe in (loaded, again):
        pipe.set_progress_bar_config(disable=True)
    assert np.array_equal(run(loaded, {}), run(again, {}))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"cache_interval": 0}, "cache_interval is 0"),
        ({"cache_branch_id": 12}, "cache_branch_id is 12"),
        ({"cache_interval": 3, "cache_branch_id": -1}, "cache_branch_id is -1"),
        ({"cache_steps": [1]}, "begin with 0"),
        ({"height": 60}, "divisible by 8"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        run(pair("text")[1], {}, **arguments)


def test_a_strength_that_leaves_no_step_is_named():
    _, fork, arguments = pair("img2img")
    with pytest.raises(ValueError, match=r"strength 0\.01"):
        run(fork, {**arguments, "strength": 0.01})
