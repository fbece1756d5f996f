"""As SD.Next uses the plug-in, in `modules/sd_models_compile.py`: one worker for the model that is loaded."""

import torch

from tests.plugin.cases import CASES
from tests.plugin.ways import with_plug_in

worker = None


def check_deepcache(enable):
    """Around every picture."""
    if worker is not None:
        worker.enable() if enable else worker.disable()


def compile_deepcache(model, interval):
    """When a model is loaded; it prints `params`."""
    global worker
    from DeepCache import DeepCacheSDHelper

    check_deepcache(False)
    worker = DeepCacheSDHelper(pipe=model)
    worker.set_params(cache_interval=interval, cache_branch_id=0)
    return dict(worker.params)


def test_one_worker_after_another_between_pictures_with_it_and_without():
    case = CASES["sd"]
    first, second = case.build(), CASES["xl"].build()
    plain, cached = case.run(first), with_plug_in(case, first, cache_interval=3)
    assert compile_deepcache(first, 3) == {"cache_interval": 3, "cache_branch_id": 0, "skip_mode": "uniform"}
    for enable in (True, True, False, True):
        check_deepcache(enable)
        assert torch.equal(case.run(first), cached if enable else plain)
    compile_deepcache(second, 2)  # another model, while the first is still enabled
    assert torch.equal(case.run(first), plain)
    expected = with_plug_in(CASES["xl"], second, cache_interval=2)
    check_deepcache(True)
    assert torch.equal(CASES["xl"].run(second), expected)
    check_deepcache(False)
    check_deepcache(False)
