"""The page's buttons without the page: fields in, HTML out, and runs that the same visitor can stop."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageChops

from common import numbers
from common.images import to_rgb

from .curve import Measured
from .engine import MOST_FRAMES, Engine, Progress
from .options import BY_SCHEDULE, PRESETS, Options, fields_of, preset_of, read_options
from .shown import outcome_page

COMMAND, VIDEO_COMMAND = "python stable_diffusion.py", "python text2video_zero.py"
INPAINT_CHOICE, IMAGE_CHOICE = "redraw what is painted over", "redraw the whole picture"


class Handlers:
    """The buttons of all visitors. `session` is a visitor's page and tab, which has one run at a time."""

    def __init__(self, engine: Engine, model: str | None) -> None:
        self._engine = engine
        self._model = [] if model is None else ["--model", model]
        self._stops: dict[str, threading.Event] = {}

    def text(self, fields: Mapping[str, Any], session: str, progress: Progress) -> str:
        """Text to image. Raises as `Engine.text` and `read_options`."""
        options = self._read(fields, COMMAND)
        with self._stop_of(session) as stop:
            return outcome_page(self._engine.text(options, stop, progress), options.command)

    def image(
        self, editor: Mapping[str, Any] | None, choice: str, fields: Mapping[str, Any], session: str,
        progress: Progress,
    ) -> str:  # fmt: skip
        """Image to image, or inpainting of what is painted. Raises as `text`, and for a picture that is missing."""
        options = self._read(fields, None)  # no command for this: the picture is not in a file
        background = (editor or {}).get("background")
        if background is None:
            raise ValueError("there is no picture; upload or paste one")
        picture = to_rgb(background)
        mask = None
        if choice == INPAINT_CHOICE:
            mask = mask_of((editor or {}).get("layers") or [], picture.size)
        with self._stop_of(session) as stop:
            return outcome_page(self._engine.image(picture, mask, options, stop, progress), None)

    def video(self, fields: Mapping[str, Any], session: str, progress: Progress) -> str:
        """Text2Video-Zero. Raises as `text`."""
        options = self._read({k: v for k, v in fields.items() if k not in VIDEO_RANGES}, VIDEO_COMMAND)
        frames, motion, fps = (_number(name, fields.get(name)) for name in VIDEO_RANGES)
        command = f"{options.command} --video-length={frames} --motion-x={motion} --motion-y={motion} --fps={fps}"
        with self._stop_of(session) as stop:
            outcome = self._engine.video(options, frames, motion, stop, progress)
        return outcome_page(outcome, command, fps=fps)

    def announce(self, session: str) -> None:
        """Called when a run is asked for, so that it can be stopped while it waits for the device."""
        stop = self._stops.get(session)
        if stop is None or stop.is_set():
            self._stops[session] = threading.Event()

    def stop(self, session: str) -> bool:
        """Stops the session's run at its next step, or before its first; returns whether there is one."""
        stop = self._stops.get(session)
        if stop is not None:
            stop.set()
        return stop is not None

    def _read(self, fields: Mapping[str, Any], command: str | None) -> Options:
        shown = None if command is None else " ".join([command, *self._model])
        return read_options(fields, shown)

    @contextmanager
    def _stop_of(self, session: str) -> Iterator[threading.Event]:
        stop = self._stops.setdefault(session, threading.Event())
        try:
            yield stop
        finally:
            if self._stops.get(session) is stop:
                del self._stops[session]


VIDEO_RANGES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "frames": ("frames", numbers.whole(2, MOST_FRAMES)),
    "motion": ("motion", numbers.real(-512, 512)),
    "fps": ("frames per second", numbers.whole(1, 30)),
}


def mask_of(layers: list[Image.Image], size: tuple[int, int]) -> Image.Image:
    """What is painted on any of the layers, white in mode L.

    Raises:
        ValueError: nothing is.
    """
    mask = Image.new("L", size, 0)
    for layer in layers:
        mask = ImageChops.lighter(mask, layer.convert("RGBA").getchannel("A").resize(size))
    mask = mask.point([0] * 128 + [255] * 128)
    if not mask.getbbox():
        raise ValueError(f"nothing is painted; paint over what to redraw, or choose “{IMAGE_CHOICE}”")
    return mask


def preset_fields(name: str) -> dict[str, Any] | None:
    """The cache's fields of a preset; None for custom settings."""
    return fields_of(PRESETS[name]) if name in PRESETS else None


def point_fields(point: Measured) -> dict[str, Any]:
    """All fields that a measured point sets, and the preset that they are.

    Raises:
        ValueError: a point that the page has no options for.
    """
    if point.run is None:
        raise ValueError(f"“{point.name}” is another method, or has settings not listed here; choose a filled point")
    fields = fields_of(point.run.cache)
    preset = preset_of(fields)
    return {**fields, "steps": point.run.steps, "scheduler": point.run.scheduler, "preset": preset}


def visible_fields(schedule: str) -> dict[str, bool]:
    """Whether each field that only some schedules have is shown."""
    names = dict.fromkeys(name for names in BY_SCHEDULE.values() for name in names)
    return {name: name in BY_SCHEDULE[schedule] for name in names}


def _number(name: str, value: Any) -> Any:
    label, parse = VIDEO_RANGES[name]
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    try:
        return parse(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{label} {error}") from None
