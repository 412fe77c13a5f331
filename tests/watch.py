"""What a process takes while it is watched: memory and processor time, its children's with it.

Seldom, and by counters that cost the kernel nothing: the processor is for what is watched.
"""

import contextlib
import re
import threading
from pathlib import Path
from typing import Self

import psutil

_EVERY_S = 0.2


class MemoryWatch:
    """Watches the memory of a process and its children until the block is left.

    Attributes
    ----------
    now, peak : int
        What is resident, and the most that was at once, in bytes. What they share counts once: the
        memory that both map, and the files, which are the same interpreter and libraries.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.now = self.peak = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            # It may end at any time.
            with contextlib.suppress(OSError, KeyError):
                self.now = resident([self._pid, *children(self._pid)])
                self.peak = max(self.peak, self.now)


def resident(family: list[int]) -> int:
    """Return the bytes that processes have in memory."""
    found = [sizes(pid, "status") for pid in family]
    shared = max(size["RssShmem"] for size in found) + max(size["RssFile"] for size in found)
    return sum(size["RssAnon"] for size in found) + shared


def sizes(pid: int, file: str) -> dict[str, int]:
    """Return what a file of /proc says in kB, in bytes."""
    text = Path(f"/proc/{pid}/{file}").read_text()
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}


def children(pid: int) -> list[int]:
    """Return what the main thread of a process has started and is still there."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_seconds(pid: int) -> float:
    """Return what a process and its children have computed."""
    times = [psutil.Process(each).cpu_times() for each in (pid, *children(pid))]
    return float(sum(each.user + each.system for each in times))
