"""The fields for cache and run that the tabs share."""

from __future__ import annotations

from typing import Any

import gradio as gr

from pipelines.loading import SCHEDULERS

from .engine import Engine
from .handlers import preset_fields, visible_fields
from .options import CACHE_FIELDS, CUSTOM, OWN_SCHEDULER, PAPER, PAPER_FIELDS, PRESETS, SCHEDULES, fields_of, preset_of

Components = dict[str, Any]


def run_controls(engine: Engine, *, steps: int) -> Components:
    """Seed, steps, sampler, guidance."""
    with gr.Row():
        fields: Components = {
            "seed": gr.Number(42, label="Seed", min_width=80),
            "steps": gr.Number(steps, label="Steps", min_width=80),
            "guidance_scale": gr.Number(engine.guidance, label="Guidance", step=0.5, min_width=80),
            "scheduler": gr.Dropdown([OWN_SCHEDULER, *SCHEDULERS], value=OWN_SCHEDULER, label="Sampler", min_width=110),
        }
    return fields


def cache_controls(engine: Engine, *, extensions: bool) -> Components:
    """How the run caches: the paper's fields, and with `extensions` the presets and what goes beyond the paper."""
    start = fields_of(PRESETS[PAPER])
    fields: Components = {}
    if extensions:
        fields["preset"] = gr.Dropdown([*PRESETS, CUSTOM], value=PAPER, label="Cache settings")
    gr.HTML(
        '<p class="dc-note">A full step runs the whole U-Net; the others retrieve its deep feature at branch m '
        "(0 is the shallowest).</p>"
    )
    fields["schedule"] = gr.Radio(SCHEDULES, value=start["schedule"], label="Full steps")
    with gr.Row():
        fields["cache_interval"] = gr.Slider(1, 50, start["cache_interval"], step=1, label="Interval N", min_width=150)
        fields["cache_branch_id"] = gr.Slider(
            0, engine.branches - 1, start["cache_branch_id"], step=1, label="Branch m", min_width=150,
        )  # fmt: skip
    with gr.Row():
        fields["center"] = gr.Number(start["center"], label="Center", info="a step", visible=False, min_width=120)
        fields["pow"] = gr.Number(start["pow"], label="Power", info="above 1", step=0.1, visible=False, min_width=120)
    for name, label, info in (
        ("cache_steps", "Full steps", "from 0 on, e.g. 0, 5, 10, 20, 35"),
        ("refresh_steps", "Refresh steps", "with a deeper branch below"),
        ("skip_steps", "Skipped steps", ""),
    ):
        fields[name] = gr.Textbox("", label=label, info=info, visible=False, max_lines=1)
    if not extensions:  # for a video, only the list of full steps
        fields = {name: field for name, field in fields.items() if name in PAPER_FIELDS}
    else:
        with gr.Accordion("Beyond the paper", open=False):
            fields |= _extension_controls(start)
    _connect(fields)
    return fields


def _extension_controls(start: dict[str, Any]) -> Components:
    with gr.Row():
        fields: Components = {
            "forecast": gr.Textbox(
                start["forecast"], label="Forecast g", info="0 copies, 1 extrapolates", max_lines=1, min_width=120
            ),
            "forecast_order": gr.Number(1, label="Its order", info="1 line, 2 parabola", min_width=120),
        }
    with gr.Row():
        fields["refresh_interval"] = gr.Number(0, label="Refresh every", info="steps; 0 is never", min_width=120)
        fields["refresh_branch_id"] = gr.Number(0, label="at branch", info="deeper than m", min_width=120)
    with gr.Row():
        fields["reuse_attention"] = gr.Checkbox(False, label="Reuse attention", min_width=120)
        fields["reuse_guidance"] = gr.Checkbox(False, label="Reuse guidance", min_width=120)
    with gr.Row():
        fields["skip_interval"] = gr.Number(0, label="Compute every", info="others skipped; 0: none", min_width=120)
        fields["skip_order"] = gr.Number(1, label="Skip order", info="0 copies, to 3", min_width=120)
        fields["guidance_stop"] = gr.Number(1, label="Guidance until", info="share of the run", min_width=120)
    return fields


def _connect(fields: Components) -> None:
    """A schedule shows its own fields; a preset fills them in, and its name is shown when they match it."""
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_name": False, "show_api": False}
    by_schedule = [name for name in visible_fields(SCHEDULES[0]) if name in fields]

    def show(schedule: str) -> list[Any]:
        visible = visible_fields(schedule)
        return [gr.update(visible=visible[name]) for name in by_schedule]

    fields["schedule"].change(show, fields["schedule"], [fields[name] for name in by_schedule], **quiet)
    if "preset" not in fields:
        return
    caches = [fields[name] for name in CACHE_FIELDS]

    def fill(preset: str) -> list[Any]:
        values = preset_fields(preset)
        return [gr.skip()] * len(caches) if values is None else [values[name] for name in CACHE_FIELDS]

    def name_of(*values: Any) -> str:
        return preset_of(dict(zip(CACHE_FIELDS, values, strict=True)))

    fields["preset"].input(fill, fields["preset"], caches, **quiet)
    gr.on([field.input for field in caches], name_of, caches, fields["preset"], trigger_mode="always_last", **quiet)
