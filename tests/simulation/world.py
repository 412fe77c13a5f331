"""A history: owners of one queue and some stores, events that happen to them, and a quiet end.

Everything that a process does by itself (inbox, placement, coverage, assembler, handles, flow,
announcements, ledgers, the writer's order of things) is the product's; the broker, the worker
threads, the disk and the clock are models that a history drives event by event. The models check
the invariants as it goes.

First comes what the history says, then a quiet end: whatever is left is published, delivered and
written, so that everything must get done.
"""

import logging
import random
from collections import deque
from collections.abc import Callable
from itertools import count

import numpy as np
from choices import Choices, Event, History, Number
from model_broker import Queue
from model_journal import JournalFolder
from model_store import ModelStore, ledgers_as_objects, model_arrays
from model_writer import Job, ModelWriter
from owner import Died, Owner
from plan import Letter, places, plan_of
from violation import Violation

from consumer.errors import StorageFault, StoreRemoved

# In the quiet end: how often time moves while nothing else does before processes are restarted.
_PATIENCE = 60
_ENDLESS = 5_000
_ORDINARY = ("publish", "deliver", "finish", "finish_all", "hear", "tick", "notice")
_FAULTS = dict.fromkeys(("fail", "hang", "lose", "crash"), 0.25)
_FAULTS_OF_TWO = _FAULTS | {"hand": 1.0, "part": 0.5}
_HANGS_S = (20.0, 150.0, 2_000.0, float("inf"))
# What may be done in part when a process dies.
_PARTLY_DONE = {"write", "journal"}
_STEPS = (0, 1, 1, 1, 2, 2, 3, 4)


class World:
    """One history: `run` it, then it has either ended well or raised an error."""

    def __init__(self, history: History) -> None:
        self.plan = plan_of(history.seed)
        self._seed = history.seed
        self.settings = self.plan.settings
        self._tiles = history.tiles
        letters = self.plan.cut(history.tiles)
        self._sends = self.plan.sends if history.sends is None else history.sends
        given = [letters[number] for number in self._sends]
        self.unsent = deque(letter for letter in given if letter is not None)
        self.sent: list[Letter] = []
        self.choices = Choices(history.seed, history.events)
        self.number = Number(0)
        self.now = 1000.0
        self.moments = count(1)
        self.arrays = {array.key: array for array in model_arrays(self.plan)}
        self.stores = {key.store: ModelStore(key.store) for key in self.arrays}
        self.queue = Queue()
        self.journal = JournalFolder()
        self.faults: list[str] = []
        self.log: list[str] = []
        self._events: dict[str, Callable[[], None]] = {
            name: getattr(self, f"_{name}") for name in (*_ORDINARY, *_FAULTS_OF_TWO)
        }
        self.owners = [Owner(self, name) for name in self.plan.owners]
        self.active = self.owners[0]
        # Writers that outlive their process for a while.
        self._outliving: list[ModelWriter] = []

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
            with ledgers_as_objects(not self.plan.real_bodies):
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
        if self._may_deliver():
            likely["deliver"] = 8.0
        jobs = self._jobs()
        if jobs:
            likely["finish"] = plan.workers_pace
        if any(owner.hears for owner in self.owners):
            likely["hear"] = plan.broker_pace
        two = len(self.owners) > 1
        if two and not all(owner.channel.linked for owner in self.owners):
            likely["notice"] = 0.3
        if self._is_fault_due() and (jobs or self._holding()):
            likely |= _FAULTS_OF_TWO if two else _FAULTS
        return likely

    def _is_fault_due(self) -> bool:
        """Whether there may be a fault: early on, or spread over the messages' sending."""
        due = self.plan.faults - len(self.faults)
        if self.plan.faults_are_spread:
            due -= self.plan.faults * len(self.unsent) // len(self._sends)
        return due > 0

    def _do(self, event: Event) -> None:
        self.number = Number(event.number)
        self._events[event.name]()

    def _have(self, owner: Owner, action: Callable[[], object]) -> None:
        """Have a process do something, and all that comes of it."""
        try:
            action()
            owner.run_posted()
            owner.check_budget()
            owner.note_quiet()
        except Died:
            self._note_fault(owner, "crash")
            self._start_anew(owner)

    def _end_quietly(self) -> None:
        quiet = Event("tick", 2)
        waited = 0
        self._outliving.clear()
        if self.plan.ends_wider:
            wide = {"prefetch_count": len(self._sends) + len(self.sent)}
            self.settings = self.plan.settings.model_copy(update=wide)
            self._restart()
        for _ in range(_ENDLESS):
            event = self._quiet_event()
            if event is None:
                return
            self._do(event)
            waited += event == quiet
            if waited > _PATIENCE:
                self._restart()
                waited = 0
        held = sum(len(owner.channel.unacked) for owner in self.owners)
        raise Violation("stuck", f"{len(self.queue.posts)} queued, {held} unacknowledged")

    def _restart(self) -> None:
        self.log.append("all processes are restarted")
        self.number = Number(0)
        for owner in self.owners:
            self._start_anew(owner)

    def _quiet_event(self) -> Event | None:
        """Return what happens next in the quiet end."""
        if self.unsent:
            return Event("publish", 0)
        if self._may_deliver():
            return Event("deliver", 0)
        for owner in self.owners:
            if not owner.channel.linked:
                return Event("notice", 0)
            if owner.hears:
                return Event("hear", 0)
        if self._at_work():
            return Event("finish_all", 0)
        busy = self._holding() or self._jobs() or self.queue.posts
        return Event("tick", 2) if busy else None

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
        self.queue.publish(letter)

    def _may_deliver(self) -> bool:
        channel = self.active.channel
        room = len(channel.unacked) < self.settings.prefetch_count
        return room and channel.linked and bool(self.queue.posts)

    def _deliver(self) -> None:
        if self._may_deliver():
            self._have(self.active, self.active.deliver)

    def _finish(self) -> None:
        """Have a worker thread do its work, or, where others may come between, a part of it."""
        ready = self._at_work()
        if ready:
            steps = _STEPS[self.number.below(len(_STEPS))] if self._is_contended() else 0
            self._work(*self._one_of(ready), steps)

    def _finish_all(self) -> None:
        for writer, job in self._at_work():
            if job in writer.jobs:
                self._work(writer, job)

    def _hear(self) -> None:
        hearing = [owner for owner in self.owners if owner.hears and not owner.paused]
        if hearing:
            owner = hearing[self.number.below(len(hearing))]
            self._have(owner, owner.hear)

    def _tick(self) -> None:
        step = (0.1, 1.0, 10.0, 60.0)[self.number.below(4)]
        self.now += step
        self.log.append(f"{step} s go by")
        for owner in self.owners:
            if not owner.paused:
                self._have(owner, owner.flow.tick)
                owner.check_age()

    # -- worker threads -------------------------------------------------------------------------

    def _jobs(self) -> list[tuple[ModelWriter, Job]]:
        """Return what worker threads have to do, of all writers that are not stalled."""
        writers = [*(owner.writer for owner in self.owners), *self._outliving]
        return [(x, job) for x in writers if not x.stalled for job in x.jobs]

    def _at_work(self) -> list[tuple[ModelWriter, Job]]:
        now = self.now
        return [each for each in self._jobs() if each[1].hangs_until <= now]

    def _is_contended(self) -> bool:
        return len(self.owners) > 1 or bool(self._outliving)

    def _one_of(self, jobs: list[tuple[ModelWriter, Job]]) -> tuple[ModelWriter, Job]:
        return self.number.first(jobs, lambda each: each[1].label)

    def _work(self, writer: ModelWriter, job: Job, steps: int = 0) -> None:
        writer.advance(job, steps)
        self.log.append(f"{job.name}{job.outcome}")
        self._after(writer)

    def _after(self, writer: ModelWriter) -> None:
        """Have the process of a writer take its answers."""
        for owner in self.owners:
            if owner.writer is writer:
                self._have(owner, owner.run_posted)
        if not writer.jobs and writer in self._outliving:
            self._outliving.remove(writer)

    # -- faults ---------------------------------------------------------------------------------

    def _fail(self) -> None:
        """Have work fail at one of its steps."""
        jobs = [each for each in self._jobs() if each[1].kind != "end"]
        if not jobs:
            return
        removed = self.number.below(4) == 1
        lasting = self.number.below(2) == 0
        writer, job = self._one_of(jobs)
        steps = self.number.below(job.longest)
        if steps and writer.advance(job, steps):
            self.log.append(f"{job.name}{job.outcome}")
        else:
            error = StoreRemoved("for a moment") if removed else StorageFault("no space")
            self._note_fault(writer, f"{job.kind} fails", f"{job.name} after {steps} steps")
            writer.fail(job, error, lasting)
        self._after(writer)

    def _hang(self) -> None:
        """Have a write hang for a while, or until the process ends."""
        jobs = self._jobs()
        writes = [x for x in jobs if x[1].kind in {"read", "write"} and not x[1].hangs_until]
        if writes:
            hang = _HANGS_S[self.number.below(len(_HANGS_S))]
            writer, job = self._one_of(writes)
            job.hangs_until = self.now + hang
            self._note_fault(writer, "write hangs", f"{job.name}, for {hang} s")

    def _lose(self) -> None:
        """Have an owner's channel be lost."""
        linked = [x for x in self.owners if x.channel.unacked and x.channel.linked]
        if linked:
            owner = linked[self.number.below(len(linked))]
            self._note_fault(owner, "channel lost")
            self._have(owner, owner.lose_channel)
            self._go_over(owner)

    def _crash(self) -> None:
        """Have a process die, now or amid what it does at one of its next calls."""
        going = [owner for owner in self.owners if owner.channel.unacked or owner.writer.jobs]
        if going:
            owner = going[self.number.below(len(going))]
            owner.fuse = self.number.below(6)
            if not owner.fuse:
                self._note_fault(owner, "crash")
                self._start_anew(owner)

    def _hand(self) -> None:
        """Have the queue go over to the other owner, while this one keeps its deliveries."""
        owner = self.active
        if owner.channel.unacked:
            self._go_over(owner)
            if owner is not self.active:
                self._note_fault(owner, "the queue goes over")

    def _part(self) -> None:
        """Have the broker lose an owner that does not notice: it goes on, or is paused."""
        holding = [x for x in self.owners if x.channel.unacked or x.channel.asked]
        if not holding or not all(owner.channel.linked for owner in self.owners):
            return
        paused, stalled = ((False, False), (True, False), (True, True))[self.number.below(3)]
        owner = holding[self.number.below(len(holding))]
        self._note_fault(owner, "connection lost unnoticed", "paused" if paused else "")
        self.queue.requeue(owner.channel, self.number)
        owner.paused, owner.writer.stalled = paused, stalled
        self._go_over(owner)

    def _notice(self) -> None:
        """Have an owner that was paused go on, and one that goes on notice what it lost."""
        for owner in self.owners:
            if owner.paused:
                owner.says("goes on")
                owner.paused = owner.writer.stalled = False
                self._have(owner, owner.run_posted)
            elif not owner.channel.linked:
                owner.says("notices that its connection is lost")
                self._have(owner, owner.lose_channel)

    def _go_over(self, owner: Owner) -> None:
        """Have the queue go over from an owner to one that the broker knows."""
        others = [x for x in self.owners if x is not owner and x.channel.linked]
        if owner is self.active and others:
            self.active = others[0]

    def _note_fault(self, of: Owner | ModelWriter, fault: str, detail: str = "") -> None:
        self.faults.append(fault)
        self.log.append(f"{of.name}fault: {fault} {detail}".rstrip())

    def _start_anew(self, owner: Owner) -> None:
        """End and start a process; what its writer had begun may be done in part, or go on."""
        writer = owner.writer
        outlives = self.number.below(3) == 1
        for job in [x for x in writer.jobs if x.kind in _PARTLY_DONE and not outlives]:
            steps = self.number.below(job.longest)
            if steps:
                writer.advance(job, steps)
        if outlives:
            writer.stalled = False
            self._outliving.append(writer)
        owner.end()
        owner.start()
        self._go_over(owner)

    # -- what must hold -------------------------------------------------------------------------

    def _holding(self) -> bool:
        return any(owner.channel.unacked for owner in self.owners)

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
            array.check_ledger()
        for owner in self.owners:
            owner.check_end()
