"""Learning-to-Cache's results for DiT-XL/2, as its authors print them, with counted MACs and the commands to make them.

python -m dit.table
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common.command_line import Parser, run_cli

from .config import LayerCacheConfig
from .macs import XL2_256, LayerMacs, layer_macs

FILE = Path(__file__).parent / "learning_to_cache.json"
MODEL = "facebook/DiT-XL-2-256"
NAMES = {"is": "IS", "fid": "FID", "sfid": "sFID", "precision": "Prec.", "recall": "Recall", "latency": "s"}


def load_table() -> dict[str, Any]:
    """The table as printed."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def commands(row: dict[str, Any]) -> list[str]:
    """What makes and scores the pictures of a row, the training of its router first."""
    of = f"--model {MODEL} --steps {row['steps']} --guidance-scale 1.5"
    out = f"sets/dit-{row['steps']}{'-router' if row['router'] else ''}"
    cache = f"--schedule {row['router']}" if row["router"] else "--cache-interval 1"
    trained = [f"python -m dit.train_router {of} --out {row['router']}"] if row["router"] else []
    return [
        *trained,
        f"python -m dit.generate {of} {cache} --num-images 50000 --out {out}",
        f"python -m eval.fid {out}/samples.npz VIRTUAL_imagenet256_labeled.npz",
    ]


def lines(table: dict[str, Any], macs: LayerMacs) -> list[str]:
    """The table, its notes and its commands."""
    columns = table["columns"]
    found = [f"{table['title']}. {table['setting']}.", f"Source: {table['source']}.", ""]
    found.append(f"{'':28}" + "".join(f"{NAMES[name]:>9}" for name in columns) + f"{'TMACs':>9}")
    for row in table["rows"]:
        # Guidance runs two rows of the batch. A router's own MACs follow from its file: dit.sample prints them.
        total = f"{2 * row['steps'] * macs.full / 1e12:9.2f}" if row["router"] is None else f"{'–':>9}"
        found.append(f"{row['name']:28}" + "".join(f"{row['printed'][name]:>9}" for name in columns) + total)
    pairs = LayerCacheConfig(cache_interval=2)
    found += ["", f"A full step of one row has {macs.full / 1e9:.2f} GMACs: {macs.attention / 1e9:.2f} an attention, "
              f"{macs.mlp / 1e9:.2f} an MLP, 28 of each, {macs.rest / 1e9:.2f} the rest. Every second step without any "
              f"layer would have {macs.speed_up_of(pairs, 50):.2f} times fewer."]  # fmt: skip
    found += ["", *(f"- {note}" for note in table["notes"]), ""]
    found += ["On the published weights, which were not to be had here:", ""]
    return found + [f"    {command}" for row in table["rows"] for command in commands(row)]


def parser() -> Parser:
    return Parser(prog="python -m dit.table", description=__doc__)


def run(argv: list[str] | None) -> None:
    parser().parse_args(argv)
    print("\n".join(lines(load_table(), layer_macs(XL2_256))))


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
