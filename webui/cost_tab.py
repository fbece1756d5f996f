"""What settings cost: the measured curve, whose points fill in the fields of the first tab."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .controls import Components
from .curve import Curve, label
from .handlers import point_fields
from .options import CACHE_FIELDS
from .tabs import one_line_errors

ABOUT = """
Each point is one way to make the shipped model's images, measured by `benchmarks.pareto` (`results/pareto/text.md`
has the full table and its setup). Further right is faster, further up is closer to the baseline's image.
**Click a filled point**, or choose one by name, to copy its settings to the tab *Text to image*. Hollow points
are other methods, or runs whose settings this page does not have.
"""


def cost_tab(curve: Curve, fields: Components, tabs: gr.Tabs) -> None:
    """The curve; `fields` are those of the tab with the identifier "text" among `tabs`."""
    gr.Markdown(ABOUT)
    by_name = {point.name: point for point in curve.points if point.run is not None}
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            picture = gr.Image(
                curve.picture, type="pil", format="png", interactive=False, show_label=False, elem_id="dc-curve",
                show_download_button=False, show_fullscreen_button=False,
            )  # fmt: skip
        with gr.Column(scale=2, min_width=320):
            names = gr.Dropdown(
                [(label(point), name) for name, point in by_name.items()], value=None, label="Point", filterable=False
            )
            status = gr.Markdown()
            go = gr.Button("Try it", variant="primary")

    targets = ["steps", "scheduler", "preset", *CACHE_FIELDS]

    def fill(name: str) -> list[Any]:
        with one_line_errors():
            values = point_fields(by_name[name])
        return [name, f"Set: **{label(by_name[name])}**", *(values[target] for target in targets)]

    def click(event: gr.SelectData) -> list[Any]:
        with one_line_errors():
            point = curve.nearest(*event.index)
            if point is None:
                raise ValueError("there is no point here; click nearer to one")
            point_fields(point)
        return fill(point.name)

    outputs = [names, status, *(fields[target] for target in targets)]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_name": False, "show_api": False, "concurrency_limit": None}
    picture.select(click, None, outputs, **quiet)
    names.input(fill, names, outputs, **quiet)
    go.click(lambda: gr.Tabs(selected="text"), None, tabs, **quiet)
