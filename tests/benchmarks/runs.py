"""One measured run: fill the queue, start a process, take its figures, check what it wrote."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pika
import zarr

from benchmarks.cases import ARRAY, STORE, Case
from benchmarks.preload import preload
from benchmarks.rivals import RIVALS
from benchmarks.threads import NAMES, Key, Usage, between, usages
from consumer.events import ArrayCompleted
from consumer.message import MAX_MESSAGE_BYTES
from consumer.settings import Settings
from consumer.testing import RabbitMQ
from consumer.topology import topology
from harness import ConsumerProcess, ended, parameters, wait_until
from watch import MemoryWatch, cpu_seconds

CONSUMER, NOT_DURABLE = "consumer", "not_durable"
# What the consumer is measured without, to see what it costs.
_WITHOUT = {CONSUMER: "", NOT_DURABLE: "fence=off;sync=off"}
WRITERS = (*_WITHOUT, *RIVALS)
_LIMIT_S = 900.0
_LOOK_S = 5.0
# ioctl_iflags(2); the same as chattr +T.
_GET_FLAGS, _SET_FLAGS, _TOP_OF_TREE = 0x80086601, 0x40086602, 0x00020000
# Lines of text tell milliseconds.
_SUBSCRIBED = re.compile(r"^(\S+ \S+) INFO consumer\.subscription subscribed ", re.M)


@dataclass(frozen=True)
class Run:
    """What one run took; all from the write amplification on of the consumer only."""

    seconds: float
    cpu_seconds: float
    peak_memory_mib: float
    write_amplification: float = 0.0
    array_opens: float = 0.0
    files: int = 0
    threads: dict[Key, Usage] = field(default_factory=dict)


class Bench:
    """Runs writers one after the other on one broker and one disk.

    Parameters
    ----------
    named : bool
        Whether the system is to know the consumer's threads by their names.
    """

    def __init__(self, broker: RabbitMQ, folder: Path, *, quick: bool, named: bool = False) -> None:
        self._broker = broker
        self._folder = folder
        spread(folder)
        self._root = folder / "root"
        self._log = folder / "consumer.log"
        self._quick, self._named = quick, named

    def run(self, writer: str, case: Case) -> Run:
        """Run one writer over all of a case's messages.

        Raises
        ------
        AssertionError
            Where it wrote something else than was sent.
        """
        self._root = Path(tempfile.mkdtemp(dir=self._folder))
        if writer != "write_only":
            self._fill(case)
        case.create(self._root)
        metadata = self._metadata()
        # What the writer before left to be written or discarded is not this one's.
        os.sync()
        if writer in _WITHOUT:
            found = self._consumer(case, _WITHOUT[writer])
        else:
            found = self._rival(writer, case)
        assert self._metadata() == metadata, "another zarr.json"
        if writer != "drain_only":
            self._check(case)
        shutil.rmtree(self._root)
        return found

    def _fill(self, case: Case) -> None:
        sent = preload(self._broker.host, Settings(output_root=self._root), case)
        assert sent == case.message_count

    def _rival(self, writer: str, case: Case) -> Run:
        queue = topology(Settings(output_root=self._root)).partitions[0].name
        command = [
            *(sys.executable, "-m", "benchmarks.rivals", writer, case.name),
            *("--host", self._broker.host, "--queue", queue, "--root", str(self._root)),
            *(["--quick"] if self._quick else []),
        ]
        pipe = subprocess.PIPE
        with (
            subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process,
            MemoryWatch(process.pid) as memory,
        ):
            try:
                said, errors = process.communicate(timeout=_LIMIT_S)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise RuntimeError(f"{writer} failed:\n{errors[-3000:]}")
        return Run(**json.loads(said), peak_memory_mib=memory.peak / (1 << 20))

    def _consumer(self, case: Case, failpoints: str) -> Run:
        process = self._process(case, failpoints)
        with pika.BlockingConnection(parameters(self._broker)) as connection, ended(process):
            channel = connection.channel()
            queue = self._completions(channel)
            process.start(ready=False)
            wait_until(lambda: subscribed_at(process.tail()) is not None, "the subscription")
            cpu, threads = cpu_seconds(process.pid), self._usages(process.pid)
            with MemoryWatch(process.pid) as memory:
                _wait_announced(channel, queue, process)
                # Not asked before: to answer takes time of the thread that receives.
                process.wait_settled(case.message_count)
            cpu = cpu_seconds(process.pid) - cpu
            threads = between(threads, self._usages(process.pid))
            metrics = process.metrics()
            assert process.stop() == 0
        began = subscribed_at(self._log.read_text())
        assert began is not None
        return Run(
            seconds=metrics["tiles_last_acknowledged_timestamp_seconds"] - began,
            cpu_seconds=cpu,
            peak_memory_mib=memory.peak / (1 << 20),
            write_amplification=metrics["tiles_write_amplification_ratio"],
            array_opens=metrics["tiles_array_opens_total"],
            files=sum(path.is_file() for path in (self._root / STORE / ARRAY / "c").rglob("*")),
            threads=threads,
        )

    def _usages(self, pid: int) -> dict[Key, Usage]:
        return usages(pid) if self._named else {}

    def _process(self, case: Case, failpoints: str) -> ConsumerProcess:
        self._log.unlink(missing_ok=True)
        paths = (str(NAMES), *os.environ.get("PYTHONPATH", "").split(":"))
        return ConsumerProcess(
            self._broker,
            self._root,
            self._log,
            environment={"PYTHONPATH": ":".join(filter(None, paths))} if self._named else None,
            idle_s=5,
            prefetch_count=case.prefetch,
            # All at once must have a place in the scratch file.
            scratch_bytes=case.prefetch * MAX_MESSAGE_BYTES,
            failpoints=failpoints,
            log_format="text",
        )

    def _completions(self, channel: Any) -> str:
        """Return the name of a queue that hears of every array that is complete."""
        name = str(channel.queue_declare("", exclusive=True).method.queue)
        events = topology(Settings(output_root=self._root)).events.name
        channel.queue_bind(name, events, f"{ArrayCompleted.event}.#")
        return name

    def _metadata(self) -> Any:
        return json.loads((self._root / STORE / ARRAY / "zarr.json").read_text())

    def _check(self, case: Case) -> None:
        stored = zarr.open_array(self._root / STORE, path=ARRAY, mode="r")
        for sample in range(case.samples):
            assert np.array_equal(np.asarray(stored[sample, 0]), case.image(sample)), sample


def subscribed_at(log: str) -> float | None:
    """Return when a consumer subscribed, as its log says, Unix seconds; None where it did not."""
    found = _SUBSCRIBED.search(log)
    if found is None:
        return None
    return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def spread(folder: Path) -> None:
    """Have ext4 lay each folder that is made in this one elsewhere on the disk; others need not.

    Without a journal it looks at every inode near by that was removed in the last minutes before it
    makes another (fs/ext4/ialloc.c, recently_deleted): files took a fifth longer after another run.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            (flags,) = struct.unpack("i", fcntl.ioctl(descriptor, _GET_FLAGS, bytes(4)))
            fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("i", flags | _TOP_OF_TREE))
    finally:
        os.close(descriptor)


def _wait_announced(channel: Any, queue: str, process: ConsumerProcess) -> None:
    deadline = time.monotonic() + _LIMIT_S
    for method, _, _ in channel.consume(queue, auto_ack=True, inactivity_timeout=_LOOK_S):
        if method is not None:
            return
        alive = process.process is not None and process.process.poll() is None
        assert alive, f"ended:\n{process.tail()}"
        assert time.monotonic() < deadline, f"not complete:\n{process.tail()}"


def broker_version(broker: RabbitMQ) -> str:
    """Return what the broker says that it is."""
    with pika.BlockingConnection(parameters(broker)) as connection:
        said = connection._impl.server_properties
    return f"{said['product']} {said['version']}"
