"""Two consumers that both own what they write: the broker's exclusivity bypassed."""

import itertools

from chaos.images import Tile, tiles
from chaos.producer import publish_tile
from chaos.stage import Stage

_RATE = 60.0


def two_owners(stage: Stage, count: int) -> None:
    """Send the tiles of the same blocks to two queues at random; each has a consumer of its own."""
    fleets = [stage.start(count=1, idle_s=0.3) for _ in range(2)]
    shares: tuple[list[Tile], list[Tile]] = ([], [])
    for tile in itertools.islice(tiles(stage.chance), count):
        stage.chance.choice(shares).append(tile)
    producers = [
        stage.enter(
            stage.publishing(
                [publish_tile(stage.oracle, tile) for tile in share],
                rate=_RATE,
                prefix=fleet.prefix,
            )
        )
        for share, fleet in zip(shares, fleets, strict=True)
    ]
    for producer in producers:
        producer.wait()
    stage.faults = count
