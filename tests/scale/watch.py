"""Watches replicas from outside, by their metrics: when deliveries came on each partition."""

import re
import threading
from collections import defaultdict
from types import TracebackType
from typing import Self

from chaos import fleet
from harness import ConsumerProcess

_POLL_S = 0.2
_DELIVERY = re.compile(r'tiles_partition_last_delivery_timestamp_seconds\{partition="(\w+)"\}')
_REDELIVERIES = "tiles_redeliveries_total"


class Watch:
    """Reads the metrics of each replica five times a second, in a thread for each.

    Attributes
    ----------
    deliveries : dict
        By partition: the times of deliveries that were seen, Unix, and to whom. Those between two
        looks are not seen, so that pauses look longer than they are, never shorter.
    """

    def __init__(self, replicas: list[ConsumerProcess]) -> None:
        self.deliveries: dict[str, dict[float, str]] = defaultdict(dict)
        self._redelivered: dict[tuple[str, int], float] = {}
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=(each,), daemon=True) for each in replicas
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @property
    def redelivered(self) -> int:
        """Deliveries that the broker had delivered before, as far as they were seen."""
        return int(sum(self._redelivered.values()))

    def seen(self, partition: str) -> dict[float, str]:
        """Return a copy of what was seen of a partition."""
        return dict(self.deliveries[partition])

    def delivered_since(self, partitions: list[str], since: float) -> list[str]:
        """Return the partitions that had a delivery after a time, Unix."""
        return [each for each in partitions if max(self.seen(each), default=0.0) > since]

    def _watch(self, replica: ConsumerProcess) -> None:
        while not self._ended.wait(_POLL_S):
            if not fleet.running(replica) or fleet.paused(replica):
                continue
            pid, found = replica.pid, fleet.metrics(replica)
            if found:
                self.note(fleet.name(replica), pid, found)

    def note(self, name: str, pid: int, found: dict[str, float]) -> None:
        """Take note of what one look found."""
        self._redelivered[name, pid] = found[_REDELIVERIES]
        for key, time in found.items():
            matched = _DELIVERY.fullmatch(key)
            if matched and time:
                self.deliveries[matched[1]][time] = name
