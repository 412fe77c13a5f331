"""What the consumer is measured against, each in a process of its own that prints its figures.

All of them find the array made, open it when they first need it, and decode with the consumer's own
decoder. Those that somebody could use instead receive with pika, 128 KiB at a time and with the
consumer's prefetch count; what only sets a bound to the consumer receives and writes with its code.
"""

import argparse
import gc
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pika
import tensorstore
import zarr
from pika.adapters.select_connection import IOLoop, SelectConnection

from benchmarks.cases import ARRAY, STORE, Case, find
from consumer.arena import Arena, give_memory_back
from consumer.arrays import read_array
from consumer.blocks import ArrayKey, BlockKey, Reason, Write
from consumer.connection import Connection, prepare_pika
from consumer.contract import build
from consumer.coverage import Box, Coverage
from consumer.endpoint import Endpoint
from consumer.errors import StopError
from consumer.flow import WRITES_PER_WORKER
from consumer.message import Envelope, Message, Outline, decode
from consumer.placement import Layout
from consumer.settings import Settings
from consumer.storage import Storage
from watch import cpu_seconds

_TRANSACTION_DELIVERIES = 400
_ACKNOWLEDGE_EVERY = 100


@dataclass(frozen=True)
class Took:
    """What a run took: the time that passed, and what its processes computed meanwhile."""

    seconds: float
    cpu_seconds: float


class Clock:
    """Measures from its making on."""

    def __init__(self) -> None:
        self._cpu = cpu_seconds(os.getpid())
        self._began = time.monotonic()

    def read(self) -> Took:
        """Return what passed until now."""
        seconds = time.monotonic() - self._began
        return Took(seconds, cpu_seconds(os.getpid()) - self._cpu)


class Rival:
    """Receives a known number of messages and settles them."""

    def __init__(self, root: Path, case: Case) -> None:
        self.root, self.case = root, case
        self.loop = IOLoop()
        self._channel: Any = None
        self._received = 0
        self._clock: Clock | None = None
        self._took: Took | None = None

    def run(self, host: str, queue: str) -> Took:
        """Return what it took from subscribing to the last acknowledgement."""
        prepare_pika()
        self.connect(host, lambda channel: self._subscribe(channel, queue))
        self.loop.start()
        assert self._took is not None, "the connection was lost"
        return self._took

    def connect(self, host: str, opened: Callable[[Any], None]) -> None:
        """Connect as pika does; `opened` hears of the channel."""
        name, port = host.split(":")
        SelectConnection(
            pika.ConnectionParameters(name, int(port), heartbeat=600),
            on_open_callback=lambda connection: connection.channel(on_open_callback=opened),
            on_close_callback=lambda *_: self.loop.stop(),
            custom_ioloop=self.loop,
        )

    def close(self) -> None:
        """Close the connection, which ends the loop."""
        self._channel.connection.close()

    def take(self, message: Message) -> None:
        """Take a message; sooner or later it is settled."""
        raise NotImplementedError

    def settle(self, tag: int) -> None:
        """Acknowledge every message up to a delivery tag."""
        self._channel.basic_ack(tag, multiple=True)
        if tag == self.case.message_count:
            assert self._clock is not None
            self._took = self._clock.read()
            self.close()

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
        self._clock = Clock()

    def _on_message(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._received = method.delivery_tag
        self.receive(method, properties, body)

    def receive(self, method: Any, properties: Any, body: bytes) -> None:
        """Decode a body and take it."""
        envelope = Envelope(method.routing_key, properties.type, properties.content_type)
        self.take(decode(envelope, body))


class DrainOnly(Rival):
    """Receives as the consumer does and acknowledges; writes nothing."""

    def connect(self, host: str, opened: Callable[[Any], None]) -> None:
        """Connect with the consumer's own connection, and have memory treated as it does."""
        give_memory_back()
        gc.freeze()
        self._connection = Connection(
            self.loop,
            Endpoint(hosts=(host,)),
            "drain",
            owner="benchmark",
            opened=opened,
            lost=self.loop.stop,
            failed=lambda _error: None,
        )
        self._connection.open()

    def close(self) -> None:
        """Close the connection for good."""
        self._connection.close()

    def receive(self, method: Any, properties: Any, body: bytes) -> None:
        """Acknowledge now and then."""
        if self.complete or self.last % _ACKNOWLEDGE_EVERY == 0:
            self.settle(self.last)


class PerTile(Rival):
    """One zarr write for each tile, the array kept open; no fsync."""

    @cached_property
    def _array(self) -> Any:
        return zarr.open_array(self.root / STORE, path=ARRAY, mode="r+")

    def take(self, message: Message) -> None:
        """Write every tile, then acknowledge."""
        for tile in message.tiles:
            self._array[tile.box.slices] = tile.values
        self.settle(self.last)


class TensorStore(Rival):
    """A transaction for 400 deliveries, committed while the next fills; fsync on."""

    def __init__(self, root: Path, case: Case) -> None:
        super().__init__(root, case)
        self._transaction = tensorstore.Transaction()
        self._deliveries = 0

    @cached_property
    def _store(self) -> Any:
        return tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"{self.root / STORE / ARRAY}/"},
                "context": {"file_io_sync": True},
            }
        ).result()

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
        found = read_array(root, ArrayKey(STORE, ARRAY))
        assert found is not None
        layout = found.layout
        size = math.prod(layout.shape) * layout.dtype.itemsize
        arena = Arena(2 * size)
        self._storage = Storage(settings, arena, self._posted.put, _stopped)
        self._writes = list(self._blocks(case, layout, arena))
        self._left = 1
        self._storage.open(outline(case), 1 << 40, self._opened)
        self._wait()

    def run(self, _host: str, _queue: str) -> Took:
        """Return what it took until all blocks were durable."""
        self._left = len(self._writes)
        clock = Clock()
        for _ in range(self._in_flight):
            self._start()
        self._wait()
        took = clock.read()
        self._storage.close()
        return took

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


def outline(case: Case) -> Outline:
    """Return what a case's messages say of the array."""
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
    """Run one rival and print what it took as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rival", choices=RIVALS)
    parser.add_argument("case")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--host", required=True)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--root", type=Path, required=True)
    options = parser.parse_args()
    case = find(options.case, quick=options.quick)
    took = RIVALS[options.rival](options.root, case).run(options.host, options.queue)
    print(json.dumps(asdict(took)))


if __name__ == "__main__":
    main()
