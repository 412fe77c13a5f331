"""Faults of the broker and of the way to it."""

import signal
import time

from chaos import fleet as fleets
from chaos.network import Link
from chaos.poison import prepare_bad
from chaos.producer import Publish
from chaos.stage import Stage
from faults import control
from harness import ConsumerProcess, wait_until

_HEARTBEAT_S = 2
_SHORT_CUT_S = 1.5
_BAD_EACH = 12


def broker_restart(stage: Stage, count: int) -> None:
    """Kill the broker, and start it again."""
    stage.start()
    with stage.load():
        stage.fleet.wait_acknowledged(0)
        for _ in stage.counted(count):
            restart_broker(stage)


def restart_broker(stage: Stage) -> None:
    """Kill the broker under load, and start it again."""
    stage.fleet.wait_acknowledged(time.time() + stage.chance.random())
    stage.broker.kill()
    try:
        since = time.time()
    finally:
        stage.broker.start()
    stage.recovered(since)


def partition(stage: Stage, count: int) -> None:
    """Cut the active consumer off from the broker, and heal that later."""
    fleet = stage.add_fleet(heartbeat_s=_HEARTBEAT_S)
    links = connect_by_links(stage)
    fleet.start()
    with stage.load():
        stage.fleet.wait_acknowledged(0)
        for number in stage.counted(count):
            cut_off(stage, links, short=number % 3 == 1)


def connect_by_links(stage: Stage) -> dict[int, Link]:
    """Give each consumer a link of its own; return them by the consumer's number."""
    links = {}
    for number, consumer in enumerate(stage.fleet.consumers):
        links[number] = stage.enter(Link(stage.broker.host))
        consumer.environment["TILES_HOSTS"] = links[number].host
    return links


def cut_off(stage: Stage, links: dict[int, Link], *, short: bool) -> None:
    """Cut the active consumer off: until another has taken over, or for less than heartbeats."""
    fleet = stage.fleet
    fleet.wait_acknowledged(time.time() + stage.chance.random())
    victim = fleet.active()
    link = links[fleet.consumers.index(victim)]
    since = time.time()
    link.cut()
    try:
        if short:
            ends = since + stage.chance.uniform(0.1, _SHORT_CUT_S)
            wait_until(lambda: time.time() > ends, "the end of a short cut")
        else:
            _wait_other(stage, victim, since)
    finally:
        link.heal()
    stage.recovered(since)


def _wait_other(stage: Stage, victim: ConsumerProcess, since: float) -> None:
    """Wait until another consumer acknowledges."""

    def taken_over() -> bool:
        found = [fleets.metrics(each) for each in stage.fleet.consumers if each is not victim]
        latest = "tiles_last_acknowledged_timestamp_seconds"
        return any(each and each[latest] > since for each in found)

    wait_until(taken_over, lambda: f"a successor:\n{stage.fleet.tails()}", poll_s=0.1)


def memory_alarm(stage: Stage, count: int) -> None:
    """Raise a memory alarm while messages are parked: it blocks all that publish."""
    bad = prepare_bad(stage)
    stage.start()
    kinds = stage.chance.sample(sorted(bad), _BAD_EACH * count)
    with stage.load():
        stage.fleet.wait_acknowledged(0)
        for number in stage.counted(count):
            sample = kinds[number::count]
            stage.bad |= {identity: bad[identity] for identity in sample}
            raise_alarm(stage, [bad[identity] for identity in sample])


def raise_alarm(stage: Stage, bad: list[Publish]) -> None:
    """Have bad messages parked during an alarm, and end it when good ones were acknowledged.

    They are published while the consumer is paused, or they would be parked before.
    """
    parked = parked_count(stage)
    family = fleets.processes(stage.fleet.active())
    fleets.signal_all(family, signal.SIGSTOP)
    try:
        stage.send(bad)
        control(stage.broker, "set_vm_memory_high_watermark", "0.00001")
    finally:
        fleets.signal_all(family, signal.SIGCONT)
    try:
        since = time.time()
        stage.recovered(since)
        if parked_count(stage) >= parked + len(bad):
            stage.notes.append("the messages were parked before the alarm")
    finally:
        control(stage.broker, "set_vm_memory_high_watermark", "absolute", "4GB")
    stage.recovered(time.time())
    wait_until(
        lambda: parked_count(stage) >= parked + len(bad),
        lambda: f"{len(bad)} messages parked:\n{stage.fleet.tails()}",
        poll_s=0.1,
    )


def parked_count(stage: Stage) -> float:
    """Return how many messages those that run have parked."""
    name = "tiles_deliveries_parked_total"
    found = [each for each in stage.fleet.metrics() if each]
    return sum(value for each in found for key, value in each.items() if key.startswith(name))
