"""Renders templates: everything is escaped except known HTML, and files are embedded in the page."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


class Section(NamedTuple):
    """A part of the page."""

    title: str
    body: Markup
    group: str

    @property
    def link(self) -> str:
        """What the contents call it: of "Table 1: Generation on …" the first words."""
        return self.title.partition(":")[0]


def data_uri(path: Path) -> str:
    """The file as a data URI."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def is_number(cell: str) -> bool:
    """Whether a cell is aligned like a number."""
    return cell in ("–", "") or re.match(r"[-+−]?[\d.,]+", cell) is not None


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["data_uri"] = data_uri
TEMPLATES.tests["a_number"] = is_number


def render(template: str, **values: Any) -> Markup:
    """A template of `templates/` with these values."""
    return Markup(TEMPLATES.get_template(template).render(values))


def page(found: Sequence[Section], title: str) -> str:
    """The whole page."""
    groups: dict[str, list[tuple[int, Section]]] = {}
    for k, section in enumerate(found):
        groups.setdefault(section.group, []).append((k, section))
    return str(render("page.html", title=title, sections=found, groups=groups))
