"""Every rule of the wire contract that the JSON alone can break, and the reasons given."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_documents import fields, tile

from consumer.contract import (
    MAX_ARRAY_VOXELS,
    MAX_ATTRIBUTES_BYTES,
    MAX_TILES,
    Scalar,
    TilesEntry,
    as_scalar,
    build,
    parse,
)
from consumer.errors import InvalidMessage, ParkError, UnsafePath

CODECS = [
    {"name": "transpose", "configuration": {"order": [1, 0]}},
    {"name": "bytes", "configuration": {"endian": "big"}},
    {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 9, "shuffle": "bitshuffle"}},
    {"name": "gzip", "configuration": {"level": 9}},
    {"name": "zstd", "configuration": {"level": 22, "checksum": True}},
    {"name": "crc32c"},
]
INTEGERS = [f"{sign}{bits}" for sign in ("int", "uint") for bits in (8, 16, 32, 64)]
AXES = [
    f"{s}{t}{c}{z}YX" for s in ("", "S") for t in ("", "T") for c in ("", "C") for z in ("", "Z")
]


def _attributes_of(size: int) -> dict[str, Any]:
    """Return attributes of so many bytes of JSON."""
    empty = len(json.dumps({"a": ""}))
    return {"a": "x" * (size - empty)}


GOOD: dict[str, dict[str, Any]] = {
    "nothing but what is required": {},
    "every field": fields(
        dtype="uint16",
        chunks=[16, 16],
        shards=[32, 48],
        source="file:///data/d.zarr/g1/img",
        run="unet-7/2026-11-22",
        sent_ms=1795338000123,
        fill_value=7,
        codecs=CODECS,
        attributes={"a": [1, 2.5, None, True, {"b": "c"}]},
        tiles=[tile(crop_coords=[24, 24], crop_size=[8, 8], channel=0)],
    ),
    "shards auto": {"shards": "auto", "chunks": [16, 16]},
    "shards auto without chunks": {"shards": "auto"},
    "shards without chunks": {"shards": [100, 7]},
    "shards equal to chunks": {"shards": [16, 16], "chunks": [16, 16]},
    "chunks beyond the shape": {"chunks": [128, 128]},
    "shape of the most voxels": {"shape": [1 << 25, 1 << 25]},
    "negative stitch_coords, left to placement": {"tiles": [tile(stitch_coords=[-1, 0])]},
    "null where absence is allowed": {"dtype": None, "chunks": None, "source": None},
    "fill": {"tiles": [tile(fill=0.0, crop_size=[8, 8])]},
    "fill of an integer": {"tiles": [tile(fill=3, crop_size=[8, 8])]},
    "fill of a bool": {"tiles": [tile(fill=True, crop_size=[8, 8])]},
    "fill of NaN": {"tiles": [tile(fill="NaN", crop_size=[8, 8])]},
    "fill of minus infinity": {"tiles": [tile(fill="-Infinity", crop_size=[8, 8])]},
    "fill_value of infinity": {"fill_value": "Infinity", "dtype": "float16"},
    "fill_value of a whole float for an integer": {"fill_value": 7.0, "dtype": "uint8"},
    "fill_value of a bool for bool": {"fill_value": True, "dtype": "bool"},
    "fill_value of uint64's most": {"fill_value": (1 << 64) - 1, "dtype": "uint64"},
    "no codecs": {"codecs": []},
    "codecs of defaults": {"codecs": [{"name": "bytes"}, {"name": "zstd"}]},
    "attributes of the most bytes": {"attributes": _attributes_of(MAX_ATTRIBUTES_BYTES)},
    "no attributes": {"attributes": {}},
    "sent at zero": {"sent_ms": 0},
    "source of the most characters": {"source": "x" * 1024},
    "the most tiles": {"tiles": [tile()] * MAX_TILES},
}


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD)
def test_a_good_entry_is_taken(changes: dict[str, Any]) -> None:
    assert isinstance(parse(json.dumps(fields(**changes))), TilesEntry)


@pytest.mark.parametrize("axes", AXES)
def test_every_ordered_subset_of_the_axes_with_yx_is_taken(axes: str) -> None:
    assert parse(json.dumps(fields(axes=axes, shape=[1] * len(axes)))).axes == axes


@pytest.mark.parametrize("dtype", ["bool", *INTEGERS, "float16", "float32", "float64"])
def test_every_dtype_of_the_contract_is_taken(dtype: str) -> None:
    assert parse(json.dumps(fields(dtype=dtype))).dtype == dtype


# What is wrong, the field that the reason names, and the value that it shows where it is short.
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown key": ({"compression": "zip"}, "compression", "'zip'"),
    "unknown key of a tile": ({"tiles": [tile(z=3)]}, "tiles.0.z", "3"),
    "unknown key of a codec": (
        {"codecs": [{"name": "crc32c", "configuration": 5}]},
        "codecs.0",
        "5",
    ),
    "unknown key of a codec's configuration": (
        {"codecs": [{"name": "zstd", "configuration": {"window": 5}}]},
        "window",
        "5",
    ),
    "store is a number": ({"store": 5}, "store", "5"),
    "array is null": ({"array": None}, "array", "None"),
    "axes in another order": ({"axes": "XY"}, "axes", "'XY'"),
    "axes in lower case": ({"axes": "yx"}, "axes", "'yx'"),
    "axes without X": ({"axes": "CY", "shape": [1, 1]}, "axes", "'CY'"),
    "axes without Y": ({"axes": "CX", "shape": [1, 1]}, "axes", "'CX'"),
    "axes twice": ({"axes": "YXYX"}, "axes", "'YXYX'"),
    "axes unknown": ({"axes": "AYX"}, "axes", "'AYX'"),
    "axes with a newline": ({"axes": "YX\n"}, "axes", r"'YX\n'"),
    "axes T before S": ({"axes": "TSYX"}, "axes", "'TSYX'"),
    "axes Z before C": ({"axes": "ZCYX"}, "axes", "'ZCYX'"),
    "axes empty": ({"axes": ""}, "axes", "''"),
    "axes as a list": ({"axes": ["Y", "X"]}, "axes", "['Y', 'X']"),
    "shape with zero": ({"shape": [0, 48]}, "shape.0", "0"),
    "shape negative": ({"shape": [64, -48]}, "shape.1", "-48"),
    "shape of a bool": ({"shape": [True, 48]}, "shape.0", "True"),
    "shape of a float": ({"shape": [64.0, 48]}, "shape.0", "64.0"),
    "shape of text": ({"shape": ["64", 48]}, "shape.0", "'64'"),
    "shape of a null": ({"shape": [None, 48]}, "shape.0", "None"),
    "shape as one number": ({"shape": 64}, "shape", "64"),
    "shape beyond 64 bits": ({"shape": [1 << 63, 1]}, "shape.0", str(1 << 63)),
    "shape of too few axes": ({"shape": [64]}, "shape", "[64]"),
    "shape of too many axes": ({"shape": [1, 64, 48]}, "shape", "[1, 64, 48]"),
    "shape of no axes": ({"shape": []}, "shape", "[]"),
    "shape of too many voxels": (
        {"shape": [1 << 25, (1 << 25) + 1]},
        "shape",
        str(MAX_ARRAY_VOXELS + (1 << 25)),
    ),
    "shape whose voxels wrap in 64 bits": ({"shape": [1 << 32, 1 << 32]}, "shape", str(1 << 64)),
    "dtype unknown": ({"dtype": "complex64"}, "dtype", "'complex64'"),
    "dtype in bytes": ({"dtype": "<f4"}, "dtype", "'<f4'"),
    "dtype as a number": ({"dtype": 32}, "dtype", "32"),
    "chunks of too few axes": ({"chunks": [16]}, "chunks", "[16]"),
    "chunks of too many axes": ({"chunks": [1, 16, 16]}, "chunks", "[1, 16, 16]"),
    "chunks with zero": ({"chunks": [16, 0]}, "chunks.1", "0"),
    "chunks of a float": ({"chunks": [16, 16.5]}, "chunks.1", "16.5"),
    "chunks of a bool": ({"chunks": [16, True]}, "chunks.1", "True"),
    "chunks auto": ({"chunks": "auto"}, "chunks", "'auto'"),
    "shards of too few axes": ({"shards": [16]}, "shards", "[16]"),
    "shards of too many axes": ({"shards": [1, 16, 16]}, "shards", "[1, 16, 16]"),
    "shards with zero": ({"shards": [16, 0]}, "shards", "0"),
    "shards unknown word": ({"shards": "none"}, "shards", "'none'"),
    "shards no multiple of chunks": (
        {"shards": [32, 40], "chunks": [16, 16]},
        "shards",
        "[32, 40]",
    ),
    "shards smaller than chunks": ({"shards": [8, 8], "chunks": [16, 16]}, "shards", "[8, 8]"),
    "source as a number": ({"source": 5}, "source", "5"),
    "source too long": ({"source": "x" * 1025}, "source", "'xxx"),
    "run as a list": ({"run": []}, "run", "[]"),
    "run too long": ({"run": "x" * 1025}, "run", "'xxx"),
    "sent_ms negative": ({"sent_ms": -1}, "sent_ms", "-1"),
    "sent_ms as a float": ({"sent_ms": 1.5}, "sent_ms", "1.5"),
    "sent_ms beyond 64 bits": ({"sent_ms": 1 << 63}, "sent_ms", str(1 << 63)),
    "fill_value as a list": ({"fill_value": [0]}, "fill_value", "[0]"),
    "fill_value as other text": ({"fill_value": "nan"}, "fill_value", "'nan'"),
    "fill_value as a literal NaN": ({"fill_value": math.nan}, "fill_value", "nan"),
    "fill_value as a literal infinity": ({"fill_value": math.inf}, "fill_value", "inf"),
    "fill_value too large for the default float32": ({"fill_value": 1e39}, "fill_value", "1e+39"),
    "fill_value too large for uint8": ({"fill_value": 256, "dtype": "uint8"}, "fill_value", "256"),
    "fill_value negative for uint8": ({"fill_value": -1, "dtype": "uint8"}, "fill_value", "-1"),
    "fill_value with a fraction for int16": (
        {"fill_value": 1.5, "dtype": "int16"},
        "fill_value",
        "1.5",
    ),
    "fill_value NaN for int16": ({"fill_value": "NaN", "dtype": "int16"}, "fill_value", "'NaN'"),
    "fill_value 2 for bool": ({"fill_value": 2, "dtype": "bool"}, "fill_value", "2"),
    "codecs as one": ({"codecs": {"name": "zstd"}}, "codecs", ""),
    "codec not on the list": ({"codecs": [{"name": "lzma"}]}, "codecs.0", "'lzma'"),
    "codec numcodecs": ({"codecs": [{"name": "numcodecs.pickle"}]}, "codecs.0", "numcodecs.pickle"),
    "codec sharding": ({"codecs": [{"name": "sharding_indexed"}]}, "codecs.0", "sharding_indexed"),
    "codec as text": ({"codecs": ["zstd"]}, "codecs.0", "'zstd'"),
    "codec without a name": ({"codecs": [{}]}, "codecs.0", ""),
    "codec level too high": (
        {"codecs": [{"name": "gzip", "configuration": {"level": 10}}]},
        "level",
        "10",
    ),
    "codec level as text": (
        {"codecs": [{"name": "zstd", "configuration": {"level": "3"}}]},
        "level",
        "'3'",
    ),
    "codec cname unknown": (
        {"codecs": [{"name": "blosc", "configuration": {"cname": "rar"}}]},
        "cname",
        "'rar'",
    ),
    "codec order not of the axes": (
        {"codecs": [{"name": "transpose", "configuration": {"order": [0, 0]}}]},
        "transpose order",
        "[0, 0]",
    ),
    "codec order of too few axes": (
        {"codecs": [{"name": "transpose", "configuration": {"order": [0]}}]},
        "transpose order",
        "[0]",
    ),
    "codec transpose after bytes": ({"codecs": [CODECS[1], CODECS[0]]}, "codecs", ""),
    "codec bytes after zstd": ({"codecs": [{"name": "zstd"}, {"name": "bytes"}]}, "codecs", ""),
    "codec bytes twice": ({"codecs": [{"name": "bytes"}, {"name": "bytes"}]}, "codecs", ""),
    "nine codecs": ({"codecs": [{"name": "zstd"}] * 9}, "codecs", ""),
    "attributes as a list": ({"attributes": [1]}, "attributes", "[1]"),
    "attributes of one byte too many": (
        {"attributes": _attributes_of(MAX_ATTRIBUTES_BYTES + 1)},
        "attributes",
        str(MAX_ATTRIBUTES_BYTES + 1),
    ),
    "attributes with a literal NaN": ({"attributes": {"a": math.nan}}, "attributes", ""),
    "attributes with an infinity deep down": (
        {"attributes": {"a": [[math.inf]]}},
        "attributes",
        "",
    ),
    "tiles none": ({"tiles": []}, "tiles", "[]"),
    "tiles one too many": ({"tiles": [tile()] * (MAX_TILES + 1)}, "tiles", str(MAX_TILES)),
    "tiles as one": ({"tiles": tile()}, "tiles", ""),
    "tile as a list": ({"tiles": [tile(), [0, 0]]}, "tiles.1", "[0, 0]"),
    "stitch_coords of floats": (
        {"tiles": [tile(stitch_coords=[0.0, 1])]},
        "tiles.0.stitch_coords.0",
        "0.0",
    ),
    "stitch_coords of bools": (
        {"tiles": [tile(stitch_coords=[0, False])]},
        "tiles.0.stitch_coords.1",
        "False",
    ),
    "stitch_coords of text": (
        {"tiles": [tile(stitch_coords="00")]},
        "tiles.0.stitch_coords",
        "'00'",
    ),
    "stitch_coords beyond 64 bits": (
        {"tiles": [tile(stitch_coords=[1 << 63, 0])]},
        "tiles.0.stitch_coords.0",
        str(1 << 63),
    ),
    "stitch_coords null": ({"tiles": [tile(stitch_coords=None)]}, "tiles.0.stitch_coords", "None"),
    "crop_size with zero": (
        {"tiles": [tile(crop_coords=[0, 0], crop_size=[8, 0])]},
        "tiles.0.crop_size.1",
        "0",
    ),
    "crop_size negative": (
        {"tiles": [tile(crop_coords=[0, 0], crop_size=[-8, 8])]},
        "tiles.0.crop_size.0",
        "-8",
    ),
    "crop_coords without crop_size": (
        {"tiles": [tile(), tile(crop_coords=[0, 0])]},
        "tiles.1",
        "crop_size",
    ),
    "crop_size without crop_coords": (
        {"tiles": [tile(), tile(crop_size=[8, 8])]},
        "tiles.1",
        "crop_coords",
    ),
    "fill without crop_size": ({"tiles": [tile(), tile(fill=0)]}, "tiles.1", "crop_size"),
    "fill with crop_coords": (
        {"tiles": [tile(fill=0, crop_size=[8, 8], crop_coords=[0, 0])]},
        "tiles.0",
        "crop_coords",
    ),
    "fill as a list": ({"tiles": [tile(fill=[0], crop_size=[8, 8])]}, "tiles.0.fill", "[0]"),
    "fill as a literal NaN": (
        {"tiles": [tile(fill=math.nan, crop_size=[8, 8])]},
        "tiles.0.fill",
        "nan",
    ),
    "sample_idx as a float": ({"tiles": [tile(sample_idx=1.0)]}, "tiles.0.sample_idx", "1.0"),
    "sample_idx as a bool": ({"tiles": [tile(sample_idx=True)]}, "tiles.0.sample_idx", "True"),
    "channel as text": ({"tiles": [tile(channel="0")]}, "tiles.0.channel", "'0'"),
    "channel null": ({"tiles": [tile(channel=None)]}, "tiles.0.channel", "None"),
}


def _refusal(give: Callable[[], object]) -> str:
    with pytest.raises(InvalidMessage) as caught:
        give()
    return str(caught.value)


@pytest.mark.parametrize(("changes", "field", "_value"), BAD.values(), ids=BAD)
def test_an_entry_against_a_rule_is_invalid_with_the_fields_name(
    changes: dict[str, Any], field: str, _value: str
) -> None:
    assert field in _refusal(lambda: parse(json.dumps(fields(**changes))))


SHOWN = {name: (changes, value) for name, (changes, _, value) in BAD.items() if value}


@pytest.mark.parametrize(("changes", "value"), SHOWN.values(), ids=SHOWN)
def test_the_reason_shows_the_value(changes: dict[str, Any], value: str) -> None:
    assert value in _refusal(lambda: parse(json.dumps(fields(**changes))))


@pytest.mark.parametrize("changes", [case[0] for case in BAD.values()], ids=BAD)
def test_the_producer_is_refused_with_the_words_of_the_consumer(changes: dict[str, Any]) -> None:
    entry = fields(**changes)

    assert _refusal(lambda: build(entry)) == _refusal(lambda: parse(json.dumps(entry)))


@pytest.mark.parametrize("key", ["store", "array", "axes", "shape", "tiles"])
def test_a_required_field_that_is_missing_is_named(key: str) -> None:
    entry = fields()
    del entry[key]

    assert _refusal(lambda: parse(json.dumps(entry))) == f"{key}: Field required"


def test_stitch_coords_that_are_missing_are_named_with_their_tile() -> None:
    entry = fields(tiles=[tile(), {}])

    reason = _refusal(lambda: parse(json.dumps(entry)))

    assert reason == "tiles.1.stitch_coords: Field required"


def test_the_reason_counts_the_fields_that_fail_besides_the_first() -> None:
    entry = fields(shape=[0, 0], dtype="complex64")

    assert _refusal(lambda: parse(json.dumps(entry))).endswith("; and 2 more")


NOT_JSON_OBJECTS = {
    "nothing": "",
    "half an object": '{"store": "a.zarr"',
    "a list": "[]",
    "a number": "5",
    "a literal NaN": "NaN",
    "text": '"tiles"',
    "two objects": "{}{}",
    "a lone surrogate": '{"store": "\\ud800.zarr"}',
    "a number of 100,000 digits": '{"sent_ms": ' + "9" * 100_000 + "}",
    "100,000 lists in each other": '{"attributes": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "100,000 objects in each other": '{"a": ' * 100_000 + "1" + "}" * 100_000,
}


@pytest.mark.parametrize("text", NOT_JSON_OBJECTS.values(), ids=NOT_JSON_OBJECTS)
def test_text_that_is_no_json_object_is_invalid(text: str) -> None:
    with pytest.raises(InvalidMessage):
        parse(text)


def test_bytes_that_are_not_utf8_are_invalid() -> None:
    with pytest.raises(InvalidMessage):
        parse(b'{"store": "\xff.zarr"}')


@pytest.mark.parametrize(("field", "name"), [("store", "../d.zarr"), ("array", "c")])
def test_an_unsafe_path_is_refused_as_one(field: str, name: str) -> None:
    with pytest.raises(UnsafePath, match=name):
        parse(json.dumps(fields(**{field: name})))


ODD = {
    "newline in an unknown key": {"a\nb": 1},
    "newline in an unknown key of a tile": {"tiles": [tile(**{"a\nb": 1})]},
    "newline in the dtype": {"dtype": "a\nb"},
    "newline in a codec's name": {"codecs": [{"name": "a\nb"}]},
    "newline in the source's text": {"source": "\n" * 2000},
    "newline in the store": {"store": "a\nb.zarr"},
}


@pytest.mark.parametrize("changes", ODD.values(), ids=ODD)
def test_the_reason_is_one_line(changes: dict[str, Any]) -> None:
    with pytest.raises(ParkError) as caught:
        parse(json.dumps(fields(**changes)))

    assert len(str(caught.value).splitlines()) == 1


LONG = {
    "unknown key": {"a" * 100_000: 1},
    "unknown value": {"unknown": "a" * 100_000},
    "axes": {"axes": "a" * 100_000},
    "shape": {"shape": [1] * 100_000},
    "chunks": {"chunks": [1] * 100_000},
    "dtype": {"dtype": "a" * 100_000},
    "codec's name": {"codecs": [{"name": "a" * 100_000}]},
    "fill_value": {"fill_value": 10**4000},
    "store": {"store": "a" * 100_000},
    "array": {"array": "a" * 100_000},
    "source": {"source": "a" * 100_000},
    "tiles": {"tiles": [tile()] * 100_000},
}


@pytest.mark.parametrize("changes", LONG.values(), ids=LONG)
def test_the_reason_stays_short_however_long_the_value(changes: dict[str, Any]) -> None:
    with pytest.raises(ParkError) as caught:
        parse(json.dumps(fields(**changes)))

    assert len(str(caught.value)) <= 1000


ABSENT = ["dtype", "chunks", "shards", "source", "run", "fill_value", "codecs", "attributes"]


@pytest.mark.parametrize("name", [*ABSENT, "sent_ms"])
def test_what_is_absent_stays_open(name: str) -> None:
    assert getattr(parse(json.dumps(fields())), name) is None


@pytest.mark.parametrize("name", ["crop_coords", "crop_size", "sample_idx", "fill"])
def test_what_is_absent_of_a_tile_stays_open(name: str) -> None:
    assert getattr(parse(json.dumps(fields())).tiles[0], name) is None


def test_the_channel_is_the_first_by_default() -> None:
    assert parse(json.dumps(fields())).tiles[0].channel == 0


json_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(sorted(TilesEntry.model_fields)), json_values),
    st.dictionaries(st.sampled_from(["crop_size", "crop_coords", "fill", "channel"]), json_values),
)
def test_any_json_gives_a_reason_to_park_or_an_entry_that_survives_its_own_json(
    changes: dict[str, Any], tile_changes: dict[str, Any]
) -> None:
    entry = fields(tiles=[tile(**tile_changes)]) | changes
    try:
        taken = parse(json.dumps(entry))
    except ParkError:
        return

    assert parse(taken.model_dump_json(exclude_defaults=True)) == taken


NUMPY = {
    "dtype": (fields(dtype=np.dtype("uint16")), fields(dtype="uint16")),
    "big-endian dtype": (fields(dtype=np.dtype(">f4")), fields(dtype="float32")),
    "sizes": (fields(shape=(np.int64(64), np.uint8(48))), fields()),
    "dtype's type": (fields(dtype=np.uint16), fields(dtype="uint16")),
    "arrays": (
        fields(shape=np.array([64, 48]), tiles=(tile(stitch_coords=np.zeros(2, int)),)),
        fields(),
    ),
    "tuples": (fields(shape=(64, 48), tiles=(tile(stitch_coords=(0, 0)),)), fields()),
    "fill_value": (fields(fill_value=np.float32(0.5)), fields(fill_value=0.5)),
    "bool": (fields(fill_value=np.bool_(True)), fields(fill_value=True)),
}


@pytest.mark.parametrize(("given", "meant"), NUMPY.values(), ids=NUMPY)
def test_a_producer_may_give_numpys_own_types(given: dict[str, Any], meant: dict[str, Any]) -> None:
    assert build(given) == parse(json.dumps(meant))


def _nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def _endless() -> dict[str, Any]:
    inner: dict[str, Any] = {}
    inner["self"] = inner
    return inner


INEXPRESSIBLE = {
    "bytes": {"source": b"x"},
    "an array of complex numbers": {"shape": np.array([64j])},
    "a set": {"tiles": {1}},
    "a complex number": {"fill_value": 1j},
    "an object within itself": {"attributes": _endless()},
    "100,000 lists in each other": {"attributes": {"a": _nested(100_000)}},
    "a key that is no text": {"attributes": {(1, 2): 3}},
}


@pytest.mark.parametrize("changes", INEXPRESSIBLE.values(), ids=INEXPRESSIBLE)
def test_what_json_cannot_express_is_invalid(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage):
        build(fields(**changes))


SCALARS: dict[str, tuple[Scalar, str, Any]] = {
    "zero": (0, "uint8", 0),
    "whole float": (255.0, "uint8", 255),
    "bool for an integer": (True, "int8", 1),
    "bool": (True, "bool", True),
    "one for bool": (1, "bool", True),
    "least int64": (-(1 << 63), "int64", -(1 << 63)),
    "most uint64": ((1 << 64) - 1, "uint64", (1 << 64) - 1),
    "integer for a float": (3, "float32", 3.0),
    "rounded": (0.1, "float32", np.float32(0.1)),
    "infinity": ("Infinity", "float16", np.inf),
    "minus infinity": ("-Infinity", "float64", -np.inf),
    "NaN": ("NaN", "float32", np.nan),
    "most float16": (65504, "float16", 65504.0),
}


@pytest.mark.parametrize(("value", "dtype", "wanted"), SCALARS.values(), ids=SCALARS)
def test_a_scalar_that_fits_has_its_value(value: Scalar, dtype: str, wanted: Any) -> None:
    np.testing.assert_equal(as_scalar(value, np.dtype(dtype), "fill"), wanted)


@pytest.mark.parametrize(("value", "dtype", "_wanted"), SCALARS.values(), ids=SCALARS)
def test_a_scalar_that_fits_has_the_dtype(value: Scalar, dtype: str, _wanted: Any) -> None:
    assert as_scalar(value, np.dtype(dtype), "fill").dtype == np.dtype(dtype)


MISFITS: dict[str, tuple[Scalar, str]] = {
    "one too many for uint8": (256, "uint8"),
    "negative for uint64": (-1, "uint64"),
    "most uint64 for int64": ((1 << 64) - 1, "int64"),
    "float of 2**64 for uint64": (float(1 << 64), "uint64"),
    "fraction for an integer": (0.5, "int32"),
    "NaN for an integer": ("NaN", "int32"),
    "infinity for an integer": ("Infinity", "uint8"),
    "two for bool": (2, "bool"),
    "fraction for bool": (0.5, "bool"),
    "overflow of float16": (65520, "float16"),
    "overflow of float32": (1e39, "float32"),
    "overflow of float64": (10**400, "float64"),
}


@pytest.mark.parametrize(("value", "dtype"), MISFITS.values(), ids=MISFITS)
def test_a_scalar_that_does_not_fit_is_refused(value: Scalar, dtype: str) -> None:
    with pytest.raises(ValueError, match=f"does not fit {dtype}"):
        as_scalar(value, np.dtype(dtype), "fill")
