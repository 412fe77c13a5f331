"""What the scale runs judge by: each figure can say no."""

import os
from pathlib import Path

import pytest

from harness import ConsumerProcess
from scale import stage as scale_stage
from scale.brokers import Node, actives, busiest, subscribed_elsewhere
from scale.figures import (
    Pause,
    Tenure,
    Write,
    balanced,
    interleaved,
    late_writes,
    longest_pause,
    moved,
    spread,
    taken_over,
    unheld,
)
from scale.moving import Removal, judged
from scale.owners import Files
from scale.stage import Options, Stage
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
        {"queue_name": "q", "consumer_tag": "my-r0-0f", "active": "false"},
        {"queue_name": "q", "consumer_tag": "my-r1-1f", "active": "true"},
    ]
    assert actives(rows) == {"q": ["my-r1"]}


@pytest.mark.parametrize(
    ("active", "even", "expected"),
    [
        ({"a": ["r0"], "b": ["r1"]}, True, True),
        ({"a": ["r0"], "b": ["r0"]}, True, False),
        ({"a": ["r0"], "b": ["r0"]}, False, True),
        ({"a": ["r0"], "b": []}, False, False),
        ({"a": ["r0"], "b": ["r0", "r1"]}, False, False),
        ({"a": ["r0"], "b": ["r2"]}, False, False),
    ],
    ids=["even", "all at one", "uneven where that must do", "unheld", "two", "at one that goes"],
)
def test_a_balance_has_each_partition_at_one_of_those_that_stay(
    active: dict[str, list[str]], even: bool, expected: bool
) -> None:
    assert balanced(active, ["a", "b"], ["r0", "r1"], even=even) == expected


class Clock:
    """Stands still until somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Return its time."""
        return self.now


@pytest.mark.parametrize(("start_s", "problems"), [(20.0, 1), (14.0, 0)], ids=["late", "in time"])
def test_the_time_until_a_balance_has_the_start_of_replicas_in_it(
    start_s: float, problems: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, stage = Clock(), Stage("s", Node(), True, Options(tmp_path, True, 0), partitions=1)
    stage.add_replicas(1)
    monkeypatch.setattr(scale_stage, "time", clock)
    monkeypatch.setattr(scale_stage, "active", lambda _broker: {"s.00": ["r0"]})
    monkeypatch.setattr(ConsumerProcess, "start", lambda _self, **_: None)
    monkeypatch.setattr(
        Stage, "wait_ready", lambda _self, _replica: setattr(clock, "now", clock.now + start_s)
    )

    assert stage.resize(1, "0 to 1 replicas", 15.0) == (start_s, start_s)
    assert len(stage.problems) == problems


def _row(node: str, *, active: bool = True, name: str = "r0") -> dict[str, str]:
    pid = f"<{node}.1764498000.812.0>"
    return {
        "queue_name": "q",
        "consumer_tag": f"{name}-0f",
        "active": str(active).lower(),
        "channel_pid": pid,
    }


def test_a_consumer_that_stays_at_the_cut_node_is_not_elsewhere() -> None:
    rows = [_row("rabbit@a.example"), _row("rabbit@b.example", active=False, name="r1")]
    assert subscribed_elsewhere(rows, "rabbit@a.example") == {"q": ["r1"]}


def test_the_node_that_is_cut_has_active_consumers() -> None:
    one, other = Node(), Node()
    rows = [_row(one.name), _row(other.name, active=False), _row(other.name, active=False)]
    assert busiest(rows, [other, one]) is one


def test_a_cut_that_nobody_would_feel_is_none() -> None:
    with pytest.raises(AssertionError, match="no active consumer"):
        busiest([_row("rabbit@gone")], [Node()])


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


_TENURES = [Tenure(2, "r1", 10.0, 9.0), Tenure(1, "r0", 0.0, 0.0)]


@pytest.mark.parametrize(
    ("write", "late"),
    [
        (Write("r0", 5.0), False),
        (Write("r1", 11.0), False),
        (Write("r0", 11.0), True),
        (Write("r1", 5.0), True),
        (Write("r0", 10.05), False),
        (Write("r1", 9.5), False),
        (Write("r1", 8.5), True),
    ],
    ids=[
        "own",
        "own, later",
        "after another took it",
        "before it took it",
        "at the border",
        "before it was seen to have it",
        "before it can have had it",
    ],
)
def test_a_write_within_anothers_tenure_is_late(write: Write, late: bool) -> None:
    assert bool(late_writes(_TENURES, [write], 0.2)) == late


def test_numbers_begin_anew_once_a_store_was_let_go() -> None:
    again = [*_TENURES, Tenure(1, "r2", 20.0, 19.9)]
    assert not late_writes(again, [Write("r2", 25.0)], 0.2)
    assert late_writes(again, [Write("r1", 25.0)], 0.2)


def test_a_file_that_was_written_in_time_and_renamed_late_is_seen(tmp_path: Path) -> None:
    written, chunk = tmp_path / "written", tmp_path / "s.zarr" / "g/i/c/0/0/0"
    chunk.parent.mkdir(parents=True)
    written.touch()
    written.chmod(0o644)
    os.utime(written, (5.0, 5.0))
    written.rename(chunk)
    files = Files(tmp_path, ["s.zarr"])

    files.look()

    assert [write.at for write, _ in late_writes(_TENURES, files.writes("s.zarr"), 0.2)] == [
        chunk.stat().st_ctime
    ]


def test_stores_written_one_after_the_other_are_not_interleaved() -> None:
    one, other = [Write("r0", 1.0), Write("r0", 2.0)], [Write("r1", 3.0), Write("r1", 4.0)]
    assert not interleaved(one, other)


def test_stores_written_by_the_same_replica_are_not_interleaved() -> None:
    one, other = [Write("r0", 1.0), Write("r0", 3.0)], [Write("r0", 2.0), Write("r0", 4.0)]
    assert not interleaved(one, other)


def test_stores_written_at_the_same_time_by_two_replicas_are_interleaved() -> None:
    one, other = [Write("r0", 1.0), Write("r0", 2.5)], [Write("r1", 2.0), Write("r1", 4.0)]
    assert interleaved(one, other)
    assert interleaved(other, one)


def test_a_store_that_went_away_and_came_back_was_not_written_at_the_same_time() -> None:
    here = [Write("r0", at) for at in (1.0, 2.0, 25.0, 26.0)]
    there = [Write("r1", at) for at in (14.0, 15.0)]
    assert not interleaved([*here, *there], [*there, *here])


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


_QUEUES = ["q.4.00", "q.4.01"]


@pytest.mark.parametrize(
    ("refused", "done"),
    [
        (Removal(0, _QUEUES), Removal(0, [])),
        (Removal(1, _QUEUES[:1]), Removal(0, [])),
        (Removal(1, _QUEUES), Removal(1, [])),
        (Removal(1, _QUEUES), Removal(0, _QUEUES[1:])),
    ],
    ids=["not refused", "removed with consumers", "fails", "one is left"],
)
def test_a_removal_that_is_wrong_is_told(refused: Removal, done: Removal) -> None:
    assert len(list(judged(_QUEUES, refused, done))) == 1


def test_a_removal_is_refused_first_and_complete_then() -> None:
    assert not list(judged(_QUEUES, Removal(1, _QUEUES), Removal(0, [])))
