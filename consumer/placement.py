"""Which part of which tile goes where: from stitch coordinates to array boxes to blocks.

Pure: no I/O, no clock, no state. Coordinates are voxels; an array's axes are a subset of STCZYX.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import add, floordiv, mul
from typing import Any

import numpy as np

from consumer.contract import AXES, TileEntry
from consumer.coverage import Box
from consumer.errors import InvalidMessage, OutOfBounds

CHUNK_VOXELS = 128
AUTO_SHARD_BYTES = 16 << 20
BLOCK_BYTES = 4 << 20
BLOCK_FILES = 1024

BlockIndex = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a tile that falls into one block.

    `inside` is relative to the block's first voxel, `source` to the tile's box.
    """

    index: BlockIndex
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

    def files(self, box: Box) -> Iterator[tuple[int, ...]]:
        """Yield the numbers of the files that `box` touches, along each axis."""
        return itertools.product(
            *(
                range(a // n, -(-b // n))
                for a, b, n in zip(box.start, box.stop, self.file, strict=True)
            )
        )

    def touched(self, box: Box) -> Box:
        """Return the blocks that `box` touches, as a box of block indices."""
        return Box(
            tuple(map(floordiv, box.start, self.block)),
            tuple(-(-b // size) for b, size in zip(box.stop, self.block, strict=True)),
        )

    def pieces(self, box: Box) -> Iterator[Piece]:
        """Yield the part of `box` in each block that it touches, in C order."""
        touched = self.touched(box)
        for index in itertools.product(*map(range, touched.start, touched.stop)):
            block = self.box(index)
            shared = box.intersection(block)
            assert shared is not None
            yield Piece(index, shared.shifted(block.start), shared.shifted(box.start))


@dataclass(frozen=True)
class Layout:
    """What placing tiles needs to know of an array, as stored; `axes` is empty where it is not."""

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None

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
    spatial = [axis for axis in axes if axis in "ZYX"]
    ndim = len(spatial)
    for name in ("stitch_coords", "crop_coords", "crop_size"):
        given = getattr(tile, name)
        if given is not None and len(given) != ndim:
            raise InvalidMessage(
                f"{name} {list(given)} must have {ndim} entries, one for each of {''.join(spatial)}"
            )
    channels, crop = _crop(tile, tensor_shape, ndim)
    size = crop.shape
    leading = _leading(axes, shape, tile, channels)
    start = [*(low for low, _ in leading), *tile.stitch_coords]
    stop = [
        *(high for _, high in leading),
        *(a + n for a, n in zip(tile.stitch_coords, size, strict=True)),
    ]
    box = Box(tuple(start), tuple(stop))
    if any(a < 0 for a in box.start) or any(b > n for b, n in zip(box.stop, shape, strict=True)):
        raise OutOfBounds(
            f"stitch_coords {list(tile.stitch_coords)} with a crop of {list(size)} leave the "
            f"array of {list(shape[-ndim:])}"
        )
    return box, (slice(None), *crop.slices)


def _crop(tile: TileEntry, tensor_shape: tuple[int, ...] | None, ndim: int) -> tuple[int, Box]:
    if tensor_shape is None:
        assert tile.crop_size is not None
        return 1, Box.of_shape(tile.crop_size)
    if len(tensor_shape) != 1 + ndim:
        raise InvalidMessage(
            f"the tensor of shape {list(tensor_shape)} must have {1 + ndim} axes: channel first, "
            f"then {ndim} of space"
        )
    channels, *size = tensor_shape
    if tile.crop_coords is None or tile.crop_size is None:
        return channels, Box.of_shape(size)
    stop = tuple(a + n for a, n in zip(tile.crop_coords, tile.crop_size, strict=True))
    if any(a < 0 for a in tile.crop_coords) or any(b > n for b, n in zip(stop, size, strict=True)):
        raise OutOfBounds(
            f"crop_coords {list(tile.crop_coords)} with crop_size {list(tile.crop_size)} leave "
            f"the tile of {size}"
        )
    return channels, Box(tile.crop_coords, stop)


def _leading(
    axes: str, shape: tuple[int, ...], tile: TileEntry, channels: int
) -> list[tuple[int, int]]:
    """Return the extent along the axes before those of space."""
    sizes = dict(zip(axes, shape, strict=True))
    at = _sample(sizes, tile) | _channels(sizes, tile, channels)
    return [at[axis] for axis in AXES if axis in at]


def _sample(sizes: dict[str, int], tile: TileEntry) -> dict[str, tuple[int, int]]:
    sampled = [axis for axis in "ST" if axis in sizes]
    if not sampled:
        if tile.sample_idx is not None:
            raise InvalidMessage(
                f"sample_idx {tile.sample_idx} is given, but the axes {''.join(sizes)!r} have "
                "neither S nor T"
            )
        return {}
    if tile.sample_idx is None:
        raise InvalidMessage(f"sample_idx is required: the axes have {' and '.join(sampled)}")
    times = sizes.get("T", 1)
    count = sizes.get("S", 1) * times
    if not 0 <= tile.sample_idx < count:
        raise OutOfBounds(f"sample_idx {tile.sample_idx} is not one of 0 to {count - 1}")
    sample, time = divmod(tile.sample_idx, times)
    place = {"S": (sample, sample + 1), "T": (time, time + 1)}
    return {axis: place[axis] for axis in sampled}


def _channels(sizes: dict[str, int], tile: TileEntry, channels: int) -> dict[str, tuple[int, int]]:
    first, last = tile.channel, tile.channel + channels
    if "C" not in sizes:
        if first != 0 or channels != 1:
            raise OutOfBounds(
                f"channel {first} with {channels} channels: an array without C takes one "
                "channel at 0"
            )
        return {}
    if first < 0 or last > sizes["C"]:
        raise OutOfBounds(
            f"channel {first} with {channels} channels leaves the array's {sizes['C']} channels"
        )
    return {"C": (first, last)}
