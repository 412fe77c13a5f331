"""Which voxels of one array are durable: what the consumer remembers over restarts.

Sans-I/O: says what is to be written and takes what was read; `consumer.ledger_files` reads,
`consumer.commit` writes. It never runs ahead of the data, and may know less than is durable: so it
tells when an array is complete and what is still missing, but never that a write may be left out.

A round: `fill` and `count`, commit the data together with what `dirty` returns, then `saved`, or
`undo` where the commit failed. One round at a time.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

from consumer.coverage import Box, Coverage
from consumer.ledger_format import (
    HEADER_NAME,
    NOTHING,
    SEGMENT_BLOCKS,
    WHOLE,
    Header,
    Segment,
    boxes_of,
    encode_header,
    encode_segment,
    segment_name,
    text_of,
)
from consumer.placement import BlockIndex
from consumer.runs import Numbering, joined

LIMIT_BYTES = 256 << 20
# What Python takes beyond the text, rounded up.
_PARTLY_BYTES = 160
_SEGMENT_BYTES = 1500

# Files by path in the store's ledger folder, as the commit takes them; None: to be removed.
Files: TypeAlias = dict[str, list[bytes] | None]


class Ledger:
    """The ledger of one array.

    Parameters
    ----------
    path : str
        The array's path in the store.
    header : Header
        As stored, or of an array that nothing is known of yet.
    segments : mapping
        As stored, by number.
    stored : bool
        Whether the header is stored as it is.
    unsaved : mapping
        Files to be written with the next round.
    limit_bytes : int
        The most memory to take: what would need more is not remembered. It may be changed.
    """

    def __init__(
        self,
        path: str,
        header: Header,
        segments: Mapping[int, Segment] | None = None,
        *,
        stored: bool = False,
        unsaved: Files | None = None,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self._path = path
        self._numbering = Numbering(header.grid)
        self.limit_bytes = limit_bytes
        self._segments = dict(segments or {})
        self._unsaved = dict(unsaved or {})
        self._dirty: set[int] = set()
        self._whole = self._filled = self._nbytes = 0
        for number, segment in self._segments.items():
            self._count_in(number, segment)
        # What `undo` goes back to: the header, the voxels filled, and what was known of blocks.
        self._header = self._header_before = header
        self._filled_before = self._filled
        self._before: dict[int, bytes] = {}
        self._header_stored = header if stored else None

    @property
    def header(self) -> Header:
        """What is known of the array apart from its blocks."""
        return self._header

    @property
    def blocks(self) -> int:
        """Blocks of the array."""
        return self._numbering.total

    @property
    def missing_blocks(self) -> int:
        """Blocks that are not whole."""
        return self.blocks - self._whole

    @property
    def complete(self) -> bool:
        """Whether every voxel is filled."""
        return self.missing_blocks == 0

    @property
    def filled_voxels(self) -> int:
        """Voxels that are filled."""
        return self._filled

    @property
    def percent(self) -> float:
        """Voxels filled of a hundred; 100 only where none is missing."""
        volume = Box.of_shape(self._header.shape).volume
        return 100.0 if self.complete else min(99.999, 100 * self._filled / volume)

    @property
    def nbytes(self) -> int:
        """About the memory that it takes."""
        return self._nbytes

    def is_whole(self, block: BlockIndex) -> bool:
        """Whether all of a block is filled."""
        return self._known(self._numbering.of(block)) == WHOLE

    def of(self, block: BlockIndex) -> Coverage:
        """Return what is filled of a block, relative to it."""
        known = self._known(self._numbering.of(block))
        if known == WHOLE:
            return Coverage([Box.of_shape(self._header.grid.box(block).shape)])
        return Coverage(boxes_of(known))

    def partly(self) -> Iterator[tuple[BlockIndex, tuple[Box, ...]]]:
        """Yield the blocks that are partly filled, and which boxes of each, relative to it."""
        for number, segment in self._segments.items():
            for block, known in segment.partly.items():
                index = self._numbering.index(number * SEGMENT_BLOCKS + block)
                yield index, tuple(boxes_of(known))

    def missing(self) -> Iterator[Box]:
        """Yield disjoint boxes in the array that make up what is not filled."""
        return joined(self._missing())

    @property
    def filled_blocks(self) -> int:
        """Blocks of which something is filled."""
        return self._whole + sum(len(segment.partly) for segment in self._segments.values())

    def filled(self) -> Iterator[tuple[Box, Coverage]]:
        """Yield, in order, the blocks of which something is filled: the box, and what of it."""
        for first, stop, known in self._all_known():
            for number in range(first, stop):
                block = self._numbering.box(number)
                whole = known == WHOLE
                yield block, Coverage([Box.of_shape(block.shape)] if whole else boxes_of(known))

    def covers(self, box: Box) -> bool:
        """Whether every voxel of a box in the array is filled."""
        return all(
            self.is_whole(piece.block) or self.of(piece.block).covers(piece.inside)
            for piece in self._header.grid.pieces(box)
        )

    # -- a round --------------------------------------------------------------------------------

    def fill(self, block: BlockIndex, boxes: Iterable[Box]) -> None:
        """Take note that boxes of a block, relative to it, are durable with this round."""
        number = self._numbering.of(block)
        known = self._known(number)
        if known == WHOLE:
            return
        filled = Coverage(boxes_of(known))
        added = sum(map(filled.add, boxes))
        if not added:
            return
        whole = filled.voxels == self._header.grid.box(block).volume
        new = WHOLE if whole else text_of(filled)
        if self._fits(number, new):
            self._before.setdefault(number, known)
            self._put(number, new)
            self._filled += added

    def count(self, tiles: int, now_ms: int) -> None:
        """Take note of tiles that are durable with this round, at a time in Unix milliseconds."""
        header = self._header
        written = max(now_ms, header.written_ms or now_ms)
        self._header = replace(header, tiles=header.tiles + tiles, written_ms=written)

    def count_parked(self, tiles: int) -> None:
        """Take note of tiles of the array that are parked."""
        self._header = replace(self._header, parked=self._header.parked + tiles)

    def bind(self, source: str | None, run: str | None) -> None:
        """Bind the array to a source and a run, where it is not bound to others already."""
        header = self._header
        self._header = replace(header, source=header.source or source, run=header.run or run)

    def announce(self) -> None:
        """Take note that it was announced that the array is complete."""
        self._header = replace(self._header, announced=True)

    def restart(self, ledger: str, source: str | None = None, run: str | None = None) -> None:
        """Forget what is filled and start anew under another id of the ledger.

        Where its commit fails, load the ledger again.
        """
        for number in self._segments:
            self._unsaved[self._name(segment_name(number))] = None
        self._segments.clear()
        self._whole = self._filled = self._nbytes = 0
        old = self._header
        self._header = Header(
            old.id, old.axes, old.shape, old.file, old.block, ledger, source=source, run=run
        )
        self._settled()

    def dirty(self) -> Files:
        """Return the files to be written with this round; none where nothing has changed."""
        if not (self._dirty or self._unsaved or self._header != self._header_stored):
            return {}
        # The header first: segments of an earlier ledger count as empty as soon as it is there.
        files = {self._name(HEADER_NAME): [encode_header(self._header)]} | self._unsaved
        for number in sorted(self._dirty):
            content = encode_segment(self._segments[number], number, self._header.ledger)
            files[self._name(segment_name(number))] = [content]
        return files

    def saved(self) -> None:
        """Take note that the round is durable."""
        self._header_stored = self._header
        self._unsaved.clear()
        self._settled()

    def undo(self) -> None:
        """Forget the round: none of it may be relied on."""
        for number, known in self._before.items():
            self._put(number, known)
        self._header, self._filled = self._header_before, self._filled_before
        self._header_stored = None
        self._settled()

    def _settled(self) -> None:
        self._dirty.clear()
        self._before.clear()
        self._header_before, self._filled_before = self._header, self._filled

    # -- blocks by number -----------------------------------------------------------------------

    def _known(self, number: int) -> bytes:
        segment = self._segments.get(number // SEGMENT_BLOCKS)
        return segment.get(number % SEGMENT_BLOCKS) if segment else NOTHING

    def _fits(self, number: int, new: bytes) -> bool:
        more = _cost(new) - _cost(self._known(number))
        more += _SEGMENT_BYTES * (number // SEGMENT_BLOCKS not in self._segments)
        return more <= 0 or self._nbytes + more <= self.limit_bytes

    def _put(self, number: int, new: bytes) -> None:
        at, block = divmod(number, SEGMENT_BLOCKS)
        if at not in self._segments:
            self._segments[at] = Segment()
            self._nbytes += _SEGMENT_BYTES
        segment = self._segments[at]
        old = segment.get(block)
        segment.put(block, new)
        self._nbytes += _cost(new) - _cost(old)
        self._whole += (new == WHOLE) - (old == WHOLE)
        self._dirty.add(at)

    def _count_in(self, number: int, segment: Segment) -> None:
        first = number * SEGMENT_BLOCKS
        self._nbytes += _SEGMENT_BYTES + sum(map(_cost, segment.partly.values()))
        self._whole += segment.whole.bit_count()
        for start, stop in segment.runs():
            boxes = self._numbering.boxes(first + start, first + stop)
            self._filled += sum(box.volume for box in boxes)
        for known in segment.partly.values():
            self._filled += sum(box.volume for box in boxes_of(known))

    def _missing(self) -> Iterator[Box]:
        done = 0
        for first, stop, known in self._all_known():
            yield from self._numbering.boxes(done, first)
            if known != WHOLE:
                block = self._numbering.box(first)
                origin = tuple(-start for start in block.start)
                for hole in Coverage(boxes_of(known)).missing(Box.of_shape(block.shape)):
                    yield hole.shifted(origin)
            done = stop
        yield from self._numbering.boxes(done, self.blocks)

    def _all_known(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield, in order, the runs of whole blocks and each block that is partly filled."""
        for number, segment in sorted(self._segments.items(), key=lambda item: item[0]):
            first = number * SEGMENT_BLOCKS
            runs = [(start, stop, WHOLE) for start, stop in segment.runs()]
            runs += [(block, block + 1, known) for block, known in segment.partly.items()]
            for start, stop, known in sorted(runs):
                yield first + start, first + stop, known

    def _name(self, name: str) -> str:
        return f"{self._path}/{name}"


def _cost(known: bytes) -> int:
    return 0 if known in {NOTHING, WHOLE} else _PARTLY_BYTES + len(known)
