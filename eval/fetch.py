"""Downloads what the tables need at --scale paper: weights, prompts, references.

python -m eval.fetch                                   lists them: what is present, what is missing, the sources
python -m eval.fetch sd15 parti vit-g-14
python -m eval.fetch all                               everything that can be downloaded without an account

Downloads are resumable: rerun the same command. Files are checked against published digests and sizes. A file that is
in --inputs under another usual name is linked, not downloaded. HF_HOME, TORCH_HOME and HF_ENDPOINT are respected.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.command_line import Parser, RunError, add_quiet_argument, run_cli

from .paper.inputs import FOLDER, Input, Present, fetch, find, load_inputs, remedy, state


def parser() -> Parser:
    p = Parser(prog="python -m eval.fetch", description=__doc__)
    p.add_argument("names", nargs="*", metavar="NAME", help="inputs to download, or all; without any, they are listed")
    p.add_argument("--inputs", type=Path, default=FOLDER, metavar="DIR", help="published weights, references")
    add_quiet_argument(p)
    return p


def run(args: argparse.Namespace) -> None:
    if not args.names:
        print_list(args.inputs)
        return
    chosen = [find(name) for name in args.names if name != "all"]
    if "all" in args.names:
        chosen += [one for one in load_inputs().values() if one.kind != "by hand"]
    failed = []
    for one in dict.fromkeys(chosen):
        try:
            print(fetch(one.name, args.inputs, args.quiet), flush=True)
        except RunError as error:
            if len(chosen) == 1:
                raise RunError(f"{one.name}: {error}") from None
            print(f"{one.name}: {error}", file=sys.stderr)
            failed.append(one.name)
    if failed:
        raise RunError(f"{len(failed)} of {len(chosen)} could not be downloaded: {', '.join(failed)}")


def print_list(inputs_dir: Path) -> None:
    """A line for each input; below, how to get those that must be downloaded by hand."""
    inputs = load_inputs().values()
    wide = max(len(one.name) for one in inputs)
    print(f"{'name':<{wide}}  {'state':<7}  {'size':>7}  {'licence':<21}  from")
    for one in inputs:
        presence = "present" if isinstance(state(one.name, inputs_dir), Present) else "missing"
        origin = one.origin or "by hand, see below"
        print(f"{one.name:<{wide}}  {presence:<7}  {_size(one):>7}  {one.licence:<21}  {origin}")
    print("\nBy hand:")
    for one in inputs:
        if one.kind == "by hand":
            print(f"  {one.name}, {one.about}: {remedy(one.name, inputs_dir)}")
    print(
        "\nTo download: python -m eval.fetch NAME …, or all. Sizes are given where they are published.\n"
        f"A file that you have already: put it in {inputs_dir} under its usual name, and python -m eval.fetch NAME."
    )


def _size(one: Input) -> str:
    size = one.source.size if one.source else None
    if size is None:
        return "–"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
