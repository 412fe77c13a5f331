"""The delivery tags of one channel that are not settled, and what is to be acknowledged of them.

AMQP acknowledges many at once only up to a tag, with all that were delivered before it.
"""

import itertools


class Unsettled:
    """Tags in the order of delivery, with those among them that are to be acknowledged."""

    def __init__(self) -> None:
        self._tags: dict[int, None] = {}
        self._durable: set[int] = set()

    def __len__(self) -> int:
        return len(self._tags)

    def __contains__(self, tag: int) -> bool:
        return tag in self._tags

    @property
    def durable(self) -> int:
        """How many are to be acknowledged."""
        return len(self._durable)

    def add(self, tag: int) -> None:
        """Take note of a delivery."""
        self._tags[tag] = None

    def discard(self, tag: int) -> None:
        """Take note that a delivery is settled in another way."""
        self._tags.pop(tag, None)
        self._durable.discard(tag)

    def note_durable(self, tag: int) -> None:
        """Have a tag be acknowledged."""
        self._durable.add(tag)

    def take_first(self) -> int | None:
        """Remove those to be acknowledged that no other precedes; return the last of them."""
        first = list(itertools.takewhile(self._durable.__contains__, self._tags))
        for tag in first:
            self.discard(tag)
        return first[-1] if first else None

    def take_rest(self) -> list[int]:
        """Remove and return all others that are to be acknowledged."""
        rest = sorted(self._durable)
        for tag in rest:
            self.discard(tag)
        return rest

    def clear(self) -> None:
        """Forget all."""
        self._tags.clear()
        self._durable.clear()
