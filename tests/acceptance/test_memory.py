"""Memory stays within the budget, whatever arrives."""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pika
import pytest
import zarr

from conftest import MakeConsumer
from consumer.message import Encoded, encode
from consumer.testing import RabbitMQ
from faults import SlowDisk
from harness import Channel, ConsumerProcess, parameters, wait_until
from watch import MemoryWatch

MIB = 1 << 20
BUDGET = 256 * MIB
PEAK = BUDGET + 200 * MIB
# In the short form, two of the cases are flooded with 48 large tiles, the rest with 32.
FULL = bool(os.environ.get("FULL"))
MANY = 128 if FULL else 48
SMALL, LARGE = (128, 128), (2047, 2048)


@cache
def pattern() -> npt.NDArray[np.uint32]:
    """Numbers that tell a position in a tile, up to 2 ** 22."""
    return np.arange(math.prod((2048, 2048)), dtype=np.uint32).reshape(2048, 2048)


def values(number: int, size: tuple[int, int], *, repeat: bool = False) -> npt.NDArray[np.uint32]:
    """Voxels of the tile of that number, CYX: each tells tile and position, and none is zero.

    Where they repeat, every 64 KiB, they tell the position within those, and compress well.
    """
    places = pattern()[: size[0], : size[1]]
    within = places % np.uint32(1 << 14) if repeat else places
    return (within + np.uint32((number + 1) << 22))[np.newaxis]


@dataclass(frozen=True)
class Case:
    """How tiles are spread over arrays."""

    arrays: int
    shards: list[int] | None
    complete: bool
    compress: bool = False
    slow: bool = False
    large: int = 128 if FULL else 32
    small: int = 500


def sent(case: Case) -> Iterator[tuple[dict[str, Any], int, tuple[int, int]]]:
    """Yield the fields, number and size of every tile, in the order of sending."""
    for kind, size, count in (("small", SMALL, case.small), ("large", LARGE, case.large)):
        each = -(-count // case.arrays)
        columns = math.isqrt(each - 1) + 1
        rows = -(-each // columns)
        gap = 0 if case.complete else 37
        pitch = (size[0] + gap, size[1] + gap)
        for number in range(count):
            row, column = divmod(number // case.arrays, columns)
            yield (
                {
                    "store": f"{kind}{number % case.arrays}.zarr",
                    "array": "x",
                    "axes": "CYX",
                    "shape": [1, rows * pitch[0] + gap, columns * pitch[1] + gap],
                    "dtype": "uint32",
                    "chunks": [1, 128, 128] if kind == "small" else [1, 512, 512],
                    "tiles": [{"stitch_coords": [row * pitch[0] + gap, column * pitch[1] + gap]}],
                }
                | ({"shards": case.shards} if case.shards else {}),
                number,
                size,
            )


CASES = {
    "one complete array, plain": Case(1, None, complete=True, large=MANY),
    "one complete array, sharded": Case(1, [1, 2048, 2048], complete=True),
    "many partly filled arrays, plain": Case(32, None, complete=False),
    "many partly filled arrays, sharded": Case(32, [1, 1024, 1024], complete=False, large=MANY),
    "arrays that open slowly": Case(8, None, complete=True, slow=True),
    "compressed, an array that opens slowly": Case(
        1, [1, 1024, 1024], complete=True, compress=True, slow=True
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_flood_of_large_tiles_stays_within_the_budget(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path, case: Case
) -> None:
    disk = SlowDisk(tmp_path)
    consumer = make_consumer(
        environment=disk.environment,
        memory_budget_bytes=BUDGET,
        prefetch_count=1000,
        idle_s=2,
        scratch_folder=tmp_path,
    )
    with consumer:
        assert consumer.stop() == 0
        for fields, number, size in sent(case):
            producer.publish(message(case, fields, number, size))
        consumer.start()
        disk.take(0.3 if case.slow else 0)
        seen = Seen(consumer)
        with MemoryWatch(consumer.pid) as memory:
            wait_until(lambda: consumer.metrics()["tiles_array_opens_total"] > 1, "arrays open")
            disk.take(0)
            wait_until(lambda: seen.settled(case.small + case.large), "all settled", 250)
        peak = memory.peak
        print(f"\npeak {peak / MIB:.0f} MiB, scratch {seen.scratch / MIB:.0f} MiB")
        assert consumer.stop() == 0
    assert wrong(case, tmp_path / "root") == []
    assert peak <= PEAK


TILES, EARLY = (200_000, 20_000) if FULL else (40_000, 10_000)
EDGE, COLUMNS = 32, 500


def test_memory_does_not_grow_with_the_number_of_tiles(
    make_consumer: MakeConsumer, broker: RabbitMQ, prefix: str, tmp_path: Path
) -> None:
    with make_consumer(memory_budget_bytes=BUDGET, scratch_folder=tmp_path) as consumer:
        seen = Seen(consumer)
        with MemoryWatch(consumer.pid) as memory, pika.BlockingConnection(parameters(broker)) as at:
            channel = at.channel()
            for number in range(TILES):
                row, column = divmod(number, COLUMNS)
                fields = {
                    "store": "many.zarr",
                    "array": "x",
                    "axes": "YX",
                    "shape": [TILES // COLUMNS * EDGE, COLUMNS * EDGE],
                    "dtype": "uint8",
                    "chunks": [256, 256],
                    "shards": [1024, 1024],
                    "tiles": [{"stitch_coords": [row * EDGE, column * EDGE]}],
                }
                tile = np.full((1, EDGE, EDGE), 1 + number % 251, np.uint8)
                sent = encode(fields, [tile])
                properties = pika.BasicProperties(**sent.properties)
                channel.basic_publish(prefix, sent.routing_key, sent.body, properties)
                if number == EARLY + 5000:
                    wait_until(lambda: seen.settled(EARLY), "the first", 250)
                    early = memory.now
            wait_until(lambda: seen.settled(TILES), "all settled", 250)
            wait_until(lambda: consumer.metrics()['tiles_held_bytes{kind="spare"}'] == 0, "rest")
            time.sleep(0.5)
            late = memory.now
        print(f"\n{early / MIB:.1f} MiB early, {late / MIB:.1f} at the end")
        assert consumer.stop() == 0
    stored = zarr.open_array(tmp_path / "root/many.zarr", path="x", mode="r")
    wanted = 1 + np.arange(TILES).reshape(-1, COLUMNS) % 251
    assert np.array_equal(np.asarray(stored[::EDGE, ::EDGE]), wanted)
    assert late <= early + 10 * MIB


def message(case: Case, fields: dict[str, Any], number: int, size: tuple[int, int]) -> Encoded:
    """Return a tile's message."""
    tile = values(number, size, repeat=case.compress)
    return encode(fields, [tile], compress=case.compress)


class Seen:
    """Watches a consumer until its tiles are settled."""

    def __init__(self, consumer: ConsumerProcess) -> None:
        self._consumer = consumer
        self.scratch = 0.0

    def settled(self, count: int) -> bool:
        return self._metrics()["tiles_deliveries_acknowledged_total"] >= count

    def spilled(self) -> bool:
        self._metrics()
        return self.scratch > 0

    def _metrics(self) -> dict[str, float]:
        metrics = self._consumer.metrics()
        self.scratch = max(self.scratch, metrics['tiles_held_bytes{kind="scratch"}'])
        return metrics


def wrong(case: Case, root: Path) -> list[int]:
    """Numbers of the tiles that are not stored as sent."""
    found = []
    for fields, number, size in sent(case):
        stored = zarr.open_array(root / fields["store"], path="x", mode="r")
        y, x = fields["tiles"][0]["stitch_coords"]
        region = np.asarray(stored[:, y : y + size[0], x : x + size[1]])
        if not np.array_equal(region, values(number, size, repeat=case.compress)):
            found.append(number)
    return found
