"""Which part of which tile goes where: from stitch coordinates to array boxes to blocks.

Pure: no I/O, no clock, no state. Coordinates are voxels; an array's axes are a subset of STCZYX.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import add, floordiv, le, mul
from typing import Any, NamedTuple

import numpy as np

from consumer.contract import TileEntry
from consumer.coverage import Box
from consumer.errors import InvalidMessage, OutOfBounds

CHUNK_VOXELS = 128
AUTO_SHARD_BYTES = 16 << 20
BLOCK_BYTES = 4 << 20
BLOCK_FILES = 1024

BlockIndex = tuple[int, ...]


class Piece(NamedTuple):
    """The part of a tile that falls into one block.

    `inside` is relative to the block's first voxel, `source` to the tile's box.
    """

    block: BlockIndex
    inside: Box
    source: Box


@dataclass(frozen=True, slots=True)
class Grid:
    """How an array is cut into blocks, in voxels. Edge blocks end with the array.

    `file` is the shape of what is stored as one file: a shard, or a chunk of an unsharded array.
    """

    shape: tuple[int, ...]
    file: tuple[int, ...]
    block: tuple[int, ...]

    def box(self, index: BlockIndex) -> Box:
        """Return the block's box in the array."""
        start = tuple(map(mul, index, self.block))
        return Box(start, tuple(map(min, map(add, start, self.block), self.shape)))

    def file_box(self, number: tuple[int, ...]) -> Box:
        """Return the box in the array of the file of that number along each axis."""
        start = tuple(map(mul, number, self.file))
        return Box(start, tuple(map(min, map(add, start, self.file), self.shape)))

    def files(self, box: Box) -> Iterator[tuple[int, ...]]:
        """Yield the numbers of the files that `box` touches, along each axis."""
        return itertools.product(
            *(
                range(a // n, -(-b // n))
                for a, b, n in zip(box.start, box.stop, self.file, strict=True)
            )
        )

    def count(self, box: Box) -> int:
        """Return how many blocks `box` touches."""
        return math.prod(map(_count, box.start, box.stop, self.block))

    def count_files(self, box: Box) -> int:
        """Return how many files `box` touches."""
        return math.prod(map(_count, box.start, box.stop, self.file))

    @property
    def files_of_block(self) -> int:
        """How many files a block has, at most."""
        return math.prod(-(-size // file) for size, file in zip(self.block, self.file, strict=True))

    def touched(self, box: Box) -> Box:
        """Return the blocks that `box` touches, as a box of block indices."""
        return Box(
            tuple(map(floordiv, box.start, self.block)),
            tuple(-(-b // size) for b, size in zip(box.stop, self.block, strict=True)),
        )

    def pieces(self, box: Box) -> Iterator[Piece]:
        """Yield the part of `box` in each block that it touches, in C order."""
        for cut in itertools.product(*map(_cuts, box.start, box.stop, self.block)):
            index, start, stop, source_start, source_stop = zip(*cut, strict=True)
            yield Piece(index, Box(start, stop), Box(source_start, source_stop))


def _count(start: int, stop: int, size: int) -> int:
    return (stop - 1) // size - start // size + 1


def _cuts(start: int, stop: int, size: int) -> list[tuple[int, int, int, int, int]]:
    """Cut a span along one axis into blocks of `size`.

    Returns
    -------
    list of tuple
        A block's index, start and stop in the block, and start and stop in the span.
    """
    first, inside = divmod(start, size)
    if inside + stop - start <= size:
        return [(first, inside, inside + stop - start, 0, stop - start)]
    cuts = []
    for index in range(first, -(-stop // size)):
        origin = index * size
        low, high = max(start, origin), min(stop, origin + size)
        cuts.append((index, low - origin, high - origin, low - start, high - start))
    return cuts


@dataclass(frozen=True)
class Layout:
    """What placing tiles needs to know of an array, as stored; `axes` is empty where it is not."""

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None

    @cached_property
    def dtype_name(self) -> str:
        """The data type as messages name it."""
        return str(self.dtype.name)

    @cached_property
    def grid(self) -> Grid:
        """How the array is cut into blocks."""
        block = block_shape(self.shape, self.chunks, self.shards, self.dtype.itemsize)
        return Grid(self.shape, self.shards or self.chunks, block)


def automatic_chunks(axes: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return 128 voxels, or the array's extent where that is less, along Z, Y, X; else 1."""
    return tuple(
        min(CHUNK_VOXELS, size) if axis in "ZYX" else 1
        for axis, size in zip(axes, shape, strict=True)
    )


def automatic_shards(
    axes: str, shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int
) -> tuple[int, ...]:
    """Return whole chunks of at most about 16 MiB, grown evenly along Z, Y and X.

    Never smaller than one chunk, nor much larger than the array.
    """
    counts = [1] * len(shape)
    most = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
    while True:
        growable = [i for i, axis in enumerate(axes) if axis in "ZYX" and counts[i] < most[i]]
        size = math.prod(counts) * math.prod(chunks) * itemsize
        if not growable or size * 2 > AUTO_SHARD_BYTES:
            return tuple(n * chunk for n, chunk in zip(counts, chunks, strict=True))
        smallest = min(growable, key=lambda i: (counts[i] * chunks[i], -i))
        counts[smallest] = min(counts[smallest] * 2, most[smallest])


def block_shape(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None,
    itemsize: int,
) -> tuple[int, ...]:
    """Return the shape of what is assembled and encoded at once.

    One shard; without shards, at most 1,024 whole chunks of about 4 MiB that lie along the last
    axes first, since tiles come in raster order: so the fewest bytes are open at a time.
    """
    if shards is not None:
        return shards
    chunk_bytes = math.prod(chunks) * itemsize
    room = max(1, min(BLOCK_FILES, BLOCK_BYTES // chunk_bytes))
    block = list(chunks)
    for axis in reversed(range(len(shape))):
        count = min(room, -(-shape[axis] // chunks[axis]))
        block[axis] *= count
        room //= count
    return tuple(block)


def stitched_box(
    axes: str, shape: tuple[int, ...], tile: TileEntry, tensor_shape: tuple[int, ...] | None
) -> tuple[Box, tuple[slice, ...]]:
    """Return where a tile goes in the array, and which part of its tensor goes there.

    Parameters
    ----------
    axes, shape
        The array's.
    tile : TileEntry
        Its places, (Z)YX.
    tensor_shape : tuple of int, or None
        C(Z)YX; None for a tile that is one fill value.

    Raises
    ------
    InvalidMessage
        Where the numbers of coordinates do not fit the axes.
    OutOfBounds
        Where the crop leaves the tile or the stitched crop the array.
    """
    frame = _frame(axes, shape)
    _check_entries(frame, tile)
    channels, crop_start, size = _crop(tile, tensor_shape, len(frame.spatial))
    samples = _samples(frame, tile)
    first, last = _channels(frame, tile, channels)
    start = (*samples, *first, *tile.stitch_coords)
    stop = (*(at + 1 for at in samples), *last, *map(add, tile.stitch_coords, size))
    if min(start) < 0 or not all(map(le, stop, shape)):
        raise OutOfBounds(
            f"stitch_coords {list(tile.stitch_coords)} with a crop of {list(size)} leave the "
            f"array of {list(shape[-len(size) :])}"
        )
    crop = map(slice, crop_start, map(add, crop_start, size))
    return Box(start, stop), (slice(None), *crop)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What the axes and shape of an array say of a tile's place.

    Attributes
    ----------
    spatial, sampled : str
        The axes of space, and those of S and T that there are.
    samples, times : int
        How far sample_idx may count, and along T alone.
    channels : int or None
        None without C.
    """

    axes: str
    spatial: str
    sampled: str
    samples: int
    times: int
    channels: int | None


# The same array comes with tile after tile.
@lru_cache(maxsize=1024)
def _frame(axes: str, shape: tuple[int, ...]) -> _Frame:
    sizes = dict(zip(axes, shape, strict=True))
    times = sizes.get("T", 1)
    return _Frame(
        axes,
        spatial="".join(axis for axis in axes if axis in "ZYX"),
        sampled="".join(axis for axis in axes if axis in "ST"),
        samples=sizes.get("S", 1) * times,
        times=times,
        channels=sizes.get("C"),
    )


def _check_entries(frame: _Frame, tile: TileEntry) -> None:
    ndim = len(frame.spatial)
    for name in ("stitch_coords", "crop_coords", "crop_size"):
        given = getattr(tile, name)
        if given is not None and len(given) != ndim:
            raise InvalidMessage(
                f"{name} {list(given)} must have {ndim} entries, one for each of {frame.spatial}"
            )


def _crop(
    tile: TileEntry, tensor_shape: tuple[int, ...] | None, ndim: int
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return the tile's channels, and the crop's start and size."""
    if tensor_shape is None:
        assert tile.crop_size is not None
        return 1, (0,) * ndim, tile.crop_size
    if len(tensor_shape) != 1 + ndim:
        raise InvalidMessage(
            f"the tensor of shape {list(tensor_shape)} must have {1 + ndim} axes: channel first, "
            f"then {ndim} of space"
        )
    channels, *size = tensor_shape
    if tile.crop_coords is None or tile.crop_size is None:
        return channels, (0,) * ndim, tuple(size)
    start = tile.crop_coords
    if min(start) < 0 or not all(map(le, map(add, start, tile.crop_size), size)):
        raise OutOfBounds(
            f"crop_coords {list(start)} with crop_size {list(tile.crop_size)} leave the tile of "
            f"{size}"
        )
    return channels, start, tile.crop_size


def _samples(frame: _Frame, tile: TileEntry) -> tuple[int, ...]:
    """Return where the tile lies along S and T, as far as there are such."""
    at = tile.sample_idx
    if not frame.sampled:
        if at is not None:
            raise InvalidMessage(
                f"sample_idx {at} is given, but the axes {frame.axes!r} have neither S nor T"
            )
        return ()
    if at is None:
        raise InvalidMessage(f"sample_idx is required: the axes have {' and '.join(frame.sampled)}")
    if not 0 <= at < frame.samples:
        raise OutOfBounds(f"sample_idx {at} is not one of 0 to {frame.samples - 1}")
    return divmod(at, frame.times) if len(frame.sampled) > 1 else (at,)


def _channels(
    frame: _Frame, tile: TileEntry, channels: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return start and stop along C, as far as there is such."""
    first, last = tile.channel, tile.channel + channels
    if frame.channels is None:
        if first != 0 or channels != 1:
            raise OutOfBounds(
                f"channel {first} with {channels} channels: an array without C takes one "
                "channel at 0"
            )
        return (), ()
    if first < 0 or last > frame.channels:
        raise OutOfBounds(
            f"channel {first} with {channels} channels leaves the array's {frame.channels} channels"
        )
    return (first,), (last,)
