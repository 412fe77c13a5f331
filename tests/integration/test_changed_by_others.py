"""Arrays that somebody resets or removes while a consumer has them open and nothing to write."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from conftest import MakeConsumer
from consumer.blocks import ArrayKey
from consumer.commands.reset import reset
from consumer.ledger import Ledger
from consumer.ledger_files import read_present
from consumer.settings import Settings
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
    "run": "first",
}
PLACES = [(y, x) for y in range(0, SIDE, TILE) for x in range(0, SIDE, TILE)]


def send(producer: Channel, place: tuple[int, int], value: int, **changes: Any) -> None:
    """Publish a tile."""
    fields = FIELDS | {"tiles": [{"stitch_coords": list(place)}]} | changes
    producer.send(fields, [np.full((1, TILE, TILE), value, fields["dtype"])])


def stored(root: Path) -> list[int]:
    """Return the value of each place."""
    array: Any = zarr.open_array(root / STORE, path="x", mode="r")
    return [int(array[place]) for place in PLACES]


def forget(root: Path) -> None:
    """Do as `consumer reset` does."""
    reset(Settings(output_root=root), ArrayKey(STORE, "x"))


def recorded(root: Path) -> Ledger:
    """Return the ledger as it is stored."""
    ledger, _ = read_present(root, ArrayKey(STORE, "x"))
    assert ledger is not None
    return ledger


def parked(producer: Channel) -> list[str]:
    """Return why messages were parked."""
    drained = producer.drain(f"{producer.prefix}.parked")
    return [properties.headers["x-tiles-reason"] for properties, _ in drained]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def consumer(make_consumer: MakeConsumer, producer: Channel) -> ConsumerProcess:
    """Return a consumer that has written a part of an array, and has it open."""
    consumer = make_consumer(idle_s=0.2).start()
    for place in PLACES[:2]:
        send(producer, place, 1)
    consumer.wait_settled(2)
    return consumer


def test_another_run_fills_what_was_reset(
    consumer: ConsumerProcess, producer: Channel, root: Path
) -> None:
    forget(root)
    for place in PLACES:
        send(producer, place, 2, run="second")
    consumer.wait_settled(2 + len(PLACES))
    assert stored(root) == [2] * len(PLACES)
    assert parked(producer) == []


def test_a_store_that_was_removed_is_made_with_another_layout(
    consumer: ConsumerProcess, producer: Channel, root: Path
) -> None:
    shutil.rmtree(root / STORE)
    for place in PLACES:
        send(producer, place, 3, dtype="uint8", shards=None, run="second")
    consumer.wait_settled(2 + len(PLACES))
    array: Any = zarr.open_array(root / STORE, path="x", mode="r")
    assert (array.dtype, array.shards) == (np.uint8, None)
    assert stored(root) == [3] * len(PLACES)
    assert parked(producer) == []
    assert consumer.metrics()["tiles_redeliveries_total"] == 0


def test_an_array_that_was_removed_is_made_with_another_layout(
    consumer: ConsumerProcess, producer: Channel, root: Path
) -> None:
    shutil.rmtree(root / STORE / "x")
    for place in PLACES:
        send(producer, place, 3, dtype="uint8", shards=None)
    consumer.wait_settled(2 + len(PLACES))
    assert stored(root) == [3] * len(PLACES)
    assert parked(producer) == []


def test_a_message_that_only_what_was_reset_spoke_against_is_refused_for_what_is_there(
    consumer: ConsumerProcess, producer: Channel, root: Path
) -> None:
    forget(root)
    send(producer, PLACES[2], 2, run="second")
    send(producer, PLACES[3], 2)
    send(producer, PLACES[3], 2, run="second")
    consumer.wait_settled(5)
    assert stored(root) == [1, 1, 2, 2]
    assert parked(producer) == ["run_conflict"]


def test_what_is_refused_while_an_array_is_made_does_not_divide_its_ledger(
    make_consumer: MakeConsumer, producer: Channel, root: Path
) -> None:
    consumer = make_consumer(idle_s=0.1, failpoints="commit.sync_folder=sleep:1#1").start()
    send(producer, PLACES[0], 1)
    wait_until((root / STORE / "x/zarr.json").exists, consumer.tail)
    send(producer, PLACES[0], 1, dtype="uint8")
    consumer.wait_settled(2)
    for place in PLACES[1:]:
        send(producer, place, 1)
    consumer.wait_settled(1 + len(PLACES))
    assert parked(producer) == ["array_mismatch"]
    assert stored(root) == [1] * len(PLACES)
    ledger = recorded(root)
    assert (ledger.complete, ledger.header.parked) == (True, 1)


@pytest.mark.parametrize("folder", [f"{STORE}/x/c", f".tiles/{STORE}/ledger/x"])
def test_a_folder_that_was_removed_below_an_array_is_made_again(
    consumer: ConsumerProcess, producer: Channel, root: Path, folder: str
) -> None:
    shutil.rmtree(root / folder)
    for place in PLACES:
        send(producer, place, 2)
    consumer.wait_settled(2 + len(PLACES))
    assert stored(root) == [2] * len(PLACES)
    assert parked(producer) == []


def test_while_an_array_is_removed_nothing_of_it_is_parked(
    consumer: ConsumerProcess, producer: Channel, root: Path
) -> None:
    metadata, leftover = root / STORE / "x/zarr.json", root / STORE / "x/c/0/0"
    assert leftover.exists()
    metadata.unlink()
    send(producer, PLACES[0], 3)
    wait_until(lambda: "the folder is not empty" in consumer.tail(), consumer.tail)
    for place in PLACES[1:]:
        send(producer, place, 3)
    time.sleep(1.0)
    shutil.rmtree(root / STORE / "x")
    consumer.wait_settled(2 + len(PLACES))
    assert stored(root) == [3] * len(PLACES)
    assert parked(producer) == []


@pytest.mark.parametrize("refused", [{"dtype": "uint8"}, {"array": "x/y"}], ids=str)
def test_what_is_refused_after_a_reset_is_parked_and_disturbs_nothing(
    consumer: ConsumerProcess, producer: Channel, root: Path, refused: dict[str, Any]
) -> None:
    forget(root)
    for _ in range(8):
        send(producer, PLACES[3], 2, **refused)
    consumer.wait_settled(2 + 8)
    assert parked(producer) == ["array_mismatch"] * 8
    assert recorded(root).header.parked == (8 if "dtype" in refused else 0)
    send(producer, PLACES[2], 2)
    consumer.wait_settled(2 + 8 + 1)
    assert stored(root) == [1, 1, 2, 0]
    assert consumer.metrics()["tiles_redeliveries_total"] == 0
