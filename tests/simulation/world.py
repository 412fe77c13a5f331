"""A model broker and a model store around the real flow.

Everything that a process does by itself (inbox, placement, coverage, assembler, handles, flow) is
the product's; the broker, the worker threads, the disk and the clock are models that a history
drives event by event. The model checks the invariants as it goes.

First comes what the history says, then a quiet end: whatever is left is published, delivered and
written, so that everything must get done.
"""

import logging
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from zlib import crc32

import numpy as np
import numpy.typing as npt
from choices import Choices, Event, History, Number
from plan import PLACE_BITS, Letter, Plan, PlannedArray, places, plan_of

from consumer import flow
from consumer.arena import Arena
from consumer.assembler import Assembler
from consumer.blocks import ArrayKey, Block, DeliveryId, StoredArray, Write
from consumer.broker import Delivery
from consumer.budget import BODY_SHARE
from consumer.coverage import Box, Coverage
from consumer.encoder import touched_files
from consumer.errors import ConsumerError, Fenced, ParkError, StopError, StorageFault, StoreRemoved
from consumer.flow import Flow
from consumer.inbox import Held
from consumer.intake import Intake
from consumer.journal import Begun, together
from consumer.lone import suspect
from consumer.message import Message
from consumer.metrics import Metrics
from consumer.placement import Layout
from consumer.requests import Opened, Written
from consumer.scratch import Stored

UNTOUCHED = 0xFFFFFFFF
# What stands in memory that nobody has written yet.
_GARBAGE = 0xDEADBEEF
_LATER = 2000
_ARENA_BYTES = 64 << 20
# In the quiet end: how often time moves while nothing else does before the process is restarted.
_PATIENCE = 60
_ENDLESS = 5_000
_FAULTS = ("fail", "hang", "lose", "crash")
_HANGS_S = (20.0, 150.0, 2_000.0, float("inf"))


class Violation(AssertionError):
    """An invariant does not hold; `kind` is the same for all histories that break it so."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class Died(BaseException):
    """The process is gone, amid whatever it did."""


@dataclass(eq=False, slots=True)
class Post:
    """A message in the broker's hands: how often it was delivered, and when it was last."""

    letter: Letter
    count: int = 0
    since: float = 0.0


@dataclass(eq=False, slots=True)
class ModelArray:
    """An array of the model store.

    Attributes
    ----------
    wanted : ndarray
        By tile and place: what the tile puts there, or 0. The first and the last row say what was
        there before; in the last, 0 where a tile that was published goes.
    """

    key: ArrayKey
    layout: Layout
    stored: npt.NDArray[np.uint32]
    wanted: npt.NDArray[np.uint32]

    def publish(self, letter: Letter) -> None:
        """Take note of what a message's tiles put where."""
        self.wanted[letter.values >> PLACE_BITS, letter.places] = letter.values
        self.wanted[-1, letter.places] = 0

    def wrong(self, at: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Return the places that hold neither what a tile put there nor, rightly, what they did."""
        found = self.stored.reshape(-1)[at]
        tile = np.minimum(found >> PLACE_BITS, len(self.wanted) - 1)
        differs: npt.NDArray[np.bool_] = self.wanted[tile, at] != found
        return at[differs]


@dataclass(eq=False, slots=True)
class Job:
    """Work in a model worker: writing a block, or else opening an array."""

    array: ModelArray
    write: Write | None
    done: Callable[[Any, ConsumerError | None], None]
    hangs_until: float = 0.0
    fenced: bool = False

    @property
    def label(self) -> int:
        """A number that the same work has in another history too."""
        return crc32(str(self).encode())

    @property
    def files(self) -> list[Box]:
        """The files to be written, as boxes in the array."""
        assert self.write is not None
        grid = self.array.layout.grid
        if grid.file == grid.block:
            return [self.write.box]
        return touched_files(grid, self.write.box, self.write.filled)

    def commit(self, most: int | None = None) -> None:
        """Fill the buffer's holes with what is stored, then write all files, or at most so many."""
        assert self.write is not None
        write, stored = self.write, self.array.stored
        if write.merge:
            for hole in Coverage(write.filled).missing(Box.of_shape(write.box.shape)):
                write.buffer[hole.slices] = stored[write.box.slices][hole.slices]
        for box in self.files[:most]:
            stored[box.slices] = write.buffer[box.shifted(write.box.start).slices]

    def __str__(self) -> str:
        if self.write is None:
            return f"opening {self.array.key.path}"
        return f"writing {self.array.key.path} {self.write.key.block}"


class World:
    """One history: `run` it, then it has either ended well or raised an error."""

    root_writable = True

    def __init__(self, history: History) -> None:
        self.plan = plan_of(history.seed)
        self._seed = history.seed
        self._tiles = history.tiles
        letters = self.plan.cut(history.tiles)
        self._sends = self.plan.sends if history.sends is None else history.sends
        given = [letters[number] for number in self._sends]
        self.unsent = deque(letter for letter in given if letter is not None)
        self.sent: list[Letter] = []
        self.choices = Choices(history.seed, history.events)
        self.number = Number(0)
        self.now = 1000.0
        self.arrays = {x.key: array for x, array in _model_arrays(self.plan)}
        self.queue: deque[Post] = deque()
        self.unacked: dict[DeliveryId, Post] = {}
        self.suspects: dict[DeliveryId, str | None] = {}
        self.jobs: list[Job] = []
        # The epoch of each store that is taken, and those in which may be committed.
        self.taken: dict[str, str] = {}
        self.allowed: set[str] = set()
        # What is handled alone, or was when a process ended; and what the writer is asked for it.
        self.journal: dict[str, Sequence[str]] = {}
        self.asked_alone: deque[Callable[[], None]] = deque()
        self.cut_short: set[str] = set()
        self.alone: set[str] | None = None
        self.quiet_at = self.now
        self.posted: deque[Callable[[], None]] = deque()
        self.channel = self._tag = self._fuse = self._epoch = self._entry = 0
        self.faults: list[str] = []
        self.log: list[str] = []
        self._events: dict[str, Callable[[], None]] = {
            "publish": self._publish,
            "deliver": self._deliver,
            "finish": self._finish,
            "tick": self._tick,
            "fail": self._fail,
            "hang": self._hang,
            "lose": self._lose,
            "crash": self._crash,
        }
        self.flow = self._new_flow()

    @property
    def history(self) -> History:
        """The history so far, to be played back."""
        tiles = self._tiles
        if tiles is None:
            tiles = tuple(tile.number for each in self.plan.letters for tile in each.tiles)
        return History(self._seed, self._sends, tiles, tuple(self.choices.taken))

    # -- the history ----------------------------------------------------------------------------

    def run(self) -> None:
        """Run the history to its end."""
        # The waits between attempts are drawn from it.
        random.seed(self._seed)
        logged = logging.root.manager.disable
        logging.disable()
        try:
            while (event := self.choices.next(self._likely())) is not None:
                self._do(event)
            self.log.append("-- from here on nothing more goes wrong")
            self._end_quietly()
            self._check_end()
        finally:
            logging.disable(logged)

    def _likely(self) -> dict[str, float]:
        plan = self.plan
        missing = plan.faults > len(self.faults)
        if not self.unsent and not missing:
            return {}
        likely = {"tick": plan.time_pace, "publish": 4.0 if self.unsent else 0.5}
        if self.queue and len(self.unacked) < plan.settings.prefetch_count:
            likely["deliver"] = 8.0
        if self.jobs or self.asked_alone:
            likely["finish"] = plan.workers_pace
        if missing and (self.unacked or self.jobs):
            likely |= dict.fromkeys(_FAULTS, 0.25)
        return likely

    def _do(self, event: Event) -> None:
        self.number = Number(event.number)
        try:
            self._events[event.name]()
            while self.posted:
                self.posted.popleft()()
        except Died:
            self._note_fault("crash")
            self._start_anew()
        if not self.jobs:
            self.quiet_at = self.now
        self._check_budget()

    def _end_quietly(self) -> None:
        quiet = Event("tick", 2)
        waited = 0
        for _ in range(_ENDLESS):
            if self.unsent:
                self._do(Event("publish", 0))
            elif self.queue and len(self.unacked) < self.plan.settings.prefetch_count:
                self._do(Event("deliver", 0))
            elif self._at_work() or self.asked_alone:
                self._do(Event("finish", 0))
            elif self.unacked or self.jobs:
                self._do(quiet)
                waited += 1
                if waited > _PATIENCE:
                    self.log.append("the process is restarted")
                    self._start_anew()
                    waited = 0
            else:
                return
        raise Violation("stuck", f"{len(self.queue)} queued, {len(self.unacked)} unacknowledged")

    def _publish(self) -> None:
        """Publish the next message, or one of them again."""
        if self.unsent:
            letter = self.unsent.popleft()
            self.arrays[letter.array.key].publish(letter)
            self.sent.append(letter)
        elif self.sent:
            letter = self.sent[self.number.below(len(self.sent))]
        else:
            return
        self.log.append(f"publish {letter.number}")
        self.queue.append(Post(letter))

    def _deliver(self) -> None:
        if not self.queue or len(self.unacked) >= self.plan.settings.prefetch_count:
            return
        post = self.queue.popleft()
        letter = post.letter
        post.since = self.now
        self._tag += 1
        identity = DeliveryId(self.channel, self._tag)
        self.unacked[identity] = post
        self.log.append(f"deliver {letter.number}, {_times(post.count)}")
        properties = SimpleNamespace(message_id=None, app_id=None, meant=letter.message)
        delivery = Delivery(identity, letter.envelope, properties, post.count)
        self.suspects[identity] = suspect(delivery, letter.body)
        self.flow.deliver(delivery, letter.body)

    def _at_work(self) -> list[Job]:
        return [job for job in self.jobs if job.hangs_until <= self.now and self._may_end(job)]

    def _may_end(self, job: Job) -> bool:
        return job.write is None or job.fenced or job.array.key.store in self.allowed

    def _one_of(self, jobs: list[Job]) -> Job:
        return jobs[self.number.order([job.label for job in jobs])[0]]

    def _finish(self) -> None:
        ready = self._at_work()
        if self.asked_alone and not (ready and self.number.below(2)):
            self.asked_alone.popleft()()
            return
        if not ready:
            return
        job = self._one_of(ready)
        self.jobs.remove(job)
        if job.write is None:
            self.log.append(f"done: {job}")
            job.done(Opened(StoredArray(job.array.key, job.array.layout), self._take(job)), None)
            return
        if job.fenced:
            job.done(None, Fenced("the store was given up"))
            return
        job.commit()
        self.log.append(f"done: {job}")
        job.done(Written(0, 0, 0.0), None)

    def _take(self, job: Job) -> str | None:
        """Take the store of an array to be opened, where it is not; return the new epoch."""
        store = job.array.key.store
        if store in self.taken:
            return None
        self._epoch += 1
        self.taken[store] = str(self._epoch)
        return self.taken[store]

    def _tick(self) -> None:
        step = (0.1, 1.0, 10.0, 60.0)[self.number.below(4)]
        self.now += step
        self.log.append(f"{step} s go by")
        self.flow.tick()
        self._check_age()

    # -- faults ---------------------------------------------------------------------------------

    def _fail(self) -> None:
        """Have a job fail: a write after none or some of its files, or before it has read."""
        if not self.jobs:
            return
        removed = self.number.below(4) == 1
        reads = self.number.below(2) == 0
        job = self._one_of(self.jobs)
        self.jobs.remove(job)
        if job.write is None:
            fault = "open"
        elif job.write.merge and reads:
            fault = "read"
        else:
            fault = "write"
            job.commit(self.number.below(len(job.files) + 1))
        self._note_fault(f"{fault} fails", str(job))
        job.done(None, StoreRemoved("for a moment") if removed else StorageFault("no space"))

    def _hang(self) -> None:
        """Have a write hang for a while, or until the process ends."""
        writes = [job for job in self.jobs if job.write is not None and not job.hangs_until]
        if writes:
            hang = _HANGS_S[self.number.below(len(_HANGS_S))]
            job = self._one_of(writes)
            job.hangs_until = self.now + hang
            self._note_fault("write hangs", f"{job}, for {hang} s")

    def _lose(self) -> None:
        if self.unacked:
            self._note_fault("channel lost")
            self._requeue_all()
            self.flow.channel_lost()

    def _crash(self) -> None:
        """Have the process die, now or amid what it does at one of its next calls."""
        if not self.unacked and not self.jobs:
            return
        self._fuse = self.number.below(6)
        if not self._fuse:
            raise Died

    def _note_fault(self, fault: str, detail: str = "") -> None:
        self.faults.append(fault)
        self.log.append(f"fault: {fault} {detail}".rstrip())

    def _start_anew(self) -> None:
        # A write that had begun may have reached the disk, wholly or in part, or not.
        for job in self.jobs:
            if job.write is not None:
                job.commit(self.number.below(len(job.files) + 1))
        self.jobs.clear()
        self.asked_alone.clear()
        self.cut_short = set(self.journal)
        if self.alone is not None:
            self.log.append("what was handled alone is cut short")
        self.alone = None
        self.taken.clear()
        self.allowed.clear()
        self.posted.clear()
        self._fuse = 0
        self._requeue_all()
        self.flow = self._new_flow()

    def _requeue_all(self) -> None:
        last = self.number.below(2)
        posts = list(self.unacked.values())
        for post in posts:
            post.count += 1
        again = [posts[i] for i in self.number.order([post.letter.number for post in posts])]
        if last:
            self.queue.extend(again)
        else:
            self.queue.extendleft(reversed(again))
        self.unacked.clear()
        self.channel += 1

    def _call(self) -> None:
        """Note that the flow calls for something outside; it may be the last that it does."""
        if self._fuse:
            self._fuse -= 1
            if not self._fuse:
                raise Died

    # -- the broker, as the flow sees it --------------------------------------------------------

    def acknowledge(self, identity: DeliveryId) -> bool:
        """Acknowledge: the model checks that the message's tiles are durable."""
        self._call()
        post = self.unacked.pop(identity, None)
        if post is None:
            return False
        letter = post.letter
        self.log.append(f"acknowledge {letter.number}")
        if self.arrays[letter.array.key].wrong(letter.places).size:
            raise Violation("acknowledged but not durable", f"message {letter.number}")
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

    def round_trip(self, done: Callable[[bool], None]) -> None:
        """Answer, unless the channel is lost before."""
        self._call()
        asked_on = self.channel
        self.posted.append(lambda: done(asked_on == self.channel))

    def announce(self, _event: object, done: Callable[[bool], None]) -> None:
        """Publish an event."""
        self._call()
        self.posted.append(lambda: done(True))

    def reset(self, reason: str, *, hold: Callable[[], bool]) -> None:
        """Give up the channel."""
        self.log.append(f"the consumer gives everything back: {reason}")
        self._requeue_all()

    # -- the workers, as the flow sees them -----------------------------------------------------

    def open(self, outline: Any, max_block_bytes: int, done: Callable[..., None]) -> None:
        """Open an array of the model store, later."""
        self._call()
        array = self.arrays[ArrayKey(outline.entry.store, outline.entry.array)]
        self.jobs.append(Job(array, None, done))

    def write(self, write: Write, done: Callable[..., None], **_bound: str | None) -> None:
        """Write a block of the model store, later."""
        self._call()
        if any(job.write is not None and job.write.key == write.key for job in self.jobs):
            raise Violation("two writes of a block at once", f"{write.key}")
        written_for = {self.suspects[identity] for identity in write.deliveries}
        if self.alone is not None and not written_for <= self.alone:
            raise Violation("not alone", f"{write.key} is written for others too")
        job = Job(self.arrays[write.key.array], write, done)
        self.log.append(f"begin {job}, {write.reason}{', merged' * write.merge}")
        self.jobs.append(job)

    def remark(self, _array: ArrayKey, done: Callable[..., None], **_said: object) -> None:
        """Put something down in a ledger, later."""
        self.posted.append(lambda: done(Written(0, 0, 0.0), None))

    def close_array(self, array: ArrayKey) -> None:
        """Give up the store, whatever else is open of it: it is to be taken again."""
        self.taken.pop(array.store, None)
        self.allowed.discard(array.store)
        for job in self.jobs:
            job.fenced |= job.write is not None and job.array.key.store == array.store

    def allow(self, store: str, epoch: str) -> None:
        """Let writes to a store end, where the epoch is not over."""
        if self.taken.get(store) == epoch:
            self.allowed.add(store)

    def begin_lone(self, fingerprints: Sequence[str], done: Callable[..., None]) -> None:
        """Note what is handled alone, later, unless that fails."""
        self._call()
        if self.jobs and self.now - self.quiet_at <= self.plan.settings.max_age_s:
            raise Violation("not alone", "something else is under way")
        waited_for_all = not self.jobs
        fails = self.number.below(8) == 1

        def begin() -> None:
            if fails:
                done(None, StorageFault("the journal cannot be written"))
                return
            attempts = self.plan.settings.lone_attempts
            count = together(fingerprints, self.journal.values(), attempts)
            self.log.append(f"{count} are handled alone")
            self._entry += 1
            self.journal[str(self._entry)] = fingerprints[:count]
            self.alone = set(fingerprints[:count]) if waited_for_all else None
            done(Begun(count, str(self._entry), False), None)

        self.asked_alone.append(begin)

    def end_lone(self, entry: str, settled: Sequence[str]) -> None:
        """Note that it has ended in order."""
        self._call()
        self.journal.pop(entry, None)
        for name, each in list(self.journal.items()):
            if len(each) == 1 and each[0] in settled:
                del self.journal[name]
        self.alone = None

    # -- the process ----------------------------------------------------------------------------

    def _new_flow(self) -> Flow:
        intake = Intake if self.plan.real_bodies else _ModelIntake
        model: Any = self  # broker and writer in one
        scratch: Any = _ModelScratch()
        with patch.multiple(flow, Assembler=_ModelAssembler, Intake=intake):
            self.flow = Flow(
                self.plan.settings,
                model,
                model,
                _arena(),
                scratch,
                _metrics(self.plan.real_bodies),
                post=self.posted.append,
                stop=_stopped,
                clock=lambda: self.now,
            )
        return self.flow

    # -- what must hold -------------------------------------------------------------------------

    def _check_budget(self) -> None:
        budget = self.flow.budget
        held, for_bodies = budget.held, budget.limit // BODY_SHARE
        if held["bodies"] > for_bodies or sum(held.values()) - held["scratch"] > budget.limit:
            raise Violation("over the budget", f"{held}, limit {budget.limit}")

    def _check_age(self) -> None:
        oldest = next(iter(self.unacked.values()), None)
        limit = self.plan.settings.consumer_timeout_s / 2
        if oldest is not None and self.now - oldest.since > limit:
            raise Violation("held too long", f"message {oldest.letter.number}")

    def _check_end(self) -> None:
        for array in self.arrays.values():
            shape = array.layout.shape
            wrong = array.wrong(places(shape).reshape(-1))
            if wrong.size:
                outside = array.wanted[-1, wrong].any()
                first = tuple(map(int, np.unravel_index(wrong[0], shape)))
                raise Violation(
                    "changed outside every crop" if outside else "not what a tile put there",
                    f"{wrong.size} voxels of {array.key.path}, the first at {first}",
                )
        if not self.journal.keys() <= self.cut_short:
            raise Violation("counted as cut short", "though it was not")
        held = self.flow.budget.held
        if held["bodies"] or held["blocks"] or held["encoding"] or self.flow.assembler.open_blocks:
            raise Violation("held at the end", f"{held}")


class _ModelIntake(Intake):
    """Is told what a body says."""

    def _decoded(self, held: Held) -> Message:
        message: Message = held.delivery.properties.meant
        self._inbox.note_decoded(held, message)
        return message


class _ModelAssembler(Assembler):
    """An assembler whose new buffers hold garbage that is always the same."""

    def _with_buffer(self, *arguments: Any) -> Block | None:
        block = super()._with_buffer(*arguments)
        if block is not None and not block.filled.voxels and not block.whole_base:
            assert block.buffer is not None
            block.buffer.fill(_GARBAGE)
        return block


class _ModelScratch:
    """A scratch file that never fails; what is read comes back at once, posted."""

    def __init__(self) -> None:
        self._bodies: deque[bytes] = deque()

    def keeps_up(self, _window: int, _timeout: float) -> bool:
        return True

    def put(self, body: bytes, done: Callable[..., None]) -> Stored:
        self._bodies.append(body)
        done(None)
        return Stored(0, len(body))

    @property
    def next_size(self) -> int:
        return len(self._bodies[0])

    def get(self, done: Callable[[Any], None]) -> None:
        body = self._bodies.popleft()
        done(SimpleNamespace(exception=lambda: None, result=lambda: body))

    def clear(self) -> None:
        self._bodies.clear()


class _NoMetrics:
    """Takes the place of every metric, label and value."""

    def __getattr__(self, name: str) -> "_NoMetrics":
        setattr(self, name, self)
        return self

    def __call__(self, *_arguments: object, **_labels: object) -> "_NoMetrics":
        return self


@cache
def _arena() -> Arena:
    return Arena(_ARENA_BYTES)


@cache
def _metrics(real: bool) -> Any:
    return Metrics() if real else _NoMetrics()


def _model_arrays(plan: Plan) -> Iterator[tuple[PlannedArray, ModelArray]]:
    tiles = max(tile.number for letter in plan.letters for tile in letter.tiles)
    for planned in plan.arrays:
        shape = planned.layout.shape
        stored = np.full(shape, UNTOUCHED, np.uint32)
        wanted = np.zeros((tiles + 2, stored.size), np.uint32)
        wanted[0] = wanted[-1] = UNTOUCHED
        yield planned, ModelArray(planned.key, planned.layout, stored, wanted)


def _times(count: int) -> str:
    return "again" if count else "for the first time"


def _stopped(error: StopError) -> None:
    raise Violation("stopped", str(error))
