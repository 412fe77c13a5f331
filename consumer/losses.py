"""Channels that are lost or given up: what came on them is dropped, since it is delivered again.

On the owning thread. A channel is one partition's, so whatever goes wrong with one leaves the
others alone.
"""

import logging
from collections.abc import Callable, Collection, Iterator

from consumer.announcer import Announcer
from consumer.assembler import Assembler
from consumer.delivery import Settling
from consumer.faults import Faults
from consumer.handles import Handle, Handles
from consumer.holdings import Holdings
from consumer.inbox import Inbox
from consumer.lone import Lone
from consumer.settings import Settings
from consumer.storage import Storage

log = logging.getLogger(__name__)


class Losses:
    """Forgets what came on lost channels, and gives channels up.

    Parameters
    ----------
    held : Holdings
        All deliveries that are neither acknowledged nor parked.
    starved : callable
        Whether there is no room for the next delivery.
    """

    def __init__(
        self,
        settings: Settings,
        broker: Settling,
        storage: Storage,
        inbox: Inbox,
        assembler: Assembler,
        handles: Handles,
        announcer: Announcer,
        lone: Lone,
        faults: Faults,
        held: Holdings,
        *,
        starved: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._storage = storage
        self._inbox = inbox
        self._assembler = assembler
        self._handles = handles
        self._announcer = announcer
        self._lone = lone
        self._faults = faults
        self._held = held
        self._starved = starved
        self._starved_since: float | None = None

    def forget(self, channel: int) -> None:
        """Drop all of a lost channel that is not in a worker, and what was read of its stores."""
        stores = self._stores_of(channel)
        self._lone.channel_lost(channel)
        self._inbox.drop(channel)
        for handle in self._handles:
            self._forget_waiting(handle, channel)
        self._assembler.lose(channel, stores)
        self._announcer.channel_lost(channel)
        for store in stores:
            self.reopen(store)
        self._held.drop(channel)
        for handle in self._handles:
            if handle.channel == channel:
                handle.channel = next(self._channels_of(handle.key.store), channel)

    def reopen(self, store: str) -> None:
        """Have a store's arrays opened again, once they are wanted."""
        for handle in self._handles:
            if handle.key.store == store and (handle.array or handle.before):
                self._storage.close_array(handle.key)
        self._handles.reopen(store)

    def give_up(self, channels: Collection[int], reason: str) -> None:
        """Let the broker deliver again what came on some channels."""
        for channel in channels:
            self.forget(channel)
            self._broker.reset(channel, reason, hold=lambda: not self._storage.root_writable)

    def give_up_all(self, reason: str) -> None:
        """Let the broker deliver everything again."""
        self.give_up(self._held.channels, reason)

    def give_up_store(self, store: str, reason: str) -> None:
        """Let the broker deliver again what came on the channels of a store."""
        last = {handle.channel for handle in self._handles if handle.key.store == store}
        self.give_up(last.union(self._channels_of(store)), reason)

    def watch(self, now: float) -> None:
        """Give deliveries back before the broker takes them away, or where they block others."""
        limit = self._settings.consumer_timeout_s / 2
        if self._faults or not self._storage.root_writable:
            limit = min(limit, self._settings.max_age_s * 1.5)
        ages = {channel: self.age(channel, now) for channel in self._held.channels}
        late = [channel for channel, age in ages.items() if age > limit]
        if late:
            oldest = max(ages.values())
            self.give_up(late, f"a delivery could not be written for {oldest:.0f} s")
        self._make_room(now)

    def age(self, channel: int, now: float) -> float:
        """Return the age of the oldest delivery held of a channel, in seconds; 0 where none is."""
        since = self._held.oldest(channel)
        return 0.0 if since is None else now - since

    def _make_room(self, now: float) -> None:
        """Give up the partitions of failing stores where nothing else goes on for lack of room."""
        blocked = self._starved() and not self._assembler.writing and self._storage.root_writable
        if not blocked or not self._faults:
            self._starved_since = None
            return
        if self._starved_since is None:
            self._starved_since = now
        failing = {c for store in self._faults.stores for c in self._channels_of(store)}
        waited = now - self._starved_since > self._settings.idle_s
        if waited and failing and not failing.issuperset(self._held.channels):
            self._starved_since = None
            self.give_up(failing, "a store that fails takes the room of others")

    def _stores_of(self, channel: int) -> set[str]:
        handles = {
            handle.key.store
            for handle in self._handles
            if handle.channel == channel
            or any(held.delivery.id.channel == channel for held in handle.waiting)
        }
        return handles | self._assembler.stores_of(channel)

    def _channels_of(self, store: str) -> Iterator[int]:
        yield from self._assembler.channels(store)
        for handle in self._handles:
            if handle.key.store == store:
                yield from (held.delivery.id.channel for held in handle.waiting)

    def _forget_waiting(self, handle: Handle, channel: int) -> None:
        for held in [x for x in handle.waiting if x.delivery.id.channel == channel]:
            self._inbox.release(held)
            handle.waiting.remove(held)
