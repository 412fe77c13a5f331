"""Tiles of which every voxel is known, and what plain numpy makes of them by the contract's words.

Shares no code with the consumer: neither its placement nor its encoding.
"""

import contextlib
import itertools
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
import zstandard
from safetensors.numpy import save

from consumer.message import Encoded
from consumer.testing import RabbitMQ
from harness import Channel, ConsumerProcess, ended

Values = npt.NDArray[Any]
Entry = dict[str, Any]
Tile = tuple[Entry, Values | None]

_FLOAT32_INTEGERS = 1 << 24
# Fibonacci hashing: neighbouring numbers end far apart, so that narrow dtypes differ there too.
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Numbers:
    """Gives every voxel of a test a number of its own, whatever its array and tile; never zero."""

    def __init__(self) -> None:
        self._next = 1

    def take(self, shape: Sequence[int], dtype: str = "float32") -> Values:
        """Return new values; distinct as far as the dtype has room for it."""
        count = prod(shape)
        numbers = np.arange(self._next, self._next + count, dtype=np.uint64)
        self._next += count
        return _in_dtype(numbers, np.dtype(dtype)).reshape(tuple(shape))


def _in_dtype(numbers: npt.NDArray[np.uint64], dtype: np.dtype[Any]) -> Values:
    if dtype == np.float32:
        assert numbers[-1] < _FLOAT32_INTEGERS
        return numbers.astype(dtype)
    if dtype == np.float64:
        # Not a float32, so that a cast to it shows.
        return np.divide(numbers, 3, dtype=dtype)
    mixed = numbers * _MIX
    if dtype == np.bool_:
        return (mixed >> np.uint64(63)).astype(dtype)
    if dtype == np.float16:
        return ((mixed >> np.uint64(53)) | np.uint64(1)).astype(dtype)
    bits = mixed >> np.uint64(64 - 8 * dtype.itemsize)
    narrow: Values = bits.astype(f"u{dtype.itemsize}")
    narrow[narrow == 0] = 1
    return narrow.view(dtype)


def cuts(extent: int, tile: int, overlap: int) -> list[tuple[int, int, int]]:
    """Cut an axis into overlapping tiles: of each the start, and the crop's start and stop.

    The crops share no voxel and leave none out; half of an overlap goes to either side.
    """
    tile = min(tile, extent)
    starts = [*range(0, extent - tile, tile - overlap), extent - tile]
    borders = [0, *(start + overlap // 2 for start in starts[1:]), extent]
    return list(zip(starts, borders[:-1], borders[1:], strict=True))


def region(axes: str, shape: Sequence[int], entry: Mapping[str, Any], channels: int) -> Any:
    """Return where a tile's crop goes, as a numpy index, by the contract's words."""
    sizes = dict(zip(axes, shape, strict=True))
    sample = entry.get("sample_idx", 0)
    first = entry.get("channel", 0)
    places: dict[str, Any] = {
        "S": sample // sizes.get("T", 1),
        "T": sample % sizes.get("T", 1),
        "C": slice(first, first + channels),
    }
    spatial = [axis for axis in axes if axis in "ZYX"]
    for axis, start, size in zip(spatial, entry["stitch_coords"], entry["crop_size"], strict=True):
        places[axis] = slice(start, start + size)
    return tuple(places[axis] for axis in axes)


def crop(entry: Mapping[str, Any], tensor: Values) -> Values:
    """Return the part of a tile that is kept, C(Z)YX."""
    start = entry.get("crop_coords", [0] * (tensor.ndim - 1))
    size = entry.get("crop_size", tensor.shape[1:])
    inside = (slice(a, a + n) for a, n in zip(start, size, strict=True))
    return tensor[(slice(None), *inside)]


@dataclass
class Picture:
    """An array as its messages describe it, and what numpy stitches from the same tiles.

    Attributes
    ----------
    fields
        What every message says of the array.
    image
        What must be stored once all messages made so far are written.
    """

    numbers: Numbers
    fields: dict[str, Any]
    image: Values = field(init=False)

    def __post_init__(self) -> None:
        dtype = self.fields.get("dtype", "float32")
        fill = self.fields.get("fill_value", 0)
        fill = {"NaN": np.nan, "Infinity": np.inf}.get(fill, fill)
        self.image = np.full(self.fields["shape"], fill, dtype)

    @property
    def place(self) -> tuple[str, str]:
        """Store key and array path."""
        return self.fields["store"], self.fields["array"]

    def tiles(self, tile: int = 64, overlap: int = 0, *, dtype: str | None = None) -> list[Tile]:
        """Return tiles whose crops make up the whole array, cropped by the consumer."""
        sizes = dict(zip(self.fields["axes"], self.fields["shape"], strict=True))
        spatial = [n for axis, n in sizes.items() if axis in "ZYX"]
        samples = sizes.get("S", 1) * sizes.get("T", 1)
        sampled = "S" in sizes or "T" in sizes
        found: list[Tile] = []
        for sample in range(samples):
            for parts in itertools.product(*(cuts(n, tile, overlap) for n in spatial)):
                entry: Entry = {
                    "crop_coords": [start - origin for origin, start, _ in parts],
                    "crop_size": [stop - start for _, start, stop in parts],
                    "stitch_coords": [start for _, start, _ in parts],
                }
                if sampled:
                    entry["sample_idx"] = sample
                shape = (sizes.get("C", 1), *(min(tile, n) for n in spatial))
                found.append((entry, self.take(shape, dtype)))
        return found

    def take(self, shape: Sequence[int], dtype: str | None = None) -> Values:
        """Return a tile of new values."""
        return self.numbers.take(shape, dtype or self.fields.get("dtype", "float32"))

    def message(self, *tiles: Tile, compress: bool = False, checksum: bool = False) -> Encoded:
        """Return a message of tiles, and stitch them into `image`."""
        for entry, tensor in tiles:
            kept = self._kept(entry, tensor)
            whole = {**entry, "crop_size": kept.shape[1:]}
            index = region(self.fields["axes"], self.image.shape, whole, kept.shape[0])
            self.image[index] = kept if "C" in self.fields["axes"] else kept[0]
        return self.unchecked(*tiles, compress=compress, checksum=checksum)

    def unchecked(self, *tiles: Tile, compress: bool = False, checksum: bool = False) -> Encoded:
        """Return a message of tiles that need not be right."""
        return published(self.fields, tiles, compress=compress, checksum=checksum)

    def messages(self, tiles: Iterable[Tile]) -> list[Encoded]:
        """Return one message for each tile."""
        return [self.message(tile) for tile in tiles]

    def _kept(self, entry: Entry, tensor: Values | None) -> Values:
        if tensor is not None:
            return crop(entry, tensor)
        return np.full((1, *entry["crop_size"]), entry["fill"], self.image.dtype)


def cropped(tile: Tile) -> Tile:
    """Return the tile as a producer sends it that crops by itself."""
    entry, tensor = tile
    assert tensor is not None
    rest = {k: v for k, v in entry.items() if k not in {"crop_coords", "crop_size"}}
    return rest, crop(entry, tensor)


def published(
    fields: Mapping[str, Any],
    tiles: Sequence[Tile],
    *,
    compress: bool = False,
    checksum: bool = False,
) -> Encoded:
    """Return a message as a producer in any language makes it, without any check."""
    tensors = [np.ascontiguousarray(tensor) for _, tensor in tiles if tensor is not None]
    entry = {**fields, "tiles": [entry for entry, _ in tiles]}
    named = {str(i): tensor for i, tensor in enumerate(tensors)}
    body = bytes(save(named, {"tiles": json.dumps(entry)}))
    properties: dict[str, Any] = {
        "type": "tiles.v1",
        "content_type": "application/x-safetensors",
        "delivery_mode": 2,
        "headers": {},
    }
    if compress:
        body = zstandard.compress(body)
        properties["content_encoding"] = "zstd"
    if checksum:
        properties["headers"]["crc32c"] = google_crc32c.value(body)
    return Encoded(fields["store"], body, properties)


@dataclass
class Stitching:
    """A consumer that runs, its producer, and the root that it writes."""

    consumer: ConsumerProcess
    producer: Channel
    root: Path

    def publish(self, messages: Iterable[Encoded]) -> int:
        """Publish; return how many."""
        count = 0
        for message in messages:
            self.producer.publish(message)
            count += 1
        return count

    def write(self, messages: Iterable[Encoded]) -> None:
        """Publish, and return once every message is acknowledged, not parked."""
        acknowledged, settled = self.acknowledged, self.consumer.settled()
        count = self.publish(messages)
        self.consumer.wait_settled(settled + count)
        assert self.acknowledged == acknowledged + count, self.parked()

    def refuse(self, message: Encoded) -> tuple[str, str]:
        """Publish a message that is parked; return reason and detail."""
        settled = self.consumer.settled()
        self.publish([message])
        self.consumer.wait_settled(settled + 1)
        [found] = self.parked()
        return found

    def parked(self) -> list[tuple[str, str]]:
        """Take out of the parking queue: of each message the reason and the detail."""
        drained = self.producer.drain(f"{self.producer.prefix}.parked")
        headers = [properties.headers for properties, _ in drained]
        return [(found["x-tiles-reason"], found["x-tiles-detail"]) for found in headers]

    @property
    def acknowledged(self) -> int:
        """Deliveries acknowledged so far."""
        return self.count("tiles_deliveries_acknowledged_total")

    def count(self, name: str) -> int:
        """Return one of the consumer's metrics."""
        return int(self.consumer.metrics()[name])

    def stored(self, picture: Picture) -> "zarr.Array[Any]":
        """Return the stored array, opened by plain zarr."""
        store, path = picture.place
        return zarr.open_array(self.root / store, path=path, mode="r")

    def values(self, picture: Picture) -> Values:
        """Return the stored array's voxels."""
        return np.asarray(self.stored(picture)[:])

    def check(self, *pictures: Picture) -> None:
        """Check that what is stored is what numpy stitched, bit for bit."""
        for picture in pictures:
            identical(self.values(picture), picture.image)


@contextlib.contextmanager
def running(broker: RabbitMQ, folder: Path, **settings: Any) -> Iterator[Stitching]:
    """Run a consumer of a queue of its own, with a producer, and end it."""
    prefix = f"t{uuid.uuid4().hex[:12]}"
    wanted: dict[str, Any] = {"topology_prefix": prefix, "idle_s": 0.2} | settings
    consumer = ConsumerProcess(broker, folder / "root", folder / "consumer.log", **wanted)
    with ended(consumer), Channel(broker, prefix) as producer:
        yield Stitching(consumer.start(), producer, folder / "root")


def identical(found: Values, wanted: Values) -> None:
    """Check dtype, shape and every bit."""
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)
    assert found.tobytes() == wanted.tobytes()


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in walk(folder)}


def walk(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, hidden ones too."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
