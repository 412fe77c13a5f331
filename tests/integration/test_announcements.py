"""What a real consumer announces, and what its ledgers say then, after restarts too."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from conftest import MakeConsumer
from consumer import cli
from consumer.blocks import ArrayKey
from consumer.commands import wait
from consumer.commit import ledger_folder
from consumer.contract import MESSAGE_TYPE
from consumer.events import ArrayCompleted, ArrayProgress, TileParked, events_exchange
from consumer.ledger import Ledger
from consumer.ledger_files import read
from consumer.ledger_format import HEADER_NAME, encode_header
from consumer.message import Encoded
from consumer.publisher import TilePublisher
from harness import Channel, wait_until

STORE, SIDE, TILE = "p/a.zarr", 64, 32
FIELDS: dict[str, Any] = {
    "store": STORE,
    "array": "x",
    "axes": "YX",
    "shape": [SIDE, SIDE],
    "dtype": "uint16",
    "chunks": [TILE, TILE],
    "shards": [SIDE, SIDE],
    "run": "unet/7",
}
PLACES = [(y, x) for y in range(0, SIDE, TILE) for x in range(0, SIDE, TILE)]


@pytest.fixture
def events(producer: Channel) -> "Events":
    """A queue of its own that takes every event."""
    return Events(producer)


class Events:
    """The events on one array's store, as a subscriber gets them."""

    def __init__(self, producer: Channel) -> None:
        self._producer = producer
        exchange = events_exchange(producer.prefix)
        producer.channel.exchange_declare(exchange, "topic", durable=True)
        self._queue = producer.channel.queue_declare("", exclusive=True).method.queue
        producer.channel.queue_bind(self._queue, exchange, "#")
        self.seen: list[tuple[Any, dict[str, Any]]] = []

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the bodies of what has come of a kind."""
        found = self._producer.drain(self._queue)
        self.seen += [(properties, json.loads(body)) for properties, body in found]
        return [body for properties, body in self.seen if properties.type == event]

    def wait(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Return the bodies of a kind as soon as there are so many."""
        wait_until(lambda: len(self.of(event)) >= count, lambda: f"{event}: {self.seen}")
        return self.of(event)


def send(producer: Channel, place: tuple[int, int], value: int = 1, **changes: Any) -> None:
    """Publish a tile."""
    tile = {"stitch_coords": list(place)}
    values = np.full((1, TILE, TILE), value, "uint16")
    producer.send(FIELDS | {"tiles": [tile]} | changes, [values])


def ledger(root: Path) -> Ledger:
    """Return the array's ledger as it is stored."""
    found, damages = read(root, ArrayKey(STORE, "x"))
    assert not damages
    assert found is not None
    return found


def test_completion_is_announced_before_the_last_tile_is_acknowledged(
    make_consumer: MakeConsumer, producer: Channel, events: Events, tmp_path: Path
) -> None:
    with make_consumer() as consumer:
        for place in PLACES:
            send(producer, place)
        consumer.wait_settled(len(PLACES))
        completed = events.of("array.completed")
        assert [ArrayCompleted(**body) for body in completed] == [
            ArrayCompleted(
                store=STORE,
                array="x",
                run="unet/7",
                ledger=ledger(tmp_path / "root").header.ledger,
            )
        ]
        properties = events.seen[-1][0]
        assert properties.message_id == completed[0]["message_id"]
        assert ledger(tmp_path / "root").header.announced
        # Nothing more comes of it, so the store is given up.
        wait_until(lambda: consumer.metrics()["tiles_open_arrays"] == 0, "the array to be closed")
        epochs = tmp_path / "root/.tiles" / STORE / "epochs"
        wait_until(lambda: not epochs.exists(), "the epoch to be released")
        send(producer, PLACES[0])
        consumer.wait_settled(len(PLACES) + 1)
        assert len(events.of("array.completed")) == 1
        assert consumer.stop() == 0


def test_an_array_that_is_filled_anew_after_a_reset_is_another_completion(
    make_consumer: MakeConsumer, producer: Channel, events: Events, tmp_path: Path
) -> None:
    with make_consumer() as consumer:
        for times in (1, 2):
            for place in PLACES:
                send(producer, place)
            consumer.wait_settled(times * len(PLACES))
            assert cli.main(["reset", f"{STORE}/x", "--output-root", str(tmp_path / "root")]) == 0
        first, second = events.wait("array.completed", 2)
        assert first["message_id"] != second["message_id"]
        assert first["ledger"] != second["ledger"]
        assert consumer.stop() == 0


def test_a_publisher_waits_for_the_completion_of_what_it_published(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    host, prefix = producer.broker.host, producer.prefix
    publisher = TilePublisher(host, completions=True, topology_prefix=prefix)
    with make_consumer() as consumer, publisher:
        for place in PLACES:
            publisher.publish(FIELDS, np.ones((1, TILE, TILE), "uint16"), place)
        publisher.wait_completed(30)
        assert ledger(tmp_path / "root").complete
        assert consumer.stop() == 0


def test_a_publisher_that_names_no_run_hears_of_what_another_bound_to_one(
    make_consumer: MakeConsumer, producer: Channel
) -> None:
    unbound = {name: value for name, value in FIELDS.items() if name != "run"}
    publisher = TilePublisher(
        producer.broker.host, completions=True, topology_prefix=producer.prefix
    )
    with make_consumer() as consumer, publisher:
        producer.send(FIELDS | {"tiles": [{"stitch_coords": [0, 0]}]}, [np.ones((1, 32, 32), "u2")])
        consumer.wait_settled(1)
        for place in PLACES[1:]:
            publisher.publish(unbound, np.ones((1, TILE, TILE), "uint16"), place)
        publisher.wait_completed(60)
        assert consumer.stop() == 0


def test_a_publisher_hears_again_of_what_was_complete_before(
    make_consumer: MakeConsumer, producer: Channel, events: Events
) -> None:
    host, prefix = producer.broker.host, producer.prefix
    with make_consumer(progress_s=0.1, idle_s=0.5) as consumer:
        for _ in range(3):
            with TilePublisher(host, completions=True, topology_prefix=prefix) as publisher:
                for place in PLACES:
                    publisher.publish(FIELDS, np.ones((1, TILE, TILE), "uint16"), place)
                publisher.wait_completed(60)
                publisher.publish(FIELDS, np.ones((1, TILE, TILE), "uint16"), PLACES[0])
                publisher.wait_completed(60)
        assert len(events.of("array.completed")) == 1
        assert consumer.stop() == 0


def test_progress_is_announced(
    make_consumer: MakeConsumer, producer: Channel, events: Events
) -> None:
    with make_consumer(progress_s=0.1) as consumer:
        for place in PLACES[:3]:
            send(producer, place)
            consumer.wait_settled(PLACES.index(place) + 1)
            time.sleep(0.5)
        progress = [ArrayProgress(**body) for body in events.wait("array.progress", 3)]
        assert [each.filled_voxels for each in progress] == [TILE**2, 2 * TILE**2, 3 * TILE**2]
        assert {each.total_voxels for each in progress} == {SIDE**2}
        assert consumer.metrics()["tiles_open_arrays"] == 1
        assert consumer.stop() == 0


def test_a_parked_tile_is_told_of_and_counted(
    make_consumer: MakeConsumer,
    producer: Channel,
    events: Events,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "root"
    with make_consumer() as consumer:
        send(producer, PLACES[0])
        consumer.wait_settled(1)
        send(producer, PLACES[1], shape=[SIDE, 2 * SIDE])
        producer.publish(Encoded(STORE, b"no safetensors", {"type": MESSAGE_TYPE}))
        consumer.wait_settled(3)
        parked = [TileParked(**body) for body in events.of("tile.parked")]
        assert [each.store for each in parked] == [STORE, STORE]
        said = {each.reason: each.detail for each in parked}
        assert said.keys() == {"array_mismatch", "undecodable"}
        assert "[64, 128] is not the stored [64, 64]" in said["array_mismatch"]
        assert len({each.parking_id for each in parked}) == 2
        assert ledger(root).header.parked == 1
        assert wait.main([f"{STORE}/x", "--output-root", str(root), "--timeout", "5"]) == 3
        assert "parked tiles: 1" in capsys.readouterr().out
        assert consumer.stop() == 0


def test_what_was_complete_but_not_announced_is_announced_by_who_opens_it(
    make_consumer: MakeConsumer, producer: Channel, events: Events, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    with make_consumer() as consumer:
        for place in PLACES:
            send(producer, place)
        consumer.wait_settled(len(PLACES))
        assert consumer.stop() == 0
    # As if it had ended just before.
    header = replace(ledger(root).header, announced=False)
    (ledger_folder(root, STORE) / "x" / HEADER_NAME).write_bytes(encode_header(header))
    with make_consumer() as consumer:
        send(producer, PLACES[0])
        events.wait("array.completed", 2)
        wait_until(lambda: ledger(root).header.announced, "the ledger to say so")
        assert consumer.stop() == 0
    first, second = events.of("array.completed")
    assert first == second


def test_a_block_is_whole_with_what_an_earlier_consumer_wrote_of_it(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    for part in (PLACES[:3], PLACES[3:]):
        with make_consumer(idle_s=1000) as consumer:
            for number, place in enumerate(part):
                send(producer, place, value=len(part) + number)
            if part == PLACES[3:]:
                consumer.wait_settled(1)
                assert consumer.metrics()['tiles_blocks_written_total{reason="complete"}'] == 1
                assert consumer.metrics()["tiles_blocks_merged_total"] == 1
            else:
                wait_until(
                    lambda: consumer.metrics()["tiles_unacknowledged"] == 3, "all to be held"
                )
            assert consumer.stop() == 0
    stored = zarr.open_array(tmp_path / "root" / STORE, path="x", mode="r")
    corners = np.asarray(stored[:])[::TILE, ::TILE]
    assert corners.tolist() == [[3, 4], [5, 1]]
