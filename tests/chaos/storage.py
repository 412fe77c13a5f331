"""Faults of the disk: full, failing, slow, without power; and stores that somebody removes."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from chaos import fleet as fleets
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
    """Have the disk hang for a minute: heartbeats go on, and the broker takes nothing away."""
    disk = SlowDisk(stage.folder)
    fleet = stage.start(environment=disk.environment, heartbeat_s=_HANG_HEARTBEAT_S)
    seconds = _HANG_QUICK_S if stage.options.quick else _HANG_S
    with stage.load():
        stage.fleet.wait_acknowledged(0)
        for _ in stage.counted(count):
            hang(stage, disk, seconds)
    logs = "".join(consumer.log.read_text() for consumer in fleet.consumers)
    if "PRECONDITION_FAILED" in logs:
        stage.problems.append(f"held a delivery for more than {CONSUMER_TIMEOUT_S} s")


def hang(stage: Stage, disk: SlowDisk, seconds: float) -> None:
    """Have every fsync under way, or begun meanwhile, take until so many seconds are over."""
    stage.fleet.wait_acknowledged(time.time() + stage.chance.random())
    active, lost = stage.fleet.active(), 'tiles_reconnects_total{connection="consume"}'
    before, begun = active.metrics()[lost], time.monotonic()
    dead = []
    disk.take(float("inf"))

    def over() -> bool:
        if active.status("/livez") != 200:
            dead.append(time.monotonic() - begun)
        return time.monotonic() - begun > seconds

    try:
        wait_until(over, "the end of a hang", seconds + 60, poll_s=0.2)
        lost_count = active.metrics()[lost] - before
    finally:
        disk.take(0)
    if dead:
        stage.problems.append(f"not live {dead[0]:.1f} s after its disk began to hang")
    # Later it gives deliveries back by itself, before the broker takes them away.
    if lost_count and seconds < CONSUMER_TIMEOUT_S / 3:
        stage.problems.append("lost its connection while its disk hung")
    stage.recovered(time.time())


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
        for consumer in stage.fleet.consumers:
            stage.fleet.kill(consumer)
    disk.unmount()
    disk.mount()
    stage.fleet.revive()
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
    since = time.time()
    with producer.held():
        gone = [tile for tile in _confirmed(stage) if tile[0].store == store]
    stage.send(publish_tile(stage.oracle, tile) for tile in gone)
    stage.recovered(since)


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
