"""Where tiles go, against an array that is written voxel by voxel as the contract defines."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.contract import TileEntry
from consumer.coverage import Box
from consumer.errors import InvalidMessage, OutOfBounds
from consumer.placement import (
    AUTO_SHARD_BYTES,
    BLOCK_BYTES,
    BlockIndex,
    Grid,
    Layout,
    automatic_chunks,
    automatic_shards,
    block_shape,
    stitched_box,
)

AXES = [
    f"{s}{t}{c}{z}YX" for s in ("", "S") for t in ("", "T") for c in ("", "C") for z in ("", "Z")
]
Sizes = tuple[int, ...]
UNTOUCHED = -1


Placed = tuple[TileEntry, npt.NDArray[np.int64] | None]


@dataclass(frozen=True)
class Case:
    """An array, how it is cut, and the tiles that go into it, each with its tensor or None."""

    axes: str
    shape: Sizes
    grid: Grid
    tiles: list[Placed]


def _grids(shape: Sizes) -> st.SearchStrategy[Grid]:
    """Draw how to cut an array: shards of whole chunks, or none and more or less room a block."""
    sizes = st.tuples(*(st.integers(1, n + 2) for n in shape))
    counts = st.tuples(*(st.integers(1, 3) for _ in shape))
    sharded = st.builds(
        lambda chunks, many: tuple(c * n for c, n in zip(chunks, many, strict=True)), sizes, counts
    ).map(lambda shards: Grid(shape, shards, block_shape(shape, (1,) * len(shape), shards, 4)))
    plain = st.builds(
        lambda chunks, itemsize: Grid(shape, chunks, block_shape(shape, chunks, None, itemsize)),
        sizes,
        st.sampled_from([BLOCK_BYTES, BLOCK_BYTES // 2, BLOCK_BYTES // 7, BLOCK_BYTES // 100, 4]),
    )
    return sharded | plain


@st.composite
def cases(draw: st.DrawFn, axes: str) -> Case:
    """Draw a small array of `axes` and up to three tiles inside it."""
    sizes = {axis: draw(st.integers(1, 9 if axis in "YX" else 3)) for axis in axes}
    shape = tuple(sizes.values())
    spatial = [axis for axis in axes if axis in "ZYX"]
    tiles: list[Placed] = []
    for number in range(draw(st.integers(1, 3))):
        size = [draw(st.integers(1, sizes[axis])) for axis in spatial]
        at = [draw(st.integers(0, sizes[a] - n)) for a, n in zip(spatial, size, strict=True)]
        given: dict[str, Any] = {"stitch_coords": tuple(at)}
        if "S" in axes or "T" in axes:
            given["sample_idx"] = draw(st.integers(0, sizes.get("S", 1) * sizes.get("T", 1) - 1))
        if draw(st.booleans()):
            given["channel"] = draw(st.integers(0, sizes.get("C", 1) - 1))
            tiles.append((TileEntry(**given, crop_size=tuple(size), fill=number), None))
            continue
        channels = draw(st.integers(1, sizes.get("C", 1)))
        given["channel"] = draw(st.integers(0, sizes.get("C", 1) - channels))
        before = [draw(st.integers(0, 2)) for _ in spatial]
        outer = [a + n + draw(st.integers(0, 2)) for a, n in zip(before, size, strict=True)]
        if outer != size:
            given |= {"crop_coords": tuple(before), "crop_size": tuple(size)}
        count = channels * math.prod(outer)
        tensor = np.arange(count, dtype=np.int64).reshape(channels, *outer) + 1000 * (number + 1)
        tiles.append((TileEntry(**given), tensor))
    return Case(axes, shape, draw(_grids(shape)), tiles)


def _by_definition(case: Case) -> npt.NDArray[np.int64]:
    """Return the array that the contract's definitions give, written in all six axes."""
    sizes = dict(zip(case.axes, case.shape, strict=True))
    array = np.full([sizes.get(axis, 1) for axis in "STCZYX"], UNTOUCHED)
    for tile, tensor in case.tiles:
        sample, time = divmod(tile.sample_idx or 0, sizes.get("T", 1))
        *depth, y, x = tile.stitch_coords
        z = depth[0] if depth else 0
        crop = _kept(tile, tensor)
        crop = crop if "Z" in case.axes else crop[:, np.newaxis]
        c, d, h, w = crop.shape
        first = tile.channel
        array[sample, time, first : first + c, z : z + d, y : y + h, x : x + w] = crop
    return array.reshape(case.shape)


def _kept(tile: TileEntry, tensor: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    """Return the part of a tile to keep, C(Z)YX."""
    if tensor is None:
        assert tile.crop_size is not None
        return np.full((1, *tile.crop_size), tile.fill, np.int64)
    if tile.crop_coords is None or tile.crop_size is None:
        return tensor
    for axis, (a, n) in enumerate(zip(tile.crop_coords, tile.crop_size, strict=True), 1):
        tensor = tensor.take(range(a, a + n), axis)
    return tensor


def _by_blocks(case: Case) -> npt.NDArray[np.int64]:
    """Return the array stitched from block buffers that were filled piece by piece."""
    grid = case.grid
    buffers: dict[BlockIndex, npt.NDArray[np.int64]] = {}
    for tile, tensor in case.tiles:
        box, crop = stitched_box(
            case.axes, case.shape, tile, None if tensor is None else tensor.shape
        )
        values = (
            np.full(box.shape, tile.fill) if tensor is None else tensor[crop].reshape(box.shape)
        )
        for piece in grid.pieces(box):
            empty = np.full(grid.box(piece.block).shape, UNTOUCHED)
            buffer = buffers.setdefault(piece.block, empty)
            buffer[piece.inside.slices] = values[piece.source.slices]
    array = np.full(case.shape, UNTOUCHED)
    for index, buffer in buffers.items():
        array[grid.box(index).slices] = buffer
    return array


@pytest.mark.parametrize("axes", AXES)
@settings(max_examples=20)
@given(data=st.data())
def test_tiles_assembled_in_blocks_make_the_array_that_the_contract_defines(
    axes: str, data: st.DataObject
) -> None:
    case = data.draw(cases(axes))

    np.testing.assert_array_equal(_by_blocks(case), _by_definition(case))


# --- Blocks

arrays = st.lists(st.integers(1, 12), min_size=2, max_size=4).map(tuple)
grids = arrays.flatmap(_grids)
a_property = settings(max_examples=60)


def _blocks(grid: Grid) -> list[Box]:
    return [grid.box(piece.block) for piece in grid.pieces(Box.of_shape(grid.shape))]


@a_property
@given(grids)
def test_each_voxel_of_the_array_lies_in_one_block(grid: Grid) -> None:
    counts = np.zeros(grid.shape, int)
    for box in _blocks(grid):
        counts[box.slices] += 1

    assert (counts == 1).all()


@a_property
@given(grids)
def test_blocks_begin_where_a_stored_file_begins(grid: Grid) -> None:
    starts = itertools.chain(*(zip(box.start, grid.file, strict=True) for box in _blocks(grid)))

    assert {start % size for start, size in starts} == {0}


@a_property
@given(grids)
def test_blocks_end_where_a_stored_file_or_the_array_ends(grid: Grid) -> None:
    stops = itertools.chain(
        *(zip(box.stop, grid.file, grid.shape, strict=True) for box in _blocks(grid))
    )

    assert all(stop % size == 0 or stop == end for stop, size, end in stops)


@st.composite
def grids_with_a_box(draw: st.DrawFn) -> tuple[Grid, Box]:
    """Draw a grid and a box inside its array."""
    grid = draw(grids)
    start = tuple(draw(st.integers(0, n - 1)) for n in grid.shape)
    stop = tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, grid.shape, strict=True))
    return grid, Box(start, stop)


@a_property
@given(grids_with_a_box())
def test_the_pieces_of_a_box_are_its_voxels_in_array_coordinates(drawn: tuple[Grid, Box]) -> None:
    grid, box = drawn
    counts, wanted = np.zeros(grid.shape, int), np.zeros(grid.shape, int)
    wanted[box.slices] = 1

    for piece in grid.pieces(box):
        counts[grid.box(piece.block).slices][piece.inside.slices] += 1

    np.testing.assert_array_equal(counts, wanted)


@a_property
@given(grids_with_a_box())
def test_the_pieces_of_a_box_take_each_of_its_voxels_once(drawn: tuple[Grid, Box]) -> None:
    grid, box = drawn
    counts = np.zeros(box.shape, int)

    for piece in grid.pieces(box):
        counts[piece.source.slices] += 1

    assert (counts == 1).all()


@a_property
@given(grids_with_a_box())
def test_the_pieces_of_a_box_come_in_c_order_one_for_each_block(drawn: tuple[Grid, Box]) -> None:
    grid, box = drawn
    indices = [piece.block for piece in grid.pieces(box)]

    assert indices == sorted(set(indices))


def test_a_block_at_the_edge_ends_with_the_array() -> None:
    grid = Grid((10, 10), (4, 4), (4, 4))

    assert grid.box((2, 2)) == Box((8, 8), (10, 10))


LAYOUTS: dict[str, tuple[Sizes | None, Grid]] = {
    "sharded": ((512, 1024), Grid((4096, 4096), (512, 1024), (512, 1024))),
    "without shards": (None, Grid((4096, 4096), (128, 128), (256, 4096))),
}


@pytest.mark.parametrize(("shards", "grid"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_stored_array_is_cut_by_its_files_and_its_item_size(
    shards: Sizes | None, grid: Grid
) -> None:
    layout = Layout("YX", (4096, 4096), np.dtype("float32"), (128, 128), shards)

    assert layout.grid == grid


# --- Automatic sizes

large_shapes = st.lists(st.integers(1, 40_000), min_size=6, max_size=6)
itemsizes = st.sampled_from([1, 2, 4, 8])


@st.composite
def large_arrays(draw: st.DrawFn) -> tuple[str, Sizes, Sizes, int]:
    """Draw axes, shape, chunks and item size of an array of any size."""
    axes = draw(st.sampled_from(AXES))
    shape = tuple(draw(large_shapes)[: len(axes)])
    chunks = draw(
        st.just(automatic_chunks(axes, shape)) | st.tuples(*(st.integers(1, 2048) for _ in axes))
    )
    return axes, shape, chunks, draw(itemsizes)


def _bytes(sizes: Sequence[int], itemsize: int) -> int:
    return math.prod(sizes) * itemsize


@pytest.mark.parametrize(
    ("axes", "shape", "chunks"),
    [
        ("YX", (4160, 4160), (128, 128)),
        ("YX", (100, 300), (100, 128)),
        ("STCZYX", (9, 9, 9, 200, 5, 128), (1, 1, 1, 128, 5, 128)),
        ("CYX", (300, 1, 129), (1, 1, 128)),
    ],
)
def test_automatic_chunks_are(axes: str, shape: Sizes, chunks: Sizes) -> None:
    assert automatic_chunks(axes, shape) == chunks


@a_property
@given(large_arrays())
def test_automatic_shards_are_whole_multiples_of_the_chunks(
    array: tuple[str, Sizes, Sizes, int],
) -> None:
    _, _, chunks, _ = array

    assert {s % c for s, c in zip(automatic_shards(*array), chunks, strict=True)} == {0}


@a_property
@given(large_arrays())
def test_automatic_shards_are_one_chunk_or_at_most_16_mib(
    array: tuple[str, Sizes, Sizes, int],
) -> None:
    _, _, chunks, itemsize = array
    shards = automatic_shards(*array)

    assert shards == chunks or _bytes(shards, itemsize) <= AUTO_SHARD_BYTES


@a_property
@given(large_arrays())
def test_automatic_shards_are_more_than_8_mib_or_hold_all_of_space(
    array: tuple[str, Sizes, Sizes, int],
) -> None:
    axes, shape, _, itemsize = array
    shards = automatic_shards(*array)

    whole = [s >= n for axis, s, n in zip(axes, shards, shape, strict=True) if axis in "ZYX"]
    assert all(whole) or _bytes(shards, itemsize) > AUTO_SHARD_BYTES // 2


@a_property
@given(large_arrays())
def test_automatic_shards_reach_less_than_a_chunk_beyond_the_array(
    array: tuple[str, Sizes, Sizes, int],
) -> None:
    _, shape, chunks, _ = array

    sizes = zip(automatic_shards(*array), shape, chunks, strict=True)
    assert all(shard < n + chunk for shard, n, chunk in sizes)


@a_property
@given(large_arrays())
def test_automatic_shards_are_one_chunk_along_samples_time_and_channels(
    array: tuple[str, Sizes, Sizes, int],
) -> None:
    axes, _, chunks, _ = array

    sizes = zip(axes, automatic_shards(*array), chunks, strict=True)
    assert all(shard == chunk for axis, shard, chunk in sizes if axis in "STC")


def test_automatic_shards_of_a_large_plane_are_square() -> None:
    assert automatic_shards("YX", (40_000, 40_000), (128, 128), 4) == (2048, 2048)


def test_a_block_is_one_shard() -> None:
    assert block_shape((4096, 4096), (128, 128), (1024, 2048), 4) == (1024, 2048)


@a_property
@given(large_arrays())
def test_a_block_without_shards_is_whole_chunks(array: tuple[str, Sizes, Sizes, int]) -> None:
    _, shape, chunks, itemsize = array
    block = block_shape(shape, chunks, None, itemsize)

    assert {b % c for b, c in zip(block, chunks, strict=True)} == {0}


@a_property
@given(large_arrays())
def test_a_block_without_shards_is_one_chunk_or_at_most_4_mib(
    array: tuple[str, Sizes, Sizes, int],
) -> None:
    _, shape, chunks, itemsize = array
    block = block_shape(shape, chunks, None, itemsize)

    assert block == chunks or _bytes(block, itemsize) <= BLOCK_BYTES


@a_property
@given(large_arrays())
def test_a_block_without_shards_reaches_less_than_a_chunk_beyond_the_array(
    array: tuple[str, Sizes, Sizes, int],
) -> None:
    _, shape, chunks, itemsize = array

    sizes = zip(block_shape(shape, chunks, None, itemsize), shape, chunks, strict=True)
    assert all(block < n + chunk for block, n, chunk in sizes)


@a_property
@given(large_arrays())
def test_a_block_without_shards_grows_along_an_axis_only_where_the_later_ones_are_whole(
    array: tuple[str, Sizes, Sizes, int],
) -> None:
    _, shape, chunks, itemsize = array
    block = block_shape(shape, chunks, None, itemsize)

    grown = [axis for axis in range(len(shape)) if block[axis] > chunks[axis]]
    later = range(grown[0] + 1, len(shape)) if grown else range(0)
    assert all(block[axis] >= shape[axis] for axis in later)


def test_a_block_without_shards_has_as_many_chunks_as_4_mib_take() -> None:
    assert block_shape((4096, 40_000), (128, 128), None, 4) == (128, 128 * 64)


# --- What is refused

# Axes, shape, the tile, the tensor's shape, the words that name the value.
OUTSIDE: dict[str, tuple[str, Sizes, dict[str, Any], Sizes | None, str]] = {
    "stitch_coords negative": (
        "YX",
        (64, 48),
        {"stitch_coords": (0, -1)},
        (1, 8, 8),
        "stitch_coords [0, -1]",
    ),
    "stitched crop one row beyond": (
        "YX",
        (64, 48),
        {"stitch_coords": (57, 0)},
        (1, 8, 8),
        "stitch_coords [57, 0]",
    ),
    "stitched crop one column beyond": (
        "YX",
        (64, 48),
        {"stitch_coords": (0, 41)},
        (1, 8, 8),
        "stitch_coords [0, 41]",
    ),
    "stitched crop one plane beyond": (
        "ZYX",
        (3, 64, 48),
        {"stitch_coords": (2, 0, 0)},
        (1, 2, 8, 8),
        "stitch_coords [2, 0, 0]",
    ),
    "stitch_coords far beyond": (
        "YX",
        (64, 48),
        {"stitch_coords": ((1 << 63) - 1, 0)},
        (1, 8, 8),
        str((1 << 63) - 1),
    ),
    "fill beyond": (
        "YX",
        (64, 48),
        {"stitch_coords": (60, 0), "crop_size": (5, 5), "fill": 0},
        None,
        "[5, 5]",
    ),
    "crop_coords negative": (
        "YX",
        (64, 48),
        {"stitch_coords": (0, 0), "crop_coords": (-1, 0), "crop_size": (4, 4)},
        (1, 8, 8),
        "crop_coords [-1, 0]",
    ),
    "crop one row beyond the tile": (
        "YX",
        (64, 48),
        {"stitch_coords": (0, 0), "crop_coords": (5, 0), "crop_size": (4, 4)},
        (1, 8, 8),
        "crop_coords [5, 0]",
    ),
    "crop larger than the tile": (
        "YX",
        (64, 48),
        {"stitch_coords": (0, 0), "crop_coords": (0, 0), "crop_size": (8, 9)},
        (1, 8, 8),
        "crop_size [8, 9]",
    ),
    "sample_idx negative": (
        "SYX",
        (2, 64, 48),
        {"stitch_coords": (0, 0), "sample_idx": -1},
        (1, 8, 8),
        "sample_idx -1",
    ),
    "sample_idx beyond the samples": (
        "SYX",
        (2, 64, 48),
        {"stitch_coords": (0, 0), "sample_idx": 2},
        (1, 8, 8),
        "sample_idx 2",
    ),
    "sample_idx beyond the time points": (
        "TYX",
        (2, 64, 48),
        {"stitch_coords": (0, 0), "sample_idx": 2},
        (1, 8, 8),
        "sample_idx 2",
    ),
    "sample_idx beyond samples and time points": (
        "STYX",
        (2, 3, 64, 48),
        {"stitch_coords": (0, 0), "sample_idx": 6},
        (1, 8, 8),
        "sample_idx 6",
    ),
    "channel negative": (
        "CYX",
        (3, 64, 48),
        {"stitch_coords": (0, 0), "channel": -1},
        (1, 8, 8),
        "channel -1",
    ),
    "channel beyond": (
        "CYX",
        (3, 64, 48),
        {"stitch_coords": (0, 0), "channel": 3},
        (1, 8, 8),
        "channel 3",
    ),
    "channels leave the array": (
        "CYX",
        (3, 64, 48),
        {"stitch_coords": (0, 0), "channel": 2},
        (2, 8, 8),
        "channel 2 with 2 channels",
    ),
    "more channels than the array": (
        "CYX",
        (3, 64, 48),
        {"stitch_coords": (0, 0)},
        (4, 8, 8),
        "4 channels",
    ),
    "fill beyond the channels": (
        "CYX",
        (3, 64, 48),
        {"stitch_coords": (0, 0), "channel": 3, "crop_size": (5, 5), "fill": 0},
        None,
        "channel 3",
    ),
    "two channels without C": ("YX", (64, 48), {"stitch_coords": (0, 0)}, (2, 8, 8), "2 channels"),
    "channel 1 without C": (
        "YX",
        (64, 48),
        {"stitch_coords": (0, 0), "channel": 1},
        (1, 8, 8),
        "channel 1",
    ),
}
MISSHAPEN: dict[str, tuple[str, Sizes, dict[str, Any], Sizes | None, str]] = {
    "stitch_coords of one axis": (
        "YX",
        (64, 48),
        {"stitch_coords": (5,)},
        (1, 8, 8),
        "stitch_coords [5]",
    ),
    "stitch_coords with a Z": (
        "YX",
        (64, 48),
        {"stitch_coords": (5, 6, 7)},
        (1, 8, 8),
        "stitch_coords [5, 6, 7]",
    ),
    "stitch_coords without the Z": (
        "ZYX",
        (3, 64, 48),
        {"stitch_coords": (5, 6)},
        (1, 1, 8, 8),
        "stitch_coords [5, 6]",
    ),
    "stitch_coords with the channel": (
        "CYX",
        (3, 64, 48),
        {"stitch_coords": (0, 5, 6)},
        (1, 8, 8),
        "stitch_coords [0, 5, 6]",
    ),
    "no stitch_coords": ("YX", (64, 48), {"stitch_coords": ()}, (1, 8, 8), "stitch_coords []"),
    "crop_coords with the channel": (
        "YX",
        (64, 48),
        {"stitch_coords": (0, 0), "crop_coords": (0, 1, 2), "crop_size": (4, 4)},
        (1, 8, 8),
        "crop_coords [0, 1, 2]",
    ),
    "crop_size of one axis": (
        "YX",
        (64, 48),
        {"stitch_coords": (0, 0), "crop_coords": (0, 0), "crop_size": (4,)},
        (1, 8, 8),
        "crop_size [4]",
    ),
    "fill of one axis": (
        "YX",
        (64, 48),
        {"stitch_coords": (0, 0), "crop_size": (4,), "fill": 0},
        None,
        "crop_size [4]",
    ),
    "tensor without the channel": ("YX", (64, 48), {"stitch_coords": (0, 0)}, (8, 8), "[8, 8]"),
    "tensor with a Z": ("YX", (64, 48), {"stitch_coords": (0, 0)}, (1, 1, 8, 8), "[1, 1, 8, 8]"),
    "tensor without the Z": (
        "ZYX",
        (3, 64, 48),
        {"stitch_coords": (0, 0, 0)},
        (1, 8, 8),
        "[1, 8, 8]",
    ),
    "sample_idx without S and T": (
        "CYX",
        (3, 64, 48),
        {"stitch_coords": (0, 0), "sample_idx": 0},
        (1, 8, 8),
        "sample_idx 0",
    ),
    "no sample_idx with S": ("SYX", (2, 64, 48), {"stitch_coords": (0, 0)}, (1, 8, 8), "have S"),
    "no sample_idx with T": ("TYX", (2, 64, 48), {"stitch_coords": (0, 0)}, (1, 8, 8), "have T"),
    "no sample_idx with S and T": (
        "STYX",
        (2, 3, 64, 48),
        {"stitch_coords": (0, 0)},
        (1, 8, 8),
        "have S and T",
    ),
}
REFUSED = {name: (OutOfBounds, case) for name, case in OUTSIDE.items()} | {
    name: (InvalidMessage, case) for name, case in MISSHAPEN.items()
}


@pytest.mark.parametrize(("kind", "case"), REFUSED.values(), ids=REFUSED)
def test_a_tile_that_does_not_fit_is(
    kind: type[Exception], case: tuple[str, Sizes, dict[str, Any], Sizes | None, str]
) -> None:
    axes, shape, tile, tensor_shape, _ = case

    with pytest.raises((OutOfBounds, InvalidMessage)) as caught:
        stitched_box(axes, shape, TileEntry(**tile), tensor_shape)

    assert type(caught.value) is kind


@pytest.mark.parametrize(("_kind", "case"), REFUSED.values(), ids=REFUSED)
def test_the_reason_names_the_value(
    _kind: type[Exception], case: tuple[str, Sizes, dict[str, Any], Sizes | None, str]
) -> None:
    axes, shape, tile, tensor_shape, words = case

    with pytest.raises((OutOfBounds, InvalidMessage)) as caught:
        stitched_box(axes, shape, TileEntry(**tile), tensor_shape)

    assert words in str(caught.value)


@pytest.mark.parametrize("channels", [1, 2])
def test_fewer_channels_than_the_array_has_fill_no_more_than_their_own(channels: int) -> None:
    tile = TileEntry(stitch_coords=(0, 0), channel=1)

    box, _ = stitched_box("CYX", (3, 64, 48), tile, (channels, 8, 8))

    assert (box.start[0], box.stop[0]) == (1, 1 + channels)


def test_a_fill_goes_into_one_channel() -> None:
    tile = TileEntry(stitch_coords=(0, 0), channel=1, crop_size=(4, 4), fill=0)

    box, _ = stitched_box("CYX", (3, 64, 48), tile, None)

    assert (box.start[0], box.stop[0]) == (1, 2)


@pytest.mark.parametrize("sample_idx", range(6))
def test_samples_are_counted_time_by_time(sample_idx: int) -> None:
    tile = TileEntry(stitch_coords=(0, 0), sample_idx=sample_idx)

    box, _ = stitched_box("STYX", (2, 3, 8, 8), tile, (1, 8, 8))

    sample, time = box.start[:2]
    assert sample * 3 + time == sample_idx


def test_a_tile_may_fill_the_array_to_its_last_voxel() -> None:
    tile = TileEntry(stitch_coords=(56, 40))

    box, _ = stitched_box("YX", (64, 48), tile, (1, 8, 8))

    assert box == Box((56, 40), (64, 48))


def test_a_crop_may_reach_the_tiles_last_voxel() -> None:
    tile = TileEntry(stitch_coords=(0, 0), crop_coords=(4, 4), crop_size=(4, 4))

    _, crop = stitched_box("YX", (64, 48), tile, (1, 8, 8))

    assert crop == (slice(None), slice(4, 8), slice(4, 8))
