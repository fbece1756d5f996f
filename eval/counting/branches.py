"""MACs of a U-Net by skip branch: its retrieve step, its two layers, averages over a run; and Figure 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.plotting import pyplot, save_figure

from .macs import NONE, Exceptions, average, branches_of, count_modules, count_retrieve

CONVENTIONS = {"paper": "the paper's convention", "with_attention": "with attention"}


def measure(
    fork: Any,
    inputs: dict[str, Any],
    branches: Sequence[int],
    intervals: Sequence[int],
    steps: int,
    exceptions: Exceptions = NONE,
    quiet: bool = True,
) -> dict[str, Any]:
    """MACs of a full step, and for each branch of its retrieve step, of d_m and u_m, and the average for each interval.

    Returns:
        steps, parameters, full and branches, for JSON; MACs in both conventions of `Macs`.

    Raises:
        ValueError: no such branch.
    """
    for branch in branches:
        fork.check_branch(branch)
    macs = count_modules(fork, inputs, exceptions)
    full, layers = macs[""], branches_of(fork, macs)
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


def plot(result: dict[str, Any], title: str, path: Path) -> None:
    """Figure 4: a bar for each branch counted, written to `path`."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    names = [str(row["cache_branch_id"]) for row in result["branches"]]
    axes.bar(names, [row["layers"]["paper"] / 1e9 for row in result["branches"]], color="#4c78a8")
    axes.set(title=title, xlabel="skip branch m", ylabel="G multiply-accumulates of $d_m$ and $u_m$")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=150)
