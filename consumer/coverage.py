"""Which boxes of a block or array are filled.

Pure geometry: used by the assembler for what a buffer holds, by the ledger for what is durable,
and for the list of what is missing.
"""

import math
from collections.abc import Iterable, Iterator
from operator import ge, sub
from typing import NamedTuple, Self


class Box(NamedTuple):
    """A half-open box of voxels: `start` inclusive, `stop` exclusive, one entry for each axis."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def of_shape(cls, shape: Iterable[int]) -> Self:
        """Return the box of `shape` at the origin."""
        stop = tuple(shape)
        return cls((0,) * len(stop), stop)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        start, stop = self
        return tuple(map(sub, stop, start))

    @property
    def volume(self) -> int:
        """Voxels in all."""
        return math.prod(map(sub, self.stop, self.start))

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as a NumPy or Zarr region."""
        return tuple(map(slice, self.start, self.stop))

    def shifted(self, origin: tuple[int, ...]) -> "Box":
        """Return the box as seen from `origin`."""
        return Box(tuple(map(sub, self.start, origin)), tuple(map(sub, self.stop, origin)))

    def intersection(self, other: "Box") -> "Box | None":
        """Return the part shared with `other`, or None."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        if any(map(ge, start, stop)):
            return None
        return Box(start, stop)

    def minus(self, other: "Box") -> "list[Box]":
        """Return disjoint boxes that make up what `other` leaves of this one."""
        shared = self.intersection(other)
        if shared is None:
            return [self]
        left = []
        start, stop = list(self.start), list(self.stop)
        for axis, (low, high) in enumerate(zip(shared.start, shared.stop, strict=True)):
            if start[axis] < low:
                left.append(Box(tuple(start), (*stop[:axis], low, *stop[axis + 1 :])))
            if high < stop[axis]:
                left.append(Box((*start[:axis], high, *start[axis + 1 :]), tuple(stop)))
            start[axis], stop[axis] = low, high
        return left


_UNJOINED = 16


class Coverage:
    """A set of voxels, kept as disjoint boxes; boxes that share a whole face become one.

    Adding a box twice, or boxes that overlap, counts each voxel once. A box is joined with those
    added just before, as they come in raster order; all with all when there are many of them, or
    when somebody looks.
    """

    __slots__ = ("_boxes", "_is_joined", "_join_at", "voxels")

    def __init__(self, boxes: Iterable[Box] = ()) -> None:
        self._boxes: list[Box] = []
        self._join_at = _UNJOINED
        self._is_joined = True
        self.voxels = 0
        for box in boxes:
            self.add(box)

    def __iter__(self) -> Iterator[Box]:
        self._join()
        return iter(self._boxes)

    def __len__(self) -> int:
        self._join()
        return len(self._boxes)

    def copy(self) -> "Coverage":
        """Return an independent copy."""
        twin = Coverage()
        twin._boxes = self._boxes.copy()
        twin._join_at = self._join_at
        twin._is_joined = self._is_joined
        twin.voxels = self.voxels
        return twin

    def add(self, box: Box) -> int:
        """Add a box; return how many of its voxels were not covered before."""
        added = 0
        for piece in self.missing(box):
            self._append(piece)
            added += piece.volume
        self.voxels += added
        if len(self._boxes) > self._join_at:
            self._join()
            self._join_at = max(_UNJOINED, 2 * len(self._boxes))
        return added

    def update(self, other: "Coverage") -> None:
        """Add every box of `other`."""
        for box in other:
            self.add(box)

    def missing(self, within: Box) -> list[Box]:
        """Return disjoint boxes that make up what is not covered of `within`."""
        left = [within]
        # Most boxes lie apart along some axis, and a block may have thousands: no calls for those.
        axes = tuple(zip(within.start, within.stop, range(len(within.start)), strict=True))
        for box in self._boxes:
            start, stop = box
            for low, high, axis in axes:
                if stop[axis] <= low or high <= start[axis]:
                    break
            else:
                left = [piece for part in left for piece in part.minus(box)]
                if not left:
                    break
        return left

    def covers(self, box: Box) -> bool:
        """Whether every voxel of `box` is covered."""
        return not self.missing(box)

    def _append(self, box: Box) -> None:
        boxes = self._boxes
        while boxes and (joined := _joined(boxes[-1], box)) is not None:
            boxes.pop()
            box = joined
        boxes.append(box)
        self._is_joined = len(boxes) == 1

    def _join(self) -> None:
        if self._is_joined:
            return
        joined = _Joined()
        for box in self._boxes:
            joined.add(box)
        self._boxes = list(joined.boxes)
        self._is_joined = True


def _joined(one: Box, other: Box) -> Box | None:
    """Return the box that two disjoint ones make up if they share a whole face."""
    (start, stop), (low, high) = one, other
    apart = None
    for axis in range(len(start)):
        if start[axis] != low[axis] or stop[axis] != high[axis]:
            if apart is not None:
                return None
            apart = axis
    assert apart is not None, "the same box twice"
    if stop[apart] == low[apart]:
        return Box(start, high)
    if high[apart] == start[apart]:
        return Box(low, stop)
    return None


# The axis, the coordinate of the face, and the box's extent along all other axes.
_Face = tuple[int, int, tuple[int, ...], tuple[int, ...]]


class _Joined:
    """Disjoint boxes of which no two share a whole face."""

    def __init__(self) -> None:
        self.boxes: dict[Box, None] = {}
        self._by_start: dict[_Face, Box] = {}
        self._by_stop: dict[_Face, Box] = {}

    def add(self, box: Box) -> None:
        """Add a box that overlaps none."""
        while (joined := self._with_neighbour(box) if self.boxes else None) is not None:
            box = joined
        self.boxes[box] = None
        for axis in range(len(box.start)):
            self._by_start[_face(box, axis, box.start[axis])] = box
            self._by_stop[_face(box, axis, box.stop[axis])] = box

    def _with_neighbour(self, box: Box) -> Box | None:
        for axis in range(len(box.start)):
            before = self._by_stop.get(_face(box, axis, box.start[axis]))
            if before is not None:
                self._remove(before)
                return Box(before.start, box.stop)
            after = self._by_start.get(_face(box, axis, box.stop[axis]))
            if after is not None:
                self._remove(after)
                return Box(box.start, after.stop)
        return None

    def _remove(self, box: Box) -> None:
        del self.boxes[box]
        for axis in range(len(box.start)):
            del self._by_start[_face(box, axis, box.start[axis])]
            del self._by_stop[_face(box, axis, box.stop[axis])]


def _face(box: Box, axis: int, coordinate: int) -> _Face:
    start, stop = box
    return (
        axis,
        coordinate,
        start[:axis] + start[axis + 1 :],
        stop[:axis] + stop[axis + 1 :],
    )
