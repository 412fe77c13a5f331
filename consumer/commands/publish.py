"""`consumer publish`: an image that exists, tile by tile: for trials, load tests and backfills."""

import itertools
import math
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
from consumer.commands.parser import CommandParser, positive, seconds, sizes
from consumer.commands.remaining import ledger_of
from consumer.coverage import Box
from consumer.errors import ParkError, UnusableSettings
from consumer.message import MAX_MESSAGE_BYTES
from consumer.publisher import TilePublisher
from consumer.settings import Access
from consumer.settings import load as load_settings
from consumer.tiling import TilePlace, tile_places

PURPOSE = """\
Publish an image tile by tile, each until RabbitMQ has confirmed it.

With --missing-from, only tiles of which the ledger misses something: to go on where it was
interrupted, or to fill what was lost. Give the image and the options that it was published with.
What still waits in the queue counts as missing, and does no harm twice.

exit code:
  0  all tiles are confirmed, or nothing is missing
  1  RabbitMQ did not take all
  2  the arguments cannot be used
  130  interrupted"""


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
    if options.missing_from is not None:
        tiles = _missing(_root(options.missing_from, broker), image, array, tiles)
        if not tiles:
            return 0
    began = time.monotonic()
    publisher = TilePublisher(
        broker,
        timeout_s=options.timeout_s,
        compress=options.compress,
        max_message_bytes=options.max_message_bytes,
    )
    try:
        with publisher:
            _publish_all(publisher, array, image, tiles)
    except KeyboardInterrupt as error:
        error.add_note("--missing-from ROOT goes on with what is not written")
        raise
    _report(image, tiles, time.monotonic() - began)
    return 0


def _publish_all(
    publisher: TilePublisher, array: dict[str, Any], image: Image, tiles: Sequence[_Tile]
) -> None:
    try:
        for tile in progress(tiles, "publishing", len(tiles)):
            _publish(publisher, array, image, tile)
    except KeyboardInterrupt:
        sys.stderr.write("waiting until what was sent is confirmed; Ctrl-C once more ends that\n")
        raise


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
    try:
        publisher.publish(array, values, place.stitch_coords, sample_idx=tile.sample_idx)
    except ParkError as error:
        raise UnusableSettings(f"a tile cannot be published: {error}") from None


def _tiles(image: Image, options: Any) -> Iterator[_Tile]:
    sizes = image.sizes
    shape = [sizes[axis] for axis in image.axes if axis in "ZYX"]
    tile = [min(*pair) for pair in zip(_spatial(options.tile, shape, "tile"), shape, strict=True)]
    if any(size < 1 for size in tile):
        raise UnusableSettings(f"tile {tile} must be at least 1 on each axis")
    given = _spatial(options.overlap, [0] * len(shape), "overlap")
    # Where a tile is as long as the image it has no neighbours.
    overlap = [o if t < n else min(o, t - 1) for o, t, n in zip(given, tile, shape, strict=True)]
    if any(not 0 <= o < t for o, t in zip(overlap, tile, strict=True)):
        raise UnusableSettings(f"overlap {overlap} must be below the tile {tile} on each axis")
    samples = [sizes[axis] for axis in image.axes if axis in "ST"]
    for number, sample in enumerate(itertools.product(*map(range, samples))):
        for place in tile_places(shape, tile, overlap):
            yield _Tile(place, sample, number if samples else None)


def _root(given: str, broker: Access) -> Path:
    if given:
        return Path(given)
    flags = {"--config-file": broker.config_file, "--secrets-folder": broker.secrets_folder}
    words = [f"{flag}={value}" for flag, value in flags.items() if value]
    try:
        return load_settings(words, "consumer publish").output_root
    except UnusableSettings as error:
        raise UnusableSettings(f"--missing-from needs ROOT or TILES_OUTPUT_ROOT: {error}") from None


def _missing(root: Path, image: Image, array: dict[str, Any], tiles: list[_Tile]) -> list[_Tile]:
    """Return the tiles of which something is not written, and say how many there are."""
    ledger = ledger_of(root, array)
    left = [tile for tile in tiles if ledger is None or not ledger.covers(_box(image, tile))]
    said = f"{len(left)} of {len(tiles)} tiles are left" if left else "nothing is missing"
    sys.stderr.write(f"{said}\n")
    return left


def _box(image: Image, tile: _Tile) -> Box:
    """Return where a tile's crop goes in the array."""
    first, size = tile.place.stitch_coords, tile.place.crop_size
    channels = [image.sizes["C"]] if "C" in image.axes else []
    start = (*tile.sample, *(0 for _ in channels), *first)
    space = (a + n for a, n in zip(first, size, strict=True))
    return Box(start, (*(at + 1 for at in tile.sample), *channels, *space))


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
    voxels = sum(math.prod(tile.place.crop_size) for tile in tiles) * image.sizes.get("C", 1)
    megabytes = voxels * image.data.dtype.itemsize / 1e6
    sys.stderr.write(
        f"published {len(tiles)} tiles in {seconds:.1f} s: {len(tiles) / seconds:.0f} tiles/s, "
        f"{megabytes / seconds:.0f} MB/s\n"
    )


def _shards(text: str) -> list[int] | str:
    return text if text == "auto" else sizes(text)


def _parser() -> CommandParser:
    parser = CommandParser(
        "consumer publish",
        PURPOSE,
        usage="consumer publish IMAGE --store STORE [OPTIONS]",
        examples=(
            "consumer publish d.zarr/g1/img --store trial/d.zarr --tile 256 --overlap 48",
            "consumer publish d.zarr/g1/img --store trial/d.zarr --missing-from /data/predictions",
        ),
    )
    parser.add_argument("image", metavar="IMAGE", help=".npy, .tif or .tiff file, or Zarr array")
    parser.add_argument("--store", required=True, help="store key, which ends in .zarr; required")
    parser.add_argument(
        "--array", default="image", help="path of the array in the store; default: image"
    )
    parser.add_argument("--axes", help="of the image, e.g. CZYX; default: as the file says")
    for flag, default, what in (
        ("--tile", [256], "of a tile along Y and X, or Z,Y,X; default: 256, and all of Z"),
        ("--overlap", [48], "that neighbouring tiles share, as for --tile; default: 48, 0 along Z"),
    ):
        parser.add_argument(
            flag, type=sizes, default=default, metavar="N[,N,N]", help=f"voxels {what}"
        )
    parser.add_argument(
        "--chunks", type=sizes, metavar="N,...",
        help="voxels of a chunk along each axis, e.g. 1,256,256; default: 128 along Z, Y, X and 1 "
        "elsewhere, or as stored",
    )  # fmt: skip
    parser.add_argument(
        "--shards", type=_shards, metavar="N,...|auto",
        help="voxels of a shard along each axis, or auto: about 16 MiB; default: none, or as "
        "stored",
    )  # fmt: skip
    parser.add_argument("--run", help="which prediction this is, e.g. unet-7; default: none")
    parser.add_argument(
        "--missing-from", nargs="?", const="", metavar="ROOT",
        help="publish only tiles of which something is not written below this output root; "
        "without ROOT: TILES_OUTPUT_ROOT; default: publish all",
    )  # fmt: skip
    parser.add_argument("--compress", action="store_true", help="compress messages with zstd")
    parser.add_argument(
        "--max-message-bytes", type=positive, default=MAX_MESSAGE_BYTES, metavar="N",
        help=f"as the consumer's setting, bytes; default: {MAX_MESSAGE_BYTES}",
    )  # fmt: skip
    parser.add_argument(
        "--timeout-s", type=seconds, default=60.0, metavar="SECONDS",
        help="longest wait in which nothing is confirmed, seconds; default: 60",
    )  # fmt: skip
    access.add_options(parser)
    return parser
