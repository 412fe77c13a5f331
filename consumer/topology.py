"""Exchanges, queues and bindings of one deployment, as data; who declares them is `declaring`.

One partition needs no plugin: its queue is bound to the exchange that producers publish to. More
are bound to a consistent-hash exchange behind it, which gives every store key a partition.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from consumer.events import events_exchange
from consumer.settings import TopologySettings

CONSISTENT_HASH = "x-consistent-hash"
_MOST_LOOKS = 1_000_000_000
# As many points on the ring for each partition; a routing key in name only.
_WEIGHT = "1"
_ALL = "#"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue and its arguments."""

    name: str
    arguments: dict[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding of a queue, or of another exchange, to an exchange."""

    source: str
    destination: str
    routing_key: str
    to_exchange: bool = False


@dataclass(frozen=True, slots=True)
class Topology:
    """What one deployment of the consumer has on the broker.

    Attributes
    ----------
    ring : Exchange or None
        What spreads store keys over the partitions; None with one partition.
    bindings : tuple of Binding
        In the order in which they are made: the ring depends on it.
    """

    tiles: Exchange
    parking: Exchange
    events: Exchange
    ring: Exchange | None
    partitions: tuple[Queue, ...]
    parked: Queue
    bindings: tuple[Binding, ...]

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All exchanges."""
        return (self.tiles, self.parking, self.events, *((self.ring,) if self.ring else ()))

    @property
    def queues(self) -> tuple[Queue, ...]:
        """All queues."""
        return (*self.partitions, self.parked)

    @property
    def entrance(self) -> Binding:
        """The binding through which tiles come to the partitions; there is one."""
        return next(binding for binding in self.bindings if binding.source == self.tiles.name)

    def bindings_of(self, queue: Queue) -> Iterator[Binding]:
        """Iterate over a queue's bindings."""
        return (each for each in self.bindings if each.destination == queue.name)


def topology(settings: TopologySettings) -> Topology:
    """Return the topology that the settings describe."""
    prefix, count = settings.topology_prefix, settings.partitions
    tiles = Exchange(prefix, "topic")
    parking = Exchange(f"{prefix}.parking", "topic")
    ring = Exchange(f"{prefix}.{count}", CONSISTENT_HASH) if count > 1 else None
    # RabbitMQ 4 drops after 20 deliveries what has no limit of its own: each look is one.
    looks = {"x-delivery-limit": _MOST_LOOKS}
    parked = Queue(f"{prefix}.parked", {"x-queue-type": "quorum", **looks})
    arguments = _of_partitions(settings, parking)
    within = ring or tiles
    partitions = tuple(Queue(f"{within.name}.{label}", arguments) for label in labels(count))
    through = (Binding(tiles.name, ring.name, _ALL, to_exchange=True),) if ring else ()
    key = _WEIGHT if ring else _ALL
    return Topology(
        tiles=tiles,
        parking=parking,
        events=Exchange(events_exchange(prefix), "topic"),
        ring=ring,
        partitions=partitions,
        parked=parked,
        bindings=(
            Binding(parking.name, parked.name, _ALL),
            # First the queues: what comes to a ring without any is lost.
            *(Binding(within.name, queue.name, key) for queue in partitions),
            *through,
        ),
    )


def labels(count: int) -> list[str]:
    """Return the partitions' names, the last part of their queues', in sorted order."""
    width = max(2, len(str(count - 1)))
    return [f"{number:0{width}}" for number in range(count)]


def _of_partitions(settings: TopologySettings, parking: Exchange) -> dict[str, Any]:
    return {
        "x-queue-type": "quorum",
        "x-single-active-consumer": True,
        "x-delivery-limit": settings.delivery_limit,
        "x-max-length-bytes": int(settings.queue_max_bytes),
        # At-least-once dead-lettering and back-pressure on producers both need reject-publish.
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": parking.name,
        "x-dead-letter-strategy": "at-least-once",
    }
