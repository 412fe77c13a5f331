"""The models of the wire contract, version 1: what a message says, apart from its tensors.

Producer and consumer validate with the same models, so that encode and decode cannot drift and a
bad tile fails in the producer with the words that the consumer would park it with.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from consumer.errors import InvalidMessage
from consumer.keys import check_array_path, check_store_key

MESSAGE_TYPE = "tiles.v1"
CONTENT_TYPE = "application/x-safetensors"
CONTENT_ENCODING = "zstd"
CHECKSUM_HEADER = "crc32c"

AXES = "STCZYX"
MAX_TILES = 4096
MAX_ATTRIBUTES_BYTES = 16 * 1024
MAX_ARRAY_VOXELS = 1 << 50
_MAX_SIZE = (1 << 63) - 1
_MAX_TEXT = 1024
_AXES_PATTERN = r"^S?T?C?Z?YX$"

DType = Literal[
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
Scalar = bool | int | float | Literal["NaN", "Infinity", "-Infinity"]

_Size = Annotated[int, Field(ge=1, le=_MAX_SIZE)]
_Index = Annotated[int, Field(ge=-_MAX_SIZE, le=_MAX_SIZE)]
_Text = Annotated[str, Field(max_length=_MAX_TEXT)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


def _finite(value: Scalar) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} must be written as 'NaN', 'Infinity' or '-Infinity'")
    return value


def _axes(axes: str) -> str:
    if re.fullmatch(_AXES_PATTERN.strip("^$"), axes) is None:
        raise ValueError(f"must be some of {AXES} in that order, always with YX")
    return axes


_Axes = Annotated[str, AfterValidator(_axes), Field(json_schema_extra={"pattern": _AXES_PATTERN})]
_Fill = Annotated[Scalar, AfterValidator(_finite)]


class Bytes(_Model):
    """Zarr's `bytes` codec: the byte order of what is stored."""

    class Configuration(_Model):
        endian: Literal["little", "big"] = "little"

    name: Literal["bytes"]
    configuration: Configuration = Configuration()


class Transpose(_Model):
    """Zarr's `transpose` codec: the order of the axes in what is stored."""

    class Configuration(_Model):
        order: Annotated[tuple[Annotated[int, Field(ge=0, lt=len(AXES))], ...], Field(max_length=6)]

    name: Literal["transpose"]
    configuration: Configuration


class Zstd(_Model):
    """Zarr's `zstd` codec."""

    class Configuration(_Model):
        level: Annotated[int, Field(ge=-131072, le=22)] = 0
        checksum: bool = False

    name: Literal["zstd"]
    configuration: Configuration = Configuration()


class Gzip(_Model):
    """Zarr's `gzip` codec."""

    class Configuration(_Model):
        level: Annotated[int, Field(ge=0, le=9)] = 5

    name: Literal["gzip"]
    configuration: Configuration = Configuration()


class Blosc(_Model):
    """Zarr's `blosc` codec."""

    class Configuration(_Model):
        cname: Literal["blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd"] = "zstd"
        clevel: Annotated[int, Field(ge=0, le=9)] = 5
        shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = "shuffle"
        typesize: Annotated[int, Field(ge=1, le=255)] | None = None
        blocksize: Annotated[int, Field(ge=0, le=1 << 30)] = 0

    name: Literal["blosc"]
    configuration: Configuration = Configuration()


class Crc32c(_Model):
    """Zarr's `crc32c` codec."""

    name: Literal["crc32c"]


Codec = Annotated[
    Bytes | Transpose | Zstd | Gzip | Blosc | Crc32c,
    Field(discriminator="name"),
]


class TileEntry(_Model):
    """Where one tile's crop goes. Sizes and coordinates are in voxels, ordered (Z)YX.

    Attributes
    ----------
    stitch_coords
        Where the crop's first voxel goes in the image.
    crop_coords, crop_size
        The part of the tile to keep; both absent: all of it.
    sample_idx
        s * T + t; required where the axes have S or T.
    channel
        The first channel that the tile's channels fill. Without C, 0.
    fill
        One value for the whole crop, which then has no tensor and one channel.
    """

    stitch_coords: tuple[_Index, ...]
    crop_coords: tuple[_Index, ...] | None = None
    crop_size: tuple[_Size, ...] | None = None
    sample_idx: _Index | None = None
    channel: _Index = 0
    fill: _Fill | None = None

    @model_validator(mode="after")
    def _crop_is_whole(self) -> Self:
        if self.fill is not None:
            if self.crop_size is None:
                raise ValueError("a tile with fill needs crop_size, since it has no tensor")
            if self.crop_coords is not None:
                raise ValueError("a tile with fill has no tensor to crop; leave out crop_coords")
        elif (self.crop_coords is None) != (self.crop_size is None):
            raise ValueError("crop_coords and crop_size go together; give both or neither")
        return self


class ArrayEntry(_Model):
    """What a message says of the array that its tiles belong to.

    `shape`, `chunks` and `shards` have one entry for each axis. What is absent takes a default at
    creation, and whatever is stored where the array exists. `fill_value`, `codecs` and
    `attributes` are used at creation only.
    """

    store: Annotated[str, AfterValidator(check_store_key)]
    array: Annotated[str, AfterValidator(check_array_path)]
    axes: _Axes
    shape: tuple[_Size, ...]
    dtype: DType | None = None
    chunks: tuple[_Size, ...] | None = None
    shards: tuple[_Size, ...] | Literal["auto"] | None = None
    source: _Text | None = None
    run: _Text | None = None
    fill_value: _Fill | None = None
    codecs: Annotated[tuple[Codec, ...], Field(max_length=8)] | None = None
    attributes: dict[str, JsonValue] | None = None

    @field_validator("attributes")
    @classmethod
    def _attributes_are_small_json(
        cls, attributes: dict[str, JsonValue] | None
    ) -> dict[str, JsonValue] | None:
        if attributes is None:
            return None
        size = len(json.dumps(attributes, allow_nan=False, ensure_ascii=False).encode())
        if size > MAX_ATTRIBUTES_BYTES:
            raise ValueError(f"{size} bytes of JSON; at most {MAX_ATTRIBUTES_BYTES} are taken")
        return attributes

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        for name in ("shape", "chunks", "shards"):
            sizes = getattr(self, name)
            if isinstance(sizes, tuple) and len(sizes) != len(self.axes):
                raise ValueError(
                    f"{name} {list(sizes)} must have one entry for each axis of {self.axes!r}"
                )
        voxels = math.prod(self.shape)
        if voxels > MAX_ARRAY_VOXELS:
            raise ValueError(f"shape {list(self.shape)} has {voxels} voxels, over 2**50")
        self._check_shards()
        self._check_fill_value()
        self._check_codecs()
        return self

    def _check_shards(self) -> None:
        if not isinstance(self.shards, tuple) or self.chunks is None:
            return
        if any(shard % chunk for shard, chunk in zip(self.shards, self.chunks, strict=True)):
            raise ValueError(
                f"shards {list(self.shards)} must be whole multiples of chunks {list(self.chunks)}"
            )

    def _check_fill_value(self) -> None:
        if self.fill_value is not None:
            as_scalar(self.fill_value, np.dtype(self.dtype or "float32"), "fill_value")

    def _check_codecs(self) -> None:
        kinds = [_CODEC_ORDER[codec.name] for codec in self.codecs or ()]
        if kinds != sorted(kinds) or kinds.count(1) > 1:
            raise ValueError("codecs must be transposes, then at most one bytes, then compressors")
        for codec in self.codecs or ():
            if isinstance(codec, Transpose) and sorted(codec.configuration.order) != list(
                range(len(self.axes))
            ):
                raise ValueError(
                    f"transpose order {list(codec.configuration.order)} must name each of the "
                    f"{len(self.axes)} axes once"
                )


_CODEC_ORDER = {"transpose": 0, "bytes": 1, "zstd": 2, "gzip": 2, "blosc": 2, "crc32c": 2}


class TilesEntry(ArrayEntry):
    """The JSON under `tiles` in the document's metadata."""

    tiles: Annotated[tuple[TileEntry, ...], Field(min_length=1, max_length=MAX_TILES)]
    sent_ms: Annotated[int, Field(ge=0, le=_MAX_SIZE)] | None = None


def as_scalar(value: Scalar, dtype: np.dtype[Any], what: str) -> "np.generic[Any]":
    """Return `value` in `dtype`.

    Raises
    ------
    ValueError
        Where an integer dtype cannot hold it exactly, or a float dtype overflows.
    """
    if dtype.kind in "biu":
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if isinstance(value, str) or value != int(value) or not low <= value <= high:
            raise ValueError(f"{what} {value!r} does not fit {dtype}")
        integer: np.generic[Any] = dtype.type(int(value))
        return integer
    try:
        # float() reads 'NaN', 'Infinity' and '-Infinity' as JSON in Zarr spells them.
        exact = float(value)
    except OverflowError:
        raise ValueError(f"{what} {value!r} does not fit {dtype}") from None
    with np.errstate(over="ignore"):
        scalar: np.generic[Any] = dtype.type(exact)
    if math.isfinite(exact) and not np.isfinite(scalar):
        raise ValueError(f"{what} {value!r} does not fit {dtype}")
    return scalar


def parse(text: str | bytes) -> TilesEntry:
    """Return the validated entry.

    Raises
    ------
    ParkError
        `UnsafePath` for the keys, `InvalidMessage` for anything else; the reason names the field
        and, where it is short, its value.
    """
    try:
        return TilesEntry.model_validate_json(text)
    except ValidationError as error:
        raise InvalidMessage(reason_of(error)) from None
    except RecursionError:
        raise InvalidMessage("the tiles JSON is nested too deeply") from None


def build(fields: Mapping[str, Any]) -> TilesEntry:
    """Return the entry of plain Python values, validated as its JSON would be."""
    try:
        # A NaN gets as far as the models, so that it is refused in their words.
        text = json.dumps(fields, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"not expressible as JSON: {error}") from None
    return parse(text)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, type) and issubclass(value, np.generic):
        return np.dtype(value).name
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def reason_of(error: ValidationError, *, secret: Collection[str] = ()) -> str:
    """Return one line that names the first failing field, its value and how many more fail.

    The values of fields in `secret` are not shown, nor then those of unknown fields: they may be
    misspelt.
    """
    first, *others = (
        each
        for each in error.errors(include_url=False)
        # It follows from another error, which is there as well.
        if each["type"] != "default_factory_not_called"
    )
    where = ".".join(str(part) for part in first["loc"])
    given = first.get("input")
    # Whole objects are not shown: among settings they hold the password.
    unknown = first["type"] == "extra_forbidden" and secret
    hidden = isinstance(given, dict) or first["type"] == "missing" or where in secret or unknown
    shown = "" if hidden else f" (got {_shown(given)})"
    more = f"; and {len(others)} more" if others else ""
    what = first["msg"].removeprefix("Value error, ")
    return f"{where + ': ' if where else ''}{what}{shown}{more}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
