"""The end of a scenario: all settled, all consumers ended, and all that is left looked at."""

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pika.exceptions import AMQPError

from chaos.fleet import Fleet
from chaos.images import Tile, settling
from chaos.oracle import STATE_FOLDER, TRIALS, Found, changes, examine, snapshot
from chaos.producer import Bad, publish_tile
from chaos.stage import Stage
from consumer.parking import HEADER_PREFIX
from harness import Channel, wait_until
from wire import undecoded_headers

_PATIENCE_S = 300.0
# A trial of the root that was cut short goes with a later one, when it is a minute old.
_TRIALS_S = 120.0
_DEAD_LETTERED_S = 30.0
_REASON = f"{HEADER_PREFIX}reason".encode()
# A string in a header table comes after its kind, a byte, and its length, four.
_STRING_AT = 5

# The message id of what is parked, and the reason; "": dead-lettered.
Copy = tuple[bytes, str]


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
        Good messages that are parked, and bad ones that are not, or not with their reason.
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


@dataclass
class Parked:
    """How many messages are wrongly parked, or wrongly not, and which."""

    wrong: int = 0
    notes: list[str] = field(default_factory=list)

    def __iadd__(self, other: Self) -> Self:
        self.wrong += other.wrong
        self.notes += other.notes
        return self


def finish(stage: Stage) -> Row:
    """Let the consumers do the rest, end them, and read everything back."""
    for fleet in stage.fleets:
        _settle(stage, fleet)
    _wait_trials(stage)
    for fleet in stage.fleets:
        stage.problems += fleet.stop()
    found, parked = Found(), Parked()
    for fleet in stage.fleets:
        try:
            with undecoded_headers(), Channel(stage.broker, fleet.prefix) as channel:
                found += _queue(channel)
                parked += _parked(stage, channel)
        except AMQPError as error:
            stage.problems.append(f"the queues cannot be looked at: {error!r}")
    found += examine(stage.root, stage.oracle.confirmed, stage.known)
    stage.notes += [*found.notes, *parked.notes]
    changed = changes(stage.kept, snapshot(*stage.guarded))
    stage.problems += [f"{change} by a message that is parked" for change in changed]
    return Row(
        stage.name,
        stage.faults,
        stage.published,
        found.lost,
        found.corrupt,
        found.foreign,
        parked.wrong,
        found.leftovers,
    )


def _settle(stage: Stage, fleet: Fleet) -> None:
    """Wait until all is settled, with every store taken once more, which sweeps what crashes left.

    A tile for each store, of an image of its own, and every bad message once more are published
    for that: after the last fault, which a deadly one is.
    """
    try:
        deadly = [stage.bad[key].publish for key in sorted(stage.deadly & stage.bad.keys())]
        bad = [each.publish for key, each in stage.bad.items() if key not in stage.deadly]
        tiles = _one_for_each_store(stage, stage.fleets.index(fleet))
        good = [publish_tile(stage.oracle, tile) for tile in tiles]
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


def _one_for_each_store(stage: Stage, number: int) -> list[Tile]:
    images = [settling(store) for store in sorted({x.store for x in stage.oracle.confirmed})]
    return [(image, image.places()[number]) for image in images]


def _queue(channel: Channel) -> Found:
    """Count what is left in the queue; with no consumer left, nothing is unacknowledged."""
    left = channel.depth(f"{channel.prefix}.00")
    return Found(leftovers=left, notes=[f"{left} messages are left"]) if left else Found()


def _parked(stage: Stage, channel: Channel) -> Parked:
    """Compare what the parking queue holds, once all is there, with what was confirmed."""
    confirmed = Counter(
        {
            identity: count
            for (prefix, identity), count in stage.bad_confirmed.items()
            if prefix == channel.prefix
        }
    )
    found: Counter[Copy] = Counter()

    def all_there() -> bool:
        found.update(map(_copy, channel.drain(f"{channel.prefix}.parked")))
        return not confirmed - _by_id(found)

    with contextlib.suppress(AssertionError):
        wait_until(all_there, "all that was dead-lettered", _DEAD_LETTERED_S)
    return wrongly_parked(stage.bad, confirmed, found)


def wrongly_parked(
    bad: Mapping[bytes, Bad], confirmed: Counter[bytes], found: Counter[Copy]
) -> Parked:
    """Count good messages parked, bad ones lost, and bad ones parked for what they are not.

    Parameters
    ----------
    confirmed : Counter
        How often each bad message was confirmed, by message id: so often it is parked at least.
    found : Counter
        How often each message is parked with each reason.
    """
    good = {copy: count for copy, count in found.items() if copy[0] not in bad}
    absent = confirmed - _by_id(found)
    otherwise = {
        copy: count
        for copy, count in found.items()
        if copy[0] in bad and copy[1] not in bad[copy[0]].reasons
    }
    notes = [f"{count} good messages are parked: {reason}" for (_, reason), count in good.items()]
    notes += [f"{count} of {_text(identity)} are not parked" for identity, count in absent.items()]
    notes += [
        f"{count} of {_text(identity)} are parked with {reason or 'no reason'}"
        for (identity, reason), count in otherwise.items()
    ]
    return Parked(sum(good.values()) + absent.total() + sum(otherwise.values()), notes)


def _by_id(found: Counter[Copy]) -> Counter[bytes]:
    counts: Counter[bytes] = Counter()
    for (identity, _), count in found.items():
        counts[identity] += count
    return counts


def _copy(message: tuple[Any, bytes]) -> Copy:
    """Return the id and reason of a parked message, whose header values are encoded strings."""
    properties, _ = message
    identity = properties.message_id
    reason = (properties.headers or {}).get(_REASON, b"")[_STRING_AT:]
    return identity if isinstance(identity, bytes) else str(identity).encode(), reason.decode()


def _text(identity: bytes) -> str:
    return identity.decode(errors="replace")
