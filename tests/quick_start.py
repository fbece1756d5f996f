"""The plug-in as a user of the installed package has it: run by `test_package.py`, away from the repository."""

import sys
from pathlib import Path

import diffusers
import torch

from DeepCache import DeepCacheSDHelper

torch.manual_seed(0)
CHANNELS = (8, 16, 16, 16)
pipe = diffusers.StableDiffusionPipeline(
    unet=diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=CHANNELS, norm_num_groups=4, cross_attention_dim=24, attention_head_dim=2
    ),
    vae=diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 8, 8), norm_num_groups=2, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ),
    scheduler=diffusers.PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
    text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)  # fmt: skip
pipe.set_progress_bar_config(disable=True)
text = torch.randn(2, 7, 24)


def image() -> torch.Tensor:
    """Latents (1, 4, 8, 8), with guidance."""
    return pipe(
        prompt_embeds=text[:1], negative_prompt_embeds=text[1:], num_inference_steps=7, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip


stock_unet, stock = pipe.unet, image()

helper = DeepCacheSDHelper(pipe=pipe)
helper.set_params(cache_interval=1, cache_branch_id=0)
helper.enable()
assert torch.equal(image(), stock)
helper.set_params(cache_interval=3, cache_branch_id=0)
assert helper.params["cache_interval"] == 3
assert helper.params["cache_branch_id"] == 0
cached = image()
assert cached.isfinite().all()
assert not torch.equal(cached, stock)
helper.disable()
assert pipe.unet is stock_unet
assert torch.equal(image(), stock)

ours = {"benchmarks", "common", "comparison", "ddpm", "eval", "image_sets", "ldm", "pipelines", "shapes", "unets"}
assert not ours & {name.split(".")[0] for name in sys.modules}
print("DeepCache", Path(sys.modules["DeepCache"].__file__ or "").parent, "diffusers", diffusers.__version__)
