"""Faults of the consumers themselves: killed, told to stop, paused."""

import itertools
import signal
import time
from dataclasses import dataclass, field

from chaos import fleet as fleets
from chaos import product
from chaos.fleet import Fleet
from chaos.stage import Stage
from harness import ConsumerProcess, wait_until

# Both processes of a consumer, as when its container goes; or one of them, as when memory runs out.
_VICTIMS = [(True, True), (True, True), (True, False), (False, True)]
_HEARTBEAT_S = 1
_PAUSE_S = 3.5 * _HEARTBEAT_S
_TAKE_OVER_S = 40.0
# Failpoints are passed often: by chance, some work is done first.
_SHARES = {"take": 0.5, "ledger": 0.2}
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
    since = time.time()
    fleet.kill(victim, owner=owner, writer=writer)
    victim.start(ready=False)
    stage.recovered(since)


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
    _some_more(stage)
    since = time.time()
    code = fleets.stopped(victim)
    if code:
        stage.problems.append(f"{fleets.name(victim)} ended with exit code {code} on SIGTERM")
    victim.start(ready=False)
    stage.recovered(since)


def pause_one(stage: Stage) -> None:
    """Pause the active consumer for more than three heartbeats, wherever it is."""
    victim = stage.fleet.active()
    family = fleets.processes(victim)
    since = time.time()
    fleets.signal_all(family, signal.SIGSTOP)
    stage.recovered(since + _PAUSE_S)
    fleets.signal_all(family, signal.SIGCONT)


def sigstop(stage: Stage, count: int) -> None:
    """Pause consumers at each failpoint until others have gone on, then let them continue."""
    product.need_failpoints()
    fleet = stage.add_fleet(heartbeat_s=_HEARTBEAT_S)
    pauses = _Pauses(stage, _points(stage, count))
    for consumer in fleet.consumers:
        pauses.arm(consumer)
    fleet.start()
    with stage.load():
        wait_until(lambda: pauses.over(count), pauses.told, 60.0 + 30 * count, poll_s=0.1)
    stage.notes.append(f"paused at {', '.join(pauses.passed)}")


def _points(stage: Stage, count: int) -> list[str]:
    """Return failpoints: one of each kind in turn, in random order."""
    kinds = list(product.FAILPOINTS)
    stage.chance.shuffle(kinds)
    found = []
    for kind in itertools.islice(itertools.cycle(kinds), count):
        point = stage.chance.choice(product.FAILPOINTS[kind])
        found.append(f"{point}=stop@{_SHARES.get(kind, _USUAL_SHARE)}#1")
    return found


@dataclass
class _Pauses:
    """Who waits for which failpoint, and who is paused since when."""

    stage: Stage
    points: list[str]
    armed: dict[int, str] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)

    def arm(self, consumer: ConsumerProcess) -> None:
        """Give a consumer that is not running the next failpoint, or none where all are given."""
        point = self.points.pop() if self.points else ""
        self.armed[id(consumer)] = point
        self.stage.arm(consumer, *([point] if point else []))

    def over(self, count: int) -> bool:
        """See to all consumers once; return whether so many pauses are over."""
        for consumer in self.stage.fleet.consumers:
            if fleets.paused(consumer):
                self._see_to(consumer)
        return len(self.passed) >= count

    def told(self) -> str:
        """Return what was waited for."""
        waiting = ", ".join(filter(None, self.armed.values()))
        return f"a pause at one of {waiting}:\n{self.stage.fleet.tails()}"

    def _see_to(self, consumer: ConsumerProcess) -> None:
        since = self.since.setdefault(id(consumer), time.time())
        paused_s = time.time() - since
        gone_on = self.stage.fleet.acknowledged_at() > since + _PAUSE_S
        if paused_s < _PAUSE_S or not (gone_on or paused_s > _TAKE_OVER_S):
            return
        if gone_on:
            self.stage.recoveries.append(self.stage.fleet.acknowledged_at() - since)
        del self.since[id(consumer)]
        self.passed.append(self.armed[id(consumer)])
        self.stage.faults += 1
        fleets.signal_all(fleets.processes(consumer), signal.SIGCONT)
        self._arm_again(consumer)

    def _arm_again(self, consumer: ConsumerProcess) -> None:
        """Let it find out that it was fenced, then start it again with the next failpoint."""
        _wait_settled_again(self.stage.fleet, consumer)
        code = fleets.stopped(consumer)
        if code:
            name = fleets.name(consumer)
            self.stage.problems.append(f"{name} ended with exit code {code} after a pause")
        self.arm(consumer)
        consumer.start(ready=False)


def _wait_settled_again(fleet: Fleet, consumer: ConsumerProcess) -> None:
    """Return once a consumer that was paused is subscribed again and holds nothing."""

    def settled() -> bool:
        found = fleets.metrics(consumer)
        return bool(found and found["tiles_subscribed"] and not found["tiles_unacknowledged"])

    wait_until(settled, lambda: f"a recovery:\n{fleet.tails()}", poll_s=0.1)


def _some_more(stage: Stage) -> None:
    """Wait until somebody acknowledges, and then for a random moment of the next second."""
    since = time.time() + stage.chance.random()
    stage.fleet.wait_acknowledged(since)
