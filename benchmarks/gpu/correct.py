"""Checks that a GPU computes what the CPU does, and that the GPU-only code works."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from common.device import DTYPES
from common.shipped import RECOMMENDED
from common.timing import time_call
from pipelines.loading import new_scheduler, place_pipeline

from .bench import Bench, Finding
from .settings import PLAIN_INTERVAL
from .subjects import Subject

CLOSE = 1e-4  # relative, in float32: sums of thousands of products in another order differ by 1e-6, TF32 by 1e-3
ULPS = 16  # a compiled step rounds to 16 bit less often; 16-bit steps are 1 to 6 from float32 (small models)
GREY = 1 / 255  # a level of a picture in 8 bit
SCHEDULERS = ("plms", "ddim", "dpm++", "euler")
BALANCED = RECOMMENDED["balanced"]


def relative(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of `expected`."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return ((found - expected).norm() / expected.norm()).item()


def two_steps(unet: Any, inputs: dict[str, Any], branch: int) -> list[Tensor]:
    """Outputs of a full step, and of a retrieve step with other latents."""
    full = unet(**inputs, cache_branch_id=branch)
    other = {**inputs, "sample": 0.9 * inputs["sample"]}
    return [full.sample, unet(**other, cache_branch_id=branch, cached_feature=full.cached_feature).sample]


def noise(bench: Bench, seconds: float, name: str, dtype: str) -> Finding:
    """The U-Net's first input is the CPU's noise for the same seeds, bit for bit."""
    subject = bench.subject(name, dtype)
    seen: list[Tensor] = []
    hook = subject.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        subject.run(2, num_inference_steps=1)
    finally:
        hook.remove()
    shape = (1, *seen[0].shape[1:])
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(k), dtype=DTYPES[dtype]) for k in range(2)]
    equal = torch.equal(seen[0][:2].cpu(), torch.cat(drawn))
    return Finding("equal to the CPU's, bit for bit" if equal else "NOT the CPU's noise", equal)


def near_cpu(bench: Bench, seconds: float, name: str) -> Finding:
    """A full and a retrieve step in float32, without TF32, on latents of half the size: close to the CPU's."""
    subject = bench.subject(name, "float32")
    unet, branch = subject.unet, subject.settings.branch
    inputs = {key: value.cpu() for key, value in subject.inputs(1, shrunk=2).items()}

    def outputs(device: torch.device) -> list[Tensor]:
        return two_steps(unet.to(device), {key: value.to(device) for key, value in inputs.items()}, branch)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found, expected = outputs(bench.device), outputs(torch.device("cpu"))
    unet.to(bench.device)
    worst = max(relative(a, b) for a, b in zip(found, expected, strict=True))
    return Finding(f"full and retrieve step are {worst:.1e} from the CPU's, allowed {CLOSE:.0e}", worst <= CLOSE)


def clock(bench: Bench, seconds: float, name: str, dtype: str) -> Finding:
    """The U-Net's time by the device's clock is above 0 and within the host's time of the whole loop."""
    subject = bench.subject(name, dtype)
    subject.run(1)
    _, whole, (parts,) = time_call([subject.pipe], lambda: subject.run(1), bench.device)
    right = 0 < parts.unet <= 1.05 * whole  # the loop begins before the first event and ends after the last
    return Finding(f"U-Net {parts.unet:.3f} s of {whole:.3f} s, {len(parts.full_steps)} calls", right)


def waits(bench: Bench, seconds: float, name: str, dtype: str) -> Finding:
    """No step of a loop makes the host wait for the device, with any of the schedulers in the README."""
    subject = bench.subject(name, dtype)
    own, found = subject.pipe.scheduler, []
    with _waits() as seen:
        torch.cuda.set_sync_debug_mode("warn")
        torch.ones(1, device=bench.device).item()
    if not seen:
        return Finding("torch does not report a wait that was made on purpose", False)
    try:
        for scheduler in SCHEDULERS:
            subject.pipe.scheduler = new_scheduler(scheduler, own.config)
            subject.run(1, num_inference_steps=2)  # the first run selects kernels
            places = _waits_of_loop(subject)
            found += [f"{scheduler}: {count} × {place}" for place, count in places.most_common(3)]
    finally:
        subject.pipe.scheduler = own
    return Finding("; ".join(found) or f"none with {', '.join(SCHEDULERS)}", not found)


def _waits_of_loop(subject: Subject) -> Counter[str]:
    """Where the host waited between the end of the first step and that of the last but one, and how often."""

    def step_ended(_: Any, i: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        torch.cuda.set_sync_debug_mode("warn" if i < 10 else "default")
        return values

    with _waits() as places:
        subject.run(1, num_inference_steps=12, callback_on_step_end=step_ended, **BALANCED)
    return places


@contextmanager
def _waits() -> Iterator[Counter[str]]:
    """Once closed, has where and how often the host waited for the device while torch's debug mode was "warn"."""
    places: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waited = [one for one in caught if "called a synchronizing" in str(one.message)]
    places.update(f"{Path(one.filename).name}:{one.lineno}" for one in waited)


def decode(bench: Bench, seconds: float, name: str, dtype: str) -> Finding:
    """Decoding latents to images at the model's native resolution gives finite values."""
    subject = bench.subject(name, dtype)
    subject.run(1, num_inference_steps=1, output_type="pt")  # warm-up
    bench.reset_peak()
    images, _, times = time_call(
        [subject.pipe], lambda: subject.run(1, num_inference_steps=1, output_type="pt"), bench.device
    )
    right = bool(images.isfinite().all())
    size = " × ".join(map(str, images.shape))
    text = f"{sum(times[0].vae):.3f} s, {size}, at most {_gib(bench.peak())}"
    return Finding(text + ("" if right else "; non-finite values"), right)


def offload(bench: Bench, seconds: float, name: str, dtype: str) -> Finding:
    """With idle models on the CPU, the same images as with all on the device, and less memory."""
    subject = bench.subject(name, dtype)
    pictures, peaks = [], []
    for offloaded in (False, True):
        if offloaded:
            place_pipeline(subject.pipe, bench.device, channels_last=False, compiled=False, cpu_offload=True)
        bench.reset_peak()
        pictures.append(subject.run(1, num_inference_steps=8, output_type="pt", **BALANCED).float().cpu())
        peaks.append(bench.peak())
    bench.clear()  # offloading can't be undone
    apart = (pictures[0] - pictures[1]).abs().max().item()
    text = f"pictures at most {apart / GREY:.2f} grey levels apart, allowed 1; at most {_gib(peaks[1])} instead of "
    return Finding(text + _gib(peaks[0]), apart <= GREY)


def graphs(bench: Bench, seconds: float, name: str, dtype: str) -> Finding:
    """Compiled as with --compile: steps close to the eager ones, and no output is overwritten by later calls."""
    eager = bench.subject(name, dtype)
    branch, inputs = eager.settings.branch, eager.inputs(eager.rows)
    expected = two_steps(eager.unet, inputs, branch)
    del eager  # or it would stay in memory beside the compiled one

    subject = bench.subject(name, dtype, compiled_for=1)
    plain = {"cache_interval": PLAIN_INTERVAL, "cache_branch_id": branch, "num_inference_steps": PLAIN_INTERVAL + 3}
    start = time.perf_counter()
    with _skipped_graphs() as skipped:
        subject.run(1, **plain)
    first = time.perf_counter() - start
    repeated = torch.equal(subject.run(1, **plain), subject.run(1, **plain))
    found = two_steps(subject.unet, inputs, branch)

    allowed = ULPS * torch.finfo(DTYPES[dtype]).eps
    apart = max(relative(a, b) for a, b in zip(found, expected, strict=True))
    faults = [f"overwritten: {what}" for what in _overwritten(subject)]
    faults += ["two loops differ"] * (not repeated) + ["too far from eager"] * (apart > allowed)
    texts = [*(faults or ["nothing overwritten"]), f"steps {apart:.1e} from eager ones, allowed {allowed:.1e}"]
    texts += [f"first loop {first:.0f} s", *(f"CUDA graphs skipped: {count}" for count in skipped)]
    return Finding("; ".join(texts), not faults)


def _overwritten(subject: Subject) -> list[str]:
    """Outputs of the U-Net that later calls changed."""
    unet, branch = subject.unet, subject.settings.branch
    inputs = subject.inputs(subject.rows)
    full = unet(**inputs, cache_branch_id=branch)
    retrieve = unet(**inputs, cache_branch_id=branch, cached_feature=full.cached_feature)
    kept = {"output": full.sample, "feature": full.cached_feature, "output of a retrieve step": retrieve.sample}
    copies = {what: value.clone() for what, value in kept.items()}
    for scale in (0.5, 2.0):
        other = {**inputs, "sample": scale * inputs["sample"]}
        feature = unet(**other, cache_branch_id=branch).cached_feature
        unet(**other, cache_branch_id=branch, cached_feature=feature)
    return [what for what, value in kept.items() if not torch.equal(value, copies[what])]


@contextmanager
def _skipped_graphs() -> Iterator[list[int]]:
    """Once closed, has the number of graphs that torch compiled without a CUDA graph, if any."""
    skipped: list[int] = []
    before = counters["inductor"]["cudagraph_skips"]
    yield skipped
    if now := counters["inductor"]["cudagraph_skips"] - before:
        skipped.append(now)


def _gib(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"
