"""RabbitMQ, as the owning thread sees it: deliveries in; acknowledgements and parked messages out.

Two connections on the owning thread's loop: one consumes and acknowledges, one publishes, since a
memory alarm blocks publishers only. A tag is used on the channel that it came from or not at all.
Every exception of pika ends here.
"""

import itertools
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

from pika.adapters.select_connection import IOLoop
from pika.channel import Channel

from consumer.blocks import DeliveryId
from consumer.connection import Connection, prepare_pika
from consumer.copies import republishable
from consumer.depth import Depth
from consumer.errors import ParkError
from consumer.events import Event
from consumer.message import Envelope
from consumer.metrics import PARTITION, Metrics
from consumer.outgoing import Letter, Outgoing
from consumer.parking import parked_event
from consumer.settings import Settings
from consumer.topology import Topology, establish
from consumer.watchdog import Watchdog

# The owning thread's loop, which both connections share.
Loop: TypeAlias = IOLoop
# How long a new subscription on the same channel may take.
_RENEWAL_S = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One AMQP message as delivered on one channel, without its body."""

    id: DeliveryId
    envelope: Envelope
    properties: Any
    count: int


class Receiver(Protocol):
    """What hears of deliveries."""

    def deliver(self, delivery: Delivery, body: bytes) -> None:
        """Take a delivery."""

    def channel_lost(self) -> None:
        """Drop every tag: the channel is gone."""


class Settling(Protocol):
    """Where deliveries are settled."""

    def acknowledge(self, delivery: DeliveryId) -> bool:
        """Acknowledge; return whether the delivery is still the broker's to be settled."""

    def requeue(self, delivery: DeliveryId) -> None:
        """Have it delivered again."""

    def park(
        self, delivery: Delivery, body: bytes, error: ParkError, done: Callable[[bool], None]
    ) -> None:
        """Park, then call `done` with whether that came to pass: then it is to be acknowledged."""

    def announce(self, event: Event, done: Callable[[bool], None]) -> None:
        """Publish an event; `done` is told when the broker has taken it."""

    def round_trip(self, done: Callable[[bool], None]) -> None:
        """Ask the broker something; `done` is told whether it answered while it delivers to us."""

    def reset(self, reason: str, *, hold: Callable[[], bool]) -> None:
        """Give up the channel; subscribe again when `hold` says no more."""


class Broker:
    """Consumes the partition queue, acknowledges, and parks.

    Parameters
    ----------
    loop : Loop
        The owning thread's; everything here runs on it.
    receiver : Receiver
        Hears of deliveries and lost channels.
    """

    def __init__(
        self, loop: Loop, settings: Settings, topology: Topology, metrics: Metrics
    ) -> None:
        prepare_pika()
        self._settings = settings
        self._topology = topology
        self._metrics = metrics
        self._receiver: Receiver | None = None
        self._channel: Channel | None = None
        self._channel_number = 0
        self._consumer_tag = ""
        # Delivery tags in the order of delivery, and those of them to be acknowledged next.
        self._unsettled: dict[int, None] = {}
        self._acknowledged: set[int] = set()
        self._asking: Channel | None = None
        self._asked: deque[Callable[[bool], None]] = deque()
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
        self._watchdog = Watchdog(settings.stalled_s)
        self._depth = Depth(
            topology.partition.name, metrics.partition_waiting.labels(partition=PARTITION).set
        )
        self._last_delivery = metrics.partition_last_delivery.labels(partition=PARTITION)
        self._draining = False
        self._giving_up = False

    @property
    def subscribed(self) -> bool:
        """Whether deliveries can come."""
        return bool(self._consumer_tag)

    def start(self, receiver: Receiver) -> None:
        """Connect and subscribe."""
        self._receiver = receiver
        self._consuming.open()
        self._outgoing.connection.open()

    def acknowledge(self, delivery: DeliveryId) -> bool:
        """Acknowledge on the delivery's own channel; return whether that is still to be done.

        Those of one turn of the loop go out together.
        """
        if self._channel_of(delivery) is None or delivery.tag not in self._unsettled:
            return False
        if not self._acknowledged:
            self._loop.call_later(0, self._send_acknowledgements)
        self._acknowledged.add(delivery.tag)
        return True

    def requeue(self, delivery: DeliveryId) -> None:
        """Have the broker deliver it again."""
        channel = self._channel_of(delivery)
        if channel is not None:
            self._unsettled.pop(delivery.tag, None)
            channel.basic_nack(delivery.tag, requeue=True)

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
            channel = self._channel_of(delivery.id)
            if channel is not None:
                self._unsettled.pop(delivery.id.tag, None)
                channel.basic_reject(delivery.id.tag, requeue=False)
            done(channel is not None)
            return
        event = parked_event(properties)

        def parked(confirmed: bool) -> None:
            if confirmed:
                self.announce(event, done)
            else:
                done(False)

        copy = Letter(
            "park",
            self._topology.parking.name,
            routing_key,
            body,
            properties,
            parked,
            comes_again=True,
            identity=event.parking_id,
        )
        self.round_trip(lambda shown: self._outgoing.publish(copy) if shown else done(False))

    def announce(self, event: Event, done: Callable[[bool], None]) -> None:
        """Publish an event; `done` is told when the broker has taken it."""
        self._outgoing.announce(event, self._topology.events.name, done)

    def round_trip(self, done: Callable[[bool], None]) -> None:
        """Ask the broker something; `done` is told whether it answered while it delivers to us.

        A consumer that was paused learns so that its connection is gone. On a channel of its own:
        on the one that delivers, the answer would come after all bodies that are under way.
        """
        channel = self._asking
        if channel is None or not channel.is_open or self._giving_up:
            self._loop.call_later(0, partial(done, False))
            return
        self._asked.append(done)
        # It changes nothing: nobody consumes on this channel.
        channel.basic_qos(callback=lambda _frame: self._answered(channel))

    def _answered(self, channel: Channel) -> None:
        if channel is self._asking:
            self._asked.popleft()(not self._giving_up and self._channel is not None)

    def reset(self, reason: str, *, hold: Callable[[], bool] = lambda: False) -> None:
        """Give up the channel with all its deliveries, and subscribe again."""
        self._giving_up = True
        self._consuming.reset(reason, hold=hold)

    def watch(self, *, idle: bool) -> None:
        """Subscribe anew where messages wait and none comes; call it a few times a second.

        Parameters
        ----------
        idle : bool
            Whether no delivery is held.
        """
        channel, now = self._asking, time.monotonic()
        if not idle or not self._consumer_tag or self._giving_up:
            self._watchdog.note_busy(now)
        elif channel is not None and channel.is_open and self._watchdog.is_due(now):
            channel.queue_declare(
                self._topology.partition.name,
                passive=True,
                callback=lambda frame: self._on_waiting(channel, frame.method),
            )
        self._depth.watch(channel if self._consumer_tag else None, now)

    def cancel(self) -> None:
        """Ask for no more deliveries; those that came stay ours."""
        self._draining = True
        if self._channel is not None and self._channel.is_open and self._consumer_tag:
            self._channel.basic_cancel(self._consumer_tag)
            self._consumer_tag = ""

    def close(self) -> None:
        """Close both connections for good."""
        self._send_acknowledgements()
        self._consuming.close()
        self._outgoing.connection.close()

    @property
    def closed(self) -> bool:
        """Whether both connections are closed."""
        return self._consuming.closed and self._outgoing.connection.closed

    def _send_acknowledgements(self) -> None:
        """Acknowledge at once what was delivered first and next to each other, then the rest."""
        channel, settled = self._channel, self._acknowledged
        self._acknowledged = set()
        if channel is None or not channel.is_open:
            return
        first = list(itertools.takewhile(settled.__contains__, self._unsettled))
        if first:
            channel.basic_ack(first[-1], multiple=True)
        for tag in sorted(settled.difference(first)):
            channel.basic_ack(tag)
        for tag in settled:
            self._unsettled.pop(tag, None)

    def _channel_of(self, delivery: DeliveryId) -> Channel | None:
        channel = self._channel
        if delivery.channel != self._channel_number or channel is None or not channel.is_open:
            return None
        return channel

    def _opened(self, channel: Channel) -> None:
        self._channel = channel
        self._channel_number += 1
        channel.connection.channel(on_open_callback=partial(self._opened_too, channel))

    def _opened_too(self, channel: Channel, asking: Channel) -> None:
        self._asking = asking
        asking.add_on_close_callback(lambda _channel, reason: self._on_asking_close(reason))
        if not self._draining:
            declare = self._settings.declare_topology
            establish(channel, self._topology, declare=declare, done=self._subscribe)

    def _on_asking_close(self, reason: BaseException) -> None:
        if self._channel is not None and self._channel.is_open:
            self.reset(f"a channel was closed: {reason}")

    def _subscribe(self) -> None:
        channel = self._channel
        if channel is None or not channel.is_open or self._draining:
            return
        channel.basic_qos(prefetch_count=self._settings.prefetch_count)
        tag = f"{self._settings.consumer_name}-{secrets.token_hex(4)}"
        channel.basic_consume(
            self._topology.partition.name,
            self._on_message,
            consumer_tag=tag,
            callback=lambda _frame: self._on_subscribed(tag),
        )

    def _on_subscribed(self, tag: str) -> None:
        self._consumer_tag = tag
        self._watchdog.note_subscribed(time.monotonic())
        self._consuming.works()
        log.info("subscribed", extra={"queue": self._topology.partition.name, "consumer_tag": tag})

    def _on_waiting(self, channel: Channel, found: Any) -> None:
        ready, consumers = found.message_count, found.consumer_count
        current = channel is self._asking and not self._giving_up and self._consumer_tag
        if not current or not self._watchdog.answered(ready, consumers, time.monotonic()):
            return
        log.info(
            "messages wait and none comes; subscribing anew",
            extra={"queue": found.queue, "ready": ready, "consumers": consumers},
        )
        self._metrics.resubscribed.inc()
        self._renew()

    def _renew(self) -> None:
        channel, tag = self._channel, self._consumer_tag
        if channel is None or not channel.is_open:
            return
        self._consumer_tag = ""
        channel.basic_cancel(tag, callback=lambda _frame: self._subscribe())
        self._loop.call_later(_RENEWAL_S, partial(self._check_renewed, channel))

    def _check_renewed(self, channel: Channel) -> None:
        if channel is self._channel and not self._consumer_tag and not self._draining:
            self.reset("the broker does not answer a cancelled subscription")

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        receiver = self._receiver
        stale = channel is not self._channel or self._giving_up
        if stale or receiver is None:
            return
        identity = DeliveryId(self._channel_number, method.delivery_tag)
        try:
            delivery = _delivery(identity, method, properties)
        except Exception:
            # Raised into pika, it would cost the connection, and again after each redelivery.
            log.exception("a delivery cannot be understood; rejecting it to the parking queue")
            channel.basic_reject(identity.tag, requeue=False)
            return
        self._unsettled[identity.tag] = None
        self._watchdog.note_delivery(time.monotonic())
        self._last_delivery.set_to_current_time()
        receiver.deliver(delivery, body)

    def _lost(self) -> None:
        had_channel, self._giving_up = self._channel is not None, False
        self._channel, self._asking, self._consumer_tag = None, None, ""
        self._unsettled.clear()
        self._acknowledged.clear()
        asked, self._asked = self._asked, deque()
        for done in asked:
            done(False)
        self._outgoing.drop_waiting()
        if had_channel and self._receiver is not None:
            self._receiver.channel_lost()


def _delivery(identity: DeliveryId, method: Any, properties: Any) -> Delivery:
    headers = properties.headers or {}
    envelope = Envelope(
        routing_key=_text(method.routing_key) or "",
        type=_text(properties.type),
        content_type=_text(properties.content_type),
        content_encoding=_text(properties.content_encoding),
        headers=headers,
    )
    counted = headers.get("x-delivery-count")
    count = counted if isinstance(counted, int) else int(method.redelivered)
    return Delivery(identity, envelope, properties, count)


def _text(value: Any) -> str | None:
    """Return a short string of AMQP, which pika leaves as bytes where it is not UTF-8."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
