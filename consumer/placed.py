"""The deliveries whose tiles lie in open blocks, and which of those blocks are due for them."""

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from consumer.blocks import ArrayKey, BlockKey, DeliveryId, Reason
from consumer.message import Tile
from consumer.placement import Layout, Piece


@dataclass(eq=False, slots=True)
class PlacedDelivery:
    """A delivery, and what of it is not durable.

    Attributes
    ----------
    since : float
        When it was received.
    pieces : iterator of tuple of Tile and Piece
        What is to be placed after `pending`, which found no room yet.
    blocks : dict of BlockKey to None
        Where its tiles lie, in the order in which they were placed.
    """

    since: float
    array: ArrayKey
    layout: Layout
    pieces: Iterator[tuple[Tile, Piece]]
    pending: tuple[Tile, Piece] | None = None
    blocks: dict[BlockKey, None] = field(default_factory=dict)


class Placed:
    """Such deliveries by channel, in the order in which they were placed.

    Parameters
    ----------
    max_age_s : float
        How old a delivery may grow before its blocks are due, in seconds.
    """

    def __init__(self, max_age_s: float) -> None:
        self._max_age_s = max_age_s
        self._channels: dict[int, dict[DeliveryId, PlacedDelivery]] = {}
        self._count: Counter[ArrayKey] = Counter()

    def __iter__(self) -> Iterator[DeliveryId]:
        return (identity for of_channel in self._channels.values() for identity in of_channel)

    def __getitem__(self, identity: DeliveryId) -> PlacedDelivery:
        return self._channels[identity.channel][identity]

    def __setitem__(self, identity: DeliveryId, delivery: PlacedDelivery) -> None:
        self._channels.setdefault(identity.channel, {})[identity] = delivery
        self._count[delivery.array] += 1

    def pop(self, identity: DeliveryId) -> PlacedDelivery | None:
        """Return and forget a delivery; None where it is not known."""
        of_channel = self._channels.get(identity.channel, {})
        delivery = of_channel.pop(identity, None)
        if not of_channel:
            self._channels.pop(identity.channel, None)
        if delivery is not None:
            self._count[delivery.array] -= 1
            if not self._count[delivery.array]:
                del self._count[delivery.array]
        return delivery

    def of_channel(self, channel: int) -> list[DeliveryId]:
        """Return the deliveries of a channel."""
        return list(self._channels.get(channel, ()))

    def has(self, array: ArrayKey) -> bool:
        """Whether one of them is of an array."""
        return array in self._count

    def channels(self, store: str) -> list[int]:
        """Return the channels on which deliveries to a store came."""
        return [
            channel
            for channel, of_channel in self._channels.items()
            if any(x.array.store == store for x in of_channel.values())
        ]

    def stores(self, channel: int) -> set[str]:
        """Return the stores to which deliveries came on a channel."""
        return {x.array.store for x in self._channels.get(channel, {}).values()}

    def due(
        self, now: float, pressure: bool | Container[int], drain: bool
    ) -> Iterator[tuple[BlockKey, Reason]]:
        """Yield blocks to write for age, pressure or drain, and for which of them.

        Those of the oldest delivery first, so that it can be settled soon.

        Parameters
        ----------
        pressure : bool or set of int
            Whether the deliveries of all channels, or of which, are to be settled.
        """
        for channel in self._longest_held():
            pressed = pressure if isinstance(pressure, bool) else channel in pressure
            for delivery in self._channels[channel].values():
                reason = self._reason(delivery, now, pressed, drain)
                if reason is None:
                    break
                for key in delivery.blocks:
                    yield key, reason

    def _longest_held(self) -> list[int]:
        """Return the channels, first that of which something is held for the longest time."""
        if len(self._channels) == 1:
            return list(self._channels)
        first = {number: next(iter(each.values())) for number, each in self._channels.items()}
        return sorted(first, key=lambda number: first[number].since)

    def _reason(
        self, delivery: PlacedDelivery, now: float, pressed: bool, drain: bool
    ) -> Reason | None:
        if drain:
            return Reason.DRAIN
        if now - delivery.since >= self._max_age_s:
            return Reason.AGE
        return Reason.PRESSURE if pressed else None
