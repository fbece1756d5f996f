"""DeepCache for ldm-style U-Nets, those of CompVis's latent-diffusion, A1111 and ComfyUI.

They are lists of blocks: input_blocks[k] makes skip k, input_blocks[0] being the first convolution, and
output_blocks[M − 1 − k] consumes it. These are d_k and u_k. `LdmCall` is one call of such a U-Net, written out;
`CachedForward` replaces the U-Net's `forward` with it for one sampling run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from inspect import signature
from typing import Any, Self

from torch import Tensor

from .cache.config import CacheConfig
from .cache.split_run import CachedOutput, SplitRun
from .cached_unet import CachedUNetMixin


class LdmUNet(CachedUNetMixin):
    """The cache's view of such a U-Net. Raises ValueError for any other model, by name."""

    def __init__(self, unet: Any) -> None:
        missing = [n for n in ("input_blocks", "middle_block", "output_blocks", "out") if not hasattr(unet, n)]
        if missing or len(unet.input_blocks) != len(unet.output_blocks):
            raise ValueError(
                f"DeepCache is for U-Nets with as many input_blocks as output_blocks; {type(unet).__name__} is none; "
                "run it without"
            )
        self.unet = unet

    @property
    def num_skip_branches(self) -> int:
        """M; `cache_branch_id` is 0 to M − 1."""
        return len(self.unet.output_blocks)


class LdmCall:
    """One call of the U-Net, split into methods that a host can override. Shapes are Stable Diffusion 1.5's.

    Args:
        unet: a `UNetModel` of CompVis's code or of code built on it.
        x: (B, 4, H, W) noisy latents, scaled by the sampler.
        timesteps: (B,)
        context: (B, tokens, 768) text.
        y: (B,) labels or (B, D) vectors, for a class-conditional U-Net.
    """

    def __init__(self, unet: Any, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None) -> None:
        if (y is None) != (getattr(unet, "num_classes", None) is None):
            raise ValueError(f"y is needed if and only if this {type(unet).__name__} has num_classes")
        self.unet, self.x, self.timesteps, self.context, self.y = unet, x, timesteps, context, y
        self.host: Any = _host(unet)
        self.emb: Any = None

    def forward(
        self,
        cache_branch_id: int | None = None,
        cached_feature: Tensor | None = None,
        keep_branch_id: int | None = None,
    ) -> CachedOutput:
        """Predicts the noise. The arguments are those of the other forks.

        Args:
            cache_branch_id: m, 0 to M − 1. None caches nothing, as in the U-Net's own forward.
            cached_feature: what an earlier step cached at the same branch; makes this a retrieve step.
            keep_branch_id: a shallower branch at which a full or a retrieve step also caches.

        Raises:
            ValueError: branch out of range, or feature without branch.
        """
        m, retrieve = cache_branch_id, cached_feature is not None
        layers = LdmUNet(self.unet)
        layers.check_cache(m, cached_feature, keep_branch_id)
        last = m if retrieve and m is not None else layers.num_skip_branches - 1

        # 1. Down.
        h = self.begin()
        skips = []
        for k in range(last + 1):  # cache (1): a retrieve step runs d_0 … d_m only
            h, skip = self.down(k, h)
            skips.append(skip)  # (B, 320, H, W) … (B, 1280, H/8, W/8)

        # 2. Middle.
        if cached_feature is not None:
            self.skip_deep_layers(last)
            h = cached_feature  # cache (2): equation 5, the feature of an earlier step replaces all deeper layers
        else:
            h = self.middle(h)  # (B, 1280, H/8, W/8)

        # 3. Up.
        kept = kept_above = None
        for k in range(last, -1, -1):
            if k == m:
                kept = h  # cache (3): equation 4, what enters u_m from below is cached
            elif k == keep_branch_id:
                kept_above = h  # cache (4): of two depths, the shallower is re-cached on the way up
            h = self.up(k, h, skips.pop(), skips[-1] if skips else None)

        return CachedOutput(self.end(h), kept, kept_above)  # (B, 4, H, W)

    def begin(self) -> Tensor:
        """Computes the embedding (B, 1280); returns the input of d_0."""
        unet = self.unet
        t_emb = self.host.timestep_embedding(self.timesteps, unet.model_channels, repeat_only=False)  # (B, 320)
        self.emb = unet.time_embed(t_emb)
        if self.y is not None:
            self.emb = self.emb + unet.label_emb(self.y)
        return self.x.type(getattr(unet, "dtype", self.x.dtype))

    def down(self, k: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """d_k; returns the input of the next layer, and skip k."""
        h = self.unet.input_blocks[k](h, self.emb, self.context)
        return h, h

    def skip_deep_layers(self, m: int) -> None:
        """Called on a retrieve step instead of d_{m+1} … u_{m+1}."""

    def middle(self, h: Tensor) -> Tensor:
        """The middle block, on the output of d_{M−1}."""
        return self.unet.middle_block(h, self.emb, self.context)

    def up(self, k: int, h: Tensor, skip: Tensor, next_skip: Tensor | None) -> Tensor:
        """u_k. An upsampler can use the size of the next skip."""
        h = self.host.th.cat([h, skip], dim=1)  # (B, C + C_k, H, W); A1111 replaces `cat` there
        return self.unet.output_blocks[len(self.unet.output_blocks) - 1 - k](h, self.emb, self.context)

    def end(self, h: Tensor) -> Tensor:
        """The noise, from the output of u_0."""
        h = h.type(self.x.dtype)
        out = self.unet.id_predictor if getattr(self.unet, "predict_codebook_ids", False) else self.unet.out
        return out(h)


def _host(unet: Any) -> Any:
    """The module that defines the U-Net's class, in which hosts replace functions."""
    for cls in type(unet).__mro__:
        if hasattr(module := sys.modules.get(cls.__module__), "timestep_embedding"):
            return module
    raise ValueError(f"{type(unet).__name__} is not an ldm-style UNetModel; run it without DeepCache")


def run_cached(run: SplitRun, call: LdmCall, position: int, keys: Sequence[Hashable]) -> Tensor:
    """One call of the U-Net within a run, for a batch of as many equal parts as there are keys. Returns the noise."""
    step = run.plan(position, keys, len(call.x) // len(keys))
    output = None if step.noise is not None else call.forward(step.branch, step.cached_feature, step.keep_branch)
    return run.take(step, output)  # cache (5): the run owns the features


class CachedForward:
    """Caches one sampling run of a host that calls `unet(x, timesteps, context, y)`:

    with CachedForward(model.model.diffusion_model, CacheConfig(cache_interval=3), num_steps=50):
        samples, _ = sampler.sample(S=50, …)

    Args:
        unet: its `forward` is replaced inside the block.
        config: the cache's settings, without attention or guidance reuse.
        num_steps: of the sampler.
        num_calls: calls of the U-Net, if there is more than one per step; PLMS makes one more.
        position: returns the position in the run of the current call, where counting calls is not possible.

    Raises:
        ValueError: an unsupported model or extension, by name; more calls than `num_calls`.
    """

    def __init__(
        self,
        unet: Any,
        config: CacheConfig,
        num_steps: int,
        num_calls: int | None = None,
        position: Callable[[], int] | None = None,
    ) -> None:
        if "transformer_options" in signature(type(unet).forward).parameters:
            raise ValueError(
                f"the forward of this {type(unet).__name__} takes transformer_options, as ComfyUI's and Forge's do; "
                "for ComfyUI use its node"
            )
        _host(unet)
        self._unet = unet
        self._num_calls = num_steps if num_calls is None else num_calls
        self._for_run = (config, LdmUNet(unet), num_steps, self._num_calls)
        self._run = SplitRun(*self._for_run)
        self._position = position
        self._counted = 0

    def __enter__(self) -> Self:
        if "forward" in vars(self._unet):
            raise ValueError(f"the forward of this {type(self._unet).__name__} was already replaced; undo that first")
        self._run, self._counted = SplitRun(*self._for_run), 0
        self._unet.forward = self._forward
        return self

    def __exit__(self, *_: Any) -> None:
        if vars(self._unet).get("forward") == self._forward:  # else someone replaced or removed it
            del self._unet.forward
        self._run = SplitRun(*self._for_run)  # frees the features

    def _forward(self, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None, **kwargs: Any) -> Tensor:
        position = self._counted if self._position is None else self._position()
        if position >= self._num_calls:
            raise ValueError(f"the U-Net is called more than {self._num_calls} times; give the sampler's num_calls")
        self._counted += 1
        call = LdmCall(self._unet, x, timesteps, context, y)
        return run_cached(self._run, call, position, [tuple(x.shape)])
