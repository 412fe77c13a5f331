"""What is known of failures: which stores are left alone for a while, which blocks for good."""

import random
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from consumer.blocks import ArrayKey, BlockKey
from consumer.coverage import Box
from consumer.errors import ParkError
from consumer.placement import Grid

_FIRST_RETRY_S = 0.5
_CONDEMNED_S = 60.0
_FORGOTTEN_S = 60.0
# So often in a row may others take a store before something must be wrong with the subscription.
_MOST_LOSSES = 5


@dataclass(slots=True)
class _Fault:
    since: float
    until: float
    wanted: float
    failures: int = 0
    writing: bool = False


class Faults:
    """Which stores are left alone for now, and until when."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._faults: dict[str, _Fault] = {}
        self._losses: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._faults)

    @property
    def stores(self) -> list[str]:
        """The stores that have failed and not worked since."""
        return list(self._faults)

    def longest(self, now: float, stores: Collection[str]) -> float:
        """Return for how long one of the stores has failed, at most, in seconds."""
        since = (fault.since for store, fault in self._faults.items() if store in stores)
        return max((now - each for each in since), default=0.0)

    def note(self, store: str, now: float, *, writing: bool = False) -> float | None:
        """Take note of a fault; return how long the store is left alone, in seconds.

        None where it is left alone already: what was under way by then is of the same try.

        Parameters
        ----------
        writing : bool
            Whether it failed when it was written, so that only a write can show that it works.
        """
        fault = self._faults.setdefault(store, _Fault(now, now, now))
        fault.writing |= writing
        if now < fault.until:
            return None
        most = min(
            self._longest_s, _FIRST_RETRY_S * 2.0 ** max(fault.failures, self._losses[store])
        )
        wait = random.uniform(most / 2, most)  # noqa: S311 - jitter
        fault.until, fault.failures = now + wait, min(fault.failures + 1, 16)
        return wait

    def note_loss(self, store: str) -> bool:
        """Take note that another took the store; return whether that is once too often.

        In a row: nothing was written between. Then the count begins anew.
        """
        self._losses[store] += 1
        if self._losses[store] < _MOST_LOSSES:
            return False
        del self._losses[store]
        return True

    def note_opened(self, store: str) -> None:
        """Take note that an array could be opened."""
        fault = self._faults.get(store)
        if fault is not None and not fault.writing:
            del self._faults[store]

    def note_written(self, store: str) -> bool:
        """Take note that the store works; return whether it did not before."""
        self._losses.pop(store, None)
        return self._faults.pop(store, None) is not None

    def watch(self, now: float, wanted: Collection[str]) -> float:
        """Return for how long a store that is wanted has failed, at most, in seconds.

        The faults of those that have not been wanted for a while are forgotten.
        """
        for store, fault in list(self._faults.items()):
            if store in wanted:
                fault.wanted = now
            elif now - max(fault.wanted, fault.until) > _FORGOTTEN_S:
                del self._faults[store]
        return self.longest(now, wanted)

    def paused(self, store: str, now: float) -> bool:
        """Whether the store is to be left alone."""
        fault = self._faults.get(store)
        return fault is not None and now < fault.until


class Condemned:
    """Blocks that can never be written, for as long as it takes to park their deliveries.

    Not longer, since somebody may mend what is stored.
    """

    def __init__(self) -> None:
        self._blocks: dict[BlockKey, tuple[float, ParkError]] = {}

    def note(self, key: BlockKey, error: ParkError, now: float) -> None:
        """Take note of a block that can never be written."""
        self._blocks[key] = (now + _CONDEMNED_S, error)

    def expire(self, now: float) -> None:
        """Give blocks another chance."""
        self._blocks = {key: found for key, found in self._blocks.items() if found[0] > now}

    def error(self, array: ArrayKey, grid: Grid, boxes: Iterable[Box]) -> ParkError | None:
        """Return the block's error where one of the boxes touches such a block."""
        touched = [grid.touched(box) for box in boxes] if self._blocks else []
        for key, (_until, error) in self._blocks.items():
            block = Box(key.block, tuple(i + 1 for i in key.block))
            if key.array == array and any(blocks.intersection(block) for blocks in touched):
                return error
        return None
