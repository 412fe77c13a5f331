"""Faults of the broker and of the way to it."""

import signal
import time

from chaos import fleet as fleets
from chaos.network import Link
from chaos.poison import prepare_bad
from chaos.producer import Bad
from chaos.stage import Stage
from faults import control
from harness import wait_until

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
    since = time.time()
    stage.broker.kill()
    stage.broker.start()
    # What was acknowledged just when it ended, it may not have heard.
    stage.recovered(since, after=time.time())


def partition(stage: Stage, count: int) -> None:
    """Cut the active consumer off from the broker, and heal that later.

    Two of three cuts last until another consumer has taken over, which is when the broker has
    missed its heartbeats; the third is shorter than that, and the consumer itself goes on.
    """
    fleet = stage.add_fleet(heartbeat_s=_HEARTBEAT_S)
    links = connect_by_links(stage)
    fleet.start()
    with stage.load():
        stage.fleet.wait_acknowledged(0)
        for number in stage.counted(count):
            cut_off(stage, links, short=number % 3 == 2)
    stage.notes.append(f"{count // 3} of {count} cuts were shorter than the heartbeats")


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
            stage.recovered(since, but=victim)
    finally:
        link.heal()
    if short:
        # Until now nothing that it acknowledged came through.
        stage.recovered(since, after=time.time())
    else:
        fleet.wait_acknowledged(time.time())


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


def raise_alarm(stage: Stage, bad: list[Bad]) -> None:
    """Have bad messages wait for being parked during an alarm while good ones are acknowledged.

    They are published while all consumers are paused, or they would be parked before.
    """
    with stage.channel() as channel:
        parking = f"{channel.prefix}.parked"
        wanted = channel.depth(parking) + len(bad)
        family = [process for each in stage.fleet.consumers for process in fleets.processes(each)]
        fleets.signal_all(family, signal.SIGSTOP)
        try:
            stage.send(each.publish for each in bad)
            control(stage.broker, "set_vm_memory_high_watermark", "0.00001")
        finally:
            fleets.signal_all(family, signal.SIGCONT)
        try:
            stage.fleet.wait_acknowledged(time.time())
            stage.problems += alarm_problems(wanted, channel.depth(parking))
        finally:
            since = time.time()
            control(stage.broker, "set_vm_memory_high_watermark", "absolute", "4GB")
        told = f"{len(bad)} messages parked"
        wait_until(lambda: channel.depth(parking) >= wanted, told, poll_s=0.1)
        stage.recoveries.append(time.time() - since)


def alarm_problems(wanted: int, parked: int) -> list[str]:
    """Return what is wrong where all is parked that should wait for the end of an alarm."""
    return ["an alarm kept no message from being parked"] if parked >= wanted else []
