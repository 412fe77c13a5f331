"""`consumer status`: how much of each array is written."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from consumer.blocks import ArrayKey
from consumer.commands.arguments import Parser, write_lines
from consumer.commands.parser import seconds
from consumer.ledger import Ledger
from consumer.ledger_files import find, read_present, signature

PURPOSE = """\
Show how much of each array is written.

Percent of its voxels, tiles written (duplicates included), blocks that are not whole yet, tiles
parked, the last write and the run. With --json a line for each array. Plain text where the output
is no terminal."""

COLUMNS = ("array", "percent", "tiles", "missing blocks", "parked", "last write", "run")
RIGHT = {"percent", "tiles", "missing blocks", "parked"}


@dataclass(frozen=True, slots=True)
class Row:
    """What is shown of an array."""

    store: str
    array: str
    percent: float
    complete: bool
    announced: bool
    tiles: int
    parked: int
    blocks: int
    missing_blocks: int
    written_ms: int | None
    source: str | None
    run: str | None

    @classmethod
    def of(cls, array: ArrayKey, ledger: Ledger) -> "Row":
        """Return what its ledger says."""
        header = ledger.header
        return cls(
            array.store,
            array.path,
            round(ledger.percent, 3),
            ledger.complete,
            header.announced,
            header.tiles,
            header.parked,
            ledger.blocks,
            ledger.missing_blocks,
            header.written_ms,
            header.source,
            header.run,
        )

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns' texts."""
        # Rounded down, so that 100 is shown only where nothing is missing.
        percent = f"{math.floor(self.percent * 10) / 10:.1f}"
        return (
            f"{self.store}/{self.array}",
            "100" if self.complete else percent,
            str(self.tiles),
            f"{self.missing_blocks} of {self.blocks}",
            str(self.parked),
            _time(self.written_ms),
            # A producer's own words: no control sequences for the terminal.
            "".join(c if c.isprintable() else repr(c)[1:-1] for c in self.run or ""),
        )


def main(arguments: Sequence[str], sleep: Callable[[float], None] = time.sleep) -> int:
    """Show the arrays; return the exit code."""
    parser = Parser("status", PURPOSE, "consumer status /data/predictions --watch")
    parser.add_argument("root", metavar="ROOT", nargs="?", help="the same as --output-root")
    parser.add_argument("--json", action="store_true", help="a JSON line for each array")
    parser.add_argument("--watch", action="store_true", help="look again and again, until Ctrl-C")
    parser.add_argument(
        "--interval", type=seconds, default=2.0, metavar="SECONDS",
        help="time between two looks of --watch, seconds; default: 2",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    options.output_root = options.root or options.output_root
    rows = Rows(parser.root(options))
    with _shown(as_json=options.json) as show:
        show(rows.read())
        # Ctrl-C is how watching ends.
        with suppress(KeyboardInterrupt):
            while options.watch:
                sleep(options.interval)
                show(rows.read())
    return 0


class Rows:
    """The rows of all arrays below a root, read anew where a ledger has changed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[ArrayKey, tuple[object, Row | None]] = {}

    def read(self) -> list[Row]:
        """Return the rows by name; what is damaged is said on standard error when it is read."""
        found = {array: self._row(array) for array in sorted(find(self._root))}
        self._known = found
        return [row for _, row in found.values() if row is not None]

    def _row(self, array: ArrayKey) -> tuple[object, Row | None]:
        now = signature(self._root, array)
        if array in self._known and self._known[array][0] == now:
            return self._known[array]
        ledger, damages = read_present(self._root, array)
        for damage in damages:
            sys.stderr.write(f"consumer: {damage}\n")
        return now, Row.of(array, ledger) if ledger else None


Show: TypeAlias = Callable[[list[Row]], None]


def _shown(*, as_json: bool) -> AbstractContextManager[Show]:
    if as_json:
        return nullcontext(lambda rows: write_lines(json.dumps(asdict(row)) for row in rows))
    if not sys.stdout.isatty():
        return nullcontext(lambda rows: write_lines(_plain(rows)))
    from consumer.commands.table import shown  # noqa: PLC0415 - rich is for terminals only

    return shown()


def _plain(rows: list[Row]) -> Iterator[str]:
    lines = [COLUMNS, *(row.cells for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(COLUMNS, line, widths, strict=True)
        aligned = (
            text.rjust(width) if name in RIGHT else text.ljust(width) for name, text, width in cells
        )
        yield "  ".join(aligned).rstrip()


def _time(milliseconds: int | None) -> str:
    if milliseconds is None:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
