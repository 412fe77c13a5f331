"""One process of a history: the real flow and writer, and models of the broker's and disk's sides.

What happens to it, and when, is the history's.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any, Protocol

from choices import Number
from model_broker import Channel, Queue
from model_flow import ModelScratch, arena, metrics, model_flow
from model_journal import JournalFolder
from model_store import ModelArray, ModelStore
from model_writer import ModelWriter
from plan import Plan
from violation import Violation

from consumer.blocks import ArrayKey, BlockKey, DeliveryId, Write
from consumer.delivery import Delivery
from consumer.errors import ConsumerError, ParkError, StopError
from consumer.events import ArrayCompleted, Event
from consumer.journal import Begun
from consumer.lone import suspect
from consumer.message import Outline
from consumer.requests import (
    Allow,
    Answer,
    BeginLone,
    Close,
    Done,
    EndLone,
    Open,
    Opened,
    Remark,
    Request,
    WriteBlock,
    Written,
)
from consumer.settings import Settings

# What is kept of what came on a channel that the owner knows to be lost.
OF_A_LOST_CHANNEL = "of a lost channel"


class Died(BaseException):
    """The process is gone, amid whatever it did."""


class Surroundings(Protocol):
    """What all processes of a history have in common; `number` is the event's that happens."""

    plan: Plan
    settings: Settings
    queue: Queue
    stores: dict[str, ModelStore]
    arrays: dict[ArrayKey, ModelArray]
    journal: JournalFolder
    moments: "count[int]"
    number: Number
    now: float
    log: list[str]


class Owner:
    """A process, restarted where it dies.

    Attributes
    ----------
    paused : bool
        Whether it does nothing; its writer may go on.
    posted : deque
        What waits to be run on its owning thread.
    """

    root_writable = True

    def __init__(self, around: Surroundings, name: str) -> None:
        self.name = name
        self.channel = Channel(0)
        self._around = around
        self.start()

    def start(self) -> None:
        """Start the process, with nothing known."""
        around = self._around
        self.paused = self._giving_up = False
        self.fuse = 0
        self.posted: deque[Callable[[], None]] = deque()
        self._announcing: list[tuple[Event, Callable[[bool], None]]] = []
        self._writing: set[BlockKey] = set()
        self._opening = 0
        self._quiet_at = around.now
        # What may have killed a process, by delivery; and what is handled alone.
        self._suspects: dict[DeliveryId, str | None] = {}
        self._alone: set[str] | None = None
        self._waiting: dict[int, Done[Any]] = {}
        self._numbers = count()
        self.writer = ModelWriter(
            self.name,
            around.stores,
            around.arrays,
            around.journal,
            around.settings.lone_attempts,
            arena()._memory,
            around.moments,
            lambda: None if self.channel.linked else self.channel.number,
            partial(_answer, self.posted, self._waiting),
        )
        self.flow = model_flow(
            around.settings,
            self,
            self,  # it is broker and writer in one
            arena(),
            ModelScratch(),
            metrics(around.plan.real_bodies),
            post=self.posted.append,
            stop=_stopped,
            clock=lambda: around.now,
            real_bodies=around.plan.real_bodies,
        )

    def says(self, line: str) -> None:
        """Add a line to the history's log."""
        self._around.log.append(f"{self.name}{line}")

    def run_posted(self) -> None:
        """Run what waits on the owning thread."""
        while self.posted and not self.paused:
            self.posted.popleft()()

    def deliver(self) -> None:
        """Take the queue's first message."""
        around = self._around
        identity, post = around.queue.deliver(self.channel, around.now, next(around.moments))
        letter = post.letter
        self.says(f"deliver {letter.number}, {_times(post.count)}")
        properties = SimpleNamespace(message_id=None, app_id=None, meant=letter.message)
        delivery = Delivery(identity, letter.envelope, properties, post.count)
        self._suspects[identity] = suspect(delivery, letter.body)
        self.flow.deliver(delivery, letter.body)

    @property
    def hears(self) -> bool:
        """Whether the broker has something to answer or to confirm."""
        return bool(self._announcing or (self.channel.asked and self.channel.linked))

    def hear(self) -> None:
        """Hear one answer of the broker."""
        asked = self.channel.asked if self.channel.linked else ()
        chosen = self._around.number.below(len(self._announcing) + bool(asked))
        if asked and not chosen:
            self.channel.asked.popleft()(True)
            return
        event, done = self._announcing.pop(chosen - bool(asked))
        if isinstance(event, ArrayCompleted):
            self.says(f"it is announced that {event.array} is complete")
            array = self._around.arrays[ArrayKey(event.store, event.array)]
            array.announced += 1
            if not array.is_durable():
                raise Violation("announced but not complete", event.array)
        done(True)

    def lose_channel(self) -> None:
        """Lose the channel, and notice that."""
        old = self._new_channel()
        for done in old.asked:
            done(False)
        self.flow.channel_lost(old.number)

    def end(self) -> None:
        """Lose the channel with the process."""
        if self._alone is not None:
            self.says("what was handled alone is cut short")
        self._new_channel()

    def _new_channel(self) -> Channel:
        old = self.channel
        self._around.queue.requeue(old, self._around.number)
        self.channel = Channel(old.number + 1)
        self._giving_up = False
        return old

    def _call(self) -> None:
        """Note that the flow calls for something outside; it may be the last that it does."""
        if self.fuse:
            self.fuse -= 1
            if not self.fuse:
                raise Died

    # -- the broker, as the flow sees it --------------------------------------------------------

    def acknowledge(self, identity: DeliveryId) -> bool:
        """Acknowledge: the model checks that the message's tiles are durable."""
        self._call()
        post = self.channel.unacked.pop(identity, None)
        if post is None:
            raise Violation(OF_A_LOST_CHANNEL, f"{identity} is acknowledged")
        if self.channel.linked:
            self.says(f"acknowledge {post.letter.number}")
            self._around.arrays[post.letter.array.key].acknowledge(post.letter, post.moment)
        self._call()
        return True

    def requeue(self, identity: DeliveryId) -> None:
        """Deliver again."""
        raise Violation("requeued", f"{identity}, though its block can be written")

    def park(
        self, delivery: Delivery, body: bytes, error: ParkError, done: Callable[[bool], None]
    ) -> None:
        """Park; here every message is good."""
        raise Violation("parked", str(error))

    def announce(self, event: Event, done: Callable[[bool], None]) -> None:
        """Publish an event; it is confirmed later."""
        self._call()
        self._announcing.append((event, done))

    def round_trip(self, channel: int, done: Callable[[bool], None]) -> None:
        """Ask; it is answered later, or once the channel is lost."""
        self._call()
        if self._giving_up or channel != self.channel.number:
            self.posted.append(partial(done, False))
        else:
            self.channel.asked.append(done)

    def reset(self, channel: int, reason: str, *, hold: Callable[[], bool]) -> None:
        """Give up the channel."""
        if channel != self.channel.number:
            return
        self.says(f"the consumer gives everything back: {reason}")
        self._around.queue.requeue(self.channel, self._around.number)
        self.channel.unacked.clear()
        if not self._giving_up:
            self._giving_up = True
            self.posted.append(self.lose_channel)

    # -- the writer process, as the flow sees it ------------------------------------------------

    def open(
        self, outline: Outline, max_block_bytes: int, done: Done[Any], *, renew: bool = False
    ) -> None:
        """Open an array."""
        self._call()
        self._opening += 1
        self._ask(Open(outline, max_block_bytes, renew), partial(self._opened, done))

    def _opened(
        self, done: Done[Opened], opened: Opened | None, error: ConsumerError | None
    ) -> None:
        self._opening -= 1
        done(opened, error)

    def allow(self, store: str, epoch: str) -> None:
        """Let be committed what is written to a store in an epoch."""
        self._ask(Allow(store, epoch), _ignored)

    def write(
        self,
        write: Write,
        done: Done[Written],
        *,
        source: str | None = None,
        run: str | None = None,
    ) -> None:
        """Write a block."""
        self._call()
        if write.key in self._writing:
            raise Violation("two writes of a block at once", f"{write.key}")
        self._writing.add(write.key)
        if not write.deliveries <= self.channel.unacked.keys():
            raise Violation(OF_A_LOST_CHANNEL, f"{write.key} is written for it")
        written_for = {self._suspects[identity] for identity in write.deliveries}
        if self._alone is not None and not written_for <= self._alone:
            raise Violation("not alone", f"{write.key} is written for others too")
        merged = ", merged" * write.merge
        self.says(f"write {write.key.array.path} {write.key.block}, {write.reason}{merged}")
        request = WriteBlock(
            write.key.array,
            write.box,
            arena().offset(write.buffer),
            write.buffer.dtype,
            tuple(write.filled),
            write.merge,
            write.key.block,
            write.tiles,
            source,
            run,
        )
        self._ask(request, partial(self._wrote, write, done))

    def _wrote(
        self,
        write: Write,
        done: Done[Written],
        written: Written | None,
        error: ConsumerError | None,
    ) -> None:
        self._writing.remove(write.key)
        ended = f"fails: {error}" if error else "is done"
        self.says(f"writing {write.key.array.path} {write.key.block} {ended}")
        done(written, error)

    def remark(
        self, array: ArrayKey, done: Done[Written], *, announced: str | None = None, parked: int = 0
    ) -> None:
        """Put something down in a ledger."""
        self._call()
        self._ask(Remark(array, announced, parked), done)

    def close_array(self, array: ArrayKey) -> None:
        """Let go of an array."""
        self._ask(Close(array), _ignored)

    def begin_lone(self, fingerprints: Sequence[str], done: Done[Begun]) -> None:
        """Note what is handled alone."""
        self._call()
        waited_s = self._around.now - self._quiet_at
        if self._is_busy and waited_s <= self._around.settings.max_age_s:
            raise Violation("not alone", "something else is under way")
        begun = partial(self._begun_lone, fingerprints, not self._is_busy, done)
        self._ask(BeginLone(fingerprints), begun)

    def _begun_lone(
        self,
        fingerprints: Sequence[str],
        waited_for_all: bool,
        done: Done[Begun],
        begun: Begun | None,
        error: ConsumerError | None,
    ) -> None:
        if begun is not None:
            self.says(f"{begun.count} are handled alone")
            self._alone = set(fingerprints[: begun.count]) if waited_for_all else None
        done(begun, error)

    def end_lone(self, entry: str, settled: Sequence[str]) -> None:
        """Note that it has ended in order."""
        self._call()
        self._alone = None
        self._ask(EndLone(entry, settled), _ignored)

    def _ask(self, request: Request, done: Done[Any]) -> None:
        number = next(self._numbers)
        self._waiting[number] = done
        self.writer._do(number, request)

    # -- what must hold -------------------------------------------------------------------------

    @property
    def _is_busy(self) -> bool:
        """Whether the writer was asked for something that may kill."""
        return bool(self._writing or self._opening)

    def note_quiet(self) -> None:
        """Take note of whether nothing is under way."""
        if not self._is_busy:
            self._quiet_at = self._around.now

    def check_budget(self) -> None:
        """Check that each share holds what it is for; the ledgers' limit the model leaves out."""
        budget = self.flow.budget
        held = budget.held
        left = budget.limit - (sum(held.values()) - held["scratch"] - held["ledgers"])
        shares = budget.free_for_bodies, budget.free_for_blocks, budget.free_for_coverage
        if min(left, *shares) < 0:
            raise Violation("over the budget", f"{held}, limit {budget.limit}")

    def check_age(self) -> None:
        """Check that the broker will not take deliveries away."""
        oldest = next(iter(self.channel.unacked.values()), None)
        limit = self._around.settings.consumer_timeout_s / 2
        if oldest and self.channel.linked and self._around.now - oldest.since > limit:
            raise Violation("held too long", f"message {oldest.letter.number}")

    def check_end(self) -> None:
        """Check that nothing is held any more."""
        if self.writer.journal.left:
            raise Violation("counted as cut short", "though it was not")
        if len(self.flow._held):
            raise Violation(OF_A_LOST_CHANNEL, "it counts as held at the end")
        held = self.flow.budget.held
        if held["bodies"] or held["blocks"] or held["encoding"] or not self.flow.drained:
            raise Violation("held at the end", f"{held}")


def _answer(
    posted: deque[Callable[[], None]], waiting: dict[int, Done[Any]], answer: Answer
) -> None:
    posted.append(partial(waiting.pop(answer.number), answer.result, answer.error))


def _times(count: int) -> str:
    return "again" if count else "for the first time"


def _ignored(_result: object, _error: ConsumerError | None) -> None:
    pass


def _stopped(error: StopError) -> None:
    raise Violation("stopped", str(error))
