"""Turns block buffers into the encoded objects that Zarr would store, without touching a store.

Through zarr's own codecs, called in place: no event loop and no thread of zarr's between, so that
the work runs on the calling thread, and outside the interpreter's lock wherever a codec leaves it.
What cannot be called so (a codec that is only asynchronous, a format 2 array) is written by zarr
into memory and taken from there: slower, but whatever zarr can write works.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import add, mul
from os import SEEK_END
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.buffer import Buffer
from zarr.buffer import default_buffer_prototype
from zarr.codecs import ShardingCodec
from zarr.core.array_spec import ArraySpec
from zarr.storage import MemoryStore, StorePath

from consumer.commit import Parts
from consumer.coverage import Box, Coverage
from consumer.placement import Grid

AnyArray = zarr.Array[Any]
# What is to be stored by key; None: nothing, and what is there is to be removed.
Objects: TypeAlias = Mapping[str, Parts | None]

_NO_CHUNK = np.uint64(2**64 - 1)


class Encoder:
    """Encodes blocks of one array; safe in threads.

    Parameters
    ----------
    array : zarr.Array
        Whose metadata says how to encode.
    grid : Grid
        The array's.
    """

    def __init__(self, array: AnyArray, grid: Grid) -> None:
        self._array = array
        self._grid = grid
        self._file = _file_codec(array, grid.file)

    @property
    def direct(self) -> bool:
        """Whether zarr's codecs are called in place."""
        return self._file is not None

    def encode(self, block: Box, buffer: npt.NDArray[Any], filled: Iterable[Box]) -> Objects:
        """Return the encoded files of a block that a filled box touches, by key in the store.

        A file that would hold nothing but the fill value is None, unless the array stores those
        too.

        Parameters
        ----------
        block : Box
            The block's box in the array, in voxels.
        buffer : ndarray
            Of the block's shape; every voxel of a touched file must be valid. The objects may be
            views of it.
        filled : iterable of Box
            Relative to the block.
        """
        regions = touched_files(self._grid, block, filled)
        if self._file is None:
            return self._through_memory(block, buffer, regions)
        objects: dict[str, Parts | None] = {}
        for number in self._numbers(regions):
            file = self._grid.file_box(number)
            objects[self._key(number)] = self._file.encode(buffer[file.shifted(block.start).slices])
        return objects

    def chunks_left_out(self, file: Path) -> list[Box]:
        """Return the chunks that a stored shard does not hold, as boxes relative to the shard.

        None are told where files are no shards, or zarr's codecs cannot be called in place.
        """
        return self._file.left_out(file) if isinstance(self._file, _Shard) else []

    def _through_memory(
        self, block: Box, buffer: npt.NDArray[Any], regions: Iterable[Box]
    ) -> Objects:
        written: dict[str, Buffer] = {}
        target = _in_memory(self._array, written)
        objects: dict[str, Parts | None] = {}
        for region in regions:
            target[region.slices] = buffer[region.shifted(block.start).slices]
            if not self._array.config.write_empty_chunks:
                objects.update((self._key(number), None) for number in self._grid.files(region))
        objects.update((key, [_bytes_of(value)]) for key, value in written.items())
        return objects

    def _numbers(self, regions: Iterable[Box]) -> Iterator[tuple[int, ...]]:
        return itertools.chain.from_iterable(map(self._grid.files, regions))

    def _key(self, number: tuple[int, ...]) -> str:
        return f"{self._array.path}/{self._array.metadata.encode_chunk_key(number)}"


class _Chunk:
    """A chain of codecs for one chunk.

    Parameters
    ----------
    codecs : sequence of zarr codecs
        Each with `_encode_sync`.
    spec : ArraySpec
        Of the chunk.
    """

    def __init__(self, codecs: Sequence[Any], spec: Any) -> None:
        self._spec = spec
        self._steps: list[tuple[Any, Any]] = []
        self._back: list[tuple[Any, Any]] = []
        for codec in codecs:
            self._steps.append((codec._encode_sync, spec))  # noqa: SLF001 - zarr's, without a loop
            self._back.append((codec._decode_sync, spec))  # noqa: SLF001 - as above
            spec = codec.resolve_metadata(spec)

    def encode(self, values: npt.NDArray[Any]) -> Parts | None:
        """Return an encoded chunk; None where it need not be stored.

        Parameters
        ----------
        values : ndarray
            Less than a chunk where the array ends.
        """
        spec = self._spec
        encoded = spec.prototype.nd_buffer.from_ndarray_like(_padded(values, spec))
        if not spec.config.write_empty_chunks and encoded.all_equal(spec.fill_value):
            return None
        for step, of_step in self._steps:
            encoded = step(encoded, of_step)
        return [_bytes_of(encoded)]

    def decode(self, content: bytes) -> npt.NDArray[Any]:
        """Return a chunk."""
        decoded: Any = self._spec.prototype.buffer.from_bytes(content)
        for step, of_step in reversed(self._back):
            decoded = step(decoded, of_step)
        values: npt.NDArray[Any] = decoded.as_numpy_array()
        return values


class _Shard:
    """Chunks behind one another and an index of where each lies (zarr.dev, sharding_indexed).

    The index holds offset and length for every chunk of the shard, both 2 ** 64 - 1 where there is
    none: as for chunks that lie beyond the array's end.
    """

    def __init__(self, codec: ShardingCodec, spec: Any) -> None:
        self._shape = codec.chunk_shape
        self._counts = tuple(n // c for n, c in zip(spec.shape, self._shape, strict=True))
        self._chunk = _Chunk(codec.codecs, replace(spec, shape=self._shape))
        # An enumeration or a string, as releases of zarr differ.
        self._index_first = (
            str(getattr(codec.index_location, "value", codec.index_location)) == "start"
        )
        always = replace(spec.config, write_empty_chunks=True)
        self._index = _Chunk(
            codec.index_codecs,
            replace(
                spec,
                shape=(*self._counts, 2),
                dtype=zarr.dtype.UInt64(),
                fill_value=_NO_CHUNK,
                config=always,
            ),
        )

    def encode(self, values: npt.NDArray[Any]) -> Parts | None:
        """Return the parts of an encoded shard; None where no chunk of it need be stored.

        Parameters
        ----------
        values : ndarray
            Less than a shard where the array ends.
        """
        index = np.full((*self._counts, 2), _NO_CHUNK, np.uint64)
        offset = _size(self._index_parts(index)) if self._index_first else 0
        parts: list[bytes | memoryview] = []
        counts = (-(-n // size) for n, size in zip(values.shape, self._shape, strict=True))
        for number in itertools.product(*map(range, counts)):
            places = zip(number, self._shape, strict=True)
            chunk = self._chunk.encode(values[tuple(slice(i * n, (i + 1) * n) for i, n in places)])
            if chunk is not None:
                index[number] = offset, _size(chunk)
                offset += _size(chunk)
                parts += chunk
        if not parts:
            return None
        encoded = self._index_parts(index)
        return [*encoded, *parts] if self._index_first else [*parts, *encoded]

    def left_out(self, path: Path) -> list[Box]:
        """Return the chunks that a stored shard does not hold, or that lie beyond its end."""
        size = _size(self._index_parts(np.zeros((*self._counts, 2), np.uint64)))
        with path.open("rb") as file:
            end = file.seek(0, SEEK_END)
            file.seek(0 if self._index_first else max(0, end - size))
            index = self._index.decode(file.read(size))
        offset, length = index[..., 0], index[..., 1]
        held = (offset <= end) & (length <= end - np.minimum(offset, end)) & (length > 0)
        return [self._chunk_box(number) for number in np.argwhere(~held).tolist()]

    def _chunk_box(self, number: Sequence[int]) -> Box:
        start = tuple(map(mul, number, self._shape))
        return Box(start, tuple(map(add, start, self._shape)))

    def _index_parts(self, index: npt.NDArray[np.uint64]) -> Parts:
        parts = self._index.encode(index)
        assert parts is not None
        return parts


def _file_codec(array: AnyArray, shape: tuple[int, ...]) -> _Chunk | _Shard | None:
    """Return what encodes one file in place; None where zarr's codecs cannot be called so."""
    metadata = array.metadata
    if metadata.zarr_format != 3:
        return None
    codecs: Sequence[Any] = metadata.codecs
    spec = ArraySpec(
        shape, metadata.data_type, metadata.fill_value, array.config, default_buffer_prototype()
    )
    if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
        shard = codecs[0]
        return _Shard(shard, spec) if _in_place([*shard.codecs, *shard.index_codecs]) else None
    return _Chunk(codecs, spec) if _in_place(codecs) else None


def _in_place(codecs: Iterable[Any]) -> bool:
    return all(
        hasattr(codec, "_encode_sync") and not isinstance(codec, ShardingCodec) for codec in codecs
    )


def _padded(values: npt.NDArray[Any], spec: Any) -> npt.NDArray[Any]:
    """Return values of the chunk's shape, those beyond the array's end being the fill value."""
    if values.shape == spec.shape:
        return values
    padded = np.full(spec.shape, spec.fill_value, values.dtype)
    padded[tuple(map(slice, values.shape))] = values
    return padded


def _bytes_of(buffer: Any) -> memoryview:
    return memoryview(buffer.as_numpy_array()).cast("B")


def _size(parts: Parts) -> int:
    return sum(map(len, parts))


def size(objects: Objects) -> int:
    """Return the bytes of all objects."""
    return sum(_size(parts) for parts in objects.values() if parts is not None)


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
