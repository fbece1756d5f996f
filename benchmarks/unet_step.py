"""One U-Net step: the stock forward, the fork's full step, a retrieve step, and the package DeepCache's retrieve step.

  python -m benchmarks.unet_step                                   Stable Diffusion 1.5, random weights, branch 1
  python -m benchmarks.unet_step --dtypes bfloat16 --branches 0,1,2,5 --profile

All four run in one process, in turn (A B C D A B C D …), after a warm-up; times are medians, ratios are medians of
the ratios of neighbouring runs. The inputs are a batch of 2, as with guidance, of 64 × 64 latents.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from common import numbers
from common.command_line import Parser, add_quiet_argument, run_cli
from common.device import DTYPES, is_fast, resolve_device, resolve_dtype
from common.environment import versions
from common.files import check_can_be_written, write_json
from common.original_package import original_package
from common.timing import Clock, alternate, pairwise, spread
from eval.counting.layouts import SD15, SD21, SDXL
from eval.counting.macs import count_steps, unet_inputs
from unets import UNet2DConditionModel

MODELS = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL}
OWN_DTYPES = ("float32", "bfloat16")
GROUPS = {  # parts of operator names, in the order in which they are matched
    "attention": ("scaled_dot_product", "softmax", "bmm", "baddbmm"),
    "convolution": ("convolution", "mkldnn_conv", "slow_conv", "cudnn_conv"),
    "linear": ("addmm", "linear", "mm"),
    "normalisation": ("group_norm", "layer_norm"),
    "elementwise": ("silu", "gelu", "mul", "add", "div", "sub", "sigmoid"),
    "copies": ("cat", "copy", "clone", "contiguous", "to_copy", "upsample", "index"),
}


@contextmanager
def package_step(
    unet: diffusers.UNet2DConditionModel, inputs: dict[str, Any], branch: int
) -> Iterator[Callable[[], Any]]:
    """A retrieve step of the package DeepCache at the branch; while open, the package wraps `unet`."""
    try:
        package = original_package()
    except ImportError as error:
        raise ValueError(f"--package: {error}") from None
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(50)
    helper = package.DeepCacheSDHelper(SimpleNamespace(unet=unet, scheduler=scheduler))
    helper.set_params(cache_interval=50, cache_branch_id=branch)
    helper.enable()
    rest = {k: v for k, v in inputs.items() if k not in ("sample", "timestep")}

    def step(position: int) -> Any:
        return unet(inputs["sample"], scheduler.timesteps[position], **rest)

    step(0)  # its full step, which fills its cache
    try:
        yield lambda: step(1)
    finally:
        helper.disable()


def new_unet(
    config: dict[str, Any], device: torch.device, dtype: torch.dtype, channels_last: bool
) -> diffusers.UNet2DConditionModel:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**config).eval().to(device, dtype)
    return unet.to(memory_format=torch.channels_last) if channels_last else unet


def measure(
    stock: diffusers.UNet2DConditionModel,
    wrapped: diffusers.UNet2DConditionModel | None,
    branch: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """All measurements of one branch; `wrapped` is a copy of `stock` for the package, if it is measured."""
    fork, device = UNet2DConditionModel.sharing(stock), stock.device
    inputs = unet_inputs(fork, args.size // 8, args.size // 8, batch=2)
    kept = fork(**inputs, cache_branch_id=branch).cached_feature
    steps: dict[str, Callable[[], Any]] = {
        "stock": lambda: stock(**inputs),
        "full": lambda: fork(**inputs, cache_branch_id=branch),
        "retrieve": lambda: fork(**inputs, cache_branch_id=branch, cached_feature=kept),
    }

    clock = Clock(device)
    rounds = args.warm_up + args.repeats
    bar = tqdm(total=rounds * (len(steps) + (wrapped is not None)), leave=False, disable=args.quiet)

    def timed(name: str) -> float:
        bar.set_description(f"{name}, m = {branch}")
        clock.synchronise()
        start = clock.mark()
        steps[name]()
        seconds = clock.seconds(start, clock.mark())
        bar.update()
        return seconds

    with package_step(wrapped, inputs, branch) if wrapped is not None else nullcontext() as package:
        if package is not None:
            steps["package_retrieve"] = package
        calls = [partial(timed, name) for name in steps]
        alternate(calls, args.warm_up)
        seconds = dict(zip(steps, alternate(calls, args.repeats), strict=True))
    bar.close()

    full, retrieve = count_steps(fork, inputs, branch)
    result: dict[str, Any] = {
        "branch": branch,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "full_by_stock": pairwise(seconds["full"], seconds["stock"]),
        "retrieve_by_full": pairwise(seconds["retrieve"], seconds["full"]),
        "bound_by_operations": retrieve.with_attention / full.with_attention,
    }
    if wrapped is not None:
        result["retrieve_by_package"] = pairwise(seconds["retrieve"], seconds["package_retrieve"])
    if args.memory:
        result["peak_memory"] = {name: peak_memory(steps[name], device) for name in ("stock", "full", "retrieve")}
        result["peak_memory"]["kept_feature"] = kept.numel() * kept.element_size()
    if args.profile:
        result["profile"] = {name: by_kind(steps[name]) for name in ("full", "retrieve")}
    return result


def peak_memory(step: Callable[[], Any], device: torch.device) -> int:
    """Peak bytes of activations in a step, beyond the memory used before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    changes = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def by_kind(step: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a step by kind of operator, each counted without the operators it calls."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    seconds: dict[str, float] = defaultdict(float)
    for entry in recorded.key_averages():
        kind = next((kind for kind, parts in GROUPS.items() if any(part in entry.key for part in parts)), "other")
        seconds[kind] += entry.self_cpu_time_total / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def report(result: dict[str, Any]) -> str:
    seconds = {name: f"{values['median']:.3f} s" for name, values in result["seconds"].items()}
    lines = [
        f"{result['dtype']}, {result['memory_format']}, m = {result['branch']}: "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in seconds.items()),
        f"  full / stock {result['full_by_stock']['median']:.3f}; retrieve / full "
        f"{result['retrieve_by_full']['median']:.3f} (bound {result['bound_by_operations']:.3f})"
        + (
            f"; retrieve / package {result['retrieve_by_package']['median']:.3f}"
            if "retrieve_by_package" in result
            else ""
        ),
    ]
    if "peak_memory" in result:
        lines.append(
            "  peak memory: " + ", ".join(f"{n} {b / 2**20:.1f} MiB" for n, b in result["peak_memory"].items())
        )
    for name, kinds in result.get("profile", {}).items():
        lines.append(f"  {name}: " + ", ".join(f"{kind} {value:.3f} s" for kind, value in kinds.items()))
    return "\n".join(lines)


def parser() -> Parser:
    p = Parser(prog="python -m benchmarks.unet_step", description=__doc__)
    p.add_argument("--model", choices=MODELS, default="sd15", help="architecture; weights are random")
    p.add_argument("--size", type=numbers.pixels, default=512, help="height and width in pixels")
    p.add_argument("--branches", type=numbers.branches, default=[1], metavar="m,…", help="skip branches")
    p.add_argument(
        "--dtypes", metavar="TYPE,…",
        help=f"of {', '.join(DTYPES)} (default: {','.join(OWN_DTYPES)}, without those that the CPU is slow in)",
    )  # fmt: skip
    p.add_argument("--memory-formats", default="contiguous,channels-last", metavar="FORMAT,…")
    p.add_argument("--repeats", type=numbers.repeats, default=5)
    p.add_argument("--warm-up", type=numbers.warm_up, default=1)
    p.add_argument("--device", help="cuda, mps or cpu (default: first available)")
    p.add_argument("--package", action="store_true", help="also the package DeepCache (pip install DeepCache==0.1.1)")
    p.add_argument("--memory", action="store_true", help="also measure peak memory of activations")
    p.add_argument("--profile", action="store_true", help="also show seconds by kind of operator, on the CPU")
    p.add_argument("--out", type=Path, metavar="FILE", help="write everything to this JSON file")
    add_quiet_argument(p)
    return p


def run(args: argparse.Namespace) -> None:
    formats = args.memory_formats.split(",")
    if set(formats) - {"contiguous", "channels-last"}:
        raise ValueError(f"unknown --memory-formats {args.memory_formats}; there are contiguous and channels-last")
    device = resolve_device(args.device)
    dtypes = args.dtypes.split(",") if args.dtypes is not None else [d for d in OWN_DTYPES if is_fast(d, device)]
    if unknown := [name for name in dtypes if name not in DTYPES]:
        raise ValueError(f"unknown --dtypes {', '.join(unknown)}; there are {', '.join(DTYPES)}")
    check_can_be_written(args.out)
    results = []
    with torch.no_grad():
        for dtype in dtypes:
            for memory_format in formats:
                channels_last = memory_format == "channels-last"
                stock = new_unet(MODELS[args.model], device, resolve_dtype(dtype, device), channels_last)
                wrapped = copy.deepcopy(stock) if args.package else None
                for branch in args.branches:
                    measured = measure(stock, wrapped, branch, args)
                    results.append({"dtype": dtype, "memory_format": memory_format, **measured})
                    print(report(results[-1]), flush=True)
                    if args.out:
                        save(results, args)


def save(results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Writes the results so far, whole or not at all."""
    about = {"model": args.model, "size": args.size, "versions": versions(resolve_device(args.device))}
    write_json(args.out, {**about, "results": results})


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
