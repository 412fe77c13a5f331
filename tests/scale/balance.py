"""Replicas come, go, die and hang under load: who takes their partitions over, and how soon."""

import signal
import time
from itertools import pairwise

from chaos import fleet
from harness import ConsumerProcess, wait_until
from scale.brokers import active
from scale.figures import longest_pause, taken_over
from scale.stage import HEARTBEAT_S, Stage, kill
from scale.watch import Watch

_COUNTS = (1, 4, 2, 6, 3)
_BALANCED_S = 15.0
_KILLED_S = 2.0
_PAUSED_S = 3 * HEARTBEAT_S + 5.0
_RESTARTING_S = 5.0
_PATIENCE_S = 120.0


def replicas(stage: Stage) -> None:
    """Change the number of replicas under load: soon all partitions are served, and evenly.

    The time runs from the change itself: a replica's start and its drain are in it.
    """
    images = stage.prepare(max(_COUNTS))
    watch, balanced, ready = stage.watch(), [], []
    with stage.producing(images):
        for before, count in pairwise((0, *_COUNTS)):
            what = f"{before} to {count} replicas"
            balanced_s, ready_s = stage.resize(count, what, _BALANCED_S)
            stage.wait_all_delivered(watch, time.time(), what)
            balanced.append(balanced_s)
            ready.append(ready_s)
    stage.figures |= {"balanced_s": max(balanced), "ready_s": max(ready)}
    stage.finish(watch)


def failover(stage: Stage) -> None:
    """Kill or pause a replica under load: another is delivered to on each of its partitions."""
    images = stage.prepare(4)
    watch = stage.watch()
    stage.scale_to(4)
    stage.wait_balanced("4 replicas", _BALANCED_S)
    kills, pauses = (2, 1) if stage.options.quick else (5, 3)
    with stage.producing(images):
        stage.wait_all_delivered(watch, time.time(), "4 replicas")
        killed = [_fail(stage, watch, signal.SIGKILL, _KILLED_S) for _ in range(kills)]
        paused = [_fail(stage, watch, signal.SIGSTOP, _PAUSED_S) for _ in range(pauses)]
    stage.figures |= {"sigkill_s": max(killed), "sigstop_s": max(paused)}
    stage.finish(watch)


def _fail(stage: Stage, watch: Watch, number: signal.Signals, limit_s: float) -> float:
    """Kill or pause a replica that has partitions, until others have them; return the seconds."""
    victim, held = _victim(stage)
    name, since = fleet.name(victim), time.time()
    family = fleet.processes(victim)
    fleet.signal_all(family, number)
    took: dict[str, float | None] = {}

    def done() -> bool:
        took.update({each: taken_over(watch.seen(each), since, name) for each in held})
        return None not in took.values()

    what = f"{number.name} of {name}"
    try:
        wait_until(done, what, _PATIENCE_S, poll_s=0.1)
    except AssertionError:
        stage.problem(f"{what}: after {_PATIENCE_S:g} s nobody is delivered to: {took}")
    seconds = max((each for each in took.values() if each is not None), default=_PATIENCE_S)
    if seconds > limit_s:
        stage.problem(f"{what}: taken over after {seconds:.2f} s, over {limit_s:g} s: {took}")
    if number == signal.SIGKILL:
        kill(victim)
        victim.start(ready=False)
    else:
        fleet.signal_all(family, signal.SIGCONT)
    stage.wait_ready(victim)
    stage.wait_balanced(f"after {what}", _PATIENCE_S)
    return seconds


def _victim(stage: Stage) -> tuple[ConsumerProcess, list[str]]:
    """Return a replica, chosen from those that have any partitions, and those."""
    seen = active(stage.broker)
    held: dict[str, list[str]] = {}
    for label, queue in zip(stage.labels, stage.queues, strict=True):
        for name in seen.get(queue, ()):
            held.setdefault(name, []).append(label)
    chosen = stage.chance.choice(sorted(held))
    return next(each for each in stage.replicas if fleet.name(each) == chosen), held[chosen]


def rolling(stage: Stage) -> None:
    """Restart four replicas one after the other under load, the last first: no long pause."""
    images = stage.prepare(4)
    watch = stage.watch()
    stage.scale_to(4)
    stage.wait_balanced("4 replicas", _BALANCED_S)
    with stage.producing(images):
        stage.wait_all_delivered(watch, time.time(), "4 replicas")
        began = time.time()
        for replica in reversed(stage.replicas):
            stage.end(replica)
            replica.start(ready=False)
            stage.wait_ready(replica)
        stage.wait_balanced("after the restart", _PATIENCE_S)
        ended = time.time()
        stage.wait_all_delivered(watch, ended, "after the restart")
    pauses = {each: longest_pause(watch.seen(each), began, ended) for each in stage.labels}
    stage.figures["pause_s"] = max(pause.seconds for pause in pauses.values())
    for label, pause in pauses.items():
        if pause.seconds > _RESTARTING_S:
            stage.problem(
                f"{label} paused for {pause.seconds:.1f} s, over {_RESTARTING_S:g} s, "
                f"between {pause.last} and {pause.following}"
            )
    stage.finish(watch)
