"""The loop that trains every shipped model: AdamW, cosine learning rate, moving average, resumable checkpoints."""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from common.files import atomic_write
from common.folders import atomic_folder
from common.safe_load import read_checkpoint

from .scenes import KINDS

WARM_UP = 100  # steps


def attribute_head(width: int) -> nn.Linear:
    """A linear layer from features to scores of every attribute of a thing, for `attribute_loss`."""
    return nn.Linear(width, sum(len(kind) + 1 for kind in KINDS))


def attribute_loss(scores: Tensor, table: Tensor) -> Tensor:
    """The loss of scores (B, 4, 18) for what is on each side of the pictures, table (B, 4, 3).

    From pictures alone, a caption encoder learns last which thing is on which side, since the other losses hardly
    depend on it; with this loss it learns it in minutes.
    """
    split = scores.split([len(kind) + 1 for kind in KINDS], dim=-1)
    losses = [F.cross_entropy(s.flatten(0, 1), table[..., k].flatten()) for k, s in enumerate(split)]
    return torch.stack(losses).mean()


def save_tensors(content: Any, path: Path) -> None:
    """Writes a file for `torch.load`, whole or not at all."""
    with atomic_write(path) as tmp_path:
        torch.save(content, tmp_path)


@contextmanager
def export_to(out: Path, work: Path, *logs: str) -> Iterator[Path]:
    """A folder that becomes `out`, whole or not at all; the training logs are added to it."""
    with atomic_folder(out) as tmp_dir:
        yield tmp_dir
        for name in logs:
            shutil.copy(work / f"{name}.jsonl", tmp_dir / f"{name}.jsonl")


def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    *,
    steps: int,
    learning_rate: float,
    work: Path,
    held_out: Callable[[nn.Module], dict[str, float]],
    weight_decay: float = 0.0,
    ema_decay: float = 0.998,
    every: int = 250,
) -> nn.Module:
    """Trains `model` for `steps` steps and returns the moving average of its weights.

    Every `every` steps the state goes to `work/<name>.pt`, from which a killed run continues, and a line of the
    training loss, the seconds and `held_out(average)` goes to `work/<name>.jsonl`. `loss_of(step)` must draw its
    data from the step's number only, so that a resumed run gets the same data as an uninterrupted one.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / f"{name}.pt"
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True
    )
    first, seconds = 0, 0.0
    if checkpoint.exists():
        state = read_checkpoint(checkpoint, remedy="remove it to train from the beginning")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]

    model.train()
    started, total, counted = time.monotonic(), 0.0, 0
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=5, disable=None)
    for step in bar:
        scale = min(1, (step + 1) / WARM_UP) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * scale
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        total, counted = total + loss.item(), counted + 1

        if (step + 1) % every == 0 or step + 1 == steps:
            now = time.monotonic()
            seconds, started = seconds + now - started, now
            line = {"step": step + 1, "loss": total / counted, "seconds": round(seconds), **held_out(average)}
            total, counted = 0.0, 0
            bar.set_postfix({k: f"{v:.4g}" for k, v in line.items() if k != "step"})
            state = {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "seconds": seconds,
            }
            save_tensors(state, checkpoint)
            with open(work / f"{name}.jsonl", "a") as log:
                log.write(json.dumps({k: round(v, 5) for k, v in line.items()}) + "\n")
    return average
