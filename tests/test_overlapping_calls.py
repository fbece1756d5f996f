"""Calls within calls, in threads, and after calls that died: each gives the same as alone, or is refused."""

import copy
import threading
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import pipelines
from tests.two_levels import small
from unets import DeepCacheSDHelper

FAMILY = small("sd")
CACHE: dict[str, Any] = {"cache_interval": 3, "cache_branch_id": 1}
OTHER: dict[str, Any] = {"prompt": "a small blue square", "guidance_scale": 3.0}


def helped(scheduler="plms", pipe=None, **cache):
    """A stock pipeline with the plug-in on, and its helper."""
    pipe = FAMILY.pair(scheduler)[0] if pipe is None else pipe
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(**{**CACHE, **cache})
    helper.enable()
    return pipe, helper


def beside(pipe, cls=diffusers.StableDiffusionPipeline):
    """Another pipeline with the same parts, but its own scheduler."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    other = cls(**{**pipe.components, "scheduler": scheduler}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def after_every_step(act, old_kind=False) -> dict[str, Any]:
    """As an argument of a pipeline's call."""
    if old_kind:
        return {"callback": lambda *_: act(), "callback_steps": 1}

    def callback(pipe, i, t, values):
        act()
        return values

    return {"callback_on_step_end": callback}


@pytest.mark.parametrize("old_kind", [False, True])
@pytest.mark.parametrize("scheduler", ["ddim", "plms"])
def test_with_the_plug_in_a_call_in_a_callback_of_the_same_pipeline_is_refused_and_harms_nothing(scheduler, old_kind):
    pipe, _ = helped(scheduler)
    expected, refused = FAMILY.run(pipe), []

    def call():
        with pytest.raises(RuntimeError, match="already running; use a separate pipeline") as error:
            FAMILY.run(pipe, 5, **OTHER)
        refused.append(error)

    assert np.array_equal(FAMILY.run(pipe, **after_every_step(call, old_kind)), expected)
    assert len(refused) == 8 + (scheduler == "plms" and not old_kind)


def test_with_the_plug_in_a_call_in_another_thread_is_refused_and_harms_nothing():
    pipe, _ = helped()
    expected, errors = FAMILY.run(pipe), []

    def call():
        try:
            FAMILY.run(pipe, 5, **OTHER)
        except RuntimeError as error:
            errors.append(str(error))

    def in_a_thread():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    assert np.array_equal(FAMILY.run(pipe, **after_every_step(in_a_thread)), expected)
    assert len(errors) == 9
    assert all("for each thread" in error for error in errors)
    assert np.array_equal(FAMILY.run(pipe), expected)


@pytest.mark.parametrize("inner_helped", [True, False])
def test_with_the_plug_in_a_call_in_a_callback_of_another_pipeline_over_the_same_unet_is_as_alone(inner_helped):
    outer, _ = helped()
    inner = beside(outer)  # over what the plug-in put in the U-Net's place
    if inner_helped:
        helped(pipe=inner, cache_interval=2)
    alone = FAMILY.run(outer), FAMILY.run(inner, 5, **OTHER)
    within = []
    assert np.array_equal(
        FAMILY.run(outer, **after_every_step(lambda: within.append(FAMILY.run(inner, 5, **OTHER)))), alone[0]
    )
    assert len(within) == 9
    assert all(np.array_equal(image, alone[1]) for image in within)


def test_with_the_plug_in_a_call_is_refused_once_its_scheduler_was_set_for_another_pipeline():
    """Without it, diffusers goes on with what the other call left in the scheduler."""
    pipe, _ = helped()
    other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    expected = FAMILY.run(pipe)
    with pytest.raises(RuntimeError, match="its own scheduler"):
        FAMILY.run(pipe, **after_every_step(lambda: FAMILY.run(other, 5, **OTHER)))
    assert np.array_equal(FAMILY.run(pipe), expected)


def in_step(runs):
    """What runs return that go step by step together, each in a thread; each takes arguments of a pipeline's call."""
    barrier, results = threading.Barrier(len(runs)), [None] * len(runs)

    def work(k):
        with torch.no_grad():  # which is of the thread
            results[k] = runs[k](**after_every_step(lambda: barrier.wait(timeout=60)))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_with_the_plug_in_pipelines_over_one_unet_run_in_threads_as_alone():
    first, _ = helped()
    third = beside(first)  # has no plug-in, but the first's U-Net
    second, _ = helped(pipe=beside(first), cache_interval=2, cache_branch_id=3)
    runs = [
        lambda **extra: FAMILY.run(first, **extra),
        lambda **extra: FAMILY.run(second, **OTHER, **extra),
        lambda **extra: FAMILY.run(third, **extra),
    ]
    expected = [run() for run in runs]
    assert not np.array_equal(expected[0], expected[2])
    for result, image in zip(in_step(runs), expected, strict=True):
        assert np.array_equal(result, image)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_with_the_plug_in_the_call_after_one_that_died_is_as_alone(error):
    pipe, helper = helped()
    expected = FAMILY.run(pipe)

    def die():
        raise error

    hook = pipe.unet.mid_block.register_forward_pre_hook(lambda *_: die())
    with pytest.raises(error):
        FAMILY.run(pipe)
    hook.remove()
    with pytest.raises(error):
        FAMILY.run(pipe, **after_every_step(die))
    assert np.array_equal(FAMILY.run(pipe), expected)
    helper.disable()
    assert type(pipe) is diffusers.StableDiffusionPipeline


def steps(pipe):
    """A loop by hand, from which the caller can go at any step."""
    pipe.scheduler.set_timesteps(8)
    latents = torch.ones(1, 4, 8, 8)
    for t in pipe.progress_bar(pipe.scheduler.timesteps):
        noise = pipe.unet(latents, t, torch.ones(1, 7, 24)).sample
        latents = pipe.scheduler.step(noise, t, latents).prev_sample
        yield latents


def test_with_the_plug_in_a_loop_that_is_left_early_is_over_once_it_is_closed():
    pipe, _ = helped("ddim")
    expected, whole = FAMILY.run(pipe), list(steps(pipe))
    for _ in zip(range(3), steps(pipe), strict=False):
        pass
    assert np.array_equal(FAMILY.run(pipe), expected)
    held = steps(pipe)
    next(held)
    with pytest.raises(RuntimeError, match="already running"):
        FAMILY.run(pipe)
    held.close()
    assert np.array_equal(FAMILY.run(pipe), expected)
    assert all(torch.equal(a, b) for a, b in zip(steps(pipe), whole, strict=True))


def test_with_the_plug_in_on_a_pipeline_of_the_same_class_and_a_copy_can_be_made():
    pipe, helper = helped()
    expected = FAMILY.run(pipe)
    other, duplicate = beside(pipe, type(pipe)), copy.deepcopy(pipe)
    within = []
    FAMILY.run(pipe, **after_every_step(lambda: within.append(FAMILY.run(other, 3))))
    helper.disable()
    assert np.array_equal(within[0], FAMILY.run(pipe, 3))
    assert np.array_equal(FAMILY.run(duplicate), expected)


@pytest.mark.parametrize("scheduler", ["plms", "dpm++"])
def test_forks_over_one_unet_called_in_a_callback_are_as_alone(scheduler):
    """Each with its own scheduler, which holds a call's state, as in diffusers."""
    outer = FAMILY.pair(scheduler)[1]
    inner = beside(outer, pipelines.StableDiffusionPipeline)
    alone = FAMILY.run(outer, **CACHE), FAMILY.run(inner, 5, **OTHER, cache_interval=2)
    within = []
    call = after_every_step(lambda: within.append(FAMILY.run(inner, 5, **OTHER, cache_interval=2)))
    assert np.array_equal(FAMILY.run(outer, **CACHE, **call), alone[0])
    assert all(np.array_equal(image, alone[1]) for image in within)


def test_forks_over_one_unet_run_in_threads_as_alone():
    first = FAMILY.pair("plms")[1]
    second = beside(first, pipelines.StableDiffusionPipeline)
    stock = beside(first)
    runs = [
        lambda **extra: FAMILY.run(first, **CACHE, forecast=1.0, reuse_guidance=True, **extra),
        lambda **extra: FAMILY.run(second, cache_interval=2, **OTHER, **extra),
        lambda **extra: FAMILY.run(stock, **extra),
    ]
    expected = [run() for run in runs]
    for result, image in zip(in_step(runs), expected, strict=True):
        assert np.array_equal(result, image)


def test_a_fork_is_as_alone_in_a_callback_of_itself_where_the_stock_pipeline_is():
    """With the same arguments and DDIM, which keeps nothing from step to step."""
    for cache, pipe in zip(({}, CACHE), FAMILY.pair("ddim"), strict=True):
        alone = FAMILY.run(pipe, **cache)
        within: list[Any] = []
        call = after_every_step(lambda cache=cache, pipe=pipe, w=within: w.append(FAMILY.run(pipe, **cache)))
        assert np.array_equal(FAMILY.run(pipe, **cache, **call), alone)
        assert all(np.array_equal(image, alone) for image in within)


def test_the_stock_pipeline_in_a_callback_of_itself_is_another_with_a_scheduler_that_remembers():
    """Which is why the plug-in refuses it, and why our forks can't do better."""
    stock = FAMILY.pair("plms")[0]
    alone = FAMILY.run(stock)
    assert not np.array_equal(FAMILY.run(stock, **after_every_step(lambda: FAMILY.run(stock, 8))), alone)
