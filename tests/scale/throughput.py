"""What partitions cost: one replica empties sixteen queues, and one queue, with the same tiles."""

import time
from dataclasses import replace
from statistics import median

from faults import Image
from harness import wait_until
from scale.stage import PARTITIONS, Stage

_LEAST = 0.9
_SIZE, _TILE = (1024, 1024), 256
_EXTRA = (("chunks", [1, 256, 256]), ("shards", [1, 512, 512]))
_AT_ONCE = 8
# Not counted, so that the start is not.
_FIRST = 0.1


def throughput(stage: Stage) -> None:
    """Measure pairs, one after the other, the first of a pair in turn; compare the medians."""
    pairs = 2 if stage.options.quick else 5
    ratios, rates = [], {1: [0.0], PARTITIONS: [0.0]}
    for number in range(pairs):
        order = (1, PARTITIONS) if number % 2 else (PARTITIONS, 1)
        pair = {partitions: _measure(stage, partitions, number) for partitions in order}
        ratios.append(pair[PARTITIONS] / pair[1])
        for partitions, rate in pair.items():
            rates[partitions].append(rate)
    stage.figures |= {
        "ratio": median(ratios),
        "least_ratio": min(ratios),
        "tiles_per_s_1": median(rates[1][1:]),
        f"tiles_per_s_{PARTITIONS}": median(rates[PARTITIONS][1:]),
    }
    if median(ratios) < _LEAST:
        shown = [round(ratio, 2) for ratio in ratios]
        stage.problem(f"{PARTITIONS} partitions have {shown} of the throughput of one")


def _measure(stage: Stage, partitions: int, number: int) -> float:
    """Return the tiles per second with which a replica empties queues that were full before."""
    images = _images(48 if stage.options.quick else 128)
    options = replace(stage.options, folder=stage.folder)
    name = f"{stage.name}{partitions}n{number}"
    with Stage(name, stage.broker, stage.balancing, options, partitions, defaults=True) as one:
        one.add_replicas(1)
        one.scale_to(1)
        one.scale_to(0)
        replica = one.replicas[0]
        count = _fill(one, images)
        one.scale_to(1)
        marks = []
        for share in (_FIRST, 1.0):
            wanted = int(share * count)
            wait_until(lambda: replica.settled() >= wanted, f"{wanted} tiles", 300.0)  # noqa: B023
            marks.append((time.monotonic(), replica.settled()))
        one.finish()
        stage.problems += one.problems
    (began, first), (ended, last) = marks
    return (last - first) / (ended - began)


def _images(count: int) -> list[Image]:
    return [Image(n, f"s{n:03}.zarr", "g/i", _SIZE, _TILE, _EXTRA) for n in range(count)]


def _fill(stage: Stage, images: list[Image]) -> int:
    """Publish all tiles of some images, a few images at a time, in the same order each time."""
    published = 0
    with stage.channel() as channel:
        for first in range(0, len(images), _AT_ONCE):
            few = images[first : first + _AT_ONCE]
            for place in few[0].places():
                for image in few:
                    channel.publish(image.message(place))
                    stage.oracle.note(image, place)
                    published += 1
    return published
