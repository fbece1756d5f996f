"""Multiply-accumulates of a U-Net's full and retrieve steps, counted without weights on the meta device.

python -m eval.macs --model sd15 --branches 1 --intervals 2,3,5,10
python -m eval.macs --model ddpm-cifar10 --steps 100 --plot figure4.png --out macs.json
python -m eval.macs --model assets/shapes-sd                      any pipeline, U-Net directory, config.json or hub id

The paper's "skip branch" is m + 1 here.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from unets import fork_class

from .arguments import Formatter, at_least, exit_status
from .files import written_aside

CONVENTIONS = {"paper": "the paper's convention", "with_attention": "with attention"}


class Macs(NamedTuple):
    """Multiply-accumulates of one call, in two conventions.

    paper: what the paper's tables count. Convolutions and linear layers with their biases, two per element of a
        normalisation; no matrix products of attention, no activations.
    with_attention: convolutions and all matrix products, attention's included; no biases, no normalisations.
    """

    paper: int
    with_attention: int


class Exceptions(NamedTuple):
    """Where the paper counted another code than diffusers', by names of layers as patterns such as "*.norm1".

    uncounted: layers of a class that its counter did not know; they count nothing in the paper's convention.
    as_convolutions: linear layers that are 1 × 1 convolutions there, whose biases are counted at every place.
    """

    uncounted: tuple[str, ...] = ()
    as_convolutions: tuple[str, ...] = ()


NONE = Exceptions()


def count(unet: nn.Module, inputs: dict[str, Any], exceptions: Exceptions = NONE) -> Macs:
    """Counts one call of `unet(**inputs)`, both on the meta device: torch's counter misses the CPU's own attention."""
    return count_modules(unet, inputs, exceptions)[""]


def count_modules(unet: nn.Module, inputs: dict[str, Any], exceptions: Exceptions = NONE) -> dict[str, Macs]:
    """The same of every module by its name, with all that is within it; "" is the whole."""
    with torch.no_grad(), _paper_convention(unet, exceptions) as paper, FlopCounterMode(display=False) as flops:
        unet(**inputs)
    within: Counter[str] = Counter()
    for layer, operations in paper.items():
        parts = layer.split(".")
        for depth in range(len(parts) + 1):
            within[".".join(parts[:depth])] += operations
    products = flops.get_flop_counts()
    macs = {}
    for name, _ in unet.named_modules():
        key = f"{type(unet).__name__}.{name}" if name else "Global"  # the flop counter's
        macs[name] = Macs(within[name], sum(products.get(key, {}).values()) // 2)
    return macs


def count_retrieve(
    fork: Any,
    inputs: dict[str, Any],
    cache_branch_id: int,
    exceptions: Exceptions = NONE,
    *,
    keep_attention: bool = False,
) -> Macs:
    """A retrieve step at the branch, with what a full step keeps."""
    more = {"keep_attention": True} if keep_attention else {}
    with torch.no_grad():
        kept = fork(**inputs, **more, cache_branch_id=cache_branch_id).cached_feature
    return count(fork, {**inputs, "cache_branch_id": cache_branch_id, "cached_feature": kept}, exceptions)


def count_steps(
    unet: Any,
    inputs: dict[str, Any],
    cache_branch_id: int,
    exceptions: Exceptions = NONE,
    *,
    keep_attention: bool = False,
) -> tuple[Macs, Macs]:
    """A full and a retrieve step at the branch, for the configuration of `unet` and the shapes of `inputs`."""
    with torch.device("meta"):
        model = fork_class(unet).from_config(unet.config).to("meta", unet.dtype).eval()
        shapes = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in inputs.items()}
        if "added_cond_kwargs" in inputs:
            shapes["added_cond_kwargs"] = {k: v.to("meta") for k, v in inputs["added_cond_kwargs"].items()}
        retrieve = count_retrieve(model, shapes, cache_branch_id, exceptions, keep_attention=keep_attention)
        return count(model, shapes, exceptions), retrieve


def count_branches(fork: Any, inputs: dict[str, Any], exceptions: Exceptions = NONE) -> list[Macs]:
    """Figure 4: the operations of down layer d_k and up layer u_k together, for every skip branch k."""
    return _branches_of(fork, count_modules(fork, inputs, exceptions))


def _branches_of(fork: Any, macs: dict[str, Macs]) -> list[Macs]:
    names = {module: name for name, module in fork.named_modules()}
    down = [(fork.conv_in,), *fork.down_layers]
    branches = []
    for d, u in zip(down, fork.up_layers, strict=True):
        layers = [macs[names[m]] for m in (*d, u.resnet, u.attention, u.upsampler) if m is not None]
        branches.append(Macs(*(sum(values) for values in zip(*layers, strict=True))))
    return branches


def average(full: float, retrieve: float, steps: int, interval: int) -> float:
    """Operations of a step on average, where every `interval`-th of `steps` steps is full: ceil(T/N) of them."""
    num_full = math.ceil(steps / interval)
    return (num_full * full + (steps - num_full) * retrieve) / steps


def unet_inputs(
    unet: Any, height: int, width: int, *, batch: int = 1, tokens: int = 77, frames: int = 25
) -> dict[str, Any]:
    """Random inputs for a call of `unet` on latents of (batch, C, height, width), on its device and in its dtype.

    A video U-Net's are (batch, frames, C, height, width), with one token, the image's. An unconditional one has none.
    """
    config = unet.config
    like: dict[str, Any] = {"device": unet.device, "dtype": unet.dtype}
    if isinstance(unet, diffusers.UNetSpatioTemporalConditionModel):
        return {
            "sample": torch.randn(batch, frames, config.in_channels, height, width, **like),
            "timestep": torch.tensor(500, device=unet.device),
            "encoder_hidden_states": torch.randn(batch, 1, config.cross_attention_dim, **like),
            "added_time_ids": torch.tensor([[6, 127, 0.02]] * batch, **like),
        }
    inputs: dict[str, Any] = {
        "sample": torch.randn(batch, config.in_channels, height, width, **like),
        "timestep": torch.tensor(500, device=unet.device),
    }
    if isinstance(unet, diffusers.UNet2DModel):
        if config.class_embed_type is not None or config.num_class_embeds is not None:
            inputs["class_labels"] = torch.zeros(batch, dtype=torch.long, device=unet.device)
        return inputs
    inputs["encoder_hidden_states"] = torch.randn(batch, tokens, config.cross_attention_dim, **like)
    if config.addition_embed_type == "text_time":
        # Pooled text, and 6 sizes, or 5 where an aesthetic score stands for two of them (the refiner).
        width, size_width = config.projection_class_embeddings_input_dim, config.addition_time_embed_dim
        sizes = 5 if width - 5 * size_width == 1280 else 6
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, width - sizes * size_width, **like),
            "time_ids": torch.full((batch, sizes), 1024.0, **like),
        }
    return inputs


@contextmanager
def _paper_convention(unet: nn.Module, exceptions: Exceptions) -> Iterator[dict[str, int]]:
    """Collects, while open, the paper's count of every convolution, linear and normalisation layer, by its name."""
    counts: dict[str, int] = {}

    def matches(name: str, patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    def convolution(layer: Any, output: Tensor, name: str) -> int:
        kernel = layer.weight[0].numel()  # k * k * C_in / groups, for a video's convolutions over time k * C_in
        return output.numel() * (kernel + (layer.bias is not None))

    def linear(layer: Any, output: Tensor, name: str) -> int:
        biases = output.numel() if matches(name, exceptions.as_convolutions) else layer.out_features
        return output.numel() * layer.in_features + (biases if layer.bias is not None else 0)

    def normalisation(_: Any, output: Tensor, name: str) -> int:
        return 2 * output.numel()

    kinds: dict[type[nn.Module], Any] = {
        nn.Conv2d: convolution,
        nn.Conv3d: convolution,
        nn.Linear: linear,
        nn.GroupNorm: normalisation,
        nn.LayerNorm: normalisation,
    }

    def hook(name: str, kind: type[nn.Module]) -> Any:
        def add(layer: nn.Module, _: Any, output: Tensor) -> None:
            counts[name] = counts.get(name, 0) + kinds[kind](layer, output, name)

        return add

    hooks = [
        module.register_forward_hook(hook(name, kind))
        for name, module in unet.named_modules()
        for kind in kinds
        if isinstance(module, kind) and not matches(name, exceptions.uncounted)
    ]
    try:
        yield counts
    finally:
        for handle in hooks:
            handle.remove()


def measure(
    fork: Any,
    inputs: dict[str, Any],
    branches: Sequence[int],
    intervals: Sequence[int],
    steps: int,
    exceptions: Exceptions = NONE,
    quiet: bool = True,
) -> dict[str, Any]:
    """Operations of the full step, and of each branch: its retrieve step, its two layers, averages by interval."""
    for branch in branches:
        fork.check_branch(branch)
    macs = count_modules(fork, inputs, exceptions)
    full, layers = macs[""], _branches_of(fork, macs)
    rows = []
    for branch in tqdm(branches, desc="branches", leave=False, disable=quiet):
        retrieve = count_retrieve(fork, inputs, branch, exceptions)
        averages = {
            str(n): {c: average(getattr(full, c), getattr(retrieve, c), steps, n) for c in CONVENTIONS}
            for n in intervals
        }
        rows.append(
            {
                "cache_branch_id": branch,
                "layers": layers[branch]._asdict(),
                "retrieve": retrieve._asdict(),
                "average": averages,
            }
        )
    return {
        "steps": steps,
        "parameters": sum(p.numel() for p in fork.parameters()),
        "full": full._asdict(),
        "branches": rows,
    }


def report(result: dict[str, Any]) -> str:
    """The measurements as two tables to read, in G."""
    lines = []
    for convention, title in CONVENTIONS.items():
        full = result["full"][convention]
        intervals = list(result["branches"][0]["average"])
        lines += [
            f"{title}: full step {full / 1e9:.4f} G",
            f"{'m':>4}{'d_m + u_m':>12}{'retrieve':>12}{'÷ full':>9}"
            + "".join(f"{'N=' + n:>12}" for n in intervals)
            + f"   averages over {result['steps']} steps",
        ]
        for row in result["branches"]:
            retrieve = row["retrieve"][convention]
            cells = [row["average"][n][convention] for n in intervals]
            lines.append(
                f"{row['cache_branch_id']:>4}{row['layers'][convention] / 1e9:>12.4f}{retrieve / 1e9:>12.4f}"
                f"{retrieve / full:>9.4f}" + "".join(f"{cell / 1e9:>12.4f}" for cell in cells)
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def plot(result: dict[str, Any], title: str, path: Path) -> None:
    """Figure 4: a bar for each skip branch that was counted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    names = [str(row["cache_branch_id"]) for row in result["branches"]]
    axes.bar(names, [row["layers"]["paper"] / 1e9 for row in result["branches"]], color="#4c78a8")
    axes.set(title=title, xlabel="skip branch m", ylabel="G multiply-accumulates of $d_m$ and $u_m$")
    axes.spines[["top", "right"]].set_visible(False)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=150)
    pyplot.close(figure)


def open_model(name: str) -> Any:
    """A `Model` by its name, or from the configuration of a U-Net: a path, or a hub id.

    Raises:
        ValueError: no such model, or a U-Net without a fork.
    """
    from .models import DDPM_ATTENTION, MODELS, Model  # here, since it imports this module

    if name in MODELS:
        return MODELS[name]
    path = Path(name)
    candidates = [path, path / "config.json", path / "unet" / "config.json"]
    if file := next((c for c in candidates if c.is_file()), None):
        try:
            config = json.loads(file.read_text())
        except ValueError:
            raise ValueError(f"{file} is not JSON; give a U-Net's config.json") from None
    elif path.exists() or name.count("/") != 1:
        raise ValueError(f"there is no U-Net {name}; give a path, a hub id (owner/name) or one of {', '.join(MODELS)}")
    else:
        try:
            with warnings.catch_warnings(action="ignore"):  # huggingface_hub's of an argument that diffusers gives it
                config = diffusers.UNet2DConditionModel.load_config(name, subfolder="unet")
        except OSError:
            raise ValueError(
                f"cannot get the configuration of {name} from the hub; check the name, or give a path"
            ) from None
    cls = getattr(diffusers, str(config.get("_class_name") if isinstance(config, dict) else None), None)
    if cls is None or not hasattr(cls, "load_config"):
        raise ValueError(f"{name} does not name the class of its U-Net in _class_name; give a U-Net's config.json")
    size = config.get("sample_size") or 64
    return Model(
        {k: v for k, v in config.items() if not k.startswith("_")},
        tuple(size) if isinstance(size, list) else (size, size),
        cls,
        frames=config.get("num_frames", 25),
        exceptions=DDPM_ATTENTION if cls is diffusers.UNet2DModel else NONE,
    )


def whole_numbers(text: str) -> list[int]:
    """Comma-separated whole numbers of the command line."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 2,3,5") from None


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m eval.macs", description=__doc__, formatter_class=Formatter)
    p.add_argument(
        "--model", default="sd15",
        help="sd15, sd21, sdxl, svd, svd-xt, ldm4, ddpm-cifar10, ddpm-lsun, bk-sdm-base, bk-sdm-small, bk-sdm-tiny; "
        "or a hub id, a pipeline's or a U-Net's directory, a U-Net's config.json",
    )  # fmt: skip
    p.add_argument("--branches", default="all", metavar="m,…", help="skip branches from 0, or all")
    p.add_argument("--intervals", type=whole_numbers, default=[2, 3, 5, 10], metavar="N,…", help="every N-th step full")
    p.add_argument("--steps", type=int, default=50, help="denoising steps that averages are taken over")
    p.add_argument("--height", type=int, help="of the latents (default: the model's)")
    p.add_argument("--width", type=int, help="of the latents (default: the model's)")
    p.add_argument("--tokens", type=int, help="of the text (default: the model's, else 77)")
    p.add_argument("--frames", type=int, help="of a video (default: the model's)")
    p.add_argument("--plot", type=Path, metavar="FILE", help="draw Figure 4, operations by skip branch")
    p.add_argument("--out", type=Path, metavar="FILE", help="write everything to this JSON file")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    return p


def work(args: argparse.Namespace) -> None:
    at_least(args, steps=1, height=1, width=1, tokens=1, frames=1)
    if min(args.intervals) < 1:
        raise ValueError(f"--intervals has {min(args.intervals)}; intervals are at least 1")
    model = open_model(args.model)
    size = (args.height or model.size[0], args.width or model.size[1])
    try:
        fork = model.on_meta()
    except TypeError as error:
        raise ValueError(f"{args.model} is not the configuration of a U-Net of diffusers 0.24.0: {error}") from None
    branches = range(fork.num_skip_branches) if args.branches == "all" else _branches(args.branches)
    inputs = unet_inputs(fork, *size, tokens=args.tokens or model.tokens, frames=args.frames or model.frames)
    result = {"model": args.model, "height": size[0], "width": size[1]}
    result |= measure(fork, inputs, branches, args.intervals, args.steps, model.exceptions, args.quiet)
    print(f"{args.model}, {result['parameters']:,} parameters, {size[0]} × {size[1]}, batch 1; G multiply-accumulates")
    print(report(result))
    if args.plot:
        plot(result, args.model, args.plot)
    if args.out:
        with written_aside(args.out) as aside:
            aside.write_text(json.dumps(result, indent=1) + "\n")


def _branches(text: str) -> list[int]:
    try:
        return whole_numbers(text)
    except argparse.ArgumentTypeError:
        raise ValueError(f"--branches is {text!r}; give all, or branches such as 0,1,2") from None


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_status(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
