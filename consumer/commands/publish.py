"""`consumer publish`: an image that exists, tile by tile: for trials, load tests and backfills."""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consumer.commands import access
from consumer.commands.display import progress
from consumer.commands.images import Image, open_image
from consumer.errors import UnusableSettings
from consumer.message import MAX_MESSAGE_BYTES
from consumer.publisher import TilePublisher
from consumer.tiling import TilePlace, tile_places


@dataclass(frozen=True, slots=True)
class _Tile:
    place: TilePlace
    sample: tuple[int, ...]
    sample_idx: int | None


def main(arguments: Sequence[str]) -> int:
    """Publish an image; return the exit code."""
    options = _parser().parse_args(arguments)
    broker = access.load(options, "consumer publish")
    image = open_image(options.image, options.axes)
    tiles = list(_tiles(image, options))
    array = _array(image, options)
    began = time.monotonic()
    with TilePublisher(
        broker,
        timeout_s=options.timeout_s,
        compress=options.compress,
        max_message_bytes=options.max_message_bytes,
    ) as publisher:
        for tile in progress(tiles, "publishing", len(tiles)):
            _publish(publisher, array, image, tile)
    _report(image, tiles, time.monotonic() - began)
    return 0


def _publish(publisher: TilePublisher, array: dict[str, Any], image: Image, tile: _Tile) -> None:
    place = tile.place
    # Read no more than the crop: there is no prediction that would need the margins.
    space = tuple(
        slice(start, start + size)
        for start, size in zip(place.stitch_coords, place.crop_size, strict=True)
    )
    channels = (slice(None),) if "C" in image.axes else ()
    values = np.asarray(image.data[(*tile.sample, *channels, *space)])
    if not channels:
        values = values[np.newaxis]
    publisher.publish(array, values, place.stitch_coords, sample_idx=tile.sample_idx)


def _tiles(image: Image, options: Any) -> Iterator[_Tile]:
    sizes = image.sizes
    shape = [sizes[axis] for axis in image.axes if axis in "ZYX"]
    tile = [min(*pair) for pair in zip(_spatial(options.tile, shape, "tile"), shape, strict=True)]
    overlap = _spatial(options.overlap, [0] * len(shape), "overlap")
    if any(not 0 <= o < t for o, t in zip(overlap, tile, strict=True)):
        raise UnusableSettings(f"overlap {overlap} must be below the tile {tile} on each axis")
    samples = [sizes[axis] for axis in image.axes if axis in "ST"]
    for number, sample in enumerate(itertools.product(*map(range, samples))):
        for place in tile_places(shape, tile, overlap):
            yield _Tile(place, sample, number if samples else None)


def _spatial(given: Sequence[int], rest: Sequence[int], what: str) -> list[int]:
    """Return a size for each of (Z)YX; one that is given for Y and X leaves Z as `rest` says."""
    if len(given) == 1:
        return [*rest[:-2], given[0], given[0]]
    if len(given) != len(rest):
        raise UnusableSettings(f"{what} {list(given)} must be one number or {len(rest)}, (Z)YX")
    return list(given)


def _array(image: Image, options: Any) -> dict[str, Any]:
    given = {
        "chunks": options.chunks,
        "shards": options.shards,
        "run": options.run,
        "source": Path(options.image).absolute().as_uri(),
    }
    return {
        "store": options.store,
        "array": options.array,
        "axes": image.axes,
        "shape": list(image.data.shape),
        "dtype": image.data.dtype.name,
    } | {name: value for name, value in given.items() if value is not None}


def _report(image: Image, tiles: Sequence[_Tile], seconds: float) -> None:
    megabytes = image.data.size * image.data.dtype.itemsize / 1e6
    sys.stderr.write(
        f"published {len(tiles)} tiles in {seconds:.1f} s: {len(tiles) / seconds:.0f} tiles/s, "
        f"{megabytes / seconds:.0f} MB/s\n"
    )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _shards(text: str) -> list[int] | str:
    return text if text == "auto" else _numbers(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "consumer publish",
        description="Publish an image tile by tile, each until RabbitMQ has confirmed it.",
        epilog="example:\n"
        "  consumer publish d.zarr/g1/img --store trial/d.zarr --tile 256 --overlap 48",
        usage="consumer publish IMAGE --store STORE [OPTIONS]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("image", metavar="IMAGE", help=".npy, .tif or .tiff file, or Zarr array")
    parser.add_argument("--store", required=True, help="store key; ends in .zarr")
    parser.add_argument("--array", default="image", help="path of the array in the store (image)")
    parser.add_argument("--axes", help="of the image, e.g. CZYX; default: as the file says")
    parser.add_argument(
        "--tile", type=_numbers, default=[256], metavar="N",
        help="voxels along Y and X, or Z,Y,X (256, and all of Z)",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", type=_numbers, default=[48], metavar="N",
        help="of neighbouring tiles, voxels along Y and X, or Z,Y,X (48)",
    )  # fmt: skip
    parser.add_argument("--chunks", type=_numbers, help="voxels along each axis, e.g. 1,256,256")
    parser.add_argument("--shards", type=_shards, help="voxels along each axis, or auto")
    parser.add_argument("--run", help="which prediction this is")
    parser.add_argument("--compress", action="store_true", help="compress messages with zstd")
    parser.add_argument(
        "--max-message-bytes", type=int, default=MAX_MESSAGE_BYTES, metavar="N",
        help=f"the consumer's setting, bytes ({MAX_MESSAGE_BYTES})",
    )  # fmt: skip
    parser.add_argument(
        "--timeout-s", type=float, default=60.0, metavar="S",
        help="longest wait in which nothing is confirmed, seconds (60)",
    )  # fmt: skip
    access.add_options(parser)
    return parser
