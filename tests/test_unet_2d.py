"""The fork of UNet2DModel against the stock class, without and with a cache that the test makes itself."""

import inspect

import diffusers
import pytest
import torch

from tests.tiny_ddpm import LAYOUTS, sample, stock_unet
from unets import UNet2DModel, fork_of


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("timestep", [7, torch.tensor(7), torch.tensor([7, 900])], ids=["number", "scalar", "each"])
def test_without_a_branch_it_is_the_stock_model_bit_for_bit(layout, timestep):
    stock = stock_unet(layout)
    fork = fork_of(stock)
    x = sample(layout)
    expected = stock(x, timestep)
    assert torch.equal(fork(x, timestep).sample, expected.sample)
    (alone,) = fork(x, timestep, return_dict=False)
    assert torch.equal(alone, expected.sample)
    assert type(stock) is diffusers.UNet2DModel


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_branch_is_a_cache_made_with_hooks_on_the_stock_model(layout):
    """The hook puts what entered u_m from below at the first timestep in its place at the second."""
    stock = stock_unet(layout)
    fork = fork_of(stock)
    first, second = sample(layout, 1), sample(layout, 2)
    resnets = [resnet for block in stock.up_blocks for resnet in block.resnets][::-1]  # u_0 first
    assert fork.num_skip_branches == len(resnets)
    for m, resnet in enumerate(resnets):
        kept = fork(first, 500, cache_branch_id=m).cached_feature
        seen: list[torch.Tensor] = []

        def keep(_, args, seen=seen, width=kept.shape[1]):
            seen.append(args[0][:, :width].clone())

        hook = resnet.register_forward_pre_hook(keep)
        full = stock(first, 500).sample
        hook.remove()
        assert torch.equal(fork(first, 500, cache_branch_id=m).sample, full)
        assert torch.equal(kept, seen[0])

        def put_back(_, args, seen=seen, width=kept.shape[1]):
            return (torch.cat([seen[0], args[0][:, width:]], dim=1), *args[1:])

        hook = resnet.register_forward_pre_hook(put_back)
        expected = stock(second, 480).sample
        hook.remove()
        retrieved = fork(second, 480, cache_branch_id=m, cached_feature=kept).sample
        assert torch.equal(retrieved, expected)
        assert not torch.equal(retrieved, stock(second, 480).sample)


def test_signature_and_files_are_the_parents(tmp_path):
    ours = list(inspect.signature(UNet2DModel.forward).parameters)
    parents = list(inspect.signature(diffusers.UNet2DModel.forward).parameters)
    assert ours == [*parents, "cache_branch_id", "cached_feature", "keep_branch_id"]
    fork = fork_of(stock_unet("cifar10"))
    fork.save_pretrained(tmp_path)
    again = UNet2DModel.from_pretrained(tmp_path)
    x = sample("cifar10")
    assert torch.equal(again(x, 3).sample, fork(x, 3).sample)


def test_what_it_does_not_support_it_refuses_by_name():
    fork = fork_of(stock_unet("cifar10"))
    x = sample("cifar10")
    with pytest.raises(ValueError, match="skip branches 0 to 11"):
        fork(x, 1, cache_branch_id=12)
    with pytest.raises(ValueError, match="needs the cache_branch_id"):
        fork(x, 1, cached_feature=x)
    with pytest.raises(ValueError, match="class_labels"):
        fork(x, 1, class_labels=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="time_embedding_type 'fourier'"):
        UNet2DModel(**LAYOUTS["cifar10"], norm_num_groups=4, time_embedding_type="fourier")
