"""Loading a model when the hub is reachable, is not, or never had it."""

import diffusers
import pytest
import requests
import torch
from huggingface_hub.utils import RepositoryNotFoundError

from common.shipped import SHAPES_SD
from pipelines import StableDiffusionPipeline
from pipelines.loading import MIRRORS, SCHEDULERS, load_pipeline, new_scheduler


class Hub:
    """Stands for a pipeline class; notes what it is asked for and answers with the shipped model or an error."""

    __name__ = "StableDiffusionPipeline"

    def __init__(self, online=None, cached=None):
        self.errors = {False: online, True: cached}
        self.asked = []

    def download(self, name, variant, local_files_only=False):
        self.asked.append((name, local_files_only))
        if self.errors[local_files_only] is not None:
            raise self.errors[local_files_only]
        return str(SHAPES_SD)

    def from_pretrained(self, folder, **settings):
        return StableDiffusionPipeline.from_pretrained(folder, **settings)


def load(hub, name="someone/model"):
    return load_pipeline(hub, name, dtype=torch.float32)


def test_without_network_the_cache_is_used():
    hub = Hub(online=requests.exceptions.ConnectionError("no route"))
    assert isinstance(load(hub), StableDiffusionPipeline)
    assert hub.asked == [("someone/model", False), ("someone/model", True)]


def test_without_network_and_cache_the_remedies_are_named():
    with pytest.raises(ValueError, match=r"not in the cache .* give --model the path"):
        load(Hub(online=requests.exceptions.ConnectionError(), cached=OSError()))


def test_a_name_that_the_hub_does_not_have_is_told_apart():
    error = OSError("not found")
    error.__cause__ = RepositoryNotFoundError("404", response=requests.Response())
    with pytest.raises(ValueError, match="the hub has no someone/model"):
        load(Hub(online=error))


@pytest.mark.parametrize("name", MIRRORS)
def test_a_model_that_left_the_hub_comes_from_its_mirror_with_a_note(name, capsys):
    hub = Hub()
    load(hub, name)
    assert hub.asked == [(MIRRORS[name], False)]
    assert "no longer on the hub" in capsys.readouterr().err


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_keeps_the_models_noise(name):
    config = diffusers.PNDMScheduler.from_pretrained(SHAPES_SD, subfolder="scheduler").config
    scheduler = new_scheduler(name, config)
    assert type(scheduler).__name__ == SCHEDULERS[name][0]
    assert scheduler.config.beta_start == config.beta_start


def test_dpm_and_unipc_go_evenly_to_timestep_0_and_dpm_ends_with_a_step_of_first_order():
    config = diffusers.PNDMScheduler.from_pretrained(SHAPES_SD, subfolder="scheduler").config
    assert config.timestep_spacing == "leading"
    for name in ("dpm++", "unipc"):
        scheduler = new_scheduler(name, config)
        scheduler.set_timesteps(20)
        assert scheduler.timesteps.tolist() == [round(999 * k / 20) for k in range(20, 0, -1)]
    assert new_scheduler("dpm++", config).config.euler_at_final
    assert new_scheduler("dpm++-sde", config).config.timestep_spacing == "leading"
    assert not new_scheduler("dpm++-sde", config).config.euler_at_final
