"""What is published: as many stores for each partition, and tiles for each partition in turn.

So that no partition is without load, and a time without deliveries means something.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from chaos.images import Tile
from consumer.message import encode
from faults import Image
from harness import Channel, voxels, wait_until

EACH = 4
_SIZE, _TILE = (256, 256), 64
_EXTRA = (("chunks", [1, 64, 64]), ("shards", [1, 128, 128]))


def keys(count: int) -> list[str]:
    """Return store keys to choose from."""
    return [f"s{number:03}.zarr" for number in range(count)]


def routed(channel: Channel, queues: Sequence[str], among: Sequence[str]) -> dict[str, str]:
    """Return the queue that each store key is routed to; nobody else may be subscribed."""
    found: dict[str, str] = {}
    tile = voxels((1, 1, 1))
    connection = channel._connection
    tags = [
        channel.channel.basic_consume(
            queue,
            lambda _channel, method, _properties, _body, at=queue: found.update(
                {method.routing_key: at}
            ),
            auto_ack=True,
        )
        for queue in queues
    ]
    for key in among:
        fields = {"store": key, "array": "a", "axes": "CYX", "shape": [1, 1, 1]}
        fields["tiles"] = [{"stitch_coords": [0, 0]}]
        channel.publish(encode(fields, [tile]))

    def all_came() -> bool:
        connection.process_data_events(time_limit=0.1)
        return len(found) == len(among)

    wait_until(all_came, lambda: f"{len(among)} messages, of which {len(found)} came")
    for tag in tags:
        channel.channel.basic_cancel(tag)
    return found


def images(placed: Mapping[str, str], each: int = EACH) -> list[list[Image]]:
    """Return images by partition, each in a store of its own, equally many for each."""
    by_queue: dict[str, list[str]] = defaultdict(list)
    for key, queue in sorted(placed.items()):
        by_queue[queue].append(key)
    numbers = itertools.count()
    return [
        [Image(next(numbers), key, "g/i", _SIZE, _TILE, _EXTRA) for key in found[:each]]
        for _, found in sorted(by_queue.items())
    ]


def tiles(partitions: Sequence[Sequence[Image]], chance: random.Random) -> Iterator[Tile]:
    """Yield tiles for ever, of each partition's images in turn; after the last comes the first."""
    going = [_endless(images, chance) for images in partitions]
    for one in itertools.cycle(going):
        yield next(one)


def _endless(images: Sequence[Image], chance: random.Random) -> Iterator[Tile]:
    everything = [(image, place) for image in images for place in image.places()]
    while True:
        chance.shuffle(everything)
        yield from everything
