"""Faults of the disk: full, failing, slow, without power; and stores that somebody removes."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chaos import fleet as fleets
from chaos import product
from chaos.disks import FailingDisk, PowerlessDisk
from chaos.fleet import CONSUMER_TIMEOUT_S, Fleet, running
from chaos.images import STORES, Tile, tiles
from chaos.producer import Producer, publish_tile
from chaos.product import NotRun
from chaos.stage import Stage
from faults import SlowDisk, tmpfs
from harness import wait_until

_SMALL = "256m"
_SHARE = 0.01
_HANG_S, _HANG_QUICK_S = 60.0, 20.0
# Once a minute the broker looks for what is held for longer than its timeout.
_LONG_HANG_S = CONSUMER_TIMEOUT_S + 70.0
# In short, deliveries are given back during the hang all the same.
_TIMEOUT_QUICK_S = 24
_HANG_HEARTBEAT_S = 5
_BALLAST = "ballast"


def disk_full(stage: Stage, count: int) -> None:
    """Fill a small file system, and free it later."""
    try:
        stage.enter(tmpfs(stage.root, _SMALL))
    except PermissionError as error:
        raise NotRun(str(error)) from error
    stage.start()
    with stage.load():
        stage.fleet.wait_acknowledged(0)
        for _ in stage.counted(count):
            fill_disk(stage)


def fill_disk(stage: Stage) -> None:
    """Fill the file system, and keep it full until each has seen that; then free it."""
    ballast = stage.root / _BALLAST
    stage.fleet.wait_acknowledged(time.time() + stage.chance.random())
    seen: set[str] = set()

    def all_saw_it() -> bool:
        # A write that fails gives back what it had taken, and that would be room for a probe.
        _fill(ballast)
        seen.update(_who_sees_it(stage.fleet))
        return seen >= {fleets.name(each) for each in stage.fleet.consumers if running(each)}

    try:
        wait_until(all_saw_it, lambda: f"more than {sorted(seen)} to see a full disk", poll_s=0.05)
    finally:
        ballast.unlink(missing_ok=True)
    stage.recovered(time.time())


def _fill(ballast: Path) -> None:
    """Have a file take all the room that there is, beside what it takes already."""
    with ballast.open("ab") as file:
        size = file.tell()
        for nbytes in (1 << 24, 1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), size, nbytes)
                    size += nbytes


def _who_sees_it(fleet: Fleet) -> Iterator[str]:
    for consumer in fleet.consumers:
        found = fleets.metrics(consumer)
        if found and not found["tiles_root_writable"]:
            yield fleets.name(consumer)


def io_errors(stage: Stage, count: int) -> None:
    """Let one of a hundred calls of each kind fail, with EIO or with ENOSPC."""
    stage.root.mkdir()
    disk = FailingDisk(stage.folder, stage.root, _SHARE)
    stage.start(environment=disk.environment, max_age_s=30)
    endless = tiles(stage.chance)
    stage.send((publish_tile(stage.oracle, next(endless)) for _ in range(count)), rate=300)
    with stage.channel() as channel:
        wait_until(lambda: channel.depth(f"{channel.prefix}.00") == 0, "all delivered", 900.0)
    failed = disk.failed()
    told = ", ".join(f"{count} {what}" for what, count in sorted(failed.items()))
    stage.notes.append(f"{failed.total()} calls failed: {told}")
    wanted = {f"{e} {call}" for e in ("EIO", "ENOSPC") for call in FailingDisk.CALLS}
    if wanted - set(failed):
        stage.problems.append(f"never failed: {', '.join(sorted(wanted - set(failed)))}")
    stage.faults = count


def slow_fsync(stage: Stage, count: int) -> None:
    """Have the disk hang for a minute, and once for longer than the broker's timeout.

    Heartbeats go on, and deliveries are given back before the broker would take them away.
    """
    disk, quick = SlowDisk(stage.folder), stage.options.quick
    timeout_s = _TIMEOUT_QUICK_S if quick else CONSUMER_TIMEOUT_S
    fleet = stage.start(
        environment=disk.environment, heartbeat_s=_HANG_HEARTBEAT_S, consumer_timeout_s=timeout_s
    )
    with stage.load():
        stage.fleet.wait_acknowledged(0)
        for number in stage.counted(count):
            usual = _HANG_S if number < count - 1 else _LONG_HANG_S
            hang(stage, disk, _HANG_QUICK_S if quick else usual, timeout_s)
    logs = "".join(consumer.log.read_text() for consumer in fleet.consumers)
    if "PRECONDITION_FAILED" in logs:
        stage.problems.append(f"held a delivery for more than {CONSUMER_TIMEOUT_S} s")


@dataclass
class Hang:
    """What was seen while the disk hung.

    Attributes
    ----------
    oldest_s : float
        The greatest age of a delivery held, as told.
    connections, channels : float
        Lost meanwhile.
    dead_s : float or None
        When the active consumer was first seen not to be live, after the beginning.
    """

    seconds: float
    timeout_s: float
    oldest_s: float = 0.0
    connections: float = 0.0
    channels: float = 0.0
    dead_s: float | None = None

    def problems(self) -> Iterator[str]:
        """Yield what is wrong: deliveries are given back in time, which costs a channel only."""
        promised = product.held_at_most(self.timeout_s)
        if self.dead_s is not None:
            yield f"not live {self.dead_s:.1f} s after its disk began to hang"
        if self.connections:
            yield f"{self.connections:.0f} connections were lost while the disk hung"
        if self.oldest_s > promised:
            yield f"a delivery was held for {self.oldest_s:.1f} s, more than {promised:.1f} s"
        if self.seconds > promised and not self.channels:
            yield f"nothing was given back in {self.seconds:.0f} s"


def hang(
    stage: Stage, disk: SlowDisk, seconds: float, timeout_s: float = CONSUMER_TIMEOUT_S
) -> None:
    """Have every fsync under way, or begun meanwhile, take until so many seconds are over."""
    fleet, seen = stage.fleet, Hang(seconds, timeout_s)
    # What an earlier fault has cut would count here.
    for consumer in fleet.consumers:
        consumer.wait_ready()
    fleet.wait_acknowledged(time.time() + stage.chance.random())
    active, begun = fleet.active(), time.monotonic()
    connections, channels = _lost(fleet)
    disk.take(float("inf"))

    def over() -> bool:
        passed = time.monotonic() - begun
        seen.oldest_s = max([seen.oldest_s, *fleet.values(product.OLDEST_HELD)])
        if active.status("/livez") != 200 and seen.dead_s is None:
            seen.dead_s = passed
        return passed > seconds

    try:
        wait_until(over, "the end of a hang", seconds + 60, poll_s=0.2)
        now = _lost(fleet)
    finally:
        disk.take(0)
    seen.connections, seen.channels = now[0] - connections, now[1] - channels
    stage.problems += seen.problems()
    stage.notes.append(f"held for {seen.oldest_s:.1f} s at most while the disk hung")
    stage.recovered(time.time())


def _lost(fleet: Fleet) -> tuple[float, float]:
    """Return how many connections and channels were lost so far."""
    return sum(fleet.values(product.LOST_CONNECTIONS)), sum(fleet.values(product.LOST_CHANNELS))


def power_loss(stage: Stage, count: int) -> None:
    """Cut the power of disk and consumers, and start them again on what was synced."""
    disk = stage.enter(PowerlessDisk(stage.folder, stage.root))
    # A probe syncs, and that could make durable what the commit has forgotten.
    stage.start(probe_interval_s=600)
    with stage.load() as producer:
        stage.fleet.wait_acknowledged(0)
        for number in stage.counted(count):
            lose_power(stage, disk, producer, idle=number % 2 == 0)


def lose_power(stage: Stage, disk: PowerlessDisk, producer: Producer, *, idle: bool) -> None:
    """Cut the power in the midst of writes, or just when all that was published is acknowledged."""
    stage.fleet.wait_acknowledged(time.time() + stage.chance.random())
    with producer.held() if idle else contextlib.nullcontext():
        if idle:
            _wait_idle(stage)
        since = time.time()
        disk.cut()
        for fleet in stage.fleets:
            fleet.end()
    disk.unmount()
    disk.mount()
    for fleet in stage.fleets:
        fleet.revive()
    stage.recovered(since)


def store_removed(stage: Stage, count: int) -> None:
    """Remove a store, and publish again what was in it."""
    stage.start()
    with stage.load() as producer:
        stage.fleet.wait_acknowledged(0)
        for number in stage.counted(count):
            remove_store(stage, producer, idle=number % 2 == 0)


def remove_store(stage: Stage, producer: Producer, *, idle: bool) -> None:
    """Remove a store while nothing is to be written, or in the midst of writes."""
    store = stage.chance.choice(STORES)
    stage.fleet.wait_acknowledged(time.time() + stage.chance.random())
    with producer.held() if idle else contextlib.nullcontext():
        if idle:
            _wait_idle(stage)
        # A folder that is written to meanwhile may not be empty when its turn comes.
        wait_until(lambda: _removed(stage.root / store), f"the end of {store}")
    removed = time.monotonic()
    with producer.held():
        gone = [tile for tile in _confirmed(stage) if tile[0].store == store]
    again = (publish_tile(stage.oracle, tile) for tile in gone)
    with stage.publishing(again, rate=1e4) as resending:
        # For this store, that is its work: others never stopped.
        there = stage.root / store / "zarr.json"
        wait_until(there.exists, lambda: f"{store} again:\n{stage.fleet.tails()}", poll_s=0.05)
        stage.recoveries.append(time.monotonic() - removed)
        resending.wait()


def _removed(folder: Path) -> bool:
    return not subprocess.run(["rm", "-rf", folder], check=False, capture_output=True).returncode


def _confirmed(stage: Stage) -> list[Tile]:
    return [
        (image, at) for image, places in stage.oracle.confirmed.items() for at in sorted(places)
    ]


def _wait_idle(stage: Stage) -> None:
    with stage.channel() as channel:
        wait_until(
            lambda: stage.fleet.idle(channel),
            lambda: f"all acknowledged:\n{stage.fleet.tails()}",
            poll_s=0.05,
        )
