"""Messages that may have killed a consumer are handled with nothing else under way.

A message that kills whoever takes it comes again for ever, and with each death the delivery counts
of its innocent neighbours rise too. So the count only makes a suspect. Suspects wait until all that
came before is settled, are noted in the journal (`consumer.journal`), and are handled, many at
once; what comes later waits. Where that is cut short by the end of a process, they come again in
small parts, at last one by one, and only a message whose own handling was cut short several times
is parked.

In order, and not cut short, ends what is settled, given back (a lost channel, SIGTERM) or kept
because its store fails; and what takes longer than `max_age_s`. SIGKILL cuts short, whoever sends
it, hence several times.

Sans-I/O, on the owning thread; the journal is written by the writer process.
"""

import hashlib
import logging
from collections.abc import Callable
from functools import partial

from consumer.assembler import Assembler
from consumer.blocks import DeliveryId
from consumer.delivery import Delivery
from consumer.errors import ConsumerError, KillsConsumer, ParkError
from consumer.faults import Faults
from consumer.handles import Handles
from consumer.holdings import Holdings
from consumer.inbox import Held, Inbox
from consumer.journal import LONE_FOLDER, MOST_TOGETHER, Begun
from consumer.keys import STATE_FOLDER
from consumer.metrics import Metrics
from consumer.settings import Settings
from consumer.storage import Storage

# Deliveries before this one: the first of a message may have ended with anybody's fault.
_SUSPECT_COUNT = 2
# Suspects come in numbers, after a restart: so long are they gathered.
_GATHER_S = 0.2
# What the journal is called among the stores, when it fails.
JOURNAL = f"{STATE_FOLDER}/{LONE_FOLDER}"

log = logging.getLogger(__name__)


def suspect(delivery: Delivery, body: bytes) -> str | None:
    """Return the fingerprint of a message that may have killed a consumer; None of all others.

    The same for each delivery of the message: of its body and what decides how that is read.
    """
    if delivery.count < _SUSPECT_COUNT:
        return None
    envelope = delivery.envelope
    checksum = envelope.headers.get("crc32c")
    said = (
        envelope.routing_key,
        envelope.type,
        envelope.content_type,
        envelope.content_encoding,
        delivery.properties.message_id,
        checksum if isinstance(checksum, int) else None,
    )
    digest = hashlib.blake2b(repr(said).encode(), digest_size=16)
    digest.update(body)
    return digest.hexdigest()


class Lone:
    """Says which deliveries may leave the inbox, and when blocks must be written for it.

    Parameters
    ----------
    held : Holdings
        All deliveries that are neither acknowledged nor parked.
    paused : callable
        Whether a store is left alone for now.
    park : callable
        Takes a delivery that has left the inbox and is to be parked.
    failed : callable
        Takes note of an error: the store, the operation, the error.
    advance : callable
        Has the flow do what can be done now.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self,
        settings: Settings,
        storage: Storage,
        inbox: Inbox,
        assembler: Assembler,
        handles: Handles,
        faults: Faults,
        held: Holdings,
        metrics: Metrics,
        *,
        paused: Callable[[str], bool],
        park: Callable[[Held, ParkError], None],
        failed: Callable[[str, str, ConsumerError], None],
        advance: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._inbox = inbox
        self._assembler = assembler
        self._handles = handles
        self._faults = faults
        self._held = held
        self._metrics = metrics
        self._paused = paused
        self._park = park
        self._failed = failed
        self._advance = advance
        self._clock = clock
        self._waits_since: float | None = None
        self._told: frozenset[str] = frozenset()
        self._forget()

    def _forget(self) -> None:
        self._asked: list[Held] | None = None
        self._batch: list[Held] = []
        self._members: frozenset[DeliveryId] = frozenset()
        self._earliest = 0
        self._left = 0
        self._entry = ""
        self._begun_at = 0.0
        self._left_alone: set[str] = set()

    def lets_in(self, held: Held) -> bool:
        """Whether the head of the inbox may be placed now."""
        if not self._batch:
            return held.fingerprint is None
        if held.delivery.id in self._members:
            return True
        # What came earlier and was let in before has waited for its array, which is left alone.
        store = held.outline.entry.store if held.outline else None
        return held.number < self._earliest and store in self._left_alone

    def leaves_alone(self, store: str) -> bool:
        """Whether a store that failed before is not to be tried meanwhile."""
        return store in self._left_alone

    @property
    def flushes(self) -> bool:
        """Whether all blocks are to be written: suspects wait for it, or have all been placed."""
        first = self._inbox.first()
        if first is None:
            return bool(self._batch)
        return not self.lets_in(first)

    def advance(self) -> None:
        """Begin or end a lone handling, if it is time."""
        now = self._clock()
        if self._batch:
            if self._is_over(now):
                self.end()
                self._advance()
        elif self._asked is None and self._may_begin(now):
            self._begin()

    def end(self) -> None:
        """Take note that what was begun is settled, or goes on with others."""
        if self._batch:
            self._storage.end_lone(self._entry, self._settled())
        self._forget()

    def channel_lost(self, channel: int) -> None:
        """Take note that a channel's deliveries are given back, before they are forgotten."""
        handled = (*self._batch, *(self._asked or ()))
        if any(held.delivery.id.channel == channel for held in handled):
            self.end()
        self._waits_since = None

    def note_parked(self, held: Held) -> None:
        """Take note that a delivery is parked, and comes no more."""
        if held.fingerprint is not None:
            self._storage.end_lone("", [held.fingerprint])

    def _may_begin(self, now: float) -> bool:
        first = self._inbox.head()
        if first is None or first.fingerprint is None:
            self._waits_since = None
            return False
        if not self._is_under_way():
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = now
        if self._waits_since is not None and now - self._waits_since <= self._settings.max_age_s:
            return False
        return self._are_gathered(first, now) and not self._paused(JOURNAL)

    def _are_gathered(self, first: Held, now: float) -> bool:
        all_there = first.delivery.id.channel in self._held.full
        return all_there or now - first.since >= _GATHER_S

    def _is_under_way(self) -> bool:
        """Whether anything is done, or can be, but for stores that fail."""
        if self._assembler.writing or self._handles.opening:
            return True
        return not all(self._paused(store) for store in self._stores())

    def _stores(self) -> set[str]:
        return self._assembler.stores | self._handles.waited_for

    def _begin(self) -> None:
        self._waits_since = None
        self._asked = self._inbox.suspects(MOST_TOGETHER)
        self._left_alone = self._stores()
        fingerprints = [held.fingerprint for held in self._asked if held.fingerprint]
        self._storage.begin_lone(fingerprints, partial(self._begun, self._asked))

    def _begun(self, asked: list[Held], begun: Begun | None, error: ConsumerError | None) -> None:
        if asked is not self._asked:
            # The deliveries are gone meanwhile.
            if begun is not None and begun.entry:
                self._storage.end_lone(begun.entry, [])
            return
        self._forget()
        if begun is None:
            assert error is not None
            self._failed(JOURNAL, "lone", error)
            return
        self._faults.note_written(JOURNAL)
        if begun.count:
            self._start(asked[: begun.count], begun)
        elif self._inbox.head() is asked[0]:
            self._inbox.pop()
            self._assembler.forget([asked[0].delivery.id])
            self._park(asked[0], self._kills())
        self._advance()

    def _start(self, batch: list[Held], begun: Begun) -> None:
        self._batch, self._left = batch, len(batch)
        self._members = frozenset(held.delivery.id for held in batch)
        self._earliest = min(held.number for held in batch)
        self._entry = begun.entry
        self._begun_at = self._clock()
        self._left_alone = self._stores()
        self._metrics.handled_alone.inc(len(batch))
        if begun.cut:
            self._tell(frozenset(held.fingerprint for held in batch if held.fingerprint))

    def _tell(self, fingerprints: frozenset[str]) -> None:
        """Say once of a message that it is handled alone, however often it is begun anew."""
        if fingerprints <= self._told:
            return
        self._told = fingerprints | (self._told if len(self._told) < MOST_TOGETHER else frozenset())
        log.warning(
            "messages that were handled when a consumer ended are handled with nothing else",
            extra={"messages": len(fingerprints)},
        )

    def _kills(self) -> KillsConsumer:
        times = self._settings.lone_attempts
        return KillsConsumer(
            f"the consumer was killed {times} times while it handled this message and nothing else"
        )

    def _is_over(self, now: float) -> bool:
        while self._left and self._batch[self._left - 1].delivery.id not in self._held:
            self._left -= 1
        if not self._left or now - self._begun_at > self._settings.max_age_s:
            return True
        first = self._inbox.first()
        return (first is None or not self.lets_in(first)) and not self._is_under_way()

    def _settled(self) -> list[str]:
        gone = (held for held in self._batch if held.delivery.id not in self._held)
        return [held.fingerprint for held in gone if held.fingerprint]
