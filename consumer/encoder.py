"""Turns block buffers into the encoded objects that Zarr would store, without touching a store.

Through zarr's own codecs, so whatever zarr can write works: any codec, shard layout or format.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy.typing as npt
import zarr
from zarr.abc.buffer import Buffer
from zarr.storage import MemoryStore, StorePath

from consumer.coverage import Box, Coverage
from consumer.placement import Grid

AnyArray = zarr.Array[Any]
# What is to be stored by key; None: nothing, and what is there is to be removed.
Objects = Mapping[str, bytes | None]


def encode(
    array: AnyArray, grid: Grid, block: Box, buffer: npt.NDArray[Any], filled: Iterable[Box]
) -> Objects:
    """Return the encoded files of a block that a filled box touches, by key in the store.

    A file that would hold nothing but the fill value is None, unless the array stores those too.

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
    written: dict[str, Buffer] = {}
    target = _in_memory(array, written)
    regions = touched_files(grid, block, filled)
    for region in regions:
        target[region.slices] = buffer[region.shifted(block.start).slices]
    objects: dict[str, bytes | None] = {}
    if not array.config.write_empty_chunks:
        objects.update(dict.fromkeys(_keys(array, grid, regions)))
    objects.update((key, value.to_bytes()) for key, value in written.items())
    return objects


def _keys(array: AnyArray, grid: Grid, regions: Iterable[Box]) -> Iterator[str]:
    for region in regions:
        for number in grid.files(region):
            yield f"{array.path}/{array.metadata.encode_chunk_key(number)}"


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
