"""The page as a whole, and the server behind it."""

from __future__ import annotations

import os
import socket
import tempfile
import threading

import gradio as gr
import PIL.Image
from starlette.middleware import Middleware

from common.command_line import RunError

from .cost_tab import cost_tab
from .curve import draw, read_measured
from .engine import Engine
from .handlers import Handlers
from .private import KeepToSelf
from .shown import CSS
from .tabs import TABS, image_tab, session_of, text_tab, video_tab

MOST_WAITING = 16  # runs in the queue
LARGEST_UPLOAD = "20mb"
FONTS = ("system-ui", "sans-serif")  # of the browser's machine
MONO = ("ui-monospace", "monospace")
TITLE = "DeepCache, side by side"
PAGE_CSS = """
footer {display: none !important;}
.gradio-container {max-width: 1360px !important;}
"""


def build(engine: Engine, model: str | None) -> gr.Blocks:
    """The page for a model, which is `model` on the command line (None: the shipped one)."""
    handlers = Handlers(engine, model)
    font, font_mono = ([gr.themes.Font(name) for name in names] for names in (FONTS, MONO))
    theme = gr.themes.Default(font=font, font_mono=font_mono)
    with gr.Blocks(title=TITLE, theme=theme, css=CSS + PAGE_CSS, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\nThe same noise through the same model twice: {engine.name}, {engine.device.type}, "
                    f"{str(engine.dtype).removeprefix('torch.')}.")  # fmt: skip
        with gr.Tabs() as tabs:
            with gr.Tab("Text to image", id="text"):
                fields = text_tab(engine, handlers)
            with gr.Tab("Image to image, inpainting", id="image"):
                image_tab(engine, handlers)
            with gr.Tab("Video", id="video"):
                video_tab(engine, handlers)
            with gr.Tab("What did it cost?", id="cost"):
                cost_tab(draw(read_measured()), fields, tabs)

        def leave(request: gr.Request) -> None:
            for tab in TABS:
                handlers.stop(session_of(request.session_hash, tab))

        page.unload(leave)
    return page.queue(max_size=MOST_WAITING, default_concurrency_limit=None, api_open=False)


def serve(engine: Engine, model: str | None, host: str, port: int, *, quiet: bool = False) -> None:
    """Serves the page until it is interrupted.

    Raises:
        RunError: the port is not available.
    """
    _check_port(host, port)
    # Pillow has Ghostscript run EPS files, which are programs; uploads must not be one.
    PIL.Image.init()
    PIL.Image.ID[:] = [name for name in PIL.Image.ID if name != "EPS"]
    with tempfile.TemporaryDirectory(prefix="deepcache-page-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # the only folder that it serves files from
        page = build(engine, model)
        try:
            page.launch(
                server_name=host, server_port=port, share=False, inbrowser=False, quiet=True, show_api=False,
                show_error=False, prevent_thread_lock=True, allowed_paths=[], max_file_size=LARGEST_UPLOAD,
                enable_monitoring=False, ssr_mode=False, pwa=False, app_kwargs={"middleware": [Middleware(KeepToSelf)]},
            )  # fmt: skip
            if not quiet:
                print(f"The page is at http://{host}:{port}; Ctrl-C ends it.", flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        raise RunError(
            f"cannot serve on {host}, port {port}: {error.strerror}; give another --port or --host"
        ) from None
