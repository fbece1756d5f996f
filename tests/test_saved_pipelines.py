"""Pipelines saved with our forks load with nothing but diffusers."""

import copy
import inspect
import json
import pickle
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch

from pipelines import tiny
from tests import tiny_ldm
from tests.families import FAMILIES
from unets import DeepCacheSDHelper, UNet2DConditionModel, fork_of
from unets.controlnet import ControlNetModel

LOADS = """
import sys
import diffusers
for folder in sys.argv[1:]:
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    for part in pipe.components.values():
        assert part is None or type(part).__module__.split(".")[0] in ("diffusers", "transformers"), part
assert "unets" not in sys.modules
"""


def ddpm_unet():
    torch.manual_seed(0)
    channels = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 8}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return fork_of(diffusers.UNet2DModel(**channels, **blocks))


def helped():
    """A stock pipeline with the plug-in enabled."""
    stock = FAMILIES["sd"].pair()[0]
    DeepCacheSDHelper(stock).enable()
    return stock


def with_compiled_unet():
    fork = FAMILIES["sd"].pair()[1]
    return {**fork.components, "unet": torch.compile(fork.unet, backend="eager")}


def over_parts_of(name):
    """The stock pipeline of a family over the parts of the forked one."""
    fork = FAMILIES[name].pair()[1]
    return FAMILIES[name].stock()(**fork.components)


MADE = {
    "from_pipe of a fork": lambda: diffusers.AutoPipelineForImage2Image.from_pipe(FAMILIES["sd"].pair()[1]),
    "from_pipe of an SDXL fork": lambda: diffusers.AutoPipelineForInpainting.from_pipe(FAMILIES["xl"].pair()[1]),
    "from_pipe with the plug-in on": lambda: diffusers.AutoPipelineForImage2Image.from_pipe(helped()),
    "the plug-in on": helped,
    "a video": lambda: over_parts_of("svd"),
    "a ControlNet": lambda: over_parts_of("controlnet"),
    "two ControlNets": lambda: over_parts_of("controlnets"),
    "DDPM": lambda: diffusers.DDPMPipeline(ddpm_unet(), diffusers.DDPMScheduler()),
    "a compiled U-Net": lambda: diffusers.StableDiffusionPipeline(**with_compiled_unet()),
}


def test_a_stock_pipeline_over_a_forks_parts_is_saved_as_diffusers_own(tmp_path):
    for i, (name, make) in enumerate(MADE.items()):
        pipe = make()
        pipe.save_pretrained(tmp_path / str(i))
        index = json.loads((tmp_path / str(i) / "model_index.json").read_text())
        for said in (index, json.loads(pipe.to_json_string()), pipe.config):
            assert list(said["unet"]) == ["diffusers", said["unet"][1]], name
            libraries = {library for library, *_ in (v for v in said.values() if isinstance(v, list | tuple) and v)}
            assert libraries <= {"diffusers", "transformers", "controlnet", None}, name
        for config in (tmp_path / str(i)).glob("*/config.json"):
            said = json.loads(config.read_text()).get("_class_name", "UNet2DModel")
            assert hasattr(diffusers, said), name
    command = [sys.executable, "-c", LOADS, *(str(tmp_path / str(i)) for i in range(len(MADE)))]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_once_the_plug_in_is_off_the_pipeline_is_saved_as_before(tmp_path):
    stock = FAMILIES["sd"].pair()[0]
    before = stock.to_json_string()
    with DeepCacheSDHelper(stock):
        assert stock.to_json_string() == before
        stock.unet = stock.unet  # goes through diffusers' own way
        assert stock.to_json_string() == before
    assert stock.to_json_string() == before


def test_a_stock_pipeline_gives_the_same_image_over_a_forks_parts_saved_and_loaded(tmp_path):
    family = FAMILIES["sd"]
    stock, fork = family.pair()
    diffusers.StableDiffusionPipeline(**fork.components, requires_safety_checker=False).save_pretrained(tmp_path)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    # Weights of a file lie elsewhere in memory, where other kernels add in another order.
    np.testing.assert_allclose(family.run(loaded, 3), family.run(stock, 3), atol=1e-5)


def test_a_forks_class_stays_ours_and_its_models_can_be_copied_and_pickled():
    shared = fork_of(tiny.unet(tiny.SD21))
    for model in (shared, UNet2DConditionModel(**tiny.SD21), ControlNetModel.sharing(tiny.controlnet(shared))):
        assert type(model).__module__.startswith("unets.")
        assert inspect.getsource(type(model)).startswith("class ")
        assert inspect.signature(type(model)) == inspect.signature(getattr(diffusers, type(model).__name__))
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(again) is type(model)
            assert again.__module__ == model.__module__
            assert again.__module__.startswith("diffusers.")


def test_a_class_that_a_user_makes_of_a_fork_is_saved_as_theirs():
    class Mine(UNet2DConditionModel):
        pass

    assert Mine(**tiny.SD21).__module__ == __name__


@pytest.mark.parametrize("changed", ["again", "loaded"])
def test_ldms_own_pipeline_names_our_class_embedder_and_diffusers_unet(changed, tmp_path):
    """diffusers has no `LDMClassPipeline`, so it only loads here."""
    pipe = tiny_ldm.pipeline()
    if changed == "loaded":
        pipe.save_pretrained(tmp_path)
        pipe = type(pipe).from_pretrained(tmp_path)
    assert tuple(pipe.config["unet"]) == ("diffusers", "UNet2DConditionModel")
    assert pipe.config["class_embedder"][0] == "unets.class_embedder"
