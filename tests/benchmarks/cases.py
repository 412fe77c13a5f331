"""What is measured: arrays, how they are cut into tiles, and the messages in order."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from consumer.message import Encoded, encode

STORE, ARRAY = "bench/out.zarr", "x"
DTYPE = "float32"
_SEED = 20_261
_NO_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}]


@dataclass(frozen=True, slots=True)
class Place:
    """A tile: its box in the image without S and C, and the crop of it that is kept."""

    sample: int
    start: tuple[int, ...]
    crop: tuple[int, ...]
    size: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One array and its tiles.

    Attributes
    ----------
    shape, chunks, shards : tuple of int
        (Z)YX of one sample, in voxels.
    tile, overlap : tuple of int
        (Z)YX, in voxels.
    compressed : bool
        Whether the array has zarr's default codecs, or none but `bytes`.
    batch : int
        Tiles in a message.
    prefetch : int
        Deliveries held at once; those of a row of blocks at least, lest blocks be written twice.
    """

    name: str
    samples: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    tile: tuple[int, ...]
    overlap: tuple[int, ...]
    compressed: bool = True
    shuffled: bool = False
    batch: int = 1
    prefetch: int = 1000

    @property
    def fields(self) -> dict[str, Any]:
        """What every message says of the array."""
        return {
            "store": STORE,
            "array": ARRAY,
            "axes": "SC" + "ZYX"[-len(self.shape) :],
            "shape": [self.samples, 1, *self.shape],
            "dtype": DTYPE,
            "chunks": [1, 1, *self.chunks],
        } | self._optional

    @property
    def _optional(self) -> dict[str, Any]:
        shards = {"shards": [1, 1, *self.shards]} if self.shards else {}
        return shards | ({} if self.compressed else {"codecs": _NO_CODECS})

    @cached_property
    def places(self) -> list[Place]:
        """Return all tiles, in the order of sending."""
        cuts = [_cuts(*axis) for axis in zip(self.shape, self.tile, self.overlap, strict=True)]
        places = [
            Place(sample, *(tuple(values) for values in zip(*axes, strict=True)))
            for sample in range(self.samples)
            for axes in itertools.product(*cuts)
        ]
        if self.shuffled:
            random.Random(_SEED).shuffle(places)
        return places

    def message(self, places: list[Place]) -> Encoded:
        """Return the message of some tiles."""
        entries = [
            {
                "sample_idx": place.sample,
                "crop_coords": place.crop,
                "crop_size": place.size,
                "stitch_coords": [a + c for a, c in zip(place.start, place.crop, strict=True)],
            }
            for place in places
        ]
        arrays = [self.values(place)[np.newaxis] for place in places]
        return encode({**self.fields, "tiles": entries}, arrays)

    def messages(self) -> Iterator[Encoded]:
        """Yield every message."""
        places = self.places
        for first in range(0, len(places), self.batch):
            yield self.message(places[first : first + self.batch])

    def create(self, root: Path) -> None:
        """Create the empty array with zarr, as somebody does who has it filled by others."""
        fields = self.fields
        zarr.create_group(root / STORE).create_array(
            ARRAY,
            shape=fields["shape"],
            dtype=DTYPE,
            chunks=fields["chunks"],
            shards=fields.get("shards"),
            dimension_names=list(fields["axes"]),
            compressors="auto" if self.compressed else None,
        )

    @property
    def message_count(self) -> int:
        """Messages in all."""
        return -(-len(self.places) // self.batch)

    @property
    def payload_bytes(self) -> int:
        """Bytes of all tiles with their margins, as sent."""
        return len(self.places) * math.prod(self.tile) * np.dtype(DTYPE).itemsize

    @property
    def stitched_bytes(self) -> int:
        """Bytes of the array."""
        return self.samples * math.prod(self.shape) * np.dtype(DTYPE).itemsize

    def image(self, sample: int) -> npt.NDArray[Any]:
        """Return one sample, (Z)YX: smooth structures and detector noise."""
        return _image(self.shape, sample)

    def values(self, place: Place) -> npt.NDArray[Any]:
        """Return a tile's voxels, (Z)YX."""
        region = tuple(slice(a, a + n) for a, n in zip(place.start, self.tile, strict=True))
        return np.ascontiguousarray(self.image(place.sample)[region])


def _cuts(size: int, tile: int, overlap: int) -> list[tuple[int, int, int]]:
    """Return start, crop's start and crop's size of every tile along an axis."""
    margin, cuts, covered = overlap // 2, [], 0
    while covered < size:
        start = min(max(covered - margin, 0), size - tile)
        end = size if start + tile == size else start + tile - margin
        cuts.append((start, covered - start, end - covered))
        covered = end
    return cuts


@cache
def _image(shape: tuple[int, ...], sample: int) -> npt.NDArray[Any]:
    noise = np.random.default_rng([_SEED, sample]).standard_normal(shape, np.float32)
    image = 2 * noise
    for axis, size in enumerate(shape):
        wave = np.sin(np.arange(size, dtype=np.float32) / (23 + 7 * axis + 3 * sample))
        image += 100 * wave.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return image


_PLANE = Case("", 4, (4160, 4160), (256, 256), (1024, 1024), (256, 256), (48, 48))
_SMALL = replace(_PLANE, samples=1, tile=(64, 64), overlap=(12, 12), prefetch=4000)
_VOLUME = Case(
    "", 1, (256, 1024, 1024), (32, 128, 128), (64, 256, 256), (64, 128, 128), (16, 16, 16)
)

_TABLE = (
    replace(_PLANE, name="sharded-zstd"),
    replace(_PLANE, name="sharded-none", compressed=False),
    replace(_PLANE, name="unsharded-zstd", shards=None),
    replace(_PLANE, name="unsharded-none", shards=None, compressed=False),
)
FULL = (
    *_TABLE,
    replace(_VOLUME, name="volume-sharded-zstd"),
    replace(_SMALL, name="small-single"),
    replace(_SMALL, name="small-batched", batch=64),
    replace(_PLANE, name="shuffled-sharded-zstd", shuffled=True),
)
QUICK = tuple(replace(case, samples=1) for case in _TABLE)


def find(name: str, *, quick: bool) -> Case:
    """Return a case by name."""
    return next(case for case in (QUICK if quick else FULL) if case.name == name)
