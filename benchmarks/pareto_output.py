"""What `benchmarks.pareto` measured as a table in Markdown, a CSV file and a plot."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.environment import versions
from common.files import atomic_write
from common.plotting import pyplot, save_figure
from common.words import counted

COLUMNS = {  # heading and decimals
    "unet_speed_up": ("U-Net", 2),
    "speed_up": ("end-to-end", 2),
    "operations": ("fewer MACs", 2),
    "sd15_operations": ("fewer MACs, SD 1.5", 2),
    "mse": ("MSE × 10⁴", 2),
    "psnr": ("PSNR (dB)", 1),
    "ssim": ("SSIM", 4),
    "features": ("feature distance", 4),
    "clip_score": ("CLIP Score", 2),
    "fid": ("FID", 1),
    "psnr_fine": ("PSNR to the fine solution (dB)", 1),
    "mse_fine": ("MSE to it × 10⁴", 2),
}
INTERVALS = ("psnr", "psnr_fine")  # columns with an interval, NAME_low to NAME_high
KINDS = {
    "baseline": "black", "plain": "#4c78a8", "skipped": "#bab0ac", "forecast": "#e45756", "two depths": "#7b3294",
    "recommended": "#d02090", "calibrated": "#17becf", "fewer steps": "#888888",
    "fewer steps, cached": "#54a24b", "other packages": "#b279a2", "published": "#f2cf5b",
}  # fmt: skip


def document(title: str, rows: Sequence[dict[str, Any]], fine: str, args: argparse.Namespace) -> str:
    """Table and setting as Markdown; `fine` is the name of the fine solution."""
    shown = [c for c in COLUMNS if any(c in row for row in rows)]
    lines = ["| | " + " | ".join(COLUMNS[c][0] for c in shown) + " |", "|:--|" + "--:|" * len(shown)]
    lines += [f"| {row['name']} | " + " | ".join(_cell(row, c) for c in shown) + " |" for row in rows]
    machine = versions(torch.device("cpu"))
    about = (
        f"{counted(args.count, 'picture')} a point; speed-ups are medians of {counted(args.repeats, 'round')} of "
        f"batches of {args.time_batch}, all points in turn in one process, "
        f"{counted(int(machine['threads']), 'thread')}, "
        f"torch {machine['torch']}. "
        "Distances are to the first row's pictures from the same noise; MSE is the mean, PSNR and SSIM the median, "
        "with the median's 95 % interval by resampling pictures. "
        f"The fine solution is {fine}, of the same equation from the same noise, for the first "
        f"{counted(args.fine_count, 'picture')}. "
        "Fewer MACs: how many times fewer the run has in the U-Net than the first row's, attention's products "
        "counted, where the loop is ours: of this model, and of Stable Diffusion 1.5's layout at 512 × 512 with the "
        "same settings."
    )
    if "sd15_operations" not in shown:
        about = about.replace(", and of Stable Diffusion 1.5's layout at 512 × 512 with the same settings", "")
        about = about.replace("is ours: of this model.", "is ours.")
    return "\n\n".join([f"# Quality against time: {title}", "\n".join(lines), about]) + "\n"


def _cell(row: dict[str, Any], column: str) -> str:
    """A number, with its interval if it has one."""
    if column not in row:
        return "–"
    names = [column, *(f"{column}_{end}" for end in ("low", "high") if f"{column}_low" in row)]
    number, *ends = (f"{row[name]:.{COLUMNS[column][1]}f}" for name in names)
    return f"{number} ({'–'.join(ends)})" if ends else number


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """All columns, empty where a point has none."""
    columns = [n for c in COLUMNS for n in ((c, f"{c}_low", f"{c}_high") if c in INTERVALS else (c,))]
    with atomic_write(path) as tmp_path, tmp_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["name", "kind", "seconds", *columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plot(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """PSNR to the baseline, and to the fine solution, against the end-to-end speed-up."""
    figure, panels = pyplot().subplots(1, 2, figsize=(15, 5), sharex=True, layout="constrained")
    for axes, column, label in zip(panels, INTERVALS, ("the baseline", "the fine solution"), strict=True):
        for kind, colour in KINDS.items():
            points = sorted((r["speed_up"], r[column]) for r in rows if r["kind"] == kind and column in r)
            # even without points, so that both panels have the same legend
            axes.plot([x for x, _ in points], [y for _, y in points], "o", color=colour, label=kind, ms=4)
        axes.set(xlabel="speed-up, end-to-end", ylabel=f"PSNR to {label} (dB)")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    panels[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, path, dpi=120)
