"""What is known of stored blocks: their durable coverage, and whole buffers kept for a later merge.

It only saves work and decides when a block is written, never whether: it may be forgotten at any
time, and must be where another consumer may have written.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy.typing as npt

from consumer.blocks import ArrayKey, BlockKey
from consumer.budget import Budget
from consumer.coverage import Box, Coverage
from consumer.placement import BlockIndex

# About what Python takes for one, and for each box.
_COVERAGE_BYTES = 400
_BOX_BYTES = 300


class Stored:
    """Durable coverage by array and block, and a cache of buffers, least recently kept first.

    Coverage is of blocks that are partly durable: of a whole one there is nothing to wait for.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        # With what each counts for in the budget.
        self._durable: dict[ArrayKey, dict[BlockIndex, tuple[Coverage, int]]] = {}
        self._cache: OrderedDict[BlockKey, npt.NDArray[Any]] = OrderedDict()

    def note(self, key: BlockKey, box: Box, filled: Coverage) -> bool:
        """Take note that boxes of a block are durable; return whether all of it is known to be."""
        durable = self._forget_block(key) or Coverage()
        durable.update(filled)
        whole = durable.voxels == box.volume
        if not whole:
            self._remember(key, durable)
        return whole

    def seed(self, array: ArrayKey, partly: Mapping[BlockIndex, Iterable[Box]]) -> None:
        """Take over what an array's ledger says of blocks that are partly durable."""
        self._forget_durable(array)
        for block, boxes in partly.items():
            self._remember(BlockKey(array, block), Coverage(boxes))

    def completes(self, key: BlockKey, box: Box, filled: Coverage) -> bool:
        """Whether durable and filled boxes together make a block whole."""
        durable = self._of(key)
        if durable is None or durable.voxels + filled.voxels < box.volume:
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
        self._forget_durable(array)
        for key in [key for key in self._cache if key.array == array]:
            self.take(key)

    def arrays(self) -> set[ArrayKey]:
        """Return the arrays of which something is known."""
        return {*self._durable, *(key.array for key in self._cache)}

    def _of(self, key: BlockKey) -> Coverage | None:
        found = self._durable.get(key.array, {}).get(key.block)
        return found[0] if found else None

    def _remember(self, key: BlockKey, durable: Coverage) -> None:
        cost = _COVERAGE_BYTES + _BOX_BYTES * len(durable)
        if cost <= self._budget.free_for_coverage:
            self._budget.take("coverage", cost)
            self._durable.setdefault(key.array, {})[key.block] = durable, cost

    def _forget_block(self, key: BlockKey) -> Coverage | None:
        durable, cost = self._durable.get(key.array, {}).pop(key.block, (None, 0))
        self._budget.give("coverage", cost)
        return durable

    def _forget_durable(self, array: ArrayKey) -> None:
        for _, cost in self._durable.pop(array, {}).values():
            self._budget.give("coverage", cost)
