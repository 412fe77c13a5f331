"""Deliveries that are not placed yet, in order: a part in memory, the rest in the scratch file."""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from consumer.budget import Budget
from consumer.delivery import Delivery
from consumer.errors import BrokerLost
from consumer.message import Message, Outline
from consumer.scratch import Scratch, ScratchFull

# How long to wait for the scratch thread, well below what would cost a heartbeat.
_SPILL_WAIT_S = 0.5
_LOADING = 2


@dataclass(eq=False, slots=True)
class Held:
    """A delivery that is neither acknowledged nor parked.

    Attributes
    ----------
    since : float
        When it was received.
    number : int
        How many were received before, on any channel.
    body : bytes or None
        None while it is in the scratch file, and once its tiles are placed.
    nbytes : int
        What it holds of the budget as `bodies`.
    message, outline
        What the body says, once decoded; the message itself is forgotten while an array is opened
        if it takes more memory than the body.
    placing : bool
        Whether some of its tiles are placed, and the rest waits for room.
    fingerprint : str or None
        As `consumer.lone.suspect` says.
    reopened : bool
        Whether its array was opened, or looked at anew, while it waited.
    dropped : bool
        Whether its channel was lost while it was in the inbox.
    """

    delivery: Delivery
    since: float
    number: int = 0
    body: bytes | None = None
    nbytes: int = 0
    message: Message | None = None
    outline: Outline | None = None
    sent_ms: int | None = None
    fingerprint: str | None = None
    placing: bool = False
    reopened: bool = False
    dropped: bool = False


class Inbox:
    """The deliveries to be placed.

    Parameters
    ----------
    reserve : int
        The largest message, in bytes. So much of the bodies' share is kept free: for decompressing
        one, and for those on their way to the scratch file.
    post : callable
        Runs a callable on the owning thread.
    loaded, failed : callable
        Called on the owning thread when there is a body or room for one, and when the scratch
        failed.
    """

    def __init__(
        self,
        budget: Budget,
        scratch: Scratch,
        reserve: int,
        *,
        post: Callable[[Callable[[], None]], None],
        loaded: Callable[[], None],
        failed: Callable[[str], None],
    ) -> None:
        self._budget = budget
        self._scratch = scratch
        self._reserve = reserve
        self._post = post
        self._loaded = loaded
        self._failed = failed
        self._queue: deque[Held] = deque()
        self._by_channel: Counter[int] = Counter()
        # None for one that is dropped: what the scratch file holds of it comes back all the same.
        self._spilled: deque[Held | None] = deque()
        self._loading = 0

    def _fits(self, nbytes: int) -> bool:
        """Whether a body may be in memory: one that is over every limit, to be parked, if alone."""
        free = self._budget.free_for_bodies - max(0, self._reserve - self._decoded)
        return nbytes <= free or not self._budget.held["bodies"]

    @property
    def _decoded(self) -> int:
        """Bytes of the head, decompressed, for which room is kept."""
        head = self._queue[0] if self._queue else None
        if head is None or head.message is None or not head.delivery.envelope.content_encoding:
            return 0
        return head.message.nbytes

    def __len__(self) -> int:
        return len(self._queue)

    def holds(self, channel: int) -> bool:
        """Whether something of a channel is to be placed."""
        return self._by_channel[channel] > 0

    @property
    def stuck(self) -> bool:
        """Whether the next body is in the scratch file, and there is no room for it."""
        return bool(self._queue and self._queue[0].body is None and not self._loading)

    def put(self, held: Held, body: bytes) -> None:
        """Take a delivery in.

        Raises
        ------
        BrokerLost
            Where neither memory nor scratch file takes it: the channel must be given up.
        """
        if self._spilled or not self._fits(len(body)):
            self._spill(held, body)
        else:
            self.keep(held, body)
        self._queue.append(held)
        self._by_channel[held.delivery.id.channel] += 1

    def keep(self, held: Held, body: bytes) -> None:
        """Hold a body in memory."""
        held.body = body
        self.count(held, len(body))

    def count(self, held: Held, nbytes: int) -> None:
        """Count more bytes as held for a delivery."""
        held.nbytes += nbytes
        self._budget.take("bodies", nbytes)

    def note_decoded(self, held: Held, message: Message) -> None:
        """Take note of what a body says; decompressed, it takes memory of its own."""
        held.message, held.outline = message, message.outline
        held.sent_ms = message.entry.sent_ms
        if held.delivery.envelope.content_encoding:
            self.count(held, message.nbytes)

    def forget_decoded(self, held: Held) -> None:
        """Let go of a decompressed body, to be decoded again."""
        if held.message is not None and held.delivery.envelope.content_encoding:
            self.count(held, -held.message.nbytes)
            held.message = None

    def release(self, held: Held) -> None:
        """Let go of a delivery's body."""
        self._budget.give("bodies", held.nbytes)
        held.body, held.message, held.outline, held.nbytes = None, None, None, 0

    def head(self) -> Held | None:
        """Return the delivery to be placed next, if its body is in memory."""
        if self._queue and self._queue[0].body is not None:
            return self._queue[0]
        return None

    def first(self) -> Held | None:
        """Return the delivery to be placed next, wherever its body is."""
        return self._queue[0] if self._queue else None

    def suspects(self, most: int) -> list[Held]:
        """Return the suspects that come first, up to another delivery."""
        suspects = itertools.takewhile(lambda held: held.fingerprint is not None, self._queue)
        return list(itertools.islice(suspects, most))

    def pop(self) -> None:
        """Remove the head."""
        held = self._queue.popleft()
        self._by_channel[held.delivery.id.channel] -= 1

    def put_back(self, waited: Iterable[Held]) -> None:
        """Put deliveries that waited elsewhere before all others, in their order."""
        back = list(waited)
        self._queue.extendleft(reversed(back))
        self._by_channel.update(held.delivery.id.channel for held in back)

    def withdraw(self, held: Held) -> None:
        """Let go of a delivery that comes again, though a part of it may wait here for room."""
        if held in self._queue:
            self._queue.remove(held)
            self._by_channel[held.delivery.id.channel] -= 1
        self.release(held)

    def drop(self, channel: int) -> None:
        """Forget a channel's deliveries; the bodies of those in the queue are released."""
        del self._by_channel[channel]
        kept: deque[Held] = deque()
        for held in self._queue:
            if held.delivery.id.channel == channel:
                held.dropped = True
                self.release(held)
            else:
                kept.append(held)
        self._queue = kept
        self._spilled = deque(None if not held or held.dropped else held for held in self._spilled)
        if not any(self._spilled):
            self._forget_scratch()

    def _forget_scratch(self) -> None:
        self._budget.give("scratch", self._budget.held["scratch"])
        self._spilled.clear()
        self._scratch.clear()

    def load(self) -> None:
        """Have bodies read back as far as the share allows."""
        while self._spilled and self._loading < _LOADING:
            size = self._scratch.next_size
            if self._spilled[0] is None:
                self._spilled.popleft()
                self._budget.give("scratch", size)
                self._scratch.skip()
                continue
            if not self._fits(size):
                return
            held = self._spilled.popleft()
            assert held is not None
            self.count(held, size)
            self._budget.give("scratch", size)
            self._loading += 1
            self._scratch.get(partial(self._read, held))

    def _spill(self, held: Held, body: bytes) -> None:
        if not self._scratch.keeps_up(self._reserve, _SPILL_WAIT_S):
            raise BrokerLost("the scratch file does not keep up with the deliveries")
        self._budget.take("bodies", len(body))
        try:
            self._scratch.put(body, partial(self._written, len(body)))
        except ScratchFull as error:
            self._budget.give("bodies", len(body))
            if len(body) <= self._reserve:
                raise BrokerLost(f"{error}; raise TILES_SCRATCH_BYTES") from None
            # Over the limit of a message, so that no setting counts on it: to be parked.
            self.keep(held, body)
            return
        self._budget.take("scratch", len(body))
        self._spilled.append(held)

    def _written(self, nbytes: int, error: BaseException | None) -> None:
        self._post(partial(self._note_written, nbytes, error))

    def _note_written(self, nbytes: int, error: BaseException | None) -> None:
        self._budget.give("bodies", nbytes)
        if error is not None:
            self._failed(f"the scratch file cannot be written: {error}")
        else:
            self._loaded()

    def _read(self, held: Held, ended: "Future[bytes]") -> None:
        self._post(partial(self._note_read, held, ended))

    def _note_read(self, held: Held, ended: "Future[bytes]") -> None:
        self._loading -= 1
        if held.dropped:
            return
        error = ended.exception()
        if error is not None:
            self._failed(f"the scratch file cannot be read: {error}")
            return
        held.body = ended.result()
        self._loaded()
