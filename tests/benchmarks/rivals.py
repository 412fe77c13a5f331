"""What the consumer is measured against, each in a process of its own that prints its figures.

All of them receive as the consumer does (128 KiB reads, the same prefetch count), decode with its
own decoder, and write an array that is there already, on the same disk.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pika
import tensorstore
import zarr
from pika.adapters.select_connection import IOLoop, SelectConnection

from benchmarks.cases import ARRAY, STORE, Case, find
from consumer.arena import Arena
from consumer.arrays import OpenArray, open_array, open_store
from consumer.blocks import ArrayKey, BlockKey, Reason, Write
from consumer.connection import prepare_pika
from consumer.contract import build
from consumer.coverage import Box, Coverage
from consumer.errors import StopError
from consumer.flow import WRITES_PER_WORKER
from consumer.message import Envelope, Message, Outline, decode
from consumer.placement import Layout
from consumer.settings import Settings
from consumer.storage import Storage

_TRANSACTION_DELIVERIES = 400
_ACKNOWLEDGE_EVERY = 100


class Rival:
    """Receives a known number of messages and settles them."""

    def __init__(self, root: Path, case: Case) -> None:
        self.root, self.case = root, case
        self.loop = IOLoop()
        self._channel: Any = None
        self._received = 0
        self._settled = 0
        self._began = self._ended = 0.0

    def run(self, host: str, queue: str) -> float:
        """Return the seconds from subscribing to the last acknowledgement."""
        prepare_pika()
        name, port = host.split(":")
        SelectConnection(
            pika.ConnectionParameters(name, int(port), heartbeat=600),
            on_open_callback=lambda connection: connection.channel(
                on_open_callback=lambda channel: self._subscribe(channel, queue)
            ),
            on_close_callback=lambda *_: self.loop.stop(),
            custom_ioloop=self.loop,
        )
        self.loop.start()
        return self._ended - self._began

    def take(self, message: Message) -> None:
        """Take a message; sooner or later it is settled."""
        raise NotImplementedError

    def settle(self, tag: int) -> None:
        """Acknowledge every message up to a delivery tag."""
        self._channel.basic_ack(tag, multiple=True)
        self._settled = tag
        if tag == self.case.message_count:
            self._ended = time.monotonic()
            self._channel.connection.close()

    @property
    def last(self) -> int:
        """The delivery tag that came last."""
        return self._received

    @property
    def complete(self) -> bool:
        """Whether the last message has come."""
        return self._received == self.case.message_count

    def _subscribe(self, channel: Any, queue: str) -> None:
        self._channel = channel
        channel.basic_qos(prefetch_count=self.case.prefetch)
        channel.basic_consume(queue, self._on_message, callback=lambda _frame: self._begin())

    def _begin(self) -> None:
        self._began = time.monotonic()

    def _on_message(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._received = method.delivery_tag
        self.receive(method, properties, body)

    def receive(self, method: Any, properties: Any, body: bytes) -> None:
        """Decode a body and take it."""
        envelope = Envelope(method.routing_key, properties.type, properties.content_type)
        self.take(decode(envelope, body))


class DrainOnly(Rival):
    """Receives and acknowledges; writes nothing."""

    def receive(self, method: Any, properties: Any, body: bytes) -> None:
        """Acknowledge now and then."""
        if self.complete or self.last % _ACKNOWLEDGE_EVERY == 0:
            self.settle(self.last)


class PerTile(Rival):
    """One zarr write for each tile, the array kept open; no fsync."""

    def __init__(self, root: Path, case: Case) -> None:
        super().__init__(root, case)
        create(root, case)
        self._array: Any = zarr.open_array(root / STORE, path=ARRAY, mode="r+")

    def take(self, message: Message) -> None:
        """Write every tile, then acknowledge."""
        for tile in message.tiles:
            self._array[tile.box.slices] = tile.values
        self.settle(self.last)


class TensorStore(Rival):
    """A transaction for 400 deliveries, committed while the next fills; fsync on."""

    def __init__(self, root: Path, case: Case) -> None:
        super().__init__(root, case)
        create(root, case)
        self._store = tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"{root / STORE / ARRAY}/"},
                "context": {"file_io_sync": True},
            }
        ).result()
        self._transaction = tensorstore.Transaction()
        self._deliveries = 0

    def take(self, message: Message) -> None:
        """Write every tile into the transaction."""
        target = self._store.with_transaction(self._transaction)
        for tile in message.tiles:
            target[tile.box.slices].write(np.asarray(tile.values)).result()
        self._deliveries += 1
        if self.complete or self._deliveries == _TRANSACTION_DELIVERIES:
            self._commit(self.last)

    def _commit(self, tag: int) -> None:
        future = self._transaction.commit_async()
        future.add_done_callback(
            lambda done: self.loop.add_callback_threadsafe(lambda: self._committed(done, tag))
        )
        self._transaction, self._deliveries = tensorstore.Transaction(), 0

    def _committed(self, future: Any, tag: int) -> None:
        future.result()
        self.settle(tag)


class WriteOnly:
    """Has the consumer's own writer process encode and commit every block; receives nothing."""

    def __init__(self, root: Path, case: Case) -> None:
        self._posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._left = 0
        settings = Settings(output_root=root)
        self._in_flight = settings.workers * WRITES_PER_WORKER
        layout = opened(root, case).layout
        size = math.prod(layout.shape) * layout.dtype.itemsize
        arena = Arena(2 * size)
        self._storage = Storage(settings, arena, self._posted.put, _stopped)
        self._writes = list(self._blocks(case, layout, arena))
        self._left = 1
        self._storage.open(_outline(case), 1 << 40, self._opened)
        self._wait()

    def run(self, _host: str, _queue: str) -> float:
        """Return the seconds until all blocks are durable."""
        self._left = len(self._writes)
        began = time.monotonic()
        for _ in range(self._in_flight):
            self._start()
        self._wait()
        seconds = time.monotonic() - began
        self._storage.close()
        return seconds

    def _start(self) -> None:
        if self._writes:
            self._storage.write(self._writes.pop(), self._written)

    def _written(self, written: Any, error: Exception | None) -> None:
        self._done(written, error)
        self._start()

    def _opened(self, opened: Any, error: Exception | None) -> None:
        self._done(opened, error)
        self._storage.allow(STORE, opened.taken)

    def _done(self, _result: Any, error: Exception | None) -> None:
        assert error is None, error
        self._left -= 1

    def _wait(self) -> None:
        while self._left:
            self._posted.get()()

    def _blocks(self, case: Case, layout: Layout, arena: Arena) -> Iterator[Write]:
        grid = layout.grid
        counts = (-(-n // size) for n, size in zip(grid.shape, grid.block, strict=True))
        for index in itertools.product(*map(range, counts)):
            box = grid.box(index)
            image = case.image(box.start[0])[np.newaxis, np.newaxis]
            taken = arena.take(box.volume * layout.dtype.itemsize)
            assert taken is not None
            buffer = taken.view(layout.dtype).reshape(box.shape)
            buffer[...] = image[(slice(None), *box.slices[1:])]
            filled = Coverage([Box.of_shape(box.shape)])
            key = BlockKey(ArrayKey(STORE, ARRAY), index)
            yield Write(key, box, buffer, filled, False, Reason.COMPLETE, set(), 0)


def _stopped(error: StopError) -> None:
    raise error


def create(root: Path, case: Case) -> None:
    """Create the array as the consumer does."""
    opened(root, case).store.commit.release()


def opened(root: Path, case: Case) -> OpenArray:
    """Open the array as the consumer does; create it where it is not there."""
    store = open_store(root, STORE, file_mode=0o644, folder_mode=0o755)
    entry = _outline(case).entry
    array = open_array(store, entry, write_empty_chunks=True, max_block_bytes=1 << 40)
    array.metadata.make()
    return array


def _outline(case: Case) -> Outline:
    tile = {
        "stitch_coords": [0] * len(case.shape),
        "crop_size": [1] * len(case.shape),
        "sample_idx": 0,
        "fill": 0,
    }
    return Outline(build({**case.fields, "tiles": [tile]}), (), ())


RIVALS: dict[str, type[Rival] | type[WriteOnly]] = {
    "per_tile": PerTile,
    "tensorstore": TensorStore,
    "drain_only": DrainOnly,
    "write_only": WriteOnly,
}


def main() -> None:
    """Run one rival and print its seconds as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rival", choices=RIVALS)
    parser.add_argument("case")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--host", required=True)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--root", type=Path, required=True)
    options = parser.parse_args()
    case = find(options.case, quick=options.quick)
    seconds = RIVALS[options.rival](options.root, case).run(options.host, options.queue)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
