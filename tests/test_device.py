"""16 bit on processors that are slow in it."""

import platform
from typing import Any

import pytest
import torch

from benchmarks import loop, unet_step
from common import device
from common.device import is_fast, resolve_dtype
from eval import tables
from eval.generation import text
from tests.families import FAMILIES

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
HALF = ("float16", "bfloat16")


class OneDNN:
    """Answers for the processor."""

    def __init__(self, bfloat16: bool, float16: bool) -> None:
        self._is_mkldnn_bf16_supported = lambda: bfloat16
        self._is_mkldnn_fp16_supported = lambda: float16


@pytest.fixture
def processor(monkeypatch):
    """Sets what the processor has."""

    def has(bfloat16: bool = False, float16: bool = False, machine: str = "x86_64") -> None:
        monkeypatch.setattr(torch.ops, "mkldnn", OneDNN(bfloat16, float16), raising=False)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        device.warn_of_slow.cache_clear()

    yield has
    device.warn_of_slow.cache_clear()


def test_only_an_x86_processor_that_says_so_is_slow(processor):
    processor()
    assert not any(is_fast(dtype, CPU) for dtype in HALF)
    assert is_fast("float32", CPU) and all(is_fast(dtype, other) for dtype in HALF for other in (CUDA, MPS))
    processor(bfloat16=True)  # AVX-512
    assert is_fast("bfloat16", CPU) and not is_fast("float16", CPU)
    processor(machine="arm64")
    assert all(is_fast(dtype, CPU) for dtype in HALF)


@pytest.mark.parametrize("one_dnn", [object(), OneDNN], ids=["another version", "one that fails"])
def test_nothing_is_slow_if_torch_does_not_say(processor, monkeypatch, one_dnn):
    def fail() -> bool:
        raise RuntimeError("no oneDNN")

    processor()
    if one_dnn is OneDNN:
        one_dnn = OneDNN(False, False)
        one_dnn._is_mkldnn_bf16_supported = one_dnn._is_mkldnn_fp16_supported = fail
    monkeypatch.setattr(torch.ops, "mkldnn", one_dnn)
    assert all(is_fast(dtype, CPU) for dtype in HALF)


def test_this_version_of_torch_says():
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)
    assert isinstance(torch.ops.mkldnn._is_mkldnn_fp16_supported(), bool)


def test_an_explicit_slow_dtype_is_used_with_one_line_of_warning(processor, capsys):
    processor()
    for _ in range(2):
        assert resolve_dtype("bfloat16", CPU) == torch.bfloat16
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "bfloat16" in line and "--dtype float32" in line
    assert resolve_dtype("float32", CPU) == torch.float32
    processor(bfloat16=True)
    assert resolve_dtype("bfloat16", CPU) == torch.bfloat16
    assert capsys.readouterr().err == ""


def test_a_default_dtype_is_never_slow(processor, capsys):
    for bfloat16, expected in ((False, torch.float32), (True, torch.bfloat16)):
        processor(bfloat16=bfloat16)
        assert resolve_dtype(None, CPU, "bfloat16") == expected
    assert resolve_dtype(None, CPU) == torch.float32 and resolve_dtype(None, CUDA) == torch.float16
    assert capsys.readouterr().err == ""


class Stop(Exception):
    pass


@pytest.mark.parametrize("bfloat16", [False, True])
def test_benchmarks_default_to_float32_on_a_slow_processor(processor, monkeypatch, bfloat16):
    def seen(*args: Any) -> Any:
        dtypes.append(next(arg for arg in args if isinstance(arg, torch.dtype)))
        raise Stop

    dtypes: list[torch.dtype] = []
    processor(bfloat16=bfloat16)
    monkeypatch.setattr(loop, "random_pipeline", seen)
    monkeypatch.setattr(unet_step, "new_unet", seen)
    with pytest.raises(Stop):
        loop.main([])
    assert dtypes == [torch.bfloat16 if bfloat16 else torch.float32]

    def measured(*args: Any) -> Any:
        measured_dtypes.append(args[0].dtype)
        return {}

    measured_dtypes: list[torch.dtype] = []
    small = FAMILIES["sd"].parts()["unet"]
    monkeypatch.setattr(unet_step, "new_unet", lambda config, device, dtype, channels_last: small.to(dtype))
    monkeypatch.setattr(unet_step, "measure", measured)
    monkeypatch.setattr(unet_step, "report", lambda result: "")
    assert unet_step.main(["--device", "cpu", "--memory-formats", "contiguous"]) == 0
    assert measured_dtypes == [torch.float32, torch.bfloat16][: 1 + bfloat16]


@pytest.mark.parametrize(("more", "expected"), [([], "float32"), (["--dtype", "float16"], "float16")])
def test_tables_at_the_papers_scale_do_too(processor, monkeypatch, tmp_path, capsys, more, expected):
    def seen(jobs: Any, batch_size: Any, options: Any, bar: Any) -> Any:
        raise Stop(options.dtype, str(options.out))

    processor(bfloat16=True)  # the scale's is float16
    monkeypatch.setattr(tables, "make_all", seen)
    monkeypatch.chdir(tmp_path)
    call = ["--scale", "paper", "--device", "cpu", "--offline", "--rows", "1", *more]
    with pytest.raises(Stop) as stopped:
        tables.main(["table13", *call])
    assert stopped.value.args == (expected, f"results/paper-{expected}")
    assert ("continuing with --dtype float32" in capsys.readouterr().err) == (not more)
    if not more:
        with pytest.raises(Stop) as stopped:
            tables.main(["table5", *call])  # float32 at this scale, too
        assert stopped.value.args == (None, "results/paper")
        assert tables.main(["table13", *call, "--dry-run"]) == 0  # of the paper's GPU
        assert capsys.readouterr().err == ""


def test_sets_of_images_warn(processor, capsys, tmp_path):
    processor(float16=True)
    settings = text.Settings(dtype="bfloat16", steps=2)
    text.prepare(settings, device=CPU, out=tmp_path / "set", quiet=True)
    assert "--dtype float32" in capsys.readouterr().err
