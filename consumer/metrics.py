"""Every metric of the consumer, on a registry of its own. Labels come from closed sets."""

import math
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from consumer.blocks import Reason, Write
from consumer.budget import KINDS
from consumer.errors import ParkError

PREFIX = "tiles"
_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """The metrics; built once and passed in.

    Parameters
    ----------
    partitions : sequence of str
        The values of the label `partition`.
    """

    def __init__(self, partitions: Sequence[str] = ("00",)) -> None:
        self.registry = CollectorRegistry()
        self.deliveries = self._counter("deliveries", "Deliveries received.")
        self.redeliveries = self._counter(
            "redeliveries", "Deliveries received that the broker had delivered before."
        )
        self.acknowledged = self._counter(
            "deliveries_acknowledged", "Deliveries acknowledged after a durable write."
        )
        self.last_acknowledged = self._gauge(
            "last_acknowledged_timestamp_seconds",
            "When a delivery was last acknowledged.",
        )
        self.parked = self._counter("deliveries_parked", "Deliveries parked.", "reason")
        self.handled_alone = self._counter(
            "deliveries_handled_alone",
            "Deliveries handled with nothing else under way but their like: suspected of kills.",
        )
        self.tiles = self._counter("placed", "Tiles placed into blocks.")
        self.bytes_in = self._counter("received_bytes", "Bytes of bodies received.")
        self.bytes_stitched = self._counter(
            "stitched_bytes", "Bytes of the voxels that written blocks took from tiles."
        )
        self.bytes_encoded = self._counter(
            "encoded_bytes", "Bytes of the voxels in the files that were encoded."
        )
        self.bytes_committed = self._counter("committed_bytes", "Bytes of files committed.")
        self.amplification = self._gauge(
            "write_amplification_ratio", "Bytes encoded over bytes stitched: 1 is each voxel once."
        )
        self.blocks_written = self._counter("blocks_written", "Blocks written.", "reason")
        self.blocks_merged = self._counter(
            "blocks_merged", "Blocks for which what is stored had to be read."
        )
        self.write_seconds = self._histogram(
            "block_write_seconds", "Time to read, encode and commit a block."
        )
        self.latency_seconds = self._histogram(
            "end_to_end_seconds", "Time from sending (without sent_ms: receiving) to acknowledging."
        )
        self.open_blocks = self._gauge("open_blocks", "Blocks with tiles that are not durable.")
        self.writing = self._gauge("writes_in_flight", "Block writes under way.")
        self.held_bytes = self._gauge("held_bytes", "Bytes held; scratch is on disk.", "kind")
        self.unacknowledged = self._gauge("unacknowledged", "Deliveries held.")
        self._add_partitions(partitions)
        self.open_arrays = self._gauge("open_arrays", "Array handles open.")
        self.store_opens = self._counter("store_opens", "Stores opened.")
        self.array_opens = self._counter("array_opens", "Arrays opened or created.")
        self.retries = self._counter(
            "retries", "Operations to be tried again after a fault.", "operation"
        )
        self.reconnects = self._counter(
            "reconnects",
            "Connections lost or refused.",
            "connection",
        )
        self.resubscribed = self._counter(
            "resubscribed", "New subscriptions since messages waited and none came."
        )
        self.subscribed = self._gauge("subscribed", "1 while subscribed to every partition.")
        self._add_faults()
        self._add_limits()
        self._stitched = self._encoded = 0
        self._show_every_label()

    def wrote(self, write: Write, encoded: int, committed: int, seconds: float) -> None:
        """Count a block that was written; bytes as in `consumer.storage.Written`."""
        stitched = write.filled.voxels * write.buffer.itemsize
        self.blocks_written.labels(reason=write.reason.value).inc()
        self.blocks_merged.inc(write.merge)
        self.bytes_stitched.inc(stitched)
        self.bytes_encoded.inc(encoded)
        self.bytes_committed.inc(committed)
        self.write_seconds.observe(seconds)
        self._stitched += stitched
        self._encoded += encoded
        self.amplification.set(self._encoded / self._stitched)

    def _add_partitions(self, partitions: Sequence[str]) -> None:
        self.partition_waiting = self._gauge(
            "partition_waiting_messages",
            "Messages that wait in the queue, as the broker last said; NaN: unknown.",
            "partition",
        )
        self.partition_last_delivery = self._gauge(
            "partition_last_delivery_timestamp_seconds",
            "When a delivery last came; 0: none yet.",
            "partition",
        )
        self.partition_oldest_seconds = self._gauge(
            "partition_oldest_unacknowledged_seconds",
            "Age of the oldest delivery held.",
            "partition",
        )
        self.channels_lost = self._counter(
            "partition_channels_lost", "Channels that were closed or given up.", "partition"
        )
        self.parking_waiting = self._gauge(
            "parking_queue_messages",
            "Messages that wait in the parking queue, as the broker last said; NaN: unknown.",
        )
        self.parking_waiting.set(math.nan)
        for partition in partitions:
            self.partition_waiting.labels(partition=partition).set(math.nan)
            self.partition_last_delivery.labels(partition=partition)
            self.partition_oldest_seconds.labels(partition=partition)
            self.channels_lost.labels(partition=partition)

    def _add_faults(self) -> None:
        self.fenced = self._counter(
            "stores_fenced", "Times that another consumer had taken a store from this one."
        )
        self.retrying_seconds = self._gauge(
            "retrying_seconds",
            "For how long the store that failed first has been tried again; 0: none fails.",
        )
        self.writer_seconds = self._gauge(
            "writer_oldest_request_seconds",
            "Age of the oldest request that the writer process has not answered.",
        )
        self.unannounced_seconds = self._gauge(
            "unannounced_completion_seconds",
            "For how long an array has been complete without an announcement; 0: none.",
        )
        self.root_writable = self._gauge("root_writable", "1 while the probe write succeeds.")
        self.root_free = self._gauge(
            "root_free_bytes", "Bytes free below the output root, as the last probe found."
        )
        self.root_size = self._gauge(
            "root_size_bytes", "Bytes of the output root's file system, as the last probe found."
        )

    def _add_limits(self) -> None:
        self.max_age = self._gauge("max_age_seconds", "The setting TILES_MAX_AGE_S.")
        self.memory_budget = self._gauge(
            "memory_budget_bytes", "The setting TILES_MEMORY_BUDGET_BYTES."
        )

    def _show_every_label(self) -> None:
        """Start each labelled series at zero, so that a first increase is seen."""
        for reason in sorted(_reasons(ParkError)):
            self.parked.labels(reason=reason)
        for flush in Reason:
            self.blocks_written.labels(reason=flush.value)
        for kind in KINDS:
            self.held_bytes.labels(kind=kind)
        for operation in ("write", "open", "park", "announce", "lone"):
            self.retries.labels(operation=operation)
        for connection in ("consume", "publish"):
            self.reconnects.labels(connection=connection)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, registry=self.registry, buckets=_LATENCY_S)


def _reasons(error: type[ParkError]) -> set[str]:
    return {kind.reason for kind in error.__subclasses__()}
