"""Several consumers on one queue: one is active, the others stand by."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil

from consumer.testing import RabbitMQ
from harness import Channel, ConsumerProcess, wait_until

REPLICAS = 3
# All scenarios are on one broker, whose consumer_timeout is this.
CONSUMER_TIMEOUT_S = 120
_POLL_S = 0.1
_QUIET_S = 1.0
# Longer than the grace time.
_STOP_S = 90.0
_DEFAULTS: dict[str, Any] = {
    "consumer_timeout_s": CONSUMER_TIMEOUT_S,
    "max_age_s": 6,
    "prefetch_count": 100,
    "retry_max_s": 1,
    "heartbeat_s": 5,
    "reconnect_min_s": 0.1,
    "log_level": "INFO",
}


class Fleet:
    """Consumers of one queue that write below one root.

    Parameters
    ----------
    folder : Path
        Where their logs lie.
    environment : mapping
        What each finds in its environment, beside its settings.
    settings : dict
        Those of `consumer run`.
    """

    def __init__(
        self,
        broker: RabbitMQ,
        root: Path,
        folder: Path,
        prefix: str,
        *,
        count: int = REPLICAS,
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.prefix = prefix
        self.consumers = [
            ConsumerProcess(
                broker,
                root,
                folder / f"{prefix}-{number}.log",
                environment=environment,
                **_DEFAULTS | {"topology_prefix": prefix, "consumer_name": f"c{number}"} | settings,
            )
            for number in range(count)
        ]
        # Whether whoever ends by itself is started again, as by an orchestrator.
        self.reviving = False

    def start(self) -> None:
        """Start all, in order, and wait until each is ready."""
        for consumer in self.consumers:
            consumer.start(ready=False)
        for consumer in self.consumers:
            consumer.wait_ready()

    def end(self) -> None:
        """End whatever still runs."""
        for consumer in self.consumers:
            self.kill(consumer)

    def kill(self, consumer: ConsumerProcess, *, owner: bool = True, writer: bool = True) -> None:
        """Send SIGKILL to one or both of a consumer's processes, and wait for the end of both.

        One that has just been started may not have a writer yet.
        """
        family = processes(consumer)
        victims = family[:1] * owner + family[1:] * writer or family
        signal_all(victims, signal.SIGKILL)
        # One that is stopped cannot see that the other is gone.
        signal_all([each for each in family if each not in victims], signal.SIGCONT)
        if consumer.process is not None:
            consumer.process.wait(30)
        wait_until(lambda: not any(map(_lives, family)), f"the end of {name(consumer)}")

    def revive(self) -> list[ConsumerProcess]:
        """Start again whoever ended; return those."""
        ended = [each for each in self.consumers if not running(each)]
        for consumer in ended:
            consumer.start(ready=False)
        return ended

    def stop(self) -> list[str]:
        """Send SIGTERM to all; return what is wrong with how they ended."""
        wrong = []
        for consumer in self.consumers:
            code = stopped(consumer)
            if code:
                wrong.append(f"{name(consumer)} ended with exit code {code} on SIGTERM")
        return wrong

    def metrics(self) -> list[dict[str, float] | None]:
        """Return the metrics of each that runs; None of one that does not answer yet."""
        if self.reviving:
            self.revive()
        return [metrics(each) for each in self.consumers if running(each) and not paused(each)]

    def acknowledged_at(self) -> float:
        """Return when any of those that run last acknowledged, Unix seconds; 0: never."""
        latest = "tiles_last_acknowledged_timestamp_seconds"
        return max((found[latest] for found in self.metrics() if found), default=0.0)

    def active(self) -> ConsumerProcess:
        """Return the one that acknowledged last."""

        def latest(consumer: ConsumerProcess) -> float:
            found = None if paused(consumer) else metrics(consumer)
            return found["tiles_last_acknowledged_timestamp_seconds"] if found else 0.0

        return max(self.consumers, key=latest)

    def wait_acknowledged(self, since: float, timeout_s: float = 120.0) -> float:
        """Return once any acknowledges after a time, Unix; return the seconds that it took."""
        wait_until(
            lambda: self.acknowledged_at() > since,
            lambda: f"an acknowledgement:\n{self.tails()}",
            timeout_s,
            poll_s=_POLL_S,
        )
        return max(0.0, self.acknowledged_at() - since)

    def wait_done(self, channel: Channel, timeout_s: float = 180.0) -> None:
        """Return once the queue has stayed empty, and nothing unacknowledged, for a second."""
        since: list[float] = []

        def quiet() -> bool:
            if self._busy() or channel.depth(f"{self.prefix}.00"):
                since.clear()
                return False
            since.append(time.monotonic())
            return since[-1] - since[0] > _QUIET_S

        what = f"an empty queue {self.prefix}.00"
        wait_until(quiet, lambda: f"{what}:\n{self.tails()}", timeout_s, poll_s=_POLL_S)

    def idle(self, channel: Channel) -> bool:
        """Whether the queue is empty and nothing unacknowledged, as far as one look tells."""
        return not self._busy() and not channel.depth(f"{self.prefix}.00")

    def tails(self) -> str:
        """Return the last lines of each log."""
        return "\n".join(f"{name(each)}: …{each.tail()[-600:]}" for each in self.consumers)

    def _busy(self) -> bool:
        found = self.metrics()
        subscribed = any(each and each["tiles_subscribed"] for each in found)
        held = any(
            each is None or each["tiles_unacknowledged"] or each["tiles_open_blocks"]
            for each in found
        )
        return held or not subscribed


def name(consumer: ConsumerProcess) -> str:
    """Return what to call a consumer."""
    return consumer.log.stem


def metrics(consumer: ConsumerProcess) -> dict[str, float] | None:
    """Return a consumer's metrics, or None where it does not answer."""
    with contextlib.suppress(OSError, HTTPException):
        return consumer.metrics()
    return None


def running(consumer: ConsumerProcess) -> bool:
    """Whether its process has been started and has not ended."""
    return consumer.process is not None and consumer.process.poll() is None


def stopped(consumer: ConsumerProcess) -> int:
    """Send SIGTERM; return the exit code, also of one that has ended by itself.

    One that does not end is killed, and has a signal's number for a code.
    """
    if consumer.process is None:
        return 0
    if running(consumer):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return consumer.stop(_STOP_S)
        signal_all(processes(consumer), signal.SIGKILL)
    return consumer.process.wait()


def processes(consumer: ConsumerProcess) -> list[psutil.Process]:
    """Return the processes of a consumer: the owner and its writer."""
    with contextlib.suppress(psutil.Error):
        if running(consumer):
            owner = psutil.Process(consumer.pid)
            return [owner, *owner.children()]
    return []


def paused(consumer: ConsumerProcess) -> bool:
    """Whether it is stopped by a signal."""
    with contextlib.suppress(psutil.Error):
        return running(consumer) and psutil.Process(consumer.pid).status() == psutil.STATUS_STOPPED
    return False


def signal_all(family: list[psutil.Process], number: int) -> None:
    """Send a signal to each that still lives."""
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
