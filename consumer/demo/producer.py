"""A producer as another team would write it: cuts an image into overlapping tiles, denoises each
and publishes it. Where a tile ends up is the consumer's work.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError, UnroutableError
from skimage.restoration import denoise_tv_chambolle

from consumer.demo.brokers import connect
from consumer.demo.image import SOURCE
from consumer.message import Encoded, encode
from consumer.tiling import Cut, cuts

CHUNKS = (1, 256, 256)
SHARDS = (1, 1024, 1024)
# Begins the line on standard output that tells of one confirmed tile.
PUBLISHED = "published "
_RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class PredictedTile:
    """A tile's values, CYX, and what the wire contract says of its place."""

    values: npt.NDArray[np.float32]
    entry: dict[str, list[int]]


def predicted_tiles(
    image: npt.NDArray[np.float32], *, tile: int, overlap: int, weight: float, iterations: int
) -> Iterator[PredictedTile]:
    """Yield each tile of a CYX image, denoised with its margins by total variation.

    Source: Chambolle, An algorithm for total variation minimization and applications, 2004. A
    fixed number of iterations makes it repeatable bit for bit.
    """
    _, height, width = image.shape
    for y in cuts(height, tile, overlap):
        for x in cuts(width, tile, overlap):
            noisy = image[:, y.start : y.start + tile, x.start : x.start + tile]
            values = denoise_tv_chambolle(  # type: ignore[no-untyped-call] # scikit-image has no types
                noisy, weight=weight, eps=0, max_num_iter=iterations, channel_axis=0
            )
            yield PredictedTile(values, _entry(y, x))


def _entry(y: Cut, x: Cut) -> dict[str, list[int]]:
    return {
        "crop_coords": [y.crop, x.crop],
        "crop_size": [y.size, x.size],
        "stitch_coords": [y.start + y.crop, x.start + x.crop],
    }


def publish(channel: BlockingChannel, exchange: str, message: Encoded, *, timeout_s: float) -> None:
    """Publish until the broker confirms.

    A message that comes back found no queue yet, and a refused one a full queue: both pass.
    """
    properties = pika.BasicProperties(**message.properties)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            channel.basic_publish(
                exchange, message.routing_key, message.body, properties, mandatory=True
            )
        except (UnroutableError, NackError):
            if time.monotonic() > deadline:
                raise
            channel.connection.sleep(_RETRY_S)
        else:
            return


def confirming_channel(
    connection: pika.BlockingConnection, exchange: str, *, timeout_s: float
) -> BlockingChannel:
    """Return a channel with confirms, once the consumer has declared the exchange."""
    deadline = time.monotonic() + timeout_s
    while True:
        channel = connection.channel()
        try:
            channel.exchange_declare(exchange, passive=True)
        except ChannelClosedByBroker:
            if time.monotonic() > deadline:
                raise
            connection.sleep(_RETRY_S)
        else:
            channel.confirm_delivery()
            return channel


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish all tiles of an image and return the exit code."""
    options = _options(arguments)
    try:
        _produce(options)
    except AMQPError as error:
        print(f"publishing to {options.host} failed: {error!r}", file=sys.stderr)
        return 1
    return 0


def _produce(options: argparse.Namespace) -> None:
    image = np.load(options.image)
    tiles = predicted_tiles(
        image,
        tile=options.tile,
        overlap=options.overlap,
        weight=options.weight,
        iterations=options.iterations,
    )
    with connect(options.host) as connection:
        channel = confirming_channel(connection, options.exchange, timeout_s=options.timeout_s)
        for tile in tiles:
            message = encode(_fields(options, image.shape, tile), [tile.values], checksum=True)
            publish(channel, options.exchange, message, timeout_s=options.timeout_s)
            print(f"{PUBLISHED}{tile.entry}", flush=True)


def _fields(
    options: argparse.Namespace, shape: tuple[int, ...], tile: PredictedTile
) -> dict[str, Any]:
    return {
        "store": options.store,
        "array": options.array,
        "axes": "CYX",
        "shape": shape,
        "dtype": "float32",
        "chunks": CHUNKS,
        "shards": SHARDS,
        "source": SOURCE,
        "run": f"total-variation-{options.weight:g}-{options.iterations}",
        "sent_ms": time.time_ns() // 1_000_000,
        "tiles": [tile.entry],
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m consumer.demo.producer", description="Predict an image and publish its tiles."
    )
    parser.add_argument("image", type=Path, help=".npy file of a CYX image, float32")
    parser.add_argument("--host", default="localhost:5672", help="RabbitMQ, host:port")
    parser.add_argument("--exchange", default="tiles", help="exchange to publish to")
    parser.add_argument("--store", required=True, help="store key, ends in .zarr")
    parser.add_argument("--array", required=True, help="path of the array in the store")
    parser.add_argument("--tile", type=int, default=256, help="height and width, voxels")
    parser.add_argument("--overlap", type=int, default=48, help="of neighbouring tiles, voxels")
    parser.add_argument("--weight", type=float, default=0.1, help="strength of the denoising")
    parser.add_argument("--iterations", type=int, default=60, help="steps of the denoising")
    parser.add_argument("--timeout-s", type=float, default=60, help="wait for exchange and queue")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
