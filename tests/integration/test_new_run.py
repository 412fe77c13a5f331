"""What becomes of an array when another run begins to fill it: `TILES_ON_NEW_RUN`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from conftest import MakeConsumer
from consumer.blocks import ArrayKey
from consumer.ledger import Ledger
from consumer.ledger_files import read
from harness import Channel, ConsumerProcess, wait_until

STORE, SIDE, TILE = "p/a.zarr", 64, 32
FIELDS: dict[str, Any] = {
    "store": STORE,
    "array": "x",
    "axes": "YX",
    "shape": [SIDE, SIDE],
    "dtype": "uint16",
    "chunks": [TILE, TILE],
    "shards": [SIDE, SIDE],
}
PLACES = [(y, x) for y in range(0, SIDE, TILE) for x in range(0, SIDE, TILE)]
REPLACE: dict[str, Any] = {"on_new_run": "replace", "idle_s": 60}


def send(producer: Channel, place: tuple[int, int], value: int, run: str, **changes: Any) -> None:
    """Publish a tile of a run."""
    tiles = [{"stitch_coords": list(place)}]
    values = np.full((1, TILE, TILE), value, "uint16")
    producer.send(FIELDS | {"tiles": tiles, "run": run} | changes, [values])


def ledger(root: Path) -> Ledger:
    """Return the array's ledger as it is stored."""
    found, damages = read(root, ArrayKey(STORE, "x"))
    assert not damages
    assert found is not None
    return found


def stored(root: Path) -> list[int]:
    """Return the value of each place."""
    array: Any = zarr.open_array(root / STORE, path="x", mode="r")
    return [int(array[place]) for place in PLACES]


def reasons(consumer: ConsumerProcess, producer: Channel, count: int) -> list[str]:
    """Return why messages were parked, as soon as there are so many."""
    queue = f"{producer.prefix}.parked"
    wait_until(lambda: producer.depth(queue) >= count, consumer.tail)
    return [properties.headers["x-tiles-reason"] for properties, _ in producer.drain(queue)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def test_a_new_run_has_the_array_count_as_empty_when_what_there_is_has_been_written(
    make_consumer: MakeConsumer, producer: Channel, root: Path
) -> None:
    with make_consumer(**REPLACE) as consumer:
        for place in PLACES[:3]:
            send(producer, place, 1, "a")
        send(producer, PLACES[1], 2, "b")
        # Nothing but the other run has the first written: it is neither complete nor idle.
        consumer.wait_settled(3)
        assert consumer.stop() == 0
    assert stored(root) == [1, 2, 1, 0]
    header = ledger(root).header
    assert (header.run, header.replaced, header.tiles) == ("b", ("a",), 1)
    assert ledger(root).filled_voxels == TILE * TILE


def test_tiles_of_a_run_that_was_replaced_are_parked(
    make_consumer: MakeConsumer, producer: Channel, root: Path
) -> None:
    with make_consumer(**REPLACE) as consumer:
        for run in "ab":
            send(producer, PLACES[0], 1, run)
        send(producer, PLACES[1], 2, "a")
        consumer.wait_settled(2)
        assert consumer.stop() == 0
    with make_consumer(**REPLACE) as consumer:
        send(producer, PLACES[2], 3, "a")
        assert reasons(consumer, producer, 1) == ["run_conflict"]
        assert consumer.stop() == 0
    assert stored(root) == [1, 0, 0, 0]
    assert ledger(root).header.run == "b"


def test_a_new_run_begins_in_an_array_that_was_closed_and_is_announced_when_complete(
    make_consumer: MakeConsumer, producer: Channel, root: Path
) -> None:
    for value, run in enumerate("abc", 1):
        with make_consumer(**REPLACE) as consumer:
            for place in PLACES:
                send(producer, place, value, run)
            consumer.wait_settled(len(PLACES))
            assert consumer.stop() == 0
        assert stored(root) == [value] * len(PLACES)
        header, earlier = ledger(root).header, tuple("abc"[: value - 1])
        assert (header.run, header.announced, header.replaced) == (run, True, earlier)


def test_a_message_that_is_refused_begins_no_run(
    make_consumer: MakeConsumer, producer: Channel, root: Path
) -> None:
    with make_consumer(**REPLACE) as consumer:
        for place in PLACES:
            send(producer, place, 1, "a")
        consumer.wait_settled(len(PLACES))
        send(producer, PLACES[0], 2, "b", chunks=[16, 16])
        assert reasons(consumer, producer, 1) == ["array_mismatch"]
        assert consumer.stop() == 0
    assert ledger(root).complete
    assert ledger(root).header.run == "a"


def test_a_message_that_is_refused_begins_no_run_in_an_array_that_was_closed(
    make_consumer: MakeConsumer, producer: Channel, root: Path
) -> None:
    with make_consumer(**REPLACE) as consumer:
        for place in PLACES:
            send(producer, place, 1, "a")
        consumer.wait_settled(len(PLACES))
        assert consumer.stop() == 0
    with make_consumer(**REPLACE | {"idle_s": 1}) as consumer:
        send(producer, PLACES[0], 2, "b", chunks=[16, 16])
        assert reasons(consumer, producer, 1) == ["array_mismatch"]
        assert ledger(root).header.run == "a"
        send(producer, PLACES[0], 2, "b")
        wait_until(lambda: stored(root) == [2, 1, 1, 1], consumer.tail)
        assert consumer.stop() == 0
    assert ledger(root).header.run == "b"


def test_unless_told_another_run_is_parked(
    make_consumer: MakeConsumer, producer: Channel, root: Path
) -> None:
    with make_consumer(idle_s=0.1) as consumer:
        send(producer, PLACES[0], 1, "a")
        send(producer, PLACES[1], 2, "b")
        assert reasons(consumer, producer, 1) == ["run_conflict"]
        consumer.wait_settled(1)
        assert consumer.stop() == 0
    assert stored(root) == [1, 0, 0, 0]
