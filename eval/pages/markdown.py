"""Markdown as safe HTML: CommonMark with pipe tables, no embedded HTML, links only to the web or to the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

TABLE = '<div class="wide" role="region" aria-label="Table" tabindex="0"><table>'
WEB = ("http://", "https://")

PARSER = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
PARSER.add_render_rule("table_open", lambda *_: TABLE)
PARSER.add_render_rule("table_close", lambda *_: "</table></div>")


def to_html(text: str, anchor_of: Callable[[str], str | None] = lambda _: None) -> tuple[str | None, Markup]:
    """The text of a heading that it begins with, if it does, and all of it as HTML; headings go down by one level.

    Args:
        anchor_of: given a link's address that is not of the web, where it is on the page; None: it is no link.
    """
    tokens = PARSER.parse(text)
    titled = len(tokens) > 1 and tokens[0].type == "heading_open"
    title = "".join(child.content for child in tokens[1].children or ()) if titled else None
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1:]) + 1, 6)}"
        elif token.type in ("th_open", "td_open"):
            to_the_right = "right" in str(token.attrs.pop("style", ""))
            token.attrs |= {"class": "number"} if to_the_right else {}
        elif token.type == "inline":
            _settle_links(token.children or [], anchor_of)
    return title, Markup(PARSER.renderer.render(tokens, PARSER.options, _no_references()))


def _settle_links(children: Sequence[Token], anchor_of: Callable[[str], str | None]) -> None:
    """Keeps links to the web, points links to files on the page to their section, and reduces all others to text."""
    is_link = True
    for token in children:
        if token.type == "link_open":
            address = str(token.attrs["href"])
            found = address if address.startswith(WEB) else anchor_of(address)
            is_link = found is not None
            token.attrs = {"href": found} if found is not None else {}
        if token.type in ("link_open", "link_close") and not is_link:
            token.tag = "span"


def _no_references() -> dict[str, Any]:
    return {}
