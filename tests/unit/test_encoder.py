"""What the encoder makes of a block: the files that zarr itself would store, and no others."""

import itertools
import random
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)

from consumer.coverage import Box
from consumer.encoder import AnyArray, Encoder, touched_files
from consumer.placement import Grid, block_shape

SHAPE = (3, 70, 100)

ARRAYS: dict[str, dict[str, Any]] = {
    "chunks that divide the array": {"chunks": (1, 35, 50)},
    "chunks that do not divide the array": {"chunks": (2, 32, 32)},
    "one chunk": {"chunks": SHAPE},
    "one chunk beyond the array": {"chunks": (4, 128, 128)},
    "shards that divide the array": {"chunks": (1, 7, 10), "shards": (3, 35, 50)},
    "shards that do not divide the array": {"chunks": (2, 16, 16), "shards": (2, 48, 64)},
    "one shard beyond the array": {"chunks": (1, 32, 32), "shards": (4, 128, 128)},
    "shards with their index first": {
        "chunks": (3, 70, 100),
        "compressors": None,
        "serializer": ShardingCodec(chunk_shape=(1, 35, 20), index_location="start"),
    },
    "not compressed": {"chunks": (2, 32, 32), "compressors": None},
    "every kind of codec": {
        "chunks": (2, 32, 32),
        "filters": [TransposeCodec(order=(2, 0, 1))],
        "serializer": BytesCodec(endian="big"),
        "compressors": [BloscCodec(typesize=2), ZstdCodec(), Crc32cCodec()],
    },
    "every kind of codec in shards": {
        "chunks": (2, 32, 32),
        "shards": (2, 64, 64),
        "filters": [TransposeCodec(order=(2, 0, 1))],
        "serializer": BytesCodec(endian="big"),
        "compressors": [BloscCodec(typesize=2), ZstdCodec(), Crc32cCodec()],
    },
    "keys with dots": {
        "chunks": (2, 32, 32),
        "chunk_key_encoding": {"name": "default", "separator": "."},
    },
    "format 2": {"chunks": (2, 32, 32), "zarr_format": 2},
    "format 2 in Fortran order": {"chunks": (2, 32, 32), "zarr_format": 2, "order": "F"},
    "format 2, big endian": {"chunks": (2, 32, 32), "zarr_format": 2, "dtype": ">u2"},
}


def created(folder: Path, *, write_empty: bool = True, **options: Any) -> AnyArray:
    """Create an array on disk with plain zarr."""
    wanted: dict[str, Any] = {"shape": SHAPE, "dtype": "uint16", "fill_value": 0} | options
    config: Any = {"write_empty_chunks": write_empty}
    return zarr.create_array(folder, name="g/img", config=config, **wanted)


def grid_of(array: AnyArray) -> Grid:
    """Return the array's grid, with blocks of several files where it has no shards."""
    file = array.shards or array.chunks
    block = block_shape(array.shape, array.chunks, array.shards, 1 << 9)
    return Grid(array.shape, file, block)


def blocks(grid: Grid) -> Iterator[Box]:
    """Yield every block of an array."""
    counts = (-(-n // size) for n, size in zip(grid.shape, grid.block, strict=True))
    return (grid.box(index) for index in itertools.product(*map(range, counts)))


def image(dtype: str = "uint16") -> npt.NDArray[Any]:
    """Return voxels of which each is known by its value, and none is zero."""
    return np.arange(1, prod(SHAPE) + 1, dtype=dtype).reshape(SHAPE)


def whole(box: Box) -> list[Box]:
    """Return the coverage of a block that is filled."""
    return [Box.of_shape(box.shape)]


def chunk_files(folder: Path) -> dict[str, bytes]:
    """Return every file of a store but the metadata, by key."""
    names = {"zarr.json", ".zarray", ".zattrs", ".zgroup"}
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in names)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def encoded(array: AnyArray, values: npt.NDArray[Any]) -> dict[str, bytes]:
    """Encode a whole array block by block."""
    grid, objects = grid_of(array), dict[str, bytes]()
    for box in blocks(grid):
        made = Encoder(array, grid).encode(box, values[box.slices], whole(box))
        assert not made.keys() & objects.keys()
        objects.update((key, b"".join(value)) for key, value in made.items() if value is not None)
    return objects


def write_files(folder: Path, objects: Mapping[str, bytes]) -> None:
    """Write objects below a folder."""
    for key, content in objects.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_what_zarr_can_encode_in_place_is_not_written_through_memory(tmp_path: Path) -> None:
    in_place = {
        name: Encoder(array, grid_of(array)).direct
        for name, options in ARRAYS.items()
        for array in [created(tmp_path / name, **options)]
    }
    assert in_place == {name: not name.startswith("format 2") for name in ARRAYS}


@pytest.mark.parametrize("options", ARRAYS.values(), ids=ARRAYS)
def test_both_ways_of_encoding_read_back_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    array = created(tmp_path, **options)
    with pytest.MonkeyPatch.context() as without:
        without.setattr("consumer.encoder._in_place", lambda _codecs: False)
        write_files(tmp_path, encoded(array, image()))
    stored = zarr.open_array(tmp_path, path="g/img", mode="r")
    np.testing.assert_array_equal(np.asarray(stored[:]), image())


# -- what the files hold ------------------------------------------------------------------------


@pytest.mark.parametrize("options", ARRAYS.values(), ids=ARRAYS)
def test_files_written_to_a_folder_read_back_with_plain_zarr(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    array = created(tmp_path, **options)
    write_files(tmp_path, encoded(array, image()))
    stored = zarr.open_array(tmp_path, path="g/img", mode="r")
    np.testing.assert_array_equal(np.asarray(stored[:]), image())


@pytest.mark.parametrize("options", ARRAYS.values(), ids=ARRAYS)
def test_files_are_those_that_zarr_writes(tmp_path: Path, options: dict[str, Any]) -> None:
    array = created(tmp_path, **options)
    objects = encoded(array, image())
    array[:] = image()
    found = chunk_files(tmp_path)
    # The order of chunks in a shard is the writer's choice, and those beyond the array need not be.
    assert objects.keys() == found.keys()
    assert array.shards or objects == found


@pytest.mark.parametrize("options", ARRAYS.values(), ids=ARRAYS)
def test_encoding_leaves_the_store_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    encoded(created(tmp_path, **options), image())
    assert chunk_files(tmp_path) == {}


@pytest.mark.parametrize("options", ARRAYS.values(), ids=ARRAYS)
def test_encoding_leaves_the_buffer_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    values = image()
    encoded(created(tmp_path, **options), values)
    np.testing.assert_array_equal(values, image())


DTYPES = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
]


@pytest.mark.parametrize("options", [{}, {"shards": (2, 64, 64)}], ids=["chunks", "shards"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_encoded_as_zarr_does(
    tmp_path: Path, dtype: str, options: dict[str, Any]
) -> None:
    array = created(tmp_path, dtype=dtype, chunks=(2, 32, 32), **options)
    numbers = (image("uint32") * 37 % 251).astype(dtype)
    write_files(tmp_path, encoded(array, numbers))
    stored = zarr.open_array(tmp_path, path="g/img", mode="r")
    np.testing.assert_array_equal(np.asarray(stored[:]), numbers)
    assert stored.dtype == dtype


SPECIAL = {"minus zero": -0.0, "not a number": np.nan, "infinity": np.inf, "denormal": 1e-45}


@pytest.mark.parametrize("value", SPECIAL.values(), ids=SPECIAL)
def test_special_floats_keep_their_bits(tmp_path: Path, value: float) -> None:
    array = created(tmp_path, dtype="float32", chunks=(3, 70, 100), compressors=None)
    buffer = np.full(SHAPE, value, "float32")
    [content] = encoded(array, buffer).values()
    assert content == buffer.tobytes()


# -- which files ---------------------------------------------------------------------------------


def touched_keys(array: AnyArray, box: Box) -> set[str]:
    """Return the keys of the files that hold a voxel of a box, by looking at every voxel."""
    file = array.shards or array.chunks
    numbers = {
        tuple(at // n for at, n in zip(voxel, file, strict=True))
        for voxel in itertools.product(*map(range, box.start, box.stop))
    }
    return {"g/img/c/" + "/".join(map(str, number)) for number in numbers}


@pytest.mark.parametrize(
    "options",
    [ARRAYS["chunks that do not divide the array"], ARRAYS["shards that do not divide the array"]],
    ids=["chunks", "shards"],
)
@pytest.mark.parametrize("seed", range(12))
def test_only_files_that_a_filled_box_touches_are_encoded(
    tmp_path: Path, seed: int, options: dict[str, Any]
) -> None:
    rng = random.Random(seed)
    array = created(tmp_path, **options)
    grid = grid_of(array)
    for block in blocks(grid):
        boxes = [random_box(rng, block.shape) for _ in range(rng.randint(1, 3))]
        objects = Encoder(array, grid).encode(block, image()[block.slices], boxes)
        wanted: set[str] = set()
        for box in boxes:
            wanted |= touched_keys(array, box.shifted(tuple(-n for n in block.start)))
        assert set(objects) == wanted


def random_box(rng: random.Random, shape: tuple[int, ...]) -> Box:
    """Return a small box anywhere within a shape."""
    size = [rng.randint(1, min(n, 12)) for n in shape]
    start = tuple(rng.randint(0, n - m) for n, m in zip(shape, size, strict=True))
    return Box(start, tuple(a + m for a, m in zip(start, size, strict=True)))


def test_nothing_filled_is_no_file(tmp_path: Path) -> None:
    array = created(tmp_path, chunks=(2, 32, 32))
    assert Encoder(array, grid_of(array)).encode(Box.of_shape(SHAPE), image(), []) == {}


GRID = Grid(shape=(70, 100), file=(32, 32), block=(64, 64))
TOUCHED: dict[str, tuple[Box, list[Box], list[Box]]] = {
    "one voxel": (
        Box((0, 0), (64, 64)),
        [Box((33, 5), (34, 6))],
        [Box((32, 0), (64, 32))],
    ),
    "last voxel of a file": (
        Box((0, 0), (64, 64)),
        [Box((31, 31), (32, 32))],
        [Box((0, 0), (32, 32))],
    ),
    "all": (
        Box((0, 0), (64, 64)),
        [Box((0, 0), (64, 64))],
        [Box((0, 0), (64, 64))],
    ),
    "two boxes in one file": (
        Box((0, 0), (64, 64)),
        [Box((0, 0), (1, 1)), Box((9, 9), (12, 12))],
        [Box((0, 0), (32, 32))],
    ),
    "block at the edge": (
        Box((64, 64), (70, 100)),
        [Box((5, 35), (6, 36))],
        [Box((64, 96), (70, 100))],
    ),
    "nothing": (Box((0, 0), (64, 64)), [], []),
}


@pytest.mark.parametrize(("block", "filled", "files"), TOUCHED.values(), ids=TOUCHED)
def test_touched_files_are_boxes_of_whole_files(
    block: Box, filled: list[Box], files: list[Box]
) -> None:
    assert touched_files(GRID, block, filled) == files


@pytest.mark.parametrize("seed", range(20))
def test_touched_files_never_overlap(seed: int) -> None:
    rng = random.Random(seed)
    filled = [random_box(rng, (64, 64)) for _ in range(5)]
    found = touched_files(GRID, Box((0, 0), (64, 64)), filled)
    pairs = itertools.combinations(found, 2)
    assert not any(one.intersection(other) for one, other in pairs)


# -- nothing but the fill value -----------------------------------------------------------------


@pytest.mark.parametrize("fill_value", [0, 7])
@pytest.mark.parametrize(
    "options",
    [{"chunks": (2, 32, 32)}, {"chunks": (1, 16, 16), "shards": (2, 32, 32)}],
    ids=["chunks", "shards"],
)
def test_files_of_nothing_but_the_fill_value_are_encoded(
    tmp_path: Path, options: dict[str, Any], fill_value: int
) -> None:
    array = created(tmp_path, fill_value=fill_value, **options)
    objects = encoded(array, np.full(SHAPE, fill_value, "uint16"))
    assert len(objects) == 2 * 3 * 4


@pytest.mark.parametrize(
    "options",
    [{"chunks": (2, 32, 32)}, {"chunks": (1, 16, 16), "shards": (2, 32, 32)}],
    ids=["chunks", "shards"],
)
def test_files_of_nothing_but_the_fill_value_are_left_out_where_the_array_says_so(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    array = created(tmp_path, write_empty=False, **options)
    values = np.zeros(SHAPE, "uint16")
    values[0, 33, 99] = 1
    assert [key for key, content in encoded(array, values).items() if content] == ["g/img/c/0/1/3"]
