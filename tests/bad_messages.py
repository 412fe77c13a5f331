"""Messages that can never be written, as data: what is sent, and the reason it is parked with.

Each case has one fault. Its name is its id and its message id, and, where the fault is not in the
array's path, the path of an array of its own, so that no case stands in the way of another.
"""

import decimal
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pika
import zarr
import zstandard
from safetensors.numpy import save

from consumer.contract import CONTENT_TYPE, MESSAGE_TYPE

# No message of this store is ever written, so the store never exists.
STORE = "bad.zarr"
# What stands in the root beforehand; see `prepare`.
EXISTING = "existing.zarr"
BATCHES = "batches.zarr"
DAMAGED = "damaged.zarr"
ABSOLUTE = "/tiles-absolute/evil.zarr"
# Written by the run's good tiles; see `test_bad_input`.
GOOD_STORE = "good/0.zarr"
GOOD_ARRAY = "g0/img"
GOOD_SHAPE = (1, 320, 320)
GOOD_SOURCE = "file:///data/good.zarr"
GOOD_RUN = "unet-7/2026-11-22"

TIMESTAMP = 1795338000
MESSAGE_ID_OF_NONE = "good"
SIDE = 32
TILE = np.full((1, SIDE, SIDE), 7, "float32")
MIB = 1 << 20
MAX_INT64 = (1 << 63) - 1
HEADERS_BYTES = 130_900
# Around the depths at which Python's recursion limit ends pika's encoder in one call, but not yet
# in another that stands on a shorter stack: 2 or 3 frames a level, of 1,000.
NESTED_DEPTHS = range(240, 540)

Tensors = Sequence[npt.NDArray[Any]]


class RawHeaders(pika.BasicProperties):  # type: ignore[misc]  # pika has no types
    """Basic properties with a header table of raw bytes, which pika need not be able to encode."""

    def __init__(self, table: bytes, **properties: Any) -> None:
        super().__init__(headers={}, **properties)
        self._table = table

    def encode(self) -> list[bytes]:
        """Return the encoded pieces, with the table in the place of pika's empty one."""
        pieces: list[bytes] = super().encode()
        # The flags come first, then the length and the value of each short string before headers.
        given = (self.content_type, self.content_encoding)
        place = 1 + 2 * sum(value is not None for value in given)
        pieces[place] = struct.pack(">I", len(self._table)) + self._table
        return pieces


@dataclass(frozen=True)
class Case:
    """One message.

    Attributes
    ----------
    reason : str
        With which it is parked; empty where it is dead-lettered, or written.
    detail : tuple of str
        What the parked message's detail says, among the rest.
    properties : mapping
        Basic properties beside, or instead of, those of every case.
    table : bytes
        Encoded header fields, in the place of `headers`.
    """

    name: str
    body: bytes = field(repr=False)
    reason: str = ""
    detail: tuple[str, ...] = ()
    routing_key: str | bytes = STORE
    properties: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    table: bytes = field(default=b"", repr=False)

    def basic_properties(self) -> pika.BasicProperties:
        """Return the properties to publish it with."""
        common = {
            "content_type": CONTENT_TYPE,
            "delivery_mode": 2,
            "message_id": self.name,
            "timestamp": TIMESTAMP,
            "type": MESSAGE_TYPE,
            "app_id": "bad-input",
        }
        given = common | dict(self.properties)
        if self.table:
            return RawHeaders(self.table, **given)
        return pika.BasicProperties(headers={"case": self.name, **self.headers}, **given)

    @property
    def message_id(self) -> bytes:
        """The message id as it is on the wire."""
        given = self.properties.get("message_id", self.name)
        return given if isinstance(given, bytes) else str(given).encode()


def entry(**changes: Any) -> dict[str, Any]:
    """Return what a good message of one tile says, with `changes`."""
    good = {
        "store": STORE,
        "array": "img",
        "axes": "CYX",
        "shape": [1, 64, 64],
        "dtype": "float32",
        "tiles": [place()],
    }
    return good | changes


def place(**changes: Any) -> dict[str, Any]:
    """Return one tile's entry with `changes`."""
    return {"stitch_coords": [0, 0]} | changes


def document(header: Any, data: bytes = b"") -> bytes:
    """Return a safetensors document of a header, good or not, and its data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def unchecked(said: Any, tensors: Tensors = (TILE,)) -> bytes:
    """Return the body that a producer without any checks would send; `said` is text or JSON."""
    text = said if isinstance(said, str) else json.dumps(said)
    return bytes(save({str(i): tensor for i, tensor in enumerate(tensors)}, {"tiles": text}))


def said(
    name: str,
    reason: str,
    *detail: str,
    tensors: Tensors = (TILE,),
    **changes: Any,
) -> Case:
    """Return a case whose entry has `changes`; the routing key is its store key."""
    fields = entry(array=name) | changes
    key = fields["store"]
    routing_key = key.encode()[:255] if isinstance(key, str) else STORE
    return Case(name, unchecked(fields, tensors), reason, detail, routing_key)


def placed(
    name: str, reason: str, *detail: str, changes: Mapping[str, Any] | None = None, **tile: Any
) -> Case:
    """Return a case whose one tile has the given entry."""
    return said(name, reason, *detail, tiles=[place(**tile)], **(changes or {}))


def body(name: str, reason: str, *detail: str, of: bytes, **properties: Any) -> Case:
    """Return a case with a body of its own."""
    return Case(name, of, reason, detail, properties=properties)


def span(dtype: Any = "F32", shape: Any = (1, 32, 32), offsets: Any = (0, 4096)) -> dict[str, Any]:
    """Return one tensor's entry in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def header(name: str, *detail: str, **spans: Any) -> Case:
    """Return a case whose header has the given tensors over one tile's bytes."""
    metadata = {"tiles": json.dumps(entry(array=name))}
    tensors = {key.removeprefix("_"): value for key, value in spans.items()}
    whole = document({"__metadata__": metadata} | tensors, TILE.tobytes())
    return Case(name, whole, "undecodable", detail)


def without(name: str, key: str) -> Case:
    """Return a case that lacks a required key."""
    fields = entry(array=name)
    del fields[key]
    return Case(name, unchecked(fields), "invalid", (key,))


GOOD_BODY = unchecked(entry())
_START = 8 + int.from_bytes(GOOD_BODY[:8], "little")


# -- documents ------------------------------------------------------------------------------------

DOCUMENTS = [
    body("empty-body", "undecodable", "0 bytes", of=b""),
    body("seven-bytes", "undecodable", "7 bytes", of=GOOD_BODY[:7]),
    body("truncated-in-the-header", "undecodable", "100 bytes", of=GOOD_BODY[:100]),
    body("truncated-in-the-data", "undecodable", "4096", "4095", of=GOOD_BODY[:-1]),
    body("over-long-by-a-byte", "undecodable", "4096", "4097", of=GOOD_BODY + b"\0"),
    body(
        "header-length-beyond-the-body",
        "undecodable",
        str(len(GOOD_BODY) - 7),
        f"{len(GOOD_BODY)} bytes",
        of=(len(GOOD_BODY) - 7).to_bytes(8, "little") + GOOD_BODY[8:],
    ),
    body(
        "header-length-of-all-ones",
        "undecodable",
        str((1 << 64) - 1),
        of=b"\xff" * 8 + GOOD_BODY[8:],
    ),
    body("header-not-json", "undecodable", "not JSON", of=document(b"{tiles}")),
    body("safetensors-header-not-utf-8", "undecodable", "not JSON", of=document(b'{"\xff": 1}')),
    body("header-a-list", "undecodable", "list", of=document([1, 2])),
    body("header-nested-too-deeply", "undecodable", "recursion", of=document(b"[" * 100_000)),
    body(
        "header-with-nan",
        "undecodable",
        "column 34",
        of=document(b'{"0": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', b"1234"),
    ),
    body(
        "json-of-5-mb",
        "too_large",
        "5000",
        str(MIB),
        of=document({"__metadata__": {"tiles": "x" * 5_000_000}}),
    ),
    body("body-over-the-limit", "too_large", str(16 * MIB + 1), of=bytes(16 * MIB + 1)),
    body("no-metadata", "invalid", "'tiles'", of=document({"0": span()}, TILE.tobytes())),
    body(
        "metadata-not-strings",
        "undecodable",
        "__metadata__",
        of=document({"__metadata__": {"tiles": 5}, "0": span()}, TILE.tobytes()),
    ),
    header("offsets-overlap", "2048", "4096", _0=span(), _1=span("F32", [1, 16, 32], [2048, 4096])),
    header(
        "offsets-leave-a-gap",
        "2052",
        "2048",
        _0=span("F32", [512], [0, 2048]),
        _1=span("F32", [511], [2052, 4096]),
    ),
    header("offsets-leave-the-body", "8192", "4096", _0=span("F32", [1, 64, 32], [0, 8192])),
    header("offsets-backwards", "[4096, 0]", _0=span(offsets=[4096, 0])),
    header("offsets-negative", "[-4096, 0]", _0=span(offsets=[-4096, 0])),
    header("offsets-overflow", str(1 << 64), _0=span(offsets=[1 << 64, (1 << 64) + 4096])),
    header("offsets-not-of-the-shape", "[0, 4092]", _0=span(offsets=[0, 4092])),
    header("offsets-three", "[0, 1, 4096]", _0=span(offsets=[0, 1, 4096])),
    header("tensor-shape-negative", "[-1, -32, 32]", _0=span(shape=[-1, -32, 32])),
    header("tensor-shape-zero", "[1, 0, 32]", _0=span(shape=[1, 0, 32], offsets=[0, 0])),
    header("tensor-shape-wraps-at-64-bits", str(1 << 32), _0=span(shape=[1 << 32, 1 << 32])),
    header("tensor-shape-a-string", "'1x32'", _0=span(shape="1x32")),
    header("tensor-shape-true", "True", _0=span(shape=[True, 32, 32])),
    header("tensor-shape-of-many-digits", "9" * 20, _0=span(shape=[int("9" * 4000)])),
    header("tensor-dtype-unknown", "'BF16'", _0=span("BF16", [2048], [0, 4096])),
    header("tensor-dtype-object", "'O'", _0=span("O", [512], [0, 4096])),
    header("tensor-dtype-a-list", "['F32']", _0=span(["F32"])),
    header("tensor-with-an-unknown-key", "'strides'", _0=span() | {"strides": [1]}),
    header("tensor-a-number", "17", _0=17),
    header("tensor-name-unknown", "'image'", image=span()),
]

# -- what the JSON says ---------------------------------------------------------------------------

DIGITS = "1" * 5000
JSON = [
    body("tiles-not-json", "invalid", "JSON", of=unchecked("{store: bad.zarr}")),
    body("tiles-empty", "invalid", "JSON", of=unchecked("")),
    body("tiles-null", "invalid", "None", of=unchecked("null")),
    body("tiles-a-list", "invalid", "[1, 2]", of=unchecked("[1, 2]")),
    body(
        "tiles-nested-too-deeply",
        "invalid",
        "recursion",
        of=unchecked(
            json.dumps(entry())[:-1] + ', "attributes": ' + '{"a":' * 5000 + "1" + "}" * 5001
        ),
    ),
    body(
        "a-lone-surrogate",
        "invalid",
        "escape",
        "column",
        of=unchecked(json.dumps(entry(source="s")).replace('"s"', '"\\ud800"')),
    ),
    said("unknown-key", "invalid", "colour", "'red'", colour="red"),
    placed("unknown-key-of-a-tile", "invalid", "tiles.0.weight", "0.5", weight=0.5),
    *(without(f"missing-{key}", key) for key in ("store", "array", "axes", "shape", "tiles")),
    said("missing-stitch-coords", "invalid", "stitch_coords", tiles=[{}]),
    said("shape-a-string", "invalid", "shape", "'64x64'", shape="64x64"),
    said("shape-of-floats", "invalid", "shape", "64.5", shape=[1, 64.5, 64]),
    said("shape-of-strings", "invalid", "shape", "'64'", shape=[1, "64", 64]),
    said("shape-of-booleans", "invalid", "shape", "True", shape=[True, 64, 64]),
    said("store-a-number", "invalid", "store", "17", store=17),
    said("array-null", "invalid", "array", "None", array=None),
    said("run-a-list", "invalid", "run", "['a']", run=["a"]),
    said("source-over-long", "invalid", "source", "1024", source="s" * 1025),
    said("tiles-an-object", "invalid", "tiles", tiles={"0": place()}),
    said("no-tiles", "invalid", "tiles", "[]", tiles=[], tensors=()),
    said("more-tiles-than-allowed", "invalid", "tiles", "4097", tiles=[place()] * 4097),
    said("axes-out-of-order", "invalid", "'YXC'", axes="YXC"),
    said("axes-unknown", "invalid", "'QYX'", axes="QYX"),
    said("attributes-too-large", "invalid", "attributes", "20009", attributes={"a": "b" * 20_000}),
    said("codec-unknown", "invalid", "pickle", codecs=[{"name": "pickle"}]),
    said(
        "codecs-out-of-order",
        "invalid",
        "codecs",
        "bytes",
        codecs=[{"name": "zstd"}, {"name": "bytes"}],
    ),
    said("nan-as-a-size", "invalid", "shape", "nan", shape=[1, math.nan, 64]),
    said("infinity-as-a-size", "invalid", "shape", "inf", shape=[1, math.inf, 64]),
    placed("nan-as-a-coordinate", "invalid", "stitch_coords", "nan", stitch_coords=[math.nan, 0]),
    said("nan-as-fill-value", "invalid", "fill_value", "nan", fill_value=math.nan),
    said("integer-of-400-digits", "invalid", "shape", "1" * 20, shape=[1, int("1" * 400), 64]),
    body(
        "integer-of-5000-digits",
        "invalid",
        "shape",
        of=unchecked(json.dumps(entry()).replace("[1, 64, 64]", f"[1, {DIGITS}, 64]")),
    ),
    said("shape-negative", "invalid", "shape", "-64", shape=[1, -64, 64]),
    said("shape-zero", "invalid", "shape", "got 0", shape=[1, 64, 0]),
    said("shape-beyond-64-bits", "invalid", str(1 << 63), shape=[1, 1 << 63, 64]),
    said(
        "shape-product-beyond-the-limit",
        "invalid",
        str((1 << 25) ** 3),
        "2**50",
        shape=[1 << 25, 1 << 25, 1 << 25],
    ),
    said("chunks-zero", "invalid", "chunks", "got 0", chunks=[1, 0, 32]),
    said("shards-negative", "invalid", "shards", "-32", shards=[1, -32, 32], chunks=[1, 32, 32]),
    placed("crop-size-zero", "invalid", "crop_size", "got 0", crop_coords=[0, 0], crop_size=[0, 8]),
    placed("crop-size-negative", "invalid", "-8", crop_coords=[0, 0], crop_size=[-8, 8]),
    placed(
        "crop-size-beyond-64-bits",
        "invalid",
        str(1 << 63),
        crop_coords=[0, 0],
        crop_size=[1 << 63, 8],
    ),
    placed("coordinate-beyond-64-bits", "invalid", str(1 << 63), stitch_coords=[1 << 63, 0]),
    placed("crop-coords-without-size", "invalid", "crop_size", crop_coords=[0, 0]),
    said("fill-without-size", "invalid", "crop_size", tiles=[place(fill=1)], tensors=()),
    said("too-few-tensors", "invalid", "2 tiles", "1", tiles=[place(), place()]),
    said("too-many-tensors", "invalid", "1 tiles", "2", tensors=(TILE, TILE)),
    said("shape-of-wrong-count", "invalid", "[64, 64]", "'CYX'", shape=[64, 64]),
    said("chunks-of-wrong-count", "invalid", "[32, 32]", "'CYX'", chunks=[32, 32]),
    said("shards-of-wrong-count", "invalid", "[64]", "'CYX'", chunks=[1, 32, 32], shards=[64]),
    placed("coordinates-of-wrong-count", "invalid", "[0, 0, 3]", "YX", stitch_coords=[0, 0, 3]),
    placed("crop-of-wrong-count", "invalid", "[8]", "YX", crop_coords=[0, 0], crop_size=[8]),
    said("tensor-of-wrong-count", "invalid", "tile 0", "[32, 32]", tensors=(TILE[0],)),
    said("dtype-unknown", "invalid", "dtype", "'bfloat16'", dtype="bfloat16"),
    said("dtype-object", "invalid", "dtype", "'object'", dtype="object"),
    said("dtype-complex", "invalid", "dtype", "'complex64'", dtype="complex64"),
    said("fill-value-of-another-dtype", "invalid", "300", "uint8", dtype="uint8", fill_value=300),
    Case(
        "routing-key-not-the-store-key",
        unchecked(entry(array="routing-key-not-the-store-key")),
        "invalid",
        ("'elsewhere.zarr'", f"'{STORE}'"),
        "elsewhere.zarr",
    ),
    Case(
        "routing-key-empty",
        unchecked(entry(array="routing-key-empty")),
        "invalid",
        ("''", f"'{STORE}'"),
        "",
    ),
]

# -- what AMQP says of the body -------------------------------------------------------------------


def compressed(plain: bytes, *, sized: bool = True) -> bytes:
    """Return a zstd frame, with or without its content size."""
    parameters = zstandard.ZstdCompressionParameters(write_content_size=sized)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(plain)


def claiming(size: int) -> bytes:
    """Return a zstd frame of one byte that claims another content size."""
    # RFC 8878: the descriptor says single segment and 8 bytes of size; then one raw block.
    return b"\x28\xb5\x2f\xfd" + b"\xe0" + size.to_bytes(8, "little") + b"\x09\0\0" + b"a"


ZSTD = {"content_encoding": "zstd"}
ENVELOPES = [
    body("type-unknown", "unknown_version", "'tiles.v2'", of=GOOD_BODY, type="tiles.v2"),
    body("type-absent", "unknown_version", "None", of=GOOD_BODY, type=None),
    body("type-empty", "unknown_version", "''", of=GOOD_BODY, type=""),
    body(
        "content-type-unknown",
        "undecodable",
        "'application/json'",
        of=GOOD_BODY,
        content_type="application/json",
    ),
    body("content-type-absent", "undecodable", "None", of=GOOD_BODY, content_type=None),
    body("content-encoding-gzip", "undecodable", "'gzip'", of=GOOD_BODY, content_encoding="gzip"),
    body("zstd-is-none", "undecodable", "zstd", of=GOOD_BODY, **ZSTD),
    body("zstd-empty", "undecodable", "zstd", of=b"", **ZSTD),
    body("zstd-truncated", "undecodable", "zstd", of=compressed(GOOD_BODY)[:-3], **ZSTD),
    body("zstd-over-long", "undecodable", "zstd", of=compressed(GOOD_BODY) + b"tail", **ZSTD),
    body(
        "zstd-bomb-with-content-size",
        "too_large",
        str(64 * MIB),
        of=compressed(bytes(64 * MIB)),
        **ZSTD,
    ),
    body(
        "zstd-bomb-without-content-size",
        "too_large",
        str(16 * MIB),
        of=compressed(bytes(64 * MIB), sized=False),
        **ZSTD,
    ),
    body("zstd-claims-an-exbibyte", "too_large", str(1 << 60), of=claiming(1 << 60), **ZSTD),
    body("zstd-claims-less-than-it-has", "undecodable", "0 bytes", of=claiming(0), **ZSTD),
    body(
        "zstd-of-a-bad-document",
        "undecodable",
        "4095",
        of=compressed(GOOD_BODY[:-1]),
        **ZSTD,
    ),
    Case("checksum-wrong", GOOD_BODY, "checksum", ("0x00000011",), headers={"crc32c": 17}),
    Case("checksum-a-string", GOOD_BODY, "invalid", ("'17'",), headers={"crc32c": "17"}),
    Case("checksum-negative", GOOD_BODY, "invalid", ("-17",), headers={"crc32c": -17}),
    Case(
        "checksum-over-32-bits",
        GOOD_BODY,
        "invalid",
        (str(1 << 40),),
        headers={"crc32c": 1 << 40},
    ),
]

# -- values, sizes and places ---------------------------------------------------------------------

TWO_CHANNELS: dict[str, Any] = {"shape": [2, 64, 64]}
WITH_SAMPLES: dict[str, Any] = {"axes": "STCYX", "shape": [2, 3, 1, 64, 64]}
PLACES = [
    said("float-into-integer", "unsafe_cast", "tile 0", "float32", "uint8", dtype="uint8"),
    said(
        "wide-integer-into-float",
        "unsafe_cast",
        "int64",
        "float32",
        tensors=(TILE.astype("int64"),),
    ),
    said(
        "fill-into-narrow-integer",
        "unsafe_cast",
        "tile 0",
        "300",
        "uint8",
        dtype="uint8",
        tiles=[place(fill=300, crop_size=[8, 8])],
        tensors=(),
    ),
    said(
        "values-not-of-the-stored-dtype",
        "unsafe_cast",
        "float32",
        "uint8",
        store=EXISTING,
        array="narrow",
        dtype=None,
    ),
    said(
        "values-not-of-the-default-dtype",
        "unsafe_cast",
        "int64",
        "float32",
        dtype=None,
        tensors=(TILE.astype("int64"),),
    ),
    said(
        "chunks-over-the-memory-budget",
        "too_large",
        "[1, 10000, 10000]",
        "400000000",
        shape=[1, 20000, 20000],
        chunks=[1, 10000, 10000],
    ),
    said(
        "shards-over-the-memory-budget",
        "too_large",
        "[1, 16384, 16384]",
        str(4 << 28),
        shape=[1, 20000, 20000],
        chunks=[1, 256, 256],
        shards=[1, 16384, 16384],
    ),
    said(
        "more-blocks-than-one-message-may-touch",
        "too_large",
        str(1 << 18),
        str(1 << 16),
        shape=[1, 1 << 18, 1 << 18],
        chunks=[1, 1, 1 << 18],
        shards=[1, 1, 1 << 18],
        tiles=[place(fill=1, crop_size=[1 << 18, 8])],
        tensors=(),
    ),
    said("chunks-beyond-the-array", "too_large", str(1 << 40), chunks=[1, 1 << 40, 1 << 40]),
    said(
        "shards-no-multiple-of-chunks",
        "invalid",
        "[1, 96, 64]",
        "[1, 64, 64]",
        chunks=[1, 64, 64],
        shards=[1, 96, 64],
    ),
    said(
        "shards-no-multiple-of-automatic-chunks",
        "invalid",
        "[1, 96, 96]",
        "[1, 64, 64]",
        shards=[1, 96, 96],
    ),
    placed(
        "crop-outside-the-tile",
        "out_of_bounds",
        "[30, 0]",
        "[8, 8]",
        "[32, 32]",
        crop_coords=[30, 0],
        crop_size=[8, 8],
    ),
    placed(
        "crop-before-the-tile",
        "out_of_bounds",
        "[-1, 0]",
        crop_coords=[-1, 0],
        crop_size=[8, 8],
    ),
    placed(
        "crop-overflows",
        "out_of_bounds",
        str(MAX_INT64),
        crop_coords=[MAX_INT64, 0],
        crop_size=[MAX_INT64, 8],
    ),
    placed(
        "stitch-beyond-the-array", "out_of_bounds", "[40, 0]", "[64, 64]", stitch_coords=[40, 0]
    ),
    placed("stitch-before-the-array", "out_of_bounds", "[0, -1]", stitch_coords=[0, -1]),
    placed("stitch-overflows", "out_of_bounds", str(MAX_INT64), stitch_coords=[0, MAX_INT64]),
    placed(
        "sample-beyond-the-last", "out_of_bounds", "6", "0 to 5", changes=WITH_SAMPLES, sample_idx=6
    ),
    placed("sample-negative", "out_of_bounds", "-1", "0 to 5", changes=WITH_SAMPLES, sample_idx=-1),
    placed("sample-absent", "invalid", "sample_idx", "S and T", changes=WITH_SAMPLES),
    placed("sample-without-an-axis", "invalid", "sample_idx 5", "'CYX'", sample_idx=5),
    said(
        "channels-without-an-axis",
        "out_of_bounds",
        "2 channels",
        axes="YX",
        shape=[64, 64],
        tensors=(TILE.repeat(2, 0),),
    ),
    said(
        "more-channels-than-the-array",
        "out_of_bounds",
        "3 channels",
        "2 channels",
        tensors=(TILE.repeat(3, 0),),
        **TWO_CHANNELS,
    ),
    said(
        "channels-beyond-the-last",
        "out_of_bounds",
        "channel 1 with 2 channels",
        tensors=(TILE.repeat(2, 0),),
        tiles=[place(channel=1)],
        **TWO_CHANNELS,
    ),
    placed("channel-negative", "out_of_bounds", "channel -1", changes=TWO_CHANNELS, channel=-1),
]

# -- store keys and array paths -------------------------------------------------------------------


def key(name: str, store: str, *detail: str) -> Case:
    """Return a case of a store key."""
    return said(name, "unsafe_path", *(detail or (repr(store),)), store=store)


def path(name: str, array: str, *detail: str, **changes: Any) -> Case:
    """Return a case of an array path."""
    return said(name, "unsafe_path", *(detail or (repr(array),)), array=array, **changes)


LONG = "a" * 300
PATHS = [
    key("key-to-the-parent", "../outside/evil.zarr"),
    key("key-through-the-parent", "a/../../outside/evil.zarr"),
    key("key-absolute", ABSOLUTE),
    key("key-empty", ""),
    key("key-of-a-slash", "/"),
    key("key-with-an-empty-segment", "a//evil.zarr"),
    key("key-with-a-last-slash", "evil.zarr/"),
    key("key-with-a-dot", "a/./evil.zarr"),
    key("key-of-a-dot", "."),
    key("key-with-nul", "evil\0.zarr"),
    key("key-with-a-line-feed", "evil\n.zarr"),
    key("key-over-long", f"{LONG}.zarr", f"'{LONG[:80]}'", "255"),
    key("key-not-normalised", "cafe\u0301.zarr"),
    key("key-with-zarr-in-the-middle", "evil.zarr/inner.zarr"),
    key("key-without-zarr", "evil"),
    key("key-of-the-suffix-alone", "a/.zarr"),
    key("key-of-the-state-folder", ".tiles/evil.zarr"),
    key("key-through-a-link", "link/evil.zarr", "link", "symbolic link"),
    key("key-of-a-link", "linked.zarr", "linked.zarr", "symbolic link"),
    key("key-through-a-dangling-link", "dangling/evil.zarr", "dangling", "symbolic link"),
    key("key-through-a-loop-of-links", "loop/evil.zarr", "loop", "symbolic link"),
    key("key-through-a-file", "file/evil.zarr", "file/evil.zarr"),
    key("key-of-a-file", "file.zarr", "file.zarr"),
    path("path-with-zarr", "g/inner.zarr/img"),
    path("path-ending-in-zarr", "img.zarr"),
    path("path-of-zarr-json", "g/zarr.json"),
    path("path-of-chunks", "g/c/img"),
    path("path-of-zarray", "g/.zarray"),
    path("path-with-a-leading-dot", ".hidden/img"),
    path("path-empty", ""),
    path("path-to-the-parent", "../img"),
    path("path-through-the-parent", "g/../../outside"),
    path("path-absolute", "/img"),
    path("path-with-an-empty-segment", "g//img"),
    path("path-with-nul", "g/im\0g"),
    path("path-with-an-over-long-segment", f"g/{LONG}", f"'g/{LONG[:78]}'", "255"),
    path("path-over-long", "/".join(["a" * 200] * 6), f"'{LONG[:80]}'", "1024"),
    path("path-not-normalised", "g/cafe\u0301"),
    path("path-through-a-link", "link/img", "link", "symbolic link", store=EXISTING),
    path("path-of-a-link", "link", "link", "symbolic link", store=EXISTING),
    path("path-through-a-file", "file/img", "file", store=EXISTING),
    path("path-of-a-file", "file", "file", store=EXISTING),
]

# -- what is stored -------------------------------------------------------------------------------


def stored(name: str, array: str, *detail: str, **changes: Any) -> Case:
    """Return a case that what is stored refuses."""
    where = {"store": EXISTING, "array": array, "chunks": [1, 32, 32]}
    return said(name, "array_mismatch", *detail, **(where | changes))


GOOD_PLACE: dict[str, Any] = {
    "store": GOOD_STORE,
    "array": GOOD_ARRAY,
    "shape": list(GOOD_SHAPE),
    "source": GOOD_SOURCE,
    "run": GOOD_RUN,
}
STORED = [
    stored("shape-not-the-stored", "img", "[1, 64, 65]", "[1, 64, 64]", shape=[1, 64, 65]),
    stored("dtype-not-the-stored", "img", "'float64'", "'float32'", dtype="float64"),
    stored("chunks-not-the-stored", "img", "[1, 16, 16]", "[1, 32, 32]", chunks=[1, 16, 16]),
    stored("shards-not-the-stored", "img", "[1, 64, 64]", "None", shards=[1, 64, 64]),
    stored(
        "shards-other-than-the-stored", "sharded", "[1, 32, 64]", "[1, 64, 64]", shards=[1, 32, 64]
    ),
    stored("axes-not-the-stored", "img", "'SYX'", "'CYX'", axes="SYX", tiles=[place(sample_idx=0)]),
    stored("stored-dtype-is-complex", "complex", "complex64", dtype=None),
    stored("stored-metadata-is-broken", "broken", "broken"),
    stored("group-in-the-way", "group", f"{EXISTING}/group", "group"),
    stored("array-in-the-way-of-a-group", "img/inner", "'img'", "array"),
    stored("foreign-folder-in-the-way", "foreign", f"{EXISTING}/foreign", "not empty"),
    said("stored-block-is-damaged", "damaged_block", f"{DAMAGED}/img", store=DAMAGED, array="img"),
    said(
        "second-source",
        "source_conflict",
        "'file:///data/other.zarr'",
        f"'{GOOD_SOURCE}'",
        **GOOD_PLACE | {"source": "file:///data/other.zarr"},
    ),
    said("second-run", "run_conflict", "'other'", f"'{GOOD_RUN}'", **GOOD_PLACE | {"run": "other"}),
]

# -- batches of ten with one bad tile -------------------------------------------------------------

BATCH_SHAPE = (1, SIDE, 10 * SIDE)
BAD_INDEX = 7


def batch(
    name: str,
    reason: str,
    *detail: str,
    tensor: npt.NDArray[Any] = TILE,
    **tile: Any,
) -> Case:
    """Return a case of ten tiles, all good but the one at `BAD_INDEX`, for a stored array."""
    tiles = [place(stitch_coords=[0, SIDE * i]) for i in range(10)]
    tiles[BAD_INDEX] |= tile
    tensors = [TILE] * 10
    tensors[BAD_INDEX] = tensor
    where = {"store": BATCHES, "shape": list(BATCH_SHAPE), "dtype": None}
    told = (f"tile {BAD_INDEX}", *detail)
    return said(name, reason, *told, tiles=tiles, tensors=tensors, **where)


BATCH_CASES = [
    batch("batch-with-a-stitch-outside", "out_of_bounds", "[0, 300]", stitch_coords=[0, 300]),
    batch(
        "batch-with-a-crop-outside",
        "out_of_bounds",
        "[30, 30]",
        crop_coords=[30, 30],
        crop_size=[8, 8],
    ),
    batch("batch-with-a-bad-channel", "out_of_bounds", "channel 1", channel=1),
    batch("batch-with-a-bad-dtype", "unsafe_cast", "int64", tensor=TILE.astype("int64")),
    batch("batch-with-a-bad-tensor", "invalid", "[32, 32]", tensor=TILE[0]),
]

# -- AMQP -----------------------------------------------------------------------------------------


def header_field(name: bytes, kind: bytes, value: bytes) -> bytes:
    """Return one encoded field of a header table."""
    return bytes([len(name)]) + name + kind + value


def sized(value: bytes) -> bytes:
    """Return a value after its length in 4 bytes."""
    return struct.pack(">I", len(value)) + value


def full_table() -> bytes:
    """Return a header table that nearly fills the largest frame."""
    start = header_field(b"filler", b"S", struct.pack(">I", 0))
    return start[:-4] + sized(b"f" * (HEADERS_BYTES - len(start)))


def nested_table(depth: int) -> bytes:
    """Return a header table in a header table, and so on."""
    table = b""
    for _ in range(depth):
        table = header_field(b"n", b"F", sized(table))
    return table


def hostile(name: str, **properties: Any) -> Case:
    """Return a case with properties that are no fault by themselves; its type is its fault."""
    given = {"type": "tiles.v2"} | properties
    shown = "tiles.v2" if "type" not in properties else "tiles"
    return Case(name, GOOD_BODY, "unknown_version", (shown,), properties=given)


def with_headers(name: str, headers: Mapping[str, Any]) -> Case:
    """Return a case with headers that are no fault by themselves; its type is its fault."""
    return Case(
        name,
        GOOD_BODY,
        "unknown_version",
        ("'tiles.v2'",),
        properties={"type": "tiles.v2"},
        headers=headers,
    )


def with_table(name: str, table: bytes) -> Case:
    """Return a case as `with_headers`, of encoded headers."""
    return replace(with_headers(name, {}), table=table)


AMQP = [
    hostile("expiration", expiration="60000"),
    hostile("user-id", user_id="guest"),
    hostile("priority", priority=9),
    hostile("reply-to", reply_to="answers", correlation_id="question-17"),
    hostile("timestamp-beyond-all-years", timestamp=(1 << 64) - 1),
    hostile("transient", delivery_mode=1),
    hostile("type-not-utf-8", type=b"tiles.v1\xff"),
    hostile("message-id-not-utf-8", message_id=b"\xff\xfe message-id-not-utf-8"),
    hostile("app-id-not-utf-8", app_id=b"\xff\xfe"),
    hostile("message-id-of-255-bytes", message_id="m" * 255),
    body(
        "content-type-not-utf-8",
        "undecodable",
        "application/",
        of=GOOD_BODY,
        content_type=b"application/\xff",
    ),
    body(
        "content-encoding-not-utf-8", "undecodable", "zs", of=GOOD_BODY, content_encoding=b"zs\xff"
    ),
    Case(
        "routing-key-not-utf-8",
        unchecked(entry(array="routing-key-not-utf-8")),
        "invalid",
        (f"'{STORE}'",),
        b"\xff\xfe.zarr",
    ),
    Case(
        "routing-key-of-255-bytes-not-utf-8",
        unchecked(entry(array="routing-key-of-255-bytes-not-utf-8")),
        "invalid",
        (f"'{STORE}'",),
        b"\xff" * 255,
    ),
    with_headers("headers-of-an-earlier-parking", {"x-tiles-reason": "old", "x-tiles-new": "a"}),
    with_headers("header-cc", {"CC": ["elsewhere.zarr"]}),
    with_headers("header-void", {"note": None}),
    with_headers("header-a-decimal", {"share": decimal.Decimal("0.25")}),
    with_headers("header-a-timestamp", {"at": datetime(2026, 11, 22, tzinfo=UTC)}),
    with_headers(
        "header-of-lists-and-tables", {"a": [1, "b", {"c": None}], "d": {"e": True}, "f": 1 << 40}
    ),
    with_headers("header-not-utf-8", {"note": b"\xff\xfe"}),
    with_headers("delivery-count-a-string", {"x-delivery-count": "many"}),
    with_headers("delivery-count-void", {"x-delivery-count": None}),
    with_headers("delivery-count-a-table", {"x-delivery-count": {"a": 1}}),
    with_headers("delivery-count-huge", {"x-delivery-count": MAX_INT64}),
    with_table("header-a-double", header_field(b"score", b"d", struct.pack(">d", 0.75))),
    with_table("header-a-float", header_field(b"score", b"f", struct.pack(">f", 0.75))),
    with_table("header-name-not-utf-8", header_field(b"\xff\xfe", b"S", sized(b"note"))),
]

BAD = [
    *DOCUMENTS,
    *JSON,
    *ENVELOPES,
    *PLACES,
    *PATHS,
    *STORED,
    *BATCH_CASES,
    *AMQP,
]


def tabled(name: str, table: bytes, **properties: Any) -> Case:
    """Return a case with encoded headers that cannot be copied; its type is its fault too."""
    return Case(name, GOOD_BODY, properties={"type": "tiles.v2"} | properties, table=table)


# A copy has no room for the reason: rejected to the dead-letter exchange.
FULL = [
    tabled("headers-fill-the-frame", full_table()),
    tabled("headers-fill-the-frame-and-expiration", full_table(), expiration="60000"),
]
# Beyond what pika decodes: dead-lettered, or parked with the reason by a consumer that copes.
UNREADABLE = [
    tabled("timestamp-beyond-the-year-9999", header_field(b"at", b"T", struct.pack(">Q", 10**12))),
    tabled("timestamp-beyond-64-bits", header_field(b"at", b"T", b"\xff" * 8)),
    tabled("timestamp-in-a-list", header_field(b"at", b"A", sized(b"T" + b"\xff" * 8))),
    tabled("tables-nested-5000-deep", nested_table(5000)),
]
NESTED = [tabled(f"tables-nested-{depth}-deep", nested_table(depth)) for depth in NESTED_DEPTHS]
# RabbitMQ cannot read these either: it closes the producer's connection.
UNREADABLE_BY_BROKERS = [
    tabled("double-not-a-number", header_field(b"score", b"d", struct.pack(">d", math.nan))),
    tabled("double-infinite", header_field(b"score", b"d", struct.pack(">d", math.inf))),
]
UNROUTABLE = [
    hostile("parking-queue-unbound"),
    hostile("parking-queue-deleted"),
]

# -- odd, but good: each writes `TILE` into the corner of its own array ---------------------------

ODD_STORE = "odd.zarr"


def odd(
    name: str,
    *,
    changes: Mapping[str, Any] | None = None,
    headers: Mapping[str, Any] | None = None,
    table: bytes = b"",
    **properties: Any,
) -> Case:
    """Return a good message with something odd about it."""
    fields = entry(store=ODD_STORE, array=name) | dict(changes or {})
    return Case(
        name,
        unchecked(fields),
        routing_key=ODD_STORE,
        properties=properties,
        headers=headers or {},
        table=table,
    )


ODD = [
    odd("good-beside-headers-that-fill-the-frame", table=full_table()),
    odd("good-beside-a-forged-delivery-count", headers={"x-delivery-count": "many"}),
    odd("good-beside-a-header-name-not-utf-8", table=header_field(b"\xff", b"S", sized(b"note"))),
    odd("good-beside-tables-nested-100-deep", table=nested_table(100)),
    odd("good-of-another-user", user_id="guest", priority=9, reply_to="answers"),
    odd("good-with-a-message-id-not-utf-8", message_id=b"\xff\xfe odd"),
    odd("one-channel-of-two", changes=TWO_CHANNELS),
]


def prepare(root: Path, outside: Path) -> None:
    """Put into the root what the cases meet there."""
    existing = root / EXISTING
    group = zarr.open_group(existing, mode="w")
    layout: dict[str, Any] = {
        "shape": (1, 64, 64),
        "dimension_names": ["c", "y", "x"],
        "chunks": (1, 32, 32),
    }
    group.create_array("img", dtype="float32", **layout)[:] = 3
    group.create_array("sharded", dtype="float32", shards=(1, 64, 64), **layout)[:] = 3
    group.create_array("narrow", dtype="uint8", **layout)[:] = 3
    group.create_array("complex", dtype="complex64", **layout)
    group.create_group("group")
    (existing / "broken").mkdir()
    (existing / "broken/zarr.json").write_text("{")
    (existing / "foreign").mkdir()
    (existing / "foreign/notes.txt").write_text("somebody's own")
    (existing / "file").write_text("somebody's own")
    (existing / "link").symlink_to(outside, target_is_directory=True)

    batches = zarr.open_group(root / BATCHES, mode="w")
    for case in BATCH_CASES:
        batches.create_array(case.name, shape=BATCH_SHAPE, chunks=(1, SIDE, SIDE), dtype="float32")
    damaged = zarr.open_group(root / DAMAGED, mode="w")
    damaged.create_array("img", dtype="float32", **layout)[:] = 3
    for chunk in (root / DAMAGED / "img/c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"no zstd at all")

    (root / "file").write_text("somebody's own")
    (root / "file.zarr").write_text("somebody's own")
    (root / "link").symlink_to(outside, target_is_directory=True)
    (root / "linked.zarr").symlink_to(outside, target_is_directory=True)
    (root / "dangling").symlink_to(outside / "nowhere")
    (root / "loop").symlink_to("loop")
