"""Turns block buffers into the encoded objects that Zarr would store, without touching a store.

Through zarr's own codecs, so whatever zarr can write works: any codec, shard layout or format.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy.typing as npt
import zarr
from zarr.abc.buffer import Buffer
from zarr.storage import MemoryStore, StorePath

from consumer.coverage import Box, Coverage
from consumer.placement import Grid

AnyArray = zarr.Array[Any]
Objects = Mapping[str, bytes]


def encode(
    array: AnyArray, grid: Grid, block: Box, buffer: npt.NDArray[Any], filled: Iterable[Box]
) -> Objects:
    """Return the encoded files of a block that a filled box touches, by key in the store.

    Parameters
    ----------
    array : zarr.Array
        Whose metadata says how to encode.
    grid : Grid
        The array's.
    block : Box
        The block's box in the array, in voxels.
    buffer : ndarray
        Of the block's shape; every voxel of a touched file must be valid.
    filled : iterable of Box
        Relative to the block.
    """
    objects: dict[str, Buffer] = {}
    target = _in_memory(array, objects)
    for region in touched_files(grid, block, filled):
        target[region.slices] = buffer[region.shifted(block.start).slices]
    return {key: value.to_bytes() for key, value in objects.items()}


def touched_files(grid: Grid, block: Box, filled: Iterable[Box]) -> list[Box]:
    """Return disjoint boxes in the array that make up the files that a filled box touches."""
    files = Coverage()
    for box in filled:
        in_array = box.shifted(tuple(-a for a in block.start))
        files.add(
            Box(
                tuple(a // n for a, n in zip(in_array.start, grid.file, strict=True)),
                tuple(-(-b // n) for b, n in zip(in_array.stop, grid.file, strict=True)),
            )
        )
    return [_voxels(numbers, grid) for numbers in files]


def _voxels(files: Box, grid: Grid) -> Box:
    start = tuple(a * n for a, n in zip(files.start, grid.file, strict=True))
    stop = tuple(b * n for b, n in zip(files.stop, grid.file, strict=True))
    return Box(start, tuple(map(min, stop, grid.shape)))


def _in_memory(array: AnyArray, objects: dict[str, Buffer]) -> AnyArray:
    place = StorePath(MemoryStore(objects), array.path)
    return zarr.Array(zarr.AsyncArray(array.metadata, place, array.config))
