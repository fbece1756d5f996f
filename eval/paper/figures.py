"""Figures 2, 4, 6 and 7 of the paper, from saved measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.files import atomic_write, write_text
from common.plotting import pyplot
from image_sets.batches import Batch
from image_sets.reading import image_batches

from ..counting.branches import measure
from ..counting.branches import plot as plot_macs
from ..counting.layouts import open_model
from ..counting.macs import unet_inputs
from ..metrics.similarity import THRESHOLD, features_of_run, share_above, similarity
from ..metrics.similarity import plot as plot_similarity
from . import measured
from .data import RowRun, Table
from .images import is_made, open_run
from .jobs import Job, Options, Plan, job_of
from .measured import Found
from .results import Result
from .sources import key_of, sources_of

FIGURES = {"figure2": [], "figure4": [], "figure6": ["table13", "table14"], "figure7": ["table13"]}  # and their tables
FIGURE_2_BRANCH, FIGURE_2_IMAGES = 1, 4
FIGURE_7_IMAGES = 6


def measure_figure2(options: Options) -> None:
    """Similarity of the features that enter u_1, between all pairs of steps, of each model's baseline."""
    for name, job in _figure2_jobs(options).items():
        made_from = {
            "run": key_of(job.settings, sources_of(job.settings)), "images": FIGURE_2_IMAGES, "branch": FIGURE_2_BRANCH,
        }  # fmt: skip
        if not job.missing:
            measure = partial(_similarity, job, options)
            measured.measured(_figure2_file(name, options), made_from, measure, options.device)


def _figure2_jobs(options: Options) -> dict[str, Job]:
    models = options.scale.models
    chosen = [name for name in ("ldm4", "ddpm-bedroom", "ddpm-cifar10", "sd15-parti") if name in models]
    jobs = {name: job_of(RowRun(name, models[name].baseline_steps), options) for name in chosen}
    return {name: job for name, job in jobs.items() if job is not None}


def _figure2_file(name: str, options: Options) -> Path:
    return options.out / "measured" / f"figure2-{name}.json"


def _similarity(job: Job, options: Options) -> Found:
    run = open_run(job.settings, options.device)
    matrix = torch.zeros(())
    bar = tqdm(range(FIGURE_2_IMAGES), desc=f"figure 2, {job.run.model}", disable=options.quiet, leave=False)
    for k in bar:

        def sample(k: int = k) -> None:
            run.make(Batch.of(0, [k]))

        matrix = matrix + similarity(features_of_run(sample, run.unet, FIGURE_2_BRANCH)) / FIGURE_2_IMAGES
    return Found({"steps": len(matrix)}, each={"similarity": matrix.flatten().round(decimals=4).tolist()})


def draw_figure(name: str, plans: Mapping[str, Plan], results: Mapping[str, list[Result]], options: Options) -> None:
    """One of `FIGURES`, if its inputs exist."""
    out = options.out
    if name == "figure4":
        figure4(out, options.quiet)
    elif name == "figure2":
        files = {model: measured.read(_figure2_file(model, options)) for model in _figure2_jobs(options)}
        if there := {model: file.found for model, file in files.items() if file is not None}:
            figure2(there, out)
    elif name == "figure6":
        titles = {"PartiPrompts": "table13", "COCO 2017": "table14"}
        figure6({title: (plans[table].table, results[table]) for title, table in titles.items()}, out)
    else:
        plan = plans["table13"]
        rows = [
            (row.name.removeprefix("uniform ").removesuffix(" steps"), job)
            for row, job in zip(plan.table.rows, plan.jobs, strict=True)
            if row.name.startswith(("PLMS 50", "uniform")) and job is not None and is_made(job)
        ]
        if rows:
            figure7(rows, out)


def figure2(found: Mapping[str, Found], out: Path) -> None:
    """The similarity of a run's steps, of each model."""
    rows = []
    for name, one in found.items():
        steps = int(one.values["steps"] or 0)
        matrix = torch.tensor(one.each["similarity"], dtype=torch.float64).reshape(steps, steps)
        share = share_above(matrix)
        plot_similarity(matrix.numpy(), share.numpy(), f"{name}, what enters u_1", out / f"figure2-{name}.png")
        with atomic_write(out / f"figure2-{name}.csv") as tmp_path:
            np.savetxt(tmp_path, matrix.numpy(), delimiter=",", fmt="%.4f")
        write_text(out / f"figure2-{name}.md", f"# Figure 2, {name}: similarity of all pairs of steps\n")
        rows.append(
            f"| {name} | {steps} | {100 * share.mean():.1f} | {100 * share.min():.1f} | "
            f"{matrix.diagonal(1).min():.3f} | {matrix.min():.3f} |"
        )
    lines = [
        "# Figure 2: how alike the features of a run's steps are",
        "",
        f"Cosine similarity of what enters u_1 from below, between all pairs of steps of a run without cache, averaged "
        f"over {FIGURE_2_IMAGES} images. The share is of the other steps whose similarity is above {THRESHOLD}.",
        "",
        "| model | steps | share, mean (%) | share, least (%) | least similarity of neighbours | least of all |",
        "|:--|--:|--:|--:|--:|--:|",
        *rows,
    ]
    write_text(out / "figure2.md", "\n".join(lines) + "\n")


def figure4(out: Path, quiet: bool) -> None:
    """MACs of each skip branch, of the published layouts."""
    for name, title in (("ddpm-cifar10", "DDPM, CIFAR-10"), ("sd15", "Stable Diffusion v1.5, 512 × 512")):
        model = open_model(name)
        fork = model.on_meta()
        branches = range(len(fork.up_layers))
        inputs = unet_inputs(fork, *model.size, tokens=model.tokens)
        result = measure(fork, inputs, branches, [5], 100, model.exceptions, quiet)
        plot_macs(result, title, out / f"figure4-{name}.png")
        lines = [f"# Figure 4: MACs by skip branch, {title}", ""]
        lines += [
            "G multiply-accumulates in the paper's convention; the paper counts branches from 1, m = branch − 1.",
            "",
        ]
        lines += ["| m | down layer and up layer | retrieve step |", "|--:|--:|--:|"]
        lines += [
            f"| {row['cache_branch_id']} | {row['layers']['paper'] / 1e9:.4f} | {row['retrieve']['paper'] / 1e9:.4f} |"
            for row in result["branches"]
        ]
        write_text(out / f"figure4-{name}.md", "\n".join(lines) + "\n")


def figure6(tables: Mapping[str, tuple[Table, list[Result]]], out: Path) -> None:
    """CLIP Score against speed-up: fewer steps, uniform and non-uniform caches; the paper's left, ours right."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2 * len(tables), figsize=(8 * len(tables), 3.6), layout="constrained")
    kinds = {"PLMS": "#888888", "uniform": "#4c78a8", "non-uniform": "#e45756"}
    for k, (title, (table, results)) in enumerate(tables.items()):
        for side, panel in enumerate(axes[2 * k : 2 * k + 2]):
            for kind, colour in kinds.items():
                points = []
                for row, result in zip(table.rows, results, strict=True):
                    if row.name.split()[0] != kind:
                        continue
                    x, y = (
                        row.paper.get(column) if side == 0 else result.number(column)
                        for column in ("speedup", "clip_score")
                    )
                    if x is not None and y is not None:
                        points.append((float(x), float(y)))
                if points:
                    xs, ys = zip(*sorted(points), strict=True)
                    panel.plot(xs, ys, "o-", color=colour, label=kind, markersize=4)
            panel.set(title=f"{title}, {'paper' if side == 0 else 'here'}", xlabel="speed-up", ylabel="CLIP Score")
            panel.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    with atomic_write(out / "figure6.png") as tmp_path:
        figure.savefig(tmp_path, dpi=120)
    plt.close(figure)
    write_text(out / "figure6.md", "# Figure 6: CLIP Score against speed-up\n\nThe data are Tables 13 and 14.\n")


def figure7(rows: Sequence[tuple[str, Job]], out: Path) -> None:
    """Images of the same prompts and noise as N grows."""
    plt = pyplot()
    figure, axes = plt.subplots(
        len(rows),
        FIGURE_7_IMAGES,
        figsize=(1.5 * FIGURE_7_IMAGES, 1.5 * len(rows)),
        layout="constrained",
        squeeze=False,
    )
    for (name, job), line in zip(rows, axes, strict=True):
        images = next(image_batches(job.out / "samples.npz", FIGURE_7_IMAGES, FIGURE_7_IMAGES))
        for panel in line:
            panel.set(xticks=[], yticks=[])
            panel.set_frame_on(False)
        for panel, image in zip(line, images, strict=False):
            panel.imshow(image)
        line[0].set_ylabel(name)
    with atomic_write(out / "figure7.png") as tmp_path:
        figure.savefig(tmp_path, dpi=120)
    plt.close(figure)
    prompts = (rows[0][1].out / "prompts.txt").read_text(encoding="utf-8").splitlines()[:FIGURE_7_IMAGES]
    text = "# Figure 7: the same prompts as N grows\n\n" + "\n".join(f"- {prompt}" for prompt in prompts) + "\n"
    write_text(out / "figure7.md", text)
