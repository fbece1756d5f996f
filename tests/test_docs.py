"""What the documentation says holds: links lead somewhere, commands parse and run, examples run, the README is short.

Commands in blocks marked `sh` are run, with small numbers appended (`SMALLER`), unless they are marked with one of
`documents.MARKS`; those and the ones in running text are parsed by the command's own parser.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
import torch

from pipelines.cache_options import cache_config
from tests.documents import (
    MARKS,
    RECORDS,
    SHELL,
    Block,
    Command,
    anchors,
    blocks,
    commands,
    commands_of,
    documents,
    is_document,
    links,
    name,
    split,
)
from tests.layout import COMMANDS, ROOT

README = ROOT / "README.md"
MOST_LINES, MOST_WORDS = 150, 1500
DOCUMENTS = documents()
LIVING = [document for document in DOCUMENTS if name(document) not in RECORDS]
ONE = ["--prompt", "a large red ring on the left on a gray background"]
TIMED = ["--repeats", "1", "--warm-up", "0", "--quiet", "--device", "cpu"]
SET = ["--quiet", "--device", "cpu"]
SMALLER = {  # appended to the commands that are run
    "asyncdiff.sample": [*TIMED, *ONE, "--steps", "8"],
    "stable_diffusion": [*TIMED, *ONE],
    "stable_diffusion_xl": TIMED,
    "stable_video_diffusion": TIMED,
    "text2video_zero": [*TIMED, "--steps", "8", "--t0", "2", "--t1", "4", "--video-length", "3"],
    "main": [*TIMED, "--steps", "4"],
    "ddpm.sample": [*SET, "--num-images", "4", "--batch-size", "4"],
    "ldm.sample": [*SET, "--num-images", "2"],
    "dit.sample": [*TIMED, "--num-images", "2"],
    "dit.search": [*SET, "--num-images", "2"],
    "dit.train_router": [*SET, "--num-images", "4", "--batch-size", "2"],
    "eval.generate": [*SET, "--num-images", "2"],
    "eval.fid": ["--quiet", "--device", "cpu", "--replicates", "10"],
    "eval.clip_score": ["--quiet", "--device", "cpu"],
    "eval.tables": ["--quiet"],
}
STEPS = {  # appended where the command's own options don't depend on the number of steps
    "stable_diffusion": ["--steps", "16"],  # more than a --center of 15
    "ddpm.sample": ["--steps", "20"],
    "ldm.sample": ["--steps", "20"],
    "eval.generate": ["--steps", "10"],
}
OF_STEPS = {"--steps", "--calibrated", "--cache-steps"}
VARIABLES = {"$SLURM_ARRAY_TASK_ID": "4"}
LAUNCHERS = (("srun",), ("accelerate", "launch"), ("torchrun",))
ELSEWHERE = {"pip", "pre-commit"}  # commands of others that the documents name


# --- commands --------------------------------------------------------------------------------------------------------


def made(words: tuple[str, ...]) -> tuple[str, ...]:
    """What `make` would run last. Fails for a target or a setting that the Makefile does not have."""
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words[1:]:
        setting, is_setting, _ = word.partition("=")
        assert not is_setting or re.search(rf"^{setting} \?=|\$\({setting}\)", text, re.MULTILINE), word
    # Not those of a `make` that these tests run under: with MAKELEVEL it would name its folder in the last line.
    settings = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    shown = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, env=settings)
    assert shown.returncode == 0, shown.stderr
    return split(shown.stdout.splitlines()[-1])[0]


def program(words: tuple[str, ...]) -> tuple[str | None, list[str]]:
    """The module that a command runs and its arguments; no module where it is none of ours."""
    rest = list(words)
    while rest and re.match(r"^[A-Z_]+=", rest[0]):
        rest.pop(0)
    for launcher in LAUNCHERS:
        if tuple(rest[: len(launcher)]) == launcher:
            rest = rest[len(launcher) :]
    if words[0] == "torchrun":
        rest = rest[rest.index("-m") :]
    if rest[0] == "make":
        recipe = made(tuple(rest))
        return program(recipe) if Path(recipe[0]).name == "python" else (None, [])
    if rest[0] in ELSEWHERE:
        return None, rest
    if rest[0] == "bash":
        assert (ROOT / rest[1]).is_file(), rest[1]
        return None, rest
    if Path(rest[0]).name == "python":
        rest.pop(0)
    module = rest.pop(1) if rest[0] == "-m" else rest[0].removesuffix(".py")
    arguments = [VARIABLES.get(word, word) for word in rest[1:]]
    if module in ("pip", "pytest", "ruff", "mypy"):
        for path in (word for word in arguments if word.endswith(".py")):
            assert (ROOT / path).is_file(), path
        return None, arguments
    assert module in COMMANDS, f"{module} is no command of this repository"
    return module, arguments


def loaded(module: str) -> ModuleType:
    return importlib.import_module(module)


def parsed(module: str, arguments: list[str]) -> None:
    """The command's own parser takes the arguments. Raises ValueError or SystemExit if not."""
    parser = loaded(module).parser()
    if module == "eval.calibrate":
        args, passed = parser.parse_known_args(arguments)
        loaded(module).check_arguments(args)
        loaded(module).SCRIPTS[args.script].parser().parse_args(passed)
        return
    args = parser.parse_args(arguments)
    if hasattr(args, "cache_interval") and hasattr(args, "non_uniform"):
        if args.calibrated is not None and not args.calibrated.is_absolute():
            args.calibrated = ROOT / args.calibrated
        cache_config(args)


@pytest.mark.parametrize("document", LIVING, ids=name)
def test_commands_are_taken_by_their_parsers(document):
    for command in commands(document):
        module, arguments = program(command.words)
        if module is not None:
            try:
                parsed(module, arguments)
            except (ValueError, SystemExit) as error:
                pytest.fail(f"{command}\n{error}")


def runnable() -> dict[Path, list[tuple[Command, str, list[str]]]]:
    """By document, the commands to be run: each once, where it is first."""
    seen: set[tuple[str, ...]] = set()
    found: dict[Path, list[tuple[Command, str, list[str]]]] = {}
    for document in LIVING:
        for command in commands(document):
            if command.mark is None and command.words[0] != "make" and command.words not in seen:
                seen.add(command.words)
                module, arguments = program(command.words)
                if module is not None:
                    found.setdefault(document, []).append((command, module, arguments))
    return found


RUNNABLE = runnable()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to run in, with the data of the repository."""
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(module: str, arguments: list[str]) -> str:
    """What a command prints, run in this process."""
    smaller = SMALLER.get(module, []) + ([] if OF_STEPS & {*arguments} else STEPS.get(module, []))
    printed = io.StringIO()
    with torch.enable_grad(), contextlib.redirect_stdout(printed):
        status = loaded(module).main([*arguments, *smaller])
    assert status == 0
    return printed.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("document", RUNNABLE, ids=name)
def test_commands_run(document, folder):
    for command, module, arguments in RUNNABLE[document]:
        print(command)  # shown if it fails
        run(module, arguments)


def test_a_command_with_another_command_s_option_is_found():
    with pytest.raises(ValueError, match="--labels"):
        parsed("stable_diffusion", ["--labels", "balanced"])
    with pytest.raises(ValueError, match="--center"):
        parsed("stable_diffusion", ["--non-uniform"])
    with pytest.raises(AssertionError, match="no command"):
        program(("python", "-m", "eval.nothing"))
    with pytest.raises(ValueError, match="--sampler"):
        parsed("eval.calibrate", ["--sampler", "ab2"])


def test_most_commands_are_run_or_marked():
    everything = [command for document in LIVING for command in commands(document)]
    assert sum(len(commands) for commands in RUNNABLE.values()) > 25
    assert sum(command.mark in MARKS for command in everything) > 15
    assert sum(command.inline for command in everything) > 25


# --- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", LIVING, ids=name)
def test_every_block_says_what_it_is(document):
    for block in blocks(document):
        assert block.info in (*SHELL, "python", "text"), f"{block}: {block.info!r}"
        if block.info == "text":
            assert not re.search(r"^\s*(python|make|pip|accelerate) ", block.text, re.MULTILINE), block


@pytest.mark.slow
@pytest.mark.parametrize("document", [d for d in LIVING if any(b.info == "python" for b in blocks(d))], ids=name)
def test_python_runs(document, folder):
    """All blocks of a document one after the other, as one program."""
    names: dict[str, object] = {}
    for block in blocks(document):
        if block.info == "python" and block.mark is None:
            with contextlib.redirect_stderr(io.StringIO()):  # progress bars
                exec(compile(block.text, str(block), "exec"), names)


# --- the README ------------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert len(text.split()) <= MOST_WORDS


def rows_of(document: Path, heading: str) -> list[str]:
    """The rows below a heading that are of a table, without its head."""
    text = document.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def test_the_readme_has_six_results_each_with_its_command():
    rows = rows_of(README, "Results")
    assert len(rows) == 6
    for row in rows:
        *_, result, command = (cell.strip() for cell in row.strip("|").split(" | "))
        assert re.search(r"±|–|exact", row), f"no interval: {row}"
        assert re.search(r"\d", result), f"no figure: {row}"
        module, _ = program(split(command.strip("`"))[0])
        assert module in COMMANDS


def test_the_readme_names_what_ci_calls():
    called = re.findall(r"^make \w+", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    named = {command.words[:2] for command in commands(README)}
    assert {"make test", "make demo"} <= set(called)
    for command in ("make test", "make demo"):
        assert tuple(command.split()) in named


def shape(line: str) -> str:
    """A line of output without measurements and units: a busy machine shows seconds instead of milliseconds."""
    line = re.sub(r"\bms\b", "s", re.sub(r"\bGiB\b", "MiB", line))
    line = re.sub(r"\S+: output\.png", "FOLDER: output.png", line)
    return re.sub(r"\s+", " ", re.sub(r"[\d.]+", "#", line)).strip().replace("images,", "image,")


@pytest.mark.slow
def test_the_readme_shows_what_the_demo_prints(folder):
    shown = next(block for block in blocks(README) if block.info == "text").text
    module, arguments = program(("make", "demo"))
    assert module == "stable_diffusion"
    printed = run(module, [*arguments, *ONE])  # two pictures, so that there is a least one
    lines = [
        [shape(line) for line in text.splitlines() if not line.startswith("Timing")]  # of which one round has none
        for text in (shown, printed)
    ]
    assert lines[0] == lines[1]


# --- links -----------------------------------------------------------------------------------------------------------


def broken(document: Path) -> list[str]:
    """The links of a document that lead nowhere, or outside the repository."""
    found = []
    for link in links(document):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            well_formed = parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc)
            if not well_formed or re.search(r"\s|…|\\", unquote(link)):
                found.append(link)
            continue
        target = (document.parent / unquote(parts.path)).resolve() if parts.path else document
        there = target.is_relative_to(ROOT) and target.exists()
        if there and parts.fragment:
            there = target.suffix == ".md" and unquote(parts.fragment) in anchors(target)
        if not there:
            found.append(link)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document):
    assert not broken(document)


def test_all_pages_are_found_and_reached_from_the_readme():
    reached, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            targets = {(page.parent / unquote(urlsplit(link).path)).resolve() for link in links(page)}
            waiting += [target for target in targets if target in DOCUMENTS]
    pages = {path for path in DOCUMENTS if path.is_relative_to(ROOT / "docs")}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/extensions.md", "results/shapes/README.md"} <= {
        name(document) for document in DOCUMENTS
    }
    assert pages <= reached
    assert is_document("assets/shapes-sd/README.md") and not is_document("tests/data/x.md")


# --- these very checks -----------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path):
    """Writes a page and gives its path."""

    def write(text: str) -> Path:
        path = tmp_path / "page.md"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_broken_link_is_found(tmp_path, monkeypatch, page):
    monkeypatch.setattr("tests.test_docs.ROOT", tmp_path)
    (tmp_path / "there.md").write_text("# A `code` title, twice\n\n# A code title twice\n\n[x]: nowhere.md\n")
    good = "[a](there.md) ![b](there.md#a-code-title-twice) [c](there.md#a-code-title-twice-1) [d](https://x.org/a)"
    assert not broken(page(good + "\n\n`[e](nowhere)`\n\n```text\n[f](nowhere)\n```\n"))
    bad = ["nowhere.md", "there.md#no-title", "../outside.md", "http://x.org", "https://", "https://x.org/…", "#here"]
    for link in bad:
        assert len(broken(page(f"[a]({link})"))) == 1, link
    assert broken(page("| a |\n|---|\n| [x](nowhere.md) |\n")) == ["nowhere.md"]
    assert broken(page("[a][ref]\n\n[ref]: nowhere.md\n")) == ["nowhere.md"]


def test_commands_are_found_wherever_they_are(monkeypatch, page, tmp_path):
    monkeypatch.setattr("tests.documents.ROOT", tmp_path)
    text = (
        "Run `python a.py --b 1`, not `cache_interval`.\n\n| x |\n|---|\n| `make c` |\n\n"
        "```sh\n# nothing\npython d.py \\\n    --e 'two words'  # needs a GPU\n\nf\n```\n\n"
        "<!-- takes hours -->\n```bash\nsrun g\n```\n\n```text\nh\n```\n"
    )
    found = [(" ".join(command.words), command.mark) for command in commands(page(text))]
    assert found == [
        ("python d.py --e two words", "needs a GPU"), ("f", None), ("srun g", "takes hours"),
        ("python a.py --b 1", "in running text"), ("make c", "in running text"),
    ]  # fmt: skip


def test_an_indented_block_is_refused(monkeypatch, page, tmp_path):
    monkeypatch.setattr("tests.documents.ROOT", tmp_path)
    with pytest.raises(ValueError, match="indented"):
        blocks(page("text\n\n    python a.py\n"))


def test_two_marks_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("tests.documents.ROOT", tmp_path)
    block = Block(tmp_path / "a.md", 1, "sh", "python a.py  # needs weights, takes hours\n", None)
    with pytest.raises(ValueError, match="give one"):
        commands_of(block)
