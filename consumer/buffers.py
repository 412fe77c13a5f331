"""Block buffers, and those that nobody uses any more, kept for the next block of the same size.

Memory that comes fresh from the system costs a page fault for every 4 KiB, more than copying a
tile there.
"""

import math
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from consumer.arena import Arena
from consumer.budget import Budget


class Buffers:
    """Spare buffers by size, in bytes; the budget counts them as `spare`."""

    def __init__(self, budget: Budget, arena: Arena) -> None:
        self._budget = budget
        self._arena = arena
        self._spare: OrderedDict[int, list[npt.NDArray[np.uint8]]] = OrderedDict()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
        """Return a buffer with whatever is in it; None where memory is too scattered for it."""
        nbytes = math.prod(shape) * dtype.itemsize
        buffer = self._pop(nbytes) if self._spare.get(nbytes) else self._arena.take(nbytes)
        return None if buffer is None else buffer.view(dtype).reshape(shape)

    def give(self, buffer: npt.NDArray[Any]) -> None:
        """Keep a buffer that nobody else holds."""
        self._spare.setdefault(buffer.nbytes, []).append(buffer.reshape(-1).view(np.uint8))
        self._spare.move_to_end(buffer.nbytes)
        self._budget.take("spare", buffer.nbytes)

    def evict(self) -> bool:
        """Let go of a buffer of the size given least recently; return whether there was one."""
        if not self._spare:
            return False
        self._pop(next(iter(self._spare)))
        self._arena.reclaim()
        return True

    def _pop(self, nbytes: int) -> npt.NDArray[np.uint8]:
        spare = self._spare[nbytes]
        buffer = spare.pop()
        if not spare:
            del self._spare[nbytes]
        self._budget.give("spare", nbytes)
        return buffer
