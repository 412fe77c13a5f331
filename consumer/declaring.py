"""Declaring a topology on a channel, or checking that it is there; each step after the one before.

A difference or an absence closes the channel, with the broker's own words.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

from pika.channel import Channel

from consumer.topology import Binding, Exchange, Queue, Topology

_Step: TypeAlias = Callable[[Callable[[Any], None]], Any]


def declare(channel: Channel, wanted: Topology, done: Callable[[], None]) -> None:
    """Declare everything, in the topology's own order, then call `done`."""
    steps: list[_Step] = [
        partial(_exchange, channel, exchange, False) for exchange in wanted.exchanges
    ]
    steps += [partial(_queue, channel, queue, False) for queue in wanted.queues]
    steps += [partial(_bind, channel, binding) for binding in wanted.bindings]
    _in_turn(steps, done)


def check_shared(channel: Channel, wanted: Topology, done: Callable[[], None]) -> None:
    """Check that what the partitions have in common is there, then call `done`."""
    steps: list[_Step] = [
        partial(_exchange, channel, exchange, True) for exchange in wanted.exchanges
    ]
    _in_turn([*steps, partial(_queue, channel, wanted.parked, True)], done)


def declare_partition(
    channel: Channel, queue: Queue, bindings: Iterable[Binding], done: Callable[[], None]
) -> None:
    """Declare one partition's queue and its bindings, then call `done`."""
    steps: list[_Step] = [partial(_queue, channel, queue, False)]
    _in_turn(steps + [partial(_bind, channel, binding) for binding in bindings], done)


def check_partition(channel: Channel, queue: Queue, done: Callable[[], None]) -> None:
    """Check that one partition's queue is there, then call `done`."""
    _queue(channel, queue, True, lambda _reply: done())


def _in_turn(steps: list[_Step], done: Callable[[], None]) -> None:
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
    bind = channel.exchange_bind if binding.to_exchange else channel.queue_bind
    bind(binding.destination, binding.source, binding.routing_key, callback=callback)
