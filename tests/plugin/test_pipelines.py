"""Every pipeline of the installed diffusers: off it is stock, on it is the authors' package, bit for bit."""

from typing import Any

import pytest
import torch

from tests.plugin.cases import CASES, stock, with_sampler
from tests.plugin.ways import with_package, with_plug_in

STEPS = {"steps": 6}  # with an interval of 5 the last is full again
HERE = [name for name, case in CASES.items() if case.is_there]


@pytest.mark.parametrize("name", HERE)
def test_it_is_the_authors_package_and_with_interval_1_the_stock_pipeline(name):
    case, pipe = CASES[name], stock(name)
    samplers = case.samplers or (None,)
    for sampler, settings in ((samplers[0], ((3, 0), (5, 3))), (samplers[-1], ((3, 3), (5, 0)))):
        if sampler is not None:
            with_sampler(pipe, sampler)
        expected = case.run(pipe, **STEPS)
        assert expected.isfinite().all()
        assert torch.equal(with_plug_in(case, pipe, STEPS), expected)
        for interval, branch in settings:
            cache: dict[str, Any] = {"cache_interval": interval, "cache_branch_id": branch}
            cached = with_plug_in(case, pipe, STEPS, **cache)
            assert not torch.equal(cached, expected)
            assert torch.equal(cached, with_package(case, pipe, STEPS, **cache)), (sampler, cache)
    assert torch.equal(case.run(pipe, **STEPS), expected)  # and off again
