"""What a check found, and checks that are bounded in time: what hangs holds up nobody else."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a check ended; only `FAILED` must be changed."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do about it; `transient`: it may be gone by itself later."""

    check: str
    verdict: Verdict
    said: str
    remedy: str = ""
    transient: bool = False

    @classmethod
    def ok(cls, check: str, said: str) -> "Finding":
        """Return that all is well."""
        return cls(check, Verdict.OK, said)

    @classmethod
    def warning(cls, check: str, said: str, remedy: str) -> "Finding":
        """Return what may stay as it is, by somebody who knows."""
        return cls(check, Verdict.WARNING, said, remedy)

    @classmethod
    def failed(cls, check: str, said: str, remedy: str) -> "Finding":
        """Return what must be changed."""
        return cls(check, Verdict.FAILED, said, remedy)

    @classmethod
    def unknown(cls, check: str, said: str, remedy: str = "") -> "Finding":
        """Return what cannot be told."""
        return cls(check, Verdict.UNKNOWN, said, remedy)


@dataclass(frozen=True, slots=True)
class Check:
    """Something to look at; `remedy` is for where it hangs or breaks."""

    name: str
    look: Callable[[], Iterable[Finding]]
    remedy: str


def side_by_side(rounds: Iterable[Sequence[Check]], seconds: float) -> Iterator[Finding]:
    """Yield what is found in order: all rounds at once, the checks of each one after the other.

    Whatever a check raises is a finding, and so is that it took longer than `seconds`, which all
    have together.
    """
    started = [_Round(checks) for checks in rounds]
    deadline = time.monotonic() + seconds
    for each in started:
        yield from each.findings(deadline, f"no answer within {seconds:g} s")


class _Round:
    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = checks
        self._ended = 0
        self._found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()
        # A call that hangs in the kernel cannot be given up: the process ends without it.
        threading.Thread(target=self._run, name="checks", daemon=True).start()

    def findings(self, deadline: float, late: str) -> Iterator[Finding]:
        try:
            while finding := self._found.get(timeout=max(0.0, deadline - time.monotonic())):
                yield finding
        except queue.Empty:
            hangs, *left = self._checks[self._ended :]
            yield Finding.failed(hangs.name, late, hangs.remedy)
            for check in left:
                yield Finding.unknown(check.name, f"not looked at: {hangs.name} hangs")

    def _run(self) -> None:
        for check in self._checks:
            try:
                for finding in check.look():
                    self._found.put(finding)
            except Exception as error:  # whatever it is, the other checks go on
                said = f"{type(error).__name__}: {error}"
                self._found.put(Finding.failed(check.name, said, check.remedy))
            self._ended += 1
        self._found.put(None)
