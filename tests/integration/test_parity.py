"""What the in-process writer of CAREamics does right is done here too, and right where it errs.

Through a real broker and one consumer for the module. What must be stored comes from plain numpy.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, GzipCodec, TransposeCodec

from consumer.ledger_format import LEDGER_ID
from consumer.testing import RabbitMQ
from harness import wait_until
from stitching import Numbers, Picture, Stitching, cropped, files, identical, running, walk

Draw = Callable[..., Picture]
_STORES = itertools.count()


@pytest.fixture(scope="module")
def stitching(broker: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stitching]:
    """One consumer for the tests of the module."""
    with running(broker, tmp_path_factory.mktemp("parity")) as stitching:
        yield stitching


@pytest.fixture
def draw() -> Draw:
    """Draw arrays, each in a store of its own if not told otherwise."""
    numbers = Numbers()

    def picture(axes: str = "YX", shape: tuple[int, ...] = (150, 170), **rest: Any) -> Picture:
        store = f"plate7/{next(_STORES)}_output.zarr"
        fields = {"store": store, "array": "g1/img", "axes": axes, "shape": list(shape)}
        return Picture(numbers, fields | rest)

    return picture


# -- axes, chunks, dtypes, codecs ---------------------------------------------------------------

SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "2D": ("YX", (150, 170)),
    "2D with channels": ("CYX", (3, 150, 170)),
    "2D with samples": ("SYX", (3, 150, 170)),
    "2D with samples and channels": ("SCYX", (2, 3, 150, 170)),
    "2D with one sample and one channel": ("SCYX", (1, 1, 150, 170)),
    "time without samples": ("TYX", (3, 150, 170)),
    "time without samples, with channels": ("TCYX", (3, 2, 150, 170)),
    "time and samples": ("STYX", (2, 3, 150, 170)),
    "time, samples and channels": ("STCYX", (3, 2, 2, 150, 170)),
    "3D": ("ZYX", (20, 70, 90)),
    "3D with channels": ("CZYX", (2, 20, 70, 90)),
    "3D with samples": ("SZYX", (2, 20, 70, 90)),
    "3D with everything": ("STCZYX", (2, 3, 2, 9, 40, 50)),
}


@pytest.mark.parametrize(("axes", "shape"), SHAPES.values(), ids=SHAPES)
def test_tiles_with_overlap_are_cropped_and_stitched(
    stitching: Stitching, draw: Draw, axes: str, shape: tuple[int, ...]
) -> None:
    picture = draw(axes, shape)
    stitching.write(picture.messages(picture.tiles(64, 16)))
    stitching.check(picture)


@pytest.mark.parametrize(("axes", "shape"), SHAPES.values(), ids=SHAPES)
def test_axes_are_the_dimension_names(
    stitching: Stitching, draw: Draw, axes: str, shape: tuple[int, ...]
) -> None:
    picture = draw(axes, shape)
    stitching.write(picture.messages(picture.tiles(170)))
    assert stitching.stored(picture).metadata.to_dict()["dimension_names"] == tuple(axes)


GRIDS: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": (1, 32, 64)},
    "chunks of whole rows": {"chunks": (1, 10, 170)},
    "chunks over channels": {"chunks": (3, 40, 40)},
    "chunks that do not divide the array": {"chunks": (2, 47, 53)},
    "one chunk beyond the array": {"chunks": (4, 256, 256)},
    "shards": {"chunks": (1, 16, 32), "shards": (1, 64, 64)},
    "shards over channels": {"chunks": (1, 32, 32), "shards": (3, 64, 64)},
    "shards that do not divide the array": {"chunks": (1, 9, 11), "shards": (2, 63, 44)},
    "shards as large as the chunks": {"chunks": (1, 64, 64), "shards": (1, 64, 64)},
    "one shard beyond the array": {"chunks": (1, 32, 32), "shards": (4, 256, 256)},
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_given_chunks_and_shards_are_kept_and_filled(
    stitching: Stitching, draw: Draw, grid: dict[str, Any]
) -> None:
    picture = draw("CYX", (3, 150, 170), **grid)
    stitching.write(picture.messages(picture.tiles(64, 16)))
    stored = stitching.stored(picture)
    assert (stored.chunks, stored.shards) == (grid["chunks"], grid.get("shards"))
    stitching.check(picture)


AUTOMATIC: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "neither": ({}, (1, 5, 128, 128), None),
    "automatic shards": ({"shards": "auto"}, (1, 5, 128, 128), (1, 5, 256, 384)),
    "shards, automatic chunks": (
        {"shards": (1, 10, 256, 128)},
        (1, 5, 128, 128),
        (1, 10, 256, 128),
    ),
    "chunks, automatic shards": (
        {"chunks": (1, 5, 50, 100), "shards": "auto"},
        (1, 5, 50, 100),
        (1, 5, 200, 300),
    ),
}


@pytest.mark.parametrize(("given", "chunks", "shards"), AUTOMATIC.values(), ids=AUTOMATIC)
def test_chunks_and_shards_that_are_not_given_are_chosen(
    stitching: Stitching, draw: Draw, given: dict[str, Any], chunks: Any, shards: Any
) -> None:
    picture = draw("SZYX", (2, 5, 200, 300), **given)
    stitching.write(picture.messages(picture.tiles(128, 32)))
    stored = stitching.stored(picture)
    assert (stored.chunks, stored.shards) == (chunks, shards)
    stitching.check(picture)


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


@pytest.mark.parametrize("shards", [None, (1, 64, 64)], ids=["chunks", "shards"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_stored(
    stitching: Stitching, draw: Draw, dtype: str, shards: tuple[int, ...] | None
) -> None:
    picture = draw("CYX", (2, 70, 90), dtype=dtype, chunks=(1, 32, 32), shards=shards)
    stitching.write(picture.messages(picture.tiles(64, 8)))
    stitching.check(picture)


CASTS = {
    "float64 to float32": ("float64", "float32"),
    "float16 to float32": ("float16", "float32"),
    "uint16 to float32": ("uint16", "float32"),
    "uint8 to int16": ("uint8", "int16"),
    "bool to uint8": ("bool", "uint8"),
    "int32 to float64": ("int32", "float64"),
    "uint64 to float64": ("uint64", "float64"),
}


@pytest.mark.parametrize(("given", "stored"), CASTS.values(), ids=CASTS)
def test_another_dtype_is_cast_where_that_is_safe(
    stitching: Stitching, draw: Draw, given: str, stored: str
) -> None:
    picture = draw(dtype=stored)
    stitching.write(picture.messages(picture.tiles(64, 16, dtype=given)))
    stitching.check(picture)


def test_an_array_is_float32_where_no_dtype_is_given(stitching: Stitching, draw: Draw) -> None:
    picture = draw()
    stitching.write(picture.messages(picture.tiles(dtype="float64")))
    assert stitching.stored(picture).dtype == np.float32
    stitching.check(picture)


UNSAFE = {
    "float32 to uint8": ("float32", "uint8"),
    "int32 to float32": ("int32", "float32"),
    "float64 to float16": ("float64", "float16"),
    "int8 to uint8": ("int8", "uint8"),
    "uint8 to bool": ("uint8", "bool"),
}


@pytest.mark.parametrize("named", [True, False], ids=["dtype given", "dtype stored"])
@pytest.mark.parametrize(("given", "stored"), UNSAFE.values(), ids=UNSAFE)
def test_another_dtype_is_refused_where_it_loses(
    stitching: Stitching, draw: Draw, given: str, stored: str, named: bool
) -> None:
    picture = draw(dtype=stored)
    [tile] = picture.tiles(170)
    stitching.write([picture.message(tile)])
    if not named:
        del picture.fields["dtype"]
    bad = {"stitch_coords": [0, 0]}, picture.take((1, 64, 64), given)
    reason, detail = stitching.refuse(picture.unchecked(tile, bad))
    assert reason == "unsafe_cast"
    assert "tile 1" in detail
    assert given in detail
    assert stored in detail


def test_a_refused_first_message_creates_no_array(stitching: Stitching, draw: Draw) -> None:
    picture = draw()
    [(entry, tensor)] = picture.tiles(170, dtype="int32")
    assert stitching.refuse(picture.unchecked((entry, tensor)))[0] == "unsafe_cast"
    assert not (stitching.root / picture.fields["store"]).exists()


CODECS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "gzip": [{"name": "gzip", "configuration": {"level": 1}}],
    "blosc": [{"name": "blosc", "configuration": {"cname": "lz4", "shuffle": "bitshuffle"}}],
    "zstd and crc32c": [
        {"name": "zstd", "configuration": {"level": 3, "checksum": True}},
        {"name": "crc32c"},
    ],
    "transpose": [{"name": "transpose", "configuration": {"order": [2, 0, 1]}}],
    "big endian": [{"name": "bytes", "configuration": {"endian": "big"}}],
    "all at once": [
        {"name": "transpose", "configuration": {"order": [2, 1, 0]}},
        {"name": "transpose", "configuration": {"order": [1, 2, 0]}},
        {"name": "bytes", "configuration": {"endian": "big"}},
        {"name": "blosc"},
        {"name": "gzip"},
        {"name": "zstd"},
        {"name": "crc32c"},
    ],
}


def stored_codecs(array: "zarr.Array[Any]") -> list[str]:
    """Return the names of an array's codecs, inside its shards where it has them."""
    codecs = array.metadata.to_dict()["codecs"]
    assert isinstance(codecs, list | tuple)
    if array.shards:
        codecs = codecs[0]["configuration"]["codecs"]
    return [codec["name"] for codec in codecs]


@pytest.mark.parametrize("shards", [None, (2, 64, 64)], ids=["chunks", "shards"])
@pytest.mark.parametrize("codecs", CODECS.values(), ids=CODECS)
def test_given_codecs_are_used(
    stitching: Stitching, draw: Draw, codecs: list[dict[str, Any]], shards: Any
) -> None:
    picture = draw("CYX", (3, 150, 170), chunks=(2, 16, 32), shards=shards, codecs=codecs)
    stitching.write(picture.messages(picture.tiles(64, 16)))
    found = stored_codecs(stitching.stored(picture))
    assert [name for name in found if name != "bytes"] == [
        codec["name"] for codec in codecs if codec["name"] != "bytes"
    ]
    stitching.check(picture)


FILL_VALUES: dict[str, tuple[str, Any]] = {
    "float": ("float32", 0.5),
    "not a number": ("float32", "NaN"),
    "infinity": ("float64", "Infinity"),
    "negative": ("int16", -7),
    "largest": ("uint64", 2**64 - 1),
    "true": ("bool", True),
}


@pytest.mark.parametrize(("dtype", "value"), FILL_VALUES.values(), ids=FILL_VALUES)
def test_the_given_fill_value_stands_where_no_tile_came(
    stitching: Stitching, draw: Draw, dtype: str, value: Any
) -> None:
    picture = draw(dtype=dtype, chunks=(32, 32), shards=(64, 64), fill_value=value)
    stitching.write([picture.message(picture.tiles(40)[0])])
    stitching.check(picture)


def test_given_attributes_are_stored(stitching: Stitching, draw: Draw) -> None:
    attributes = {"scale": [0.5, 0.25], "name": "Größe", "nested": {"a": None, "b": [True, 1]}}
    picture = draw(attributes=attributes)
    stitching.write(picture.messages(picture.tiles()))
    stored = dict(stitching.stored(picture).attrs)
    assert stored.pop(LEDGER_ID)
    assert stored == attributes


# -- messages -----------------------------------------------------------------------------------


def test_tiles_that_the_producer_cropped_are_stitched_alike(
    stitching: Stitching, draw: Draw
) -> None:
    by_consumer, by_producer = draw("SCYX", (2, 2, 150, 170)), draw("SCYX", (2, 2, 150, 170))
    tiles = by_consumer.tiles(64, 16)
    stitching.write(by_consumer.messages(tiles))
    stitching.write(by_producer.messages(map(cropped, tiles)))
    stitching.check(by_consumer, by_producer)
    identical(by_consumer.image, by_producer.image)


OPTIONS: dict[str, dict[str, bool]] = {
    "plain": {},
    "zstd": {"compress": True},
    "checksum": {"checksum": True},
    "zstd and checksum": {"compress": True, "checksum": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("size", [1, 3, 18], ids=["one tile", "three tiles", "all tiles"])
def test_messages_of_several_tiles_are_taken(
    stitching: Stitching, draw: Draw, size: int, options: dict[str, bool]
) -> None:
    picture = draw("SYX", (2, 150, 170))
    tiles = picture.tiles(64, 4)
    assert len(tiles) == 18
    batches = [tiles[i : i + size] for i in range(0, len(tiles), size)]
    stitching.write(picture.message(*batch, **options) for batch in batches)
    stitching.check(picture)


def test_tiles_of_one_value_need_no_tensor(stitching: Stitching, draw: Draw) -> None:
    picture = draw("CYX", (2, 100, 120), dtype="uint16", chunks=(1, 32, 32))
    tensor = picture.take((2, 100, 60))
    stitching.write(
        [
            picture.message(
                ({"stitch_coords": [0, 0], "crop_size": [50, 60], "fill": 7}, None),
                ({"stitch_coords": [0, 60]}, tensor),
                ({"stitch_coords": [50, 0], "crop_size": [50, 60], "fill": 9}, None),
                ({"stitch_coords": [0, 0], "crop_size": [100, 60], "fill": 11, "channel": 1}, None),
            )
        ]
    )
    stitching.check(picture)


@pytest.mark.parametrize("value", [-0.0, "NaN", "-Infinity"])
def test_the_one_value_of_a_tile_may_be_special(
    stitching: Stitching, draw: Draw, value: Any
) -> None:
    picture = draw(shape=(64, 64))
    tile = {"stitch_coords": [0, 0], "crop_size": [64, 64], "fill": value}
    stitching.write([picture.message((tile, None))])
    stitching.check(picture)


def test_channels_come_in_messages_of_their_own(stitching: Stitching, draw: Draw) -> None:
    picture = draw("SCYX", (2, 4, 70, 90), chunks=(1, 3, 32, 32))
    messages = [
        picture.message(({"stitch_coords": [0, 0], "sample_idx": s, "channel": c}, tensor))
        for s, c in itertools.product((1, 0), (2, 0))
        for tensor in [picture.take((2, 70, 90))]
    ]
    stitching.write(messages)
    stitching.check(picture)


def test_a_single_channel_is_not_broadcast(stitching: Stitching, draw: Draw) -> None:
    picture = draw("CYX", (3, 70, 90))
    tensor = picture.take((1, 70, 90))
    stitching.write([picture.message(({"stitch_coords": [0, 0], "channel": 1}, tensor))])
    assert not picture.image[[0, 2]].any()
    stitching.check(picture)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_crop_goes_to_every_chunk_and_shard_that_it_straddles(
    stitching: Stitching, draw: Draw, grid: dict[str, Any]
) -> None:
    picture = draw("CYX", (3, 150, 170), **grid)
    crop = {"crop_coords": [3, 5], "crop_size": [141, 159], "stitch_coords": [5, 7]}
    stitching.write([picture.message((crop, picture.take((3, 150, 170))))])
    stitching.check(picture)


# -- stores, groups, arrays ---------------------------------------------------------------------


def in_turn(*pictures: Picture) -> Iterator[Any]:
    """Yield the pictures' messages, one of each in turn."""
    for tiles in zip(*(picture.tiles(64, 16) for picture in pictures), strict=True):
        for picture, tile in zip(pictures, tiles, strict=True):
            yield picture.message(tile)


NAMESAKES: dict[str, list[tuple[str, str]]] = {
    "in two stores": [("a/d_output.zarr", "img"), ("b/d_output.zarr", "img")],
    "in two stores of one folder": [("a.zarr", "g/img"), ("b.zarr", "g/img")],
    "in two groups": [("d.zarr", "g1/img"), ("d.zarr", "g2/img")],
    "in the store and a group": [("d.zarr", "img"), ("d.zarr", "g/img")],
    "in a group and a group of it": [("d.zarr", "g/img"), ("d.zarr", "g/g/img")],
    "in stores and groups": [
        ("a.zarr", "g1/img"),
        ("b.zarr", "g2/img"),
        ("a.zarr", "g2/img"),
        ("b.zarr", "g1/img"),
    ],
}


@pytest.mark.parametrize("places", NAMESAKES.values(), ids=NAMESAKES)
def test_arrays_of_one_name_are_kept_apart_tile_by_tile(
    stitching: Stitching, draw: Draw, places: list[tuple[str, str]]
) -> None:
    folder = f"namesakes{next(_STORES)}"
    pictures = [draw(store=f"{folder}/{store}", array=array) for store, array in places]
    stitching.write(in_turn(*pictures))
    stitching.check(*pictures)


def test_different_arrays_in_alternating_stores_are_kept_apart(
    stitching: Stitching, draw: Draw
) -> None:
    pictures = [
        draw("SYX", (2, 150, 170), array="a", chunks=(1, 32, 32)),
        draw("CZYX", (2, 12, 70, 170), array="g/b", dtype="uint16"),
        draw("YX", (200, 250), array="d", shards="auto", dtype="int64"),
    ]
    for picture in pictures[1:]:
        picture.fields["store"] = pictures[0].fields["store"]
    pictures.append(draw("YX", (200, 250), array="g/b", codecs=[]))
    messages = [picture.messages(picture.tiles(64)) for picture in pictures]
    stitching.write(m for turn in itertools.zip_longest(*messages) for m in turn if m is not None)
    stitching.check(*pictures)


@pytest.mark.parametrize("depth", [0, 1, 2, 30])
def test_groups_are_created_at_any_depth(stitching: Stitching, draw: Draw, depth: int) -> None:
    groups = [f"g{i}" for i in range(depth)]
    picture = draw(array="/".join([*groups, "img"]))
    stitching.write(picture.messages(picture.tiles()))
    node: Any = zarr.open_group(stitching.root / picture.fields["store"], mode="r")
    for group in groups:
        [(name, node)] = node.members()
        assert (name, type(node)) == (group, zarr.Group)
    identical(node["img"][:], picture.image)


def test_a_store_and_an_array_are_opened_once_and_not_for_each_tile(
    stitching: Stitching, draw: Draw
) -> None:
    names = "tiles_store_opens_total", "tiles_array_opens_total"
    before = [stitching.count(name) for name in names]
    first = draw("SYX", (2, 150, 170))
    pictures = [first, draw("SYX", (2, 150, 170)), draw("SYX", (2, 150, 170), array="other")]
    pictures[2].fields["store"] = first.fields["store"]
    stitching.write(in_turn(*pictures))
    opened = [stitching.count(name) - old for name, old in zip(names, before, strict=True)]
    assert opened == [2, 3]


# -- what is there already ----------------------------------------------------------------------

EXISTING: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": (1, 64, 64)},
    "shards": {"chunks": (1, 32, 32), "shards": (2, 64, 64)},
    "one chunk for all": {"chunks": (3, 150, 170)},
    "gzip": {"chunks": (1, 64, 64), "compressors": GzipCodec(level=1)},
    "no compression": {"chunks": (1, 64, 64), "compressors": None},
    "big endian": {"chunks": (1, 64, 64), "serializer": BytesCodec(endian="big")},
    "big endian in shards": {
        "chunks": (1, 32, 32),
        "shards": (1, 64, 64),
        "serializer": BytesCodec(endian="big"),
    },
    "transposed": {"chunks": (1, 64, 64), "filters": TransposeCodec(order=(2, 0, 1))},
    "another fill value": {"chunks": (1, 64, 64), "fill_value": 0.5},
    "axes in small letters": {"chunks": (1, 64, 64), "dimension_names": ("c", "y", "x")},
    "axes without names": {"chunks": (1, 64, 64), "dimension_names": None},
    "axes with other names": {"chunks": (1, 64, 64), "dimension_names": ("channel", "row", "col")},
    "chunk keys with dots": {
        "chunks": (1, 64, 64),
        "chunk_key_encoding": {"name": "default", "separator": "."},
    },
    "chunk keys of format 2": {
        "chunks": (1, 64, 64),
        "chunk_key_encoding": {"name": "v2", "separator": "/"},
    },
    "format 2": {"chunks": (1, 64, 64), "zarr_format": 2},
    "format 2 with slashes": {
        "chunks": (1, 64, 64),
        "zarr_format": 2,
        "chunk_key_encoding": {"name": "v2", "separator": "/"},
    },
    "format 2 in Fortran order": {"chunks": (2, 64, 64), "zarr_format": 2, "order": "F"},
    "format 2, big endian": {"chunks": (1, 64, 64), "zarr_format": 2, "dtype": ">f4"},
    "format 2, not compressed": {"chunks": (1, 64, 64), "zarr_format": 2, "compressors": None},
}


def created(stitching: Stitching, picture: Picture, **options: Any) -> "zarr.Array[Any]":
    """Create a picture's array with plain zarr, attributes at every node, a part of it filled."""
    store, path = picture.place
    wanted: dict[str, Any] = {
        "shape": picture.fields["shape"],
        "dtype": picture.image.dtype,
        "dimension_names": tuple(picture.fields["axes"]),
        "fill_value": 0,
        "attributes": {"of": "the array", "scale": [1.5, 2]},
    } | options
    version = wanted.get("zarr_format", 3)
    if version == 2:
        del wanted["dimension_names"]
    folder = stitching.root / store
    root = zarr.create_group(folder, attributes={"of": "the store"}, zarr_format=version)
    if "/" in path:
        group = path.rpartition("/")[0]
        root.create_group(group, attributes={"of": "the group"})
    array = zarr.create_array(folder, name=path, **wanted)
    picture.image[:] = wanted["fill_value"]
    held = (*(slice(None) for _ in picture.image.shape[:-1]), slice(0, 100))
    picture.image[held] = picture.take(picture.image[held].shape)
    array[held] = picture.image[held]
    return array


def metadata(folder: Path) -> dict[str, bytes]:
    """Return the content of every metadata file below a folder."""
    names = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}
    return {path: body for path, body in files(folder).items() if Path(path).name in names}


@pytest.mark.parametrize("options", EXISTING.values(), ids=EXISTING)
def test_an_existing_array_is_written_and_keeps_what_no_crop_covers(
    stitching: Stitching, draw: Draw, options: dict[str, Any]
) -> None:
    picture = draw("CYX", (3, 150, 170))
    created(stitching, picture, **options)
    folder = stitching.root / picture.fields["store"]
    before = metadata(folder)
    # Beyond the axes, the message says nothing: whatever is stored holds.
    crop = {"crop_coords": [4, 4], "crop_size": [57, 63], "stitch_coords": [40, 60]}
    late = {"stitch_coords": [149, 169], "channel": 2}
    stitching.write(
        [
            picture.message((crop, picture.take((3, 64, 70)))),
            picture.message((late, picture.take((1, 1, 1)))),
        ]
    )
    identical(stitching.values(picture).astype("=f4"), picture.image)
    assert metadata(folder) == before


@pytest.mark.parametrize("options", EXISTING.values(), ids=EXISTING)
def test_an_existing_array_is_filled_whole(
    stitching: Stitching, draw: Draw, options: dict[str, Any]
) -> None:
    picture = draw("CYX", (3, 150, 170), dtype="float32")
    created(stitching, picture, **options)
    stitching.write(picture.messages(picture.tiles(64, 16)))
    identical(stitching.values(picture).astype("=f4"), picture.image)


@pytest.mark.parametrize("size", [64, 1024], ids=["tile by tile", "tiles over chunks"])
def test_an_existing_array_may_have_larger_chunks_than_blocks_are(
    stitching: Stitching, draw: Draw, size: int
) -> None:
    picture = draw("CYX", (1, 1100, 1030), dtype="float64")
    created(stitching, picture, chunks=(1, 1024, 1024))
    tiles = picture.tiles(size)
    stitching.write(picture.messages(tiles[:: max(1, len(tiles) // 20)]))
    stitching.check(picture)


FILES = {name: EXISTING[name] for name in ("chunks", "shards", "chunk keys with dots", "format 2")}


@pytest.mark.parametrize("options", FILES.values(), ids=FILES)
def test_files_that_no_crop_touches_are_not_written_again(
    stitching: Stitching, draw: Draw, options: dict[str, Any]
) -> None:
    picture = draw("CYX", (3, 150, 170))
    created(stitching, picture, **options)
    folder = stitching.root / picture.fields["store"]
    before = {path: path.stat().st_ino for path in walk(folder)}
    stitching.write([picture.message(({"stitch_coords": [0, 0]}, picture.take((1, 64, 64))))])
    now = {path: path.stat().st_ino for path in walk(folder)}
    assert len(before) == len(now)
    assert sum(before[path] != now[path] for path in now) == 1


def test_an_existing_store_without_the_group_is_used(stitching: Stitching, draw: Draw) -> None:
    picture = draw(array="g1/g2/img")
    folder = stitching.root / picture.fields["store"]
    zarr.create_group(folder, attributes={"of": "the store"})
    before = metadata(folder)
    stitching.write(picture.messages(picture.tiles()))
    assert metadata(folder).items() > before.items()
    stitching.check(picture)


def test_an_existing_group_and_its_other_arrays_are_kept(stitching: Stitching, draw: Draw) -> None:
    picture, other = draw(array="g1/img"), draw(array="g1/other")
    other.fields["store"] = picture.fields["store"]
    created(stitching, other, chunks=(32, 32))
    folder = stitching.root / picture.fields["store"]
    before = files(folder)
    stitching.write(picture.messages(picture.tiles()))
    assert files(folder).items() > before.items()
    stitching.check(picture, other)


def test_a_folder_without_metadata_becomes_a_group(stitching: Stitching, draw: Draw) -> None:
    picture = draw(array="g1/g2/img")
    (stitching.root / picture.fields["store"] / "g1" / "notes").mkdir(parents=True)
    stitching.write(picture.messages(picture.tiles()))
    root = zarr.open_group(stitching.root / picture.fields["store"], mode="r")
    assert isinstance(root["g1/g2"], zarr.Group)
    stitching.check(picture)


@pytest.mark.parametrize("refused", [False, True], ids=["at once", "after a refused message"])
def test_an_array_that_was_removed_is_made_again_as_the_messages_taken_say(
    stitching: Stitching, draw: Draw, refused: bool
) -> None:
    picture = draw(shape=(128, 128))
    created(stitching, picture, chunks=(64, 64))
    if refused:
        mismatch(stitching, draw(**picture.fields | {"shape": [64, 64]}))
    tiles = picture.tiles(64)
    stitching.write([picture.message(tiles[0])])
    shutil.rmtree(stitching.root / picture.fields["store"])
    stitching.write(picture.messages(tiles))
    stitching.check(picture)


# -- refused ------------------------------------------------------------------------------------


def mismatch(stitching: Stitching, picture: Picture) -> str:
    """Publish a picture's first tile, which is refused for what is stored; return the detail."""
    reason, detail = stitching.refuse(picture.unchecked(picture.tiles()[0]))
    assert reason == "array_mismatch"
    assert "/".join(picture.place) in detail
    return detail


@pytest.mark.parametrize("version", [2, 3], ids=["format 2", "format 3"])
def test_a_group_in_the_arrays_place_is_refused(
    stitching: Stitching, draw: Draw, version: Any
) -> None:
    picture = draw(array="g1/img")
    root = zarr.create_group(stitching.root / picture.fields["store"], zarr_format=version)
    root.create_group("g1/img")
    detail = mismatch(stitching, picture)
    assert "an array is wanted, a group is stored" in detail


@pytest.mark.parametrize("above", ["g1", "g1/g2"])
def test_an_array_in_a_groups_place_is_refused(
    stitching: Stitching, draw: Draw, above: str
) -> None:
    picture = draw(array="g1/g2/img")
    root = zarr.create_group(stitching.root / picture.fields["store"])
    root.create_array(above, shape=(4, 4), dtype="uint8")
    detail = mismatch(stitching, picture)
    assert f"a group is wanted at '{above}', an array is stored" in detail


def test_an_array_in_the_stores_place_is_refused(stitching: Stitching, draw: Draw) -> None:
    picture = draw(array="img")
    zarr.create_array(stitching.root / picture.fields["store"], shape=(4, 4), dtype="uint8")
    detail = mismatch(stitching, picture)
    assert "a group is wanted at '', an array is stored" in detail


def test_a_refused_array_leaves_the_store_as_it_was(stitching: Stitching, draw: Draw) -> None:
    picture = draw(array="g1/g2/img")
    folder = stitching.root / picture.fields["store"]
    zarr.create_group(folder).create_array("g1", shape=(4, 4), dtype="uint8")
    before = files(folder)
    mismatch(stitching, picture)
    assert files(folder) == before


OTHERS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "shape": ("YX", {"shape": [150, 171]}, "[150, 171]", "[150, 170]"),
    "axes": ("CYX", {"axes": "SYX", "shape": [2, 150, 170]}, "'SYX'", "'CYX'"),
    "number of axes": ("YX", {"axes": "CYX", "shape": [1, 150, 170]}, "'CYX'", "'YX'"),
    "dtype": ("YX", {"dtype": "float64"}, "'float64'", "'float32'"),
    "chunks": ("YX", {"chunks": [32, 64]}, "[32, 64]", "[32, 32]"),
    "shards": ("YX", {"shards": [96, 96]}, "[96, 96]", "[64, 64]"),
}


@pytest.mark.parametrize(("axes", "given", "said", "held"), OTHERS.values(), ids=OTHERS)
def test_an_existing_array_of_another_kind_is_refused_with_both_values(
    stitching: Stitching, draw: Draw, axes: str, given: dict[str, Any], said: str, held: str
) -> None:
    shape = (2, 150, 170) if axes == "CYX" else (150, 170)
    picture, ones = draw(axes, shape), (1,) * (len(axes) - 2)
    created(stitching, picture, chunks=(*ones, 32, 32), shards=(*ones, 64, 64))
    wrong = draw(**picture.fields | given)
    detail = mismatch(stitching, wrong)
    assert said in detail
    assert held in detail


@pytest.mark.parametrize("known", [False, True], ids=["first of its array", "among others"])
@pytest.mark.parametrize(("axes", "given", "said", "held"), OTHERS.values(), ids=OTHERS)
def test_a_refused_message_spoils_nothing_for_those_that_follow(
    stitching: Stitching,
    draw: Draw,
    axes: str,
    given: dict[str, Any],
    said: str,
    held: str,
    known: bool,
) -> None:
    shape = (2, 150, 170) if axes == "CYX" else (150, 170)
    picture, ones = draw(axes, shape), (1,) * (len(axes) - 2)
    # Without names, so that the axes can only come from messages, if not from the bad one.
    names = tuple(axes) if said == "'SYX'" else None
    grid = {"chunks": (*ones, 32, 32), "shards": (*ones, 64, 64)}
    created(stitching, picture, dimension_names=names, **grid)
    if known:
        stitching.write(picture.messages(picture.tiles(170)))
    mismatch(stitching, draw(**picture.fields | given))
    stitching.write(picture.messages(picture.tiles(64, 16)))
    stitching.check(picture)


OUTSIDE: dict[str, tuple[dict[str, Any], str]] = {
    "stitched beyond Y": ({"stitch_coords": [87, 0]}, "[87, 0]"),
    "stitched beyond X": ({"stitch_coords": [0, 107]}, "[0, 107]"),
    "stitched far beyond": ({"stitch_coords": [2**62, 0]}, str(2**62)),
    "stitched before Y": ({"stitch_coords": [-1, 0]}, "[-1, 0]"),
    "stitched before X": ({"stitch_coords": [0, -64]}, "[0, -64]"),
    "cropped beyond the tile": ({"crop_coords": [1, 0], "crop_size": [64, 64]}, "[1, 0]"),
    "cropped before the tile": ({"crop_coords": [-1, 0], "crop_size": [8, 8]}, "[-1, 0]"),
    "sample that is not there": ({"sample_idx": 2}, "sample_idx 2"),
    "sample before the first": ({"sample_idx": -1}, "sample_idx -1"),
    "channel that is not there": ({"channel": 2}, "channel 2"),
    "channels half outside": ({"channel": 1}, "channel 1"),
    "channel before the first": ({"channel": -1}, "channel -1"),
}


@pytest.mark.parametrize(("changed", "shown"), OUTSIDE.values(), ids=OUTSIDE)
def test_what_is_out_of_bounds_is_refused_and_not_truncated(
    stitching: Stitching, draw: Draw, changed: dict[str, Any], shown: str
) -> None:
    picture = draw("SCYX", (2, 2, 150, 170))
    good: dict[str, Any] = {"stitch_coords": [0, 0], "sample_idx": 0}
    tensor = picture.take((2, 64, 64))
    stitching.write(picture.messages(picture.tiles(170)))
    reason, detail = stitching.refuse(
        picture.unchecked((good, picture.take((2, 64, 64))), (good | changed, tensor))
    )
    assert reason == "out_of_bounds"
    assert "tile 1" in detail
    assert shown in detail
    stitching.check(picture)


@pytest.mark.parametrize(
    ("axes", "shape", "times"),
    [("TYX", (3, 64, 64), 3), ("STYX", (2, 3, 64, 64), 6)],
    ids=["time", "samples and time"],
)
def test_a_time_out_of_bounds_is_refused(
    stitching: Stitching, draw: Draw, axes: str, shape: tuple[int, ...], times: int
) -> None:
    picture = draw(axes, shape)
    stitching.write(picture.messages(picture.tiles()))
    beyond = {"stitch_coords": [0, 0], "sample_idx": times}
    reason, _ = stitching.refuse(picture.unchecked((beyond, picture.take((1, 64, 64)))))
    assert reason == "out_of_bounds"
    stitching.check(picture)


def test_several_channels_are_refused_by_an_array_without(stitching: Stitching, draw: Draw) -> None:
    picture = draw()
    tile = {"stitch_coords": [0, 0]}, picture.take((2, 64, 64))
    assert stitching.refuse(picture.unchecked(tile))[0] == "out_of_bounds"


# -- written does not look like missing ---------------------------------------------------------


@pytest.mark.parametrize("shards", [None, [64, 64]], ids=["chunks", "shards"])
def test_tiles_of_nothing_but_zero_are_files_in_the_store(
    stitching: Stitching, draw: Draw, shards: Any
) -> None:
    picture = draw("YX", (128, 192), chunks=[32, 32], shards=shards)
    zeros = np.zeros((1, 64, 64), "float32")
    stitching.write([picture.message(({"stitch_coords": [64, 128]}, zeros))])
    chunks = stitching.root.joinpath(*picture.place, "c")
    names = {str(path.relative_to(chunks)) for path in walk(chunks)}
    assert names == ({"1/2"} if shards else {"2/4", "2/5", "3/4", "3/5"})


@pytest.fixture(scope="module")
def sparing(broker: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stitching]:
    """A consumer that stores no empty chunks, keeps two arrays open, and shows files to few."""
    folder = tmp_path_factory.mktemp("sparing")
    with running(
        broker,
        folder,
        write_empty_chunks="false",
        max_open_arrays=2,
        file_mode="0640",
        folder_mode="0750",
    ) as stitching:
        yield stitching


@pytest.mark.parametrize("shards", [None, [64, 64]], ids=["chunks", "shards"])
def test_tiles_of_nothing_but_zero_are_no_files_where_the_settings_say_so(
    sparing: Stitching, draw: Draw, shards: Any
) -> None:
    picture = draw("YX", (128, 192), chunks=[32, 32], shards=shards)
    zeros = np.zeros((1, 64, 64), "float32")
    sparing.write(
        [
            picture.message(({"stitch_coords": [64, 128]}, zeros)),
            picture.message(({"stitch_coords": [0, 0]}, picture.take((1, 64, 64)))),
        ]
    )
    chunks = sparing.root.joinpath(*picture.place, "c")
    names = {str(path.relative_to(chunks)) for path in walk(chunks)}
    assert names == ({"0/0"} if shards else {"0/0", "0/1", "1/0", "1/1"})
    sparing.check(picture)


@pytest.mark.parametrize("shards", [None, [64, 64]], ids=["chunks", "shards"])
def test_zeros_replace_what_was_stored_also_where_they_are_no_files(
    sparing: Stitching, draw: Draw, shards: Any
) -> None:
    picture = draw("YX", (128, 192), chunks=[32, 32], shards=shards)
    sparing.write(picture.messages(picture.tiles()))
    zeros = np.zeros((1, 64, 64), "float32")
    sparing.write([picture.message(({"stitch_coords": [64, 128]}, zeros))])
    sparing.check(picture)


def test_arrays_that_were_closed_in_between_are_all_right(sparing: Stitching, draw: Draw) -> None:
    before = sparing.count("tiles_array_opens_total")
    folder = f"many{next(_STORES)}"
    pictures = [
        draw("CYX", (1, 150, 170), store=f"{folder}/{i % 3}.zarr", array=f"g/{i}", chunks=chunks)
        for i, chunks in enumerate([[1, 64, 64], [1, 32, 170], [1, 150, 40]] * 2)
    ]
    first, later = [], []
    for picture in pictures:
        tiles = picture.tiles(64, 16)
        first += picture.messages(tiles[:5])
        later += [(picture, tile) for tile in tiles[5:]]
    sparing.write(first)
    wait_until(lambda: sparing.count("tiles_open_arrays") <= 2, "arrays to be closed")
    sparing.write(picture.message(tile) for picture, tile in later)
    opened = sparing.count("tiles_array_opens_total") - before
    assert len(pictures) + 4 <= opened <= 2 * len(pictures)
    sparing.check(*pictures)


def test_more_arrays_at_once_than_stay_open_are_all_right(sparing: Stitching, draw: Draw) -> None:
    folder = f"crowd{next(_STORES)}"
    pictures = [
        draw(store=f"{folder}/{i % 3}.zarr", array=f"g/{i}", chunks=[64, 64]) for i in range(6)
    ]
    sparing.write(in_turn(*pictures))
    sparing.check(*pictures)


def test_files_and_folders_have_the_modes_of_the_settings(sparing: Stitching, draw: Draw) -> None:
    picture = draw(array="g1/g2/img", chunks=[64, 64])
    sparing.write(picture.messages(picture.tiles()))
    store = sparing.root / picture.fields["store"]
    nodes = [store.parent, store, *store.rglob("*")]
    modes = {(node.is_dir(), node.stat().st_mode & 0o7777) for node in nodes}
    assert modes == {(True, 0o750), (False, 0o640)}


def test_nothing_but_stores_and_their_ledgers_is_left_after_the_consumer_stopped(
    broker: RabbitMQ, draw: Draw, tmp_path: Path
) -> None:
    pictures = [draw(store=f"s{i}/d.zarr", array=f"g/{i}", chunks=[64, 64]) for i in range(20)]
    with running(broker, tmp_path) as stitching:
        stitching.write(in_turn(*pictures))
        assert stitching.consumer.stop() == 0
    root = tmp_path / "root"
    state = list((root / ".tiles").glob("**/*"))
    assert {path.name for path in state if path.is_file()} == {".ledger.json", ".blocks-00000.json"}
    assert not {"epochs", "fenced"} & {path.name for path in state}
    left = {str(path.relative_to(root)) for path in walk(root) if path not in state}
    chunks = {f"s{i}/d.zarr/g/{i}/c/{y}/{x}" for i in range(20) for y in range(3) for x in range(3)}
    assert left - chunks == {
        f"s{i}/d.zarr/{node}zarr.json" for i in range(20) for node in ("", "g/", f"g/{i}/")
    }


def test_metadata_is_one_readable_file_for_each_node(stitching: Stitching, draw: Draw) -> None:
    picture = draw(array="g1/img", shards="auto")
    stitching.write(picture.messages(picture.tiles()))
    found = {
        path: json.loads(body)["node_type"]
        for path, body in metadata(stitching.root / picture.fields["store"]).items()
    }
    assert found == {"zarr.json": "group", "g1/zarr.json": "group", "g1/img/zarr.json": "array"}
