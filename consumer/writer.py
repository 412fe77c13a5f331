"""The writer process: opens arrays, encodes blocks and commits them.

It takes its requests from a pipe (see `consumer.storage`) and ends when the pipe does. One thread
owns what is open; the work is done in worker threads.

A write has two stages, so that cores encode while the disk syncs: reading and encoding, a block in
a thread; then committing, all blocks of a store that were encoded meanwhile in one round.
"""

import gc
import logging
import math
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from time import monotonic
from typing import Any, TypeVar

import numpy.typing as npt

from consumer import logs
from consumer.arena import give_memory_back, part
from consumer.arrays import OpenArray, Store, open_array, open_store
from consumer.blocks import ArrayKey, StoredArray
from consumer.commit import probe
from consumer.coverage import Box, Coverage
from consumer.encoder import Objects, size, touched_files
from consumer.errors import ConsumerError, StorageFault, Unexpected, from_os_error
from consumer.storage import (
    Answer,
    Close,
    Done,
    Open,
    Opened,
    Probe,
    Request,
    Setup,
    WriteBlock,
    Written,
)

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A block ready to be committed."""

    array: OpenArray
    objects: Objects
    nbytes: int
    seconds: float


@dataclass(eq=False, slots=True)
class _Waiting:
    block: _Encoded
    done: Done[Written]


@dataclass(eq=False, slots=True)
class _Tenure:
    """A store that is open, with its open arrays."""

    store: Store
    arrays: dict[str, OpenArray] = field(default_factory=dict)


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
        self._encoders = ThreadPoolExecutor(setup.workers, thread_name_prefix="encode")
        self._workers = ThreadPoolExecutor(setup.workers + 1, thread_name_prefix="worker")
        self._stores: dict[str, _Tenure] = {}
        # By store: what waits for the round under way to end; absent where there is none.
        self._rounds: dict[str, list[_Waiting]] = {}

    def run(self) -> None:
        """Do what comes; never returns."""
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
            case WriteBlock():
                self._write(request, done)
            case Close(array):
                self._close(array, done)
            case Probe():
                self._run(partial(probe, self._setup.output_root), done)

    # -- stores and arrays ----------------------------------------------------------------------

    def _open(self, request: Open, done: Done[Opened]) -> None:
        key = request.outline.entry.store
        tenure = self._stores.get(key)
        store = tenure.store if tenure else None

        def opened(array: OpenArray | None, error: ConsumerError | None) -> None:
            if array is None:
                done(None, error)
                return
            known = self._stores.setdefault(key, _Tenure(array.store))
            known.arrays[array.key.path] = array
            done(Opened(StoredArray(array.key, array.layout), store is None), None)

        self._run(partial(self._opened, store, request), opened)

    def _opened(self, store: Store | None, request: Open) -> OpenArray:
        setup, outline = self._setup, request.outline
        opened = store or open_store(
            setup.output_root,
            outline.entry.store,
            file_mode=setup.file_mode,
            folder_mode=setup.folder_mode,
        )
        # It may be opened again because somebody removed it.
        opened.commit.forget_folders()
        try:
            return open_array(
                opened,
                outline.entry,
                outline.check,
                write_empty_chunks=setup.write_empty_chunks,
                max_block_bytes=request.max_block_bytes,
            )
        except BaseException:
            if store is None:
                opened.commit.release()
            raise

    def _close(self, array: ArrayKey, done: Done[None]) -> None:
        tenure = self._stores.get(array.store)
        if tenure is not None:
            tenure.arrays.pop(array.path, None)
        if tenure is None or tenure.arrays:
            done(None, None)
            return
        del self._stores[array.store]
        self._run(tenure.store.commit.release, done)

    # -- blocks ---------------------------------------------------------------------------------

    def _write(self, request: WriteBlock, done: Done[Written]) -> None:
        array = self._stores[request.array.store].arrays[request.array.path]
        buffer = part(self._memory, request.offset, request.box.shape, request.dtype)
        self._run(
            partial(_encode, array, request, buffer),
            partial(self._encoded, done),
            threads=self._encoders,
        )

    def _encoded(
        self, done: Done[Written], block: _Encoded | None, error: ConsumerError | None
    ) -> None:
        if block is None:
            done(None, error)
            return
        store = block.array.store.key
        if store in self._rounds:
            self._rounds[store].append(_Waiting(block, done))
        else:
            self._commit(store, [_Waiting(block, done)])

    def _commit(self, store: str, waiting: list[_Waiting]) -> None:
        self._rounds[store] = []
        blocks = [each.block for each in waiting]
        self._run(partial(_commit, blocks), partial(self._committed, store, waiting))

    def _committed(
        self,
        store: str,
        waiting: list[_Waiting],
        written: list[Written] | None,
        error: ConsumerError | None,
    ) -> None:
        following = self._rounds.pop(store)
        if following:
            self._commit(store, following)
        if written is None and len(waiting) > 1:
            # Which of them is at fault shows when each is committed alone.
            for each in waiting:
                self._run(partial(_commit, [each.block]), partial(_pass_on, each.done))
            return
        for index, each in enumerate(waiting):
            each.done(written[index] if written else None, error)

    # -- threads --------------------------------------------------------------------------------

    def _run(
        self,
        work: Callable[[], Result],
        done: Done[Result],
        *,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        future = (threads or self._workers).submit(self._translated, work)
        future.add_done_callback(lambda ended: self._events.put(partial(self._ended, ended, done)))

    def _ended(self, ended: "Future[Result]", done: Done[Result]) -> None:
        error = ended.exception()
        if error is None:
            done(ended.result(), None)
        else:
            assert isinstance(error, ConsumerError)
            done(None, error)

    def _translated(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except ConsumerError:
            raise
        except OSError as error:
            raise from_os_error(error, root_writable=self._root_is_writable()) from error
        except MemoryError as error:
            raise StorageFault(f"out of memory: {error}") from error
        except Exception as error:
            log.exception("unexpected error in the writer")
            raise Unexpected(f"{type(error).__name__}: {error}") from error

    def _root_is_writable(self) -> bool:
        """Look now: what the last probe saw may be what has just changed."""
        try:
            probe(self._setup.output_root)
        except OSError:
            return False
        return True


def _encode(array: OpenArray, write: WriteBlock, buffer: npt.NDArray[Any]) -> _Encoded:
    """Encode a block; what is stored is read only where the buffer has holes, and put there."""
    started = monotonic()
    if write.merge:
        stored = array.read(write.box)
        for hole in Coverage(write.filled).missing(Box.of_shape(write.box.shape)):
            buffer[hole.slices] = stored[hole.slices]
    objects = array.encoder.encode(write.box, buffer, write.filled)
    files = touched_files(array.layout.grid, write.box, write.filled)
    nbytes = sum(math.prod(box.shape) for box in files) * buffer.itemsize
    return _Encoded(array, objects, nbytes, monotonic() - started)


def _commit(blocks: Sequence[_Encoded]) -> list[Written]:
    """Commit blocks of one store.

    The arrays must exist before, so that no folders are made for one that was removed, and after,
    so that nothing counts as written that went with it.
    """
    started = monotonic()
    arrays = {block.array.key.path: block.array for block in blocks}.values()
    for array in arrays:
        array.require()
    objects = {key: parts for block in blocks for key, parts in block.objects.items()}
    blocks[0].array.store.commit.commit(objects)
    for array in arrays:
        array.require()
    seconds = monotonic() - started
    return [Written(block.nbytes, size(block.objects), block.seconds + seconds) for block in blocks]


def _pass_on(
    done: Done[Written], written: list[Written] | None, error: ConsumerError | None
) -> None:
    done(written[0] if written else None, error)


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
