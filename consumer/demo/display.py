"""What the demo shows while it runs and at its end: bars in a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

_PLAIN_STEPS = 5


class Tally:
    """A context that shows how many tiles are published and acknowledged."""

    def __init__(self, console: Console, tiles: int) -> None:
        self._console = console
        self._tiles = tiles
        self._told = 0
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._published = self._progress.add_task("published", total=tiles)
        self._settled = self._progress.add_task("acknowledged", total=tiles)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, *, published: int, acknowledged: int, parked: int) -> None:
        """Show the counts as they are now."""
        suffix = f", {parked} parked" if parked else ""
        self._progress.update(self._published, completed=published)
        self._progress.update(
            self._settled, completed=acknowledged, description=f"acknowledged{suffix}"
        )
        step = (published + acknowledged + parked) * _PLAIN_STEPS // (2 * self._tiles)
        if not self._console.is_terminal and step > self._told:
            self._told = step
            self._console.print(
                f"published {published}, acknowledged {acknowledged}{suffix} of {self._tiles} tiles"
            )


def table(rows: dict[str, str]) -> Table:
    """Return the closing table."""
    found = Table(show_header=False, title="Stitched", title_justify="left")
    found.add_column(style="bold")
    found.add_column(overflow="fold")
    for name, value in rows.items():
        found.add_row(name, value)
    return found
