"""The clock, the order of runs, and the statistics of seconds."""

import time

import pytest
import torch

from common.timing import alternate, pairwise, spread, time_call
from pipelines import StableDiffusionPipeline
from tests.tiny import parts


def test_calls_are_made_in_turn():
    order = []

    def call(name):
        order.append(name)
        return len(order)

    assert alternate([lambda: call("A"), lambda: call("B")], 3) == [[1, 3, 5], [2, 4, 6]]
    assert order == ["A", "B"] * 3


def test_a_speed_up_is_the_median_of_the_ratios_of_pairs():
    # Pairs 4/2, 9/3, 40/8: a machine that slows down for both of a pair does not change the ratio.
    assert pairwise([4, 9, 40], [2, 3, 8]) == {"median": 3, "min": 2, "max": 5}
    assert spread([3, 1, 2]) == {"median": 2, "min": 1, "max": 3}


def test_every_part_of_a_call_is_timed_and_the_parts_fit_into_the_whole():
    pipe = StableDiffusionPipeline(**parts())
    pipe.set_progress_bar_config(disable=True)
    images, whole, (times,) = time_call(
        [pipe],
        lambda: pipe("a red ring", num_inference_steps=6, cache_interval=3, output_type="np", return_dict=False)[0],
        torch.device("cpu"),
    )
    assert images.shape == (1, 64, 64, 3)
    assert (len(times.full_steps), len(times.retrieve_steps)) == (2, 5)
    assert len(times.text) == 2  # prompt and empty prompt
    assert len(times.vae) == 1
    assert 0 < times.unet + sum(times.text) + sum(times.vae) < whole
    assert not pipe.unet._forward_hooks
    assert not pipe.unet._forward_pre_hooks


def test_hooks_are_gone_after_an_exception():
    pipe = StableDiffusionPipeline(**parts())
    with pytest.raises(ZeroDivisionError):
        time_call([pipe], lambda: 1 / 0, torch.device("cpu"))
    assert not pipe.unet._forward_hooks


def test_seconds_are_seconds():
    _, whole, _ = time_call([StableDiffusionPipeline(**parts())], lambda: time.sleep(0.05), torch.device("cpu"))
    assert 0.05 <= whole < 5
