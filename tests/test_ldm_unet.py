"""U-Nets of latent-diffusion's kind: their steps against the diffusers fork's on the same weights, and whole runs."""

import diffusers
import pytest
import torch

from tests.ldm_unet import UNetModel, of_diffusers
from tests.tiny import inputs, stock_unet
from unets import CacheConfig, UNet2DConditionModel
from unets.cache.run import CacheRun
from unets.ldm import CachedForward, LdmCall, LdmUNet

BRANCHES = range(12)


def same(a, b):
    """Bit for bit."""
    return torch.equal(a, b)


@pytest.fixture(scope="module")
def pair():
    stock = stock_unet()
    return UNet2DConditionModel.sharing(stock), of_diffusers(stock)


def arguments(seed=1, size=8):
    """Of the fork, and of the ldm-type U-Net: the same."""
    given = inputs(height=size, width=size)
    given["sample"] = torch.randn(given["sample"].shape, generator=torch.Generator().manual_seed(seed))
    timesteps = given["timestep"].expand(len(given["sample"]))
    return given, (given["sample"], timesteps, given["encoder_hidden_states"])


@torch.no_grad()
def test_the_test_s_u_net_is_the_fork_on_the_same_weights(pair):
    fork, unet = pair
    ours, theirs = arguments()
    assert same(unet(*theirs), fork(**ours).sample)


@torch.no_grad()
@pytest.mark.parametrize("m", BRANCHES)
def test_full_and_retrieve_steps_are_the_fork_s_at_every_branch(pair, m):
    fork, unet = pair
    ours, theirs = arguments()
    full, expected = LdmCall(unet, *theirs).forward(m), fork(**ours, cache_branch_id=m)
    assert same(full.sample, unet(*theirs))
    assert same(full.cached_feature, expected.cached_feature)
    feature = expected.cached_feature
    ours, theirs = arguments(seed=2)
    retrieved = LdmCall(unet, *theirs).forward(m, feature)
    expected = fork(**ours, cache_branch_id=m, cached_feature=feature)
    assert same(retrieved.sample, expected.sample)
    assert same(retrieved.cached_feature, feature)


@torch.no_grad()
@pytest.mark.parametrize("m", BRANCHES)
def test_retrieving_what_the_same_input_kept_changes_nothing(pair, m):
    _, unet = pair
    _, theirs = arguments()
    kept = LdmCall(unet, *theirs).forward(m).cached_feature
    assert same(LdmCall(unet, *theirs).forward(m, kept).sample, unet(*theirs))


@torch.no_grad()
def test_refresh_steps_are_the_fork_s(pair):
    fork, unet = pair
    for deep in (1, 4, 7, 11):
        ours, theirs = arguments()
        feature = fork(**ours, cache_branch_id=deep).cached_feature
        ours, theirs = arguments(seed=2)
        found = LdmCall(unet, *theirs).forward(deep, feature, deep - 1)
        expected = fork(**ours, cache_branch_id=deep, cached_feature=feature, keep_branch_id=deep - 1)
        assert same(found.sample, expected.sample)
        assert same(found.shallow_feature, expected.shallow_feature)


@torch.no_grad()
def test_a_retrieve_step_runs_d_0_to_d_m_and_u_m_to_u_0_and_nothing_else(pair):
    _, unet = pair
    _, theirs = arguments()
    ran: list[torch.nn.Module] = []
    blocks = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    hooks = [block.register_forward_hook(lambda module, *_: ran.append(module)) for block in blocks]
    for m in BRANCHES[::3]:
        feature = LdmCall(unet, *theirs).forward(m).cached_feature
        ran.clear()
        LdmCall(unet, *theirs).forward(m, feature)
        assert ran == [*blocks[: m + 1], *blocks[-1 - m :]]
    for hook in hooks:
        hook.remove()


# --- runs ------------------------------------------------------------------------------------------------------------


def ddim(predict, steps=7, size=8):
    """Pictures of a loop as CompVis's samplers have them, both halves of guidance in one batch."""
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear")
    scheduler.set_timesteps(steps)
    given = inputs(height=size, width=size)
    latents, text = given["sample"][:1], given["encoder_hidden_states"]
    for t in scheduler.timesteps:
        unconditional, conditional = predict(torch.cat([latents] * 2), t.expand(2), text).chunk(2)
        noise = unconditional + 3 * (conditional - unconditional)
        latents = scheduler.step(noise, t, latents).prev_sample
    return latents


def by_the_fork(fork, config, steps=7, **changes):
    """The same pictures by the fork and the cache of a forked pipeline."""
    cache, position = CacheRun(config, fork, steps, steps), iter(range(steps))

    def predict(x, t, text):
        step = cache.plan(next(position), len(x))
        return cache.take(step, None if step.skips else fork(x, t[0], text, **step.unet_arguments))

    return ddim(predict, steps, **changes)


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        CacheConfig(3, 1),
        CacheConfig(3, 0, forecast=1.0),
        CacheConfig(6, 1, refresh_interval=2, refresh_branch_id=5),
        CacheConfig(4, 2, skip_interval=2),
        CacheConfig(cache_steps=[0, 2, 3], cache_branch_id=4),
    ],
    ids=lambda config: config.name(),
)
def test_a_run_s_pictures_are_the_fork_s(pair, config):
    fork, unet = pair
    with CachedForward(unet, config, num_steps=7):
        found = ddim(unet)
    assert same(found, by_the_fork(fork, config))
    assert not same(found, ddim(unet))


@torch.no_grad()
def test_interval_1_is_the_u_net_s_own_and_the_end_leaves_it_as_it_was(pair):
    _, unet = pair
    expected, before = ddim(unet), dict(vars(unet))
    with CachedForward(unet, CacheConfig(1), num_steps=7):
        assert same(ddim(unet), expected)
    assert vars(unet) == before
    with pytest.raises(ZeroDivisionError), CachedForward(unet, CacheConfig(3), num_steps=7):
        unet(1 / 0)
    assert vars(unet) == before


@torch.no_grad()
def test_a_second_run_of_another_size_starts_anew(pair):
    _, unet = pair
    cached, expected = CachedForward(unet, CacheConfig(3, 1), num_steps=4), []
    for size in (8, 16):
        with CachedForward(unet, CacheConfig(3, 1), num_steps=4):
            expected.append(ddim(unet, steps=4, size=size))
    for size, pictures in zip((8, 16), expected, strict=True):
        with cached:
            assert same(ddim(unet, steps=4, size=size), pictures)


@torch.no_grad()
def test_another_size_within_a_run_is_a_full_step(pair):
    _, unet = pair
    calls = [arguments(seed=seed, size=size)[1] for seed, size in enumerate((8, 16, 8))]
    stock = [unet(*call) for call in calls]
    with CachedForward(unet, CacheConfig(4, 1), num_steps=4):
        found = [unet(*call) for call in calls]
    assert [same(*both) for both in zip(found, stock, strict=True)] == [True, True, False]
    assert same(found[2], LdmCall(unet, *calls[2]).forward(1, LdmCall(unet, *calls[0]).forward(1)[1]).sample)


def test_what_is_not_supported_is_refused_by_name(pair):
    _, unet = pair
    for config in (
        CacheConfig(3, reuse_attention=True), CacheConfig(3, reuse_guidance=True), CacheConfig(3, guidance_stop=0.5)
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{next(iter(config.extensions))} is not available"):
            CachedForward(unet, config, num_steps=7)
    with pytest.raises(ValueError, match="cache_branch_id is 12"):
        CachedForward(unet, CacheConfig(3, 12), num_steps=7)
    with pytest.raises(ValueError, match="Linear"):
        CachedForward(torch.nn.Linear(1, 1), CacheConfig(3), num_steps=7)
    with pytest.raises(ValueError, match="cached_feature needs"):
        LdmCall(unet, torch.zeros(1, 4, 8, 8)).forward(None, torch.zeros(1))
    with pytest.raises(ValueError, match="y is needed"):
        LdmCall(unet, torch.zeros(1, 4, 8, 8), y=torch.zeros(1))
    with pytest.raises(ValueError, match="num_calls"), CachedForward(unet, CacheConfig(3), num_steps=5):
        ddim(unet, steps=6)
    with CachedForward(unet, CacheConfig(3), 5), pytest.raises(ValueError, match="already replaced"):
        CachedForward(unet, CacheConfig(3), 5).__enter__()
    assert LdmUNet(unet).num_skip_branches == len(BRANCHES)
    assert isinstance(unet, UNetModel)
