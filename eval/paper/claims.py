"""What the paper's tables say, row against row, and whether our numbers bear it out: paired, with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..metrics.paired import Difference, paired_difference, replicate_difference
from .data import FOLDER
from .jobs import Plan
from .output import COLUMNS, show
from .results import Result

PRINTED = ("fid", "clip_score")  # the columns that the paper compares by
MEASURES = ("fid", "kid", "clip_score", "psnr", "distance")  # ours
LESS_IS_BETTER = {"fid", "kid", "distance"}
OF_IMAGES = {"clip_score", "psnr", "distance"}  # scores that every image has


@dataclass(frozen=True)
class Claim:
    """Row `rows[0]` against row `rows[1]` of a table, counted from 1."""

    claim: str
    table: str
    rows: tuple[int, int]


@dataclass(frozen=True)
class Verdict:
    """Of a claim, by one measure."""

    measure: str
    difference: Difference
    borne_out: bool | None  # None: the interval does not tell


def load_claims() -> list[Claim]:
    """All claims. Raises ValueError for an entry with other keys."""
    content = json.loads((FOLDER / "claims.json").read_text(encoding="utf-8"))
    try:
        return [Claim(**{**entry, "rows": tuple(entry["rows"])}) for entry in content]
    except TypeError as error:
        raise ValueError(f"claims.json: {error}") from None


def printed_difference(claim: Claim, plan: Plan) -> tuple[str, float]:
    """The column that the paper compares by, and its difference of the two rows."""
    first, second = (plan.table.rows[k - 1].paper for k in claim.rows)
    (column,) = (name for name in PRINTED if name in first)
    return column, round(float(first[column]) - float(second[column]), 4)


def verdicts(claim: Claim, plan: Plan, results: list[Result]) -> list[Verdict]:
    """By each measure that both rows have of as many images.

    A claim is borne out if the whole interval lies on the side of zero that the paper prints, the better or the worse.
    Where the paper prints no difference, an interval around zero is all that there can be: it tells nothing.
    """
    column, printed = printed_difference(claim, plan)
    better = printed < 0 if column in LESS_IS_BETTER else printed > 0
    found = []
    for name in MEASURES:
        difference = _difference(name, *(results[k - 1] for k in claim.rows))
        if difference is None:
            continue
        apart = difference.low > 0 or difference.high < 0
        ours = difference.difference < 0 if name in LESS_IS_BETTER else difference.difference > 0
        borne_out = None if not apart else printed != 0 and ours == better
        found.append(Verdict(name, difference, borne_out))
    return found


def _difference(name: str, a: Result, b: Result) -> Difference | None:
    if (first := a.number(name)) is None or (second := b.number(name)) is None:
        return None
    files = [result.pairs if name in ("psnr", "distance") else result.scores for result in (a, b)]
    each = [file.found.each.get(name, ()) if file is not None else () for file in files]
    if len(each[0]) != len(each[1]) or len(each[0]) < 2:
        return None
    if name in OF_IMAGES:
        return paired_difference(*each)
    if a.scores is None or b.scores is None or a.scores.made_from["reference"] != b.scores.made_from["reference"]:
        return None
    return replicate_difference(first, second, *each)


def claims_markdown(plans: Mapping[str, Plan], results: Mapping[str, list[Result]]) -> str:
    """The page: every claim of the tables that are there, by every measure."""
    lines = [
        "| claim | table, rows | printed | speed-ups here | measure | difference here | borne out? |",
        "|:--|:--|--:|--:|:--|--:|:--|",
    ]
    for claim in load_claims():
        if claim.table not in plans:
            continue
        plan, own = plans[claim.table], results[claim.table]
        column, printed = printed_difference(claim, plan)
        speeds = " and ".join(show("speedup", own[k - 1]["speedup"]) for k in claim.rows)
        head = [
            claim.claim, f"{claim.table.removeprefix('table')}, {claim.rows[0]} and {claim.rows[1]}",
            f"{COLUMNS[column].title} {printed:+.2f}", speeds,
        ]  # fmt: skip
        found = [_cells(verdict) for verdict in verdicts(claim, plan, own)] or [["–", "–", "not run"]]
        for k, cells in enumerate(found):
            lines.append("| " + " | ".join([*(head if k == 0 else [""] * 4), *cells]) + " |")
    return (
        "# Which of the paper's claims these numbers bear out\n\n"
        "First row minus second, of images that start from the same noise; ± is half of the 95 % interval of the "
        "difference itself: of FID and KID from paired replicates, of the CLIP Score, PSNR and the distance from the "
        "images one by one (paired t). *yes* and *no*: the whole interval lies on the printed side of zero, or on the "
        "other. Less is better for FID, KID and the distance; PSNR and the distance are to the baseline's images, so "
        "they say how near a run stays to it, not how good it is. For a claim at equal speed, compare the speed-ups "
        "first.\n\n" + "\n".join(lines) + "\n"
    )


def _cells(verdict: Verdict) -> list[str]:
    """The measure, the difference with its interval, and the answer."""
    title, decimals, factor = COLUMNS[verdict.measure]
    difference, low, high, _ = verdict.difference
    half = factor * (high - low) / 2
    if decimals is None:
        decimals = max(0, 2 - math.floor(math.log10(half))) if half else 4
    text = f"{factor * difference:+.{decimals}f} ± {half:.{decimals}f}"
    return [title, text, {True: "yes", False: "**no**", None: "can't tell"}[verdict.borne_out]]
