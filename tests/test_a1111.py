"""The extension in a stand-in for A1111's web UI, written from its interface (version 1.10)."""

import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.layout import ROOT
from tests.ldm_unet import of_diffusers
from tests.tiny import stock_unet
from unets.ldm import LdmCall

ON = (True, 3, 1, 0.0)


@pytest.fixture
def web_ui(monkeypatch):
    """The modules that the script imports; `steps` are the callbacks before each step."""
    steps: list[Any] = []

    class Panel:
        def __init__(self, *args, **kwargs):
            self.args = args

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    names: dict[str, dict[str, Any]] = {
        "gradio": {"Accordion": Panel, "Checkbox": Panel, "Slider": Panel},
        "modules": {},
        "modules.scripts": {"Script": object, "AlwaysVisible": object()},
        "modules.script_callbacks": {"on_cfg_denoiser": steps.append},
        "modules.sd_unet": {"current_unet": None},
    }
    for name, content in names.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            setattr(sys.modules["modules"], name.split(".")[1], module)
    return SimpleNamespace(steps=steps, sd_unet=sys.modules["modules.sd_unet"])


@pytest.fixture
def script(web_ui):
    path = ROOT / "integrations" / "a1111" / "scripts" / "deepcache.py"
    loader = SourceFileLoader("a1111_deepcache", str(path))
    module = ModuleType(loader.name)
    loader.exec_module(module)
    return module.DeepCacheScript()


@pytest.fixture(scope="module")
def unet():
    return of_diffusers(stock_unet())


def picture(unet):
    """A processing of the web UI."""
    return SimpleNamespace(
        sd_model=SimpleNamespace(model=SimpleNamespace(diffusion_model=unet)), extra_generation_params={}
    )


@torch.no_grad()
def sampled(web_ui, unet, steps=4, lengths=(7, 9), size=8):
    """Outputs of a sampling whose two prompts are called one after the other, and what was given."""
    given, found = [], []
    for step in range(steps):
        for callback in web_ui.steps:
            callback(SimpleNamespace(denoiser=SimpleNamespace(step=step)))
        for length in lengths:
            generator = torch.Generator().manual_seed(10 * step + length)
            x = torch.randn(1, 4, size, size, generator=generator)
            text = torch.randn(1, length, 24, generator=torch.Generator().manual_seed(length))
            given.append((x, torch.tensor([900.0 - step]), text))
            found.append(unet(*given[-1]))
    return given, found


@torch.no_grad()
def by_hand(unet, given):
    """Every third step full, each prompt with its own feature."""
    kept: dict[int, Any] = {}
    found = []
    for call, arguments in enumerate(given):
        step, number = divmod(call, 2)
        output = LdmCall(unet, *arguments).forward(1, None if step % 3 == 0 else kept[number])
        kept[number] = output.cached_feature
        found.append(output.sample)
    return found


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_prompts_called_apart_have_their_own_feature_and_every_sampling_its_own_run(web_ui, script, unet):
    assert len(script.ui(False)) == len(ON)
    p = picture(unet)
    for size in (8, 16):  # as with a high-resolution fix
        script.process_before_every_sampling(p, *ON, x=None)
        given, found = sampled(web_ui, unet, size=size)
        script.postprocess_batch(p)
        assert same(found, by_hand(unet, given))
        assert "forward" not in vars(unet)
    assert p.extra_generation_params == {"DeepCache": "N3-m1"}
    assert not same(found, sampled(web_ui, unet, size=16)[1])


def test_switched_off_or_after_a_failure_the_u_net_is_its_own(web_ui, script, unet):
    p = picture(unet)
    script.process_before_every_sampling(p, False, *ON[1:], x=None)
    assert "forward" not in vars(unet)
    script.process_before_every_sampling(p, *ON, x=None)  # and nothing afterwards
    script.process(p, *ON)
    assert "forward" not in vars(unet)


def test_what_can_t_be_cached_is_refused(web_ui, script, unet):
    unet.forward = lambda *args: None  # as an extension for ControlNet does
    try:
        with pytest.raises(ValueError, match="already replaced"):
            script.process_before_every_sampling(picture(unet), *ON, x=None)
        script.postprocess(picture(unet), None)
        assert "forward" in vars(unet)
    finally:
        del unet.forward
    web_ui.sd_unet.current_unet = object()
    with pytest.raises(ValueError, match="another U-Net"):
        script.process_before_every_sampling(picture(unet), *ON, x=None)


def test_the_script_is_short():
    assert len((ROOT / "integrations/a1111/scripts/deepcache.py").read_text(encoding="utf-8").splitlines()) < 150
