"""What is published: images of several layouts in several stores, their tiles in random order.

Some places of some images are never published, so that there is something to leave alone.
"""

import itertools
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from faults import Image

Place = tuple[int, int]
Tile = tuple[Image, Place]

STORES = ("a.zarr", "p/b.zarr", "p/q/c.zarr")
# A voxel of 32 bits tells its image in eight of them, and none is zero.
_MOST_IMAGES = 255
_IMAGES_AT_ONCE = 3
_DUPLICATES = 0.04
_HOLES = 0.1


@dataclass(frozen=True)
class Layout:
    """How an image is stored and cut into tiles."""

    size: tuple[int, int]
    tile: int
    chunks: int
    shards: int | None = None

    @property
    def extra(self) -> tuple[tuple[str, Any], ...]:
        """What the message says of it."""
        shards = [] if self.shards is None else [("shards", [1, self.shards, self.shards])]
        return (("chunks", [1, self.chunks, self.chunks]), *shards)


# Tiles that fill blocks, that share each of them with many others, and blocks over the edge.
LAYOUTS = (
    Layout((512, 512), 64, chunks=64, shards=256),
    Layout((500, 450), 60, chunks=64, shards=256),
    Layout((500, 450), 50, chunks=64),
    Layout((400, 600), 75, chunks=50, shards=200),
)


@cache
def settling(store: str) -> Image:
    """Return an image that is sent to a store at the very end: whatever was sent before stays."""
    return Image(_MOST_IMAGES, store, "settled", (128, 128), 64)


@cache
def image(number: int) -> Image:
    """Return the image of a number below 255."""
    layout = LAYOUTS[number % len(LAYOUTS)]
    store = STORES[number % len(STORES)]
    return Image(number, store, f"g{number % 5}/i{number}", layout.size, layout.tile, layout.extra)


def tiles(chance: random.Random) -> Iterator[Tile]:
    """Yield tiles for ever, of a few images at a time, now and then one of them twice.

    After the last image comes the first again: then what is stored must stay.
    """
    following = map(image, itertools.cycle(range(_MOST_IMAGES)))
    going = [_places(next(following), chance) for _ in range(_IMAGES_AT_ONCE)]
    lately: deque[Tile] = deque(maxlen=300)
    while True:
        if lately and chance.random() < _DUPLICATES:
            yield chance.choice(lately)
            continue
        left = chance.choice(going)
        tile = left.pop()
        if not left:
            going[going.index(left)] = _places(next(following), chance)
        lately.append(tile)
        yield tile


def _places(source: Image, chance: random.Random) -> list[Tile]:
    """Return an image's tiles in random order; of every third image not all."""
    places = source.places()
    chance.shuffle(places)
    holes = round(_HOLES * len(places)) if source.number % 3 == 0 else 0
    return [(source, place) for place in places[holes:]]
