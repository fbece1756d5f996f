"""Settings for all tests: no network, no gradients, no time limits on examples."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # time limits on examples fail where the machine is busy
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Digests of files are remembered outside the user's home; processes that tests start take it over."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield
