"""One static page over a folder of results: tables, plots, and the pictures of both runs one over the other.

python -m eval.report results
python -m eval.report outputs --out report.html

Shown are, at any depth: *.md (headings, paragraphs, lists, code, tables), with the *.png and *.csv of the same name;
every other *.png; and the folders that the scripts of this repository write (result.json, baseline_000.png,
deepcache_000.png …). Everything is in the one file; it needs no network.
"""

from __future__ import annotations

import argparse
import base64
import csv
import html
import mimetypes
import re
import string
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command_line import Parser, run_cli
from common.files import write_text
from common.reading import read_json, read_text

RESULT = "result.json"  # what `comparison` writes beside the pictures of two runs
PAGE = Path(__file__).with_name("report.html")
PAIRS_SHOWN = 4  # of one run, the others are folded away


@dataclass
class Heading:
    text: str
    level: int


@dataclass
class Table:
    header: list[str]
    rows: list[list[str]]


@dataclass
class Text:
    """A paragraph, the items of a list, or lines of code."""

    kind: str  # "p", "li" or "pre"
    parts: list[str]


Block = Heading | Table | Text


def markdown_blocks(text: str) -> list[Block]:
    """The blocks of the simple markdown that the scripts here write: headings, pipe tables, lists, code, paragraphs."""
    blocks: list[Block] = []
    lines = text.splitlines()
    paragraph: list[str] = []

    def end_paragraph() -> None:
        if paragraph:
            blocks.append(Text("p", [" ".join(paragraph)]))
            paragraph.clear()

    while lines:
        line = lines.pop(0)
        heading = re.match(r"(#{1,6})\s+(.*?)\s*#*$", line)
        item = re.match(r"\s*[-*+]\s+(.*)", line)
        if line.lstrip().startswith("```"):
            end_paragraph()
            code = []
            while lines and not lines[0].lstrip().startswith("```"):
                code.append(lines.pop(0))
            lines[:1] = []
            blocks.append(Text("pre", code))
        elif heading:
            end_paragraph()
            blocks.append(Heading(heading[2], len(heading[1])))
        elif "|" in line and lines and re.fullmatch(r"\s*\|?(\s*:?-+:?\s*\|?)+\s*", lines[0]) and "|" in lines[0]:
            end_paragraph()
            lines.pop(0)
            rows = []
            while lines and "|" in lines[0]:
                rows.append(_cells(lines.pop(0)))
            blocks.append(Table(_cells(line), rows))
        elif item:
            end_paragraph()
            last = blocks[-1] if blocks else None
            if isinstance(last, Text) and last.kind == "li":
                last.parts.append(item[1])
            else:
                blocks.append(Text("li", [item[1]]))
        elif line.strip():
            paragraph.append(line.strip())
        else:
            end_paragraph()
    end_paragraph()
    return blocks


def _cells(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def inline(text: str) -> str:
    """Text as HTML: everything escaped, then `code`, **bold**, *italics* and links to the web."""
    escaped = html.escape(text)
    parts = re.split(r"(`[^`]+`)", escaped)
    for k, part in enumerate(parts):
        if k % 2:
            parts[k] = f"<code>{part[1:-1]}</code>"
            continue
        part = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", part)
        part = re.sub(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])", r"<em>\1</em>", part)
        parts[k] = re.sub(r"\[([^\]]+)\]\((https?://[^\s()]+)\)", r'<a href="\2">\1</a>', part)
    return "".join(parts)


def block_html(block: Block) -> str:
    if isinstance(block, Heading):
        level = min(block.level + 1, 6)  # the page has the first
        return f"<h{level}>{inline(block.text)}</h{level}>"
    if isinstance(block, Table):
        return table_html(block)
    if block.kind == "pre":
        return f'<pre tabindex="0">{html.escape(chr(10).join(block.parts))}</pre>'
    if block.kind == "li":
        return "<ul>" + "".join(f"<li>{inline(part)}</li>" for part in block.parts) + "</ul>"
    return f"<p>{inline(block.parts[0])}</p>"


def table_html(table: Table, kind: str = "wide") -> str:
    """A table that scrolls by itself where it is wider than the screen; numbers are aligned to the right."""
    columns = zip(*(row[: len(table.header)] for row in table.rows), strict=False)
    numbers = [all(map(_is_number, column)) for column in columns] or [False] * len(table.header)
    head = "".join(
        f'<th scope="col"{_aligned(number)}>{inline(cell)}</th>'
        for cell, number in zip(table.header, numbers, strict=False)
    )
    rows = ["".join(f"<td{_aligned(_is_number(cell))}>{inline(cell)}</td>" for cell in row) for row in table.rows]
    return (
        f'<div class="{kind}" role="region" aria-label="Table" tabindex="0"><table>'
        + (f"<thead><tr>{head}</tr></thead>" if head else "")
        + f"<tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table></div>"
    )


def _is_number(cell: str) -> bool:
    return cell in ("–", "") or re.match(r"[-+−]?[\d.,]+", cell.strip("*`~ ")) is not None


def _aligned(number: bool) -> str:
    return ' class="number"' if number else ""


def data_uri(path: Path) -> str:
    """The file itself as an address."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def plot_html(path: Path, title: str) -> str:
    return f'<figure class="plot"><img src="{data_uri(path)}" alt="{html.escape(title)}" loading="lazy"></figure>'


def csv_html(path: Path, with_table: bool) -> str:
    """A link that saves the file, after its rows as a table if there is no other."""
    try:
        rows = list(csv.reader(read_text(path, "write it again").splitlines()))
    except csv.Error as error:
        raise ValueError(f"cannot read {path}: {error}; write it again as CSV in UTF-8") from None
    name = html.escape(path.name)
    link = f'<p><a download="{name}" href="{data_uri(path)}">{name}</a></p>'
    return (table_html(Table(rows[0], rows[1:])) if with_table and rows else "") + link


def is_comparison(folder: Path) -> bool:
    """Whether a script of this repository wrote it with the pictures of two runs."""
    return (folder / RESULT).is_file() and (folder / "baseline_000.png").is_file()


def comparison_html(folder: Path, title: str) -> str:
    """The pictures of both runs one over the other with a slider between them, and what was measured."""
    result = read_json(folder / RESULT, dict, remedy="run the script that wrote it again")
    prompts = _at(result, "resolved", "prompt") or _at(result, "arguments", "prompt") or []
    prompts = prompts if isinstance(prompts, list) else [prompts]
    baselines = sorted(folder.glob("baseline_*.png"))
    pairs = []
    for k, baseline in enumerate(baselines):
        deepcache = baseline.with_name(baseline.name.replace("baseline", "deepcache"))
        if deepcache.is_file():
            each = len(baselines) // len(prompts) if prompts else 0  # images of a prompt, which follow one another
            prompt = str(prompts[k // each]) if each and len(baselines) % len(prompts) == 0 else f"picture {k}"
            pairs.append(pair_html(baseline, deepcache, prompt))
    shown, folded = pairs[:PAIRS_SHOWN], pairs[PAIRS_SHOWN:]
    moving = folder / "output.gif"
    parts = [f"<h2>{html.escape(title)}</h2>", table_html(Table([], _measured(result)), "wide facts")]
    if moving.is_file():
        parts.append(plot_html(moving, f"{title}: left baseline, right DeepCache"))
    parts.append(f'<div class="pairs">{"".join(shown)}</div>')
    if folded:
        parts.append(
            f'<details><summary>{len(folded)} more</summary><div class="pairs">{"".join(folded)}</div></details>'
        )
    return "".join(parts)


def pair_html(baseline: Path, deepcache: Path, prompt: str) -> str:
    """Two pictures; without scripts they stand side by side, with them a slider moves the border between them."""
    name = html.escape(prompt)
    return (
        '<figure class="pair"><div class="stack">'
        f'<img src="{data_uri(baseline)}" alt="Baseline: {name}">'
        f'<img class="over" src="{data_uri(deepcache)}" alt="DeepCache: {name}"></div>'
        f'<input type="range" min="0" max="100" value="50" aria-label="Share of the baseline shown: {name}" hidden>'
        f'<div class="sides"><span>Baseline</span><span>DeepCache</span></div><figcaption>{name}</figcaption></figure>'
    )


def _measured(result: dict[str, Any]) -> list[list[str]]:
    """What can be said of a run, as far as it is in its result."""
    rows = []

    def add(title: str, value: Any, form: str = "{}") -> None:
        if value is not None:
            rows.append([title, form.format(value)])

    add("model", _at(result, "arguments", "model"))
    add("scheduler", _at(result, "resolved", "scheduler"))
    add("steps", _at(result, "arguments", "steps"))
    if isinstance(full_steps := _at(result, "cache", "cache_steps"), list):
        add("full steps", ", ".join(map(str, full_steps)))
    else:
        add("cache interval N", _at(result, "cache", "cache_interval"))
    add("skip branch m", _at(result, "cache", "cache_branch_id"))
    for run, title in (("baseline", "baseline"), ("deepcache", "DeepCache")):
        add(f"{title}, end-to-end", _number_at(result, "seconds", run, "median"), "{:.3g} s")
    add("speed-up, end-to-end", _number_at(result, "speed_up", "median"), "{:.2f}×")
    stages = result.get("stages")
    stages = stages if isinstance(stages, dict) else {}
    for name, stage in stages.items():
        of = f" of {name}" if len(stages) > 1 else ""
        add(f"speed-up of the U-Net{of}", _number_at(stage, "speed_up", "median"), "{:.2f}×")
        add(f"expected from MACs{of}", _number_at(stage, "operations", "bound"), "{:.2f}×")
    add("PSNR to the baseline, median", _number_at(result, "distance", "median_psnr"), "{:.1f} dB")
    add("SSIM to the baseline, median", _number_at(result, "distance", "median_ssim"), "{:.4f}")
    add("device", _at(result, "versions", "device"))
    return rows


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _number_at(value: Any, *keys: str) -> float | None:
    found = _at(value, *keys)
    return found if isinstance(found, int | float) else None


def sections(folder: Path) -> list[tuple[str, str]]:
    """Title and HTML of everything in the folder, README first, then by name, numbers by their value.

    Raises:
        ValueError: naming the file that can't be read; or if there is nothing to show.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give one with results, such as results or outputs")
    comparisons = [d for d in (folder, *folder.rglob("*")) if d.is_dir() and is_comparison(d)]
    files: dict[Path, list[Path]] = {}
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        shown = path.suffix in (".md", ".csv", ".png") and path.is_file() and not hidden
        if shown and path.parent not in comparisons:
            files.setdefault(path.with_suffix(""), []).append(path)
    found = []
    for key in sorted({*files, *comparisons}, key=lambda path: _order(path, folder)):
        name = key.relative_to(folder).as_posix() if key != folder else folder.resolve().name
        if key in files:
            name = name.removesuffix(f"/{key.name}") if key.parent.name == key.name else name
            found.append(_file_section(name, {path.suffix: path for path in files[key]}))
        if key in comparisons and not key.name.startswith("."):
            found.append((name, comparison_html(key, name)))
    if not found:
        raise ValueError(f"{folder} holds no tables (*.md, *.csv), plots (*.png) or runs ({RESULT}); give another")
    return found


def _order(path: Path, folder: Path) -> list[Any]:
    name = path.relative_to(folder).as_posix().lower()
    parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
    return [name != "readme", parts]


def _file_section(name: str, files: dict[str, Path]) -> tuple[str, str]:
    blocks: list[Block] = []
    if ".md" in files:
        blocks = markdown_blocks(read_text(files[".md"], "write it again"))
    titled = bool(blocks) and isinstance(blocks[0], Heading)
    title = blocks[0].text if blocks and isinstance(blocks[0], Heading) else name
    parts = [] if titled else [f"<h2>{html.escape(title)}</h2>"]
    parts += [block_html(block) for block in blocks]
    if ".png" in files:
        parts.append(plot_html(files[".png"], title))
    if ".csv" in files:
        parts.append(csv_html(files[".csv"], with_table=".md" not in files))
    return re.sub(r"[*`]", "", title), "".join(parts)


def page(found: list[tuple[str, str]], title: str) -> str:
    """The whole page."""
    links = "".join(f'<li><a href="#s{k}">{html.escape(name)}</a></li>' for k, (name, _) in enumerate(found))
    body = "".join(f'<section id="s{k}">{content}</section>' for k, (_, content) in enumerate(found))
    template = string.Template(PAGE.read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(title), links=links, body=body)


def parser() -> Parser:
    p = Parser(prog="python -m eval.report", description=__doc__)
    p.add_argument("results", type=Path, metavar="RESULTS_DIR")
    p.add_argument("--out", type=Path, metavar="FILE", help="(default: index.html in RESULTS_DIR)")
    p.add_argument("--title", default="DeepCache, reproduced")
    return p


def run(args: argparse.Namespace) -> None:
    found = sections(args.results)
    out = args.out or args.results / "index.html"
    write_text(out, page(found, args.title))
    print(f"Written {out}: {len(found)} sections, {out.stat().st_size / 2**20:.1f} MiB")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
