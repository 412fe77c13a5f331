"""The work on the output root, in worker threads, and the translation of its errors.

Each call returns at once; its `done` is called on the owning thread with a result or an error of
the consumer's own.
"""

import logging
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import numpy.typing as npt

from consumer.arrays import OpenArray, Store, open_array, open_store
from consumer.blocks import Write
from consumer.commit import probe
from consumer.encoder import touched_files
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


class Storage:
    """Opens, writes and probes in worker threads."""

    def __init__(self, settings: Settings, post: Callable[[Callable[[], None]], None]) -> None:
        self._settings = settings
        self._post = post
        self._workers = ThreadPoolExecutor(settings.workers + 1, thread_name_prefix="worker")
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
        self._run(partial(write_block, array, write), done)

    def release(self, store: Store) -> None:
        """Let go of a store."""
        self._run(store.commit.release, _log_error)

    def probe(self, done: Done[None]) -> None:
        """Try whether the root can be written."""
        self._run(partial(probe, self._settings.output_root), done)

    def close(self) -> None:
        """Take no more work."""
        self._workers.shutdown(wait=False, cancel_futures=True)

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

    def _run(self, work: Callable[[], Result], done: Done[Result]) -> None:
        self._running += 1
        future = self._workers.submit(self._translated, work)
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


def write_block(array: OpenArray, write: Write) -> Written:
    """Write a block durably: what is stored below it is read only where the buffer has holes.

    The array must exist before, so that no folders are made for one that was removed, and after,
    so that nothing counts as written that went with it.
    """
    started = monotonic()
    whole = write.buffer
    if write.merge:
        whole = array.read(write.box)
        for box in write.filled:
            whole[box.slices] = write.buffer[box.slices]
    objects = array.encode(write.box, whole, write.filled)
    array.require()
    committed = array.store.commit.commit(objects)
    array.require()
    files = touched_files(array.layout.grid, write.box, write.filled)
    encoded = sum(math.prod(box.shape) for box in files) * whole.itemsize
    return Written(whole, encoded, committed, monotonic() - started)


def _log_error(_result: object, error: ConsumerError | None) -> None:
    if error is not None:
        log.warning("a store could not be released", extra={"error": str(error)})
