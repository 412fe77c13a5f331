"""Exchanges and queues: their names and arguments as data, and declaring or checking them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pika.channel import Channel

from consumer.events import events_exchange
from consumer.settings import Settings

_MOST_LOOKS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue and its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Binding:
    """A queue's binding to an exchange."""

    exchange: str
    queue: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class Topology:
    """What one deployment of the consumer has on the broker."""

    tiles: Exchange
    parking: Exchange
    events: Exchange
    partition: Queue
    parked: Queue
    bindings: tuple[Binding, ...]


def topology(settings: Settings) -> Topology:
    """Return the topology that the settings describe."""
    prefix = settings.topology_prefix
    tiles = Exchange(prefix, "topic")
    parking = Exchange(f"{prefix}.parking", "topic")
    # RabbitMQ 4 drops after 20 deliveries what has no limit of its own: each look is one.
    looks = {"x-delivery-limit": _MOST_LOOKS}
    parked = Queue(f"{prefix}.parked", {"x-queue-type": "quorum", **looks})
    partition = Queue(
        f"{prefix}.00",
        {
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-delivery-limit": settings.delivery_limit,
            "x-max-length-bytes": int(settings.queue_max_bytes),
            # At-least-once dead-lettering and back-pressure on producers both need reject-publish.
            "x-overflow": "reject-publish",
            "x-dead-letter-exchange": parking.name,
            "x-dead-letter-strategy": "at-least-once",
        },
    )
    return Topology(
        tiles=tiles,
        parking=parking,
        events=Exchange(events_exchange(prefix), "topic"),
        partition=partition,
        parked=parked,
        bindings=(
            Binding(tiles.name, partition.name, "#"),
            Binding(parking.name, parked.name, "#"),
        ),
    )


def establish(
    channel: Channel, wanted: Topology, *, declare: bool, done: Callable[[], None]
) -> None:
    """Declare the topology, or check that it is there, then call `done`.

    A difference or an absence closes the channel with the broker's own words.
    """
    passive = not declare
    steps: list[Callable[[Callable[[Any], None]], Any]] = [
        partial(_exchange, channel, exchange, passive)
        for exchange in (wanted.tiles, wanted.parking, wanted.events)
    ]
    steps += [
        partial(_queue, channel, queue, passive) for queue in (wanted.partition, wanted.parked)
    ]
    if declare:
        steps += [partial(_bind, channel, binding) for binding in wanted.bindings]
    _in_turn(steps, done)


def _in_turn(steps: list[Callable[[Callable[[Any], None]], Any]], done: Callable[[], None]) -> None:
    if not steps:
        done()
        return
    first, *rest = steps
    first(lambda _reply: _in_turn(rest, done))


def _exchange(
    channel: Channel, exchange: Exchange, passive: bool, callback: Callable[[Any], None]
) -> None:
    channel.exchange_declare(
        exchange.name, exchange.type, passive=passive, durable=True, callback=callback
    )


def _queue(channel: Channel, queue: Queue, passive: bool, callback: Callable[[Any], None]) -> None:
    channel.queue_declare(
        queue.name, passive=passive, durable=True, arguments=queue.arguments, callback=callback
    )


def _bind(channel: Channel, binding: Binding, callback: Callable[[Any], None]) -> None:
    channel.queue_bind(binding.queue, binding.exchange, binding.routing_key, callback=callback)
