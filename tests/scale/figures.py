"""What is made of what was seen: pure functions, so that they can be tried on their own."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

AT_ONCE_S = 2.0


def unheld(active: Mapping[str, Sequence[str]], partitions: Iterable[str]) -> dict[str, list[str]]:
    """Return the partitions that have no active consumer, or more than one, with those."""
    held = {partition: list(active.get(partition, ())) for partition in partitions}
    return {partition: by for partition, by in held.items() if len(by) != 1}


def spread(active: Mapping[str, Sequence[str]], replicas: Collection[str]) -> int:
    """Return how many more partitions the replica with most has than the one with least.

    A replica without any counts, and a consumer that is none of the replicas' counts as one more.
    """
    counts = Counter(dict.fromkeys(replicas, 0))
    counts.update(name for names in active.values() for name in names)
    return max(counts.values()) - min(counts.values())


def balanced(
    active: Mapping[str, Sequence[str]],
    partitions: Sequence[str],
    replicas: Collection[str],
    *,
    even: bool,
) -> bool:
    """Whether each partition has one active consumer, of these replicas, and they share evenly."""
    mine = {partition: active.get(partition, ()) for partition in partitions}
    if unheld(mine, partitions) or not set(chain(*mine.values())) <= set(replicas):
        return False
    return not even or spread(mine, replicas) <= 1


@dataclass(frozen=True)
class Pause:
    """A time without deliveries: how long, and to whom the last and the next came, if any."""

    seconds: float
    last: str
    following: str


def longest_pause(deliveries: Mapping[float, str], begin: float, end: float) -> Pause:
    """Return the longest time without a delivery within a span of time, its ends included."""
    within = sorted(time for time in deliveries if begin < time < end)
    return max(
        (
            Pause(later - earlier, deliveries.get(earlier, "-"), deliveries.get(later, "-"))
            for earlier, later in pairwise([begin, *within, end])
        ),
        key=lambda pause: pause.seconds,
    )


def taken_over(deliveries: Mapping[float, str], since: float, victim: str) -> float | None:
    """Return the seconds until another than the victim was delivered to; None: not yet."""
    later = [time for time, name in deliveries.items() if time > since and name != victim]
    return min(later) - since if later else None


def moved(before: Mapping[str, str], after: Mapping[str, str]) -> int:
    """Return how many keys are in another queue than before; one that is gone counts as well."""
    return sum(after.get(key) != queue for key, queue in before.items())


@dataclass(frozen=True)
class Tenure:
    """An epoch of a store that was seen: whose it is, and since when, Unix.

    Attributes
    ----------
    since : float
        When it was first seen.
    after : float
        When it was last not seen: it began between the two.
    """

    number: int
    replica: str
    since: float
    after: float


@dataclass(frozen=True)
class Write:
    """A file of a store that was seen: who wrote it, and when, Unix."""

    replica: str
    at: float


def late_writes(
    tenures: Iterable[Tenure], writes: Iterable[Write], slack_s: float
) -> list[tuple[Write, Tenure]]:
    """Return the writes to one store within the tenure of another than who wrote, with that.

    A tenure lasts until the next one's beginning. Both are only known to lie between two looks:
    that time is left out, and so much more for the clocks of files. Numbers order what was first
    seen at once; once a store is let go they begin anew.
    """
    ordered = sorted(tenures, key=lambda each: (each.since, each.number))
    ends = [each.after for each in ordered[1:]] + [float("inf")]
    return [
        (write, tenure)
        for write in writes
        for tenure, end in zip(ordered, ends, strict=True)
        if tenure.since + slack_s < write.at < end - slack_s and write.replica != tenure.replica
    ]


def interleaved(one: Iterable[Write], other: Iterable[Write]) -> bool:
    """Whether two stores were written at the same time, each by one replica and not the same.

    So it is where one of them is written by a replica before and after, within `AT_ONCE_S`, another
    writes the other: in so short a time it does not lose the store and get it back.
    """
    some, others = list(one), list(other)
    return _written_between(some, others) or _written_between(others, some)


def _written_between(one: Iterable[Write], other: Iterable[Write]) -> bool:
    ordered = sorted(one, key=lambda write: write.at)
    return any(
        before.replica == after.replica != write.replica and before.at < write.at < after.at
        for before, after in pairwise(ordered)
        if after.at - before.at < AT_ONCE_S
        for write in other
    )
