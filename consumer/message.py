"""One message of the wire contract: from an AMQP body to tiles in array coordinates, and back.

`decode` checks everything that can be known without the store; what the stored array says is
left to `consumer.arrays`. Nothing is placed before every tile of a message has been checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import google_crc32c
import numpy as np
import numpy.typing as npt
import zstandard

from consumer import tensors
from consumer.contract import (
    CHECKSUM_HEADER,
    CONTENT_ENCODING,
    CONTENT_TYPE,
    MESSAGE_TYPE,
    Scalar,
    TileEntry,
    TilesEntry,
    as_scalar,
    build,
    parse,
)
from consumer.coverage import Box
from consumer.errors import (
    ChecksumMismatch,
    InvalidMessage,
    ParkError,
    TooLarge,
    Undecodable,
    UnknownVersion,
    UnsafeCast,
)
from consumer.placement import Layout, stitched_box

MAX_MESSAGE_BYTES = 16 << 20
# Blocks that one message's tiles may touch, so that what placing it costs is bounded.
MAX_BLOCKS = 1 << 16
# And files: at about a millisecond each, they must be durable before the broker takes it away.
MAX_FILES = 1 << 18
_METADATA_KEY = "tiles"
# What RFC 8878 has every decoder support; a larger window would be memory beyond the budget.
_MAX_WINDOW_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Envelope:
    """What AMQP says of a body."""

    routing_key: str
    type: str | None
    content_type: str | None
    content_encoding: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)


class Tile(NamedTuple):
    """One checked tile: its box in the array, and the values that go there.

    `values` has the box's shape and is a view into the message's body, or is the one fill value.
    """

    box: Box
    values: npt.NDArray[Any] | Scalar


# What a tile holds: the dtype of its tensor, or the value that fills it.
Kind: TypeAlias = np.dtype[Any] | Scalar


@dataclass(frozen=True, slots=True)
class Message:
    """A decoded message. `nbytes` is what its tiles keep in memory."""

    entry: TilesEntry
    tiles: tuple[Tile, ...]
    nbytes: int

    @property
    def outline(self) -> "Outline":
        """What it says, without its voxels."""
        return Outline(self.entry, _kinds(self.tiles), tuple(tile.box for tile in self.tiles))


@dataclass(frozen=True, slots=True)
class Outline:
    """What a message says, without its voxels."""

    entry: TilesEntry
    kinds: tuple[Kind, ...]
    boxes: tuple[Box, ...]

    def check(self, layout: Layout) -> None:
        """Check that an array of this layout can take the message's tiles.

        Raises
        ------
        UnsafeCast
            Where a tile's values would not fit, with its index.
        TooLarge
            Where the tiles touch too many blocks or files.
        """
        check_kinds(self.kinds, layout.dtype)
        grid = layout.grid
        blocks = sum(map(grid.count, self.boxes))
        if blocks > MAX_BLOCKS:
            raise _too_many(blocks, "blocks", grid.block, MAX_BLOCKS)
        if blocks * grid.files_of_block > MAX_FILES:
            files = sum(map(grid.count_files, self.boxes))
            if files > MAX_FILES:
                raise _too_many(files, "files", grid.file, MAX_FILES)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message ready to be published; `properties` are AMQP's basic properties by name."""

    routing_key: str
    body: bytes
    properties: dict[str, Any]


def encode(
    fields: Mapping[str, Any],
    arrays: Sequence[npt.NDArray[Any]],
    *,
    compress: bool = False,
    checksum: bool = False,
    max_bytes: int = MAX_MESSAGE_BYTES,
) -> Encoded:
    """Return the message of one array's tiles.

    Parameters
    ----------
    fields : mapping
        The keys of `consumer.contract.TilesEntry`.
    arrays : sequence of ndarray
        C(Z)YX, one for each tile without `fill`, in order.
    compress : bool
        Compress the whole body with zstd.
    checksum : bool
        Add the body's CRC-32C.
    max_bytes : int
        The most that the body may have; the consumer's setting.

    Raises
    ------
    ParkError
        As the consumer would park it with.
    """
    entry = build(fields)
    _tiles(entry, arrays)
    text = entry.model_dump_json(exclude_defaults=True)
    return assemble(
        entry.store, text, arrays, compress=compress, checksum=checksum, max_bytes=max_bytes
    )


def assemble(
    store: str,
    text: str,
    arrays: Sequence[npt.NDArray[Any]],
    *,
    compress: bool,
    checksum: bool,
    max_bytes: int,
) -> Encoded:
    """Return the message of tiles that were checked before; `text` is their JSON."""
    body = tensors.write(arrays, {_METADATA_KEY: text})
    _check_size(body, max_bytes)
    if compress:
        body = zstandard.ZstdCompressor().compress(body)
        _check_size(body, max_bytes)
    headers = {CHECKSUM_HEADER: google_crc32c.value(body)} if checksum else {}
    properties = {
        "type": MESSAGE_TYPE,
        "content_type": CONTENT_TYPE,
        "content_encoding": CONTENT_ENCODING if compress else None,
        "delivery_mode": 2,
        "headers": headers,
    }
    return Encoded(store, body, properties)


def decode(envelope: Envelope, body: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Message:
    """Return the message's tiles; an uncompressed body is not copied.

    Parameters
    ----------
    envelope : Envelope
        As delivered.
    body : bytes
        As sent.
    max_bytes : int
        The most that the body may have, as sent and decompressed.

    Raises
    ------
    ParkError
        With a reason that names the value, and for a tile its index.
    """
    _check_envelope(envelope)
    _check_size(body, max_bytes)
    _check_checksum(envelope.headers, body)
    if envelope.content_encoding == CONTENT_ENCODING:
        body = decompressed(body, max_bytes)
    arrays, metadata = tensors.read(body)
    if _METADATA_KEY not in metadata:
        raise InvalidMessage(f"the metadata lacks {_METADATA_KEY!r}; it has {sorted(metadata)[:8]}")
    entry = parse(metadata[_METADATA_KEY])
    if entry.store != envelope.routing_key:
        raise InvalidMessage(
            f"the routing key {envelope.routing_key!r} is not the store key {entry.store!r}"
        )
    return Message(entry, _tiles(entry, arrays), len(body))


def metadata(body: bytes, content_encoding: str | None, *, max_bytes: int) -> str:
    """Return the JSON that a body says of its tiles, unchecked.

    Raises
    ------
    ParkError
        Where the body does not hold together that far.
    """
    if content_encoding == CONTENT_ENCODING:
        body = decompressed(body, max_bytes)
    found = tensors.read(body)[1]
    if _METADATA_KEY not in found:
        raise InvalidMessage(f"the metadata lacks {_METADATA_KEY!r}; it has {sorted(found)[:8]}")
    return found[_METADATA_KEY]


def check(entry: TilesEntry, arrays: Sequence[npt.NDArray[Any]]) -> None:
    """Check the tiles of one message, C(Z)YX, as `encode` and `decode` do.

    Raises
    ------
    ParkError
        With the index of the first tile that fails.
    """
    _tiles(entry, arrays)


def check_kinds(kinds: Sequence[Kind], dtype: np.dtype[Any]) -> None:
    """Check that tiles which hold `kinds` may be stored as `dtype`.

    Raises
    ------
    UnsafeCast
        With the index of the first tile that may not.
    """
    for index, kind in enumerate(kinds):
        if isinstance(kind, np.dtype):
            if not _castable(kind, dtype):
                raise UnsafeCast(
                    f"tile {index}: {kind} cannot be stored as {dtype} without loss; "
                    "cast it before publishing"
                )
            continue
        try:
            as_scalar(kind, dtype, "fill")
        except ValueError as error:
            raise UnsafeCast(f"tile {index}: {error}") from None


def _too_many(count: int, what: str, shape: tuple[int, ...], most: int) -> TooLarge:
    return TooLarge(
        f"the message's tiles touch {count} {what} of {list(shape)} voxels; at most {most} are "
        "taken: choose larger chunks or shards, or send fewer tiles"
    )


def _castable(given: np.dtype[Any], stored: np.dtype[Any]) -> bool:
    if given == stored or np.can_cast(given, stored, "safe"):
        return True
    return given == np.float64 and stored == np.float32


def _check_envelope(envelope: Envelope) -> None:
    if envelope.type != MESSAGE_TYPE:
        raise UnknownVersion(f"type {envelope.type!r} is not {MESSAGE_TYPE!r}")
    if envelope.content_type != CONTENT_TYPE:
        raise Undecodable(f"content_type {envelope.content_type!r} is not {CONTENT_TYPE!r}")
    if envelope.content_encoding not in {None, "", CONTENT_ENCODING}:
        raise Undecodable(
            f"content_encoding {envelope.content_encoding!r} is neither absent nor "
            f"{CONTENT_ENCODING!r}"
        )


def _check_size(body: bytes, max_bytes: int) -> None:
    if len(body) > max_bytes:
        raise TooLarge(_too_large(len(body), max_bytes))


def _check_checksum(headers: Mapping[str, Any], body: bytes) -> None:
    given = headers.get(CHECKSUM_HEADER)
    if given is None:
        return
    # pika gives a subclass of int for what AMQP sends in 64 bits, as it does from 2**31 on.
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < 1 << 32:
        raise InvalidMessage(
            f"header {CHECKSUM_HEADER} {given!r:.80} is not an unsigned 32-bit number"
        )
    found = google_crc32c.value(body)
    if given != found:
        raise ChecksumMismatch(f"header crc32c {given:#010x}, the body's {found:#010x}")


def decompressed(body: bytes, max_bytes: int) -> bytes:
    """Return what a zstd frame holds.

    Raises
    ------
    ParkError
        Where it is not exactly one frame, or holds more than `max_bytes`.
    """
    try:
        size = zstandard.get_frame_parameters(body).content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN:
            return _decompressed_stream(body, max_bytes)
        # The library allocates the size that a frame claims, so the claim is checked first.
        if size > max_bytes:
            raise TooLarge(f"decompressed {_too_large(size, max_bytes)}")
        return zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Undecodable(
            f"the body is not zstd that can be read: {error} (a frame that does not give its size "
            f"may have a window of {_MAX_WINDOW_BYTES} bytes)"
        ) from None


def _decompressed_stream(body: bytes, max_bytes: int) -> bytes:
    """Decompress a frame that does not say its size: first how much comes out, then all of it."""
    library = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    with library.stream_reader(body) as reader:
        size = 0
        while part := reader.read(1 << 20):
            size += len(part)
            if size > max_bytes:
                raise TooLarge(f"decompressed {_too_large(size, max_bytes)}")
    frame = library.decompressobj()
    plain = frame.decompress(body)
    if not frame.eof or frame.unused_data:
        raise Undecodable("the body is not exactly one zstd frame")
    return plain


def _too_large(size: int, limit: int) -> str:
    return (
        f"body of {size} bytes is over the limit of {limit}; send fewer or smaller tiles in one "
        "message or raise TILES_MAX_MESSAGE_BYTES"
    )


def _tiles(entry: TilesEntry, arrays: Sequence[npt.NDArray[Any]]) -> tuple[Tile, ...]:
    wanted = sum(tile.fill is None for tile in entry.tiles)
    if wanted != len(arrays):
        raise InvalidMessage(
            f"{wanted} tiles without fill need as many tensors; there are {len(arrays)}"
        )
    rest = iter(arrays)
    tiles = tuple(
        _tile(entry, index, tile, next(rest) if tile.fill is None else None)
        for index, tile in enumerate(entry.tiles)
    )
    if entry.dtype is not None:
        check_kinds(_kinds(tiles), np.dtype(entry.dtype))
    return tiles


def _kinds(tiles: Sequence[Tile]) -> tuple[Kind, ...]:
    return tuple(
        tile.values.dtype if isinstance(tile.values, np.ndarray) else tile.values for tile in tiles
    )


def _tile(entry: TilesEntry, index: int, tile: TileEntry, tensor: npt.NDArray[Any] | None) -> Tile:
    try:
        box, crop = stitched_box(
            entry.axes, entry.shape, tile, None if tensor is None else tensor.shape
        )
    except ParkError as error:
        raise type(error)(f"tile {index}: {error}") from None
    if tensor is None:
        assert tile.fill is not None
        return Tile(box, tile.fill)
    # Reshaping by axes of one voxel alone: still a view.
    return Tile(box, tensor[crop].reshape(box.shape))
