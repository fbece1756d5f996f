"""The node in a stand-in for ComfyUI: whatever comes between two steps, no stale feature is used.

Every call of a sampling is made again by hand: a full step's output must be the U-Net's own, a retrieve step's what the
blocks d_0 … d_m and u_m … u_0 make of the feature of the last full step of the same condition, both bit for bit.
"""

import importlib
import json
import sys
import tomllib
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from tests import comfy_stand_in as comfy
from tests.comfy_stand_in import Condition, ModelPatcher, sample
from tests.layout import ROOT
from tests.ldm_unet import of_diffusers
from tests.tiny import stock_unet

SIGMAS = [10.0, 7.0, 5.0, 3.0, 2.0, 1.0, 0.0]
FULL, RETRIEVE = True, False
EVERY_THIRD = [FULL, RETRIEVE, RETRIEVE] * 2
M = 12
FOLDER = ROOT / "integrations" / "comfyui"


@pytest.fixture(scope="module")
def package():
    """The integration, loaded as ComfyUI loads it."""
    with comfy.installed():
        for name in [name for name in sys.modules if name.startswith("integrations.comfyui")]:
            del sys.modules[name]
        yield importlib.import_module("integrations.comfyui")


@pytest.fixture(scope="module")
def unet():
    return of_diffusers(stock_unet(), comfy.UNetModel)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latents(size=8, batch=1):
    return random(batch, 4, size, size, seed=7)


def two_prompts(length=7, **control):
    """Conditional and unconditional, the second of 7 tokens."""
    return [Condition(0, random(1, length, 24, seed=1), **control), Condition(1, random(1, 7, 24, seed=2))]


def with_node(package, unet, model=None, interval=3, branch=1, forecast=0.0, refresh=(0, 5), start=0.0, end=1.0):
    node = package.NODE_CLASS_MAPPINGS["DeepCache"]()
    model = model or ModelPatcher(unet)
    (cached,) = getattr(node, node.FUNCTION)(model, interval, branch, forecast, *refresh, start, end)
    return cached


def residuals(unet, size=8, batch=1):
    """A ControlNet's, one for each skip and one for the middle, in the order in which ComfyUI has them."""
    skips, h = [], latents(size, batch)
    emb = torch.zeros(batch, 4 * unet.model_channels)
    for block in unet.input_blocks:
        h = block(h, emb, random(batch, 7, 24))
        skips.append(h)
    made = [random(*skip.shape, seed=100 + k) for k, skip in enumerate(skips)]
    return {"input": [], "middle": [random(*h.shape, seed=99)], "output": made}


def called(unet, call):
    """Makes the call again, with the arguments of a cache."""
    blocks = importlib.import_module("integrations.comfyui.unet_call")
    return lambda *step: blocks.ComfyCall(unet, *call.arguments, {}, {}).forward(*step)


def by_hand(unet, calls, m=1):
    """Fails unless every call is what it should be with the feature of the same condition's last full call."""
    kept: dict[int, torch.Tensor] = {}
    for call in calls:
        x, timesteps, context, y, control = call.arguments
        forward = called(unet, call)
        if call.is_full:
            stock = {} if control is None else {name: list(rs) for name, rs in control.items()}
            assert torch.equal(call.output, unet._forward(x, timesteps, context, y, stock, {}))
            features = forward(m).cached_feature.chunk(len(call.numbers))
            kept |= dict(zip(call.numbers, features, strict=True))
        else:
            assert torch.equal(call.output, forward(m, torch.cat([kept[n] for n in call.numbers])).sample)


def kinds(calls):
    return [call.is_full for call in calls]


def test_every_third_step_is_full_and_interval_1_is_no_cache(package, unet):
    given = (latents(), two_prompts(), SIGMAS)
    calls = sample(with_node(package, unet), *given)
    assert kinds(calls) == EVERY_THIRD
    by_hand(unet, calls)
    stock, uncached = sample(ModelPatcher(unet), *given), sample(with_node(package, unet, interval=1), *given)
    assert all(torch.equal(a.output, b.output) for a, b in zip(stock, uncached, strict=True))
    assert not torch.equal(stock[-1].output, calls[-1].output)


@pytest.mark.parametrize("order", [[[0], [1]], [[1], [0]]], ids=str)
def test_two_prompts_of_different_length(package, unet, order):
    calls = sample(with_node(package, unet), latents(), two_prompts(11), SIGMAS, lambda _: order)
    assert kinds(calls) == [kind for kind in EVERY_THIRD for _ in range(2)]
    by_hand(unet, calls)


def test_a_batch_that_is_split_and_joined_in_any_order(package, unet):
    orders = [[[0, 1]], [[1], [0]], [[1, 0]], [[0], [1]], [[0, 1]], [[1, 0]]]
    calls = sample(with_node(package, unet), latents(), two_prompts(), SIGMAS, lambda call: orders[call])
    assert kinds(calls) == [FULL, RETRIEVE, RETRIEVE, RETRIEVE, FULL, FULL, RETRIEVE, RETRIEVE]
    by_hand(unet, calls)


@pytest.mark.parametrize("on", [{7.0, 5.0}, {5.0, 3.0, 2.0}, {10.0, 7.0}], ids=str)
def test_a_control_net_that_begins_and_ends_makes_full_steps(package, unet, on):
    given = residuals(unet)
    calls = sample(
        with_node(package, unet), latents(),
        two_prompts(control=lambda sigma: given if sigma in on else None), SIGMAS, lambda _: [[0], [1]],
    )  # fmt: skip
    by_hand(unet, calls)
    conditional = [call for call in calls if call.numbers == [0]]
    for before, call in pairwise(conditional):
        if (before.sigma in on) != (call.sigma in on):
            assert call.is_full
    assert kinds(calls[1::2]) == EVERY_THIRD  # the unconditional has none


def test_a_second_sampling_of_another_size_and_after_an_error(package, unet):
    model = with_node(package, unet)
    for size, batch in ((8, 1), (16, 1), (8, 2)):
        calls = sample(model, latents(size, batch), two_prompts(), SIGMAS[:5], lambda _: [[0], [1]])
        assert kinds(calls[::2]) == EVERY_THIRD[:4]
        by_hand(unet, calls)
    failing = two_prompts(control=lambda sigma: 1 / 0 if sigma < 6 else None)
    with pytest.raises(ZeroDivisionError):
        sample(model, latents(), failing, SIGMAS)
    calls = sample(model, latents(), two_prompts(), SIGMAS[1:])
    assert kinds(calls) == EVERY_THIRD[:5]
    by_hand(unet, calls)


@pytest.mark.parametrize("between", [(0.5,), (1.0,)], ids=["midpoint", "twice at a sigma"])
def test_a_sampler_that_calls_the_model_twice_a_step(package, unet, between):
    """The second call of a step retrieves what an earlier second call kept, or is full."""
    calls = sample(with_node(package, unet), latents(), two_prompts(), SIGMAS, between=between)
    kept: dict[int, torch.Tensor] = {}
    calls_at: Counter[int] = Counter()
    for call in calls:
        position = max(i for i, sigma in enumerate(SIGMAS) if sigma >= call.sigma * 0.999)
        number = calls_at[position]
        calls_at[position] += 1
        expected = position % 3 == 0 or number not in kept
        assert call.is_full == expected, (call.sigma, number)
        found = called(unet, call)(1, None if expected else kept[number])
        assert torch.equal(call.output, found.sample)
        if expected:
            kept[number] = found.cached_feature


def test_a_sampler_that_goes_back_to_more_noise(package, unet):
    calls = sample(with_node(package, unet), latents(), two_prompts(), [10.0, 7.0, 5.0, 7.0, 5.0, 3.0, 0.0])
    # By their sigmas at the positions 0, 2, 4, 2, 4, 5, where 3 would have been full.
    assert kinds(calls) == [FULL, RETRIEVE, FULL, FULL, FULL, RETRIEVE]
    by_hand(unet, calls)


def test_a_sampling_within_a_sampling_leaves_the_outer_one_its_features(package, unet):
    model = with_node(package, unet)
    inner: list[comfy.Called] = []
    within: list[float] = []

    def control(sigma):
        if sigma == 7.0 and not within:
            within.append(sigma)
            inner[:] = sample(model, latents(), two_prompts()[:1], SIGMAS, lambda _: [[0]])
        return None

    outer = sample(model, latents(), two_prompts(control=control), SIGMAS)
    assert kinds(outer) == kinds(inner) == EVERY_THIRD
    by_hand(unet, outer)
    by_hand(unet, inner)


def test_a_feature_is_of_one_condition_shape_type_window_and_kind_of_control_net(package):
    keys = importlib.import_module("integrations.comfyui.sampling")._keys
    x, given = latents(), {"cond_or_uncond": [0], "uuids": ["a"]}
    window = {"context_window": SimpleNamespace(index_list=[0, 1])}
    found = [
        keys(x, None, given), keys(x, None, {**given, "cond_or_uncond": [1]}), keys(x, None, {**given, "uuids": ["b"]}),
        keys(latents(16), None, given), keys(latents(batch=2), None, given), keys(x.half(), None, given),
        keys(x, None, given | window), keys(x, {"middle": [x]}, given), keys(x, {"output": [x]}, given),
    ]  # fmt: skip
    assert len({key for (key,) in found}) == len(found)
    off = {"input": [], "middle": [None], "output": [None]}
    assert keys(x, off, given) == keys(x, None, given)
    both = keys(torch.cat([x, x]), None, {"cond_or_uncond": [1, 0], "uuids": ["b", "a"]})
    assert both == [*keys(x, None, {"cond_or_uncond": [1], "uuids": ["b"]}), *keys(x, None, given)]


def test_a_condition_that_was_away_while_the_others_had_a_full_step_is_full(package, unet):
    orders = [[[0], [1]], [[0], [1]], [[0]], [[0]], [[0], [1]], [[0], [1]]]
    calls = sample(with_node(package, unet), latents(), two_prompts(), SIGMAS, lambda call: orders[call])
    assert [c.is_full for c in calls if c.numbers == [1]] == [FULL, RETRIEVE, FULL, RETRIEVE]
    by_hand(unet, calls)


@pytest.mark.parametrize("m", range(M))
def test_control_nets_and_other_nodes_patches_are_as_without_a_cache(package, unet, m):
    """With the same input at every step, what is retrieved is what would have been computed."""
    given = residuals(unet, batch=2)
    seen = []
    model = ModelPatcher(unet)

    def freeu(h, skip, options):
        seen.append((options["block"], options["transformer_index"]))
        h[:, : h.shape[1] // 2] *= 1.1  # in place, as FreeU's node does
        return h, skip * 0.9

    model.patches = {
        "input_block_patch": [lambda h, options: h * (1.05 if options["block"][1] == 1 else 1)],
        "input_block_patch_after_skip": [lambda h, options: h * 0.97],
        "output_block_patch": [freeu],
        "emb_patch": [lambda emb, channels, options: emb + 0.1],
    }
    conditions = two_prompts(control=lambda sigma: given)
    run = (latents(), conditions, [9.0, 5.0, 0.0])
    stock = sample(model, *run, frozen=True)
    all_seen = seen.copy()
    seen.clear()
    calls = sample(with_node(package, unet, model, branch=m, interval=2), *run, frozen=True)
    assert kinds(calls) == [FULL, RETRIEVE]
    assert all_seen[:M] == seen[:M]
    assert seen[M:] == all_seen[M - 1 - m : M]  # the blocks that run, by their own numbers
    assert torch.equal(calls[0].output, stock[0].output)
    assert all(torch.equal(a.output, b.output) for a, b in zip(calls, stock, strict=True))
    shallow = [*(("input", k) for k in range(m + 1)), *(("output", M - 1 - k) for k in range(m + 1))]
    assert calls[1].blocks == [block for block in calls[0].blocks if block[:2] in shallow]


def test_start_and_end_leave_steps_uncached(package, unet):
    calls = sample(with_node(package, unet, start=0.4, end=0.85), latents(), two_prompts(), SIGMAS)  # sigmas 6 to 1.5
    assert kinds(calls) == [FULL, FULL, FULL, RETRIEVE, RETRIEVE, FULL]
    calls = sample(with_node(package, unet, start=0.95, end=0.96), latents(), two_prompts(), SIGMAS)
    assert all(kinds(calls))


def test_forecast_and_two_depths_run_as_in_the_method(package, unet):
    calls = sample(with_node(package, unet, forecast=1.0, refresh=(2, 5), interval=5), latents(), two_prompts(), SIGMAS)
    assert kinds(calls) == [FULL, *[RETRIEVE] * 4, FULL]
    deep = {i: len([b for b in call.blocks if b[0] == "input"]) for i, call in enumerate(calls)}
    assert deep[1] == deep[3] < deep[2] == deep[4] < deep[0]


def test_wrappers_of_other_nodes_run_and_a_second_node_replaces_the_first(package, unet):
    for first in (True, False):
        seen: list[torch.Size] = []
        model = ModelPatcher(unet)

        def other(executor, *args, seen=seen, **kwargs):
            seen.append(args[0].shape)
            return executor(*args, **kwargs)

        if first:
            model.add_wrapper_with_key("diffusion_model", "other", other)
        model = with_node(package, unet, with_node(package, unet, model, interval=2))
        if not first:
            model.add_wrapper_with_key("diffusion_model", "other", other)
        assert kinds(sample(model, latents(), two_prompts(), SIGMAS)) == EVERY_THIRD
        assert len(seen) == 6


def test_models_that_are_not_supported_are_refused_by_name(package, unet):
    class Flux(torch.nn.Module):
        pass

    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=Flux()))
    with pytest.raises(ValueError, match="has a Flux"):
        with_node(package, unet, model)
    for wrong in ({"branch": 12}, {"refresh": (2, 12)}, {"refresh": (2, 1)}):
        with pytest.raises(ValueError, match="_branch_id is 1"):
            with_node(package, unet, **wrong)


def test_the_workflow_uses_the_node_as_it_is(package):
    workflow = json.loads((FOLDER / "example_workflow.json").read_text(encoding="utf-8"))
    (node,) = [n for n in workflow.values() if n["class_type"] in package.NODE_CLASS_MAPPINGS]
    assert node["inputs"].keys() == package.NODE_CLASS_MAPPINGS["DeepCache"].INPUT_TYPES()["required"].keys()
    used = [value[0] for n in workflow.values() for value in n["inputs"].values() if isinstance(value, list)]
    assert {*used} <= {*workflow}


def test_what_the_registry_reads_is_there():
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["license"] == {"text": "Apache-2.0"}
    assert {"name", "version", "description"} <= project["project"].keys()
    assert {"PublisherId", "DisplayName"} <= project["tool"]["comfy"].keys()
    lines = (FOLDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if not line.startswith("#")]
