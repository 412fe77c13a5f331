"""What happens in a history: drawn from a seed, or played back from a list."""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeVar

_NUMBER_BITS = 60

Item = TypeVar("Item")


class Event(NamedTuple):
    """One step: its name, and a number from which it takes whatever it has to choose."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class History:
    """What makes a history; None is all that the seed draws.

    Attributes
    ----------
    sends : tuple of int, or None
        Messages by number, in the order in which they are published.
    tiles : tuple of int, or None
        The tiles that the messages hold, by number.
    events : tuple of Event, or None
        What happens, up to the quiet end.
    """

    seed: int
    sends: tuple[int, ...] | None = None
    tiles: tuple[int, ...] | None = None
    events: tuple[Event, ...] | None = None

    def __str__(self) -> str:
        """Return it as JSON, for `parse`; a number of 0 is left out."""
        if self.sends is None or self.tiles is None or self.events is None:
            return str(self.seed)
        events = [f"{name} {number}" if number else name for name, number in self.events]
        said = {"seed": self.seed, "sends": self.sends, "tiles": self.tiles, "events": events}
        return json.dumps(said)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what `str` has written, or the history of a seed."""
        said = json.loads(text)
        if isinstance(said, int):
            return cls(said)
        events = (each.partition(" ") for each in said["events"])
        return cls(
            said["seed"],
            tuple(said["sends"]),
            tuple(said["tiles"]),
            tuple(Event(name, int(number or 0)) for name, _, number in events),
        )


class Choices:
    """Says what happens next; `taken` lists what it said."""

    def __init__(self, seed: int, replay: Sequence[Event] | None) -> None:
        self._random = random.Random(f"events of {seed}")
        self._replay: Iterator[Event] | None = None if replay is None else iter(replay)
        self.taken: list[Event] = []

    def next(self, likely: Mapping[str, float]) -> Event | None:
        """Return the next event, or None where there are no more.

        Parameters
        ----------
        likely : mapping
            How likely each event is. One that is played back may be none of these.
        """
        if self._replay is None:
            event = self._draw(likely) if likely else None
        else:
            event = next(self._replay, None)
        if event is not None:
            self.taken.append(event)
        return event

    def _draw(self, likely: Mapping[str, float]) -> Event:
        at = self._random.random() * sum(likely.values())
        chosen = ""
        for name, weight in likely.items():
            chosen = name
            at -= weight
            if at < 0:
                break
        return Event(chosen, self._random.getrandbits(_NUMBER_BITS))


class Number:
    """The number of an event, used up choice by choice; where nothing is left, the first is taken.

    So an event's choices stay what they were while others are removed from its history.
    """

    def __init__(self, number: int) -> None:
        self._left = number

    def below(self, count: int) -> int:
        """Return one of `count` numbers."""
        self._left, chosen = divmod(self._left, count)
        return chosen

    def order(self, numbers: Sequence[int]) -> list[int]:
        """Return the indices of `numbers` in a chosen order, the same for each two of them."""
        salt = self.below(1 << 16)
        if not salt:
            return list(range(len(numbers)))
        return sorted(range(len(numbers)), key=lambda i: _salted(numbers[i], salt))

    def first(self, items: Sequence[Item], number_of: Callable[[Item], int]) -> Item:
        """Return the item that comes first in such an order of their numbers."""
        salt = self.below(1 << 16)
        if not salt or len(items) == 1:
            return items[0]
        return min(items, key=lambda item: _salted(number_of(item), salt))


def _salted(number: int, salt: int) -> int:
    return ((number + salt) * 40503 * salt) % 65521
