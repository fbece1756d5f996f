"""The documentation as data: its links, its code blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.layout import ROOT, tracked_files

# Why a command is not run by the tests, in an HTML comment before its block or in the comment at its end. It is parsed.
MARKS = (
    "needs weights",
    "needs a GPU",
    "needs a network",
    "needs MLX",
    "takes minutes",
    "takes hours",
    "changes the checkout",
    "serves a page",
)
SHELL = ("sh", "bash")
COMMAND = re.compile(r"^([A-Z_]+=\S+ )?(\.venv/bin/python|python|make|accelerate launch|torchrun|pip|bash) \S")
RECORDS = ("CHANGELOG.md",)  # records of the past: their commands may be gone


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    document: Path
    line: int
    info: str  # behind the fence
    text: str
    mark: str | None  # one of MARKS

    def __str__(self) -> str:
        return f"{name(self.document)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a document, as words."""

    document: Path
    line: int
    words: tuple[str, ...]
    mark: str | None  # None: the tests run it
    inline: bool = False  # in running text or in a table

    def __str__(self) -> str:
        return f"{name(self.document)}:{self.line}: {shlex.join(self.words)}"


def name(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def documents() -> list[Path]:
    """Every page that a person reads."""
    return [path for path in tracked_files() if is_document(name(path))]


def is_document(path: str) -> bool:
    top = path in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    return (
        top or re.fullmatch(r"docs/[^/]+\.md|results/.*\.md|(assets|integrations)/[^/]+/README\.md", path) is not None
    )


def tokens(document: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(document.read_text(encoding="utf-8"))


def inlines(document: Path) -> Iterator[tuple[int, Token]]:
    """Every token within text, with its line."""
    line = 0
    for token in tokens(document):
        line = token.map[0] + 1 if token.map else line  # cells of a table have none
        for child in token.children or ():
            yield line, child


def links(document: Path) -> list[str]:
    """Where it links to, and which pictures it shows."""
    found = []
    for _, token in inlines(document):
        target = token.attrGet("href") or token.attrGet("src")
        found += [str(target)] if target is not None else []
    return found


def anchors(document: Path) -> set[str]:
    """The fragments that its headings have on GitHub."""
    seen: Counter[str] = Counter()
    found = set()
    all_tokens = tokens(document)
    for k, token in enumerate(all_tokens):
        if token.type == "heading_open":
            children = all_tokens[k + 1].children or ()
            title = "".join(child.content for child in children if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


def marked(comment: str, where: str) -> str | None:
    """The mark in a comment. Raises ValueError if there are several."""
    marks = [mark for mark in MARKS if mark in comment]
    if len(marks) > 1:
        raise ValueError(f"{where}: {' and '.join(marks)}; give one")
    return marks[0] if marks else None


def blocks(document: Path) -> list[Block]:
    """Its blocks of code. Raises ValueError for an indented one, which can't say of what language it is."""
    found = []
    all_tokens = tokens(document)
    for k, token in enumerate(all_tokens):
        line = (token.map or [0])[0] + 1
        if token.type == "code_block":
            raise ValueError(f"{name(document)}:{line}: an indented block; fence it, with its language")
        if token.type == "fence":
            before = all_tokens[k - 1] if k else token
            mark = marked(before.content, f"{name(document)}:{line}") if before.type == "html_block" else None
            found.append(Block(document, line, token.info.strip(), token.content, mark))
    return found


def commands_of(block: Block) -> list[Command]:
    """The commands of a block of the shell."""
    found = []
    line, waiting = block.line, ""
    for k, text in enumerate(block.text.splitlines()):
        line = line if waiting else block.line + 1 + k
        waiting += text.removesuffix("\\")
        if text.endswith("\\"):
            continue
        words, comment = split(waiting)
        waiting = ""
        if words and words[0] != "export":
            found.append(Command(block.document, line, words, marked(comment, str(block)) or block.mark))
    return found


def split(line: str) -> tuple[tuple[str, ...], str]:
    """The words of a command, and the comment behind it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    words = tuple(lexer)  # without the comment
    position = re.search(r"(?:^|\s)#(.*)$", line)
    return words, position[1] if position else ""


def commands(document: Path) -> list[Command]:
    """Its commands: those of its blocks, and those in running text, which are only parsed."""
    found = [command for block in blocks(document) if block.info in SHELL for command in commands_of(block)]
    for line, token in inlines(document):
        if token.type == "code_inline" and COMMAND.match(token.content):
            found.append(Command(document, line, split(token.content)[0], "in running text", inline=True))
    return found
