"""What the metrics of faults are taken from."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from consumer.announcer import Announcer
from consumer.blocks import ArrayKey
from consumer.depth import Depth
from consumer.faults import Faults
from consumer.metrics import Metrics

ARRAY, OTHER = ArrayKey("a.zarr", "x"), ArrayKey("b.zarr", "x")


# -- stores that fail ---------------------------------------------------------------------------


def test_the_store_that_failed_first_counts() -> None:
    faults = Faults(30)
    faults.note("a.zarr", now=10)
    faults.note("b.zarr", now=40)
    faults.note("a.zarr", now=50)
    assert faults.longest(100, {"a.zarr", "b.zarr"}) == 90
    faults.clear("a.zarr")
    assert faults.longest(100, {"a.zarr", "b.zarr"}) == 60


def test_a_store_of_which_nothing_is_held_does_not_count() -> None:
    faults = Faults(30)
    faults.note("a.zarr", now=10)
    assert faults.longest(100, {"b.zarr"}) == 0


# -- completions --------------------------------------------------------------------------------


class Unheard:
    """A broker and a storage that never answer, until told to."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def announce(self, _event: Any, done: Any) -> None:
        self.asked.append(done)

    def remark(self, _array: ArrayKey, done: Any, **_said: Any) -> None:
        done(None, None)


def test_a_completion_is_overdue_until_it_is_announced() -> None:
    unheard = Unheard()
    announcer = Announcer(unheard, unheard, lambda _delivery: None, interval_s=1)  # type: ignore[arg-type] # as far as it is used
    assert announcer.overdue(5) == 0
    announcer.completed(ARRAY, None, None, now=10)
    announcer.completed(OTHER, None, None, now=20)
    announcer.completed(ARRAY, None, None, now=30)
    assert announcer.overdue(100) == 90
    unheard.asked[0](True)
    assert announcer.overdue(100) == 80
    unheard.asked[1](True)
    assert announcer.overdue(100) == 0


# -- messages that wait -------------------------------------------------------------------------


class AskedChannel:
    """A channel on which the broker is asked."""

    is_open = True

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def queue_declare(self, queue: str, *, passive: bool, callback: Any) -> None:
        assert (queue, passive) == ("tiles.00", True)
        self.asked.append(callback)

    def answer(self, count: int, consumers: int = 1) -> None:
        declared = SimpleNamespace(message_count=count, consumer_count=consumers)
        self.asked[-1](SimpleNamespace(method=declared))


@pytest.fixture
def noted() -> list[float]:
    """What a depth was told."""
    return []


@pytest.fixture
def depth(noted: list[float]) -> Depth:
    """A depth of the queue `tiles.00`."""
    return Depth("tiles.00", noted.append)


def test_how_many_messages_wait_is_asked_now_and_then(depth: Depth, noted: list[float]) -> None:
    channel = AskedChannel()
    depth.watch(channel, 0)
    channel.answer(7)
    depth.watch(channel, 9)
    assert (noted[-1], len(channel.asked)) == (7, 1)
    depth.watch(channel, 10)
    channel.answer(0)
    assert (noted[-1], len(channel.asked)) == (0, 2)


def test_a_silent_leader_does_not_say_that_nothing_waits(depth: Depth, noted: list[float]) -> None:
    channel = AskedChannel()
    depth.watch(channel, 0)
    channel.answer(7)
    depth.watch(channel, 10)
    channel.answer(0, consumers=0)
    assert noted[-1] == 7


def test_messages_that_wait_without_a_consumer_count(depth: Depth, noted: list[float]) -> None:
    channel = AskedChannel()
    depth.watch(channel, 0)
    channel.answer(7, consumers=0)
    assert noted[-1] == 7


def test_nothing_more_is_asked_before_the_answer(depth: Depth) -> None:
    channel = AskedChannel()
    for now in (0, 10, 100):
        depth.watch(channel, now)
    assert len(channel.asked) == 1


def test_without_a_channel_nobody_knows_how_many_wait(depth: Depth, noted: list[float]) -> None:
    channel = AskedChannel()
    depth.watch(channel, 0)
    channel.answer(7)
    depth.watch(None, 1)
    assert math.isnan(noted[-1])


def test_an_answer_on_a_channel_that_is_gone_does_not_count(
    depth: Depth, noted: list[float]
) -> None:
    first, second = AskedChannel(), AskedChannel()
    depth.watch(first, 0)
    depth.watch(second, 1)
    first.answer(7)
    assert math.isnan(noted[-1])
    second.answer(3)
    assert noted[-1] == 3


def test_a_closed_channel_is_not_asked(depth: Depth) -> None:
    channel = AskedChannel()
    channel.is_open = False
    depth.watch(channel, 0)
    assert channel.asked == []


# -- before anything is known -------------------------------------------------------------------


def test_each_partition_is_shown_from_the_start() -> None:
    registry = Metrics(partitions=("00", "01")).registry

    def value(name: str, partition: str) -> float | None:
        return registry.get_sample_value(f"tiles_partition_{name}", {"partition": partition})

    for partition in ("00", "01"):
        assert math.isnan(value("waiting_messages", partition) or 0)
        assert value("last_delivery_timestamp_seconds", partition) == 0
        assert value("oldest_unacknowledged_seconds", partition) == 0
