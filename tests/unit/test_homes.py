"""Every number of replicas shares the partitions evenly, and whoever goes is stood in for."""

import pytest

from consumer.homes import holders, homes, priorities

MOST_REPLICAS = 40
PARTITIONS = range(1, 65)


def _active(replicas: list[int], partitions: int) -> list[int]:
    """Return each partition's replica of highest priority: the one that RabbitMQ 4 lets consume."""
    ranks = {replica: priorities(replica, partitions) for replica in replicas}
    return [max(replicas, key=lambda r: ranks[r][number]) for number in range(partitions)]


@pytest.mark.parametrize("partitions", PARTITIONS)
def test_any_number_of_replicas_have_as_many_partitions_but_for_one(partitions: int) -> None:
    for count in range(1, MOST_REPLICAS + 1):
        active = _active(list(range(count)), partitions)
        shares = [active.count(replica) for replica in range(count)]
        assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("partitions", PARTITIONS)
def test_a_further_replica_moves_no_more_than_its_own_share(partitions: int) -> None:
    for count in range(1, MOST_REPLICAS):
        before = _active(list(range(count)), partitions)
        after = _active(list(range(count + 1)), partitions)
        moved = [new for old, new in zip(before, after, strict=True) if old != new]
        assert moved == [count] * (partitions // (count + 1))


@pytest.mark.parametrize("gone", range(1, 6))
def test_a_partition_falls_back_to_whoever_had_it_before(gone: int) -> None:
    left = [replica for replica in range(6) if replica != gone]
    active = _active(left, 16)
    for number, by in enumerate(holders(6, 16)):
        assert active[number] == [replica for replica in by if replica != gone][-1]


def test_the_partitions_of_the_first_replica_go_to_more_than_one_other() -> None:
    active = _active([1, 2, 3], 16)
    orphans = [number for number, by in enumerate(holders(4, 16)) if by == [0]]
    assert len({active[number] for number in orphans}) > 1


def test_one_replica_has_all_partitions_at_the_lowest_of_the_takers_ranks() -> None:
    assert homes(0, 16) == list(range(16))
    assert priorities(0, 16) == [1] * 16


def test_who_never_takes_a_partition_over_ranks_below_all_who_do() -> None:
    for replica in range(1, MOST_REPLICAS):
        mine = set(homes(replica, 16))
        for number, rank in enumerate(priorities(replica, 16)):
            assert rank == replica + 1 if number in mine else -1001 < rank < 0


def test_replicas_beyond_the_partitions_only_stand_by() -> None:
    assert homes(16, 16) == homes(999_999, 16) == []
