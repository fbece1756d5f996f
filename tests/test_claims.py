"""Row against row: what the paper prints, what our numbers say, and how sure they are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eval.paper.claims import Claim, claims_markdown, load_claims, printed_difference, verdicts
from eval.paper.data import TABLES, load_scale, load_table
from eval.paper.jobs import Options, Plan, plan
from eval.paper.measured import Found, Measured
from eval.paper.notes import named, notes_of, ranges
from eval.paper.results import Result, Value, baseline_drift, results_of

FID = Claim("", "table1", (11, 9))  # printed 8.23 and 3.59
CLIP = Claim("", "table13", (11, 6))  # printed 29.53 and 29.32


def options(tmp_path: Path, scale: str = "shapes") -> Options:
    return Options(load_scale(scale), tmp_path, tmp_path, tmp_path, torch.device("cpu"))


def planned(name: str, tmp_path: Path) -> Plan:
    return plan(load_table(name), None, options(tmp_path))


def result(column: str, each: list[float], value: float | None = None, reference: str = "r", **values: float) -> Result:
    """A row's scores, the same whichever of its files they are in."""
    value = float(np.mean(each)) if value is None else value
    machine = {"device": "cpu: x", "instructions": "AVX2", "threads": 1, "torch": "2"}
    made_from = {"reference": reference, "num_images": len(each), "score": {}, "batch_size": 4, "repeats": 3}
    file = Measured(made_from, Found({column: value, **values}, each={column: each}), "2026-11-26T05:00Z", machine)
    return Result({column: Value(value)}, file, file, file if values else None)


def rows(plan: Plan, claim: Claim, first: Result, second: Result) -> list[Result]:
    results = [Result()] * len(plan.table.rows)
    results[claim.rows[0] - 1], results[claim.rows[1] - 1] = first, second
    return results


def test_the_printed_difference_is_that_of_the_table(tmp_path):
    assert printed_difference(FID, planned("table1", tmp_path)) == ("fid", 4.64)
    assert printed_difference(CLIP, planned("table13", tmp_path)) == ("clip_score", 0.21)


@pytest.mark.parametrize(
    ("shift", "noise", "confirmed"), [(0.5, 0.1, True), (-0.5, 0.1, False), (0.0, 1.0, None), (0.5, 30.0, None)]
)
def test_a_claim_is_confirmed_by_an_interval_on_its_side_of_zero(tmp_path, shift, noise, confirmed):
    rng = np.random.default_rng(0)
    base = rng.normal(90, 10, 200)  # whose own spread is far larger: pairs are compared
    other = base + shift + noise * rng.normal(size=200)
    plan = planned("table13", tmp_path)
    found = verdicts(CLIP, plan, rows(plan, CLIP, result("clip_score", [*other]), result("clip_score", [*base])))
    assert [(one.measure, one.confirmed) for one in found] == [("clip_score", confirmed)]


def test_less_is_better_for_fid_and_replicates_are_paired(tmp_path):
    draws = np.random.default_rng(1).normal(0, 50, 100)
    plan = planned("table1", tmp_path)

    def found(first: float, second: float) -> list[bool | None]:
        pair = [result("fid", [*(value + draws)], value) for value in (first, second)]
        return [one.confirmed for one in verdicts(FID, plan, rows(plan, FID, *pair))]

    assert found(30.0, 20.0) == [True]  # as printed: N = 20 is worse
    assert found(20.0, 30.0) == [False]


def test_rows_of_other_references_or_numbers_of_images_are_not_compared(tmp_path):
    plan = planned("table1", tmp_path)
    for first, second in (
        (result("fid", [1.0, 2.0], reference="a"), result("fid", [3.0, 4.0], reference="b")),
        (result("fid", [1.0, 2.0]), result("fid", [3.0, 4.0, 5.0])),
    ):
        assert verdicts(FID, plan, rows(plan, FID, first, second)) == []


def test_every_claim_names_two_rows_with_runs_and_a_printed_difference(tmp_path):
    claims = load_claims()
    assert len({(claim.table, claim.rows) for claim in claims}) == len(claims)
    plans = {name: planned(name, tmp_path) for name in TABLES}
    for claim in claims:
        jobs = [plans[claim.table].jobs[k - 1] for k in claim.rows]
        assert all(job is not None and job.num_images >= 256 for job in jobs), claim
        printed_difference(claim, plans[claim.table])
    text = claims_markdown(plans, {name: results_of(one, options(tmp_path)) for name, one in plans.items()})
    assert text.count("not run") == len(claims)
    # At this scale DDPM has half of the paper's steps, LDM-4-G 100 of 250, and the centres move with them.
    assert "20 full steps of 100 against 20 steps of DDIM | 6, 4 and 3 | FID -1.11 | 10 of 50 and 10 of 10 |" in text
    assert "c = 120 is better than c = 10 | 7, 6 and 1 | FID" in text
    assert "| 5 of 100, c = 48 and 5 of 100, c = 4 |" in text


def test_notes_name_rows_whose_baseline_varied_and_speed_ups_within_their_spread(tmp_path):
    plan = planned("table13", tmp_path)
    results = [Result()] * len(plan.table.rows)
    for k, (baseline, low, high) in {1: (1.0, 1.4, 1.6), 2: (1.2, 0.9, 1.1)}.items():
        one = result("clip_score", [1.0, 2.0], baseline_throughput=baseline)
        results[k] = Result({"speedup": Value((low + high) / 2, low, high)}, one.scores, None, one.speed)
    assert baseline_drift(plan, results) == {"sd15-parti": pytest.approx(1.2)}
    notes = " ".join(notes_of(plan, results, options(tmp_path)))
    assert "sd15-parti's baseline, timed again with every row, changed by 20 % between rows" in notes
    assert "The speed-up of row 3 is smaller than its spread." in notes


def test_row_numbers_are_abbreviated():
    assert ranges([5, 1, 3, 4]) == "1, 3–5"
    assert [named([2]), named([2, 3])] == ["row 2", "rows 2–3"]
