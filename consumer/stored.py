"""What is known of stored blocks: their durable coverage, and whole buffers kept for a later merge.

It only saves work and decides when a block is written, never whether: it may be forgotten at any
time, and must be where another consumer may have written.
"""

from collections import OrderedDict
from typing import Any

import numpy.typing as npt

from consumer.blocks import ArrayKey, BlockKey
from consumer.budget import Budget
from consumer.coverage import Box, Coverage
from consumer.placement import BlockIndex


class Stored:
    """Durable coverage by array and block, and a cache of buffers, least recently kept first."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._durable: dict[ArrayKey, dict[BlockIndex, Coverage]] = {}
        self._cache: OrderedDict[BlockKey, npt.NDArray[Any]] = OrderedDict()

    def note(self, key: BlockKey, box: Box, filled: Coverage) -> None:
        """Take note that boxes of a block are durable."""
        of_array = self._durable.setdefault(key.array, {})
        durable = of_array.setdefault(key.block, Coverage())
        durable.update(filled)
        if durable.voxels == box.volume:
            of_array[key.block] = Coverage([Box.of_shape(box.shape)])

    def is_whole(self, key: BlockKey, box: Box) -> bool:
        """Whether all of a block is known to be durable."""
        durable = self._of(key)
        return durable is not None and durable.voxels == box.volume

    def completes(self, key: BlockKey, box: Box, filled: Coverage) -> bool:
        """Whether durable and filled boxes together make a block whole that was not before."""
        durable = self._of(key)
        if durable is None or not durable.voxels < box.volume <= durable.voxels + filled.voxels:
            return False
        union = durable.copy()
        union.update(filled)
        return union.voxels == box.volume

    def keep(self, key: BlockKey, whole: npt.NDArray[Any]) -> None:
        """Keep a block's whole buffer."""
        self._cache[key] = whole
        self._budget.take("cached", whole.nbytes)

    def take(self, key: BlockKey) -> npt.NDArray[Any] | None:
        """Return and forget the kept buffer of a block."""
        buffer = self._cache.pop(key, None)
        if buffer is not None:
            self._budget.give("cached", buffer.nbytes)
        return buffer

    def evict(self) -> bool:
        """Drop the buffer that was kept first; return whether there was one."""
        return bool(self._cache) and self.take(next(iter(self._cache))) is not None

    def forget(self, array: ArrayKey) -> None:
        """Forget an array."""
        self._durable.pop(array, None)
        for key in [key for key in self._cache if key.array == array]:
            self.take(key)

    def forget_all(self) -> None:
        """Forget everything."""
        self._durable.clear()
        while self.evict():
            pass

    def _of(self, key: BlockKey) -> Coverage | None:
        return self._durable.get(key.array, {}).get(key.block)
