"""Worker threads: what may wait for a disk is done in them, and ends as an event.

Whatever goes wrong there ends as an error of the consumer's own.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from consumer.errors import (
    ConsumerError,
    StorageFault,
    StoreNotWritable,
    Unexpected,
    from_os_error,
    is_shortage,
)
from consumer.requests import Done
from consumer.trials import Root

log = logging.getLogger(__name__)

Result = TypeVar("Result")

ENCODE, DISK, JOURNAL = "encode", "disk", "journal"


class Workers:
    """Threads in three lanes: those that encode keep the processor busy, the others wait for disks.

    Of the journal one thing is done after the other.

    Parameters
    ----------
    root : Root
        Where faults are tried on whether they are the root's.
    post : callable
        Runs a callable on the owning thread.
    """

    def __init__(self, count: int, root: Root, post: Callable[[Callable[[], None]], None]) -> None:
        self._root = root
        self._post = post
        counts = {ENCODE: count, DISK: count + 1, JOURNAL: 1}
        self._lanes = {
            lane: ThreadPoolExecutor(threads, thread_name_prefix=lane)
            for lane, threads in counts.items()
        }

    def run(self, work: Callable[[], Result], done: Done[Result], *, lane: str = DISK) -> None:
        """Have work done; `done` is called on the owning thread."""
        future = self._lanes[lane].submit(self.translated, work)
        future.add_done_callback(lambda ended: self._post(partial(_ended, ended, done)))

    def translated(self, work: Callable[[], Result]) -> Result:
        """Do work, in a worker thread; raise errors of the consumer's own only."""
        try:
            return self._attempted(work)
        except StoreNotWritable:
            # What failed may have been the root, which can be written again.
            return self._attempted(work)

    def _attempted(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except ConsumerError:
            raise
        except OSError as error:
            raise from_os_error(error, root_writable=self._root_is_writable()) from error
        except Exception as error:
            if is_shortage(error):
                raise StorageFault(f"out of memory or threads: {error}") from error
            log.exception("unexpected error in the writer")
            raise Unexpected(f"{type(error).__name__}: {error}") from error

    def _root_is_writable(self) -> bool:
        """Look now: what the last probe saw may be what has just changed."""
        try:
            self._root.probe()
        except (OSError, StorageFault):
            return False
        return True


def _ended(ended: "Future[Result]", done: Done[Result]) -> None:
    error = ended.exception()
    if error is None:
        done(ended.result(), None)
    else:
        assert isinstance(error, ConsumerError)
        done(None, error)
