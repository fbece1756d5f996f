"""AsyncDiff's bookkeeping: parts, messages, and what a part goes by at each step; no networks."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdiff.costs import layer_costs
from asyncdiff.plan import Plan, cut, cut_at, layer_name
from asyncdiff.processes import OneProcess
from asyncdiff.run import AsyncRun
from eval.counting.macs import count_branches, unet_inputs
from tests.families import FAMILIES
from unets import fork_class, fork_of


@st.composite
def costs_and_parts(draw):
    pairs = draw(st.integers(1, 4))
    costs = draw(st.lists(st.integers(0, 20), min_size=2 * pairs + 1, max_size=2 * pairs + 1))
    return costs, draw(st.integers(1, len(costs)))


@given(costs_and_parts())
def test_the_parts_cover_every_layer_once_and_none_cuts_better(given):
    costs, n = given
    parts = cut(costs, n)
    assert len(parts) == n and all(parts)
    assert [i for part in parts for i in part] == list(range(len(costs)))

    def costliest(parts):
        return max(sum(costs[i] for i in part) for part in parts)

    others = itertools.combinations(range(1, len(costs)), n - 1)
    assert costliest(parts) == min(costliest(cut_at(starts, len(costs))) for starts in others)


@given(costs_and_parts(), st.integers(1, 4))
def test_every_process_gets_what_its_part_reads_and_the_noise_of_every_step(given, stride):
    costs, n = given
    plan = Plan(cut(costs, n), stride=stride if n > 1 else 1)
    last = plan.last_layer
    predict = [k for k in range(plan.num_processes) if plan.part(k) == plan.parts[-1]]
    assert sorted(plan.offset(k) for k in predict) == list(range(plan.stride))
    for target in range(plan.num_processes):
        part, before = plan.part(target), range(plan.part(target).start)
        skips = {last - i for i in part if i > last // 2}
        assert plan.reads(target) == (skips | {part.start - 1}) & set(before)
        others = [k for k in range(plan.num_processes) if k != target]
        came = [layer for k in others for layer in plan.sent(k, target) if layer != last]
        assert sorted(came) == sorted(plan.reads(target))
        assert [k for k in others if last in plan.sent(k, target)] == [k for k in predict if k != target]


def test_the_bound_is_what_the_costliest_part_allows():
    plan = Plan(cut_at([1, 2], 3), warm_up=2)
    assert plan.bound([5, 3, 2], 10) == pytest.approx(10 * 10 / (2 * 10 + 8 * 5))
    assert Plan(plan.parts, warm_up=2, stride=3).bound([5, 3, 2], 10) == pytest.approx(100 / (20 + 3 * 5))
    assert Plan(plan.parts, warm_up=10).bound([5, 3, 2], 10) == 1


def test_names_of_layers():
    assert [layer_name(i, 4) for i in range(5)] == ["d_0", "d_1", "middle", "u_1", "u_0"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: cut([1] * 5, 6), "5 layers, which can't be cut into 6 parts"),
        (lambda: cut([1] * 5, 0), "0 parts"),
        (lambda: cut_at([2, 2], 5), r"layers \[2, 2\]; these must rise, from 1 to 4"),
        (lambda: cut_at([5], 5), "from 1 to 4"),
        (lambda: Plan((range(2), range(3, 6))), "all layers of a U-Net, in order"),
        (lambda: Plan(cut([1] * 4, 2)), "all layers of a U-Net"),
        (lambda: Plan(cut([1] * 5, 2), warm_up=0), "warm_up is 0"),
        (lambda: Plan(cut([1] * 5, 2), stride=0), "stride is 0"),
        (lambda: Plan(cut([1] * 5, 1), stride=2), "one part"),
    ],
)
def test_what_can_t_be_planned_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("name", ["sd", "xl", "svd"])
def test_a_layer_s_cost_is_what_figure_4_counts_of_it(name):
    unet = fork_of(FAMILIES[name].parts()["unet"])
    costs = layer_costs(unet, 8, 8, tokens=7, frames=3)
    with torch.device("meta"):
        fork = fork_class(unet).from_config(unet.config).to("meta").eval()
        inputs = unet_inputs(fork, 8, 8, tokens=7, frames=3)
        branches = count_branches(fork, inputs)
    last = len(costs) - 1
    pairs = [costs[k] + costs[last - k] for k in range(last // 2)]
    out = (3 if name == "svd" else 1) * 8 * 8 * 9 * fork.conv_out.in_channels * fork.conv_out.out_channels
    pairs[0] -= out  # conv_out is no layer of the figure's, and goes with u_0 here
    assert pairs == [branch.with_attention for branch in branches]


# --- what a part goes by ---------------------------------------------------------------------------------------------


def run_of(plan, calls):
    """Of each step the noise; an output is (part, step at which it was made, its timestep, what it was made from)."""
    timesteps = torch.arange(10 * calls, 0, -10)
    run = AsyncRun(plan, OneProcess(), SimpleNamespace(timesteps=timesteps))
    noises = []
    for i, t in enumerate(timesteps):

        def run_part(part, timestep, outputs, i=i):
            k = plan.parts.index(part)
            sources = {layer: outputs[layer] for layer in plan.reads(k)}
            return {layer: (k, i, int(timestep), sources) for layer in part}

        noises.append(run.noise(t, run_part))
    return noises


@pytest.fixture
def without_sizes(monkeypatch):
    monkeypatch.setattr(OneProcess, "exchange", lambda self, plan, made, like: made)


def test_each_part_goes_by_the_step_before(without_sizes):
    """Three parts of d_0 d_1 | middle | u_1 u_0, the third reads a skip and, over two steps, the first."""
    plan = Plan((range(0, 2), range(2, 3), range(3, 5)), warm_up=2)
    noises = run_of(plan, 6)
    for i, (part, step, t, sources) in enumerate(noises):
        late = i >= 2
        assert (part, step, t) == (2, i, 60 - 10 * i)
        assert sources.keys() == {0, 1, 2}
        assert sources[0][1] == sources[1][1] == i - late  # the skips, from the step before
        middle = sources[2]
        assert middle[:2] == (1, i - late)
        assert middle[3][1][:2] == (0, max(i - 2, 1) if late else i)  # two steps before, but not before the warm-up


def test_with_the_time_shift_the_timestep_is_that_of_the_step_before(without_sizes):
    noises = run_of(Plan((range(0, 2), range(2, 5)), time_shift=True), 4)
    assert [(step, t) for _, step, t, _ in noises] == [(0, 40), (1, 40), (2, 30), (3, 20)]


def test_with_a_stride_one_round_predicts_the_noise_of_several_steps(without_sizes):
    noises = run_of(Plan((range(0, 2), range(2, 5)), stride=2), 6)
    assert [(step, t) for _, step, t, _ in noises] == [(0, 60), (1, 50), (1, 40), (3, 30), (3, 20), (5, 10)]
    assert [sources[1][1:3] for *_, sources in noises[1:]] == [(0, 60), (0, 60), (1, 40), (1, 40), (3, 20)]
    shifted = run_of(Plan((range(0, 2), range(2, 5)), stride=2, time_shift=True), 6)
    assert [t for _, _, t, _ in shifted] == [60, 60, 50, 40, 30, 20]


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 7))
def test_every_step_gets_the_noise_of_its_own_timestep(n, stride, warm_up):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(OneProcess, "exchange", lambda self, plan, made, like: made)
        noises = run_of(Plan(cut([1] * 5, n), warm_up, stride if n > 1 else 1), 7)
    assert [t for _, _, t, _ in noises] == list(range(70, 0, -10))


def test_a_warm_up_longer_than_the_run_is_refused(without_sizes):
    with pytest.raises(ValueError, match="warm_up is 5; the U-Net is called 4 times, so 4 is the most"):
        run_of(Plan(cut([1] * 5, 2), warm_up=5), 4)
