"""Messages that can never be written, and one that kills whoever takes it, among good tiles."""

import itertools
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bad_messages import (
    ABSOLUTE,
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
from chaos.producer import Bad, Publish, publish_tile
from chaos.stage import Stage
from faults import Image, mounted
from harness import Channel, wait_until

_KILLS_QUICK, _KILLS = 3, 20
_DEPTHS_APART = 30
_RATE = 300.0
# An array that was sent with a source and a run: others are refused.
_BOUND = Image(254, "bound.zarr", "img", (256, 256), 64, (("source", "file:///a"), ("run", "1")))
_CONFLICTS = {"source_conflict", "run_conflict"}
# Its only fault, beside headers that cannot be copied or read, is its type.
_OTHERWISE = "unknown_version"
# A good message but for the failpoint, which knows it by its body.
_KILLER = "kills-whoever-takes-it"
_LOCKED = "locked.zarr"


def poison(stage: Stage, count: int) -> None:
    """Mix every kind of bad message into good tiles, and kill consumers meanwhile."""
    bad = prepare_bad(stage)
    bad |= _locked(stage)
    bad |= _bad(stage, _conflicts())
    fleet = stage.add_fleet()
    bad |= arm_for_killer(stage)
    fleet.start()
    stage.bad |= bad
    bound = [(_BOUND, place) for place in _BOUND.places()]
    stage.send(publish_tile(stage.oracle, tile) for tile in bound)
    stage.fleet.wait_acknowledged(0)
    messages = [each.publish for each in bad.values()]
    _meet(stage, list(_mixed(stage, messages, count - len(bound))))
    stage.faults = count


def prepare_bad(stage: Stage) -> dict[bytes, Bad]:
    """Put into the root what bad messages meet there, and must not change; return them by id."""
    outside = stage.folder / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("not to be touched")
    stage.root.mkdir(exist_ok=True)
    prepare(stage.root, outside)
    stage.known |= {path.name for path in stage.root.iterdir()}
    depths = NESTED[::_DEPTHS_APART]
    bound_elsewhere = (case for case in BAD if case.reason not in _CONFLICTS)
    stage.guarded += [outside, Path(ABSOLUTE), *(stage.root / name for name in stage.known)]
    stage.kept = snapshot(*stage.guarded)
    return _bad(stage, [*bound_elsewhere, *FULL, *UNREADABLE, *depths])


def arm_for_killer(stage: Stage) -> dict[bytes, Bad]:
    """Have one message kill whichever consumer takes it, which is revived; return it by its id."""
    killer = Case(_KILLER, unchecked(entry(array=_KILLER, tiles=[place()])), "kills_consumer")
    stage.deadly.add(killer.message_id)
    for fleet in stage.fleets:
        fleet.reviving = True
        for consumer in fleet.consumers:
            stage.arm(consumer, f"place=kill:{_KILLER}")
    return _bad(stage, [killer])


def meet_killer(stage: Stage, killer: Bad) -> None:
    """Publish the message that kills, and return once it is parked."""
    with stage.channel() as channel:
        parking = f"{channel.prefix}.parked"
        before = channel.depth(parking)
        stage.send([killer.publish])

        def parked() -> bool:
            stage.fleet.revive()
            return channel.depth(parking) > before

        wait_until(parked, lambda: f"{_KILLER} parked:\n{stage.fleet.tails()}", 300.0, poll_s=0.1)


def _locked(stage: Stage) -> dict[bytes, Bad]:
    """Return a message for a store that cannot be written; none where that cannot be had."""
    folder = stage.root / _LOCKED
    try:
        stage.enter(mounted("tmpfs", folder, "ro"))
    except PermissionError as error:
        folder.chmod(0o555)
        # To root, modes mean nothing.
        if os.access(folder, os.W_OK):
            stage.notes.append(f"no message for a store that cannot be written: {error}")
            return {}
    stage.known.add(_LOCKED)
    stage.guarded.append(folder)
    return _bad(stage, [said("store-not-writable", "store_not_writable", store=_LOCKED)])


def _bad(stage: Stage, cases: list[Case]) -> dict[bytes, Bad]:
    return {
        case.message_id: Bad(partial(_publish, stage, case), reasons_of(case)) for case in cases
    }


def reasons_of(case: Case) -> frozenset[str]:
    """Return with what a message may be parked: what cannot be copied may be without a reason.

    What expires in the queue nobody has looked at.
    """
    if not case.reason:
        return frozenset({"", _OTHERWISE})
    return frozenset({case.reason, ""} if "expiration" in case.properties else {case.reason})


def _publish(stage: Stage, case: Case, channel: Channel) -> None:
    channel.channel.basic_publish(
        channel.prefix, case.routing_key, case.body, case.basic_properties(), mandatory=True
    )
    stage.bad_confirmed[channel.prefix, case.message_id] += 1


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
