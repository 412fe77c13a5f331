"""RabbitMQ, as the owning thread sees it: deliveries in; acknowledgements and parked messages out.

Two connections on the owning thread's loop: one consumes and acknowledges, one publishes, since a
memory alarm blocks publishers only. A tag is used on the channel that it came from or not at all.
Every exception of pika ends here.
"""

import logging
import math
import time
from collections.abc import Callable
from itertools import count
from typing import Any, TypeAlias

from pika.adapters.select_connection import IOLoop
from pika.channel import Channel

from consumer.asking import Counts, RoundTrips
from consumer.blocks import DeliveryId
from consumer.connection import Connection, prepare_pika
from consumer.copies import republishable
from consumer.declaring import check_shared, declare
from consumer.delivery import Delivery, Receiver
from consumer.errors import ParkError
from consumer.events import Event
from consumer.homes import priorities
from consumer.metrics import Metrics
from consumer.outgoing import Letter, Outgoing
from consumer.parking import parked_event
from consumer.settings import Settings
from consumer.subscription import Partition, Subscription
from consumer.topology import Topology, labels

# The owning thread's loop, which both connections share.
Loop: TypeAlias = IOLoop

# How often it is asked how many messages are parked. Not as often as partitions are asked about:
# where the queue is gone, the question costs the channel, and with it other answers.
_PARKED_S = 30.0

log = logging.getLogger(__name__)


class Broker:
    """Consumes the partition queues, each on a channel of its own, acknowledges, and parks.

    Parameters
    ----------
    loop : Loop
        The owning thread's; everything here runs on it.
    """

    def __init__(
        self, loop: Loop, settings: Settings, topology: Topology, metrics: Metrics
    ) -> None:
        prepare_pika()
        self._settings = settings
        self._topology = topology
        self._metrics = metrics
        self._parking_asked = -math.inf
        self._receiver: Receiver | None = None
        self._round_trips = RoundTrips(loop)
        self._counts = Counts()
        self._subscriptions = self._to_partitions(loop, metrics)
        self._loop = loop
        self._outgoing = Outgoing(loop, settings, metrics)
        self._consuming = Connection(
            loop,
            settings,
            "consume",
            owner=settings.consumer_name,
            opened=self._opened,
            lost=self._lost,
            failed=lambda _error: metrics.reconnects.labels(connection="consume").inc(),
        )
        self._draining = False

    def _to_partitions(self, loop: Loop, metrics: Metrics) -> list[Subscription]:
        settings, queues = self._settings, self._topology.partitions
        parts = zip(
            labels(len(queues)), queues, priorities(settings.replica, len(queues)), strict=True
        )
        return [
            Subscription(
                loop,
                settings,
                Partition(label, queue, tuple(self._topology.bindings_of(queue)), priority),
                metrics,
                self._counts,
                # So a number tells the partition, and is never used again.
                count(index + 1, len(queues)),
                subscribed=self._note_subscribed,
                lost=self._channel_lost,
            )
            for index, (label, queue, priority) in enumerate(parts)
        ]

    @property
    def subscribed(self) -> bool:
        """Whether deliveries can come from every partition."""
        return all(each.subscribed for each in self._subscriptions)

    def start(self, receiver: Receiver) -> None:
        """Connect and subscribe."""
        self._receiver = receiver
        for each in self._subscriptions:
            each.receiver = receiver
        self._consuming.open()
        self._outgoing.connection.open()

    def acknowledge(self, delivery: DeliveryId) -> bool:
        """Acknowledge on the delivery's own channel; return whether that is still to be done."""
        subscription = self._of(delivery.channel)
        return subscription is not None and subscription.acknowledge(delivery.tag)

    def requeue(self, delivery: DeliveryId) -> None:
        """Have the broker deliver it again."""
        subscription = self._of(delivery.channel)
        if subscription is not None:
            subscription.requeue(delivery.tag)

    def park(
        self, delivery: Delivery, body: bytes, error: ParkError, done: Callable[[bool], None]
    ) -> None:
        """Copy a message to the parking exchange, tell of it, then call `done`.

        Only once the broker has answered: a consumer that was paused, and whose deliveries have
        long gone to another, parks nothing. What cannot be published again is rejected to the
        dead-letter exchange, which is the same, and nobody is told of it. `done` is told whether
        the message is parked; it is then to be acknowledged.
        """
        routing_key, headers = delivery.envelope.routing_key, delivery.envelope.headers
        properties = republishable(
            delivery.properties,
            headers,
            error,
            routing_key=routing_key,
            by=self._settings.consumer_name,
            frame_max=self._consuming.frame_max,
        )
        if properties is None:
            subscription = self._of(delivery.id.channel)
            done(subscription is not None and subscription.reject(delivery.id.tag))
            return
        event, channel = parked_event(properties), delivery.id.channel

        def parked(confirmed: bool) -> None:
            if confirmed and self._of(channel) is not None:
                self._tell(event, done, comes_again_on=channel)
                return
            if confirmed:
                self._tell(event, lambda _taken: None)
            done(False)

        copy = Letter(
            "park",
            self._topology.parking.name,
            routing_key,
            body,
            properties,
            parked,
            comes_again_on=channel,
            identity=event.parking_id,
        )
        self.round_trip(
            channel,
            lambda shown: self._outgoing.publish(copy) if shown else done(False),
        )

    def announce(self, event: Event, done: Callable[[bool], None]) -> None:
        """Publish an event; `done` is told when the broker has taken it."""
        self._tell(event, done)

    def _tell(
        self, event: Event, done: Callable[[bool], None], comes_again_on: int | None = None
    ) -> None:
        exchange = self._topology.events.name
        self._outgoing.announce(event, exchange, done, comes_again_on=comes_again_on)

    def round_trip(self, channel: int, done: Callable[[bool], None]) -> None:
        """Ask the broker something; `done` is told whether it answered before the channel ended."""
        self._round_trips.ask(channel if self._of(channel) else None, done)

    def reset(self, channel: int, reason: str, *, hold: Callable[[], bool] = lambda: False) -> None:
        """Give up a channel with all its deliveries, and subscribe again."""
        subscription = self._of(channel)
        if subscription is not None:
            self._round_trips.channel_lost(channel)
            subscription.reset(reason, hold=hold)

    def watch(self) -> None:
        """Measure partitions and parking, and see that no partition is stalled.

        Call it a few times a second.
        """
        for each in self._subscriptions:
            each.watch(self._receiver.held_s(each.number) if self._receiver else None)
        now = time.monotonic()
        if now - self._parking_asked > _PARKED_S:
            self._parking_asked = now
            self._counts.ask(self._topology.parked.name, self._note_parked)

    def cancel(self) -> None:
        """Ask for no more deliveries; those that came stay ours."""
        self._draining = True
        for each in self._subscriptions:
            each.cancel()

    def close(self) -> None:
        """Close both connections for good."""
        for each in self._subscriptions:
            each.send_acknowledgements()
        self._consuming.close()
        self._outgoing.connection.close()

    @property
    def closed(self) -> bool:
        """Whether both connections are closed."""
        return self._consuming.closed and self._outgoing.connection.closed

    def _of(self, channel: int) -> Subscription | None:
        """Return the subscription that has a channel, if it has it still."""
        subscription = self._subscriptions[(channel - 1) % len(self._subscriptions)]
        return subscription if subscription.number == channel and subscription.lives else None

    def _opened(self, channel: Channel) -> None:
        """Declare or check what all partitions have in common, on the channel that asks."""
        self._round_trips.use(channel)
        self._counts.attach(channel.connection)
        if self._draining:
            return
        establish = declare if self._settings.declare_topology else check_shared
        establish(channel, self._topology, lambda: self._attach(channel))

    def _note_parked(self, found: Any) -> None:
        # Its leader's silence cannot be told from an empty queue: nobody consumes it.
        self._metrics.parking_waiting.set(found.message_count)

    def _attach(self, channel: Channel) -> None:
        self._parking_asked = -math.inf
        for each in self._subscriptions:
            each.attach(channel.connection)

    def _note_subscribed(self) -> None:
        self._consuming.works()

    def _channel_lost(self, channel: int) -> None:
        self._round_trips.channel_lost(channel)
        self._outgoing.give_up(channel)
        if self._receiver is not None:
            self._receiver.channel_lost(channel)

    def _lost(self) -> None:
        self._round_trips.lost()
        self._counts.attach(None)
        self._metrics.parking_waiting.set(math.nan)
        for each in self._subscriptions:
            each.detach()
