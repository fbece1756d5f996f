"""On a simulated device, nothing mixes devices, no step waits for it, and pictures equal the CPU's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pipelines
from ddpm.sampler import ddim_sample, ddpm_sample, timesteps_of
from pipelines.loading import SCHEDULERS, new_scheduler
from tests import tiny_ddpm, tiny_ldm
from tests.absent_device import COPIED, DEVICE, DeviceTensor, absent_device
from tests.families import FAMILIES
from tests.two_levels import small
from unets import DeepCacheSDHelper, fork_of

PAPER: dict[str, Any] = {"cache_interval": 3, "cache_branch_id": 1}
FEATURES: dict[str, Any] = {
    "cache_interval": 3,
    "cache_branch_id": 1,
    "forecast": 1.0,
    "refresh_interval": 2,
    "refresh_branch_id": 3,
}
BEYOND = {**FEATURES, "reuse_guidance": True, "reuse_attention": True}
DEEPER = {**BEYOND, "cache_branch_id": 3, "refresh_branch_id": 5}  # for LDM's, without attention in the first layers
CHECK = "read by aten._linalg_check_errors.default"
NUMBERS = "copied to the device by torch.tensor"

# What waits in a step all the same, and can't be helped here.
SAMPLER_WAITS = {  # the same, of samplers: noise that a generator of the host draws
    "dpm++-sde": [COPIED],
    "euler": [COPIED],  # which diffusers 0.24.0's draws in every step, needed or not
    "euler-a": [COPIED],
    "lcm": [COPIED],
}
# Numbers of UniPC's that diffusers makes on the device, and a system of two equations that it solves there: in the
# first step, the second, and every other.
UNIPC_WAITS = [[NUMBERS] * 2, [NUMBERS] * 6, [NUMBERS] * 2 + [CHECK] + [NUMBERS] * 3]


def settings_of(name: str) -> list[dict[str, Any]]:
    """The paper's cache, and one with all beyond it that this pipeline has."""
    if name == "t2v-zero":
        return [PAPER]
    without = "reuse_guidance" if name.startswith("controlnet") else None
    return [PAPER, {key: value for key, value in BEYOND.items() if key != without}]


def short(name: str) -> dict[str, Any]:
    """Arguments of a run that is no longer than need be."""
    return {"steps": 8 if name == "t2v-zero" else 5} | ({"num_frames": 2} if name == "svd" else {})


def fork(name: str, scheduler: str) -> Any:
    parts = small(name).parts()
    parts["scheduler"] = new_scheduler(scheduler, parts["scheduler"].config)
    pipe = getattr(pipelines, small(name).class_name)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compare(pipe: Any, run: Callable[..., Any], settings: list[dict[str, Any]]) -> list[list[list[str]]]:
    """Runs on the CPU and on the device, whose pictures must be the same. Returns what waited, by setting and step."""
    expected = [run(pipe, **each) for each in settings]
    waits = []
    with absent_device() as watch:
        pipe.to("cuda")
        for each, picture in zip(settings, expected, strict=True):
            watch.follow(pipe.unet)
            assert np.array_equal(run(pipe, **each), picture)
            waits.append(watch.steps)
    return waits


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_waits_for_nothing(name):
    pipe = fork(name, "euler" if name == "svd" else "ddim")
    for steps in compare(pipe, lambda pipe, **cache: small(name).run(pipe, **short(name), **cache), settings_of(name)):
        if name == "t2v-zero":  # between the loops, the other frames get noise that a generator of the host draws
            assert [what for step in steps for what in step] == [COPIED]
        else:
            assert steps == [[]] * len(steps)
            assert len(steps) >= 2


def latents(pipe: Any, generator: bool = True, **settings: Any) -> Tensor:
    """Of six steps, without the decoder."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    seeded = {"generator": torch.Generator().manual_seed(1)} if generator else {}
    arguments = {"latents": noise, "num_inference_steps": 6, "output_type": "latent"}
    return pipe("a large red ring", **arguments, **seeded, **settings).images.cpu()


@pytest.fixture(scope="module")
def sd() -> tuple[Any, Any]:
    """The same pipeline on the CPU and on the device."""
    on_host, there = fork("sd", "plms"), fork("sd", "plms")
    with absent_device():
        there.to("cuda")
    return on_host, there


@pytest.mark.parametrize("settings", [PAPER, BEYOND], ids=["paper", "beyond"])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_a_sampler_waits_for_nothing(sampler, settings, sd):
    for pipe in sd:
        pipe.scheduler = new_scheduler(sampler, pipe.scheduler.config)
    expected = latents(sd[0], **settings)
    with absent_device() as watch:
        watch.follow(sd[1].unet)
        assert torch.equal(latents(sd[1], **settings), expected)
    others = len(watch.steps)
    if sampler == "unipc":
        assert watch.steps == [*UNIPC_WAITS[:2], *[UNIPC_WAITS[2]] * (others - 2)]
    else:
        assert watch.steps == [SAMPLER_WAITS.get(sampler, [])] * others
    assert others == {"plms": 6, "heun": 10}.get(sampler, 5)


def test_euler_waits_for_nothing_without_a_generator_of_the_host(sd):
    sd[1].scheduler = new_scheduler("euler", sd[1].scheduler.config)
    with absent_device() as watch:
        watch.follow(sd[1].unet)
        latents(sd[1], generator=False, **BEYOND)
    assert watch.steps == [[]] * 5


@pytest.mark.parametrize("plms", [False, True])
def test_ldm_waits_for_nothing(plms):
    pipe = tiny_ldm.pipeline(plms)
    for steps in compare(pipe, lambda *a, **cache: tiny_ldm.run(*a, num_inference_steps=5, **cache), [PAPER, DEEPER]):
        assert steps == [[]] * (5 if plms else 4)


@pytest.mark.parametrize("settings", [PAPER, FEATURES], ids=["paper", "beyond"])
@pytest.mark.parametrize("sampler", ["ddim", "ddim with noise", "ddpm"])
def test_ddpm_waits_for_nothing_but_noise(sampler, settings):
    unet, noise = fork_of(tiny_ddpm.stock_unet()), tiny_ddpm.sample()

    def run(noise: Tensor) -> Tensor:
        extra: dict[str, Any] = {"generators": [torch.Generator().manual_seed(k) for k in range(2)], **settings}
        extra |= {"eta": 0.5} if sampler == "ddim with noise" else {}
        return (ddpm_sample if sampler == "ddpm" else ddim_sample)(unet, noise, timesteps_of(5, "uniform"), **extra)

    expected = run(noise)
    with absent_device() as watch:
        unet.to("cuda")
        watch.follow(unet)
        assert torch.equal(run(noise.to("cuda")).cpu(), expected)
    assert watch.steps == [[] if sampler == "ddim" else [COPIED]] * 4


@pytest.mark.filterwarnings("ignore:Default grid_sample")  # diffusers'
@pytest.mark.parametrize("name", ["sd", "sd-inpaint", "svd", "t2v-zero", "controlnet"])
def test_the_helper_adds_no_waiting_to_a_stock_pipeline(name):
    """diffusers' own pipelines have their timesteps on the device, where their schedulers read them."""
    family = small(name)
    stock = family.stock()(**{**family.parts(), "scheduler": new_scheduler("ddim", family.parts()["scheduler"].config)})
    stock.set_progress_bar_config(disable=True)
    helper = DeepCacheSDHelper(stock)
    helper.set_params(**PAPER)
    with helper:
        expected = family.run(stock, **short(name))
    with absent_device() as watch:
        stock.to("cuda")
        watch.follow(stock.unet)
        family.run(stock, **short(name))
        plain = watch.steps
        watch.follow(stock.unet)
        with helper:  # whose fork has the hooks, too
            assert np.array_equal(family.run(stock, **short(name)), expected)
    assert len(watch.steps) == len(plain)
    for ours, theirs in zip(watch.steps, plain, strict=True):
        assert theirs and not Counter(ours) - Counter(theirs)


def test_control_a_tensor_of_the_host_among_the_embeddings_is_found(sd):
    def to_host(_: Any, __: int, ___: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": values["prompt_embeds"].cpu()}

    extra: dict[str, Any] = {"callback_on_step_end": to_host, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with absent_device(), pytest.raises(RuntimeError, match=r"linear.* expected all tensors on cuda:0"):
        latents(sd[1], **PAPER, **extra)


def test_control_a_hidden_number_is_counted(sd):
    sd[1].scheduler = new_scheduler("ddim", sd[1].scheduler.config)

    def look(_: Any, __: int, ___: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        assert float(values["latents"].max()) < 1e9
        return {}

    read = "read by aten._local_scalar_dense.default"
    with absent_device() as watch:
        watch.follow(sd[1].unet)
        latents(sd[1], **PAPER, callback_on_step_end=look)
        assert watch.steps == [[read]] * 5
        hook = sd[1].unet.mid_block.register_forward_hook(lambda _, __, h: None if h.max() < 1e9 else h)
        watch.follow(sd[1].unet)
        latents(sd[1], **PAPER)
        hook.remove()
    assert watch.steps == [[], [], [read], [], []]  # the steps retrieve but for two, and the first is not inside


WAITING: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x[0, 0].item(),
    "a comparison": lambda x: bool((x > 0).any()),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 0],
    "tolist": lambda x: x.tolist(),
    "to the host": lambda x: x.cpu(),
    "into the host": lambda x: torch.zeros(2, 3).copy_(x),
    "from the host": lambda x: x.copy_(torch.zeros(2, 3)),
    "a number to the device": lambda x: torch.tensor(1.0).to(x.device),
    "a list to the device": lambda x: torch.tensor([1.0], device=x.device),
    "an index of the host": lambda x: x[:, [0, 0]],
    "a number in a list": lambda x: torch.tensor([x[0, 0]]),
}
REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "sum": lambda x: x + torch.zeros(2, 3),
    "cat": lambda x: torch.cat([x, torch.zeros(1, 3)]),
    "an index of the device": lambda x: torch.zeros(3)[x[0].long()],
    "into a number of the host": lambda x: torch.zeros(()).add_(x[0, 0]),
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("what", WAITING)
def test_control_waits_are_recorded(what):
    with absent_device() as watch:
        WAITING[what](torch.ones(2, 3, device="cuda"))
    assert len(watch.waits[0]) == 1


@pytest.mark.parametrize("what", REFUSED)
def test_control_operations_that_cuda_refuses_are_refused(what):
    with absent_device(), pytest.raises((RuntimeError, TypeError), match=r"cuda:0"):
        REFUSED[what](torch.ones(2, 3, device="cuda"))


def test_control_numbers_of_the_host_are_let_through_and_the_device_stays():
    with absent_device() as watch:
        x = torch.ones(2, 3, device="cuda")
        x[0] = 2.0
        view = x[:, 1:]
        view.mul_(torch.tensor(3.0))
        made = torch.zeros_like(x, dtype=torch.float64) + x.to(torch.float64)
        assert watch.waits == [[]]
        assert all(isinstance(tensor, DeviceTensor) and tensor.device == DEVICE for tensor in (x, view, made))
        assert made.tolist() == [[2, 6, 6], [1, 3, 3]]
