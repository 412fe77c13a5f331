"""Measures TilePublisher beside a bare pika loop, in turn, on one private broker.

Both keep as many bytes unconfirmed as the publisher's window has, and publish tiles of 256 KiB,
mandatory and persistent, to the consumer's own queue. The bare loop sends bodies that were encoded
before its clock starts and checks nothing; the publisher starts from arrays. The clock runs from
the first tile to the last confirm, the connection's opening included.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pika
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.channel import Channel

from consumer.message import Encoded, encode
from consumer.publisher import WINDOW_BYTES, TilePublisher
from consumer.settings import Settings
from consumer.testing import BrokerMissing, RabbitMQ
from consumer.topology import topology

EXTENT = 65536
ARRAY = {"store": "bench/out.zarr", "array": "x", "axes": "CYX", "shape": [1, EXTENT, EXTENT]}
SIDE = 256
LEAST = 0.8


class BareLoop:
    """Publishes bodies with confirms, as few steps as pika allows."""

    def __init__(self, host: str, messages: Sequence[Encoded]) -> None:
        name, port = host.split(":")
        self._messages = iter(messages)
        self._left = len(messages)
        self._loop = IOLoop()
        self._unconfirmed: dict[int, int] = {}
        self._held = self._sent = 0
        self._channel: Any = None
        self._connection = SelectConnection(
            pika.ConnectionParameters(name, int(port), heartbeat=600),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._opened),
            on_close_callback=lambda _connection, _error: self._loop.stop(),
            custom_ioloop=self._loop,
        )

    def run(self) -> None:
        """Return once all are confirmed."""
        self._loop.start()
        self._loop.close()
        assert self._left == 0, f"{self._left} are not confirmed"

    def _opened(self, channel: Channel) -> None:
        self._channel = channel
        channel.confirm_delivery(self._confirmed, callback=lambda _frame: self._advance())

    def _advance(self) -> None:
        while self._held < WINDOW_BYTES:
            message = next(self._messages, None)
            if message is None:
                return
            self._sent += 1
            self._unconfirmed[self._sent] = len(message.body)
            self._held += len(message.body)
            self._channel.basic_publish(
                "tiles",
                message.routing_key,
                message.body,
                pika.BasicProperties(**message.properties),
                mandatory=True,
            )

    def _confirmed(self, frame: Any) -> None:
        tag, multiple = frame.method.delivery_tag, frame.method.multiple
        assert isinstance(frame.method, pika.spec.Basic.Ack), "the broker refused a message"
        for number in [n for n in self._unconfirmed if n == tag or (multiple and n < tag)]:
            self._held -= self._unconfirmed.pop(number)
            self._left -= 1
        if self._left:
            self._advance()
        else:
            self._connection.close()


def bare(host: str, tile: npt.NDArray[Any], places: Sequence[tuple[int, int]]) -> float:
    """Return the seconds that the bare loop takes."""
    messages = [encode({**ARRAY, "tiles": [{"stitch_coords": p}]}, [tile]) for p in places]
    began = time.monotonic()
    BareLoop(host, messages).run()
    return time.monotonic() - began


def published(host: str, tile: npt.NDArray[Any], places: Sequence[tuple[int, int]]) -> float:
    """Return the seconds that the publisher takes."""
    began = time.monotonic()
    with TilePublisher(host) as publisher:
        for place in places:
            publisher.publish(ARRAY, tile, place)
    return time.monotonic() - began


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 1 where the publisher is slower than it must be."""
    options = _options(arguments)
    columns = EXTENT // SIDE
    places = [divmod(i, columns) for i in range(options.tiles)]
    corners = [(row * SIDE, column * SIDE) for row, column in places]
    tile = np.random.default_rng(0).random((1, SIDE, SIDE), np.float32)
    ways: dict[str, Callable[..., float]] = {"bare": bare, "publisher": published}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    try:
        with RabbitMQ() as broker, pika.BlockingConnection(_parameters(broker)) as connection:
            channel = connection.channel()
            queue = _declare(channel)
            for repeat in range(options.repeats + 1):
                for name in sorted(ways, reverse=bool(repeat % 2)):
                    rate = (
                        options.tiles * tile.nbytes / 1e6 / ways[name](broker.host, tile, corners)
                    )
                    count = channel.queue_declare(queue, passive=True).method.message_count
                    assert count == options.tiles, f"{count} of {options.tiles} in the queue"
                    channel.queue_purge(queue)
                    if repeat:  # the first warms the broker up
                        rates[name].append(rate)
                        print(f"{name} {rate:.0f} MB/s", flush=True)
    except BrokerMissing as error:
        print(error, file=sys.stderr)
        return 2
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ratio = medians["publisher"] / medians["bare"]
    print(f"publisher / bare pika loop: {ratio:.2f} (at least {LEAST})")
    return int(ratio < LEAST)


def _parameters(broker: RabbitMQ) -> pika.ConnectionParameters:
    host, port = broker.host.split(":")
    return pika.ConnectionParameters(host, int(port), heartbeat=0)


def _declare(channel: Any) -> str:
    wanted = topology(Settings(output_root=Path()))
    channel.exchange_declare(wanted.tiles.name, wanted.tiles.type, durable=True)
    queue = wanted.partitions[0]
    channel.queue_declare(queue.name, durable=True, arguments=queue.arguments)
    channel.queue_bind(queue.name, wanted.tiles.name, "#")
    return queue.name


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.publishing", description=__doc__)
    parser.add_argument("--tiles", type=int, default=1000, help="tiles of each run (1000)")
    parser.add_argument("--repeats", type=int, default=15, help="runs of each way (15)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
