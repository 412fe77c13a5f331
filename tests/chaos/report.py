"""The outcomes as JSON and as a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from chaos.runs import Outcome

_COUNTS = ("published", "lost", "corrupt", "foreign", "wrongly_parked", "leftovers")
_MOST_NOTES = 12


def write(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write `latest.json`, which has no row for what was not run."""
    rows = [asdict(outcome.row) for outcome in outcomes if outcome.not_run is None]
    (folder / "latest.json").write_text(json.dumps({"scenarios": rows}, indent=2) + "\n")


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
        for line in _lines(outcome):
            console.print(line, markup=False, highlight=False)


def _cells(outcome: Outcome) -> list[str]:
    row = outcome.row
    if outcome.not_run is not None:
        return [row.name, *[""] * (len(_COUNTS) + 4), "not run"]
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
        return [f"{name}: not run: {outcome.not_run}"]
    lines = [f"{name}: {problem}" for problem in outcome.problems]
    notes = [f"{name}: {note}" for note in outcome.notes]
    if len(notes) > _MOST_NOTES:
        notes = [*notes[:_MOST_NOTES], f"{name}: … {len(notes) - _MOST_NOTES} more"]
    return [*lines, *notes]
