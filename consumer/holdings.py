"""The deliveries that are neither acknowledged nor parked, by the channel that they came on."""

from collections.abc import Iterator

from consumer.blocks import DeliveryId
from consumer.inbox import Held


class Holdings:
    """What is held, of each channel the oldest first.

    Parameters
    ----------
    prefetch : int
        How many of one channel the broker delivers at most.

    Attributes
    ----------
    full : set of int
        Channels on which no more comes before something is settled.
    withheld : set of int
        Channels on which no more comes at all, until something does.
    """

    def __init__(self, prefetch: int) -> None:
        self._prefetch = prefetch
        self._of: dict[int, dict[DeliveryId, Held]] = {}
        self.full: set[int] = set()
        self.withheld: set[int] = set()

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def __contains__(self, identity: DeliveryId) -> bool:
        return identity in self._of.get(identity.channel, ())

    @property
    def channels(self) -> list[int]:
        """The channels of which something is held."""
        return list(self._of)

    def of(self, channel: int) -> Iterator[Held]:
        """Iterate over what is held of a channel."""
        return iter(self._of.get(channel, {}).values())

    def oldest(self, channel: int) -> float | None:
        """When the oldest that is held of a channel was received; None where nothing is."""
        first = next(self.of(channel), None)
        return first.since if first else None

    def add(self, held: Held) -> None:
        """Take note of a delivery."""
        identity = held.delivery.id
        of_channel = self._of.setdefault(identity.channel, {})
        of_channel[identity] = held
        self.withheld.discard(identity.channel)
        if len(of_channel) >= self._prefetch:
            self.full.add(identity.channel)

    def withhold(self, channel: int) -> None:
        """Take note that messages wait which are not delivered on a channel."""
        if channel in self._of:
            self.withheld.add(channel)

    def pop(self, identity: DeliveryId) -> Held | None:
        """Return and forget a delivery; None where it is not held."""
        of_channel = self._of.get(identity.channel, {})
        held = of_channel.pop(identity, None)
        if len(of_channel) < self._prefetch:
            self.full.discard(identity.channel)
        if not of_channel:
            self._of.pop(identity.channel, None)
            self.withheld.discard(identity.channel)
        return held

    def drop(self, channel: int) -> list[Held]:
        """Return and forget everything of a channel."""
        self.full.discard(channel)
        self.withheld.discard(channel)
        return list(self._of.pop(channel, {}).values())
