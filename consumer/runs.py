"""Blocks by number: C order over an array's blocks, runs of numbers, and the boxes they make up.

Pure geometry, as `consumer.coverage`.
"""

import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice

from consumer.coverage import Box
from consumer.placement import BlockIndex, Grid

_JOINED_AT_ONCE = 4096


class Numbering:
    """The numbers of an array's blocks."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.counts = tuple(-(-n // b) for n, b in zip(grid.shape, grid.block, strict=True))

    @cached_property
    def total(self) -> int:
        """Blocks in all."""
        return math.prod(self.counts)

    @cached_property
    def _strides(self) -> tuple[int, ...]:
        return tuple(math.prod(self.counts[axis + 1 :]) for axis in range(len(self.counts)))

    def of(self, index: BlockIndex) -> int:
        """Return a block's number."""
        return sum(i * stride for i, stride in zip(index, self._strides, strict=True))

    def index(self, number: int) -> BlockIndex:
        """Return the block of a number."""
        places = zip(self._strides, self.counts, strict=True)
        return tuple(number // stride % count for stride, count in places)

    def box(self, number: int) -> Box:
        """Return the box in the array of the block of a number."""
        return self._grid.box(self.index(number))

    def boxes(self, first: int, stop: int) -> Iterator[Box]:
        """Yield disjoint boxes in the array that make up the blocks of `range(first, stop)`.

        At most 2 n - 1 for n axes.
        """
        while first < stop:
            # The outermost axis along which whole slabs of blocks begin here and fit.
            axis = next(
                axis
                for axis, stride in enumerate(self._strides)
                if first % stride == 0 and stop - first >= stride
            )
            index = self.index(first)
            stride = self._strides[axis]
            count = min((stop - first) // stride, self.counts[axis] - index[axis])
            last = (
                *index[:axis],
                index[axis] + count - 1,
                *(n - 1 for n in self.counts[axis + 1 :]),
            )
            yield Box(self._grid.box(index).start, self._grid.box(last).stop)
            first += count * stride


def joined(boxes: Iterable[Box]) -> Iterator[Box]:
    """Yield boxes of which those that share a whole face have become one, as far as one pass goes.

    The boxes must be disjoint, and need not fit into memory.
    """
    rest = iter(boxes)
    while batch := list(islice(rest, _JOINED_AT_ONCE)):
        for axis in reversed(range(len(batch[0].start))):
            batch = _joined_along(axis, batch)
        yield from sorted(batch)


def _joined_along(axis: int, boxes: list[Box]) -> list[Box]:
    def others(box: Box) -> tuple[tuple[int, ...], ...]:
        start, stop = box
        return start[:axis], start[axis + 1 :], stop[:axis], stop[axis + 1 :]

    found: list[Box] = []
    for box in sorted(boxes, key=lambda box: (others(box), box.start[axis])):
        last = found[-1] if found else None
        if last and last.stop[axis] == box.start[axis] and others(last) == others(box):
            found[-1] = Box(last.start, box.stop)
        else:
            found.append(box)
    return found
