"""Which arrays the writer process has open: those that something waits for, until nothing does.

On the owning thread, which asks for an opening and hears later how it went.
"""

from collections.abc import Callable
from functools import partial

from consumer.announcer import Announcer
from consumer.assembler import Assembler
from consumer.blocks import ArrayKey, StoredArray
from consumer.delivery import Settling
from consumer.errors import ConsumerError, Leftovers, ParkError
from consumer.faults import Faults
from consumer.handles import Handle, Handles
from consumer.inbox import Held, Inbox
from consumer.losses import Losses
from consumer.metrics import Metrics
from consumer.requests import Opened
from consumer.storage import Storage


class Access:
    """Opens arrays and closes them.

    Parameters
    ----------
    max_block_bytes : int
        The largest block that there is memory for.
    patience_s : float
        How long it may take to remove an array, in seconds.
    replaces_runs : bool
        Whether another run may begin in an array that one has filled.
    faulty : callable
        Whether a store is left alone for now.
    park : callable
        Takes the delivery that an array was opened for and that can never be written.
    failed : callable
        Takes the store, the operation and the error of a fault that may clear.
    advance : callable
        Called once something may go on.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self,
        broker: Settling,
        storage: Storage,
        inbox: Inbox,
        assembler: Assembler,
        handles: Handles,
        announcer: Announcer,
        faults: Faults,
        losses: Losses,
        metrics: Metrics,
        *,
        max_block_bytes: int,
        patience_s: float,
        replaces_runs: bool,
        faulty: Callable[[str], bool],
        park: Callable[[Held, ParkError], None],
        failed: Callable[[str, str, ConsumerError], None],
        advance: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._broker = broker
        self._storage = storage
        self._inbox = inbox
        self._assembler = assembler
        self._handles = handles
        self._announcer = announcer
        self._faults = faults
        self._losses = losses
        self._metrics = metrics
        self._max_block_bytes = max_block_bytes
        self._patience_s = patience_s
        self._replaces_runs = replaces_runs
        self._faulty = faulty
        self._park = park
        self._failed = failed
        self._advance = advance
        self._clock = clock

    def open_wanted(self, *, for_waiting: bool) -> None:
        """Open the arrays that held tiles want, and those that deliveries wait for, if asked."""
        for handle in self._handles.renewed(self._uses):
            self._let_go(handle)
        for handle in self._handles.to_open(lambda each: self._wanted(each, for_waiting)):
            self._open(handle)

    def close_surplus(self) -> None:
        """Close arrays that are complete or too many, unless they are used."""
        for handle in self._handles.surplus(self._uses):
            self._let_go(handle)
            self._handles.drop(handle)

    def close(self) -> None:
        """Close all arrays."""
        for handle in self._handles:
            self._storage.close_array(handle.key)

    def _uses(self, array: ArrayKey) -> bool:
        return self._assembler.uses(array) or self._announcer.announces(array)

    def _let_go(self, handle: Handle) -> None:
        self._assembler.forget_stored(handle.key)
        self._announcer.forget(handle.key)
        self._storage.close_array(handle.key)

    def _wanted(self, handle: Handle, for_waiting: bool) -> bool:
        waited_for = for_waiting and bool(handle.waiting)
        wanted = waited_for or self._assembler.holds(handle.key)
        return wanted and not self._faulty(handle.key.store)

    def _open(self, handle: Handle) -> None:
        opened_for = handle.waiting[0] if handle.waiting else None
        self._storage.open(
            handle.opening,
            self._max_block_bytes,
            partial(self._ended, handle, opened_for),
            renew=self._replaces_runs and not self._uses(handle.key),
        )

    def _ended(
        self,
        handle: Handle,
        opened_for: Held | None,
        opened: Opened | None,
        error: ConsumerError | None,
    ) -> None:
        before = self._handles.note_opened(handle, opened.array if opened else None)
        if opened is not None:
            reason = _departs(handle, before, opened)
            if reason and self._assembler.holds(handle.key):
                self._losses.give_up_store(handle.key.store, reason)
            self._take_over(handle, opened)
        elif isinstance(error, Leftovers) and self._may_go(handle):
            self._failed(handle.key.store, "open", error)
        elif isinstance(error, ParkError) and opened_for is not None:
            # Where the channel was lost meanwhile, the message comes again and is refused then.
            if handle.waiting and handle.waiting[0] is opened_for:
                self._park(handle.waiting.popleft(), error)
        elif error is not None:
            self._failed(handle.key.store, "open", error)
        self._advance()

    def _may_go(self, handle: Handle) -> bool:
        """Whether what is left of an array may yet be removed: it was open, and not long ago."""
        now = self._clock()
        if handle.in_the_way_since is None:
            handle.in_the_way_since = now
        return handle.before is not None and now - handle.in_the_way_since < self._patience_s

    def _take_over(self, handle: Handle, opened: Opened) -> None:
        """Go by what was found in an array, and let what waited for it in."""
        store = handle.key.store
        self._metrics.array_opens.inc()
        if opened.taken is not None:
            self._metrics.store_opens.inc()
            self._broker.round_trip(handle.channel, partial(self._shown, store, opened.taken))
        kept = self._assembler.holds(handle.key)
        handle.source = opened.source or (handle.source if kept else None)
        handle.run = opened.run or (handle.run if kept else None)
        handle.replaced, handle.ledger = opened.replaced, opened.ledger
        if opened.partly is not None:
            self._faults.note_opened(store)
            handle.complete = opened.completed
            self._assembler.forget_stored(handle.key)
            self._assembler.learn(handle.key, opened.partly)
        if opened.completed:
            self._announcer.completed(handle.completion, now=self._clock())
        for held in handle.waiting:
            held.reopened = True
        self._inbox.put_back(handle.waiting)
        handle.waiting.clear()

    def _shown(self, store: str, epoch: str, answered: bool) -> None:
        """Let a store be written, now that the broker has answered after it was taken."""
        if answered:
            self._storage.allow(store, epoch)
            return
        for array in self._handles.reopen(store):
            self._assembler.forget_stored(array)
            self._storage.close_array(array)


def _departs(handle: Handle, before: StoredArray | None, opened: Opened) -> str:
    """Return in what an array is not the one that tiles were taken for; empty where it is."""
    if before is not None and before.layout != opened.array.layout:
        return "an array was removed and made anew with another layout"
    bound = (handle.source, opened.source), (handle.run, opened.run)
    if any(ours and stored and ours != stored for ours, stored in bound):
        return "an array is bound to another source or run than the tiles held for it"
    return ""
