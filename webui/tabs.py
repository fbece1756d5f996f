"""The tabs that make pictures: fields on one side, both runs on the other."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from common.command_line import RunError, is_out_of_memory
from common.shipped import PROMPTS
from shapes.scenes import held_out_scene, render

from .controls import Components, cache_controls, run_controls
from .engine import Engine
from .handlers import IMAGE_CHOICE, INPAINT_CHOICE, Handlers
from .watch import Stopped

EDITOR_SIDES = 256, 512  # pixels, least and most; without a GPU a browser is slow to paint on more
VIDEO_STEPS = 20
STRENGTH = 0.8
EXAMPLE = 4  # of the renderer's scenes: a large green square above a small black triangle, striped gray
EXAMPLE_PROMPT = "a large red circle above a small black triangle on a striped gray background"
MOTION = {True: 64, False: 12}  # by whether the model is the shipped one, as in text2video_zero.py
WAITING = '<p class="dc-note dc-waiting">Baseline and DeepCache will be here, side by side.</p>'
TEXT, IMAGE, VIDEO = TABS = ("text", "image", "video")
STOPPED = '<p class="dc-note">Stopped.</p>'

Make = Callable[[dict[str, Any], str, Any], str]  # fields, session and progress to HTML


def text_tab(engine: Engine, handlers: Handlers) -> Components:
    """Text to image; returns its fields."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            fields = _prompt(engine)
            fields |= run_controls(engine, steps=50)
            fields |= cache_controls(engine, extensions=True)
        with gr.Column(scale=3, min_width=320):
            _run_buttons(fields, handlers, handlers.text, TEXT)
    return fields


def image_tab(engine: Engine, handlers: Handlers) -> None:
    """Image to image, and inpainting with a brush."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            least, most = EDITOR_SIDES
            side = min(max(engine.side, least), most)
            example = None
            if engine.shipped:
                drawn, _ = render(held_out_scene(EXAMPLE), np.random.default_rng(EXAMPLE))
                example = Image.fromarray(drawn).resize((side, side), Image.Resampling.NEAREST)
            fields: Components = {
                "editor": gr.ImageEditor(
                    example and {"background": example, "layers": [], "composite": example},
                    type="pil", label="Picture; paint over what to redraw", sources=("upload", "clipboard"),
                    brush=gr.Brush(colors=["#ff00ff"], color_mode="fixed", default_size=24), layers=False,
                    transforms=(), canvas_size=(side, side), format="png", show_download_button=False,
                    show_fullscreen_button=False, height=420,
                ),
                "choice": gr.Radio([INPAINT_CHOICE, IMAGE_CHOICE], value=IMAGE_CHOICE, label="What to do"),
            }  # fmt: skip
            gr.HTML(
                f'<p class="dc-note">Cropped around its centre to a square of {engine.side} pixels, which is what '
                "this model generates.</p>"
            )
            fields |= _prompt(engine, [EXAMPLE_PROMPT] if engine.shipped else None)
            fields["strength"] = gr.Slider(0, 1, STRENGTH, step=0.05, label="Strength: how much is redrawn")
            fields |= run_controls(engine, steps=50)
            fields |= cache_controls(engine, extensions=True)
        with gr.Column(scale=3, min_width=320):

            def make(values: dict[str, Any], session: str, progress: Any) -> str:
                editor, choice = values.pop("editor"), values.pop("choice")
                return handlers.image(editor, choice, values, session, progress)

            _run_buttons(fields, handlers, make, IMAGE)


def video_tab(engine: Engine, handlers: Handlers) -> None:
    """Text2Video-Zero."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            fields = _prompt(engine)
            with gr.Row():
                fields["frames"] = gr.Number(8, label="Frames", min_width=90)
                fields["fps"] = gr.Number(4, label="Frames per second", min_width=90)
                fields["motion"] = gr.Number(
                    MOTION[engine.shipped], label="Motion", info="pixels of 512, from frame to frame", min_width=90
                )
            fields |= run_controls(engine, steps=VIDEO_STEPS)
            fields |= cache_controls(engine, extensions=False)
            gr.HTML(
                '<p class="dc-note">Text2Video-Zero makes videos with an image model, in three loops; the schedule '
                "starts again in each of them. It supports only the paper's cache.</p>"
            )
        with gr.Column(scale=3, min_width=320):
            _run_buttons(fields, handlers, handlers.video, VIDEO)


def _prompt(engine: Engine, examples: list[str] | None = None) -> Components:
    """The prompt, and a button for another example if there are several."""
    prompts = examples or PROMPTS[engine.shipped]
    prompt = gr.Textbox(prompts[0], label="Prompt", lines=2)
    if len(prompts) > 1:
        another = gr.Button("Another example", size="sm", variant="secondary")

        def following(now: str) -> str:
            return prompts[(prompts.index(now) + 1) % len(prompts) if now in prompts else 0]

        another.click(following, prompt, prompt, queue=False, show_progress="hidden", api_name=False, show_api=False)
    return {"prompt": prompt}


def session_of(visitor: str | None, tab: str) -> str:
    """A tab's session: a visitor has a run in each."""
    return f"{visitor}/{tab}"


def _run_buttons(fields: Components, handlers: Handlers, make: Make, tab: str) -> None:
    """The buttons that start and stop a run, above its outcome."""
    with gr.Row():
        start = gr.Button("Run both", variant="primary", scale=3, min_width=140)
        stop = gr.Button("Stop", variant="stop", scale=1, min_width=90)
    shown = gr.HTML(WAITING, min_height=260, elem_classes="dc-shown")
    names = [name for name in fields if name != "preset"]

    def announce(request: gr.Request) -> None:
        handlers.announce(session_of(request.session_hash, tab))

    def run(request: gr.Request, *values: Any, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008  # Gradio's way
        with one_line_errors(), suppress(Stopped):
            return make(
                dict(zip(names, values, strict=True)), session_of(request.session_hash, tab),
                lambda share, text: progress(share, desc=text),
            )  # fmt: skip
        return STOPPED

    def stop_run(request: gr.Request) -> Any:
        return STOPPED if handlers.stop(session_of(request.session_hash, tab)) else gr.skip()

    # One run at a time on the device, whichever tab it is from; the others wait in Gradio's queue. Stop doesn't use
    # Gradio's `cancels`, which reports the end of a run that is under way twice: the second report then ends the
    # connection of the visitor's next run, whose outcome never arrives.
    unqueued: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_name": False, "show_api": False}
    start.click(announce, None, None, **unqueued)
    start.click(
        run, [fields[name] for name in names], shown, concurrency_limit=1, concurrency_id="device", api_name=False,
        show_api=False, trigger_mode="once",
    )  # fmt: skip
    stop.click(stop_run, None, shown, **unqueued)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Shows errors as one line on the page."""
    try:
        yield
    except (ValueError, RunError) as error:
        raise _shown(" ".join(str(error).split())) from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _shown("out of memory; try fewer frames, or start the page with --dtype float16") from None


def _shown(message: str) -> gr.Error:
    return gr.Error(html.escape(message), title="Not run", print_exception=False)
