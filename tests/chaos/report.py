"""The outcomes as JSON and as a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from chaos.runs import Outcome
from chaos.stage import Options

_COUNTS = ("published", "lost", "corrupt", "foreign", "wrongly_parked", "leftovers")
_MOST_NOTES = 12


def write(file: Path, outcome: Outcome, options: Options) -> None:
    """Put a scenario's row into a file, in the place of its last one; others stay.

    What could not be run has no figures, and is below `not_run`, with the reason.
    """
    found = json.loads(file.read_text()) if file.exists() else {}
    name = outcome.row.name
    rows, absent = (
        [row for row in found.get(key, ()) if row["name"] != name]
        for key in ("scenarios", "not_run")
    )
    if outcome.not_run is None:
        rows.append(_row(outcome, options))
    else:
        absent.append({"name": name, "reason": str(outcome.not_run)})
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"scenarios": rows, "not_run": absent}, indent=2) + "\n")
    part.rename(file)


def _row(outcome: Outcome, options: Options) -> dict[str, Any]:
    times = outcome.recoveries
    return {
        **asdict(outcome.row),
        "recovery_median_s": round(median(times), 2) if times else None,
        "recovery_worst_s": round(max(times), 2) if times else None,
        "clean": outcome.clean,
        "problems": list(outcome.problems),
        "quick": options.quick,
        "seed": options.seed,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def line(outcome: Outcome) -> str:
    """Return a scenario's figures as one line."""
    row = outcome.row
    if outcome.not_run is not None:
        return f"{row.name}: NOT RUN: {outcome.not_run}"
    counts = ", ".join(f"{getattr(row, name)} {name}" for name in _COUNTS).replace("_", " ")
    state = "clean" if outcome.clean else "NOT CLEAN"
    return f"{row.name}: {state}, {row.faults} faults, {counts}, {row.seconds:.0f} s"


def show(outcomes: Sequence[Outcome]) -> None:
    """Print the table, and below it why rows are not clean."""
    console = Console(width=None if Console().is_terminal else 150)
    table = Table(title="faults, and what was wrong afterwards")
    columns = ("scenario", "faults", *_COUNTS, "recovery s, median", "longest", "seconds", "")
    for column in columns:
        table.add_column(column, justify="left" if column in {"scenario", ""} else "right")
    for outcome in outcomes:
        table.add_row(*_cells(outcome))
    console.print(table)
    for outcome in outcomes:
        for each in _lines(outcome):
            console.print(each, markup=False, highlight=False)


def _cells(outcome: Outcome) -> list[str]:
    row = outcome.row
    if outcome.not_run is not None:
        return [row.name, *[""] * (len(_COUNTS) + 4), "NOT RUN"]
    wanted = f"/{outcome.wanted}" if outcome.wanted and row.faults != outcome.wanted else ""
    times = outcome.recoveries
    return [
        row.name,
        f"{row.faults}{wanted}",
        *(str(getattr(row, name)) for name in _COUNTS),
        f"{median(times):.1f}" if times else "",
        f"{max(times):.1f}" if times else "",
        f"{row.seconds:.0f}",
        "clean" if outcome.clean else "NOT CLEAN",
    ]


def _lines(outcome: Outcome) -> list[str]:
    name = outcome.row.name
    if outcome.not_run is not None:
        return [f"{name}: NOT RUN: {outcome.not_run}"]
    lines = [f"{name}: {problem}" for problem in outcome.problems]
    notes = [f"{name}: {note}" for note in outcome.notes]
    if len(notes) > _MOST_NOTES:
        notes = [*notes[:_MOST_NOTES], f"{name}: … {len(notes) - _MOST_NOTES} more"]
    return [*lines, *notes]
