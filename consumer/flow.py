"""The way of a tile through one process: deliveries in, blocks written, acknowledgements out.

Owned by one thread, which never waits for a disk: the writer process opens, reads, encodes and
commits, and its results come back here before anything is acknowledged.
"""

import logging
import math
import time
from collections.abc import Callable
from functools import partial

from consumer.access import Access
from consumer.announcer import Announcer
from consumer.arena import Arena
from consumer.assembler import Assembler
from consumer.blocks import ArrayKey, DeliveryId, StoredArray, Write
from consumer.budget import Budget, max_block_bytes
from consumer.delivery import Delivery, Settling
from consumer.errors import (
    BrokerLost,
    ConsumerError,
    Disposition,
    Fenced,
    ParkError,
    StopError,
    StoreRemoved,
)
from consumer.failpoints import PLACE, Failpoints
from consumer.faults import Condemned, Faults
from consumer.handles import Handles
from consumer.holdings import Holdings
from consumer.inbox import Held, Inbox
from consumer.intake import Intake
from consumer.lone import Lone, suspect
from consumer.losses import Losses
from consumer.metrics import Metrics
from consumer.receipts import Receipts
from consumer.refusals import Refusals
from consumer.requests import Written
from consumer.scratch import Scratch
from consumer.settings import Settings
from consumer.storage import Storage

# So many that workers encode while others wait for the disk.
WRITES_PER_WORKER = 4

log = logging.getLogger(__name__)


class Flow:
    """Takes deliveries, and sees each of them acknowledged, parked or given back.

    Parameters
    ----------
    broker : Settling
        Where deliveries are settled.
    storage : Storage
        The writer process.
    arena : Arena
        Where buffers lie, for the writer to see.
    post : callable
        Runs a callable on the owning thread; used by other threads.
    stop : callable
        Called with an error that the consumer cannot go on with.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self,
        settings: Settings,
        broker: Settling,
        storage: Storage,
        arena: Arena,
        scratch: Scratch,
        metrics: Metrics,
        *,
        post: Callable[[Callable[[], None]], None],
        stop: Callable[[StopError], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._storage = storage
        self._metrics = metrics
        self._stop = stop
        self._clock = clock
        self.budget = Budget(settings.memory_budget_bytes)
        self.assembler = Assembler(
            self.budget, arena, idle_s=settings.idle_s, max_age_s=settings.max_age_s
        )
        self._inbox = Inbox(
            self.budget,
            scratch,
            settings.max_message_bytes,
            post=post,
            loaded=self.advance,
            failed=self._fail_all,
        )
        self._handles: Handles = Handles(settings.max_open_arrays)
        self._held = Holdings(settings.prefetch_count)
        self._received = 0
        self._failpoints = Failpoints(settings.failpoints, lambda: storage.pid)
        self._receipts = Receipts(broker, self._held, metrics, self._failpoints, clock)
        self._announcer = Announcer(
            broker, storage, self._receipts.acknowledge, interval_s=settings.progress_s
        )
        self._condemned = Condemned()
        self._faults = Faults(settings.retry_max_s)
        self._refusals = Refusals(
            broker,
            storage,
            self._inbox,
            self._handles,
            self._held,
            metrics,
            parked=self._note_parked,
            advance=self.advance,
        )
        self._lone = Lone(
            settings,
            storage,
            self._inbox,
            self.assembler,
            self._handles,
            self._faults,
            self._held,
            metrics,
            paused=self._faulty,
            park=self._refusals.park,
            failed=self._failed,
            advance=self.advance,
            clock=clock,
        )
        self._intake = Intake(
            self._inbox,
            self.assembler,
            self._handles,
            self._condemned,
            metrics,
            max_bytes=settings.max_message_bytes,
            replaces_runs=settings.on_new_run == "replace",
            lets_in=self._lone.lets_in,
            park=self._refusals.park,
            before=partial(self._failpoints.reach, PLACE),
            clock=clock,
        )
        self._losses = Losses(
            settings,
            broker,
            storage,
            self._inbox,
            self.assembler,
            self._handles,
            self._announcer,
            self._lone,
            self._faults,
            self._held,
            starved=lambda: self._intake.starved or self._inbox.stuck,
        )
        self._access = Access(
            broker,
            storage,
            self._inbox,
            self.assembler,
            self._handles,
            self._announcer,
            self._faults,
            self._losses,
            metrics,
            max_block_bytes=max_block_bytes(self.budget.limit),
            patience_s=settings.max_age_s,
            replaces_runs=settings.on_new_run == "replace",
            faulty=self._faulty,
            park=self._refusals.park,
            failed=self._failed,
            advance=self.advance,
            clock=clock,
        )
        self._draining = False
        # Idle is what only time brings about, so it is looked for at each tick until none is left.
        self._look_for_idle = False
        self._at_work = clock()
        # Settling may call back at once; what follows is then done in the loop, not in depth.
        self._advancing = self._again = False

    def deliver(self, delivery: Delivery, body: bytes) -> None:
        """Take a delivery."""
        held = Held(delivery, self._clock(), self._received, fingerprint=suspect(delivery, body))
        self._received += 1
        self._held.add(held)
        self._metrics.deliveries.inc()
        self._metrics.redeliveries.inc(delivery.count > 0)
        self._metrics.bytes_in.inc(len(body))
        try:
            self._inbox.put(held, body)
        except BrokerLost as error:
            self._losses.give_up([delivery.id.channel], str(error))
            return
        self.advance()

    def channel_lost(self, channel: int) -> None:
        """Drop all of a channel that is not in a worker: the broker delivers it again."""
        self._losses.forget(channel)

    def _fail_all(self, reason: str) -> None:
        self._losses.give_up_all(reason)

    def advance(self) -> None:
        """Do all that can be done now."""
        if self._advancing:
            self._again = True
            return
        self._advancing = self._again = True
        try:
            while self._again:
                self._again = False
                if not self._draining:
                    self._intake.take()
                    self._inbox.load()
                self._access.open_wanted(for_waiting=not self._draining)
                self._start_writes()
                if not self._draining:
                    self._lone.advance()
        finally:
            self._advancing = False

    def tick(self) -> None:
        """Do what only time brings about; call it a few times a second."""
        now = self._clock()
        self._look_for_idle = True
        self._condemned.expire(now)
        self._losses.watch(now)
        if self.assembler.open_blocks:
            self._at_work = now
        elif now - self._at_work > self._settings.idle_s:
            self.assembler.release_spare()
        self._announcer.tick(now, self._handles.bound)
        self._access.close_surplus()
        self.advance()
        self._measure(now)

    def drain(self) -> None:
        """Place nothing more, write everything."""
        self._draining = True
        self.advance()

    @property
    def drained(self) -> bool:
        """Whether nothing is left that could be written, parked or announced."""
        busy = self.assembler.open_blocks or self._refusals.busy or self._announcer.busy
        return not busy

    def held_s(self, channel: int) -> float | None:
        """Return how long the oldest delivery of a channel is held; None where none is."""
        since = self._held.oldest(channel)
        return None if since is None else self._clock() - since

    def withheld(self, channel: int) -> None:
        """Write and settle what is held of a channel: another gets no messages before."""
        self._held.withhold(channel)
        self.advance()

    def close(self) -> None:
        """Let go of every array."""
        self._lone.end()
        self._access.close()

    def _start_writes(self) -> None:
        now = self._clock()
        while self.assembler.writing < self._settings.workers * WRITES_PER_WORKER:
            write = self.assembler.next_write(
                now,
                pressure=self._pressure(),
                drain=self._draining or self._lone.flushes,
                idle=self._look_for_idle,
                paused=self._paused,
            )
            if write is None:
                self._look_for_idle = False
                return
            handle = self._handles.get(write.key.array)
            self._storage.write(
                write,
                partial(self._written, write, array=handle.array),
                source=handle.source,
                run=handle.run,
            )

    def _pressure(self) -> bool | set[int]:
        """Return whether there is no room, or on which channels no more comes."""
        if self._intake.starved:
            return True
        stopped = self._held.full | self._held.withheld
        return {channel for channel in stopped if not self._inbox.holds(channel)}

    def _paused(self, array: ArrayKey) -> bool:
        return self._handles.opened(array) is None or self._faulty(array.store)

    def _faulty(self, store: str) -> bool:
        alone = self._lone.leaves_alone(store) and not self._draining
        return alone or self._faults.paused(store, self._clock()) or not self._storage.root_writable

    def _written(
        self,
        write: Write,
        written: Written | None,
        error: ConsumerError | None,
        *,
        array: StoredArray | None = None,
    ) -> None:
        store = write.key.array.store
        if written is not None:
            if self._faults.note_written(store):
                log.info("the store works again", extra={"store": store})
            self._metrics.wrote(write, written.encoded, written.committed, written.seconds)
            self._settle(write.key.array, written, self.assembler.wrote(write))
        elif isinstance(error, ParkError) and write.current and write.deliveries:
            self._condemn(write, error)
        elif error is not None:
            current = write.current
            self.assembler.failed(write)
            if isinstance(error, Fenced) and array is not self._handles.opened(write.key.array):
                # Lost together with others, when the store was another time open.
                self.assembler.forget_stored(write.key.array)
            elif current or not isinstance(error, Fenced | ParkError):
                self._failed(store, "write", error)
        self.advance()

    def _settle(self, array: ArrayKey, written: Written, settled: list[DeliveryId]) -> None:
        """Acknowledge what is durable: what made an array complete, once that is announced."""
        self.budget.note("ledgers", written.ledger_bytes)
        handle = self._handles.find(array)
        if handle is not None and written.completed:
            handle.complete = True
            self._announcer.completed(handle.completion, settled, now=self._clock())
            return
        if handle is not None and handle.array is not None:
            self._announcer.written(array, math.prod(handle.array.layout.shape), written.filled)
        for identity in settled:
            self._receipts.acknowledge(identity)

    def _condemn(self, write: Write, error: ParkError) -> None:
        """Have the block's deliveries come again: their bodies are needed to park them."""
        log.error(
            "a block can never be written; its messages are parked",
            extra={
                "store": write.key.array.store,
                "array": write.key.array.path,
                "error": str(error),
            },
        )
        self._condemned.note(write.key, error, self._clock())
        for identity in self.assembler.condemn(write):
            held = self._held.pop(identity)
            if held is not None:
                self._inbox.withdraw(held)
                self._broker.requeue(identity)

    def _failed(self, store: str, operation: str, error: ConsumerError) -> None:
        if error.disposition is Disposition.STOP:
            assert isinstance(error, StopError)
            self._stop(error)
            return
        self._metrics.fenced.inc(isinstance(error, Fenced))
        if isinstance(error, StoreRemoved | Fenced):
            for array in self._handles.reopen(store):
                self.assembler.forget_stored(array)
        too_often = isinstance(error, Fenced) and self._faults.note_loss(store)
        wait = self._faults.note(store, self._clock(), writing=operation == "write")
        self._metrics.retries.labels(operation=operation).inc()
        if wait is not None:
            log.warning(
                "a store failed; trying again",
                extra={
                    "store": store,
                    "operation": operation,
                    "error": str(error),
                    "wait_s": round(wait, 2),
                },
            )
        if too_often:
            reason = f"{store} was taken by another consumer again and again"
            self._losses.give_up_store(store, reason)

    def _note_parked(self, held: Held) -> None:
        self._lone.note_parked(held)

    def _measure(self, now: float) -> None:
        metrics = self._metrics
        metrics.open_blocks.set(self.assembler.open_blocks)
        metrics.writing.set(self.assembler.writing)
        metrics.unacknowledged.set(len(self._held))
        failing_s = self._faults.watch(now, self.assembler.stores | self._handles.waited_for)
        metrics.retrying_seconds.set(failing_s)
        metrics.unannounced_seconds.set(self._announcer.overdue(now))
        metrics.open_arrays.set(self._handles.open_count)
        for kind, nbytes in self.budget.held.items():
            metrics.held_bytes.labels(kind=kind).set(nbytes)
