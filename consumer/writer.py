"""The writer process: opens arrays, encodes blocks and commits them.

It takes its requests from a pipe (see `consumer.storage`) and ends when the pipe does. One thread
owns what is open; the work is done in worker threads.

A write has two stages, so that cores encode while the disk syncs: reading and encoding, a block in
a thread; then committing, all blocks of a store that were encoded meanwhile in one round, and with
them what the ledgers of their arrays say now.

A store is taken when the first array of it is asked for, and given up with the last. From then on
it is read and blocks are encoded, but nothing is committed until the owning thread has heard from
the broker. Where another consumer has taken it, all that was open of it is forgotten.
"""

import gc
import mmap
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from consumer import logs
from consumer.arena import give_memory_back, part
from consumer.arrays import Store, open_store
from consumer.blocks import ArrayKey, StoredArray
from consumer.errors import ConsumerError, Fenced
from consumer.failpoints import Failpoints
from consumer.filesystem import check
from consumer.findings import Finding
from consumer.journal import Journal
from consumer.openings import Partly, open_writable
from consumer.requests import (
    Allow,
    Answer,
    BeginLone,
    Close,
    Done,
    EndLone,
    Examine,
    Open,
    Opened,
    Probe,
    Remark,
    Request,
    Room,
    Setup,
    WriteBlock,
    Written,
)
from consumer.rounds import Encoded, WritableArray, commit, encode, unannounced
from consumer.trials import Root
from consumer.workers import ENCODE, JOURNAL, Workers

Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class _Waiting:
    block: Encoded
    done: Done[Written]


# What became of each block of a round.
_Outcomes: TypeAlias = list[tuple[Written | None, ConsumerError | None]]


@dataclass(eq=False, slots=True)
class _Tenure:
    """A store that was taken, with its open arrays, and the blocks that wait for the next round.

    Attributes
    ----------
    allowed : bool
        Whether anything may be committed.
    busy : bool
        Whether a round is under way.
    """

    store: Store
    arrays: dict[str, WritableArray] = field(default_factory=dict)
    allowed: bool = False
    busy: bool = False
    waiting: list[_Waiting] = field(default_factory=list)


class Writer:
    """Does what is asked of it, in worker threads.

    Parameters
    ----------
    memory : mmap
        The shared memory.
    answer : callable
        Takes each answer.
    """

    def __init__(self, setup: Setup, memory: mmap.mmap, answer: Callable[[Answer], None]) -> None:
        self._setup = setup
        self._memory = memory
        self._answer = answer
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._root = Root(setup.output_root)
        self._workers = Workers(setup.workers, self._root, self._events.put)
        self._stores: dict[str, _Tenure] = {}
        self._failpoints = Failpoints(setup.failpoints, lambda: setup.owner)
        self._failpoints.switch_off()
        self._journal = Journal(
            setup.output_root,
            by=setup.consumer_name,
            attempts=setup.lone_attempts,
            file_mode=setup.file_mode,
            folder_mode=setup.folder_mode,
            require=self._root.require,
        )

    def run(self) -> None:
        """Do what comes; never returns."""
        self._workers.run(self._journal.sweep, lambda _result, _error: None, lane=JOURNAL)
        while True:
            self._events.get()()

    def ask(self, number: int, request: Request) -> None:
        """Have a request done; called from any thread."""
        self._events.put(partial(self._do, number, request))

    def _do(self, number: int, request: Request) -> None:
        def done(result: Any, error: ConsumerError | None) -> None:
            self._answer(Answer(number, result, error))

        match request:
            case Open():
                self._open(request, done)
            case Allow(store, epoch):
                self._allow(store, epoch, done)
            case WriteBlock():
                self._write(request, done)
            case Remark():
                self._remark(request, done)
            case Close(array):
                self._close(array, done)
            case BeginLone(fingerprints):
                self._workers.run(partial(self._journal.begin, fingerprints), done, lane=JOURNAL)
            case EndLone(entry, settled):
                self._workers.run(partial(self._journal.end, entry, settled), done, lane=JOURNAL)
            case _:
                self._workers.run(partial(_look, self._root, request), done)

    # -- stores and arrays ----------------------------------------------------------------------

    def _open(self, request: Open, done: Done[Opened]) -> None:
        key = request.outline.entry.store
        tenure = self._stores.get(key)
        if tenure is None:
            self._workers.run(partial(self._take, key), partial(self._taken, request, done))
        else:
            self._open_in(tenure, request, None, done)

    def _take(self, key: str) -> Store:
        setup = self._setup
        self._root.require()
        return open_store(
            setup.output_root,
            key,
            file_mode=setup.file_mode,
            folder_mode=setup.folder_mode,
            step=self._failpoints.reach,
            kind=self._failpoints.commit,
        )

    def _taken(
        self, request: Open, done: Done[Opened], store: Store | None, error: ConsumerError | None
    ) -> None:
        if store is None:
            done(None, error)
            return
        tenure = self._stores[store.key] = _Tenure(store)
        self._open_in(tenure, request, store.commit.epoch, done)

    def _open_in(
        self, tenure: _Tenure, request: Open, taken: str | None, done: Done[Opened]
    ) -> None:
        known = tenure.arrays.get(request.outline.entry.array)
        work = partial(self._opened, tenure.store, known, request)
        self._workers.run(work, partial(self._note_opened, tenure, taken, done))

    def _opened(
        self, store: Store, known: WritableArray | None, request: Open
    ) -> tuple[WritableArray, Partly]:
        """Open an array; return it, and unless it is open, which blocks its ledger knows in part.

        Of one that is open there must be one ledger, or what one round adds the next would forget.
        A round may be changing it.
        """
        store.commit.check()
        if known is not None and known.open.metadata.stands():
            # Somebody may have removed folders of it.
            store.commit.forget_folders()
            return known, None
        return open_writable(self._setup, store, request)

    def _note_opened(
        self,
        tenure: _Tenure,
        taken: str | None,
        done: Done[Opened],
        found: tuple[WritableArray, Partly] | None,
        error: ConsumerError | None,
    ) -> None:
        if found is None:
            if isinstance(error, Fenced):
                self._forget(tenure)
            self._give_up_empty(tenure, lambda: done(None, error))
            return
        if self._stores.get(tenure.store.key) is not tenure:
            done(None, _fenced(tenure.store.key))
            return
        array, partly = found
        stored, header = array.open, array.ledger.header
        # Of an array that was open already, its own rounds tell.
        completed = tenure.arrays.get(stored.key.path) is not array and unannounced(array.ledger)
        tenure.arrays[stored.key.path] = array
        known = StoredArray(stored.key, stored.layout)
        bound = header.source, header.run, header.replaced, header.ledger
        done(Opened(known, taken, *bound, partly, completed), None)

    def _allow(self, store: str, epoch: str, done: Done[None]) -> None:
        tenure = self._stores.get(store)
        if tenure is not None and tenure.store.commit.epoch == epoch:
            tenure.allowed = True
            self._start_round(tenure)
        done(None, None)

    def _give_up_empty(self, tenure: _Tenure, done: Callable[[], None]) -> None:
        """Release a store of which nothing is open."""
        if tenure.arrays or self._stores.get(tenure.store.key) is not tenure:
            done()
            return
        self._forget(tenure)
        self._workers.run(tenure.store.commit.release, lambda _result, _error: done())

    def _close(self, array: ArrayKey, done: Done[None]) -> None:
        tenure = self._stores.get(array.store)
        if tenure is not None:
            tenure.arrays.pop(array.path, None)
        if tenure is None or tenure.arrays:
            done(None, None)
            return
        self._forget(tenure)
        self._workers.run(tenure.store.commit.release, done)

    def _forget(self, tenure: _Tenure) -> None:
        """Forget all that is open of a store that is given up, or that somebody else has taken."""
        if self._stores.get(tenure.store.key) is tenure:
            del self._stores[tenure.store.key]
        if not tenure.allowed:
            waiting, tenure.waiting = tenure.waiting, []
            for each in waiting:
                each.done(None, _fenced(tenure.store.key))

    # -- blocks ---------------------------------------------------------------------------------

    def _write(self, request: WriteBlock, done: Done[Written]) -> None:
        tenure = self._stores.get(request.array.store)
        array = tenure.arrays.get(request.array.path) if tenure else None
        if tenure is None or array is None:
            done(None, _fenced(request.array.store))
            return
        buffer = part(self._memory, request.offset, request.box.shape, request.dtype)
        self._workers.run(
            partial(encode, array, request, buffer),
            partial(self._encoded, tenure, done),
            lane=ENCODE,
        )

    def _share_out(self) -> int:
        """Give all ledgers what is left of their memory; return what they take."""
        ledgers = [
            array.ledger for tenure in self._stores.values() for array in tenure.arrays.values()
        ]
        taken = sum(ledger.nbytes for ledger in ledgers)
        left = max(0, self._setup.max_ledger_bytes - taken)
        for ledger in ledgers:
            ledger.limit_bytes = ledger.nbytes + left
        return taken

    def _remark(self, request: Remark, done: Done[Written]) -> None:
        tenure = self._stores.get(request.array.store)
        array = tenure.arrays.get(request.array.path) if tenure else None
        if tenure is None or array is None:
            done(None, _fenced(request.array.store))
        else:
            self._encoded(tenure, done, Encoded(array, request, {}), None)

    def _encoded(
        self,
        tenure: _Tenure,
        done: Done[Written],
        block: Encoded | None,
        error: ConsumerError | None,
    ) -> None:
        if block is None:
            if isinstance(error, Fenced):
                self._forget(tenure)
            done(None, error)
        elif self._stores.get(tenure.store.key) is not tenure:
            done(None, _fenced(tenure.store.key))
        else:
            tenure.waiting.append(_Waiting(block, done))
            self._start_round(tenure)

    def _start_round(self, tenure: _Tenure) -> None:
        if tenure.busy or not tenure.allowed or not tenure.waiting:
            return
        waiting, tenure.waiting, tenure.busy = tenure.waiting, [], True
        blocks = [each.block for each in waiting]
        self._workers.run(partial(self._round, blocks), partial(self._committed, tenure, waiting))

    def _round(self, blocks: Sequence[Encoded]) -> _Outcomes:
        """Commit blocks of one tenure: where that fails, each alone, so that the fault is its own.

        One after the other, since the ledgers know one round at a time.
        """
        rounds = [blocks]
        outcomes: _Outcomes = []
        while rounds:
            following = rounds.pop(0)
            try:
                written = self._workers.translated(partial(commit, following))
                outcomes += [(each, None) for each in written]
            except ConsumerError as error:
                if len(following) > 1:
                    rounds += [[block] for block in following]
                else:
                    outcomes.append((None, error))
        return outcomes

    def _committed(
        self,
        tenure: _Tenure,
        waiting: list[_Waiting],
        outcomes: _Outcomes | None,
        error: ConsumerError | None,
    ) -> None:
        tenure.busy = False
        self._start_round(tenure)
        ledger_bytes = self._share_out()
        for each, (written, failure) in zip(
            waiting, outcomes or [(None, error)] * len(waiting), strict=True
        ):
            if isinstance(failure, Fenced):
                self._forget(tenure)
            each.done(written and replace(written, ledger_bytes=ledger_bytes), failure)


def _look(root: Root, request: Examine | Probe) -> Sequence[Finding] | Room:
    """See whether the root can be used, or written."""
    if isinstance(request, Examine):
        return check(root.path, request.accepted)
    root.probe()
    usage = shutil.disk_usage(root.path)
    return Room(usage.total, usage.free)


def _fenced(store: str) -> Fenced:
    return Fenced(f"{store}: the store was given up meanwhile")


def main(pipe_descriptor: int, memory_descriptor: int) -> None:
    """Serve the process at the other end of the pipe until it is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(pipe_descriptor)
    try:
        setup: Setup = pipe.recv()
    except EOFError:
        return
    logs.configure(setup.log_level, setup.log_format)
    give_memory_back()
    gc.freeze()
    writer = Writer(setup, mmap.mmap(memory_descriptor, setup.memory_bytes), pipe.send)
    threading.Thread(target=_listen, args=(pipe, writer), name="requests", daemon=True).start()
    writer.run()


def _listen(pipe: Connection, writer: Writer) -> None:
    try:
        while True:
            writer.ask(*pipe.recv())
    except (EOFError, OSError):
        # What it was asked to do, nobody waits for any more.
        os._exit(0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
