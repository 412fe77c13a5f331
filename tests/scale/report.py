"""The outcomes as JSON and as a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scale.runs import Outcome


def write(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write `latest.json`."""
    rows = [asdict(outcome) for outcome in outcomes]
    (folder / "latest.json").write_text(json.dumps({"scenarios": rows}, indent=2) + "\n")


def show(outcomes: Sequence[Outcome]) -> None:
    """Print the table, and below it what is not as it must be."""
    console = Console(width=None if Console().is_terminal else 150)
    table = Table(title="replicas on partitions")
    for column in ("scenario", "RabbitMQ", "seconds", "what was seen", ""):
        table.add_column(column)
    for outcome in outcomes:
        seen = ", ".join(f"{name} {value:g}" for name, value in outcome.figures.items())
        state = "as it must be" if not outcome.problems else "NOT AS IT MUST BE"
        table.add_row(outcome.scenario, outcome.rabbitmq, f"{outcome.seconds:.0f}", seen, state)
    console.print(table)
    for outcome in outcomes:
        for problem in outcome.problems:
            console.print(f"{outcome.scenario}: {problem}", markup=False, highlight=False)
