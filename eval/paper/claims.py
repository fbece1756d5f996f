"""The claims of the paper's tables, row against row, and whether our numbers confirm them: paired, with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..metrics.paired import Difference, paired_difference, replicate_difference
from .data import FOLDER
from .jobs import Job, Plan
from .output import COLUMNS, show
from .results import Result

PRINTED = ("fid", "clip_score")  # the columns that the paper compares by
MEASURES = ("fid", "kid", "clip_score", "psnr", "distance")  # ours
LESS_IS_BETTER = {"fid", "kid", "distance"}
OF_IMAGES = {"clip_score", "psnr", "distance"}  # scores of single images


@dataclass(frozen=True)
class Claim:
    """Row `rows[0]` against row `rows[1]` of a table, counted from 1; `claim` has the paper's settings."""

    claim: str
    table: str
    rows: tuple[int, int]


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim by one measure."""

    measure: str
    difference: Difference
    confirmed: bool | None  # None: the interval includes zero


def load_claims() -> list[Claim]:
    """All claims. Raises ValueError for an entry with other keys."""
    content = json.loads((FOLDER / "claims.json").read_text(encoding="utf-8"))
    try:
        return [Claim(**{**entry, "rows": tuple(entry["rows"])}) for entry in content]
    except TypeError as error:
        raise ValueError(f"claims.json: {error}") from None


def printed_difference(claim: Claim, plan: Plan) -> tuple[str, float]:
    """The column that the paper compares by, and the difference of the two rows in it."""
    first, second = (plan.table.rows[k - 1].paper for k in claim.rows)
    (column,) = (name for name in PRINTED if name in first)
    return column, round(float(first[column]) - float(second[column]), 4)


def verdicts(claim: Claim, plan: Plan, results: list[Result]) -> list[Verdict]:
    """A verdict for each measure that both rows have for the same number of images.

    A claim is confirmed if the whole interval is on the side of zero that the paper prints, better or worse. If the
    paper prints no difference, an interval around zero is inconclusive.
    """
    column, printed = printed_difference(claim, plan)
    better = printed < 0 if column in LESS_IS_BETTER else printed > 0
    found = []
    for name in MEASURES:
        difference = _difference(name, *(results[k - 1] for k in claim.rows))
        if difference is None:
            continue
        excludes_zero = difference.low > 0 or difference.high < 0
        ours = difference.difference < 0 if name in LESS_IS_BETTER else difference.difference > 0
        confirmed = None if not excludes_zero else printed != 0 and ours == better
        found.append(Verdict(name, difference, confirmed))
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
    """The page: every claim of the given tables, by every measure."""
    lines = [
        "| claim, at the paper's settings | table, rows | paper | full steps here | speed-ups here | measure "
        "| difference here | confirmed? |",
        "|:--|:--|--:|--:|--:|:--|--:|:--|",
    ]
    for claim in load_claims():
        if claim.table not in plans:
            continue
        plan, own = plans[claim.table], results[claim.table]
        column, printed = printed_difference(claim, plan)
        runs = " and ".join(_full_steps(plan.jobs[k - 1]) for k in claim.rows)
        speeds = " and ".join(show("speedup", own[k - 1]["speedup"]) for k in claim.rows)
        head = [
            claim.claim, f"{claim.table.removeprefix('table')}, {claim.rows[0]} and {claim.rows[1]}",
            f"{COLUMNS[column].title} {printed:+.2f}", runs, speeds,
        ]  # fmt: skip
        found = [_cells(verdict) for verdict in verdicts(claim, plan, own)] or [["–", "–", "not run"]]
        for k, cells in enumerate(found):
            lines.append("| " + " | ".join([*(head if k == 0 else [""] * len(head)), *cells]) + " |")
    return (
        "# Which of the paper's claims these numbers confirm\n\n"
        "Claims name the paper's settings; *full steps here* is what was run, with the centre c of a non-uniform "
        "schedule. Differences are first row minus second, for images that start from the same noise; ± is half of "
        "the 95 % interval of the difference itself: for FID and KID from paired replicates, for the CLIP Score, PSNR "
        "and the distance from single images (paired t). *yes* and *no*: the whole interval is on the paper's side of "
        "zero, or on the other. Lower is better for FID, KID and the distance; PSNR and the distance are to the "
        "baseline's images, so they measure how close a run stays to it, not how good it is. For a claim at equal "
        "speed, compare the speed-ups first.\n\n" + "\n".join(lines) + "\n"
    )


def _full_steps(job: Job | None) -> str:
    """The full steps of a row's run at this scale, such as 5 of 50."""
    if job is None:
        return "–"
    cache = job.run.cache
    return f"{job.run.num_full} of {job.run.steps}" + ("" if cache.uniform else f", c = {cache.center}")


def _cells(verdict: Verdict) -> list[str]:
    """The measure, the difference with its interval, and the answer."""
    title, decimals, factor = COLUMNS[verdict.measure]
    difference, low, high, _ = verdict.difference
    half = factor * (high - low) / 2
    if decimals is None:
        decimals = max(0, 2 - math.floor(math.log10(half))) if half else 4
    text = f"{factor * difference:+.{decimals}f} ± {half:.{decimals}f}"
    return [title, text, {True: "yes", False: "**no**", None: "can't tell"}[verdict.confirmed]]
