"""The work on the output root, in worker threads, and the translation of its errors.

Each call returns at once; its `done` is called on the owning thread with a result or an error of
the consumer's own.

A write has two stages, so that cores encode while the disk syncs: reading and encoding, a block in
a thread; then committing, all blocks of a store that were encoded meanwhile in one round.
"""

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import numpy.typing as npt

from consumer.arrays import OpenArray, Store, open_array, open_store
from consumer.blocks import Write
from consumer.commit import probe
from consumer.encoder import Objects, size, touched_files
from consumer.errors import ConsumerError, StorageFault, Unexpected, from_os_error
from consumer.message import Outline
from consumer.settings import Settings

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Done = Callable[[Result | None, ConsumerError | None], None]


@dataclass(frozen=True, slots=True)
class Written:
    """A block that is durable.

    Attributes
    ----------
    whole : ndarray
        The block as stored now.
    encoded, committed : int
        Bytes of the voxels in the files written, and of the files.
    """

    whole: npt.NDArray[Any]
    encoded: int
    committed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A block ready to be committed."""

    array: OpenArray
    objects: Objects
    whole: npt.NDArray[Any]
    nbytes: int
    seconds: float


@dataclass(eq=False, slots=True)
class _Waiting:
    block: _Encoded
    done: Done[Written]


class Storage:
    """Opens, writes and probes in worker threads."""

    def __init__(self, settings: Settings, post: Callable[[Callable[[], None]], None]) -> None:
        self._settings = settings
        self._post = post
        self._encoders = ThreadPoolExecutor(settings.workers, thread_name_prefix="encode")
        self._workers = ThreadPoolExecutor(settings.workers + 1, thread_name_prefix="worker")
        # By store: what waits for the round under way to end; absent where there is none.
        self._rounds: dict[str, list[_Waiting]] = {}
        self._running = 0
        self.root_writable = True

    @property
    def idle(self) -> bool:
        """Whether no worker is at work, and every result has been passed on."""
        return not self._running

    def open(
        self,
        store: Store | None,
        outline: Outline,
        block: int,
        done: Done[OpenArray],
    ) -> None:
        """Open or create an array, of a store that is open already or not.

        Parameters
        ----------
        outline : Outline
            What a message says of the array and its tiles.
        block : int
            The largest block that fits the budget, in bytes.
        """
        self._run(partial(self._open, store, outline, block), done)

    def write(self, array: OpenArray, write: Write, done: Done[Written]) -> None:
        """Merge, encode and commit a block."""
        self._run(
            partial(_encode, array, write), partial(self._encoded, done), threads=self._encoders
        )

    def release(self, store: Store) -> None:
        """Let go of a store."""
        self._run(store.commit.release, _log_error)

    def probe(self, done: Done[None]) -> None:
        """Try whether the root can be written."""
        self._run(partial(probe, self._settings.output_root), done)

    def close(self) -> None:
        """Take no more work."""
        for threads in (self._encoders, self._workers):
            threads.shutdown(wait=False, cancel_futures=True)

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

    def _open(self, store: Store | None, outline: Outline, block: int) -> OpenArray:
        settings = self._settings
        opened = store or open_store(
            settings.output_root,
            outline.entry.store,
            file_mode=settings.file_mode,
            folder_mode=settings.folder_mode,
        )
        try:
            return open_array(
                opened,
                outline.entry,
                outline.check,
                write_empty_chunks=settings.write_empty_chunks,
                max_block_bytes=block,
            )
        except BaseException:
            if store is None:
                opened.commit.release()
            raise

    def _run(
        self,
        work: Callable[[], Result],
        done: Done[Result],
        *,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        self._running += 1
        future = (threads or self._workers).submit(self._translated, work)
        future.add_done_callback(lambda ended: self._post(partial(self._ended, ended, done)))

    def _ended(self, ended: "Future[Result]", done: Done[Result]) -> None:
        self._running -= 1
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
            log.exception("unexpected error in a worker")
            raise Unexpected(f"{type(error).__name__}: {error}") from error

    def _root_is_writable(self) -> bool:
        """Look now: what the last probe saw may be what has just changed."""
        try:
            probe(self._settings.output_root)
        except OSError:
            return False
        return True


def _encode(array: OpenArray, write: Write) -> _Encoded:
    """Encode a block; what is stored below it is read only where the buffer has holes."""
    started = monotonic()
    whole = write.buffer
    if write.merge:
        whole = array.read(write.box)
        for box in write.filled:
            whole[box.slices] = write.buffer[box.slices]
    objects = array.encoder.encode(write.box, whole, write.filled)
    files = touched_files(array.layout.grid, write.box, write.filled)
    nbytes = sum(math.prod(box.shape) for box in files) * whole.itemsize
    return _Encoded(array, objects, whole, nbytes, monotonic() - started)


def _commit(blocks: Sequence[_Encoded]) -> list[Written]:
    """Commit blocks of one store.

    The arrays must exist before, so that no folders are made for one that was removed, and after,
    so that nothing counts as written that went with it.
    """
    started = monotonic()
    arrays = {block.array.path: block.array for block in blocks}.values()
    for array in arrays:
        array.require()
    objects = {key: parts for block in blocks for key, parts in block.objects.items()}
    blocks[0].array.store.commit.commit(objects)
    for array in arrays:
        array.require()
    seconds = monotonic() - started
    return [
        Written(block.whole, block.nbytes, size(block.objects), block.seconds + seconds)
        for block in blocks
    ]


def _pass_on(
    done: Done[Written], written: list[Written] | None, error: ConsumerError | None
) -> None:
    done(written[0] if written else None, error)


def _log_error(_result: object, error: ConsumerError | None) -> None:
    if error is not None:
        log.warning("a store could not be released", extra={"error": str(error)})
