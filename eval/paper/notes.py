"""The notes under a table: how our numbers were made."""

from __future__ import annotations

from collections.abc import Iterable

from common.words import counted

from .data import FLOOR, Model
from .jobs import Options, Plan
from .measured import Measured
from .results import Result, Value, baseline_drift

DRIFT = 1.05  # ratio of the baseline's speeds between rows that is worth a note
SAME = ("scorer", "reference", "code")  # must be the same for scores to be comparable


def notes_of(plan: Plan, results: list[Result], options: Options) -> list[str]:
    """Notes on our numbers, then the table's own."""
    table, scale = plan.table, options.scale
    if table.kind == "schedules":
        return ["Counted exactly; independent of weights.", *table.notes]
    notes = []
    if scale.name == "shapes":
        notes.append(f"Here: {scale.about}")
    if "macs_g" in table.columns:
        notes.append(
            "MACs are counted for the published layouts, without weights; ✓: equals the printed number, to its digits."
        )
    notes += _made(results) + _incomparable(results) + _unreliable(results) + _exact(results) + _speed(plan, results)
    models = {row.run.model for row in table.rows if row.run is not None}
    if missing := sorted(models - scale.models.keys()):
        notes.append(f"No model stands for {', '.join(missing)} at this scale.")
    if elsewhere := [k for k, row in enumerate(table.rows, 1) if row.run and row.run.only not in (None, scale.name)]:
        notes.append(f"{named(elsewhere).capitalize()}: run only at the paper's scale, to save time.")
    if others := [k for k, row in enumerate(table.rows, 1) if row.run is None]:
        notes.append(f"{named(others).capitalize()}: from other methods or other papers, not run.")
    skipped: dict[str, list[int]] = {}
    for k, (job, result) in enumerate(zip(plan.jobs, results, strict=True), 1):
        if job is not None and result.scores is None and (missing := [*job.missing, *job.missing_for_scores]):
            skipped.setdefault(", ".join(missing), []).append(k)
    for names, rows in skipped.items():
        notes.append(f"{named(rows).capitalize()} not scored; missing: {names} (`python -m eval.fetch` lists them).")
    if any(row.name.startswith(FLOOR) for row in table.rows):
        notes.append(f"The row {FLOOR} is not a run, but what a model without mistakes would score.")
    used: dict[str, Model] = {name: scale.models[name] for name in sorted(models & scale.models.keys())}
    notes += dict.fromkeys(text for model in used.values() for text in model.departures)
    return [*notes, *table.notes]


def _made(results: list[Result]) -> list[str]:
    """How many images, when and where rows were made from, grouping equal rows."""
    groups: dict[str, list[int]] = {}
    for k, result in enumerate(results, 1):
        if (made := result.scores) is not None:
            groups.setdefault(f"{counted(made.made_from['num_images'], 'image')}, {_where(made)}", []).append(k)
    timed: dict[str, list[int]] = {}
    for k, result in enumerate(results, 1):
        if (made := result.speed) is not None:
            batch, repeats = made.made_from["batch_size"], made.made_from["repeats"]
            text = f"batches of {batch}, {repeats} calls in turn with the baseline's, {_where(made)}"
            timed.setdefault(text, []).append(k)
    notes = [f"Scores of {named(rows)}: {text}." for text, rows in groups.items()]
    return notes + [f"Speed of {named(rows)}: {text}." for text, rows in timed.items()]


def _where(made: Measured) -> str:
    machine, threads = made.machine, made.machine["threads"]
    processor = f"{machine['device']} ({machine['instructions']}), {counted(threads, 'thread')}"
    return f"{made.date[:10]}, {processor}, torch {machine['torch']}"


def _incomparable(results: list[Result]) -> list[str]:
    """Rows whose scorer, reference, code or number of images differs from the majority's."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for k, result in enumerate(results, 1):
        if (made := result.scores) is not None:
            # Scorers of one table differ by model: CIFAR-10's reference is not LSUN's.
            group = (made.made_from["score"].get("variant"), made.made_from["score"].get("drawn"))
            kind = (*group, *(made.made_from.get(name) for name in SAME), made.made_from["num_images"])
            kinds.setdefault(kind, []).append(k)
    notes = []
    for kind, rows in kinds.items():
        larger = [other for other in kinds if other[:2] == kind[:2] and len(kinds[other]) > len(rows)]
        if larger:
            most = max(larger, key=lambda other: len(kinds[other]))
            names = [*SAME, "number of images"]
            what = [name for name, a, b in zip(names, kind[2:], most[2:], strict=True) if a != b]
            notes.append(
                f"**{named(rows).capitalize()} can't be compared with the others**: different {' and '.join(what)}. "
                "Rerun them."
            )
    return notes


def _unreliable(results: list[Result]) -> list[str]:
    reasons: dict[str, list[int]] = {}
    for k, result in enumerate(results, 1):
        for name, cell in result.cells.items():
            if isinstance(cell, Value) and cell.why is not None:
                reasons.setdefault(f"{name}: {cell.why}", []).append(k)
    return [f"Too few images in {named(rows)} for {text}." for text, rows in reasons.items()]


def _exact(results: list[Result]) -> list[str]:
    """Rows where precision and recall differ with exact distances."""
    found = []
    for k, result in enumerate(results, 1):
        pairs = [(result.number(name), result.number(f"exact_{name}")) for name in ("precision", "recall")]
        texts = [f"{100 * exact:.2f} %" for _, exact in pairs if exact is not None]
        if any(exact is not None and rounded != exact for rounded, exact in pairs):
            found.append(f"row {k} {' and '.join(texts)}")
    return [f"With exact distances, precision and recall are: {'; '.join(found)}."] if found else []


def _speed(plan: Plan, results: list[Result]) -> list[str]:
    """How much the machine's speed varied between rows, and rows whose speed-up is not significant."""
    notes = []
    if any(result.speed for result in results):
        notes.append("Images/s are the baseline's (median of all its timings in this table) times a row's speed-up.")
    for name, drift in baseline_drift(plan, results).items():
        if drift > DRIFT:
            notes.append(
                f"The machine's speed varied: {name}'s baseline, timed again with every row, changed by "
                f"{100 * (drift - 1):.0f} % between rows. Speed-ups are from pairs timed one after the other; note "
                "their spread."
            )
    unclear = []
    for k, result in enumerate(results, 1):
        cell = result["speedup"]
        if isinstance(cell, Value) and cell.low is not None and cell.high is not None and cell.low < 1 < cell.high:
            unclear.append(k)
    if unclear:
        notes.append(f"The speed-up of {named(unclear)} is smaller than its spread.")
    return notes


def named(rows: list[int]) -> str:
    """Row 2, or rows 1, 3–5."""
    return f"row{'s' if len(rows) > 1 else ''} {ranges(rows)}"


def ranges(numbers: Iterable[int]) -> str:
    """1, 3–5 of 1, 3, 4, 5."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)
