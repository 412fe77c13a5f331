"""Lost channels, cancelled consumers and pika's own limits, against a real broker."""

import itertools
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

from conftest import MakeConsumer
from consumer.connection import RECEIVE_BYTES, prepare_pika
from consumer.testing import RabbitMQ
from faults import Image, Oracle, Proxy, SlowDisk, wait_done
from harness import Channel, ConsumerProcess, wait_until

PLAIN = (("chunks", [1, 128, 128]),)
UNACKNOWLEDGED = "tiles_unacknowledged"
RECONNECTS = 'tiles_reconnects_total{connection="consume"}'


@pytest.fixture
def proxy(broker: RabbitMQ) -> Iterator[Proxy]:
    """A proxy before the session's broker."""
    with Proxy(broker.host) as running:
        yield running


# -- what is changed in pika --------------------------------------------------------------------


def test_pika_still_receives_4_kib_where_nobody_changes_it() -> None:
    words = (
        "from pika.adapters.utils.io_services_utils import _AsyncTransportBase as transport;"
        "print(transport._MAX_RECV_BYTES)"
    )
    found = subprocess.run([sys.executable, "-c", words], check=True, capture_output=True)
    assert int(found.stdout) == 4096


class _RecordingSocket(socket.socket):
    """Records how much each read asked for."""

    asked: list[int]

    def recv(self, size: int, flags: int = 0) -> bytes:
        self.asked = [*getattr(self, "asked", []), size]
        return super().recv(size, flags)


class _Protocol:
    def data_received(self, data: bytes) -> None:
        """Take bytes."""

    def connection_lost(self, error: Any) -> None:
        """Take note of the end."""


def test_pika_reads_128_kib_at_a_time_once_prepared() -> None:
    prepare_pika()
    ours, theirs = socket.socketpair()
    with _RecordingSocket(fileno=ours.detach()) as reading, theirs:
        reading.setblocking(False)
        theirs.sendall(bytes(1000))
        loop = IOLoop()
        transport = _AsyncPlaintextTransport(reading, _Protocol(), SelectorIOServicesAdapter(loop))
        with pytest.raises(BlockingIOError):
            transport._consume()
        loop.close()
    assert reading.asked == [RECEIVE_BYTES] * 2
    assert RECEIVE_BYTES == 128 << 10


# -- lost channels ------------------------------------------------------------------------------


def test_a_tag_is_never_used_on_another_channel(
    make_consumer: MakeConsumer, producer: Channel, proxy: Proxy, tmp_path: Path
) -> None:
    disk, oracle = SlowDisk(tmp_path), Oracle()
    image = Image(0, "a.zarr", "x", (256, 512), 128, PLAIN)
    with make_consumer(hosts=proxy.host, environment=disk.environment) as consumer:
        send(producer, image, oracle, image.places()[:6])
        consumer.wait_settled(6)
        disk.take(float("inf"))
        begun = disk.count("begun", within="/.tiles/a.zarr/")
        send(producer, image, oracle, image.places()[6:])
        wait_until(lambda: disk.count("begun", within="/.tiles/a.zarr/") > begun, "a write")
        proxy.cut()
        redelivered = "tiles_redeliveries_total"
        wait_until(lambda: consumer.metrics()[redelivered] == 2, "both tiles on a new channel")
        disk.take(0)
        wait_done(consumer, producer)
        assert consumer.metrics()[RECONNECTS] == 1
        assert consumer.stop() == 0
    assert "PRECONDITION_FAILED" not in consumer.log.read_text()
    assert oracle.wrong(tmp_path / "root") == 0


def wait_subscribed(consumer: ConsumerProcess, times: int) -> None:
    """Return once the consumer has subscribed so many times."""
    wait_until(lambda: consumer.log.read_text().count('"subscribed"') >= times, "a subscription")


def send(channel: Channel, image: Image, oracle: Oracle, places: list[tuple[int, int]]) -> None:
    """Publish some tiles of an image."""
    for place in places:
        channel.publish(image.message(place))
        oracle.note(image, place)


def test_tiles_survive_connections_cut_again_and_again(
    make_consumer: MakeConsumer, producer: Channel, proxy: Proxy, tmp_path: Path
) -> None:
    oracle, image = Oracle(), Image(0, "a.zarr", "x", (1024, 1024), 64, PLAIN)
    settings = {"hosts": proxy.host, "reconnect_min_s": 0.05, "prefetch_count": 30}
    with make_consumer(**settings) as consumer:
        send(producer, image, oracle, image.places())
        for enough in (10, 60, 110, 160):
            consumer.wait_settled(enough)
            proxy.cut()
        wait_done(consumer, producer)
        assert consumer.stop() == 0
    assert "PRECONDITION_FAILED" not in consumer.log.read_text()
    assert oracle.wrong(tmp_path / "root") == 0


def test_bad_messages_are_parked_though_connections_are_cut(
    make_consumer: MakeConsumer, producer: Channel, proxy: Proxy
) -> None:
    settings = {"hosts": proxy.host, "reconnect_min_s": 0.05, "prefetch_count": 20}
    good = Image(0, "a.zarr", "x", (64, 64), 64).message((0, 0))
    with make_consumer(**settings) as consumer:
        for number in range(150):
            producer.publish(good, type="tiles.v9", message_id=str(number))
        for enough in (20, 40, 60):
            wait_until(lambda n=enough: producer.depth(f"{producer.prefix}.parked") >= n, "parked")  # type: ignore[misc]
            proxy.cut()
        wait_done(consumer, producer)
        assert consumer.stop() == 0
    parked = {
        properties.message_id for properties, _ in producer.drain(f"{producer.prefix}.parked")
    }
    assert parked == set(map(str, range(150)))


def test_a_parking_that_outlives_its_channel_acknowledges_nothing_on_the_next(
    make_consumer: MakeConsumer, producer: Channel, proxy: Proxy
) -> None:
    bad = Image(0, "a.zarr", "x", (64, 64), 64).message((0, 0))
    with make_consumer(hosts=proxy.host) as consumer:
        producer.channel.queue_delete(f"{producer.prefix}.parked")
        producer.publish(bad, type="tiles.v9")
        retries = 'tiles_retries_total{operation="park"}'
        wait_until(lambda: consumer.metrics()[retries] > 0, "a parked message returned")
        proxy.cut()
        wait_subscribed(consumer, 2)
        wait_done(consumer, producer)
        assert consumer.metrics()[RECONNECTS] == 1
        assert consumer.stop() == 0
    assert "PRECONDITION_FAILED" not in consumer.log.read_text()
    assert producer.depth(f"{producer.prefix}.parked") >= 1


def test_connecting_again_backs_off_with_jitter(make_consumer: MakeConsumer, proxy: Proxy) -> None:
    settings = {"hosts": proxy.host, "reconnect_min_s": 0.1, "reconnect_max_s": 0.8}
    with make_consumer(**settings) as consumer:
        proxy.refusing = True
        proxy.cut()
        wait_until(lambda: len(waits(consumer.log)) >= 14, "fourteen attempts")
        proxy.refusing = False
        consumer.wait_ready()
    found = {purpose: waits(consumer.log, purpose)[:7] for purpose in ("consume", "publish")}
    limits = [min(0.8, 0.1 * 2**n) for n in range(7)]
    for given in found.values():
        assert all(m / 2 - 0.01 <= w <= m + 0.01 for w, m in zip(given, limits, strict=False))
    assert found["consume"] != found["publish"]


def waits(log: Path, purpose: str = "") -> list[float]:
    """How long each attempt to connect was put off, in seconds."""
    # The last line may be half written.
    whole = log.read_text().rpartition("\n")[0]
    lines = (json.loads(line) for line in whole.splitlines())
    return [
        line["wait_s"] for line in lines if "wait_s" in line and purpose in line.get("purpose", "")
    ]


def test_the_first_wait_is_short_again_after_each_success(
    make_consumer: MakeConsumer, proxy: Proxy
) -> None:
    with make_consumer(hosts=proxy.host, reconnect_min_s=0.2, reconnect_max_s=20) as consumer:
        for cuts in range(1, 6):
            proxy.cut()
            wait_subscribed(consumer, cuts + 1)
    assert max(waits(consumer.log, "consume")) <= 0.2


def test_a_queue_that_is_deleted_is_declared_anew(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    oracle, image = Oracle(), Image(0, "a.zarr", "x", (256, 256), 128, PLAIN)
    with make_consumer() as consumer:
        send(producer, image, oracle, image.places()[:2])
        consumer.wait_settled(2)
        producer.channel.queue_delete(f"{producer.prefix}.00")
        wait_subscribed(consumer, 2)
        send(producer, image, oracle, image.places()[2:])
        wait_done(consumer, producer)
        assert consumer.stop() == 0
    assert oracle.wrong(tmp_path / "root") == 0


def test_a_consumer_without_a_broker_still_ends_well(
    make_consumer: MakeConsumer, proxy: Proxy
) -> None:
    with make_consumer(hosts=proxy.host) as consumer:
        proxy.refusing = True
        proxy.cut()
        wait_until(lambda: consumer.status("/readyz") == 503, "not ready")
        assert consumer.stop() == 0


def test_a_topology_that_is_only_checked_is_never_declared(
    make_consumer: MakeConsumer, producer: Channel
) -> None:
    consumer = make_consumer(declare_topology=False).start(ready=False)
    wait_until(lambda: "NOT_FOUND" in consumer.log.read_text(), "the broker's own words")
    with make_consumer():
        consumer.wait_ready()
    assert consumer.stop() == 0


# -- heartbeats ---------------------------------------------------------------------------------


def test_a_disk_that_hangs_for_minutes_costs_no_heartbeat(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    disk, oracle = SlowDisk(tmp_path), Oracle()
    image = Image(0, "a.zarr", "x", (256, 256), 128, PLAIN)
    settings = {"heartbeat_s": 5, "environment": disk.environment, "idle_s": 0.2}
    with make_consumer(**settings) as consumer:
        send(producer, image, oracle, image.places()[:1])
        consumer.wait_settled(1)
        disk.take(20)
        send(producer, image, oracle, image.places()[1:2])
        consumer.wait_settled(2)
        metrics = consumer.metrics()
        disk.take(0)
        assert consumer.stop() == 0
    assert metrics[RECONNECTS] == 0
    assert metrics['tiles_reconnects_total{connection="publish"}'] == 0
    assert oracle.wrong(tmp_path / "root") == 0


@pytest.mark.parametrize("hung", ["new array", "known array"])
def test_nothing_is_acknowledged_before_its_fsync_returns(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path, hung: str
) -> None:
    disk, oracle = SlowDisk(tmp_path), Oracle()
    image = Image(0, "a.zarr", "x", (256, 256), 128, PLAIN)
    with make_consumer(environment=disk.environment, idle_s=0.1) as consumer:
        first = 1 if hung == "known array" else 0
        send(producer, image, oracle, image.places()[:first])
        consumer.wait_settled(first)
        disk.take(float("inf"))
        send(producer, image, oracle, image.places()[first:])
        wait_until(lambda: disk.count("begun") > disk.count("ended"), "an fsync under way")
        ages = 'tiles_partition_oldest_unacknowledged_seconds{partition="00"}'
        wait_until(lambda: consumer.metrics()[ages] > 2, "two seconds of a hanging disk")
        assert consumer.settled() == first
        assert consumer.metrics()[UNACKNOWLEDGED] == 4 - first
        disk.take(0)
        wait_done(consumer, producer)
        assert consumer.settled() == 4
        assert consumer.stop() == 0
    assert oracle.wrong(tmp_path / "root") == 0


def test_every_acknowledgement_follows_the_fsyncs_of_file_and_folder(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    """One more fsync is let through at a time; only the last lets the acknowledgement go."""
    disk = SlowDisk(tmp_path)
    image = Image(0, "a.zarr", "x", (256, 128), 128, PLAIN)
    with make_consumer(environment=disk.environment, probe_interval_s=600) as consumer:
        producer.publish(image.message((0, 0)))
        consumer.wait_settled(1)
        before = disk.count("ended")
        disk.take(1.0)
        producer.publish(image.message((128, 0)))
        ended_at_ack = next(
            disk.count("ended") for _ in itertools.count() if consumer.settled() == 2
        )
        assert consumer.stop() == 0
    assert ended_at_ack - before >= 2
