"""What a seed lays down before its history begins: arrays, tiles, messages and settings."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ByteSize

from consumer.blocks import ArrayKey
from consumer.contract import CONTENT_ENCODING, CONTENT_TYPE, MESSAGE_TYPE, TileEntry, TilesEntry
from consumer.coverage import Box
from consumer.message import Envelope, Message, Tile, decode, encode
from consumer.placement import Layout, stitched_box
from consumer.settings import Settings

LEAST_TILES = 50
LEAST_ARRAYS = 3
LEAST_FAULTS = 5
# Seeds below this one go through real bodies: encoded, compressed, checksummed, decoded.
REAL_BODIES = 200
# A voxel's value is the number of its tile and the voxel's place in the array.
PLACE_BITS = 13
# A tile that is one fill value has this for a place.
NO_PLACE = (1 << PLACE_BITS) - 1
_METADATA_BYTES = 300
_UNSAID = {name: field.default for name, field in TileEntry.model_fields.items()}


@dataclass(frozen=True, eq=False, slots=True)
class PlannedTile:
    """A tile: where it goes, and how its producer says so."""

    number: int
    box: Box
    fields: dict[str, Any]
    tensor: npt.NDArray[Any] | None


@dataclass(frozen=True, eq=False, slots=True)
class PlannedArray:
    """An array."""

    key: ArrayKey
    layout: Layout


@dataclass(frozen=True, eq=False, slots=True)
class Letter:
    """A message as published, and as it is to be understood."""

    number: int
    array: PlannedArray
    tiles: tuple[PlannedTile, ...]
    envelope: Envelope
    body: bytes
    message: Message


class Plan:
    """Everything that a seed decides but the order of events."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(f"plan of {seed}")
        self.real_bodies = seed < REAL_BODIES
        self.faults = LEAST_FAULTS + chance.randrange(3)
        self.arrays = [_array(chance, number) for number in range(LEAST_ARRAYS, -1, -1)]
        self.arrays = self.arrays[chance.randrange(2) :]
        self._drafts: list[tuple[PlannedArray, list[PlannedTile]]] = []
        self._draft_messages(chance)
        self.letters = [self._letter(i, tiles) for i, (_, tiles) in enumerate(self._drafts)]
        self.sends = _shuffled(chance, len(self._drafts))
        self.settings = self._settings(chance)
        # How fast the workers are and how fast time goes, against all else that happens.
        self.workers_pace = chance.choice([0.6, 3.0, 8.0])
        self.time_pace = chance.choice([0.3, 1.0, 2.0])

    def cut(self, tiles: Collection[int] | None) -> list[Letter | None]:
        """Return the messages, by number, with no other tiles than these."""
        if tiles is None:
            return list(self.letters)
        left = [[tile for tile in each if tile.number in tiles] for _, each in self._drafts]
        return [self._letter(number, each) if each else None for number, each in enumerate(left)]

    def _draft_messages(self, chance: random.Random) -> None:
        made = 0
        while made < LEAST_TILES:
            array = self.arrays[len(self._drafts) % len(self.arrays)]
            count = chance.choice([1, 2, 2, 5])
            tiles = [_tile(chance, array, made + i + 1) for i in range(count)]
            self._drafts.append((array, tiles))
            made += count

    def _letter(self, number: int, tiles: list[PlannedTile]) -> Letter:
        array = self._drafts[number][0]
        fields = {
            "store": array.key.store,
            "array": array.key.path,
            "axes": array.layout.axes,
            "shape": array.layout.shape,
            "dtype": "uint32",
        }
        compressed = number % 4 == 0
        if not self.real_bodies:
            return _short_cut(number, array, tuple(tiles), fields, compressed)
        fields["tiles"] = [tile.fields for tile in tiles]
        tensors = [tile.tensor for tile in tiles if tile.tensor is not None]
        encoded = encode(fields, tensors, compress=compressed, checksum=number % 3 == 0)
        given = encoded.properties
        envelope = Envelope(
            encoded.routing_key,
            given["type"],
            given["content_type"],
            given["content_encoding"],
            given["headers"],
        )
        message = decode(envelope, encoded.body)
        return Letter(number, array, tuple(tiles), envelope, encoded.body, message)

    def _settings(self, chance: random.Random) -> Settings:
        body = max(max(len(x.body), x.message.nbytes) for x in self.letters)
        layouts = [array.layout for array in self.arrays]
        block = max(int(np.prod(x.grid.block)) * x.dtype.itemsize for x in layouts)
        # What holds the largest block and body: just so, or with room.
        least = max(block * 16 // 3 + 16, body * 8 + 16)
        return Settings.model_construct(
            output_root=Path("/nowhere"),
            memory_budget_bytes=ByteSize(int(least * chance.choice([1.0, 1.5, 8.0]))),
            prefetch_count=chance.choice([2, 5, 15]),
            idle_s=5.0,
            max_age_s=60.0,
            consumer_timeout_s=1800.0,
            max_message_bytes=ByteSize(body),
            max_open_arrays=chance.choice([1, 3]),
            workers=chance.choice([1, 2, 3]),
            retry_max_s=5.0,
        )


@lru_cache(maxsize=2)
def plan_of(seed: int) -> Plan:
    """Return a seed's plan."""
    return Plan(seed)


@cache
def places(shape: tuple[int, ...]) -> npt.NDArray[np.uint32]:
    """Return the number of each voxel's place."""
    return np.arange(int(np.prod(shape)), dtype=np.uint32).reshape(shape)


def values(tile: PlannedTile, shape: tuple[int, ...]) -> npt.NDArray[np.uint32]:
    """Return what a tile puts into its box."""
    if tile.tensor is None:
        return np.asarray(tile.number << PLACE_BITS | NO_PLACE, np.uint32)
    return np.uint32(tile.number << PLACE_BITS) | places(shape)[tile.box.slices]


def _array(chance: random.Random, number: int) -> PlannedArray:
    axes = chance.choice(["YX", "YX", "ZYX", "CYX", "TYX"])
    shape = tuple(chance.randint(5, 11) if axis in "ZYX" else 2 for axis in axes)
    chunks = tuple(chance.randint(2, 6) if axis in "ZYX" else 1 for axis in axes)
    sharded = chance.random() < 0.6
    shards = tuple(n * chance.randint(1, 2) for n in chunks) if sharded else None
    key = ArrayKey(f"s{number % 2}.zarr", f"a{number}")
    return PlannedArray(key, Layout(axes, shape, np.dtype("uint32"), chunks, shards))


def _tile(chance: random.Random, array: PlannedArray, number: int) -> PlannedTile:
    axes, shape = array.layout.axes, array.layout.shape
    filled = chance.random() < 0.15
    part = chance.choice([2, 2, 4])
    start, stop = [], []
    for axis, n in zip(axes, shape, strict=True):
        one = axis == "T" or (axis == "C" and filled)
        size = 1 if one else 1 + chance.randrange(max(1, n * part // 6))
        at = chance.randrange(n - size + 1)
        start.append(at)
        stop.append(at + size)
    box = Box(tuple(start), tuple(stop))
    first = sum(axis not in "ZYX" for axis in axes)
    fields: dict[str, Any] = {"stitch_coords": box.start[first:]}
    if "T" in axes:
        fields["sample_idx"] = box.start[0]
    if "C" in axes:
        fields["channel"] = box.start[0]
    if filled:
        fields["crop_size"] = box.shape[first:]
        fields["fill"] = number << PLACE_BITS | NO_PLACE
        return PlannedTile(number, box, fields, None)
    return PlannedTile(number, box, *_tensor(chance, array, number, box, fields))


def _tensor(
    chance: random.Random, array: PlannedArray, number: int, box: Box, fields: dict[str, Any]
) -> tuple[dict[str, Any], npt.NDArray[Any]]:
    """Return a tile's fields and tensor: some have a margin that is to be cropped."""
    axes, shape = array.layout.axes, array.layout.shape
    inside = np.uint32(number << PLACE_BITS) | places(shape)[box.slices]
    channels = box.shape[0] if "C" in axes else 1
    size = box.shape[sum(axis not in "ZYX" for axis in axes) :]
    inside = inside.reshape(channels, *size)
    margin = chance.choice([0, 0, 1])
    if not margin:
        return fields, inside
    tensor = np.zeros((channels, *(n + 2 * margin for n in size)), np.uint32)
    tensor[(slice(None), *(slice(margin, margin + n) for n in size))] = inside
    return fields | {"crop_coords": (margin,) * len(size), "crop_size": size}, tensor


def _short_cut(
    number: int,
    array: PlannedArray,
    planned: tuple[PlannedTile, ...],
    fields: dict[str, Any],
    compressed: bool,
) -> Letter:
    """Return a message that was never a body; its tiles are placed as the decoder places them."""
    tiles = []
    for each in planned:
        shape = None if each.tensor is None else each.tensor.shape
        entry: Any = SimpleNamespace(**(_UNSAID | each.fields))
        box, crop = stitched_box(array.layout.axes, array.layout.shape, entry, shape)
        if each.tensor is None:
            tiles.append(Tile(box, each.fields["fill"]))
        else:
            tiles.append(Tile(box, each.tensor[crop].reshape(box.shape)))
    nbytes = _METADATA_BYTES + sum(x.tensor.nbytes for x in planned if x.tensor is not None)
    message = Message(TilesEntry.model_construct(None, **fields), tuple(tiles), nbytes)
    envelope = Envelope(
        array.key.store, MESSAGE_TYPE, CONTENT_TYPE, CONTENT_ENCODING if compressed else None
    )
    return Letter(number, array, planned, envelope, bytes(nbytes), message)


def _shuffled(chance: random.Random, count: int) -> tuple[int, ...]:
    """Return all numbers in any order, some of them again."""
    sends = list(range(count)) + chance.sample(range(count), count // 5)
    chance.shuffle(sends)
    return tuple(sends)
