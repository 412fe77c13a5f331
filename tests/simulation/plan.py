"""What a seed lays down before its history begins: arrays, tiles, messages and settings."""

import itertools
import math
import random
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from pydantic import ByteSize

from consumer import placement
from consumer.blocks import ArrayKey
from consumer.budget import least_limit
from consumer.contract import CONTENT_ENCODING, CONTENT_TYPE, MESSAGE_TYPE, TilesEntry
from consumer.coverage import Box
from consumer.message import Envelope, Message, Tile, decode, encode
from consumer.placement import Layout
from consumer.settings import Settings

LEAST_TILES = 50
LEAST_ARRAYS = 3
LEAST_FAULTS = 5
# The share of histories in which two processes have the queue by turns.
TWO_OWNERS = 0.4
# Seeds below this one go through real bodies: encoded, compressed, checksummed, decoded.
REAL_BODIES = 200
# A voxel's value is the number of its tile and the voxel's place in the array.
PLACE_BITS = 13
# Unsharded arrays are cut into blocks of so many bytes: a few voxels.
BLOCK_BYTES = 600
# A tile that is one fill value has this for a place.
NO_PLACE = (1 << PLACE_BITS) - 1
_METADATA_BYTES = 300


@dataclass(frozen=True, eq=False, slots=True)
class PlannedTile:
    """A tile: where it goes, what it puts there, and how its producer says so."""

    number: int
    box: Box
    values: npt.NDArray[np.uint32]
    fields: dict[str, Any]
    tensor: npt.NDArray[np.uint32] | None


@dataclass(frozen=True, eq=False, slots=True)
class PlannedArray:
    """An array, and what every message says of it."""

    key: ArrayKey
    layout: Layout
    fields: dict[str, Any]
    entry: TilesEntry


@dataclass(frozen=True, eq=False, slots=True)
class Letter:
    """A message as published, and as it is to be understood.

    Attributes
    ----------
    places, values : ndarray
        Of each voxel of its tiles: its place in the array, and what is to be there.
    """

    number: int
    array: PlannedArray
    tiles: tuple[PlannedTile, ...]
    envelope: Envelope
    body: bytes
    message: Message
    places: npt.NDArray[np.uint32]
    values: npt.NDArray[np.uint32]


class Plan:
    """Everything that a seed decides but the order of events."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(f"plan of {seed}")
        self.real_bodies = seed < REAL_BODIES
        self.owners = ("A: ", "B: ") if chance.random() < TWO_OWNERS else ("",)
        self.faults = LEAST_FAULTS + chance.randrange(3)
        self.faults_are_spread = chance.random() < 0.5
        self.arrays = [_array(chance, number) for number in range(LEAST_ARRAYS, -1, -1)]
        self.arrays = self.arrays[chance.randrange(2) :]
        # Tiles that fill an array come to some of them.
        self._covers = {x.key: _cover(chance, x) * chance.randrange(2) for x in self.arrays}
        self._drafts: list[tuple[PlannedArray, list[PlannedTile]]] = []
        self._draft_messages(chance)
        self.letters = [self._letter(i, tiles) for i, (_, tiles) in enumerate(self._drafts)]
        self.sends = _shuffled(chance, len(self._drafts))
        self.settings = self._settings(chance)
        # Whether all processes are restarted before the quiet end, with a prefetch count for all.
        self.ends_wider = chance.random() < 0.5
        # How fast workers and broker are and how fast time goes, against all else that happens.
        self.workers_pace = chance.choice([0.4, 2.0, 8.0])
        self.broker_pace = chance.choice([0.6, 3.0, 8.0])
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
            count = chance.choice([1, 2, 4, 5])
            cover = self._covers[array.key]
            boxes = [cover.pop() if cover else None for _ in range(count)]
            tiles = [_tile(chance, array, made + i, box) for i, box in enumerate(boxes, 1)]
            self._drafts.append((array, tiles))
            made += count

    def _letter(self, number: int, tiles: list[PlannedTile]) -> Letter:
        array = self._drafts[number][0]
        at = places(array.layout.shape)
        where = np.concatenate([at[tile.box.slices].ravel() for tile in tiles])
        what = np.concatenate([tile.values.ravel() for tile in tiles])
        compressed = number % 4 == 0
        if not self.real_bodies:
            said = _short_cut(array, tiles, compressed)
            return Letter(number, array, tuple(tiles), *said, where, what)
        fields = array.fields | {"tiles": [tile.fields for tile in tiles]}
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
        return Letter(number, array, tuple(tiles), envelope, encoded.body, message, where, what)

    def _settings(self, chance: random.Random) -> Settings:
        body = max(max(len(x.body), x.message.nbytes) for x in self.letters)
        layouts = [array.layout for array in self.arrays]
        block = max(math.prod(x.grid.block) * x.dtype.itemsize for x in layouts)
        # What holds the largest block and body: just so, or with room.
        least = max(least_limit(block), body * 8 + 16)
        return Settings.model_construct(
            output_root=Path("/nowhere"),
            memory_budget_bytes=ByteSize(int(least * chance.choice([1.0, 1.5, 8.0, 64.0]))),
            prefetch_count=chance.choice([3, 6, 12]),
            idle_s=5.0,
            max_age_s=60.0,
            consumer_timeout_s=1800.0,
            max_message_bytes=ByteSize(body),
            max_open_arrays=chance.choice([1, 4, 4]),
            workers=chance.choice([1, 2, 3]),
            retry_max_s=5.0,
            lone_attempts=100,  # more than a history has faults: nothing is to be parked
        )


@lru_cache(maxsize=2)
def plan_of(seed: int) -> Plan:
    """Return a seed's plan."""
    return Plan(seed)


@cache
def places(shape: tuple[int, ...]) -> npt.NDArray[np.uint32]:
    """Return the number of each voxel's place."""
    return np.arange(math.prod(shape), dtype=np.uint32).reshape(shape)


def _array(chance: random.Random, number: int) -> PlannedArray:
    axes = chance.choice(["YX", "YX", "ZYX", "CYX", "TYX"])
    shape = tuple(chance.randint(5, 11) if axis in "ZYX" else 2 for axis in axes)
    chunks = tuple(chance.randint(2, 6) if axis in "ZYX" else 1 for axis in axes)
    sharded = chance.random() < 0.6
    shards = tuple(n * chance.randint(1, 2) for n in chunks) if sharded else None
    key = ArrayKey(f"s{number % 2}.zarr", f"a{number}")
    fields: dict[str, Any] = {
        "store": key.store,
        "array": key.path,
        "axes": axes,
        "shape": shape,
        "dtype": "uint32",
    }
    layout = Layout(axes, shape, np.dtype("uint32"), chunks, shards)
    with patch.object(placement, "BLOCK_BYTES", BLOCK_BYTES):
        assert layout.grid, "which from here on stays as it is"
    return PlannedArray(key, layout, fields, TilesEntry.model_construct(None, **fields))


def _cover(chance: random.Random, array: PlannedArray) -> list[Box]:
    """Return the boxes of a few tiles that fill an array, in any order."""
    cuts = []
    for axis, n in zip(array.layout.axes, array.layout.shape, strict=True):
        at = 1 if axis == "T" else chance.randrange(n)
        cuts.append([(0, at), (at, n)] if at else [(0, n)])
    boxes = [Box(*map(tuple, zip(*spans, strict=True))) for spans in itertools.product(*cuts)]
    chance.shuffle(boxes)
    return boxes


def _box(chance: random.Random, array: PlannedArray, one_channel: bool) -> Box:
    part = chance.choice([2, 2, 4])
    start, stop = [], []
    for axis, n in zip(array.layout.axes, array.layout.shape, strict=True):
        one = axis == "T" or (axis == "C" and one_channel)
        size = 1 if one else 1 + chance.randrange(max(1, n * part // 6))
        at = chance.randrange(n - size + 1)
        start.append(at)
        stop.append(at + size)
    return Box(tuple(start), tuple(stop))


def _tile(chance: random.Random, array: PlannedArray, number: int, box: Box | None) -> PlannedTile:
    axes, shape = array.layout.axes, array.layout.shape
    filled = chance.random() < 0.15
    box = box or _box(chance, array, filled)
    filled = filled and ("C" not in axes or box.shape[0] == 1)
    first = sum(axis not in "ZYX" for axis in axes)
    fields: dict[str, Any] = {"stitch_coords": box.start[first:]}
    if "T" in axes:
        fields["sample_idx"] = box.start[0]
    if "C" in axes:
        fields["channel"] = box.start[0]
    if filled:
        fields["crop_size"] = box.shape[first:]
        fields["fill"] = number << PLACE_BITS | NO_PLACE
        return PlannedTile(number, box, np.full(box.shape, fields["fill"], np.uint32), fields, None)
    values = np.uint32(number << PLACE_BITS) | places(shape)[box.slices]
    channels = box.shape[0] if "C" in axes else 1
    inside = values.reshape(channels, *box.shape[first:])
    return PlannedTile(number, box, values, *_cropped(chance, fields, inside))


def _cropped(
    chance: random.Random, fields: dict[str, Any], inside: npt.NDArray[np.uint32]
) -> tuple[dict[str, Any], npt.NDArray[np.uint32]]:
    """Return a tile's fields and tensor: some have a margin that is to be cropped."""
    margin = chance.choice([0, 0, 1])
    if not margin:
        return fields, inside
    channels, *size = inside.shape
    tensor = np.zeros((channels, *(n + 2 * margin for n in size)), np.uint32)
    tensor[(slice(None), *(slice(margin, margin + n) for n in size))] = inside
    return fields | {"crop_coords": (margin,) * len(size), "crop_size": tuple(size)}, tensor


def _short_cut(
    array: PlannedArray, planned: list[PlannedTile], compressed: bool
) -> tuple[Envelope, bytes, Message]:
    """Return a message that was never a body."""
    tiles = [Tile(x.box, x.fields["fill"] if x.tensor is None else x.values) for x in planned]
    nbytes = _METADATA_BYTES + sum(x.tensor.nbytes for x in planned if x.tensor is not None)
    message = Message(array.entry, tuple(tiles), nbytes)
    encoding = CONTENT_ENCODING if compressed else None
    return Envelope(array.key.store, MESSAGE_TYPE, CONTENT_TYPE, encoding), bytes(nbytes), message


def _shuffled(chance: random.Random, count: int) -> tuple[int, ...]:
    """Return all numbers in any order, some of them again."""
    sends = list(range(count)) + chance.sample(range(count), count // 10)
    chance.shuffle(sends)
    return tuple(sends)
