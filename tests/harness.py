"""Real processes for the tests: a broker, `consumer run`, and a producer in plain pika."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker

from consumer.message import Encoded, encode
from consumer.testing import RabbitMQ, free_port

READY_S = 120.0
# What a queue with a single active consumer says to who polls it.
_LOCKED = 405


def wait_until(
    condition: Callable[[], bool],
    what: str | Callable[[], str],
    timeout_s: float = 120.0,
    *,
    poll_s: float = 0.02,
) -> None:
    """Return once the condition holds, or fail with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {timeout_s:g} s in vain for {told}")
        time.sleep(poll_s)


def voxels(shape: Sequence[int], *, array: int = 0, dtype: str = "float32") -> npt.NDArray[Any]:
    """Return values of which each tells its array and position, and none is zero.

    float32 holds 24 bits exactly: up to 16 million voxels, array number included.
    """
    count = int(np.prod(shape))
    values = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(array * count)
    assert values[-1] < 1 << 24 or dtype not in {"float32"}
    return values.astype(dtype).reshape(tuple(shape))


@dataclass
class Channel:
    """A producer's channel with confirms."""

    broker: RabbitMQ
    prefix: str = "tiles"
    _connection: Any = field(init=False, default=None)
    channel: Any = field(init=False, default=None)

    def __enter__(self) -> Self:
        self._connection = pika.BlockingConnection(parameters(self.broker))
        self.channel = self._connection.channel()
        self.channel.confirm_delivery()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()

    def publish(self, message: Encoded, **changed: Any) -> None:
        """Publish, confirmed and mandatory; `changed` replaces basic properties."""
        properties = pika.BasicProperties(**(message.properties | changed))
        self.channel.basic_publish(
            self.prefix, message.routing_key, message.body, properties, mandatory=True
        )

    def send(
        self, fields: Mapping[str, Any], arrays: Sequence[npt.NDArray[Any]], **options: bool
    ) -> None:
        """Encode and publish one message."""
        self.publish(encode(fields, arrays, **options))

    def said(self, queue: str) -> tuple[int, int]:
        """Messages ready in a queue, and its consumers, as the broker says when it is asked.

        Of a quorum queue whose leader is absent, or silent for 250 ms, it says that of both there
        are 0 (rabbit_quorum_queue, stat).
        """
        reply = self.channel.queue_declare(queue, passive=True)
        return int(reply.method.message_count), int(reply.method.consumer_count)

    def depth(self, queue: str) -> int:
        """Messages ready in a queue, once its leader has answered."""
        found = self.said(queue)
        if found == (0, 0):
            wait_until(lambda: self._answered(queue), f"the leader of {queue}", 300.0)
            found = self.said(queue)
        return found[0]

    def _answered(self, queue: str) -> bool:
        """Whether the leader answered who wants a message of a queue; it is back by then."""
        # For it closes the connection where it does not, and the channel where it refuses.
        try:
            with pika.BlockingConnection(parameters(self.broker)) as connection:
                method, _, _ = connection.channel().basic_get(queue)
        except ChannelClosedByBroker as error:
            return bool(error.reply_code == _LOCKED)
        except AMQPError:
            return False
        if method is not None:
            wanted = method.message_count + 1
            wait_until(lambda: self.said(queue)[0] >= wanted, f"{wanted} messages in {queue}")
        return True

    def wait_delivered(self, queue: str) -> None:
        """Return once the consumers of a queue have got all that was in it.

        A count of 0 alone is no proof: a quorum queue whose leader does not answer in time counts
        0 messages, and 0 consumers too.
        """

        def delivered() -> bool:
            counts = self.channel.queue_declare(queue, passive=True).method
            return bool(counts.consumer_count and not counts.message_count)

        wait_until(delivered, f"everything in {queue} delivered", 120)

    def drain(self, queue: str) -> list[tuple[Any, bytes]]:
        """Take everything out of a queue: properties and body of each message."""
        found: list[tuple[Any, bytes]] = []
        while True:
            method, properties, body = self.channel.basic_get(queue, auto_ack=True)
            if method is None:
                return found
            found.append((properties, body))


def parameters(broker: RabbitMQ) -> pika.ConnectionParameters:
    """Return pika's parameters of the default user."""
    host, port = broker.host.split(":")
    return pika.ConnectionParameters(host, int(port), heartbeat=600)


class ConsumerProcess:
    """A real `consumer run`."""

    def __init__(
        self,
        broker: RabbitMQ,
        root: Path,
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.port = free_port()
        self.log = log
        root.mkdir(parents=True, exist_ok=True)
        named = {f"TILES_{name}".upper(): str(value) for name, value in settings.items()}
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TILES_")},
            "TILES_OUTPUT_ROOT": str(root),
            "TILES_HOSTS": broker.host,
            "TILES_HTTP_HOST": "127.0.0.1",
            "TILES_HTTP_PORT": str(self.port),
            "TILES_IDLE_S": "0.5",
            "TILES_RECONNECT_MAX_S": "2",
            "TILES_PROBE_INTERVAL_S": "0.5",
            **named,
            **(environment or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> Self:
        """Start it, and wait until it is subscribed."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "consumer.cli", "run"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Return once `/readyz` says so."""
        wait_until(lambda: self.status("/readyz") == 200, lambda: f"ready:\n{self.tail()}", READY_S)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, timeout_s: float = 90.0) -> int:
        """Send SIGTERM; return the exit code."""
        self.signal(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def status(self, path: str) -> int:
        """Return the HTTP status of a path, 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as got:
                return int(got.status)
        except urllib.error.HTTPError as error:
            with error:
                return int(error.code)
        except OSError:
            return 0

    def metrics(self) -> dict[str, float]:
        """Return every sample by its name and labels, e.g. `tiles_held_bytes{kind="bodies"}`."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as got:
            lines = got.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def settled(self) -> int:
        """Deliveries acknowledged or parked."""
        found = self.metrics()
        parked = sum(v for k, v in found.items() if k.startswith("tiles_deliveries_parked_total"))
        return int(found["tiles_deliveries_acknowledged_total"] + parked)

    def wait_settled(self, count: int, timeout_s: float = 120.0) -> None:
        """Return once so many deliveries are acknowledged or parked."""
        wait_until(
            lambda: self.settled() >= count, lambda: f"{count} settled:\n{self.tail()}", timeout_s
        )

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-3000:] if self.log.exists() else ""


@contextlib.contextmanager
def ended(*processes: ConsumerProcess) -> Iterator[None]:
    """End processes that still run when the block is left."""
    try:
        yield
    finally:
        for process in processes:
            process.__exit__(None, None, None)
