"""Block buffers that nobody uses any more, kept for the next block of the same size.

Memory that comes fresh from the system costs a page fault for every 4 KiB, more than copying a
tile there.
"""

import math
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from consumer.budget import Budget


class Buffers:
    """Spare buffers by size, in bytes; the budget counts them as `spare`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._spare: OrderedDict[int, list[npt.NDArray[np.uint8]]] = OrderedDict()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return a buffer with whatever is in it."""
        nbytes = math.prod(shape) * dtype.itemsize
        spare = self._spare.get(nbytes)
        if not spare:
            return np.empty(shape, dtype)
        return self._pop(nbytes).view(dtype).reshape(shape)

    def give(self, buffer: npt.NDArray[Any]) -> None:
        """Keep a buffer that nobody else holds."""
        if buffer.flags.c_contiguous:
            self._spare.setdefault(buffer.nbytes, []).append(buffer.reshape(-1).view(np.uint8))
            self._spare.move_to_end(buffer.nbytes)
            self._budget.take("spare", buffer.nbytes)

    def evict(self) -> bool:
        """Let go of a buffer of the size given least recently; return whether there was one."""
        if not self._spare:
            return False
        self._pop(next(iter(self._spare)))
        return True

    def _pop(self, nbytes: int) -> npt.NDArray[np.uint8]:
        spare = self._spare[nbytes]
        buffer = spare.pop()
        if not spare:
            del self._spare[nbytes]
        self._budget.give("spare", nbytes)
        return buffer
