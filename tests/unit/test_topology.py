"""The names, arguments and bindings of one partition and of several."""

from typing import Any

import pytest

from consumer import ring
from consumer.findings import Verdict
from consumer.questions import FORBIDDEN, NOT_FOUND, Reply
from consumer.settings import TopologySettings
from consumer.topology import Binding, Exchange, Queue, Topology, labels, topology


def of(partitions: int, prefix: str = "tiles") -> Topology:
    """Return the topology of so many partitions."""
    return topology(TopologySettings(partitions=partitions, topology_prefix=prefix))


def test_one_partition_needs_no_plugin() -> None:
    wanted = of(1)
    assert [exchange.type for exchange in wanted.exchanges] == ["topic"] * 3
    assert [queue.name for queue in wanted.partitions] == ["tiles.00"]
    assert wanted.entrance == Binding("tiles", "tiles.00", "#")


def test_several_are_behind_a_consistent_hash_exchange() -> None:
    wanted = of(4)
    assert wanted.ring is not None
    assert (wanted.ring.name, wanted.ring.type) == ("tiles.4", "x-consistent-hash")
    assert [q.name for q in wanted.partitions] == [f"tiles.4.0{n}" for n in range(4)]
    assert wanted.entrance == Binding("tiles", "tiles.4", "#", to_exchange=True)


def test_partitions_are_bound_in_sorted_order_with_weight_1_before_anything_comes() -> None:
    *_, first, second, third, through = of(3).bindings
    assert [(b.source, b.destination, b.routing_key) for b in (first, second, third)] == [
        ("tiles.3", f"tiles.3.0{n}", "1") for n in range(3)
    ]
    assert through == of(3).entrance


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 256])
def test_labels_sort_as_their_numbers_do(count: int) -> None:
    names = labels(count)
    assert names == sorted(names)
    assert [int(name) for name in names] == list(range(count))
    assert all(len(name) >= 2 for name in names)


def test_rings_of_different_sizes_share_no_queue() -> None:
    queues = [queue.name for count in (1, 4, 8, 16) for queue in of(count).partitions]
    assert len(set(queues)) == len(queues)


def test_every_partition_has_the_same_arguments() -> None:
    assert len({str(queue.arguments) for queue in of(8).partitions}) == 1


class _Refusing:
    """Channels of a user who may not unbind; what is deleted is noted."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.deleted_names: list[str] = []

    def bound(self, _binding: Binding, *, away: bool) -> Reply:
        assert away
        return Reply(code=self.code, words="refused")

    def counted(self, _queue: str) -> Reply:
        return Reply((0, 0))

    def deleted(self, thing: Exchange | Queue) -> Reply:
        self.deleted_names.append(thing.name)
        return Reply()


@pytest.mark.parametrize(("code", "count"), [(FORBIDDEN, 0), (NOT_FOUND, 5), (0, 5)])
def test_partitions_to_which_tiles_may_still_come_are_not_removed(code: int, count: int) -> None:
    channels: Any = _Refusing(code)
    old = topology(TopologySettings(partitions=4))
    findings = list(ring.removed(channels, old))
    assert len(channels.deleted_names) == count
    assert any(each.verdict is Verdict.FAILED for each in findings) == (code == FORBIDDEN)
