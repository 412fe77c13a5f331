"""Takes deliveries from the inbox, in their order, into blocks or to where they wait for an array.

Sans-I/O: opening arrays, writing blocks and settling deliveries is the flow's.
"""

import logging
from collections.abc import Callable

from consumer.assembler import Assembler
from consumer.blocks import ArrayKey, StoredArray
from consumer.errors import ParkError, Unexpected
from consumer.faults import Condemned
from consumer.handles import Handle, Handles
from consumer.inbox import Held, Inbox
from consumer.ledger import is_new_run
from consumer.message import Message, Outline, decode
from consumer.metrics import Metrics

log = logging.getLogger(__name__)


class Intake:
    """The way of a delivery from the inbox into blocks.

    Parameters
    ----------
    max_bytes : int
        The largest body, as sent and decompressed.
    replaces_runs : bool
        Whether another run may begin in an array that one has filled.
    lets_in : callable
        Whether the head of the inbox may be placed now.
    park : callable
        Takes a delivery that has left the inbox and can never be written.
    before : callable
        Takes each body before it is looked into.
    clock : callable
        Seconds, monotonic.

    Attributes
    ----------
    starved : bool
        Whether the head of the inbox waits for room.
    """

    def __init__(
        self,
        inbox: Inbox,
        assembler: Assembler,
        handles: Handles,
        condemned: Condemned,
        metrics: Metrics,
        *,
        max_bytes: int,
        replaces_runs: bool,
        lets_in: Callable[[Held], bool],
        park: Callable[[Held, ParkError], None],
        before: Callable[[bytes], None],
        clock: Callable[[], float],
    ) -> None:
        self._inbox = inbox
        self._assembler = assembler
        self._handles = handles
        self._condemned = condemned
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._replaces_runs = replaces_runs
        self._lets_in = lets_in
        self._park = park
        self._before = before
        self._clock = clock
        self.starved = False

    def take(self) -> None:
        """Take in all that there is room for."""
        self.starved = False
        while (held := self._inbox.head()) is not None and self._lets_in(held):
            try:
                gone = self._place(held)
            except ParkError as error:
                self._refuse(held, error)
                continue
            except MemoryError:
                log.exception("out of memory while placing a message; trying again")
                # From the start: nobody knows how far it came.
                self._assembler.forget([held.delivery.id])
                gone = held.placing = False
            except Exception as error:
                log.exception("unexpected error while placing a message")
                self._refuse(held, Unexpected(f"{type(error).__name__}: {error}"))
                continue
            if not gone:
                self.starved = True
                return
            self._inbox.pop()

    def _refuse(self, held: Held, error: ParkError) -> None:
        self._inbox.pop()
        self._assembler.forget([held.delivery.id])
        self._park(held, error)

    def _place(self, held: Held) -> bool:
        """Place a delivery's tiles; return whether it has left the inbox."""
        if held.placing:
            return self._placed(held, self._assembler.resume(held.delivery.id))
        self._before(held.body or b"")
        message = held.message or self._decoded(held)
        outline = held.outline or message.outline
        handle = self._handles.of(outline)
        handle.channel = held.delivery.id.channel
        if handle.array is None or handle.renewing:
            return self._waits(handle, held)
        try:
            condemned = self._condemned_by(handle.key, handle.array, outline)
            # A message that is parked begins no run, and binds nothing.
            if condemned is None and self._begins_run(handle, outline):
                self._handles.renew(handle)
                self._assembler.finish(handle.key)
                return self._waits(handle, held)
        except ParkError:
            if held.reopened:
                raise
            # Somebody may have changed the array since it was opened.
            self._handles.close(handle)
            return self._waits(handle, held)
        if condemned is not None:
            raise condemned
        held.placing = True
        self._metrics.tiles.inc(len(message.tiles))
        done = self._assembler.add(
            held.delivery.id,
            handle.key,
            handle.array.layout,
            message.tiles,
            since=held.since,
            now=self._clock(),
        )
        return self._placed(held, done)

    def _waits(self, handle: Handle, held: Held) -> bool:
        self._inbox.forget_decoded(held)
        handle.waiting.append(held)
        return True

    def _placed(self, held: Held, done: bool) -> bool:
        if done:
            self._inbox.release(held)
        return done

    def _decoded(self, held: Held) -> Message:
        assert held.body is not None
        message = decode(held.delivery.envelope, held.body, max_bytes=self._max_bytes)
        self._inbox.note_decoded(held, message)
        return message

    def _condemned_by(
        self, key: ArrayKey, array: StoredArray, outline: Outline
    ) -> ParkError | None:
        """Check a message against its array, and return what its blocks have against it."""
        array.check(outline.entry)
        outline.check(array.layout)
        return self._condemned.error(key, array.layout.grid, outline.boxes)

    def _begins_run(self, handle: Handle, outline: Outline) -> bool:
        """Claim the array for a message, or return whether another run begins."""
        if self._replaces_runs and is_new_run(outline.entry.run, handle.run, handle.replaced):
            return True
        handle.claim(outline)
        return False
