"""An outcome as HTML: the two images under a slider, their times, and what each step did."""

from __future__ import annotations

import base64
import html
import io
import math
from collections import Counter

from PIL import Image

from common.images import side_by_side

from .engine import LABELS, Outcome
from .watch import FULL, KINDS, REFRESH, RETRIEVE, SKIP, StepSeen

SMOOTH = 256  # pixels of a side from which a picture is enlarged smoothly, and below which pixel by pixel
MEANING = {
    FULL: "the whole U-Net",
    REFRESH: "retrieves at a deeper branch and re-caches",
    RETRIEVE: "only the shallow layers",
    SKIP: "no U-Net at all",
}


def outcome_page(outcome: Outcome, command: str | None, *, fps: int | None = None) -> str:
    """All of it. With `fps` the pictures are a video's frames."""
    pictures = slider(outcome) if fps is None else video(outcome, fps)
    return (
        f'<div class="dc-result">{pictures}<div>{figures(outcome, command)}</div>'
        f'<div class="dc-steps">{strip(outcome.steps, loops=fps is not None)}</div></div>'
    )


def slider(outcome: Outcome) -> str:
    """The baseline on the left of a line that can be moved, DeepCache on the right."""
    before, after = (outcome.images[name][0] for name in LABELS)
    left, right = LABELS.values()
    pixelated = " dc-pixelated" if before.width < SMOOTH else ""
    return (
        f'<figure class="dc-pair{pixelated}" style="--at:50%;aspect-ratio:{before.width}/{before.height}">'
        f'<img src="{data_uri(after)}" alt="{right}"><img class="dc-over" src="{data_uri(before)}" alt="{left}">'
        f'<span class="dc-line"></span><span class="dc-left">{left}</span><span class="dc-right">{right}</span>'
        '<input type="range" min="0" max="100" value="50" step="0.5" '
        f'aria-label="How much of the picture is the baseline\'s, in percent" '
        "oninput=\"this.parentElement.style.setProperty('--at', this.value + '%')\"></figure>"
    )


def video(outcome: Outcome, fps: int) -> str:
    """One animation, the baseline's frames on the left, so that both are always at the same frame."""
    pairs = zip(*(outcome.images[name] for name in LABELS), strict=True)
    first, *rest = (side_by_side([list(pair)]) for pair in pairs)
    stream = io.BytesIO()
    first.save(stream, "WEBP", lossless=True, save_all=True, append_images=rest, duration=1000 // fps, loop=0)
    left, right = LABELS.values()
    encoded = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<figure class="dc-video"><img src="data:image/webp;base64,{encoded}" alt="{left} and {right}, side by side">'
        f"<figcaption><span>{left}</span><span>{right}</span></figcaption></figure>"
    )


def figures(outcome: Outcome, command: str | None) -> str:
    """Seconds of both, their ratios, the distance, and a note on the noise of a single run."""
    rows = [
        ("total", outcome.seconds, outcome.speed_up),
        ("U-Net", outcome.unet_seconds, outcome.unet_speed_up),
    ]
    head = "".join(f'<th scope="col">{text}</th>' for text in ("", *LABELS.values(), "speed-up"))
    body = "".join(
        f'<tr><th scope="row">{title}</th>'
        + "".join(f"<td>{seconds[name]:.2f} s</td>" for name in LABELS)
        + f"<td><strong>{ratio:.2f}×</strong></td></tr>"
        for title, seconds, ratio in rows
    )
    psnr = f"<strong>{outcome.psnr:.1f} dB</strong>" if math.isfinite(outcome.psnr) else "no difference"
    unsafe = f"<p>The safety checker blackened {outcome.unsafe} of the pictures.</p>" if outcome.unsafe else ""
    more = f" <details><summary>As a command</summary><code>{html.escape(command)}</code></details>" if command else ""
    return (
        f'<table class="dc-figures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"<p>PSNR between the two: {psnr}.</p>{unsafe}"
        "<p class='dc-note'>Seconds of one run of each, after a warm-up of a few steps. A single run is noisy, above "
        "all on a busy machine; the scripts time several pairs in turn and give the median.</p>" + more
    )


def strip(steps: list[StepSeen], *, loops: bool = False) -> str:
    """A cell for each step of DeepCache's run, and the number of each kind; with `loops`, of a video's three loops."""
    counts = Counter(step.kind for step in steps)
    most = max((step.rows for step in steps), default=0)
    cells = "".join(
        f'<span class="dc-cell dc-{step.kind}" title="{_step_text(i, step, most)}"></span>'
        for i, step in enumerate(steps)
    )
    legend = "".join(
        f'<span class="dc-key" title="{MEANING[kind]}"><span class="dc-cell dc-{kind}"></span>'
        f"{kind} {counts[kind]}<small>{MEANING[kind]}</small></span>"
        for kind in KINDS
        if counts[kind]
    )
    summary = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
    return (
        f'<p class="dc-title">DeepCache\'s {len(steps)} steps{", in three loops" * loops}</p>'
        f'<div class="dc-strip" role="img" aria-label="{summary}">{cells}</div><div class="dc-legend">{legend}</div>'
    )


def data_uri(image: Image.Image) -> str:
    """The picture as a data URI."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _step_text(i: int, step: StepSeen, most: int) -> str:
    where = "" if step.branch is None else f" at branch {step.branch}"
    half = ", guidance reused" if 0 < step.rows < most else ""
    return f"step {i}: {step.kind}{where}{half}"


CSS = """
.dc-result {display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 4fr); gap: 24px; align-items: start;}
.dc-steps {grid-column: 1 / -1;}
.dc-result p {margin: 8px 0;}
.dc-pair {position: relative; margin: 0; overflow: hidden; border-radius: 8px; width: 100%;}
.dc-pair img {position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; max-width: none;}
.dc-pixelated img, .dc-video img {image-rendering: pixelated;}
.dc-over {clip-path: inset(0 calc(100% - var(--at)) 0 0);}
.dc-line {position: absolute; top: 0; bottom: 0; left: var(--at); width: 3px; margin-left: -1.5px; background: #fff;
  box-shadow: 0 0 3px #000; pointer-events: none;}
.dc-line::after {content: "↔"; position: absolute; top: 50%; left: 50%; transform: translate(-50%, -50%);
  width: 32px; line-height: 32px; text-align: center; border-radius: 50%; background: #fff; color: #222;
  box-shadow: 0 0 3px #000;}
.dc-left, .dc-right {position: absolute; bottom: 8px; padding: 2px 8px; border-radius: 4px; font-size: 13px;
  background: rgb(0 0 0 / 65%); color: #fff; pointer-events: none;}
.dc-left {left: 8px;} .dc-right {right: 8px;}
.dc-pair input {position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize;}
.dc-pair:focus-within {outline: 3px solid var(--color-accent); outline-offset: 2px;}
.dc-video {margin: 0;} .dc-video img {width: 100%; margin: 0;}
.dc-video figcaption {display: flex; justify-content: space-around;}
.dc-figures {width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums;}
.dc-figures, .dc-figures tr {border: 0 !important;}
.dc-figures th, .dc-figures td {padding: 6px 4px !important; text-align: right !important; white-space: nowrap;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important;}
.dc-figures th[scope=row] {text-align: left !important; font-weight: 400;}
.dc-note, .dc-result small {opacity: 0.75; font-size: 13px;}
.dc-result details code {white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px;}
.dc-title {font-weight: 600;}
.dc-strip {display: flex; flex-wrap: wrap; gap: 2px;}
.dc-cell {display: inline-block; width: 11px; height: 22px; border-radius: 2px; border: 1px solid transparent;}
.dc-cell:hover {outline: 2px solid var(--body-text-color);}
.dc-full {background: #1f4e8c;} .dc-refresh {background: #c2410c;} .dc-retrieve {background: #9cc4ea;}
.dc-skip {background: transparent; border-color: #9ca3af;}
.dc-legend {display: flex; flex-wrap: wrap; gap: 4px 16px; margin-top: 8px; font-size: 13px;}
.dc-key {display: inline-flex; align-items: center; gap: 6px;}
@media (max-width: 900px) {
  .dc-result {grid-template-columns: minmax(0, 1fr);}
  .dc-figures {font-size: 13px;} .dc-figures th, .dc-figures td {padding: 6px 2px !important;}
}
"""
