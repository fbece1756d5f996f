"""Times the whole denoising loop of Stable Diffusion 1.5 with random weights: this repository and the package.

python -m benchmarks.loop                          512 × 512, 50 steps, N = 5, bfloat16, one image; an hour on two cores
python -m benchmarks.loop --steps 10 --repeats 1   minutes

The package DeepCache is timed at the same interval, dtype and memory format, once at the same branch and once at
m = 1, the paper's for Stable Diffusion. With random weights this measures only time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import PNDMScheduler

from common import numbers
from common.command_line import Parser, run_cli
from common.device import DTYPES, resolve_device, resolve_dtype
from common.shipped import RECOMMENDED
from common.timing import alternate, pairwise, spread, time_call
from common.words import counted
from eval.counting.layouts import MODELS
from pipelines import StableDiffusionPipeline
from pipelines.competitors import package_enabled, stock_pipeline
from unets import fork_of

from .points import LISTED

DTYPE = "bfloat16"


def parser() -> Parser:
    p = Parser(prog="python -m benchmarks.loop", description=__doc__)
    p.add_argument("--steps", type=numbers.steps, default=50)
    p.add_argument("--interval", type=numbers.interval, default=5, metavar="N")
    p.add_argument("--size", type=numbers.pixels, default=512, help="pixels of each side")
    p.add_argument("--dtype", choices=DTYPES, help=f"(default: {DTYPE}, or float32 on a CPU that is slow in it)")
    p.add_argument("--channels-last", action="store_true")
    p.add_argument("--repeats", type=numbers.repeats, default=2)
    p.add_argument("--guidance-scale", type=numbers.guidance, default=7.5)
    p.add_argument("--only", nargs="+", metavar="RUN", help="only these runs, as named in the table (default: all)")
    p.add_argument("--baseline", action="store_true", help="time the stock pipeline too")
    p.add_argument("--device", default="cpu")
    return p


def random_pipeline(dtype: torch.dtype, device: str, channels_last: bool) -> Any:
    """Stable Diffusion 1.5's U-Net with random weights, in a pipeline from text embeddings to latents."""
    torch.manual_seed(0)
    unet = fork_of(MODELS["sd15"].cls(**MODELS["sd15"].unet)).to(device, dtype).eval()
    if channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        set_alpha_to_one=False,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device, DTYPE)
    pipe = random_pipeline(dtype, args.device, args.channels_last)
    stock = stock_pipeline(pipe)
    for one in (pipe, stock):
        one.set_progress_bar_config(disable=True)
    text = torch.randn(2, 77, 768, dtype=dtype, device=device)
    call: dict[str, Any] = {
        "prompt_embeds": text[:1], "negative_prompt_embeds": text[1:], "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale, "height": args.size, "width": args.size, "output_type": "latent",
    }  # fmt: skip

    def ours(**cache: Any) -> Any:
        return pipe(**call, generator=torch.Generator().manual_seed(0), **{"cache_interval": args.interval, **cache})

    def package(branch: int) -> Any:
        with package_enabled(stock, args.interval, branch):
            return stock(**call, generator=torch.Generator().manual_seed(0))

    guided: dict[str, Any] = {"forecast": 1.0, "reuse_guidance": True}
    attention: dict[str, Any] = {"reuse_attention": True, **guided}
    runs: dict[str, tuple[Any, Callable[[], Any]]] = {
        "package, m = 1": (stock, partial(package, 1)),
        "package, m = 0": (stock, partial(package, 0)),
        "plain, m = 1": (pipe, partial(ours, cache_branch_id=1)),
        "plain, m = 0": (pipe, partial(ours, cache_branch_id=0)),
        "forecast, m = 0": (pipe, partial(ours, forecast=1.0)),
        "attention reused, m = 0": (pipe, partial(ours, forecast=1.0, reuse_attention=True)),
        "guidance reused, m = 1": (pipe, partial(ours, cache_branch_id=1, **guided)),
        "guidance reused, m = 0": (pipe, partial(ours, **guided)),
        "attention, guidance reused, m = 0": (pipe, partial(ours, **attention)),
    }
    depths = {"cache_interval": 10, "refresh_interval": 5, "refresh_branch_id": 3}
    runs["the same, N = 10, every 5th m = 3"] = (pipe, partial(ours, **attention, **depths))
    for name, settings in RECOMMENDED.items():
        runs[f"{name}, m = 0"] = (pipe, partial(ours, **settings))
    for name, settings in LISTED.items():
        if args.steps > max(settings["refresh_steps"]):
            runs[f"{name}, m = 0"] = (pipe, partial(ours, **settings))
    if args.baseline:
        runs["stock, no cache"] = (stock, lambda: stock(**call, generator=torch.Generator().manual_seed(0)))

    if unknown := sorted(set(args.only or ()) - runs.keys()):
        raise ValueError(f"--only {unknown[0]!r} is not among the runs: {', '.join(runs)}")
    runs = {name: run for name, run in runs.items() if args.only is None or name in args.only}

    def seconds(on: Any, run: Callable[[], Any]) -> float:
        return time_call([on], run, device)[1]

    short = {**call, "num_inference_steps": 1}
    for one in (pipe, stock):
        one(**short, generator=torch.Generator().manual_seed(0))  # warm-up of the kernels
    results = dict(zip(runs, alternate([partial(seconds, *run) for run in runs.values()], args.repeats), strict=True))
    first_name, first = next(iter(results.items()))
    print(f"{args.size} × {args.size}, {counted(args.steps, 'step')} of PLMS, N = {args.interval}, "
          f"{str(dtype).removeprefix('torch.')}, {args.device}, {counted(torch.get_num_threads(), 'thread')}, "
          f"whole loops, {counted(args.repeats, 'round')} in turn")  # fmt: skip
    for name, timed in results.items():
        ratio = pairwise(first, timed)
        print(f"{name:<36}{spread(timed)['median']:8.1f} s{ratio['median']:7.2f}× {first_name} "
              f"({ratio['min']:.2f}–{ratio['max']:.2f})")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
