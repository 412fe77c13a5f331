"""Tiles on their way to messages: checked, cast, cropped, cut to the size limit, and gathered.

No I/O, no threads, no clock. What a message may say is `consumer.contract`'s and
`consumer.message`'s.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from consumer import tensors
from consumer.casting import cast
from consumer.contract import MAX_TILES, TileEntry, TilesEntry, build
from consumer.errors import InvalidMessage, TooLarge, UnsafeCast
from consumer.message import Encoded, assemble, check, check_kinds

# The JSON of one tile and its tensor, and what else a document holds beside the array's JSON.
_PLACE_BYTES = 512
_DOCUMENT_BYTES = 1024
_DEFAULT = np.dtype("float32")
# 1 MiB of header is what consumers read.
_MOST_TILES = min(MAX_TILES, 1024)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """One tile, or a piece of a large one: where it goes, and its crop, C(Z)YX.

    `values` is a view of the producer's array until it is copied.
    """

    place: dict[str, Any]
    values: npt.NDArray[Any] | None

    @property
    def nbytes(self) -> int:
        """What it takes in a message, at most."""
        return _PLACE_BYTES + (0 if self.values is None else self.values.nbytes)

    def copied(self) -> "Part":
        """Return it with values of its own."""
        return self if self.values is None else Part(self.place, np.array(self.values, order="C"))


@dataclass(frozen=True, slots=True)
class Array:
    """An array: its store key, and what messages say of it, as a JSON object."""

    store: str
    text: str

    @property
    def nbytes(self) -> int:
        """What a message takes beside its tiles, at most."""
        # The JSON stands in a JSON string, its quotes escaped.
        return _DOCUMENT_BYTES + 2 * len(self.text.encode())


@dataclass(slots=True)
class Batch:
    """Tiles of one array that become one message."""

    array: Array
    parts: list[Part] = field(default_factory=list)
    nbytes: int = 0

    def encode(self, *, sent_ms: int, **options: Any) -> Encoded:
        """Return the message; `options` are those of `consumer.message.assemble`."""
        places = json.dumps([part.place for part in self.parts], separators=(",", ":"))
        text = f'{self.array.text[:-1]},"tiles":{places},"sent_ms":{sent_ms}}}'
        arrays = [part.values for part in self.parts if part.values is not None]
        return assemble(self.array.store, text, arrays, **options)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One tile that may be sent: its array, and the parts that the tile is sent in."""

    array: Array
    parts: list[Part]

    @property
    def nbytes(self) -> int:
        """What it takes in messages, at most."""
        return sum(part.nbytes for part in self.parts)


def prepare(
    array: Mapping[str, Any],
    tile: npt.ArrayLike | None,
    place: Mapping[str, Any],
    *,
    to_dtype: bool,
    max_bytes: int,
) -> Prepared:
    """Check a tile as the consumer would; crop it, and cut it into parts that fit a message.

    Raises
    ------
    ParkError
        As the consumer would park it with.
    """
    entry = build({**array, "tiles": [{k: v for k, v in place.items() if v is not None}]})
    tensor = None if tile is None else _tensor(entry, np.asarray(tile), to_dtype=to_dtype)
    check(entry, [] if tensor is None else [tensor])
    text = entry.model_dump_json(exclude={"tiles", "sent_ms"}, exclude_defaults=True)
    named = Array(entry.store, text)
    room = max_bytes - named.nbytes - _PLACE_BYTES
    if room <= 0:
        raise TooLarge(f"a message of {max_bytes} bytes has no room for what it says of its array")
    return Prepared(named, list(_cut(_crop(entry.tiles[0], tensor), room)))


def _tensor(entry: TilesEntry, tensor: npt.NDArray[Any], *, to_dtype: bool) -> npt.NDArray[Any]:
    tensors.check_dtype("0", tensor.dtype)
    if 0 in tensor.shape:
        raise InvalidMessage(f"tile 0: the tensor of shape {list(tensor.shape)} has no voxels")
    if not to_dtype:
        if entry.dtype is None:
            _check_default(tensor.dtype)
        return tensor
    if entry.dtype is None:
        raise InvalidMessage("cast needs to know the array's dtype; give it with axes and shape")
    values, clipped = cast(tensor, np.dtype(entry.dtype))
    if clipped:
        # Producers show what they log in forms of their own, without what `extra` holds.
        log.warning(
            "values of %s/%s were clipped to %s: %d",
            entry.store,
            entry.array,
            entry.dtype,
            clipped,
        )
    return values


def _check_default(dtype: np.dtype[Any]) -> None:
    """Refuse what would be parked if the array is yet to be made, where nobody hears of it."""
    try:
        check_kinds([dtype], _DEFAULT)
    except UnsafeCast as error:
        told = f"{error}, or give the array's dtype, which is {_DEFAULT} by default"
        raise UnsafeCast(told) from None


def _crop(tile: TileEntry, tensor: npt.NDArray[Any] | None) -> Part:
    place = tile.model_dump(mode="json", exclude_defaults=True)
    if tensor is None:
        return Part(place, None)
    start, size = place.pop("crop_coords", None), place.pop("crop_size", None)
    if start is not None:
        slices = (slice(a, a + n) for a, n in zip(start, size, strict=True))
        tensor = tensor[(slice(None), *slices)]
    return Part(place, tensor)


def _cut(part: Part, room: int) -> Iterator[Part]:
    """Yield halves of halves until each fits."""
    values = part.values
    if values is None or values.nbytes <= room or values.size == 1:
        yield part
        return
    # Across the channels only where space cannot be cut any more.
    axis = max(range(values.ndim), key=lambda i: (values.shape[i] > 1 and i > 0, values.shape[i]))
    half = values.shape[axis] // 2
    for start, piece in ((0, values[_upto(axis, half)]), (half, values[_from(axis, half)])):
        yield from _cut(Part(_moved(part.place, axis, start), piece), room)


def _upto(axis: int, stop: int) -> tuple[slice, ...]:
    return (*(slice(None) for _ in range(axis)), slice(stop))


def _from(axis: int, start: int) -> tuple[slice, ...]:
    return (*(slice(None) for _ in range(axis)), slice(start, None))


def _moved(place: dict[str, Any], axis: int, by: int) -> dict[str, Any]:
    if axis == 0:
        return {**place, "channel": place.get("channel", 0) + by}
    coords = list(place["stitch_coords"])
    coords[axis - 1] += by
    return {**place, "stitch_coords": coords}


class Batches:
    """Gathers tiles, by array, until a message is worth sending."""

    def __init__(self, batch_bytes: int, max_bytes: int) -> None:
        self._batch_bytes = batch_bytes
        self._max_bytes = max_bytes
        self._open: dict[Array, Batch] = {}

    def add(self, prepared: Prepared) -> list[Batch]:
        """Take a tile; return the batches that are full now, to be encoded at once."""
        return [batch for part in prepared.parts for batch in self._add(prepared.array, part)]

    def close(self) -> list[Batch]:
        """Return the batches that are open, and start anew."""
        batches, self._open = list(self._open.values()), {}
        return batches

    def __bool__(self) -> bool:
        return bool(self._open)

    def _add(self, array: Array, part: Part) -> Iterator[Batch]:
        batch = self._open.get(array)
        if batch is not None and array.nbytes + batch.nbytes + part.nbytes > self._max_bytes:
            yield self._open.pop(array)
            batch = None
        if batch is None:
            batch = self._open[array] = Batch(array)
        batch.parts.append(part)
        batch.nbytes += part.nbytes
        if batch.nbytes >= self._batch_bytes or len(batch.parts) >= _MOST_TILES:
            yield self._open.pop(array)
        else:
            # What is not sent at once must not change with the producer's buffer.
            batch.parts[-1] = part.copied()
