"""The plug-in on unmodified diffusers pipelines."""

import functools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from tests.families import FAMILIES
from tests.recorders import full_steps_of
from tests.tiny import stock_unet
from tests.two_levels import small
from unets import DeepCacheSDHelper

SCHEDULES: dict[str, dict[str, Any]] = {
    "every third": {"cache_interval": 3},
    "gathered": {"cache_interval": 3, "pow": 1.4, "center": 1},
    "a list": {"cache_steps": [0, 1]},
}


def sd(scheduler="ddim"):
    """A stock Stable Diffusion pipeline."""
    return FAMILIES["sd"].pair(scheduler)[0]


def state(pipe):
    """Everything that a pipeline and its U-Net hold, by identity."""
    hooks = {name: list(value) for name, value in vars(pipe.unet).items() if name.endswith("_hooks")}
    return {name: id(value) for name, value in vars(pipe).items()}, vars(pipe.unet).keys(), hooks, dict(pipe.config)


def run_of(name):
    """Steps and arguments of a run whose loops are all long enough for the schedules."""
    return (12, {"t0": 3, "t1": 6}) if name == "t2v-zero" else (8, {})


@pytest.mark.parametrize(("schedule", "branch"), [("every third", 0), ("gathered", 3), ("a list", 1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_the_fork_bit_for_bit(name, schedule, branch):
    family = FAMILIES[name] if schedule == "every third" else small(name)
    steps, extra = run_of(name)
    settings = SCHEDULES[schedule]
    stock, fork = family.pair("euler" if name == "svd" else "ddim")
    uniform = "pow" not in settings
    expected = family.run(fork, steps, **extra, **settings, uniform=uniform, cache_branch_id=branch)
    helper = DeepCacheSDHelper(stock)
    helper.set_params(**settings, skip_mode="uniform" if uniform else "non_uniform", cache_branch_id=branch)
    with helper:
        ours = family.run(stock, steps, **extra)
    assert np.array_equal(ours, expected)
    assert not np.array_equal(ours, family.run(stock, steps, **extra))


@pytest.mark.parametrize("scheduler", ["plms", "heun", "dpm++", "unipc"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_are_counted_by_position_with_every_scheduler(scheduler, schedule):
    family, settings = small("sd-img2img"), SCHEDULES[schedule]
    stock, fork = family.pair(scheduler)
    uniform = "pow" not in settings
    helper = DeepCacheSDHelper(stock)
    helper.set_params(**settings, skip_mode="uniform" if uniform else "non_uniform", cache_branch_id=1)
    with helper:
        ours = family.run(stock, 8)
    assert np.array_equal(ours, family.run(fork, 8, **settings, uniform=uniform, cache_branch_id=1))


def test_interval_1_changes_nothing():
    pipe = sd()
    expected = FAMILIES["sd"].run(pipe)
    with DeepCacheSDHelper(pipe):
        assert np.array_equal(FAMILIES["sd"].run(pipe), expected)


def test_disabling_restores_the_pipeline():
    pipe = sd()
    expected, before = FAMILIES["sd"].run(pipe), state(pipe)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=4)
    helper.disable()  # without an enable before
    helper.enable()
    FAMILIES["sd"].run(pipe)
    helper.disable()
    helper.disable()
    assert state(pipe) == before
    assert np.array_equal(FAMILIES["sd"].run(pipe), expected)


def test_saving_while_enabled_saves_the_stock_pipeline(tmp_path):
    pipe = sd()
    with DeepCacheSDHelper(pipe):
        pipe.save_pretrained(tmp_path)
    assert type(diffusers.StableDiffusionPipeline.from_pretrained(tmp_path).unet) is diffusers.UNet2DConditionModel


def test_enabled_twice_is_enabled_once():
    pipe = sd()
    FAMILIES["sd"].run(pipe)
    before = state(pipe)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=4)
    helper.enable()
    once = FAMILIES["sd"].run(pipe)
    helper.enable()
    helper.enable(pipe)
    assert np.array_equal(FAMILIES["sd"].run(pipe), once)
    helper.disable()
    assert state(pipe) == before


def test_every_call_starts_fresh():
    pipe = sd()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=4, cache_branch_id=2)
    with helper:
        first = FAMILIES["sd"].run(pipe)
        assert np.array_equal(FAMILIES["sd"].run(pipe), first)  # the same again
        FAMILIES["sd"].run(pipe, prompt=["a ring", "a circle"])  # another batch
        FAMILIES["sd"].run(pipe, height=32, width=48)  # another size
        FAMILIES["sd"].run(pipe, 3)  # another number of steps
        assert np.array_equal(FAMILIES["sd"].run(pipe), first)


def test_an_exception_in_a_run_leaves_nothing_behind():
    pipe = sd()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=4)

    def fail(pipe, i, t, values):
        if i == 2:
            raise RuntimeError("stop")
        return values

    with helper:
        expected = FAMILIES["sd"].run(pipe)
        with pytest.raises(RuntimeError, match="stop"):
            FAMILIES["sd"].run(pipe, callback_on_step_end=fail)
        # By hand, outside of a loop, the U-Net is the stock one.
        inputs = {"sample": torch.ones(1, 4, 8, 8), "timestep": 3, "encoder_hidden_states": torch.ones(1, 7, 24)}
        with torch.no_grad():
            assert torch.equal(pipe.unet(**inputs).sample, sd().unet(**inputs).sample)
        assert np.array_equal(FAMILIES["sd"].run(pipe), expected)


def test_new_parameters_hold_from_the_next_call_on():
    pipe, helper = sd(), None
    helper = DeepCacheSDHelper(pipe)
    with helper:
        plain = FAMILIES["sd"].run(pipe)
        helper.set_params(cache_interval=4)
        cached = FAMILIES["sd"].run(pipe)
        helper.set_params(cache_interval=1)
        assert np.array_equal(FAMILIES["sd"].run(pipe), plain)
    assert not np.array_equal(cached, plain)


def test_two_pipelines_that_share_a_unet_do_not_disturb_each_other():
    family = FAMILIES["sd"]
    one = sd()
    two = diffusers.StableDiffusionPipeline(**one.components, requires_safety_checker=False)
    two.set_progress_bar_config(disable=True)
    plain = family.run(two)
    helpers = [DeepCacheSDHelper(one), DeepCacheSDHelper(two)]
    helpers[0].set_params(cache_interval=3)
    helpers[1].set_params(cache_interval=5, cache_branch_id=4)
    helpers[0].enable()
    third = family.run(one)
    assert np.array_equal(family.run(two), plain)
    helpers[1].enable()
    fifth = family.run(two)
    assert np.array_equal(family.run(one), third)
    helpers[0].disable()
    assert np.array_equal(family.run(one), plain)
    assert np.array_equal(family.run(two), fifth)
    helpers[1].disable()
    assert np.array_equal(family.run(two), plain)


def test_enabled_on_another_pipeline_it_leaves_the_first():
    one, two = sd(), sd()
    before = state(one)
    helper = DeepCacheSDHelper(one)
    helper.enable()
    helper.enable(two)
    assert state(one) == before
    assert helper.pipe is two
    assert helper.enabled


@pytest.mark.parametrize("offloaded_first", [True, False])
def test_it_works_with_models_that_are_offloaded(offloaded_first):
    """The accelerator is the CPU itself here: every hook runs, and no weight has far to go."""
    pipe = sd()
    expected = FAMILIES["sd"].run(pipe)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=4)
    with helper:
        cached = FAMILIES["sd"].run(pipe)
    # diffusers offloads again after every call, always to CUDA.
    pipe.enable_model_cpu_offload = functools.partial(pipe.enable_model_cpu_offload, device="cpu")
    if offloaded_first:
        pipe.enable_model_cpu_offload()
    with helper:
        if not offloaded_first:
            pipe.enable_model_cpu_offload()
        for _ in range(2):
            assert np.array_equal(FAMILIES["sd"].run(pipe), cached)
        assert hasattr(pipe.unet, "_hf_hook")
    for _ in range(2):
        assert np.array_equal(FAMILIES["sd"].run(pipe), expected)
    assert hasattr(pipe.unet, "_hf_hook")
    assert type(pipe.unet) is diffusers.UNet2DConditionModel


def test_a_loop_over_the_progress_bar_is_a_loop():
    """As in diffusers' `LDMTextToImagePipeline`, whose loop has no progress bar to open."""
    pipe = sd()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=3)
    with helper:
        full = full_steps_of(pipe)
        pipe.scheduler.set_timesteps(7)
        for t in pipe.progress_bar(pipe.scheduler.timesteps):
            pipe.unet(torch.ones(1, 4, 8, 8), t, torch.ones(1, 7, 24))
    assert full == [True, False, False, True, False, False, True]


def test_unsupported_options_are_refused_by_name():
    with pytest.raises(ValueError, match="no pipeline"):
        DeepCacheSDHelper().enable()
    with pytest.raises(ValueError, match="has no unet"):
        DeepCacheSDHelper(object()).enable()
    with pytest.raises(ValueError, match="own loop"):
        DeepCacheSDHelper(FAMILIES["sd"].pair()[1]).enable()
    pipe = sd()
    pipe.unet = stock_unet("sd15", down_block_types=("SimpleCrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    with pytest.raises(ValueError, match="SimpleCrossAttnDownBlock2D"):
        DeepCacheSDHelper(pipe).enable()
    pipe.unet = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="Linear"):
        DeepCacheSDHelper(pipe).enable()
    assert "progress_bar" not in vars(pipe)


WRONG = [
    ({"cache_interval": 0}, "cache_interval"),
    ({"cache_branch_id": -1}, "cache_branch_id"),
    ({"skip_mode": "sometimes"}, "skip_mode"),
    ({"skip_mode": "non_uniform", "center": 3}, "pow"),
    ({"pow": 1.4, "center": 3}, "non-uniform"),
    ({"cache_steps": [1, 2]}, "begin with 0"),
]


@pytest.mark.parametrize(("settings", "said"), WRONG)
def test_a_wrong_parameter_is_named_when_it_is_set(settings, said):
    with pytest.raises(ValueError, match=said):
        DeepCacheSDHelper(sd()).set_params(**settings)


def test_errors_that_depend_on_the_run_are_raised_when_it_begins():
    pipe = sd()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_branch_id=12)
    with pytest.raises(ValueError, match="cache_branch_id is 12"):
        helper.enable()
    helper.set_params(cache_steps=[0, 20])
    with helper, pytest.raises(ValueError, match="20"):
        FAMILIES["sd"].run(pipe)


def test_a_pipeline_that_calls_its_unet_several_times_a_step_is_refused():
    pipe = sd()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=2)
    with helper, pytest.raises(ValueError, match="more than once a step"):
        pipe.scheduler.set_timesteps(3)
        with pipe.progress_bar(total=3):
            for _ in range(4):
                pipe.unet(torch.ones(1, 4, 8, 8), 1, torch.ones(1, 7, 24))


def test_layers_exchanged_while_it_is_enabled_stay_exchanged():
    pipe = sd()
    with DeepCacheSDHelper(pipe):
        pipe.unet.conv_in = new = torch.nn.Conv2d(4, 8, 3, padding=1)
    assert pipe.unet.conv_in is new


def test_on_a_unet_that_is_a_fork_already_it_can_be_enabled_again():
    """As when a stock pipeline is built from the parts of a forked one."""
    stock, fork = FAMILIES["sd"].pair("plms")
    stock.unet = fork.unet
    helper = DeepCacheSDHelper(stock)
    helper.set_params(cache_interval=2)
    expected = FAMILIES["sd"].run(fork, cache_interval=2)
    for _ in range(3):
        with helper:
            assert np.array_equal(FAMILIES["sd"].run(stock), expected)
    assert not fork.unet._forward_hooks


def test_a_second_helper_on_the_same_pipeline_is_refused():
    pipe = sd()
    one, two = DeepCacheSDHelper(pipe), DeepCacheSDHelper(pipe)
    one.set_params(cache_interval=4)
    with one:
        cached = FAMILIES["sd"].run(pipe)
        with pytest.raises(ValueError, match="another helper"):
            two.enable()
        assert np.array_equal(FAMILIES["sd"].run(pipe), cached)
    two.enable()
    two.disable()


def test_a_unet_that_the_user_puts_there_meanwhile_stays():
    pipe = sd()
    other = sd().unet
    with DeepCacheSDHelper(pipe):
        pipe.unet = other
    assert pipe.unet is other


def test_a_part_that_is_new_while_it_is_enabled_is_on_the_stock_unet_too():
    """As the projection of an IP-Adapter that is loaded then."""
    pipe = sd()
    assert pipe.unet.encoder_hid_proj is None
    with DeepCacheSDHelper(pipe):
        pipe.unet.encoder_hid_proj = new = torch.nn.Linear(2, 2)
    assert pipe.unet.encoder_hid_proj is new


def test_a_compiled_forward_is_refused():
    pipe = sd()
    pipe.unet.forward = torch.compile(pipe.unet.forward, backend="eager")
    with pytest.raises(ValueError, match="compiling"):
        DeepCacheSDHelper(pipe).enable()
