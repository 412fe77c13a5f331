"""Tables and records on standard output: for people on a terminal, plain or JSON for a pipe."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


def show_table(
    columns: Sequence[str], rows: Iterable[dict[str, Any]], *, as_json: bool = False
) -> None:
    """Show rows: a table on a terminal, else a line each, columns separated by tabs."""
    if as_json:
        for row in rows:
            show_record(row, as_json=True)
    elif sys.stdout.isatty():
        _show_rich(columns, rows)
    else:
        for row in rows:
            sys.stdout.write("\t".join(plain(row[name]) for name in columns) + "\n")


def show_record(record: dict[str, Any], *, as_json: bool = False) -> None:
    """Show all of a record: a line for each of its keys, or a line of JSON."""
    if as_json:
        sys.stdout.write(json.dumps(record, ensure_ascii=True, default=str) + "\n")
        return
    width = max(map(len, record))
    for name, value in record.items():
        shown = json.dumps(value, default=str) if isinstance(value, dict) else value
        sys.stdout.write(f"{name:<{width}}  {plain(shown)}\n")
    sys.stdout.write("\n")


def _show_rich(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - a pipe needs none of it
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table()
    for name in columns:
        # An id is there to be copied.
        justify: Any = "right" if name == "bytes" else "left"
        table.add_column(name, overflow="fold", no_wrap=name == "id", justify=justify)
    for row in rows:
        table.add_row(*(escape(plain(row[name])) for name in columns))
    Console().print(table)


def plain(value: Any) -> str:
    """Return a value on one line; strangers' text must not steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))


def progress(items: Iterable[Item], what: str, total: int) -> Iterable[Item]:
    """Yield the items, so many in all; show how far that is where standard error is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console  # noqa: PLC0415 - a pipe needs none of it
    from rich.progress import Progress  # noqa: PLC0415

    # rich would send what is written to standard output to its own console, a file's lines too.
    console, both = Console(stderr=True), sys.stdout.isatty()
    with Progress(console=console, redirect_stdout=both) as shown:
        yield from shown.track(items, total=total, description=what)
