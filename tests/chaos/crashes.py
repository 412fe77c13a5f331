"""Faults of the consumers themselves: killed, told to stop, paused."""

import itertools
import random
import signal
import time
from collections.abc import Iterator

from chaos import fleet as fleets
from chaos import product
from chaos.stage import Stage
from harness import ConsumerProcess, wait_until

# Both processes of a consumer, as when its container goes; or one of them, as when memory runs out.
_VICTIMS = [(True, True), (True, True), (True, False), (False, True)]
_HEARTBEAT_S = 1
_PAUSE_S = 3.5 * _HEARTBEAT_S
# Blocks are then written before they are whole, which is where a late writer does harm.
_FEW = 40
# So many tiles are acknowledged before a paused consumer goes on that the images which it filled
# are closed: nobody writes again, and heals, what it then spoils.
_CLOSED = 250
# Most failpoints are passed often: by chance, some work is done first.
_SHARES = {"take": 1.0, "ledger": 0.2}
_USUAL_SHARE = 0.08


def sigkill(stage: Stage, count: int) -> None:
    """Kill a random consumer, time and again."""
    stage.start()
    with stage.load():
        stage.fleet.wait_acknowledged(0)
        for _ in stage.counted(count):
            kill_one(stage)


def kill_one(stage: Stage) -> None:
    """Kill a random consumer a moment after somebody acknowledged, and start it again."""
    fleet, victim = stage.fleet, stage.chance.choice(stage.fleet.consumers)
    owner, writer = stage.chance.choice(_VICTIMS)
    _some_more(stage)
    held, since = fleets.holds(victim), time.time()
    fleet.kill(victim, owner=owner, writer=writer)
    victim.start(ready=False)
    if held:
        stage.recovered(since)
    else:
        fleet.wait_acknowledged(since)


def sigterm(stage: Stage, count: int) -> None:
    """Tell a random consumer to stop, time and again."""
    stage.start()
    with stage.load():
        stage.fleet.wait_acknowledged(0)
        for _ in stage.counted(count):
            terminate_one(stage)


def terminate_one(stage: Stage) -> None:
    """Tell a random consumer to stop under load, and start it again when it has ended well."""
    victim = stage.chance.choice(stage.fleet.consumers)
    # Before it has got that far, the signal ends it as it ends any process.
    victim.wait_ready()
    _some_more(stage)
    held, since = fleets.holds(victim), time.time()
    victim.signal(signal.SIGTERM)
    if held:
        stage.recovered(since, but=victim)
    else:
        # It must not be revived before it was looked at how it has ended.
        stage.fleet.wait_acknowledged(since, but=victim)
    stage.fleet.note_stop(victim)
    victim.start(ready=False)


def pause_one(stage: Stage) -> None:
    """Pause the active consumer for more than three heartbeats, wherever it is."""
    victim = stage.fleet.active()
    family = fleets.processes(victim)
    since = time.time()
    fleets.signal_all(family, signal.SIGSTOP)
    try:
        stage.recovered(since, but=victim)
        stage.fleet.wait_acknowledged(since + _PAUSE_S, but=victim)
    finally:
        fleets.signal_all(family, signal.SIGCONT)


def sigstop(stage: Stage, count: int) -> None:
    """Pause the active consumer at each failpoint until another has gone on; then let it go on."""
    fleet = stage.add_fleet(count=2, heartbeat_s=_HEARTBEAT_S, prefetch_count=_FEW)
    late, other = fleet.consumers
    other.start()
    points = list(itertools.islice(failpoints(stage.chance, stage.options.without), count))
    stage.notes.append(f"paused at {', '.join(points)}")
    with stage.load():
        stage.fleet.wait_acknowledged(0)
        for number in stage.counted(count):
            point = points[number]
            stage.arm(late, point)
            late.start()
            # Killed, it leaves epochs behind: they are to be removed by who takes over.
            fleet.kill(other)
            other.start(ready=False)
            _pause_until_others_go_on(stage, late, point)
            _end_fenced(stage, late)


def failpoints(chance: random.Random, without: str) -> Iterator[str]:
    """Yield failpoints for ever: one of each kind in turn, in random order.

    Parameters
    ----------
    without : str
        What is switched off: without the fence, some are never reached.
    """
    unreached = product.UNREACHED_WITHOUT_FENCE if without == "fence" else frozenset()
    kinds = list(product.FAILPOINTS)
    chance.shuffle(kinds)
    for kind in itertools.cycle(kinds):
        point = chance.choice([p for p in product.FAILPOINTS[kind] if p not in unreached])
        yield f"{point}=stop@{_SHARES.get(kind, _USUAL_SHARE)}#1"


def _pause_until_others_go_on(stage: Stage, late: ConsumerProcess, point: str) -> None:
    """Return once a consumer has paused at its failpoint, and goes on after others did."""
    fleet = stage.fleet
    paused = f"a pause at {point}:"
    wait_until(lambda: fleets.paused(late), lambda: f"{paused}\n{fleet.tails()}", poll_s=0.1)
    since = time.time()
    stage.recovered(since, but=late)
    fleet.wait_acknowledged(since + _PAUSE_S, but=late)
    enough = _acknowledged(stage) + _CLOSED
    wait_until(
        lambda: _acknowledged(stage) >= enough, lambda: f"others:\n{fleet.tails()}", poll_s=0.1
    )
    fleets.signal_all(fleets.processes(late), signal.SIGCONT)


def _acknowledged(stage: Stage) -> float:
    """Return how many deliveries those that run, and are not paused, have acknowledged."""
    return sum(stage.fleet.values("tiles_deliveries_acknowledged_total"))


def _end_fenced(stage: Stage, late: ConsumerProcess) -> None:
    """Let a consumer that was paused find out that it was fenced, and end it.

    It is subscribed again then, and holds nothing: another is the active one.
    """

    def settled() -> bool:
        found = fleets.metrics(late)
        return bool(found and found["tiles_subscribed"] and not found["tiles_unacknowledged"])

    wait_until(settled, lambda: f"a recovery:\n{stage.fleet.tails()}", poll_s=0.1)
    late.signal(signal.SIGTERM)
    stage.fleet.note_stop(late)


def _some_more(stage: Stage) -> None:
    """Wait until somebody acknowledges, and then for a random moment of the next second."""
    since = time.time() + stage.chance.random()
    stage.fleet.wait_acknowledged(since)
