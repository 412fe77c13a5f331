"""A random mix of all faults, on disks whose calls fail now and then."""

from collections import Counter
from collections.abc import Callable

from chaos.crashes import kill_one, pause_one, terminate_one
from chaos.disks import FailingDisk, PowerlessDisk
from chaos.network import Link
from chaos.outages import connect_by_links, cut_off, raise_alarm, restart_broker
from chaos.poison import prepare_bad
from chaos.producer import Producer, Publish
from chaos.stage import Stage
from chaos.storage import fill_disk, lose_power, remove_store

_SHARE = 0.001
_BAD_EACH = 10


def mix(stage: Stage, count: int) -> None:
    """Let so many random faults happen, one after the other, under load."""
    disk = stage.enter(PowerlessDisk(stage.folder, stage.root))
    bad = prepare_bad(stage)
    failing = FailingDisk(stage.folder, stage.root, _SHARE)
    fleet = stage.add_fleet(environment=failing.environment, heartbeat_s=1)
    links = connect_by_links(stage)
    fleet.start()
    happened: Counter[str] = Counter()
    with stage.load() as producer:
        stage.fleet.wait_acknowledged(0)
        faults = _faults(stage, disk, links, bad, producer)
        for _ in stage.counted(count):
            name = stage.chance.choice(sorted(faults))
            faults[name]()
            happened[name] += 1
    stage.notes.append(", ".join(f"{count} {name}" for name, count in sorted(happened.items())))


def _faults(
    stage: Stage,
    disk: PowerlessDisk,
    links: dict[int, Link],
    bad: dict[bytes, Publish],
    producer: Producer,
) -> dict[str, Callable[[], None]]:
    def coin() -> bool:
        return stage.chance.random() < 0.5

    def alarm() -> None:
        sample = stage.chance.sample(sorted(bad), _BAD_EACH)
        stage.bad.update({identity: bad[identity] for identity in sample})
        raise_alarm(stage, [bad[identity] for identity in sample])

    return {
        "sigkill": lambda: kill_one(stage),
        "sigterm": lambda: terminate_one(stage),
        "sigstop": lambda: pause_one(stage),
        "broker_restart": lambda: restart_broker(stage),
        "partition": lambda: cut_off(stage, links, short=coin()),
        "disk_full": lambda: fill_disk(stage),
        "power_loss": lambda: lose_power(stage, disk, producer, idle=coin()),
        "store_removed": lambda: remove_store(stage, producer, idle=coin()),
        "memory_alarm": alarm,
    }
