"""When an array's tiles come, and when no more seem to come for now.

Sans-I/O: the time goes in.
"""

from dataclasses import dataclass

from consumer.blocks import ArrayKey

_GAPS_UNTIL_IDLE = 3.0
_GAP_DECAY = 0.9


@dataclass(slots=True)
class _Pace:
    last: float
    gap: float = 0.0


class Paces:
    """The pace of each array's tiles, in seconds."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._paces: dict[ArrayKey, _Pace] = {}

    def note(self, array: ArrayKey, now: float) -> None:
        """Take note of tiles of an array."""
        pace = self._paces.setdefault(array, _Pace(now))
        pace.gap = max(now - pace.last, pace.gap * _GAP_DECAY)
        pace.last = now

    def is_idle(self, array: ArrayKey, now: float) -> bool:
        """Whether no tile came for long: for `idle_s`, and longer than is usual for the array."""
        pace = self._paces[array]
        return now - pace.last >= max(self._idle_s, _GAPS_UNTIL_IDLE * pace.gap)

    def forget(self, array: ArrayKey) -> None:
        """Forget an array."""
        self._paces.pop(array, None)
