"""One partition's subscription: its channel, its deliveries that are not settled, its watchdog.

A channel that is lost takes nothing with it but its own deliveries; it is opened anew on the same
connection, with backoff and jitter.
"""

import logging
import math
import random
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pika.adapters.select_connection import IOLoop
from pika.channel import Channel

from consumer.asking import Counts
from consumer.blocks import DeliveryId
from consumer.declaring import check_partition, declare_partition
from consumer.delivery import Receiver, delivery_of
from consumer.metrics import Metrics
from consumer.settings import Settings
from consumer.topology import Binding, Queue
from consumer.unsettled import Unsettled
from consumer.watchdog import Watchdog

# How long a new subscription on the same channel may take.
_RENEWAL_S = 10.0
# How often it is asked how many messages wait.
_COUNT_S = 10.0
# The same while deliveries are held and nothing comes: another replica may be about to take over.
_WITHHELD_S = 1.0
# How long an acknowledgement waits for those before it.
_GATHER_S = 0.05

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Partition:
    """What a subscription is to: its queue with its bindings, by label, and with what priority."""

    label: str
    queue: Queue
    bindings: tuple[Binding, ...]
    priority: int


class Subscription:
    """Consumes one partition's queue, and settles what came on its channel.

    Parameters
    ----------
    numbers : iterator of int
        Gives each channel a number of its own.
    subscribed : callable
        Hears of each subscription that the broker has confirmed.
    lost : callable
        Hears of the number of each channel that is gone.

    Attributes
    ----------
    number : int
        The channel's; 0 while there is none.
    """

    def __init__(
        self,
        loop: IOLoop,
        settings: Settings,
        partition: Partition,
        metrics: Metrics,
        counts: Counts,
        numbers: Iterator[int],
        *,
        subscribed: Callable[[], None],
        lost: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._partition = partition
        self._metrics = metrics
        self._counts = counts
        self._numbers = numbers
        self._on_subscribed = subscribed
        self._on_lost = lost
        self.receiver: Receiver | None = None
        self.number = 0
        self._connection: Any = None
        self._channel: Channel | None = None
        self._consumer_tag = ""
        self._unsettled = Unsettled()
        self._acknowledging = self._gathering = False
        self._last_delivery = metrics.partition_last_delivery.labels(partition=partition.label)
        self._watchdog = Watchdog(settings.stalled_s)
        self._counted = self._delivered = 0.0
        self._attempts = 0
        self._hold: Callable[[], bool] = lambda: False
        self._giving_up = self._draining = False

    @property
    def subscribed(self) -> bool:
        """Whether deliveries can come."""
        return bool(self._consumer_tag)

    @property
    def lives(self) -> bool:
        """Whether the channel is open, and not being given up."""
        return self._channel is not None and self._channel.is_open and not self._giving_up

    # -- the channel ----------------------------------------------------------------------------

    def attach(self, connection: Any) -> None:
        """Subscribe on a new connection, where the queue has just been declared."""
        self._connection, self._attempts = connection, 0
        self._open(declared=self._settings.declare_topology)

    def detach(self) -> None:
        """Take note that the connection is gone."""
        self._connection = None
        self._lose()

    def reset(self, reason: str, *, hold: Callable[[], bool] = lambda: False) -> None:
        """Give up the channel with all its deliveries, and subscribe again once `hold` allows."""
        channel = self._channel
        if channel is None or self._giving_up:
            return
        log.warning(
            "closing a channel", extra={"queue": self._partition.queue.name, "reason": reason}
        )
        self.send_acknowledgements()
        self._hold, self._giving_up, self._consumer_tag = hold, True, ""
        if channel.is_open:
            channel.close()

    def cancel(self) -> None:
        """Ask for no more deliveries; those that came stay ours."""
        self._draining = True
        if self._channel is not None and self._channel.is_open and self._consumer_tag:
            self._channel.basic_cancel(self._consumer_tag)
            self._consumer_tag = ""

    def _open(self, *, declared: bool = False) -> None:
        connection = self._connection
        if connection is None or not connection.is_open or self._draining:
            return
        if self._hold():
            self._loop.call_later(
                self._settings.reconnect_max_s / 4, partial(self._again, connection)
            )
            return
        connection.channel(on_open_callback=partial(self._opened, declared))

    def _again(self, connection: Any) -> None:
        if connection is self._connection and self._channel is None:
            self._open()

    def _opened(self, declared: bool, channel: Channel) -> None:
        channel.add_on_close_callback(self._on_close)
        channel.add_on_cancel_callback(lambda _frame: self.reset("cancelled by the broker"))
        self._channel, self.number = channel, next(self._numbers)
        queue = self._partition.queue
        if declared:
            self._subscribe()
        elif self._settings.declare_topology:
            declare_partition(channel, queue, self._partition.bindings, self._subscribe)
        else:
            check_partition(channel, queue, self._subscribe)

    def _on_close(self, channel: Channel, reason: BaseException) -> None:
        if channel is not self._channel:
            return
        given_up = self._giving_up
        self._lose()
        if self._connection is None or not self._connection.is_open or self._draining:
            return
        waits = self._settings
        most = min(waits.reconnect_max_s, waits.reconnect_min_s * 2.0**self._attempts)
        wait = random.uniform(most / 2, most)  # noqa: S311 - jitter
        self._attempts = min(self._attempts + 1, 16)
        if not given_up:
            log.warning(
                "a channel was closed; opening another",
                extra={
                    "queue": self._partition.queue.name,
                    "error": str(reason),
                    "wait_s": round(wait, 2),
                },
            )
        self._metrics.channels_lost.labels(partition=self._partition.label).inc()
        self._loop.call_later(wait, partial(self._again, self._connection))

    def _lose(self) -> None:
        channel, number = self._channel, self.number
        self._channel, self.number, self._consumer_tag = None, 0, ""
        self._giving_up = False
        self._unsettled.clear()
        self._metrics.partition_waiting.labels(partition=self._partition.label).set(math.nan)
        if channel is not None:
            self._on_lost(number)

    # -- the subscription -----------------------------------------------------------------------

    def _subscribe(self) -> None:
        channel = self._channel
        if channel is None or not channel.is_open or self._draining:
            return
        channel.basic_qos(prefetch_count=self._settings.prefetch_count)
        tag = f"{self._settings.consumer_name}-{secrets.token_hex(4)}"
        channel.basic_consume(
            self._partition.queue.name,
            partial(self._on_message, self.number),
            consumer_tag=tag,
            arguments={"x-priority": self._partition.priority},
            callback=lambda _frame: self._note_subscribed(tag),
        )

    def _note_subscribed(self, tag: str) -> None:
        if not self.lives:
            return
        self._consumer_tag = tag
        if self._draining:
            self.cancel()
            return
        self._attempts, self._hold = 0, lambda: False
        self._watchdog.note_subscribed(time.monotonic())
        log.info("subscribed", extra={"queue": self._partition.queue.name, "consumer_tag": tag})
        self._on_subscribed()

    def _on_message(
        self, number: int, channel: Any, method: Any, properties: Any, body: bytes
    ) -> None:
        if number != self.number or self._giving_up or self.receiver is None:
            return
        identity = DeliveryId(number, method.delivery_tag)
        try:
            delivery = delivery_of(identity, method, properties)
        except Exception:
            # Raised into pika, it would cost the connection, and again after each redelivery.
            log.exception("a delivery cannot be understood; rejecting it to the parking queue")
            channel.basic_reject(identity.tag, requeue=False)
            return
        self._unsettled.add(identity.tag)
        self._delivered = time.monotonic()
        self._watchdog.note_delivery(self._delivered)
        self._last_delivery.set(time.time())
        self.receiver.deliver(delivery, body)

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

    # -- settling -------------------------------------------------------------------------------

    def acknowledge(self, tag: int) -> bool:
        """Acknowledge soon; return whether that is still to be done."""
        if not self.lives or tag not in self._unsettled:
            return False
        self._unsettled.note_durable(tag)
        if not self._acknowledging:
            self._acknowledging = True
            self._loop.call_later(0, self._end_turn)
        return True

    def requeue(self, tag: int) -> None:
        """Have the broker deliver it again."""
        if self.lives and self._channel is not None:
            self._unsettled.discard(tag)
            self._channel.basic_nack(tag, requeue=True)

    def reject(self, tag: int) -> bool:
        """Have the broker dead-letter it; return whether that can still be done."""
        if not self.lives or self._channel is None:
            return False
        self._unsettled.discard(tag)
        self._channel.basic_reject(tag, requeue=False)
        return True

    def _end_turn(self) -> None:
        """Acknowledge at once what was delivered first and next to each other.

        The rest waits a little for the gaps to close: alone, each is a frame and a command of the
        queue. Not where the broker would soon deliver no more for it.
        """
        self._acknowledging = False
        self._acknowledge_first()
        if self._unsettled.durable > self._settings.prefetch_count / 2:
            self.send_acknowledgements()
        elif self._unsettled.durable and not self._gathering:
            self._gathering = True
            self._loop.call_later(_GATHER_S, self.send_acknowledgements)

    def _acknowledge_first(self) -> None:
        last = self._unsettled.take_first()
        if last is not None:
            self._send_acknowledgement(last, multiple=True)

    def send_acknowledgements(self) -> None:
        """Acknowledge all that is durable."""
        self._gathering = False
        self._acknowledge_first()
        for tag in self._unsettled.take_rest():
            self._send_acknowledgement(tag)

    def _send_acknowledgement(self, tag: int, *, multiple: bool = False) -> None:
        if self._channel is not None and self._channel.is_open:
            self._channel.basic_ack(tag, multiple)

    # -- watching -------------------------------------------------------------------------------

    def watch(self, held_s: float | None) -> None:
        """Ask now and then what waits, and subscribe anew where messages wait and none comes.

        Parameters
        ----------
        held_s : float or None
            How long the oldest delivery of the channel is held; None where none is.
        """
        now, label = time.monotonic(), self._partition.label
        self._metrics.partition_oldest_seconds.labels(partition=label).set(held_s or 0.0)
        if not self.lives:
            return
        if held_s is not None or not self.subscribed:
            self._watchdog.note_busy(now)
        if self._watchdog.is_due(now) or now - self._counted > self._count_s(now):
            self._counted = now
            self._counts.ask(self._partition.queue.name, partial(self._note_count, self.number))

    def _count_s(self, now: float) -> float:
        return _WITHHELD_S if self._withheld(now) else _COUNT_S

    def _withheld(self, now: float) -> bool:
        """Whether nothing comes though there is room.

        To whom a partition is handed over, RabbitMQ delivers only once we have settled all that we
        hold, and nobody tells us.
        """
        room = 0 < len(self._unsettled) < self._settings.prefetch_count
        return room and now - self._delivered > _WITHHELD_S

    def _note_count(self, number: int, found: Any) -> None:
        ready, consumers = found.message_count, found.consumer_count
        if number != self.number or not self.subscribed:
            return
        # Where a quorum queue's leader is silent, RabbitMQ answers 0 and 0; we are a consumer.
        known = ready if ready or consumers else math.nan
        self._metrics.partition_waiting.labels(partition=self._partition.label).set(known)
        if ready and self.receiver is not None and self._withheld(time.monotonic()):
            self.receiver.withheld(number)
        if not self._watchdog.answered(ready, consumers, time.monotonic()):
            return
        log.info(
            "messages wait and none comes; subscribing anew",
            extra={"queue": self._partition.queue.name, "ready": ready, "consumers": consumers},
        )
        self._metrics.resubscribed.inc()
        self._renew()
