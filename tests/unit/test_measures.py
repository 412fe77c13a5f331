"""What the metrics of faults are taken from."""

import math
from contextlib import closing
from pathlib import Path
from typing import Any

from flowing import FlowBench

from consumer.announcer import Announcer
from consumer.blocks import ArrayKey, DeliveryId
from consumer.errors import StorageFault
from consumer.events import ArrayCompleted
from consumer.faults import Faults
from consumer.metrics import Metrics
from consumer.scratch import Scratch

ARRAY, OTHER = ArrayKey("a.zarr", "x"), ArrayKey("b.zarr", "x")


# -- stores that fail ---------------------------------------------------------------------------


def test_the_store_that_failed_first_counts() -> None:
    faults = Faults(30)
    faults.note("a.zarr", now=10)
    faults.note("b.zarr", now=40)
    faults.note("a.zarr", now=50)
    assert faults.longest(100, {"a.zarr", "b.zarr"}) == 90
    faults.note_opened("a.zarr")
    assert faults.longest(100, {"a.zarr", "b.zarr"}) == 60


def test_a_store_of_which_nothing_is_held_does_not_count() -> None:
    faults = Faults(30)
    faults.note("a.zarr", now=10)
    assert faults.longest(100, {"b.zarr"}) == 0


def test_a_store_that_is_not_wanted_any_more_is_forgotten() -> None:
    faults = Faults(30)
    faults.note("a.zarr", now=10)
    for now in range(11, 300):
        faults.watch(now, {"a.zarr"})
    # Given back, and delivered again at once.
    assert faults.watch(320, set()) == 0
    assert faults.watch(321, {"a.zarr"}) == 311
    assert faults.watch(400, set()) == 0
    assert faults.watch(401, {"a.zarr"}) == 0
    assert not faults


def test_only_a_write_shows_that_a_store_works_that_could_not_be_written() -> None:
    faults = Faults(30)
    faults.note("a.zarr", now=10, writing=True)
    faults.note("a.zarr", now=20)
    faults.note_opened("a.zarr")
    assert faults.longest(100, {"a.zarr"}) == 90
    assert faults.note_written("a.zarr")
    assert not faults


def test_a_store_that_opens_and_cannot_be_written_fails_for_as_long_as_that_lasts(
    tmp_path: Path,
) -> None:
    with closing(Scratch(tmp_path, 1 << 20)) as scratch:
        bench = FlowBench(tmp_path, scratch)
        bench.failing[0, 0] = StorageFault("errno 5")
        tile = {"stitch_coords": [0, 0], "crop_size": [4, 4]}
        bench.deliver(1, tile)
        for tag in range(2, 6):
            while len(bench.given_up) < tag - 1:
                bench.tick(5.0)
            bench.deliver(tag, tile)
        bench.tick(5.0)
        assert bench.value("tiles_retrying_seconds") > 1700
        bench.failing.clear()
        while not bench.acknowledged:
            bench.tick(5.0)
        bench.tick(5.0)
        assert bench.value("tiles_retrying_seconds") == 0


# -- completions --------------------------------------------------------------------------------


class Unheard:
    """A broker and a storage that never answer, until told to."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.announced: list[str | None] = []

    def announce(self, _event: Any, done: Any) -> None:
        self.asked.append(done)

    def remark(self, _array: ArrayKey, done: Any, *, announced: str | None) -> None:
        self.announced.append(announced)
        done(None, None)


def completion(
    array: ArrayKey, ledger: str | None = None, run: str | None = None
) -> ArrayCompleted:
    """Return the event that an array is complete."""
    return ArrayCompleted(store=array.store, array=array.path, run=run, ledger=ledger)


def test_a_run_that_ends_while_the_one_before_is_announced_is_announced_too() -> None:
    unheard, acknowledged = Unheard(), list[Any]()
    announcer = Announcer(unheard, unheard, acknowledged.append, interval_s=1)  # type: ignore[arg-type] # as far as it is used
    announcer.completed(completion(ARRAY, "first"), [DeliveryId(1, 1)], now=10)
    announcer.completed(completion(ARRAY, "second"), [DeliveryId(1, 2)], now=20)
    announcer.completed(completion(ARRAY, "second", "7"), [DeliveryId(1, 3)], now=30)
    assert len(unheard.asked) == 2
    for asked in unheard.asked:
        assert announcer.announces(ARRAY)
        asked(True)
    assert not announcer.announces(ARRAY)
    assert acknowledged == [DeliveryId(1, number) for number in (1, 2, 3)]
    assert unheard.announced == ["first", "second"]


def test_a_completion_is_overdue_until_it_is_announced() -> None:
    unheard = Unheard()
    announcer = Announcer(unheard, unheard, lambda _delivery: None, interval_s=1)  # type: ignore[arg-type] # as far as it is used
    assert announcer.overdue(5) == 0
    announcer.completed(completion(ARRAY), now=10)
    announcer.completed(completion(OTHER), now=20)
    announcer.completed(completion(ARRAY), now=30)
    assert announcer.overdue(100) == 90
    unheard.asked[0](True)
    assert announcer.overdue(100) == 80
    unheard.asked[1](True)
    assert announcer.overdue(100) == 0


def test_who_waits_for_an_array_that_is_filled_once_more_hears_it_before_it_is_forgotten() -> None:
    unheard = Unheard()
    announcer = Announcer(unheard, unheard, lambda _delivery: None, interval_s=30)  # type: ignore[arg-type] # as far as it is used

    def bound(_array: ArrayKey) -> tuple[None, None]:
        return None, None

    def waited_for() -> bool:
        return announcer.announces(ARRAY)

    announcer.written(ARRAY, 100, 100)
    announcer.tick(10.0, bound)
    unheard.asked[0](True)
    assert not waited_for()
    announcer.written(ARRAY, 100, 100)
    assert waited_for()
    announcer.tick(10.5, bound)
    assert len(unheard.asked) == 1
    announcer.tick(11.5, bound)
    assert len(unheard.asked) == 2
    assert not waited_for()
    unheard.asked[1](True)
    assert not waited_for()
    announcer.written(OTHER, 100, 50)
    assert not announcer.announces(OTHER)


# -- before anything is known -------------------------------------------------------------------


def test_each_partition_is_shown_from_the_start() -> None:
    registry = Metrics(partitions=("00", "01")).registry

    def value(name: str, partition: str) -> float | None:
        return registry.get_sample_value(f"tiles_partition_{name}", {"partition": partition})

    for partition in ("00", "01"):
        assert math.isnan(value("waiting_messages", partition) or 0)
        assert value("last_delivery_timestamp_seconds", partition) == 0
        assert value("oldest_unacknowledged_seconds", partition) == 0
