"""What each thread of the consumer computes in a run, and how often it waits."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self, TypeAlias

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from watch import children

# Makes threads known by their names.
NAMES = Path(__file__).parent / "names"
_TICKS = os.sysconf("SC_CLK_TCK")
_LEAST_S = 0.001
_NUMBER = re.compile(r"_\d+$")


Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Usage:
    """What threads of one name have taken since they began.

    Attributes
    ----------
    core, kernel, queued : float
        Seconds on a core, those of them in the kernel to 10 ms, and ready for one.
    waits, preempted : int
        How often they gave up their core, and how often it was taken from them.
    """

    core: float = 0.0
    kernel: float = 0.0
    queued: float = 0.0
    waits: int = 0
    preempted: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Self) -> Self:
        return type(self)(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


def usages(pid: int) -> dict[Key, Usage]:
    """Return what the threads of a consumer took, by process and name, numbers left out."""
    found: dict[Key, Usage] = {}
    for process, each in (("owner", pid), *(("writer", child) for child in children(pid))):
        for name, usage in _threads(each):
            key = process, name
            found[key] = found.get(key, Usage()) + usage
    return found


def between(before: Mapping[Key, Usage], after: Mapping[Key, Usage]) -> dict[Key, Usage]:
    """Return what was taken meanwhile, by threads that have not ended since."""
    return {key: usage - before.get(key, Usage()) for key, usage in after.items()}


def show(name: str, found: Mapping[Key, Usage], payload_bytes: int, files: int) -> None:
    """Print what the threads of a run took, the busiest first."""
    columns = ("process", "thread", "ms/MB", "kernel", "queued", "waits", "preempted")
    table = Table(*columns, title=f"{name}, {files} files", box=MARKDOWN)
    mb = payload_bytes / 1e6
    for key, usage in sorted(found.items(), key=lambda item: -item[1].core):
        if usage.core > _LEAST_S:
            took = (usage.core, usage.kernel, usage.queued)
            times = (f"{seconds * 1e3 / mb:.2f}" for seconds in took)
            table.add_row(*key, *times, str(usage.waits), str(usage.preempted))
    Console().print(table)


def _threads(pid: int) -> Iterator[tuple[str, Usage]]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        # It may end while it is looked at.
        with suppress(FileNotFoundError, ProcessLookupError):
            name = "main" if task.name == str(pid) else (task / "comm").read_text().strip()
            yield _NUMBER.sub("", name), _usage(task)


def _usage(task: Path) -> Usage:
    core, queued, _ = map(int, (task / "schedstat").read_text().split())
    kernel = int((task / "stat").read_text().rsplit(")", 1)[1].split()[12]) / _TICKS
    counts = re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text())
    return Usage(core / 1e9, kernel, queued / 1e9, *map(int, counts))
