"""Memory that the owning process and its writer process share: every block buffer lies in it.

An anonymous file, mapped by both, of which only what was touched takes memory. The owning process
says which part is in use; the writer is told where a buffer lies.
"""

import bisect
import ctypes
import mmap
import os
import weakref
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

_ALIGNMENT = 64
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 8 << 20
_KEPT_BYTES = 32 << 20


class Arena:
    """Gives out parts of the memory, and takes each back by itself once nothing refers to it.

    Parameters
    ----------
    nbytes : int
        The size of the file. Parts of different sizes leave gaps, so it should be well above what
        is ever in use.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.descriptor = os.memfd_create("tiles-blocks", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, nbytes)
        self._memory = mmap.mmap(self.descriptor, nbytes)
        self._base = np.frombuffer(self._memory, np.uint8).ctypes.data
        # Where free parts begin, in order, and how long each is.
        self._starts = [0]
        self._sizes = {0: nbytes}
        self._ended: deque[tuple[int, int]] = deque()

    def take(self, nbytes: int) -> npt.NDArray[np.uint8] | None:
        """Return an array of so many bytes, with whatever is in it; None where no gap is so long.

        Its part is free again, from the next call on, when neither it nor a view of it is left.
        """
        self.reclaim()
        length = -(-max(nbytes, 1) // _ALIGNMENT) * _ALIGNMENT
        at = next((i for i, x in enumerate(self._starts) if self._sizes[x] >= length), None)
        if at is None:
            return None
        start = self._starts[at]
        size = self._sizes.pop(start)
        if size == length:
            del self._starts[at]
        else:
            self._starts[at] = start + length
            self._sizes[start + length] = size - length
        taken = part(self._memory, start, (nbytes,), np.dtype(np.uint8))
        # The end of an array may come amid anything, so it is only noted.
        weakref.finalize(taken, self._ended.append, (start, length)).atexit = False
        return taken

    def reclaim(self) -> None:
        """Make what nothing refers to free, and give its pages back to the system."""
        while self._ended:
            self._free(*self._ended.popleft())

    def offset(self, array: npt.NDArray[Any]) -> int:
        """Return where an array's first byte lies."""
        return int(array.__array_interface__["data"][0]) - self._base

    def _free(self, start: int, length: int) -> None:
        at = bisect.bisect(self._starts, start)
        if at < len(self._starts) and self._starts[at] == start + length:
            length += self._sizes.pop(self._starts.pop(at))
        before = self._starts[at - 1] if at else None
        if before is not None and before + self._sizes[before] == start:
            start, length = before, length + self._sizes[before]
        else:
            self._starts.insert(at, start)
        self._sizes[start] = length
        first, last = -(-start // mmap.PAGESIZE), (start + length) // mmap.PAGESIZE
        if first < last:
            self._memory.madvise(
                mmap.MADV_REMOVE, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
            )


def part(
    memory: mmap.mmap, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Return the array that lies at an offset of the memory."""
    return np.ndarray(shape, dtype, memory, offset)


def give_memory_back() -> None:
    """Have the C library return large buffers to the system as soon as they are freed.

    glibc raises its threshold for that with the first large one, and then keeps what it freed: up
    to twice the budget would stay resident (mallopt(3)). Of the small ones it keeps some, since
    taking a body's memory anew from the system costs more than receiving it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
