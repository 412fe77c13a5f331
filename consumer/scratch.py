"""Bodies beyond the memory budget, in an unlinked file used as a ring: first in, first out.

A thread of its own reads and writes; the owning thread only hands over.
"""

import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a body is in the ring, in bytes."""

    offset: int
    size: int


class ScratchFull(Exception):
    """The bodies held pass the scratch file's size."""


class Scratch:
    """A ring of bodies; `put`, `get` and `clear` are the owning thread's.

    Parameters
    ----------
    folder : Path
        Where the unlinked file lies.
    capacity : int
        Its size at most, in bytes.
    """

    def __init__(self, folder: Path, capacity: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, prefix="tiles-scratch-")  # noqa: SIM115 - open as long as the service
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scratch")
        self._capacity = capacity
        self._tail = 0
        self._stored: deque[Stored] = deque()
        self._size = 0
        self._writes: deque[tuple[Future[None], int]] = deque()

    def keeps_up(self, window: int, timeout_s: float) -> bool:
        """Whether at most `window` bytes are handed over but still in memory.

        Waits for that, but no longer than `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while self._unwritten() > window:
            left = deadline - time.monotonic()
            if left <= 0 or not wait([self._writes[0][0]], timeout=left).done:
                return False
        return True

    def _unwritten(self) -> int:
        while self._writes and self._writes[0][0].done():
            self._writes.popleft()
        return sum(size for _, size in self._writes)

    def put(self, body: bytes, done: Callable[[BaseException | None], None]) -> Stored:
        """Hand over a body; `done` is called in the scratch thread, with the error if any.

        Raises
        ------
        ScratchFull
            Where it does not fit.
        """
        size = len(body)
        if self._size + size > self._capacity or not self._capacity:
            raise ScratchFull(f"{self._size + size} bytes pass the scratch of {self._capacity}")
        stored = Stored(self._tail, size)
        self._tail = (self._tail + size) % self._capacity
        self._stored.append(stored)
        self._size += size
        future = self._thread.submit(self._write, stored, body)
        future.add_done_callback(lambda ended: done(ended.exception()))
        self._writes.append((future, size))
        return stored

    @property
    def next_size(self) -> int:
        """Size of the body that `get` returns next, in bytes."""
        return self._stored[0].size

    def get(self, done: "Callable[[Future[bytes]], None]") -> Stored:
        """Read the oldest body and free its place; `done` is called in the scratch thread."""
        stored = self._stored.popleft()
        self._size -= stored.size
        self._thread.submit(self._read, stored).add_done_callback(done)
        return stored

    def skip(self) -> None:
        """Free the place of the oldest body, which nobody wants."""
        self._size -= self._stored.popleft().size

    def clear(self) -> None:
        """Forget every body, and begin anew where the file has taken bytes before."""
        self._stored.clear()
        self._size = self._tail = 0

    def close(self) -> None:
        """Give the disk back."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._file.close()

    def _write(self, stored: Stored, body: bytes) -> None:
        view = memoryview(body)
        for offset, start, stop in self._spans(stored):
            while start < stop:
                written = os.pwrite(self._file.fileno(), view[start:stop], offset)
                offset, start = offset + written, start + written  # noqa: PLW2901

    def _read(self, stored: Stored) -> bytes:
        body = bytearray()
        for offset, start, stop in self._spans(stored):
            part = os.pread(self._file.fileno(), stop - start, offset)
            if len(part) != stop - start:
                raise OSError(f"the scratch file ended at {offset + len(part)}")
            body += part
        return bytes(body)

    def _spans(self, stored: Stored) -> Iterator[tuple[int, int, int]]:
        """Yield offset in the file and span of the body: two where it goes round the end."""
        first = min(stored.size, self._capacity - stored.offset)
        yield stored.offset, 0, first
        if first < stored.size:
            yield 0, first, stored.size
