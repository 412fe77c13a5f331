"""A message as the broker delivers it, and who hears of it and settles it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from consumer.blocks import DeliveryId
from consumer.errors import ParkError
from consumer.events import Event
from consumer.message import Envelope


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

    def channel_lost(self, channel: int) -> None:
        """Drop every tag of a channel: it is gone."""

    def held_s(self, channel: int) -> float | None:
        """Return how long the oldest delivery of a channel is held; None where none is."""

    def withheld(self, channel: int) -> None:
        """Settle what is held of a channel: messages wait, and another is to get them then."""


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

    def round_trip(self, channel: int, done: Callable[[bool], None]) -> None:
        """Ask the broker something; `done` is told whether it answered before the channel ended."""

    def reset(self, channel: int, reason: str, *, hold: Callable[[], bool]) -> None:
        """Give up a channel; subscribe again when `hold` says no more."""


def delivery_of(identity: DeliveryId, method: Any, properties: Any) -> Delivery:
    """Return a delivery from what pika gives."""
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
