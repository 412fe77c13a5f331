"""Tells the world what arrays have come to, and their ledgers that it was told.

Owned by the owning thread. An array that is complete is announced before the deliveries that made
it so are acknowledged: where this process ends before, they come again, and whoever opens the
array then finds that nobody has announced it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from consumer.blocks import ArrayKey, DeliveryId
from consumer.delivery import Settling
from consumer.errors import ConsumerError
from consumer.events import ArrayCompleted, ArrayProgress
from consumer.requests import Written
from consumer.storage import Storage

# The shortest time between two announcements that an array is still complete.
_WHOLE_S = 1.0


@dataclass(slots=True)
class _Progress:
    total: int
    filled: int = 0
    told: int = 0
    told_at: float = float("-inf")
    telling: bool = False

    @property
    def is_owed(self) -> bool:
        """Whether it is still to be told that all is filled, for which somebody may wait."""
        return self.filled == self.total != self.told

    def is_due(self, now: float, interval_s: float) -> bool:
        """Whether there is something new, and it is time to tell."""
        least = min(interval_s, _WHOLE_S) if self.filled == self.total else interval_s
        waited = now - self.told_at >= least
        return waited and self.filled != self.told and not self.telling

    def tell(self, now: float) -> None:
        """Take note of what is being told."""
        self.told, self.told_at, self.telling = self.filled, now, True

    def heard(self, _told: bool) -> None:
        """Take note that the broker has heard it."""
        self.telling = False


class Announcer:
    """Announces each array's progress now and then, and its completion.

    Parameters
    ----------
    acknowledge : callable
        Takes each delivery that waited for an announcement.
    interval_s : float
        The shortest time between two announcements of an array's progress, in seconds.
    """

    def __init__(
        self,
        broker: Settling,
        storage: Storage,
        acknowledge: Callable[[DeliveryId], None],
        *,
        interval_s: float,
    ) -> None:
        self._broker = broker
        self._storage = storage
        self._acknowledge = acknowledge
        self._interval_s = interval_s
        # By array and ledger whose completion is being announced: the deliveries that wait for it.
        self._waiting: dict[ArrayKey, dict[str | None, list[DeliveryId]]] = {}
        self._since: dict[tuple[ArrayKey, str | None], float] = {}
        self._progress: dict[ArrayKey, _Progress] = {}

    @property
    def busy(self) -> bool:
        """Whether something is being announced that deliveries may wait for."""
        return bool(self._waiting)

    def announces(self, array: ArrayKey) -> bool:
        """Whether it is being announced that an array is complete, or still is."""
        progress = self._progress.get(array)
        return array in self._waiting or (progress is not None and progress.is_owed)

    def completed(
        self, completion: ArrayCompleted, settled: Iterable[DeliveryId] = (), *, now: float
    ) -> None:
        """Announce that an array is complete, then have deliveries acknowledged."""
        array, ledger = ArrayKey(completion.store, completion.array), completion.ledger
        self._progress.pop(array, None)
        waiting = self._waiting.setdefault(array, {})
        if ledger in waiting:
            waiting[ledger] += settled
            return
        waiting[ledger] = list(settled)
        self._since[array, ledger] = now
        self._broker.announce(completion, partial(self._told, array, ledger))

    def overdue(self, now: float) -> float:
        """Return for how long an array has been announced in vain, at most, in seconds."""
        return max((now - since for since in self._since.values()), default=0.0)

    def written(self, array: ArrayKey, voxels: int, filled: int) -> None:
        """Take note of how many of an array's voxels are filled."""
        progress = self._progress.setdefault(array, _Progress(voxels))
        progress.filled = filled
        if filled == voxels:
            # Who fills it once more does not hear of its completion again.
            progress.told = 0

    def tick(self, now: float, bound: Callable[[ArrayKey], tuple[str | None, str | None]]) -> None:
        """Announce progress where it is time to.

        Parameters
        ----------
        bound : callable
            Gives the source and run of an array.
        """
        for array, progress in self._progress.items():
            if not progress.is_due(now, self._interval_s):
                continue
            progress.tell(now)
            source, run = bound(array)
            event = ArrayProgress(
                store=array.store,
                array=array.path,
                source=source,
                run=run,
                filled_voxels=progress.filled,
                total_voxels=progress.total,
            )
            self._broker.announce(event, progress.heard)

    def channel_lost(self, channel: int) -> None:
        """Forget a channel's deliveries: they come again. What is being announced goes on."""
        for by_ledger in self._waiting.values():
            for waiting in by_ledger.values():
                waiting[:] = [identity for identity in waiting if identity.channel != channel]

    def forget(self, array: ArrayKey) -> None:
        """Forget an array's progress."""
        self._progress.pop(array, None)

    def _told(self, array: ArrayKey, ledger: str | None, told: bool) -> None:
        if told:
            noted = partial(self._noted, array, ledger)
            self._storage.remark(array, noted, announced=ledger)
        else:
            self._noted(array, ledger, None, None)

    def _noted(
        self,
        array: ArrayKey,
        ledger: str | None,
        _written: Written | None,
        _error: ConsumerError | None,
    ) -> None:
        # Where that could not be noted, it is announced once more by whoever opens the array next.
        del self._since[array, ledger]
        waiting = self._waiting[array].pop(ledger)
        if not self._waiting[array]:
            del self._waiting[array]
        for identity in waiting:
            self._acknowledge(identity)
