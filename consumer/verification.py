"""Reads back what a ledger says is filled of an array: whether each file is there and is decodable.

Takes and changes nothing, so consumers may be at work. What they replace meanwhile is a rename, and
the ledger never runs ahead of the data; so what looks damaged is read again before it is told.
Bytes that changed where no codec has a checksum are not seen.
"""

import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

from consumer.arrays import ReadableArray
from consumer.coverage import Box, Coverage
from consumer.encoder import touched_files
from consumer.errors import DamagedBlock, UnsafePath
from consumer.ledger import Ledger
from consumer.ledger_format import Header
from consumer.runs import joined

_READS = 2
# A block while it is read: its encoded bytes, its chunks, and the voxels put together.
_COPIES = 3
_BLOCKS_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that does not hold what the ledger says.

    Attributes
    ----------
    file : Path
        Of the file.
    wrong : str
        What is wrong with it.
    lost : tuple of Box
        What the ledger says is filled and cannot be read, in the array.
    """

    file: Path
    wrong: str
    lost: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of a block's files; `nbytes` are those of the files that can be read."""

    files: int
    nbytes: int
    damages: tuple[Damage, ...]


class _Wrong(Exception):
    """A file is not what it should be, and these boxes of it, in the array, cannot be read."""

    def __init__(self, what: str, boxes: Sequence[Box]) -> None:
        super().__init__(what)
        self.boxes = boxes


class Verification:
    """Reads an array back.

    Parameters
    ----------
    empty_chunks : bool
        Whether chunks that hold nothing but the fill value are stored, so that one which is absent
        is missing.
    """

    def __init__(self, array: ReadableArray, ledger: Ledger, *, empty_chunks: bool) -> None:
        self._array = array
        self._grid = array.layout.grid
        self._ledger = ledger
        self._empty_chunks = empty_chunks

    @property
    def blocks(self) -> int:
        """Blocks to be read."""
        return self._ledger.filled_blocks

    def run(self, threads: int, memory_bytes: int) -> Iterator[Checked]:
        """Yield what became of each block, in order, read by so many threads or fewer.

        Parameters
        ----------
        memory_bytes : int
            What reading may take; one block is read, whatever it takes.
        """
        block_bytes = Box.of_shape(self._grid.block).volume * self._array.layout.dtype.itemsize
        threads = max(1, min(threads, memory_bytes // (_COPIES * block_bytes)))
        waiting: deque[Future[Checked]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="verify")
        try:
            for block, filled in self._ledger.filled():
                waiting.append(pool.submit(self.check, block, filled))
                if len(waiting) > _BLOCKS_AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def check(self, block: Box, filled: Coverage) -> Checked:
        """Read the files that a filled box touches.

        Parameters
        ----------
        block : Box
            In the array.
        filled : Coverage
            Relative to the block.
        """
        origin = tuple(-start for start in block.start)
        wanted = [box.shifted(origin) for box in filled]
        sizes: list[int] = []
        damages: list[Damage] = []
        for region in touched_files(self._grid, block, filled):
            try:
                # All at once is quicker; what is wrong is looked for only where something is.
                sizes += self._read(region, wanted)
            except _Wrong:
                for number in self._grid.files(region):
                    try:
                        sizes += self._read_again(self._grid.file_box(number), wanted)
                    except _Wrong as wrong:
                        lost = tuple(_shared(wanted, wrong.boxes))
                        damages.append(Damage(self._array.file(number), str(wrong), lost))
        return Checked(len(sizes) + len(damages), sum(sizes), tuple(damages))

    def _read_again(self, box: Box, wanted: Sequence[Box]) -> list[int]:
        for _ in range(_READS - 1):
            with suppress(_Wrong):
                return self._read(box, wanted)
        return self._read(box, wanted)

    def _read(self, box: Box, wanted: Sequence[Box]) -> list[int]:
        """Read whole files; return their sizes, bytes."""
        try:
            paths = map(self._array.file, self._grid.files(box))
            sizes = [size for path in paths if (size := self._size(path, box)) is not None]
            self._array.read(box)
            left_out = self._left_out(box, wanted)
        except DamagedBlock as error:
            cause = error.__cause__
            what = f"cannot be decoded ({type(cause).__name__}: {cause})"
            raise _Wrong(what, [box]) from None
        except (OSError, UnsafePath) as error:
            raise _Wrong(f"cannot be read ({error})", [box]) from None
        if left_out:
            raise _Wrong(f"lacks {len(left_out)} of the chunks that were written to it", left_out)
        return sizes

    def _size(self, path: Path, box: Box) -> int | None:
        """Return a file's size; None where it is absent, and may be."""
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            if self._empty_chunks:
                raise _Wrong("missing", [box]) from None
            return None
        if not stat.S_ISREG(found.st_mode):
            raise _Wrong("is no regular file", [box])
        return found.st_size

    def _left_out(self, box: Box, wanted: Sequence[Box]) -> list[Box]:
        """Return the chunks that shards lack though something of them was written."""
        if not self._empty_chunks or self._array.layout.shards is None:
            return []
        chunks = chain.from_iterable(map(self._array.chunks_left_out, self._grid.files(box)))
        return [chunk for chunk in chunks if any(chunk.intersection(each) for each in wanted)]


def _shared(wanted: Iterable[Box], lost: Iterable[Box]) -> Iterator[Box]:
    """Return what boxes share with others; disjoint, as either are."""
    return joined(
        shared for each, other in product(wanted, lost) if (shared := each.intersection(other))
    )


def same_array(array: ReadableArray, ledger: Ledger) -> bool:
    """Whether a ledger is of an array, and not of one that had its name before."""
    return ledger.header.same_array(Header.of(array.layout, array.ledger_id, "", ""))
