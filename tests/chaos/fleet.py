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

from chaos import product
from consumer.testing import RabbitMQ
from harness import Channel, ConsumerProcess, wait_until

REPLICAS = 3
# All scenarios are on one broker, whose consumer_timeout is this.
CONSUMER_TIMEOUT_S = 120
_KILLED = -signal.SIGKILL
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

    Attributes
    ----------
    reviving : bool
        Whether whoever ends by itself is started again, as by an orchestrator. It must have been
        killed by a signal: anything else is wrong, as it is where nobody is revived.
    wrong : list of str
        Of consumers that ended otherwise than they should have.
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
        self.reviving = False
        self.wrong: list[str] = []

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
        if consumer.process is None:
            return
        family = processes(consumer)
        victims = family[:1] * owner + family[1:] * writer or family
        signal_all(victims, signal.SIGKILL)
        # One that is stopped cannot see that the other is gone.
        signal_all([each for each in family if each not in victims], signal.SIGCONT)
        if family:
            self._note_end(consumer, _KILLED if family[0] in victims else product.WRITER_LOST)
        else:
            self._note_end(consumer)
        wait_until(lambda: not any(map(_lives, family)), f"the end of {name(consumer)}")

    def revive(self, but: ConsumerProcess | None = None) -> None:
        """Start again whoever ended, but for one of them."""
        for consumer in self.consumers:
            if consumer is not but and not running(consumer):
                self._note_end(consumer)
                consumer.start(ready=False)

    def stop(self) -> list[str]:
        """Send SIGTERM to all; return what is wrong with how any has ended, now or before."""
        for consumer in self.consumers:
            if running(consumer):
                consumer.signal(signal.SIGTERM)
                self.note_stop(consumer)
            else:
                self._note_end(consumer)
        return self.wrong

    def note_stop(self, consumer: ConsumerProcess) -> None:
        """Take note of how one ends that was sent SIGTERM."""
        code = ended(consumer)
        if code:
            self.wrong.append(f"{name(consumer)} ended with exit code {code} on SIGTERM")
        consumer.process = None

    def _note_end(self, consumer: ConsumerProcess, *expected: int) -> None:
        """Take note of how a process has ended; without `expected`, by itself.

        It is forgotten then, so that each end is judged once.
        """
        if consumer.process is None:
            return
        code = consumer.process.wait(30)
        if code not in {*expected, *([_KILLED] if self.reviving else [])}:
            wanted = f", not {expected[0]}" if expected else " by itself"
            self.wrong.append(f"{name(consumer)} ended with exit code {code}{wanted}")
        consumer.process = None

    def metrics(self, but: ConsumerProcess | None = None) -> list[dict[str, float] | None]:
        """Return the metrics of each that runs, but for one; None where none answers yet."""
        if self.reviving:
            self.revive(but)
        return [
            metrics(each)
            for each in self.consumers
            if each is not but and running(each) and not paused(each)
        ]

    def values(self, prefix: str) -> list[float]:
        """Return every sample whose name begins so, of all that run."""
        found = [each for each in self.metrics() if each]
        return [value for each in found for key, value in each.items() if key.startswith(prefix)]

    def acknowledged_at(self, but: ConsumerProcess | None = None) -> float:
        """Return when any of those that run, but for one, last acknowledged; 0: never."""
        found = self.metrics(but)
        return max((each[product.LAST_ACKNOWLEDGED] for each in found if each), default=0.0)

    def active(self) -> ConsumerProcess:
        """Return the one that acknowledged last."""

        def latest(consumer: ConsumerProcess) -> float:
            found = None if paused(consumer) else metrics(consumer)
            return found[product.LAST_ACKNOWLEDGED] if found else 0.0

        return max(self.consumers, key=latest)

    def wait_acknowledged(
        self, since: float, timeout_s: float = 120.0, *, but: ConsumerProcess | None = None
    ) -> float:
        """Wait until any, but for one, acknowledges after a time; return when, as first seen.

        Both in Unix seconds.
        """
        latest = 0.0

        def acknowledged() -> bool:
            nonlocal latest
            latest = self.acknowledged_at(but)
            return latest > since

        what = "an acknowledgement"
        wait_until(acknowledged, lambda: f"{what}:\n{self.tails()}", timeout_s, poll_s=_POLL_S)
        return latest

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


def holds(consumer: ConsumerProcess) -> bool:
    """Whether it holds deliveries: a stand-by does not."""
    found = metrics(consumer)
    return bool(found and found["tiles_unacknowledged"])


def stopped(consumer: ConsumerProcess) -> int:
    """Send SIGTERM; return the exit code, also of one that has ended by itself."""
    if running(consumer):
        consumer.signal(signal.SIGTERM)
    return ended(consumer)


def ended(consumer: ConsumerProcess) -> int:
    """Return the exit code of one that was told to stop.

    One that does not end is killed, and has a signal's number for a code.
    """
    if consumer.process is None:
        return 0
    with contextlib.suppress(subprocess.TimeoutExpired):
        return consumer.process.wait(_STOP_S)
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
