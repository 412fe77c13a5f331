"""One measured run: fill the queue, start a process, take its figures, check what it wrote."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pika
import psutil
import zarr

from benchmarks.cases import ARRAY, STORE, Case
from benchmarks.preload import preload
from benchmarks.rivals import RIVALS
from consumer.message import MAX_MESSAGE_BYTES
from consumer.new_arrays import LEDGER_ID
from consumer.settings import Settings
from consumer.testing import RabbitMQ
from consumer.topology import topology
from harness import ConsumerProcess, MemoryWatch, parameters, wait_until

CONSUMER, NOT_DURABLE = "consumer", "not_durable"
# What the consumer is measured without, to see what it costs.
_WITHOUT = {CONSUMER: "", NOT_DURABLE: "fence=off;sync=off"}
WRITERS = (*_WITHOUT, *RIVALS)
_LIMIT_S = 900.0
_POLL_S = 0.01
_METRICS_S = 0.5


@dataclass(frozen=True)
class Run:
    """What one run took; the last four of the consumer only."""

    seconds: float
    cpu_seconds: float = 0.0
    peak_memory_mib: float = 0.0
    write_amplification: float = 0.0
    array_opens: float = 0.0


class Bench:
    """Runs writers one after the other on one broker and one disk."""

    def __init__(self, broker: RabbitMQ, folder: Path, *, quick: bool) -> None:
        self._broker = broker
        self._root = folder / "root"
        self._log = folder / "consumer.log"
        self._quick = quick
        self._metadata: dict[str, Any] = {}

    def run(self, writer: str, case: Case) -> Run:
        """Run one writer over all of a case's messages.

        Raises
        ------
        AssertionError
            Where it wrote something else than was sent.
        """
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir(parents=True)
        if writer != "write_only":
            self._fill(case)
        # What the writer before left to be written or discarded is not this one's.
        os.sync()
        if writer in _WITHOUT:
            found = self._consumer(case, _WITHOUT[writer])
        else:
            found = self._rival(writer, case)
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
        ended = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_LIMIT_S
        )
        if ended.returncode:
            raise RuntimeError(f"{writer} failed:\n{ended.stderr[-3000:]}")
        return Run(json.loads(ended.stdout)["seconds"])

    def _consumer(self, case: Case, failpoints: str) -> Run:
        self._log.unlink(missing_ok=True)
        process = ConsumerProcess(
            self._broker,
            self._root,
            self._log,
            idle_s=5,
            prefetch_count=case.prefetch,
            # All at once must have a place in the scratch file.
            scratch_bytes=case.prefetch * MAX_MESSAGE_BYTES,
            failpoints=failpoints,
        )
        try:
            process.start(ready=False)
            began = self._subscribed()
            cpu = _cpu_seconds(process.pid)
            deadline = time.monotonic() + _LIMIT_S
            with MemoryWatch(process.pid) as memory:
                while process.settled() < case.message_count:
                    assert time.monotonic() < deadline, f"not settled:\n{process.tail()}"
                    time.sleep(_METRICS_S)
            metrics = process.metrics()
            found = Run(
                seconds=metrics["tiles_last_acknowledged_timestamp_seconds"] - began,
                cpu_seconds=_cpu_seconds(process.pid) - cpu,
                peak_memory_mib=memory.peak / (1 << 20),
                write_amplification=metrics["tiles_write_amplification_ratio"],
                array_opens=metrics["tiles_array_opens_total"],
            )
            assert process.stop() == 0
        finally:
            process.__exit__(None, None, None)
        return found

    def _subscribed(self) -> float:
        """Return the last time, Unix, at which the consumer was not subscribed yet."""
        before = time.time()

        def subscribed() -> bool:
            nonlocal before
            looked = time.time()
            if self._log.exists() and '"subscribed"' in self._log.read_text():
                return True
            before = looked
            return False

        wait_until(subscribed, "the subscription")
        return before

    def _check(self, case: Case) -> None:
        metadata = json.loads((self._root / STORE / ARRAY / "zarr.json").read_text())
        # What tells one array from another of its name is each one's own.
        del metadata["attributes"][LEDGER_ID]
        assert self._metadata.setdefault(case.name, metadata) == metadata, "another zarr.json"
        stored = zarr.open_array(self._root / STORE, path=ARRAY, mode="r")
        for sample in range(case.samples):
            assert np.array_equal(np.asarray(stored[sample, 0]), case.image(sample)), sample


def broker_version(broker: RabbitMQ) -> str:
    """Return what the broker says that it is."""
    with pika.BlockingConnection(parameters(broker)) as connection:
        said = connection._impl.server_properties
    return f"{said['product']} {said['version']}"


def _cpu_seconds(pid: int) -> float:
    """Return what a process and its children have computed."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))
