"""Knows when every tile is settled: by the producer's log and the consumer's own metrics."""

import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from consumer.demo.processes import POLL_S, DemoError, Signals
from consumer.demo.producer import PUBLISHED

ACKNOWLEDGED = "tiles_deliveries_acknowledged_total"
PARKED = "tiles_deliveries_parked_total"
STUCK_S = 60.0


@dataclass(frozen=True, slots=True)
class Counts:
    """Tiles confirmed by the broker, and those that the consumer settled. One message, one tile."""

    published: int = 0
    acknowledged: int = 0
    parked: int = 0

    @property
    def settled(self) -> int:
        """Return how many tiles are either written or parked."""
        return self.acknowledged + self.parked


@dataclass(frozen=True, slots=True)
class Program:
    """A running process of the demo, its name and its log."""

    name: str
    child: subprocess.Popen[bytes]
    log: Path

    def check(self, *, may_end: bool) -> None:
        """Raise where the process failed, or ended though it should run on."""
        code = self.child.poll()
        if code is not None and not (may_end and code == 0):
            raise DemoError(
                f"the {self.name} ended with exit code {code}; the end of {self.log}:\n"
                f"{tail(self.log)}"
            )


def tail(log: Path, characters: int = 2000) -> str:
    """Return the end of a log."""
    return log.read_text(errors="replace")[-characters:].strip()


def until_settled(
    producer: Program,
    consumer: Program,
    *,
    metrics_port: int,
    tiles: int,
    signals: Signals,
    show: Callable[[Counts], None],
) -> Counts:
    """Wait until all tiles are published and settled, and return the last counts.

    Raises
    ------
    DemoError
        Where a process failed, or nothing moved for `STUCK_S`.
    """
    counts, moved = Counts(), time.monotonic()
    while counts.published < tiles or counts.settled < tiles:
        signals.check()
        producer.check(may_end=True)
        consumer.check(may_end=False)
        before, counts = counts, _counted(producer.log, metrics_port, counts)
        show(counts)
        if counts != before:
            moved = time.monotonic()
        elif time.monotonic() - moved > STUCK_S:
            raise _stuck(counts, tiles, producer, consumer)
        time.sleep(POLL_S)
    return counts


def _stuck(counts: Counts, tiles: int, producer: Program, consumer: Program) -> DemoError:
    return DemoError(
        f"nothing moved for {STUCK_S:g} s: {counts.published} of {tiles} tiles published, "
        f"{counts.acknowledged} acknowledged, {counts.parked} parked; see {producer.log} and "
        f"{consumer.log}"
    )


def _counted(producer_log: Path, metrics_port: int, before: Counts) -> Counts:
    published = sum(line.startswith(PUBLISHED) for line in producer_log.read_text().splitlines())
    try:
        acknowledged, parked = _scraped(metrics_port)
    except OSError:
        # The consumer does not serve yet.
        acknowledged, parked = before.acknowledged, before.parked
    return Counts(published, acknowledged, parked)


def _scraped(port: int) -> tuple[int, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    totals = dict.fromkeys((ACKNOWLEDGED, PARKED), 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in totals:
                totals[sample.name] += sample.value
    return int(totals[ACKNOWLEDGED]), int(totals[PARKED])
