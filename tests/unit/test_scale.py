"""What the scale runs judge by: each figure can say no."""

import pytest

from scale.brokers import actives
from scale.figures import (
    Pause,
    Tenure,
    Write,
    interleaved,
    late_writes,
    longest_pause,
    moved,
    spread,
    taken_over,
    unheld,
)
from scale.watch import Watch


def test_a_partition_without_an_active_consumer_is_unheld() -> None:
    assert unheld({"q.00": ["r0"]}, ["q.00", "q.01"]) == {"q.01": []}


def test_a_partition_with_two_active_consumers_is_unheld() -> None:
    assert unheld({"q.00": ["r0", "r1"]}, ["q.00"]) == {"q.00": ["r0", "r1"]}


def test_a_partition_with_one_active_consumer_is_held() -> None:
    assert not unheld({"q.00": ["r0"], "other": []}, ["q.00"])


@pytest.mark.parametrize(
    ("active", "expected"),
    [
        ({"a": ["r0"], "b": ["r1"]}, 0),
        ({"a": ["r0"], "b": ["r0"]}, 2),
        ({"a": ["r0"], "b": ["r0"], "c": ["r1"]}, 1),
        ({}, 0),
        ({"a": ["r0"], "b": ["gone"], "c": ["gone"], "d": ["r1"]}, 1),
    ],
    ids=["even", "all at one", "uneven", "none", "at one that is gone"],
)
def test_the_spread_counts_replicas_without_partitions(
    active: dict[str, list[str]], expected: int
) -> None:
    assert spread(active, ["r0", "r1"]) == expected


def test_only_active_consumers_count_and_their_tags_tell_the_replica() -> None:
    rows = [
        {"queue_name": "q", "consumer_tag": "my-r0-0f", "active": False},
        {"queue_name": "q", "consumer_tag": "my-r1-1f", "active": True},
    ]
    assert actives(rows) == {"q": ["my-r1"]}


def test_a_pause_at_the_end_counts() -> None:
    assert longest_pause({1.0: "r0", 2.0: "r0", 3.0: "r1"}, 0.0, 9.0) == Pause(6.0, "r1", "-")


def test_a_pause_without_any_delivery_is_the_whole_span() -> None:
    assert longest_pause({20.0: "r0"}, 0.0, 9.0).seconds == 9.0


def test_a_pause_tells_between_whom_it_was() -> None:
    deliveries = {1.0: "r0", 2.0: "r0", 5.0: "r1", 6.0: "r1"}
    assert longest_pause(deliveries, 0.5, 7.0) == Pause(3.0, "r0", "r1")


def test_the_victims_own_deliveries_take_nothing_over() -> None:
    deliveries = {9.0: "r1", 10.5: "r0", 12.0: "r1"}
    assert taken_over(deliveries, 10.0, "r0") == 2.0
    assert taken_over(deliveries, 10.0, "r1") == 0.5
    assert taken_over({9.0: "r1"}, 10.0, "r0") is None


def test_a_key_that_is_gone_has_moved() -> None:
    assert moved({"a": "q0", "b": "q1", "c": "q2"}, {"a": "q0", "b": "q0"}) == 2


_TENURES = [Tenure(2, "r1", 10.0), Tenure(1, "r0", 0.0)]


@pytest.mark.parametrize(
    ("write", "late"),
    [
        (Write("r0", 5.0), False),
        (Write("r1", 11.0), False),
        (Write("r0", 11.0), True),
        (Write("r1", 5.0), True),
        (Write("r0", 10.05), False),
    ],
    ids=["own", "own, later", "after another took it", "before it took it", "at the border"],
)
def test_a_write_within_anothers_tenure_is_late(write: Write, late: bool) -> None:
    assert bool(late_writes(_TENURES, [write], 0.2)) == late


def test_stores_written_one_after_the_other_are_not_interleaved() -> None:
    one, other = [Write("r0", 1.0), Write("r0", 2.0)], [Write("r1", 3.0), Write("r1", 4.0)]
    assert not interleaved(one, other)


def test_stores_written_by_the_same_replica_are_not_interleaved() -> None:
    one, other = [Write("r0", 1.0), Write("r0", 3.0)], [Write("r0", 2.0), Write("r0", 4.0)]
    assert not interleaved(one, other)


def test_stores_written_at_the_same_time_by_two_replicas_are_interleaved() -> None:
    one, other = [Write("r0", 1.0), Write("r0", 3.0)], [Write("r1", 2.0), Write("r1", 4.0)]
    assert interleaved(one, other)


def test_redeliveries_of_a_replica_that_was_started_again_add_up() -> None:
    watch = Watch([])
    for pid, count in ((1, 3.0), (1, 4.0), (2, 1.0)):
        watch.note("r0", pid, {"tiles_redeliveries_total": count})
    assert watch.redelivered == 5


def test_each_partitions_deliveries_are_its_own() -> None:
    watch = Watch([])
    name = 'tiles_partition_last_delivery_timestamp_seconds{partition="%s"}'
    found = {name % "00": 7.0, name % "01": 0.0, "tiles_redeliveries_total": 0.0}
    watch.note("r0", 1, found)
    assert watch.seen("00") == {7.0: "r0"}
    assert watch.delivered_since(["00", "01"], 6.0) == ["00"]
