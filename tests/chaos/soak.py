"""A random mix of all faults, on disks whose calls fail now and then."""

import itertools
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter

from chaos.crashes import kill_one, pause_one, terminate_one
from chaos.disks import FailingDisk, PowerlessDisk, together
from chaos.fleet import Fleet
from chaos.network import Link
from chaos.outages import connect_by_links, cut_off, raise_alarm, restart_broker
from chaos.poison import arm_for_killer, meet_killer, prepare_bad
from chaos.producer import Bad, Producer, publish_tile
from chaos.stage import Stage
from chaos.storage import fill_disk, hang, lose_power, remove_store
from faults import SlowDisk

_SHARE = 0.001
_BAD_EACH = 10
_HANG_S = 20.0
_HEARTBEAT_S = 1
# Tiles of the images that are being filled, for a second owner of their stores.
_IMAGES, _SHARED_TILES, _SHARED_RATE = 3, 90, 60.0


def mix(stage: Stage, count: int) -> None:
    """Let so many random faults happen, one after the other, under load."""
    disk = stage.enter(PowerlessDisk(stage.folder, stage.root))
    bad = prepare_bad(stage)
    # What lies there beforehand is no consumer's to sync.
    subprocess.run(["sync", "--file-system", stage.root], check=True)
    failing = FailingDisk(stage.folder, stage.root, _SHARE)
    slow = SlowDisk(stage.folder)
    environment = together(stage.folder, failing.environment, slow.environment)
    fleet = stage.add_fleet(environment=environment, heartbeat_s=_HEARTBEAT_S)
    second = stage.add_fleet(count=1, environment=environment, idle_s=0.3)
    killer = arm_for_killer(stage)
    links = connect_by_links(stage)
    fleet.start()
    second.start()
    happened: Counter[str] = Counter()
    with stage.load() as producer:
        stage.fleet.wait_acknowledged(0)
        faults: dict[str, Callable[[], None]] = {
            **_of_consumers(stage, links),
            **_of_disks(stage, disk, slow, producer),
            **_of_messages(stage, bad, killer),
            "two_owners": lambda: own_twice(stage, second, producer),
        }
        for name in itertools.islice(_in_turn(stage, sorted(faults)), count):
            faults[name]()
            stage.faults += 1
            happened[name] += 1
    stage.notes.append(", ".join(f"{count} {name}" for name, count in sorted(happened.items())))


def _in_turn(stage: Stage, names: list[str]) -> Iterator[str]:
    """Yield names for ever in random order, each once before any comes again."""
    while True:
        yield from stage.chance.sample(names, len(names))


def own_twice(stage: Stage, second: Fleet, producer: Producer) -> None:
    """Send tiles of blocks that are being filled to a consumer of another queue as well."""
    with producer.held():
        images = list(stage.oracle.confirmed.items())[-_IMAGES:]
        tiles = [(image, at) for image, places in images for at in sorted(places)]
    sample = stage.chance.sample(tiles, min(len(tiles), _SHARED_TILES))
    since = time.time()
    again = (publish_tile(stage.oracle, tile) for tile in sample)
    stage.send(again, rate=_SHARED_RATE, prefix=second.prefix)
    second.wait_acknowledged(since)


def _of_consumers(stage: Stage, links: dict[int, Link]) -> dict[str, Callable[[], None]]:
    return {
        "sigkill": lambda: kill_one(stage),
        "sigterm": lambda: terminate_one(stage),
        "sigstop": lambda: pause_one(stage),
        "broker_restart": lambda: restart_broker(stage),
        "partition": lambda: cut_off(stage, links, short=_coin(stage)),
    }


def _of_disks(
    stage: Stage, disk: PowerlessDisk, slow: SlowDisk, producer: Producer
) -> dict[str, Callable[[], None]]:
    return {
        "disk_full": lambda: fill_disk(stage),
        "slow_fsync": lambda: hang(stage, slow, _HANG_S),
        "power_loss": lambda: lose_power(stage, disk, producer, idle=_coin(stage)),
        "store_removed": lambda: remove_store(stage, producer, idle=_coin(stage)),
    }


def _of_messages(
    stage: Stage, bad: dict[bytes, Bad], killer: dict[bytes, Bad]
) -> dict[str, Callable[[], None]]:
    def alarm() -> None:
        sample = dict(stage.chance.sample(sorted(bad.items(), key=itemgetter(0)), _BAD_EACH))
        stage.bad.update(sample)
        raise_alarm(stage, list(sample.values()))

    def kill() -> None:
        stage.bad.update(killer)
        meet_killer(stage, *killer.values())

    return {"memory_alarm": alarm, "killer": kill}


def _coin(stage: Stage) -> bool:
    return stage.chance.random() < 0.5
