"""Compares two ways to get a ControlNet's residuals on retrieve steps, by the distance to the baseline's images.

    python -m benchmarks.controlnet_residuals

"run" is what the pipeline does: run the ControlNet down to the branch, for residuals of the current step. "reuse"
takes the residuals of the last full step again, which costs nothing. The ControlNet is trained here, in a few minutes,
to make the shipped model's images follow outlines.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image, ImageFilter
from tqdm import tqdm

from common import numbers
from common.command_line import Parser, add_quiet_argument, run_cli
from common.environment import versions
from common.files import check_can_be_made, write_json
from common.folders import atomic_folder
from common.images import side_by_side
from common.shipped import SHAPES_SD
from eval.metrics.distances import distance
from pipelines import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from pipelines.loading import check_steps, new_scheduler
from shapes.scenes import Scene, random_scene, render


class ReusingPipeline(StableDiffusionControlNetPipeline):
    """The other way: reuses the residuals of the last full step."""

    def run_controlnets(self, *args: Any) -> Any:
        *_, branch = args
        if branch is None:
            self._residuals = super().run_controlnets(*args)
            return self._residuals
        return self._residuals[0][: branch + 1], None


def outlines(picture: np.ndarray) -> torch.Tensor:
    """Where an image (64, 64, 3) changes: (3, 64, 64), 0 or 1."""
    edges = np.asarray(Image.fromarray(picture).filter(ImageFilter.FIND_EDGES)).max(2) > 90
    edges[[0, -1]] = edges[:, [0, -1]] = False  # the filter leaves the border unchanged
    return torch.from_numpy(edges).float().expand(3, -1, -1)


def examples(count: int, seed: int, held_out: bool = False) -> tuple[list[Scene], torch.Tensor, torch.Tensor]:
    """Scenes, pictures (B, 3, 64, 64) in [-1, 1] and their outlines (B, 3, 64, 64)."""
    rng = np.random.default_rng((13, seed, int(held_out)))
    scenes = [random_scene(rng, held_out, things=2) for _ in range(count)]
    drawn = [render(scene, rng)[0] for scene in scenes]
    pictures = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return scenes, pictures, torch.stack([outlines(picture) for picture in drawn])


def train_controlnet(pipe: Any, steps: int, batch: int, quiet: bool) -> diffusers.ControlNetModel:
    """A ControlNet for the pipeline's U-Net, trained on the same data; the U-Net is frozen."""
    torch.manual_seed(0)
    net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16, 32, 32)).train()
    pipe.unet.requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-4)
    alphas = pipe.scheduler.alphas_cumprod
    for step in tqdm(range(steps), desc="training", disable=quiet, mininterval=5):
        scenes, pictures, hints = examples(batch, step)
        with torch.no_grad():
            latents = pipe.vae.encode(pictures).latent_dist.mean * pipe.vae.config.scaling_factor  # (B, 4, 8, 8)
            tokens = pipe.tokenizer([s.caption for s in scenes], padding="max_length", return_tensors="pt").input_ids
            context = pipe.text_encoder(tokens)[0]
        timesteps = torch.randint(0, len(alphas), (batch,))
        noise = torch.randn_like(latents)
        noisy = pipe.scheduler.add_noise(latents, noise, timesteps)
        alpha = alphas[timesteps][:, None, None, None]
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        down, middle = net(noisy, timesteps, context, hints, return_dict=False)
        predicted = pipe.unet(
            noisy,
            timesteps,
            context,
            down_block_additional_residuals=tuple(down),
            mid_block_additional_residual=middle,
        ).sample
        loss = ((predicted - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def run(args: argparse.Namespace) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(SHAPES_SD)
    check_steps(pipe, args.steps)
    for branch in args.branches:
        pipe.unet.check_branch(branch)
    if args.out:
        check_can_be_made(args.out)
    net = train_controlnet(pipe, args.train_steps, 16, args.quiet)
    parts = {**pipe.components, "controlnet": net, "requires_safety_checker": False}
    parts["scheduler"] = new_scheduler("ddim", pipe.scheduler.config)
    ways = {"run": StableDiffusionControlNetPipeline(**parts), "reuse": ReusingPipeline(**parts)}
    scenes, _, hints = examples(args.count, 0, held_out=True)

    def make(way: str, **cache: Any) -> tuple[list[Image.Image], float]:
        ways[way].set_progress_bar_config(disable=True)
        start = time.perf_counter()
        output: Any = ways[way](
            [scene.caption for scene in scenes],
            image=hints,
            num_inference_steps=args.steps,
            guidance_scale=2.5,
            generator=[torch.Generator().manual_seed(k) for k in range(args.count)],
            **cache,
        )
        return output.images, time.perf_counter() - start

    baseline, seconds = make("run")
    free = make_without(pipe, scenes, args)
    shown = [[Image.fromarray(np.uint8(h.permute(1, 2, 0) * 255)) for h in hints[:8]], free[:8], baseline[:8]]
    rows = []
    print(f"baseline {seconds:.1f} s\nN   m    way     PSNR to the baseline's, median (least)   seconds")
    for interval in args.intervals:
        for branch in args.branches:
            for way in ways:
                images, seconds = make(way, cache_interval=interval, cache_branch_id=branch)
                psnr = distance(baseline, images)["psnr"]
                rows.append({"interval": interval, "branch": branch, "way": way, "psnr": psnr, "seconds": seconds})
                psnr_text = f"{statistics.median(psnr):.2f} dB ({min(psnr):.2f})"
                print(f"{interval:<4}{branch:<5}{way:<8}{psnr_text:<39}{seconds:.1f}")
    if args.out:
        result = {"rows": rows, "arguments": {k: str(v) for k, v in vars(args).items()}}
        result["versions"] = versions(torch.device("cpu"))
        with atomic_folder(args.out, last="result.json") as tmp_dir:
            side_by_side(shown).save(tmp_dir / "pictures.png")
            write_json(tmp_dir / "result.json", result)


def make_without(pipe: Any, scenes: list[Scene], args: argparse.Namespace) -> list[Image.Image]:
    """The same pictures without the ControlNet, to see that it does something."""
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(k) for k in range(args.count)]
    settings = {"num_inference_steps": args.steps, "guidance_scale": 2.5, "generator": generators}
    return pipe([scene.caption for scene in scenes], **settings).images


def parser() -> Parser:
    p = Parser(prog="python -m benchmarks.controlnet_residuals", description=__doc__)
    p.add_argument("--train-steps", type=numbers.whole(0, 1_000_000), default=800, help="training steps")
    p.add_argument("--count", type=numbers.images, default=32, help="pictures")
    p.add_argument("--steps", type=numbers.steps, default=50, help="denoising steps (DDIM)")
    p.add_argument("--intervals", type=numbers.interval, nargs="+", default=[3, 5, 10], metavar="N")
    p.add_argument("--branches", type=numbers.branch, nargs="+", default=[0, 1, 2, 5], metavar="m")
    p.add_argument("--out", type=Path, metavar="DIR", help="write results and images to this folder")
    add_quiet_argument(p)
    return p


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
