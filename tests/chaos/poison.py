"""Messages that can never be written, and one that kills whoever takes it, among good tiles."""

import itertools
from collections.abc import Iterator
from functools import partial

from bad_messages import (
    BAD,
    FULL,
    NESTED,
    TILE,
    UNREADABLE,
    Case,
    entry,
    place,
    prepare,
    said,
    unchecked,
)
from chaos.crashes import kill_one
from chaos.images import tiles
from chaos.oracle import snapshot
from chaos.producer import Publish, publish_tile
from chaos.stage import Stage
from faults import Image
from harness import Channel, wait_until

_KILLS_QUICK, _KILLS = 3, 20
_DEPTHS_APART = 30
_RATE = 300.0
# An array that was sent with a source and a run: others are refused.
_BOUND = Image(254, "bound.zarr", "img", (256, 256), 64, (("source", "file:///a"), ("run", "1")))
_CONFLICTS = {"source_conflict", "run_conflict"}
_KILLER = "kills-whoever-takes-it"


def poison(stage: Stage, count: int) -> None:
    """Mix every kind of bad message into good tiles, and kill consumers meanwhile."""
    bad = prepare_bad(stage)
    stage.kept = snapshot(stage.folder)
    fleet = stage.add_fleet()
    bad |= _published(_conflicts())
    killer = _killer()
    stage.deadly.add(killer.message_id)
    bad |= _published([killer])
    fleet.reviving = True
    for consumer in fleet.consumers:
        stage.arm(consumer, f"place=kill:{_KILLER}")
    fleet.start()
    stage.bad |= bad
    bound = [(_BOUND, place) for place in _BOUND.places()]
    stage.send(publish_tile(stage.oracle, tile) for tile in bound)
    stage.fleet.wait_acknowledged(0)
    _meet(stage, list(_mixed(stage, list(bad.values()), count - len(bound))))
    stage.faults = count


def prepare_bad(stage: Stage) -> dict[bytes, Publish]:
    """Put into the root what bad messages meet there; return how to publish each kind, by id."""
    outside = stage.folder / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("not to be touched")
    stage.root.mkdir(exist_ok=True)
    prepare(stage.root, outside)
    stage.known |= {path.name for path in stage.root.iterdir()}
    depths = NESTED[::_DEPTHS_APART]
    bound_elsewhere = (case for case in BAD if case.reason not in _CONFLICTS)
    return _published([*bound_elsewhere, *FULL, *UNREADABLE, *depths])


def _published(cases: list[Case]) -> dict[bytes, Publish]:
    return {case.message_id: partial(_publish, case) for case in cases}


def _publish(case: Case, channel: Channel) -> None:
    channel.channel.basic_publish(
        channel.prefix, case.routing_key, case.body, case.basic_properties(), mandatory=True
    )


def _conflicts() -> list[Case]:
    where = {"store": _BOUND.store, "shape": [1, *_BOUND.size], "dtype": "uint32"}
    other = {"source": "file:///b"}, {"run": "2"}
    return [
        said(
            f"conflict-of-{next(iter(changes))}",
            f"{next(iter(changes))}_conflict",
            tensors=(TILE.astype("uint32"),),
            **{**where, "array": _BOUND.path, **dict(_BOUND.extra), **changes},
        )
        for changes in other
    ]


def _killer() -> Case:
    """Return a good message that the failpoint knows by its body."""
    body = unchecked(entry(array=_KILLER, tiles=[place()]))
    return Case(_KILLER, body)


def _mixed(stage: Stage, bad: list[Publish], count: int) -> Iterator[Publish]:
    """Yield as many good tiles, with all that is bad at random places between them."""
    good = (publish_tile(stage.oracle, tile) for tile in tiles(stage.chance))
    mixed = [*itertools.islice(good, count), *bad]
    stage.chance.shuffle(mixed)
    yield from mixed


def _meet(stage: Stage, messages: list[Publish]) -> None:
    """Publish all, and kill consumers meanwhile."""
    with stage.publishing(messages, rate=_RATE) as producer:
        for _ in range(_KILLS_QUICK if stage.options.quick else _KILLS):
            kill_one(stage)
        wait_until(lambda: producer.done, "all published", 600.0, poll_s=0.1)
