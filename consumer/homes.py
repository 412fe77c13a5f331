"""Which partitions a replica is to have, though nobody knows how many replicas there are.

Replica 0 has all. Each further one takes over some from those before it, always from whoever has
most, so that for every n the first n replicas have as many, but for one. Who takes a partition over
last ranks highest; where it goes, the partition falls back to whoever had it before.

RabbitMQ 4 has the single active consumer of a queue be the one of highest priority.
"""

import zlib
from itertools import count

# Of partitions that a replica never takes over: in another order for each, so that partitions
# without any of their own replicas do not all fall to the same one.
_RANKS = 1000


def holders(replicas: int, partitions: int) -> list[list[int]]:
    """Return for each partition the replicas that take it over one after the other, from 0."""
    taken: list[list[int]] = [[0] for _ in range(partitions)]
    held: dict[int, list[int]] = {0: list(range(partitions))}
    for replica in range(1, min(replicas, partitions)):
        mine: list[int] = []
        for _ in range(partitions // (replica + 1)):
            most = max(held, key=lambda other: (len(held[other]), -other))
            mine.append(held[most].pop())
        for partition in mine:
            taken[partition].append(replica)
        held[replica] = sorted(mine)
    return taken


def homes(replica: int, partitions: int) -> list[int]:
    """Return the partitions that a replica takes over."""
    taken = holders(replica + 1, partitions)
    return [partition for partition, by in zip(count(), taken) if replica in by]


def priorities(replica: int, partitions: int) -> list[int]:
    """Return the consumer priority of a replica on each partition."""
    mine = set(homes(replica, partitions))
    return [
        replica + 1 if partition in mine else _rank(replica, partition)
        for partition in range(partitions)
    ]


def _rank(replica: int, partition: int) -> int:
    """Return a priority below all of those who take the partition over (rendezvous hashing)."""
    return -1 - zlib.crc32(f"{partition}.{replica}".encode()) % _RANKS
