"""How an image is cut into overlapping tiles whose crops cover it once. Pure."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cut:
    """A tile along one axis: where it starts in the image, where its crop starts in it, how long
    the crop is."""

    start: int
    crop: int
    size: int


def cuts(size: int, tile: int, overlap: int) -> list[Cut]:
    """Return the tiles along an axis of `size` voxels.

    Their crops cover the axis without overlapping. Within the image a crop leaves a margin of half
    the overlap or more; at the image's border there is nothing to leave. The last tile is moved
    inwards to end with the image.
    """
    if not 0 <= overlap < tile <= size:
        raise ValueError(
            f"overlap {overlap}, tile {tile} and size {size} must be 0 <= overlap < tile <= size"
        )
    margin = overlap // 2
    found = []
    covered = 0
    while covered < size:
        start = min(max(covered - margin, 0), size - tile)
        end = size if start + tile == size else start + tile - margin
        found.append(Cut(start, covered - start, end - covered))
        covered = end
    return found


@dataclass(frozen=True, slots=True)
class TilePlace:
    """A tile of an image, (Z)YX: where it starts, and what the wire contract says of its crop."""

    start: tuple[int, ...]
    crop_coords: tuple[int, ...]
    crop_size: tuple[int, ...]

    @property
    def stitch_coords(self) -> tuple[int, ...]:
        """Where the crop's first voxel goes in the image."""
        return tuple(a + c for a, c in zip(self.start, self.crop_coords, strict=True))


def tile_places(
    shape: Sequence[int], tile: Sequence[int], overlap: Sequence[int]
) -> Iterator[TilePlace]:
    """Yield the tiles of an image of `shape`, (Z)YX, in raster order."""
    axes = [cuts(*axis) for axis in zip(shape, tile, overlap, strict=True)]
    for along in itertools.product(*axes):
        yield TilePlace(
            tuple(cut.start for cut in along),
            tuple(cut.crop for cut in along),
            tuple(cut.size for cut in along),
        )
