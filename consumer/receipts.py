"""Acknowledgements to the broker, for deliveries that are durable."""

import time
from collections.abc import Callable

from consumer.blocks import DeliveryId
from consumer.delivery import Settling
from consumer.failpoints import ACKNOWLEDGE, Failpoints
from consumer.holdings import Holdings
from consumer.metrics import Metrics


class Receipts:
    """Acknowledges deliveries, and measures how long each took.

    Parameters
    ----------
    held : Holdings
        All deliveries that are neither acknowledged nor parked.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self,
        broker: Settling,
        held: Holdings,
        metrics: Metrics,
        failpoints: Failpoints,
        clock: Callable[[], float],
    ) -> None:
        self._broker = broker
        self._held = held
        self._metrics = metrics
        self._failpoints = failpoints
        self._clock = clock

    def acknowledge(self, identity: DeliveryId) -> None:
        """Acknowledge a delivery, unless it or its channel is gone."""
        held = self._held.pop(identity)
        self._failpoints.reach(ACKNOWLEDGE)
        if held is None or not self._broker.acknowledge(identity):
            return
        self._metrics.acknowledged.inc()
        now = time.time()
        received = now - (self._clock() - held.since)
        sent = received if held.sent_ms is None else held.sent_ms / 1000
        self._metrics.latency_seconds.observe(max(0.0, now - sent))
        self._metrics.last_acknowledged.set(now)
