"""The forks of SDXL, Stable Video Diffusion, Text2Video-Zero and ControlNet against diffusers' own and DeepCache's."""

import inspect
import json
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import ImageProjection

import pipelines
from common.original_package import original_package
from pipelines import tiny
from tests.families import FAMILIES, NEW, PROMPT, image
from tests.recorders import full_steps_of
from unets import UNet2DConditionModel, UNetSpatioTemporalConditionModel

SCHEDULERS = {  # the model's own among them; Text2Video-Zero's noise needs timesteps that are whole numbers
    "svd": ["euler", "ddim"],
    "t2v-zero": ["plms", "ddim"],
}


# Stock Text2Video-Zero without guidance is left out: its frames then attend as if half of them were the other half's.
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("name", "guided"), [(name, guided) for name in NEW for guided in (True, False) if guided or name != "t2v-zero"]
)
def test_interval_1_is_the_stock_pipeline_bit_for_bit(name, which, guided):
    family = FAMILIES[name]
    stock, fork = family.pair(SCHEDULERS.get(name, ["plms", "euler-a"])[which])
    extra: dict[str, Any] = {family.guidance: 4.0 if guided else 1.0}
    assert np.array_equal(family.run(fork, **extra), family.run(stock, **extra))


def test_without_guidance_each_frame_of_text_to_video_zero_attends_to_the_first():
    """Without motion all frames are then the first; stock makes groups, as if half of the batch were unguided."""
    family = FAMILIES["t2v-zero"]
    _, fork = family.pair()
    noise = torch.zeros(1, 4, 8, 8)
    frames = family.run(fork, guidance_scale=1.0, video_length=4, latents=noise)
    guided = family.run(fork, guidance_scale=1.0 + 1e-9, video_length=4, latents=noise)
    # The guided run's conditional half is this run; its guidance of 1 leaves rounding of float32 only.
    assert np.abs(frames - guided).max() < 1e-4


@pytest.mark.parametrize("branch", [0, 1, 4, 8])
@pytest.mark.parametrize("name", ["xl", "xl-img2img", "xl-inpaint-4", "xl-inpaint-9", "svd"])
def test_with_a_cache_it_is_the_package_deepcache_bit_for_bit(name, branch):
    family = FAMILIES[name]
    stock, fork = family.pair("euler" if name == "svd" else "ddim")
    plain = family.run(stock)
    ours = family.run(fork, cache_interval=3, cache_branch_id=branch)
    helper = original_package().DeepCacheSDHelper(pipe=stock)
    helper.set_params(cache_interval=3, cache_branch_id=branch)
    helper.enable()
    assert np.array_equal(ours, family.run(stock))
    assert not np.array_equal(ours, plain)


@pytest.mark.parametrize("name", NEW)
def test_every_branch_retrieves_something_else(name):
    family = FAMILIES[name]
    _, fork = family.pair()
    branches = [0, 1, fork.unet.num_skip_branches - 1]
    results = [family.run(fork, cache_interval=4, cache_branch_id=m) for m in branches]
    results.append(family.run(fork))
    assert all(np.isfinite(result).all() for result in results)
    assert all(not np.array_equal(a, b) for i, a in enumerate(results) for b in results[:i])


def test_base_and_refiner_each_count_their_own_steps_from_0():
    base, refiner = (FAMILIES[name].pair()[1] for name in ("xl-base", "xl-refiner"))
    full = [full_steps_of(pipe) for pipe in (base, refiner)]
    settings = {**PROMPT, "num_inference_steps": 20, "cache_interval": 3, "cache_branch_id": 0}
    latents = base(**settings, denoising_end=0.8, output_type="latent").images
    refiner(**settings, denoising_start=0.8, image=latents)
    assert [[i for i, is_full in enumerate(its) if is_full] for its in full] == [[0, 3, 6, 9, 12, 15], [0, 3]]
    assert [len(its) for its in full] == [16, 4]


def test_base_then_refiner_is_the_stock_pair_bit_for_bit():
    results = []
    for which in (0, 1):
        base, refiner = (FAMILIES[name].pair("euler")[which] for name in ("xl-base", "xl-refiner"))
        generator = torch.Generator().manual_seed(3)
        settings = {**PROMPT, "num_inference_steps": 10, "generator": generator}
        latents = base(**settings, denoising_end=0.8, output_type="latent").images
        results.append(refiner(**settings, denoising_start=0.8, image=latents, output_type="np").images)
    assert np.array_equal(*results)


def test_sizes_crops_and_scores_of_sdxl_are_passed_as_by_the_stock_pipeline():
    sizes = {"original_size": (40, 48), "crops_coords_top_left": (3, 5), "target_size": (64, 56)}
    negative = {"negative_original_size": (20, 24), "negative_target_size": (32, 32), "num_images_per_prompt": 2}
    for name in ("xl", "xl-img2img", "xl-refiner", "xl-inpaint-4"):
        family = FAMILIES[name]
        scores = {"aesthetic_score": 3.0, "negative_aesthetic_score": 1.0} if name != "xl" else {}
        extra = {**sizes, **negative, **scores, "prompt_2": "a small blue circle", "guidance_rescale": 0.3}
        stock, fork = family.pair()
        ours = family.run(fork, 4, **extra)
        assert np.array_equal(ours, family.run(stock, 4, **extra))
        assert not np.array_equal(ours, family.run(fork, 4, num_images_per_prompt=2))


def test_text_to_video_zero_caches_in_each_of_its_three_loops():
    _, fork = FAMILIES["t2v-zero"].pair()
    full = full_steps_of(fork)
    FAMILIES["t2v-zero"].run(fork, 12, cache_interval=3, t0=3, t1=6)
    assert full == [i % 3 == 0 for loop in (5, 3, 7) for i in range(loop)]


def test_text_to_video_zero_leaves_the_unet_as_it_was():
    _, fork = FAMILIES["t2v-zero"].pair()
    image_pipe = pipelines.StableDiffusionPipeline(**fork.components, requires_safety_checker=False)
    before = dict(image_pipe.unet.attn_processors)
    FAMILIES["t2v-zero"].run(fork, 6)
    assert image_pipe.unet.attn_processors == before


@pytest.mark.parametrize("size", [(8, 8), (16, 24)], ids=str)
def test_the_video_unet_is_the_stock_forward_bit_for_bit_and_shares_its_weights(size):
    stock = tiny.svd_parts()["unet"]
    fork = UNetSpatioTemporalConditionModel.sharing(stock)
    torch.manual_seed(1)
    arguments = {
        "sample": torch.randn(2, 3, 8, *size),
        "encoder_hidden_states": torch.randn(2, 1, 32),
        "added_time_ids": torch.tensor([[6.0, 127, 0.02]] * 2),
    }
    with torch.no_grad():
        for timestep in (0.25, torch.tensor(700), torch.tensor([1, 9]), 3):
            expected = stock(**arguments, timestep=timestep).sample
            assert torch.equal(fork(**arguments, timestep=timestep).sample, expected)
        for m in range(fork.num_skip_branches):
            output = fork(**arguments, timestep=3, cache_branch_id=m)
            retrieved = fork(**arguments, timestep=3, cache_branch_id=m, cached_feature=output.cached_feature)
            assert torch.equal(output.sample, expected)
            assert torch.equal(retrieved.sample, expected)  # nothing moved in between
    assert all(a is b for a, b in zip(stock.parameters(), fork.parameters(), strict=True))


@pytest.mark.parametrize("cls", [UNet2DConditionModel, UNetSpatioTemporalConditionModel])
def test_a_fork_takes_what_its_parent_takes_and_the_cache(cls):
    ours, parents = (list(inspect.signature(c.forward).parameters) for c in (cls, cls.__mro__[2]))
    assert ours == [
        *parents,
        "cache_branch_id",
        "cached_feature",
        "keep_branch_id",
        "cached_attention",
        "keep_attention",
    ]


@pytest.mark.parametrize("name", {FAMILIES[name].class_name: name for name in NEW}.values())
def test_a_pipeline_takes_what_its_parent_takes_and_the_cache(name):
    stock = getattr(diffusers, FAMILIES[name].class_name)
    fork = getattr(pipelines, FAMILIES[name].class_name)
    ours, parents = (inspect.signature(c.__call__).parameters for c in (fork, stock))
    cache = ["cache_interval", "cache_branch_id", "uniform", "pow", "center", "cache_steps"]
    if name != "t2v-zero":
        cache.append("extensions")
        assert ours["extensions"].kind is inspect.Parameter.VAR_KEYWORD
    old = ("callback", "callback_steps")
    assert [p for p in ours if p not in (*old, *cache)] == [p for p in parents if p not in ("kwargs", *old)]
    assert list(ours)[-len(cache) :] == cache


EXTENSIONS: dict[str, Any] = {
    "forecast": 1.0, "reuse_guidance": True, "guidance_stop": 0.5, "refresh_interval": 2, "refresh_branch_id": 3,
    "reuse_attention": True, "skip_interval": 2,
}  # fmt: skip


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_an_extension_is_refused_where_it_is_not_available(extension):
    value = {extension: EXTENSIONS[extension]}
    with pytest.raises(TypeError, match=extension):
        FAMILIES["t2v-zero"].run(FAMILIES["t2v-zero"].pair()[1], **value)
    if "guidance" in extension:
        with pytest.raises(ValueError, match=f"{extension} is not available here; leave it out"):
            FAMILIES["controlnet"].run(FAMILIES["controlnet"].pair()[1], **value)


@pytest.mark.parametrize("name", NEW)
def test_a_saved_pipeline_loads_as_the_stock_pipeline(name, tmp_path):
    family = FAMILIES[name]
    _, fork = family.pair()
    fork.save_pretrained(tmp_path)
    results = []
    for cls in (getattr(pipelines, family.class_name), family.stock()):
        pipe = cls.from_pretrained(tmp_path)
        pipe.set_progress_bar_config(disable=True)
        results.append(family.run(pipe, 6))
        for part in ("unet", "vae", "controlnet"):
            for a, b in zip(*(getattr(p, part).parameters() for p in (pipe, fork) if hasattr(p, part)), strict=False):
                assert torch.equal(a, b)
    assert type(pipe.unet).__module__.startswith("diffusers.")
    assert np.array_equal(results[0], results[1])


@pytest.mark.parametrize("name", ["controlnet", "controlnets"])
def test_whatever_controlnet_is_given_it_runs_as_the_fork_and_is_saved_under_the_stock_name(name, tmp_path):
    family = FAMILIES[name]
    stock, fork = family.pair()
    settings = {"cache_interval": 3, "cache_branch_id": 1}
    expected, saved_as = family.run(fork, 4, **settings), fork.config.controlnet
    for given in (stock.controlnet, fork.controlnet):
        fork.controlnet = given
        fork.save_pretrained(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert tuple(index["controlnet"]) == saved_as
        fork.controlnet = given
        assert np.array_equal(family.run(fork, 4, **settings), expected)
    assert type(stock.controlnet).__module__.startswith("diffusers.")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "svd": ({"num_frames": 0}, "num_frames"),
    "t2v-zero": ({"video_length": 0}, "video_length"),
    "xl-base": ({"denoising_end": 0.001}, "denoising_end"),
    "xl-refiner": ({"denoising_end": 0.1}, "denoising_start"),
    "xl-img2img": ({"strength": 0.01}, "strength"),
    "controlnet": ({"cache_branch_id": 12}, "cache_branch_id"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    extra, said = WRONG[name]
    _, fork = FAMILIES[name].pair()
    with pytest.raises(ValueError, match=said):
        FAMILIES[name].run(fork, **extra)


def test_text_to_video_zero_needs_its_two_moments_within_the_run():
    _, fork = FAMILIES["t2v-zero"].pair()
    for extra in ({"t0": 4, "t1": 4}, {"t1": 8}, {"t0": -1}):
        with pytest.raises(ValueError, match="t0"):
            FAMILIES["t2v-zero"].run(fork, **extra)
    with pytest.raises(ValueError, match="one prompt"):
        FAMILIES["t2v-zero"].run(fork, prompt=["a ring", "a circle"])


def test_a_callback_can_switch_guidance_off_in_the_middle():
    """Guidance is a property of the run, and the cached feature then has twice as many rows as needed."""
    _, fork = FAMILIES["xl"].pair()

    def stop(pipe, i, t, values):
        if i != 2:
            return {}
        pipe._guidance_scale = 1.0
        return {name: value.chunk(2)[1] for name, value in values.items()}

    result = FAMILIES["xl"].run(
        fork,
        cache_interval=5,
        callback_on_step_end=stop,
        callback_on_step_end_tensor_inputs=["prompt_embeds", "add_text_embeds", "add_time_ids"],
    )
    assert np.isfinite(result).all()


def test_latents_come_out_as_a_tuple_too():
    for name in ("xl", "xl-img2img", "svd"):
        _, fork = FAMILIES[name].pair()
        arguments = {**FAMILIES[name].arguments, "num_inference_steps": 3, "output_type": "latent"}
        latents = fork(**arguments, return_dict=False)[0]
        assert latents.shape[-2:] == (8, 8)


def test_frames_of_a_video_come_as_images_too():
    _, fork = FAMILIES["t2v-zero"].pair()
    arguments = {**FAMILIES["t2v-zero"].arguments, "num_inference_steps": 6}
    frames = fork(**arguments, output_type="pil").images
    assert [frame.size for frame in frames] == [(64, 64)] * 3
    assert fork(**arguments, output_type="pt").images.shape == (3, 3, 64, 64)
    _, fork = FAMILIES["svd"].pair("euler")
    video = fork(image=image(), height=64, width=64, num_inference_steps=2).frames[0]
    assert [frame.size for frame in video] == [(64, 64)] * 4


def test_a_text_to_video_model_distilled_for_guidance_runs_as_the_stock_pipeline():
    def parts():
        layout = {**tiny.SD21, "time_cond_proj_dim": 12}
        return {**tiny.sd21_parts(), "unet": tiny.unet(layout)}

    family = FAMILIES["t2v-zero"]._replace(parts=parts)
    stock, fork = family.pair()
    assert np.array_equal(family.run(fork), family.run(stock))


def test_a_scheduler_without_whole_timesteps_is_refused_by_text_to_video_zero():
    _, fork = FAMILIES["t2v-zero"].pair("euler")
    with pytest.raises(ValueError, match="EulerDiscreteScheduler does not fit"):
        FAMILIES["t2v-zero"].run(fork)


def test_several_controlnets_are_offloaded_as_one():
    """The accelerator is the CPU itself here."""
    _, fork = FAMILIES["controlnets"].pair()
    expected = FAMILIES["controlnets"].run(fork)
    fork.enable_model_cpu_offload(device="cpu")
    calls = []
    pre_forward = fork.controlnet._hf_hook.pre_forward

    def counted(*args, **kwargs):
        calls.append(1)
        return pre_forward(*args, **kwargs)

    fork.controlnet._hf_hook.pre_forward = counted
    assert np.array_equal(FAMILIES["controlnets"].run(fork), expected)
    assert len(calls) == 8


def test_old_callbacks_are_called_as_by_the_stock_pipeline():
    for name in ("xl-base", "xl-refiner"):
        results = []
        for pipe in FAMILIES[name].pair("plms"):
            seen: list[int] = []
            FAMILIES[name].run(pipe, 10, callback=lambda i, t, latents, seen=seen: seen.append(i), callback_steps=1)
            results.append(seen)
        assert results[0] == results[1]


def test_a_compiled_unet_is_refused_with_the_remedy():
    for compiled in (True, False):
        stock, _ = FAMILIES["xl"].pair()
        if compiled:
            stock.unet = torch.compile(stock.unet, backend="eager")
        else:
            stock.unet.forward = torch.compile(stock.unet.forward, backend="eager")
        with pytest.raises(ValueError, match="compil"):
            pipelines.StableDiffusionXLPipeline(**stock.components)


def test_a_video_runs_in_bfloat16_too():
    pipe = FAMILIES["svd"].pair("euler")[1].to(torch.bfloat16)
    frames = FAMILIES["svd"].run(pipe, 3, cache_interval=2)
    assert np.isfinite(frames).all()


@pytest.mark.parametrize("name", ["sd", "sd-img2img", "sd-inpaint", "xl", "xl-img2img", "xl-inpaint-4", "controlnet"])
def test_an_ip_adapters_image_is_passed_as_by_the_stock_pipeline(name):
    family = FAMILIES[name]

    def parts():
        layout = tiny.SDXL if name.startswith("xl") else tiny.SD21
        video = tiny.svd_parts()
        unet = tiny.unet(layout)
        torch.manual_seed(6)
        unet.encoder_hid_proj = ImageProjection(image_embed_dim=32, cross_attention_dim=layout["cross_attention_dim"])
        unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
        return {
            **family.parts(),
            "unet": unet,
            **{part: video[part] for part in ("image_encoder", "feature_extractor")},
        }

    stock, fork = family._replace(parts=parts).pair()
    extra = {"ip_adapter_image": image(5)}
    assert np.array_equal(family.run(fork, 3, **extra), family.run(stock, 3, **extra))
    assert not np.array_equal(family.run(fork, 3, **extra), family.run(fork, 3, ip_adapter_image=image(6)))


def test_an_autoencoder_that_sees_the_mask_gets_it():
    def parts():
        torch.manual_seed(3)
        vae = diffusers.AsymmetricAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            down_block_out_channels=(4, 4, 8, 8),
            up_block_types=("UpDecoderBlock2D",) * 4,
            up_block_out_channels=(4, 4, 8, 8),
            norm_num_groups=2,
            sample_size=64,
        )
        return {**tiny.sd21_parts(9), "vae": vae.eval()}

    family = FAMILIES["sd-inpaint"]._replace(parts=parts)
    stock, fork = family.pair()
    assert np.array_equal(family.run(fork, 3), family.run(stock, 3))


@pytest.mark.parametrize("name", ["sd", "sd-img2img", "sd-inpaint", "xl", "xl-img2img", "xl-inpaint-4", "controlnet"])
def test_timesteps_of_the_user_are_run_as_by_the_stock_pipeline(name):
    family = FAMILIES[name]
    results = []
    for pipe in family.pair():
        pipe.scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
        results.append(family.run(pipe, timesteps=[900, 700, 420, 100]))
    assert np.array_equal(results[0], results[1])
