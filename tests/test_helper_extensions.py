"""What goes beyond the paper, in the plug-in: the forked pipeline bit for bit."""

import json
from typing import Any

import numpy as np
import pytest

from tests.families import FAMILIES
from tests.recorders import batch_sizes_of
from unets import CacheConfig, DeepCacheSDHelper

PAPER: dict[str, Any] = {"cache_interval": 4, "cache_branch_id": 4}
REFRESH = {"refresh_interval": 2, "refresh_branch_id": 5}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "forecast": {"forecast": 0.8, "forecast_order": 1.7},
    "refresh": {**REFRESH, "forecast": 1.0},
    "attention": {"reuse_attention": True, **REFRESH},
    "skip": {"skip_interval": 2, "skip_order": 2.0},
    "guidance": {"reuse_guidance": True, "forecast": 1.0},
    "guidance-stop": {"guidance_stop": 0.6},
    "all": {"skip_interval": 3, "reuse_guidance": True, "guidance_stop": 0.7, "reuse_attention": True, **REFRESH},
}
GUIDED = ("guidance", "guidance-stop", "all")
CASES = [
    (name, combination)
    for name in ("sd", "xl", "sd-inpaint", "svd", "controlnet")
    for combination in COMBINATIONS
    if name in ("sd", "xl")
    or (combination in ("attention", "guidance") and (name, combination) != ("controlnet", "guidance"))
    or (name, combination) == ("controlnet", "skip")
]


@pytest.mark.parametrize(("name", "combination"), CASES)
def test_every_extension_is_the_forks_bit_for_bit(name, combination):
    family, extensions = FAMILIES[name], COMBINATIONS[combination]
    stock, fork = family.pair({"svd": "euler", "sd": "plms"}.get(name, "ddim"))
    expected = family.run(fork, 9, **PAPER, **extensions)
    helper = DeepCacheSDHelper(stock)
    helper.set_params(**PAPER, **extensions)
    with helper:
        for _ in range(2):
            assert np.array_equal(family.run(stock, 9), expected)
        helper.set_params(**PAPER)
        assert not np.array_equal(family.run(stock, 9), expected)


def test_without_guidance_there_is_none_to_reuse():
    family = FAMILIES["sd"]
    stock, fork = family.pair()
    extra: dict[str, Any] = {"guidance_scale": 1.0, "prompt": ["a ring", "a circle"]}
    extensions = COMBINATIONS["all"]
    expected = family.run(fork, **extra, **PAPER, **extensions)
    helper = DeepCacheSDHelper(stock)
    helper.set_params(**PAPER, **extensions)
    with helper:
        sizes = batch_sizes_of(stock)
        assert np.array_equal(family.run(stock, **extra), expected)
    assert set(sizes) == {2}


def test_a_calibrated_schedule_is_taken_from_the_content_of_its_file(tmp_path):
    family = FAMILIES["sd"]
    stock, fork = family.pair()
    config = CacheConfig(cache_branch_id=1, cache_steps=[0, 1, 5], skip_steps=[3], forecast=[1.0] * 8)
    (tmp_path / "calibrated.json").write_text(json.dumps({"steps": 8, "tried": [], **config.to_json()}))
    expected = family.run(fork, 8, **config.arguments)
    helper = DeepCacheSDHelper(stock)
    helper.set_config(json.loads((tmp_path / "calibrated.json").read_text()))
    with helper:
        assert np.array_equal(family.run(stock, 8), expected)
        with pytest.raises(ValueError, match="for 8 steps, not 9"):
            family.run(stock, 9)
        helper.set_config(config)
        assert np.array_equal(family.run(stock, 8), expected)
    with pytest.raises(ValueError, match="not a calibration"):
        helper.set_config({"cache_steps": [0]})
