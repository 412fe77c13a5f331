"""The rows of `consumer status` as a table on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.live import Live
from rich.table import Table
from rich.text import Text

from consumer.commands.status import COLUMNS, RIGHT, Row


@contextmanager
def shown() -> Iterator[Callable[[list[Row]], None]]:
    """Yield what shows rows in the place of those before."""
    with Live(auto_refresh=False) as live:
        yield lambda rows: live.update(table(rows), refresh=True)


def table(rows: list[Row]) -> Table:
    """Return the table of rows."""
    made = Table(box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        made.add_column(column, justify="right" if column in RIGHT else "left", overflow="fold")
    for row in rows:
        style = "green" if row.complete else "yellow" if row.parked else ""
        made.add_row(*(Text(cell) for cell in row.cells), style=style)
    return made
