"""Small diffusion transformers for tests, two blocks each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor

from dit import tiny
from dit.options import Maker
from dit.pipeline import DiTPipeline

LABELS = [3, 0]


def pipelines(**changes: Any) -> tuple[Any, DiTPipeline]:
    """diffusers' own and the fork, over the same weights."""
    parts = tiny.parts(**{"num_layers": 2, **changes})
    made = diffusers.DiTPipeline(**parts), DiTPipeline(**parts)
    for pipe in made:
        pipe.set_progress_bar_config(disable=True)
    return made


def run(pipe: Any, labels: Sequence[int] = LABELS, **arguments: Any) -> Any:
    """Images (B, 64, 64, 3), each from noise of its own; what a sampler draws is the same at every call."""
    torch.manual_seed(0)
    generators = [torch.Generator().manual_seed(k) for k in range(len(labels))]
    return pipe(labels, generator=generators, **{"num_inference_steps": 4, "output_type": "np", **arguments}).images


def inputs(seed: int = 0) -> dict[str, Tensor]:
    """Of one call of a tiny transformer, three rows."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(3, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([10, 500, 900]),
        "class_labels": torch.tensor([0, 7, 1000]),
    }


def maker(steps: int = 4, batch_size: int = 2, **changes: Any) -> Maker:
    """Of the fork."""
    _, pipe = pipelines(**changes)
    return Maker(pipe, "tiny", steps, 1.5, "random", 0, batch_size)


def widened(transformer: Any) -> Any:
    """A stock transformer that gives what `transformer` gives, with 1,000 classes, so that diffusers can guide it.

    Its table of classes has the first ones as they were, and in its last row the one that stands for any.
    """
    config = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    classes = config["num_embeds_ada_norm"]
    wide = diffusers.Transformer2DModel(**{**config, "num_embeds_ada_norm": 1000}).eval()
    state = transformer.state_dict()
    for name, table in state.items():
        if name.endswith("embedding_table.weight"):
            state[name] = torch.cat([table[:classes], torch.zeros(1000 - classes, table.shape[1]), table[classes:]])
    wide.load_state_dict(state)
    return wide
