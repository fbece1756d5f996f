"""What the node uses of ComfyUI, written from its interface as of version 0.3.64 (commit a125cd84).

A U-Net with patches, a ControlNet's residuals and wrappers around its forward; a model with wrappers; and a sampling
that calls the model as ComfyUI does: conditions in batches that change, each with a uuid, at sigmas.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch as th
from torch import Tensor

from tests import ldm_unet
from tests.ldm_unet import SpatialTransformer, TimestepBlock, Upsample, timestep_embedding

SIGMAS: dict[tuple[float, ...], Tensor] = {}  # a node that gives sigmas gives the same tensor to several samplings


class WrappersMP:
    OUTER_SAMPLE = "outer_sample"
    DIFFUSION_MODEL = "diffusion_model"


class WrapperExecutor:
    """A function with what is wrapped around it: each wrapper is handed an executor of all that is within."""

    def __init__(self, original: Callable[..., Any], class_obj: Any, wrappers: Sequence[Any], idx: int) -> None:
        self.original, self.class_obj, self.wrappers, self.idx = original, class_obj, list(wrappers), idx

    @classmethod
    def new_class_executor(cls, original: Any, class_obj: Any, wrappers: Any, idx: int = 0) -> WrapperExecutor:
        return cls(original, class_obj, wrappers, idx)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        if self.idx == len(self.wrappers):
            return self.original(*args, **kwargs)
        return self.wrappers[self.idx](self, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return WrapperExecutor(self.original, self.class_obj, self.wrappers, self.idx + 1).execute(*args, **kwargs)


def wrappers_of(options: dict[str, Any], kind: str) -> list[Any]:
    return [w for ws in options.get("wrappers", {}).get(kind, {}).values() for w in ws]


def forward_timestep_embed(
    ts: Any, x: Tensor, emb: Tensor, context: Any = None, transformer_options: Any = None,
    output_shape: Any = None, time_context: Any = None, num_video_frames: Any = None, image_only_indicator: Any = None,
) -> Tensor:  # fmt: skip
    for layer in ts:
        if isinstance(layer, TimestepBlock):
            x = layer(x, emb)
        elif isinstance(layer, SpatialTransformer):
            x = layer(x, context)
            for patch in transformer_options.get("patches", {}).get("attn2_output_patch", ()):
                x = patch(x, transformer_options)
            transformer_options["transformer_index"] += 1
        else:
            x = layer(x, output_shape) if isinstance(layer, Upsample) else layer(x)
    return x


def apply_control(h: Tensor, control: Any, name: str) -> Tensor:
    if control is not None and control.get(name):
        residual = control[name].pop()
        if residual is not None:
            h += residual
    return h


class UNetModel(ldm_unet.UNetModel):
    default_num_video_frames = None

    def forward(  # type: ignore[override]
        self, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None, control: Any = None,
        transformer_options: Any = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        wrappers = wrappers_of(transformer_options, WrappersMP.DIFFUSION_MODEL)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, y, control, transformer_options, **kwargs)

    def _forward(
        self, x: Tensor, timesteps: Any, context: Any, y: Any, control: Any, transformer_options: Any
    ) -> Tensor:
        options, patches = transformer_options, transformer_options.get("patches", {})
        options.update(original_shape=list(x.shape), transformer_index=0)
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        for p in patches.get("emb_patch", ()):
            emb = p(emb, self.model_channels, options)
        h, hs = x, []
        for i, block in enumerate(self.input_blocks):
            options["block"] = ("input", i)
            h = apply_control(forward_timestep_embed(block, h, emb, context, options), control, "input")
            for p in patches.get("input_block_patch", ()):
                h = p(h, options)
            hs.append(h)
            for p in patches.get("input_block_patch_after_skip", ()):
                h = p(h, options)
        options["block"] = ("middle", 0)
        h = apply_control(forward_timestep_embed(self.middle_block, h, emb, context, options), control, "middle")
        for i, block in enumerate(self.output_blocks):
            options["block"] = ("output", i)
            skip = apply_control(hs.pop(), control, "output")
            for p in patches.get("output_block_patch", ()):
                h, skip = p(h, skip, options)
            shape = hs[-1].shape if hs else None
            h = forward_timestep_embed(block, th.cat([h, skip], dim=1), emb, context, options, shape)
        return self.out(h)


class ModelPatcher:
    """A model, with what nodes have put on it."""

    def __init__(self, unet: Any) -> None:
        self.model = SimpleNamespace(diffusion_model=unet)
        self.wrappers: dict[str, dict[str, list[Any]]] = {}
        self.patches: dict[str, list[Any]] = {}

    def clone(self) -> ModelPatcher:
        other = ModelPatcher(self.model.diffusion_model)
        other.model = self.model
        other.wrappers = {k: {key: ws.copy() for key, ws in named.items()} for k, named in self.wrappers.items()}
        other.patches = {name: ps.copy() for name, ps in self.patches.items()}
        return other

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.get(kind, {}).pop(key, None)

    def get_model_object(self, name: str) -> Any:
        assert name == "model_sampling"
        return SimpleNamespace(percent_to_sigma=lambda percent: 10.0 * (1 - percent))


@dataclass(frozen=True)
class Condition:
    """One prompt: `number` is 0 for the conditional, 1 for the unconditional."""

    number: int
    context: Tensor
    uuid: object = field(default_factory=object)
    control: Callable[[float], Any] = lambda sigma: None


@dataclass
class Called:
    """One call of the model."""

    arguments: tuple[Any, ...]  # latents, timesteps, text, labels, a ControlNet's residuals
    sigma: float
    numbers: list[int]
    output: Tensor
    is_full: bool
    blocks: list[tuple[str, int, int]]  # with attention: which list, which block, which attention, as patches are told


def sample(
    model: ModelPatcher,
    latents: Tensor,
    conditions: Sequence[Condition],
    sigmas: Sequence[float],
    order: Callable[[int], list[list[int]]] = lambda call: [[0, 1]],
    between: Sequence[float] = (),
    frozen: bool = False,
) -> list[Called]:
    """The calls of one sampling by Euler's method with guidance 3.

    Args:
        order: for each evaluation, which conditions are batched, and in which order the batches come.
        between: for each step, further evaluations at this part of the way to the next sigma.
        frozen: latents and timestep stay as they were.
    """
    unet = model.model.diffusion_model
    calls: list[Called] = []
    told: list[tuple[str, int, int]] = []
    sample_sigmas = SIGMAS.setdefault(tuple(sigmas), th.tensor(sigmas))

    def evaluate(x: Tensor, sigma: float, evaluation: int) -> Tensor:
        found: dict[int, Tensor] = {}
        for batch in order(evaluation):
            used = [conditions[i] for i in batch]
            context = th.cat([c.context for c in used])
            control = used[0].control(sigma)
            options = {
                "wrappers": model.wrappers, "patches": model.patches, "sample_sigmas": sample_sigmas,
                "sigmas": th.tensor([sigma]), "uuids": [c.uuid for c in used],
                "cond_or_uncond": [c.number for c in used],
            }  # fmt: skip
            given = (
                th.cat([x] * len(batch)),
                th.full((len(x) * len(batch),), 90 * (sigmas[0] if frozen else sigma)),
                context,
                None,
            )
            told.clear()
            output = unet(*given, copy.deepcopy(control), options)
            is_full = any(block[0] == "middle" for block in told)
            calls.append(Called((*given, control), sigma, [c.number for c in used], output, is_full, told.copy()))
            found |= dict(zip(batch, output.chunk(len(batch)), strict=True))
        return found[1] + 3 * (found[0] - found[1]) if 1 in found else found[0]

    def run(x: Tensor) -> Tensor:
        evaluation = 0
        for sigma, after in itertools.pairwise(sigmas):
            for part in (0.0, *between):
                at = sigma + part * (after - sigma)
                if at > 0:
                    noise = evaluate(x, at, evaluation)
                    evaluation += 1
            x = x if frozen else x + (after - sigma) * noise / 10
        return x

    model = model.clone()
    model.patches.setdefault("attn2_output_patch", []).append(
        lambda h, options: told.append((*options["block"], options["transformer_index"])) or h  # type: ignore[func-returns-value]
    )
    wrappers = wrappers_of({"wrappers": model.wrappers}, WrappersMP.OUTER_SAMPLE)
    guider = SimpleNamespace(model_patcher=model)
    WrapperExecutor.new_class_executor(run, guider, wrappers).execute(latents)
    return calls


@contextmanager
def installed() -> Iterator[None]:
    """These under their names in ComfyUI."""
    here = sys.modules[__name__]
    names = (
        "comfy", "comfy.patcher_extension", "comfy.ldm", "comfy.ldm.modules", "comfy.ldm.modules.attention",
        "comfy.ldm.modules.diffusionmodules", "comfy.ldm.modules.diffusionmodules.openaimodel",
    )  # fmt: skip
    with_code = {"patcher_extension", "attention", "openaimodel"}
    modules: dict[str, Any] = {n: here if n.split(".")[-1] in with_code else ModuleType(n) for n in names}
    modules["comfy.ldm.modules.diffusionmodules"].openaimodel = here
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
