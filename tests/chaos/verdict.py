"""The end of a scenario: all settled, all consumers ended, and all that is left looked at."""

import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from pika.exceptions import AMQPError

from chaos.fleet import Fleet
from chaos.images import Tile
from chaos.oracle import STATE_FOLDER, TRIALS, Found, examine, snapshot
from chaos.producer import publish_tile
from chaos.stage import Stage
from harness import Channel, wait_until
from wire import undecoded_headers

_PATIENCE_S = 300.0
# A trial of the root that was cut short goes with a later one, when it is a minute old.
_TRIALS_S = 120.0


@dataclass(frozen=True)
class Row:
    """What a scenario found; see `chaos.oracle.Found` for what is not said here.

    Attributes
    ----------
    faults : int
        Faults injected, or tiles published, whichever the scenario counts.
    published : int
        Messages that the broker has confirmed.
    wrongly_parked : int
        Good messages that are parked, and bad ones that are not.
    """

    name: str
    faults: int = 0
    published: int = 0
    lost: int = 0
    corrupt: int = 0
    foreign: int = 0
    wrongly_parked: int = 0
    leftovers: int = 0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing was found, and anything published."""
        wrong = (self.lost, self.corrupt, self.foreign, self.wrongly_parked, self.leftovers)
        return not any(wrong) and self.published > 0


def finish(stage: Stage) -> Row:
    """Let the consumers do the rest, end them, and read everything back."""
    for fleet in stage.fleets:
        _settle(stage, fleet)
    _wait_trials(stage)
    for fleet in stage.fleets:
        stage.problems += fleet.stop()
    found = Found()
    parked: Counter[bytes] = Counter()
    for fleet in stage.fleets:
        try:
            with undecoded_headers(), Channel(stage.broker, fleet.prefix) as channel:
                found += _queue(channel)
                parked.update(_parked(channel))
        except AMQPError as error:
            stage.problems.append(f"the queues cannot be looked at: {error!r}")
    found += examine(stage.root, stage.oracle.confirmed, stage.known)
    stage.notes += found.notes
    now = snapshot(stage.folder) if stage.kept else {}
    changed = sorted(name for name, digest in stage.kept.items() if now.get(name) != digest)
    stage.problems += [f"{name} was changed by a message that is parked" for name in changed]
    return Row(
        stage.name,
        stage.faults,
        stage.published,
        found.lost,
        found.corrupt,
        found.foreign,
        _wrongly_parked(stage, parked),
        found.leftovers,
    )


def _settle(stage: Stage, fleet: Fleet) -> None:
    """Wait until all is settled, with every store taken once more, which sweeps what crashes left.

    A tile of each store and every bad message are published again for that: after the last fault,
    which a deadly one is.
    """
    try:
        deadly = [stage.bad[identity] for identity in sorted(stage.deadly)]
        bad = [publish for identity, publish in stage.bad.items() if identity not in stage.deadly]
        good = [publish_tile(stage.oracle, tile) for tile in _one_of_each_store(stage)]
        for again in [deadly, good + bad] if deadly else [good + bad]:
            stage.send(again, prefix=fleet.prefix)
            with Channel(stage.broker, fleet.prefix) as channel:
                fleet.wait_done(channel, _PATIENCE_S)
    except (AssertionError, AMQPError) as error:
        stage.problems.append(f"not all was settled: {error}")


def _wait_trials(stage: Stage) -> None:
    """Wait until no trial of a consumer that was killed is left; those under way are brief."""
    trials = stage.root / STATE_FOLDER / TRIALS
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not any(trials.glob("*")), "no trials", _TRIALS_S)


def _one_of_each_store(stage: Stage) -> list[Tile]:
    confirmed = stage.oracle.confirmed
    tiles = {image.store: (image, min(places)) for image, places in confirmed.items()}
    return list(tiles.values())


def _queue(channel: Channel) -> Found:
    """Count what is left in the queue; with no consumer left, nothing is unacknowledged."""
    left = channel.depth(f"{channel.prefix}.00")
    return Found(leftovers=left, notes=[f"{left} messages are left"]) if left else Found()


def _parked(channel: Channel) -> list[bytes]:
    """Return the message id of each message in the parking queue."""
    return [_identity(properties) for properties, _ in channel.drain(f"{channel.prefix}.parked")]


def _identity(properties: Any) -> bytes:
    found = properties.message_id
    return found if isinstance(found, bytes) else str(found).encode()


def _wrongly_parked(stage: Stage, parked: Counter[bytes]) -> int:
    good = sum(count for identity, count in parked.items() if identity not in stage.bad)
    absent = [identity.decode(errors="replace") for identity in stage.bad if not parked[identity]]
    if good:
        stage.notes.append(f"{good} good messages are parked")
    if absent:
        stage.notes.append(f"{len(absent)} bad messages are not parked: {', '.join(absent[:5])}")
    return good + len(absent)
