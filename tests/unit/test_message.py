"""Whole messages: encoded and decoded again, broken in every way, and compressed out of bounds."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from wire_documents import STORE, counting, document, envelope, fields, span, tile, unchecked

import consumer
from consumer.contract import CONTENT_ENCODING, build, parse
from consumer.coverage import Box
from consumer.errors import (
    ChecksumMismatch,
    InvalidMessage,
    OutOfBounds,
    ParkError,
    TooLarge,
    Undecodable,
    UnknownVersion,
    UnsafeCast,
)
from consumer.message import (
    MAX_MESSAGE_BYTES,
    Encoded,
    Envelope,
    Message,
    Outline,
    check_kinds,
    decode,
    encode,
)
from consumer.placement import Layout

DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
DTYPES += ["float16", "float32", "float64"]
Arrays = Sequence[npt.NDArray[Any]]


def _received(encoded: Encoded) -> Message:
    given = encoded.properties
    return decode(
        Envelope(
            encoded.routing_key,
            given["type"],
            given["content_type"],
            given["content_encoding"],
            given["headers"],
        ),
        encoded.body,
    )


# --- What was encoded is decoded


@st.composite
def batches(draw: st.DrawFn) -> tuple[dict[str, Any], list[npt.NDArray[Any]], list[Any]]:
    """Draw the fields of a good message, its tensors, and the values that its tiles must have."""
    axes = "".join(draw(st.sampled_from(["", axis])) for axis in "STCZ") + "YX"
    sizes = {axis: draw(st.integers(1, 6)) for axis in axes}
    spatial = [axis for axis in axes if axis in "ZYX"]
    dtype = draw(st.sampled_from(DTYPES))
    tiles: list[dict[str, Any]] = []
    tensors: list[npt.NDArray[Any]] = []
    wanted: list[Any] = []
    for _ in range(draw(st.integers(1, 3))):
        size = [draw(st.integers(1, sizes[axis])) for axis in spatial]
        corner = [draw(st.integers(0, sizes[a] - n)) for a, n in zip(spatial, size, strict=True)]
        entry: dict[str, Any] = {"stitch_coords": corner}
        if "S" in axes or "T" in axes:
            count = sizes.get("S", 1) * sizes.get("T", 1)
            entry["sample_idx"] = draw(st.integers(0, count - 1))
        if draw(st.booleans()):
            entry["fill"] = draw(st.sampled_from([0, 1, True]))
            wanted.append(entry["fill"])
            tiles.append(entry | {"crop_size": size})
            continue
        channels = draw(st.integers(1, sizes.get("C", 1)))
        entry["channel"] = draw(st.integers(0, sizes.get("C", 1) - channels))
        around = [(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in spatial]
        outer = [a + n + b for n, (a, b) in zip(size, around, strict=True)]
        tensor = draw(hnp.arrays(dtype, (channels, *outer)))
        crop = tuple(slice(a, a + n) for n, (a, _) in zip(size, around, strict=True))
        if outer != size or draw(st.booleans()):
            entry |= {"crop_coords": [a for a, _ in around], "crop_size": size}
        tiles.append(entry)
        tensors.append(tensor)
        wanted.append(tensor[(slice(None), *crop)])
    changes: dict[str, Any] = {"axes": axes, "shape": list(sizes.values()), "tiles": tiles}
    if draw(st.booleans()):
        changes["dtype"] = dtype
    return fields(**changes), tensors, wanted


a_property = settings(max_examples=60)


@a_property
@given(batches(), st.booleans(), st.booleans())
def test_a_decoded_message_says_what_was_encoded(
    batch: tuple[dict[str, Any], list[npt.NDArray[Any]], list[Any]], compress: bool, checksum: bool
) -> None:
    entry, tensors, _ = batch

    message = _received(encode(entry, tensors, compress=compress, checksum=checksum))

    assert message.entry == parse(json.dumps(entry))


@a_property
@given(batches(), st.booleans(), st.booleans())
def test_decoded_tiles_have_the_values_that_were_encoded(
    batch: tuple[dict[str, Any], list[npt.NDArray[Any]], list[Any]], compress: bool, checksum: bool
) -> None:
    entry, tensors, wanted = batch

    message = _received(encode(entry, tensors, compress=compress, checksum=checksum))

    assert [_bits(t.values) for t in message.tiles] == [_bits(values) for values in wanted]


def _bits(values: Any) -> Any:
    """Return what makes values equal voxel by voxel, NaN included."""
    if isinstance(values, np.ndarray):
        return values.dtype, values.size, values.tobytes()
    return type(values), values


@a_property
@given(batches())
def test_decoded_values_have_the_shape_of_their_box(
    batch: tuple[dict[str, Any], list[npt.NDArray[Any]], list[Any]],
) -> None:
    entry, tensors, _ = batch

    tiles = _received(encode(entry, tensors)).tiles

    arrays = [t for t in tiles if isinstance(t.values, np.ndarray)]
    assert [np.shape(t.values) for t in arrays] == [t.box.shape for t in arrays]


@a_property
@given(batches())
def test_decoded_values_of_a_plain_body_are_views_into_it(
    batch: tuple[dict[str, Any], list[npt.NDArray[Any]], list[Any]],
) -> None:
    entry, tensors, _ = batch
    encoded = encode(entry, tensors)
    body = np.frombuffer(encoded.body, np.uint8)

    values = [t.values for t in _received(encoded).tiles if isinstance(t.values, np.ndarray)]

    assert all(np.shares_memory(array, body) for array in values)


def test_the_routing_key_is_the_store_key() -> None:
    assert encode(fields(), [counting(1, 2, 3)]).routing_key == STORE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("type", "tiles.v1"),
        ("content_type", "application/x-safetensors"),
        ("content_encoding", None),
        ("delivery_mode", 2),
        ("headers", {}),
    ],
)
def test_a_plain_message_has_the_property(name: str, value: Any) -> None:
    assert encode(fields(), [counting(1, 2, 3)]).properties[name] == value


def test_a_compressed_message_says_so() -> None:
    encoded = encode(fields(), [counting(1, 2, 3)], compress=True)

    assert encoded.properties["content_encoding"] == "zstd"


def test_the_checksum_is_of_the_body_as_sent() -> None:
    encoded = encode(fields(), [counting(1, 2, 3)], compress=True, checksum=True)

    assert encoded.properties["headers"] == {"crc32c": google_crc32c.value(encoded.body)}


def test_a_message_keeps_as_many_bytes_in_memory_as_its_plain_body() -> None:
    plain = encode(fields(), [counting(1, 32, 32)])
    compressed = encode(fields(), [counting(1, 32, 32)], compress=True)

    assert _received(compressed).nbytes == len(plain.body)


def test_a_big_endian_tile_keeps_its_values() -> None:
    array = counting(1, 2, 3, dtype=">f4")

    (found,) = _received(encode(fields(), [array])).tiles

    np.testing.assert_array_equal(found.values, array[0])


def test_a_tile_goes_where_its_coordinates_say() -> None:
    entry = fields(
        axes="STCZYX",
        shape=[2, 3, 4, 5, 64, 48],
        tiles=[
            {
                "sample_idx": 4,
                "channel": 1,
                "crop_coords": [1, 2, 3],
                "crop_size": [2, 8, 9],
                "stitch_coords": [3, 10, 20],
            }
        ],
    )

    (found,) = _received(encode(entry, [np.zeros((2, 4, 16, 16), np.uint8)])).tiles

    assert found.box == Box((1, 1, 1, 3, 10, 20), (2, 2, 3, 5, 18, 29))


# --- The envelope

ENVELOPES: dict[str, tuple[dict[str, Any], type[ParkError], str]] = {
    "no type": ({"type": None}, UnknownVersion, "None"),
    "empty type": ({"type": ""}, UnknownVersion, "''"),
    "next version": ({"type": "tiles.v2"}, UnknownVersion, "'tiles.v2'"),
    "type in capitals": ({"type": "TILES.V1"}, UnknownVersion, "'TILES.V1'"),
    "no content type": ({"content_type": None}, Undecodable, "None"),
    "JSON": ({"content_type": "application/json"}, Undecodable, "'application/json'"),
    "gzip": ({"content_encoding": "gzip"}, Undecodable, "'gzip'"),
    "zstd that is none": ({"content_encoding": "zstd"}, Undecodable, "zstd"),
    "routing key of another store": ({"routing_key": "b.zarr"}, InvalidMessage, "'b.zarr'"),
    "routing key longer than the store": (
        {"routing_key": f"{STORE}/x"},
        InvalidMessage,
        f"'{STORE}/x'",
    ),
    "routing key empty": ({"routing_key": ""}, InvalidMessage, "''"),
    "wrong checksum": ({"headers": {"crc32c": 0xDEAD}}, ChecksumMismatch, "0x0000dead"),
    "checksum as text": ({"headers": {"crc32c": "57005"}}, InvalidMessage, "'57005'"),
    "checksum as bytes": ({"headers": {"crc32c": b"\0"}}, InvalidMessage, "b'\\x00'"),
    "checksum as a float": ({"headers": {"crc32c": 1.0}}, InvalidMessage, "1.0"),
    "checksum as a bool": ({"headers": {"crc32c": True}}, InvalidMessage, "True"),
    "checksum negative": ({"headers": {"crc32c": -1}}, InvalidMessage, "-1"),
    "checksum of 33 bits": ({"headers": {"crc32c": 1 << 32}}, InvalidMessage, str(1 << 32)),
    "checksum as a table": ({"headers": {"crc32c": {"a": 1}}}, InvalidMessage, "{'a': 1}"),
}


@pytest.mark.parametrize(("changes", "kind", "_value"), ENVELOPES.values(), ids=ENVELOPES)
def test_an_envelope_against_the_contract_is(
    changes: dict[str, Any], kind: type[ParkError], _value: str
) -> None:
    body = encode(fields(), [counting(1, 2, 3)]).body

    with pytest.raises(ParkError) as caught:
        decode(envelope(**changes), body)

    assert type(caught.value) is kind


@pytest.mark.parametrize(("changes", "_kind", "value"), ENVELOPES.values(), ids=ENVELOPES)
def test_the_reason_shows_what_the_envelope_says(
    changes: dict[str, Any], _kind: type[ParkError], value: str
) -> None:
    body = encode(fields(), [counting(1, 2, 3)]).body

    with pytest.raises(ParkError) as caught:
        decode(envelope(**changes), body)

    assert value in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"content_encoding": ""},
        {"headers": {"crc32c": None}},
        {"headers": {"x-death": [{"count": 1}], "CRC32C": 5}},
    ],
    ids=["empty content encoding", "checksum of null", "unknown headers"],
)
def test_an_envelope_within_the_contract_is_taken(changes: dict[str, Any]) -> None:
    body = encode(fields(), [counting(1, 2, 3)]).body

    assert len(decode(envelope(**changes), body).tiles) == 1


class _Long(int):
    """As pika gives a number that AMQP sends in 64 bits."""


def test_a_checksum_that_came_in_64_bits_is_taken() -> None:
    body = encode(fields(), [counting(1, 2, 3)]).body
    checksum = _Long(google_crc32c.value(body))

    assert len(decode(envelope(headers={"crc32c": checksum}), body).tiles) == 1


@pytest.mark.parametrize("checksum", [0, (1 << 32) - 1])
def test_a_checksum_at_the_ends_of_its_range_is_compared(checksum: int) -> None:
    body = encode(fields(), [counting(1, 2, 3)]).body

    with pytest.raises(ChecksumMismatch):
        decode(envelope(headers={"crc32c": checksum}), body)


# --- The body

BODIES: dict[str, tuple[bytes, type[ParkError], str]] = {
    "no document": (b"tiles", Undecodable, "5 bytes"),
    "no metadata": (document({}), InvalidMessage, "'tiles'"),
    "metadata of something else": (document({"__metadata__": {"a": "b"}}), InvalidMessage, "'a'"),
    "metadata that is no JSON": (document({"__metadata__": {"tiles": "b"}}), InvalidMessage, "'b'"),
    "tile without a tensor": (unchecked(fields(), []), InvalidMessage, "there are 0"),
    "tensor without a tile": (
        unchecked(fields(), [counting(1, 2, 3)] * 2),
        InvalidMessage,
        "there are 2",
    ),
    "tensor for a fill": (
        unchecked(fields(tiles=[tile(fill=0, crop_size=[2, 2])]), [counting(1, 2, 3)]),
        InvalidMessage,
        "there are 1",
    ),
    "second tile out of bounds": (
        unchecked(fields(tiles=[tile(), tile(stitch_coords=[63, 0])]), [counting(1, 2, 3)] * 2),
        OutOfBounds,
        "tile 1: stitch_coords [63, 0]",
    ),
    "third tile of too few axes": (
        unchecked(
            fields(tiles=[tile(), tile(fill=0, crop_size=[2, 2]), tile()]),
            [counting(1, 2, 3), counting(2, 3)],
        ),
        InvalidMessage,
        "tile 2: the tensor of shape [2, 3]",
    ),
    "second tile of another dtype": (
        unchecked(
            fields(dtype="uint8", tiles=[tile(), tile()]),
            [counting(1, 2, 3), counting(1, 2, 3, dtype="int16")],
        ),
        UnsafeCast,
        "tile 1: int16 cannot be stored as uint8",
    ),
    "second tile's fill does not fit": (
        unchecked(
            fields(dtype="uint8", tiles=[tile(), tile(fill=256, crop_size=[2, 2])]),
            [counting(1, 2, 3)],
        ),
        UnsafeCast,
        "tile 1: fill 256",
    ),
}


@pytest.mark.parametrize(("body", "kind", "_words"), BODIES.values(), ids=BODIES)
def test_a_body_against_the_contract_is(body: bytes, kind: type[ParkError], _words: str) -> None:
    with pytest.raises(ParkError) as caught:
        decode(envelope(), body)

    assert type(caught.value) is kind


@pytest.mark.parametrize(("body", "_kind", "words"), BODIES.values(), ids=BODIES)
def test_the_reason_says_what_of_the_body_is_wrong(
    body: bytes, _kind: type[ParkError], words: str
) -> None:
    with pytest.raises(ParkError) as caught:
        decode(envelope(), body)

    assert words in str(caught.value)


LONG = {
    "metadata's key": document({"__metadata__": {"a" * 100_000: "b"}}),
    "metadata's text": document({"__metadata__": {"tiles": "b" * 100_000}}),
    "stitch_coords": unchecked(
        fields(tiles=[tile(stitch_coords=[0] * 100_000)]), [counting(1, 1, 1)]
    ),
    "crop_size": unchecked(fields(tiles=[tile(fill=0, crop_size=[1] * 100_000)]), []),
    "fill": unchecked(fields(dtype="uint8", tiles=[tile(fill=10**4000, crop_size=[1, 1])]), []),
}


@pytest.mark.parametrize("body", LONG.values(), ids=LONG)
def test_the_reason_stays_short_however_long_the_value(body: bytes) -> None:
    with pytest.raises(ParkError) as caught:
        decode(envelope(), body)

    assert len(str(caught.value)) <= 1000


def test_the_reason_is_one_line_whatever_the_metadatas_key() -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode(envelope(), document({"__metadata__": {"a\nb": "c"}}))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "zstd"])
def test_a_message_of_exactly_the_limit_is_taken(compress: bool) -> None:
    plain = encode(fields(), [counting(1, 32, 32)]).body
    body = zstandard.ZstdCompressor().compress(plain) if compress else plain
    encoding = CONTENT_ENCODING if compress else None

    message = decode(envelope(content_encoding=encoding), body, max_bytes=len(plain))

    assert message.nbytes == len(plain)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "zstd"])
def test_a_message_of_one_byte_over_the_limit_is_too_large(compress: bool) -> None:
    plain = encode(fields(), [counting(1, 32, 32)]).body
    body = zstandard.ZstdCompressor().compress(plain) if compress else plain
    encoding = CONTENT_ENCODING if compress else None

    with pytest.raises(TooLarge, match=f"{len(plain)} bytes is over the limit of {len(plain) - 1}"):
        decode(envelope(content_encoding=encoding), body, max_bytes=len(plain) - 1)


# --- Compression


def _streamed(plain: bytes, **options: Any) -> bytes:
    """Return one frame that does not say how much it holds, as a streaming producer writes it."""
    stream = zstandard.ZstdCompressor(**options).compressobj()
    return stream.compress(plain) + stream.flush()


def _sized(plain: bytes, **options: Any) -> bytes:
    """Return one frame that says how much it holds."""
    return zstandard.ZstdCompressor(**options).compress(plain)


FRAMES: dict[str, Callable[..., bytes]] = {"size in the frame": _sized, "no size": _streamed}
PLAIN = unchecked(fields(), [counting(1, 2, 3)])
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("level", [-5, 1, 3, 19])
def test_a_compressed_body_is_read(frame: Callable[..., bytes], level: int) -> None:
    message = decode(envelope(content_encoding="zstd"), frame(PLAIN, level=level))

    assert message.nbytes == len(PLAIN)


@pytest.mark.parametrize("limit", [1 << 10, 1 << 20, 3 << 31], ids=["1 KiB", "1 MiB", "6 GiB"])
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_small_compressed_body_is_read_whatever_the_limit(
    frame: Callable[..., bytes], limit: int
) -> None:
    message = decode(envelope(content_encoding="zstd"), frame(PLAIN), max_bytes=limit)

    assert message.nbytes == len(PLAIN)


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize(
    "rest", [b"\0", b"garbage", SKIPPABLE, "frame"], ids=["NUL", "garbage", "skippable", "frame"]
)
def test_a_compressed_body_that_goes_on_after_its_frame_is_undecodable(
    frame: Callable[..., bytes], rest: bytes | str
) -> None:
    body = frame(PLAIN) + (rest if isinstance(rest, bytes) else frame(PLAIN))

    with pytest.raises(Undecodable):
        decode(envelope(content_encoding="zstd"), body)


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_compressed_body_cut_anywhere_is_undecodable(frame: Callable[..., bytes]) -> None:
    body = frame(PLAIN, write_checksum=True)

    assert [len(body) - n for n in range(len(body)) if not _is_undecodable(body[:n])] == []


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_compressed_body_against_its_own_checksum_is_undecodable(
    frame: Callable[..., bytes],
) -> None:
    body = frame(PLAIN, write_checksum=True)

    assert _is_undecodable(body[:-1] + bytes([body[-1] ^ 1]))


def _is_undecodable(body: bytes) -> bool:
    try:
        decode(envelope(content_encoding="zstd"), body)
    except Undecodable:
        return True
    return False


ODD_FRAMES = {
    "nothing": b"",
    "magic number alone": b"\x28\xb5\x2f\xfd",
    "skippable frame alone": SKIPPABLE,
    "skippable frame first": SKIPPABLE + _sized(PLAIN),
    "empty frame": _sized(b""),
    "empty streamed frame": _streamed(b""),
    "frame with a dictionary": zstandard.ZstdCompressor(
        dict_data=zstandard.ZstdCompressionDict(PLAIN * 8, zstandard.DICT_TYPE_RAWCONTENT),
    ).compress(PLAIN)[:-1],
}


@pytest.mark.parametrize("body", ODD_FRAMES.values(), ids=ODD_FRAMES)
def test_an_odd_frame_is_undecodable(body: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(envelope(content_encoding="zstd"), body)


def test_a_frame_that_claims_too_much_is_too_large_before_anything_is_decompressed() -> None:
    claim = b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little")

    with pytest.raises(TooLarge, match=str(1 << 60)):
        decode(envelope(content_encoding="zstd"), claim)


BOMB = """
import resource, sys
from consumer.errors import TooLarge
from consumer.message import Envelope, decode

def most_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

body = sys.stdin.buffer.read()
before = most_kib()
try:
    decode(Envelope("a.zarr", "tiles.v1", "application/x-safetensors", "zstd"), body)
except TooLarge:
    print(most_kib() - before)
"""


@pytest.fixture(params=[True, False], ids=["size in the frame", "no size"])
def bomb(request: pytest.FixtureRequest) -> bytes:
    """A GiB of zeros in a few KiB."""
    size = 1 << 30
    stream = zstandard.ZstdCompressor(level=1).compressobj(size=size if request.param else -1)
    zeros = bytes(1 << 24)
    return b"".join([*(stream.compress(zeros) for _ in range(size >> 24)), stream.flush()])


def test_a_zstd_bomb_takes_little_more_memory_than_the_limit(bomb: bytes) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(consumer.__file__).parents[1])}

    done = subprocess.run(
        [sys.executable, "-c", BOMB],
        input=bomb,
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
    )

    assert int(done.stdout) << 10 < 3 * MAX_MESSAGE_BYTES


# --- Nothing but reasons to park


def _decoded_or_parked(given: Envelope, body: bytes) -> None:
    try:
        message = decode(given, body, max_bytes=1 << 16)
    except ParkError:
        return
    assert message.nbytes <= 1 << 16


GOOD_BODY = encode(
    fields(
        tiles=[tile(), tile(fill=0.5, crop_size=[4, 4]), tile(crop_coords=[0, 1], crop_size=[1, 1])]
    ),
    [counting(1, 2, 3, dtype="float32"), counting(1, 2, 3, dtype="float32")],
).body
GOOD_BODIES = {
    "plain": (envelope(), GOOD_BODY),
    "zstd": (envelope(content_encoding="zstd"), _sized(GOOD_BODY)),
    "zstd without a size": (envelope(content_encoding="zstd"), _streamed(GOOD_BODY)),
}
edits = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 8), st.binary(max_size=8)),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize(("given_envelope", "body"), GOOD_BODIES.values(), ids=GOOD_BODIES)
@settings(max_examples=300)
@given(changes=edits)
def test_a_damaged_message_is_decoded_or_parked(
    given_envelope: Envelope, body: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    for where, length, instead in changes:
        start = where % (len(body) + 1)
        body = body[:start] + instead + body[start + length :]

    _decoded_or_parked(given_envelope, body)


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize(("given_envelope", "body"), GOOD_BODIES.values(), ids=GOOD_BODIES)
def test_a_message_with_one_bit_flipped_anywhere_is_decoded_or_parked(
    given_envelope: Envelope, body: bytes, bit: int
) -> None:
    for at in range(len(body)):
        _decoded_or_parked(
            given_envelope, body[:at] + bytes([body[at] ^ 1 << bit]) + body[at + 1 :]
        )


@pytest.mark.parametrize("encoding", [None, "zstd"])
@settings(max_examples=200)
@given(body=st.binary(max_size=300) | st.binary(max_size=50).map(lambda rest: SKIPPABLE[:4] + rest))
def test_garbage_is_parked(encoding: str | None, body: bytes) -> None:
    with pytest.raises(ParkError):
        decode(envelope(content_encoding=encoding), body, max_bytes=1 << 16)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
numbers = st.integers(-2, 70) | st.integers()
some_tile = st.fixed_dictionaries(
    {"stitch_coords": st.lists(numbers, max_size=3)},
    optional={
        "crop_coords": st.lists(numbers, max_size=3),
        "crop_size": st.lists(numbers, max_size=3),
        "sample_idx": numbers,
        "channel": numbers,
        "fill": st.floats() | numbers,
    },
)
some_fields = st.fixed_dictionaries(
    {
        "axes": st.sampled_from(["YX", "SYX", "CYX", "STCZYX"]),
        "shape": st.lists(numbers, min_size=1, max_size=6),
        "tiles": st.lists(some_tile, min_size=1, max_size=2),
    },
    optional={"dtype": st.sampled_from(DTYPES), "chunks": st.lists(numbers), "junk": json_values},
)


@settings(max_examples=150)
@given(some_fields, st.lists(st.sampled_from([(1, 2, 3), (2, 3), (1, 1, 2, 3)]), max_size=2))
def test_whatever_the_json_says_the_message_is_decoded_or_parked(
    changes: dict[str, Any], shapes: list[tuple[int, ...]]
) -> None:
    body = unchecked(fields(**changes), [counting(*shape) for shape in shapes])

    _decoded_or_parked(envelope(), body)


# --- What may be stored as what


def _may(given: str, stored: str) -> bool:
    """Return the design's rule: equal, safe in NumPy's sense, or float64 to float32."""
    return np.can_cast(given, stored, "safe") or (given, stored) == ("float64", "float32")


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("given_dtype", DTYPES)
def test_a_tile_is_taken_for_a_dtype_if_and_only_if_the_rule_says_so(
    given_dtype: str, stored: str
) -> None:
    body = unchecked(fields(dtype=stored), [counting(1, 2, 3, dtype=given_dtype)])
    try:
        decode(envelope(), body)
        taken = True
    except UnsafeCast:
        taken = False

    assert taken == _may(given_dtype, stored)


CASTS = {
    "equal": ("float32", "float32", True),
    "wider": ("uint8", "uint16", True),
    "unsigned to wider signed": ("uint8", "int16", True),
    "exact in a float": ("uint16", "float32", True),
    "doubles are rounded": ("float64", "float32", True),
    "bool to anything": ("bool", "uint8", True),
    "half to single": ("float16", "float32", True),
    "single to half": ("float32", "float16", False),
    "double to half": ("float64", "float16", False),
    "int64 to single": ("int64", "float32", False),
    "int32 to single": ("int32", "float32", False),
    "float to integer": ("float32", "uint8", False),
    "signed to unsigned": ("int8", "uint8", False),
    "narrower": ("uint16", "uint8", False),
    "anything to bool": ("uint8", "bool", False),
}


@pytest.mark.parametrize(("given_dtype", "stored", "may"), CASTS.values(), ids=CASTS)
def test_the_rule_for_dtypes_is(given_dtype: str, stored: str, may: bool) -> None:
    assert _may(given_dtype, stored) is may


@pytest.mark.parametrize("given_dtype", DTYPES)
def test_a_tile_of_any_dtype_is_taken_where_the_message_leaves_it_open(given_dtype: str) -> None:
    body = unchecked(fields(), [counting(1, 2, 3, dtype=given_dtype)])

    (found,) = decode(envelope(), body).tiles

    assert np.asarray(found.values).dtype == given_dtype


FILLS: dict[str, tuple[Any, str]] = {
    "too large": (256, "uint8"),
    "fraction": (0.5, "int32"),
    "NaN": ("NaN", "uint16"),
    "overflow": (1e39, "float32"),
}


@pytest.mark.parametrize(("fill", "stored"), FILLS.values(), ids=FILLS)
def test_a_fill_that_does_not_fit_what_is_stored_is_refused_with_its_tile(
    fill: Any, stored: str
) -> None:
    with pytest.raises(UnsafeCast, match=re.escape(f"tile 1: fill {fill!r} does not fit")):
        check_kinds([0, fill], np.dtype(stored))


# --- The producer is refused as the consumer would

BAD_FIELDS: dict[str, tuple[dict[str, Any], Arrays]] = {
    "unknown key": (fields(junk=1), [counting(1, 2, 3)]),
    "unsafe store": (fields(store="../d.zarr"), [counting(1, 2, 3)]),
    "unsafe array": (fields(array="c"), [counting(1, 2, 3)]),
    "tile without a tensor": (fields(), []),
    "tensor without a tile": (fields(), [counting(1, 2, 3)] * 2),
    "crop leaves the tile": (
        fields(tiles=[tile(crop_coords=[0, 0], crop_size=[3, 3])]),
        [counting(1, 2, 3)],
    ),
    "tile leaves the array": (fields(tiles=[tile(stitch_coords=[0, 46])]), [counting(1, 2, 3)]),
    "negative stitch_coords": (fields(tiles=[tile(stitch_coords=[0, -1])]), [counting(1, 2, 3)]),
    "tensor of too few axes": (fields(), [counting(2, 3)]),
    "tensor of too many axes": (fields(), [counting(1, 1, 2, 3)]),
    "more channels than one": (fields(), [counting(2, 2, 3)]),
    "sample_idx without S and T": (fields(tiles=[tile(sample_idx=0)]), [counting(1, 2, 3)]),
    "no sample_idx with S": (fields(axes="SYX", shape=[2, 64, 48]), [counting(1, 2, 3)]),
    "sample_idx too large": (
        fields(axes="SYX", shape=[2, 64, 48], tiles=[tile(sample_idx=2)]),
        [counting(1, 2, 3)],
    ),
    "dtype": (fields(dtype="uint8"), [counting(1, 2, 3, dtype="float32")]),
    "fill": (fields(dtype="uint8", tiles=[tile(fill=-1, crop_size=[2, 2])]), []),
    "second tile": (fields(tiles=[tile(), tile(stitch_coords=[64, 0])]), [counting(1, 2, 3)] * 2),
    "tile without rows": (fields(), [np.zeros((1, 0, 3), np.uint8)]),
    "tile of complex numbers": (fields(), [counting(1, 2, 3, dtype="complex64")]),
    "body over the limit": (
        fields(shape=[4096, 4097]),
        [np.zeros((1, 4096, 4097), np.uint8)],
    ),
    "header over the limit": (
        fields(dtype="float64", tiles=[tile(fill=10**300, crop_size=[1, 1])] * 4096),
        [],
    ),
}


@pytest.mark.parametrize(("entry", "arrays"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_the_producer_is_refused_with_the_error_and_words_of_the_consumer(
    entry: Mapping[str, Any], arrays: Arrays
) -> None:
    with pytest.raises(ParkError) as parked:
        decode(envelope(routing_key=entry["store"]), unchecked(entry, arrays))
    with pytest.raises(ParkError) as refused:
        encode(entry, arrays)

    assert (type(refused.value), str(refused.value)) == (type(parked.value), str(parked.value))


def test_the_producer_is_refused_a_body_that_compression_takes_over_the_limit() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 48), np.uint8)
    limit = len(encode(fields(), [noise]).body)

    with pytest.raises(TooLarge):
        encode(fields(), [noise], compress=True, max_bytes=limit)


@pytest.mark.parametrize("dtype", ["O", "U3", "S3", "M8[s]", "m8[s]", "complex128", "V4"])
def test_the_producer_is_refused_a_tile_that_the_contract_has_no_dtype_for(dtype: str) -> None:
    with pytest.raises(ParkError):
        encode(fields(), [np.zeros((1, 2, 3), dtype)])


def test_nothing_of_a_span_is_read_outside_the_body() -> None:
    body = document({"0": span(0, 1 << 40, [1, 1 << 20, 1 << 20])} | {"__metadata__": {}}, bytes(6))

    with pytest.raises(Undecodable):
        decode(envelope(), body)


def outline_of(shape: list[int], size: list[int]) -> Outline:
    """Return the outline of a message of one fill tile."""
    said = {"stitch_coords": [0, 0], "crop_size": size, "fill": 1}
    entry = build({"store": "a.zarr", "array": "x", "axes": "YX", "shape": shape, "tiles": [said]})
    return Outline(entry, (1,), (Box.of_shape(size),))


@pytest.mark.parametrize(
    ("chunks", "shards", "said"),
    [
        ((1, 1), None, "262656 files of [1, 1] voxels; at most 262144"),
        ((1, 1), (2, 2), "65792 blocks of [2, 2] voxels; at most 65536"),
        ((1, 1), (64, 64), ""),
        ((2, 2), None, ""),
    ],
    ids=str,
)
def test_a_message_touches_no_more_blocks_and_files_than_can_be_written_in_time(
    chunks: tuple[int, int], shards: tuple[int, int] | None, said: str
) -> None:
    outline = outline_of([512, 513], [512, 513])
    layout = Layout("YX", (512, 513), np.dtype("uint8"), chunks, shards)
    if not said:
        outline.check(layout)
        return
    with pytest.raises(TooLarge, match=re.escape(said)):
        outline.check(layout)
