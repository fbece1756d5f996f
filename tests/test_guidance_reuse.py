"""Steps that run only the conditional half: against a loop written out here, and in the forks that have them."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.families import FAMILIES
from tests.recorders import batch_sizes_of
from tests.tiny_ldm import pipeline as ldm_pipeline
from tests.tiny_ldm import run as run_ldm
from unets import CacheConfig

SCALE = 6.0
PROMPT, NEGATIVE = "a large red ring", "a small blue circle"
NAMES = ["sd", "sd-img2img", "sd-inpaint", "xl", "xl-refiner", "xl-inpaint-9", "svd"]


def by_hand(pipe, steps, full, *, reuse, stop, m=1, g=0.0):
    """The images' latents: DDIM, the cache, guidance and the delta's line, each written out."""
    positive, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
    pipe.scheduler.set_timesteps(steps)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    features: list[tuple[int, torch.Tensor]] = []  # of both halves, or of the conditional alone where it ran alone
    deltas: list[tuple[int, torch.Tensor]] = []

    def line(pairs, i, g):
        (before, a), (last, b) = pairs[-2:] if len(pairs) > 1 else (pairs[0], pairs[0])
        return b if last == before else b + g * (b - a) * (i - last) / (last - before)

    for i, t in enumerate(pipe.scheduler.timesteps):
        late = i >= stop * steps
        conditional_only = late or (reuse and i not in full)
        kept = [(k, f[-1:] if conditional_only else f) for k, f in features]
        feature = None if i in full else line(kept, i, g)
        texts = positive if conditional_only else torch.cat([negative, positive])
        latents = x if conditional_only else torch.cat([x, x])
        output = pipe.unet(latents, t, texts, cache_branch_id=m, cached_feature=feature)
        if i in full:
            features.append((i, output.cached_feature))
        if conditional_only:
            noise = output.sample + (SCALE - 1) * line(deltas, i, 0.0 if late else g)
        else:
            unconditional, conditional = output.sample.chunk(2)
            deltas.append((i, conditional - unconditional))
            noise = unconditional + SCALE * (conditional - unconditional)
        x = pipe.scheduler.step(noise, t, x).prev_sample
    return x


@pytest.mark.parametrize("g", [0.0, 1.0])
@pytest.mark.parametrize(("reuse", "stop"), [(True, 1.0), (False, 0.5), (True, 0.7)])
def test_it_is_the_loop_written_out_here(reuse, stop, g):
    _, fork = FAMILIES["sd"].pair("ddim")
    expected = by_hand(fork, 12, range(0, 12, 3), reuse=reuse, stop=stop, g=g)
    found = fork(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=12, guidance_scale=SCALE, output_type="latent",
        generator=torch.Generator().manual_seed(1), cache_interval=3, cache_branch_id=1, reuse_guidance=reuse,
        guidance_stop=stop, forecast=g,
    ).images  # fmt: skip
    # The loop above adds the delta in another order, in float32, at a guidance scale of 6.
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_every_fork_runs_half_the_batch_where_it_says_so(name):
    family = FAMILIES[name]
    _, fork = family.pair("euler" if name == "svd" else "ddim")
    settings: dict[str, Any] = {"steps": 10, "cache_interval": 3, "cache_branch_id": 1, family.guidance: 4.0}
    plain = family.run(fork, **settings)
    batch_sizes = batch_sizes_of(fork)
    assert np.array_equal(family.run(fork, **settings, reuse_guidance=False, guidance_stop=1.0), plain)
    calls = len(batch_sizes)
    assert set(batch_sizes) == {2}
    for reuse, stop in ((True, 1.0), (False, 0.5), (True, 0.5)):
        batch_sizes.clear()
        images = family.run(fork, **settings, reuse_guidance=reuse, guidance_stop=stop, forecast=1.0)
        assert batch_sizes == [2 if i < stop * calls and (i % 3 == 0 or not reuse) else 1 for i in range(calls)]
        assert np.isfinite(images).all() and not np.array_equal(images, plain)


def test_ldm_runs_half_the_batch_where_it_says_so():
    pipe = ldm_pipeline()
    plain = run_ldm(pipe, cache_interval=4)
    batch_sizes = batch_sizes_of(pipe)
    images = run_ldm(pipe, cache_interval=4, reuse_guidance=True, guidance_stop=0.8)
    assert batch_sizes == [4, 2, 2, 2, 4, 2, 2, 2, 2, 2]
    assert np.isfinite(images).all() and not np.array_equal(images, plain)


def test_the_half_that_is_run_is_told_what_it_is_told_beside_the_other():
    _, fork = FAMILIES["xl"].pair("ddim")
    told = []
    fork.unet.register_forward_pre_hook(
        lambda _, __, kwargs: told.append([kwargs["encoder_hidden_states"], *kwargs["added_cond_kwargs"].values()]),
        with_kwargs=True,
    )
    settings: dict[str, Any] = {
        "negative_prompt": NEGATIVE,
        "negative_original_size": (20, 24),
        "negative_target_size": (32, 32),
    }
    FAMILIES["xl"].run(fork, 4, cache_interval=2, reuse_guidance=True, guidance_scale=4.0, **settings)
    both, alone = told[:2]
    assert len(both) == 3
    for whole, half in zip(both, alone, strict=True):
        assert torch.equal(half, whole.chunk(2)[1])
        assert not torch.equal(half, whole.chunk(2)[0])


@pytest.mark.parametrize("name", ["sd", "xl", "svd"])
def test_without_guidance_there_is_nothing_to_leave_out(name):
    family = FAMILIES[name]
    _, fork = family.pair("euler" if name == "svd" else "ddim")
    settings: dict[str, Any] = {"steps": 6, "cache_interval": 3, family.guidance: 1.0}
    plain = family.run(fork, **settings)
    assert np.array_equal(family.run(fork, **settings, reuse_guidance=True, guidance_stop=0.5), plain)


def test_guidance_rescale_and_interval_1_go_with_it():
    _, fork = FAMILIES["sd"].pair("ddim")
    settings: dict[str, Any] = {"steps": 6, "guidance_scale": SCALE, "guidance_stop": 0.5}
    plain = FAMILIES["sd"].run(fork, **settings)
    batch_sizes = batch_sizes_of(fork)
    assert not np.array_equal(FAMILIES["sd"].run(fork, **settings, guidance_rescale=0.7), plain)
    assert batch_sizes == [2, 2, 2, 1, 1, 1]


def test_the_first_step_runs_both_halves_whatever_is_asked():
    _, fork = FAMILIES["sd"].pair("ddim")
    batch_sizes = batch_sizes_of(fork)
    FAMILIES["sd"].run(fork, 4, guidance_stop=0.0)
    assert batch_sizes == [2, 1, 1, 1]


def test_a_callback_can_switch_guidance_off_in_the_middle():
    _, fork = FAMILIES["sd"].pair("ddim")
    batch_sizes = batch_sizes_of(fork)

    def stop(pipe, i, t, values):
        if i != 2:
            return {}
        pipe._guidance_scale = 1.0
        return {"prompt_embeds": values["prompt_embeds"].chunk(2)[1]}

    images = FAMILIES["sd"].run(
        fork, 6, cache_interval=5, reuse_guidance=True, forecast=1.0, callback_on_step_end=stop,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )  # fmt: skip
    assert batch_sizes == [2, 1, 1, 1, 1, 1]
    assert np.isfinite(images).all()


@pytest.mark.parametrize("stop", [-0.1, 1.5, float("nan")])
def test_a_stop_out_of_range_is_named(stop):
    with pytest.raises(ValueError, match=f"guidance_stop is {stop}; it must be (0 to 1|a finite number)"):
        CacheConfig(guidance_stop=stop)
