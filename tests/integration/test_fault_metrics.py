"""What a real consumer's metrics say while something is at fault, and afterwards."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from conftest import MakeConsumer
from consumer.arrays import open_store
from consumer.events import events_exchange
from consumer.testing import RabbitMQ
from faults import Image, SlowDisk, mounted, remount, silent_leader, wait_done
from harness import Channel, ConsumerProcess, wait_until

IMAGE = Image(0, "a.zarr", "x", (256, 256), 128, (("chunks", [1, 128, 128]),))
OLDEST = 'tiles_partition_oldest_unacknowledged_seconds{partition="00"}'
DELIVERED = 'tiles_partition_last_delivery_timestamp_seconds{partition="00"}'
PARKED = "tiles_parking_queue_messages"
WAITING = 'tiles_partition_waiting_messages{partition="00"}'


def wait_more(consumer: ConsumerProcess, name: str, than: float) -> None:
    """Return once a metric is greater than that."""
    wait_until(lambda: consumer.metrics()[name] > than, lambda: f"{name}: {consumer.metrics()}")


def wait_zero(consumer: ConsumerProcess, name: str) -> None:
    """Return once a metric is 0."""
    wait_until(lambda: consumer.metrics()[name] == 0, lambda: f"{name}: {consumer.metrics()}")


def test_the_age_of_what_is_held_grows_while_the_disk_hangs(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    disk = SlowDisk(tmp_path)
    with make_consumer(environment=disk.environment) as consumer:
        assert consumer.metrics()[DELIVERED] == 0
        disk.take(float("inf"))
        producer.publish(IMAGE.message((0, 0)))
        wait_more(consumer, OLDEST, 1)
        wait_more(consumer, "tiles_writer_oldest_request_seconds", 1)
        assert consumer.metrics()[DELIVERED] > 1e9
        disk.take(0)
        wait_zero(consumer, OLDEST)
        wait_until(
            lambda: consumer.metrics()["tiles_writer_oldest_request_seconds"] < 1, "an answer"
        )
        assert consumer.stop() == 0


def test_what_waits_is_unknown_while_the_queues_leader_is_silent(
    make_consumer: MakeConsumer, producer: Channel
) -> None:
    with make_consumer() as consumer:
        wait_zero(consumer, WAITING)
        with silent_leader(producer.broker, f"{producer.prefix}.00"):
            wait_until(lambda: math.isnan(consumer.metrics()[WAITING]), "an unknown count")
            assert consumer.metrics()["tiles_subscribed"] == 1
        wait_zero(consumer, WAITING)
        assert consumer.stop() == 0


def test_what_the_broker_itself_dead_letters_is_seen_in_the_parking_queue(
    make_consumer: MakeConsumer, producer: Channel
) -> None:
    # Delivered for the last time without us, and given back.
    limit, parking = 10, f"{producer.prefix}.parked"
    with make_consumer(delivery_limit=limit) as consumer:
        assert consumer.stop() == 0
    producer.publish(IMAGE.message((0, 0)))
    deliveries = producer.channel.consume(f"{producer.prefix}.00", inactivity_timeout=1)
    while producer.depth(parking) == 0:
        method, _, _ = next(deliveries)
        if method is not None:
            producer.channel.basic_reject(method.delivery_tag, requeue=True)
    producer.channel.cancel()
    with make_consumer(delivery_limit=limit) as consumer:
        wait_until(lambda: consumer.metrics()[PARKED] == 1, lambda: f"{consumer.metrics()}")
        parked = {n: v for n, v in consumer.metrics().items() if "deliveries_parked_total" in n}
        assert set(parked.values()) == {0}
        producer.channel.queue_purge(parking)
        wait_zero(consumer, PARKED)
        assert consumer.stop() == 0


def test_a_store_that_another_took_is_counted(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    first, second, *_ = IMAGE.places()
    with make_consumer() as consumer:
        producer.publish(IMAGE.message(first))
        consumer.wait_settled(1)
        assert consumer.metrics()["tiles_stores_fenced_total"] == 0
        other = open_store(tmp_path / "root", IMAGE.store, file_mode=0o644, folder_mode=0o755)
        other.commit.release()
        producer.publish(IMAGE.message(second))
        consumer.wait_settled(2)
        assert consumer.metrics()["tiles_stores_fenced_total"] == 1
        assert consumer.stop() == 0


def test_what_the_broker_refuses_of_one_kind_keeps_no_other_waiting(
    make_consumer: MakeConsumer, producer: Channel
) -> None:
    with make_consumer(progress_s=0.1, idle_s=0.1, reconnect_max_s=2.0) as consumer:
        exchange, parked = events_exchange(producer.prefix), f"{producer.prefix}.parked"
        # Then it closes the channel for each event.
        producer.channel.exchange_delete(exchange)
        producer.publish(IMAGE.message((0, 0)))
        wait_until(lambda: "no exchange" in consumer.tail(), consumer.tail)
        for _ in range(3):
            producer.publish(IMAGE.message((0, 0)), type="tiles.v0")
        wait_until(lambda: producer.depth(parked) >= 3, consumer.tail)
        producer.channel.exchange_declare(exchange, "topic", durable=True)
        consumer.wait_settled(1 + 3)
        assert consumer.stop() == 0
    # What was sent and not confirmed is sent again.
    copies = producer.drain(parked)
    assert len({properties.headers["x-tiles-parking-id"] for properties, _ in copies}) == 3


def test_a_root_that_hangs_counts_as_one_that_cannot_be_written(
    make_consumer: MakeConsumer, producer: Channel
) -> None:
    with make_consumer(probe_interval_s=0.2) as consumer:
        writer = psutil.Process(consumer.pid).children()[0]
        writer.suspend()
        wait_zero(consumer, "tiles_root_writable")
        wait_until(lambda: consumer.status("/readyz") == 503, "not ready")
        assert consumer.status("/livez") == 200
        producer.publish(IMAGE.message((0, 0)))
        writer.resume()
        wait_more(consumer, "tiles_root_writable", 0)
        wait_until(lambda: consumer.status("/readyz") == 200, "ready")
        consumer.wait_settled(1)
        assert consumer.stop() == 0


def test_a_completion_is_overdue_while_nobody_takes_its_announcement(
    make_consumer: MakeConsumer, producer: Channel
) -> None:
    exchange = events_exchange(producer.prefix)
    with make_consumer() as consumer:
        producer.channel.exchange_delete(exchange)
        for place in IMAGE.places():
            producer.publish(IMAGE.message(place))
        wait_more(consumer, "tiles_unannounced_completion_seconds", 1)
        producer.channel.exchange_declare(exchange, "topic", durable=True)
        wait_done(consumer, producer)
        wait_zero(consumer, "tiles_unannounced_completion_seconds")
        assert consumer.stop() == 0


def test_what_waits_is_not_known_while_the_broker_is_away(make_consumer: MakeConsumer) -> None:
    with RabbitMQ() as broker, make_consumer(hosts=broker.host) as consumer:
        wait_zero(consumer, WAITING)
        broker.stop()
        wait_until(lambda: math.isnan(consumer.metrics()[WAITING]), "NaN")
        broker.start()
        wait_zero(consumer, WAITING)
        assert consumer.stop() == 0


def test_a_full_disk_shows_its_size_and_that_a_store_is_tried_again(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    image = Image(0, "a.zarr", "x", (2048, 2048), 256, (("codecs", [{"name": "bytes"}]),))
    with small_disk(tmp_path / "root") as root, make_consumer(retry_max_s=1) as consumer:
        wait_until(
            lambda: consumer.metrics()["tiles_root_size_bytes"] == 8 << 20, "the size to be known"
        )
        for place in image.places():
            producer.publish(image.message(place))
        wait_more(consumer, "tiles_retrying_seconds", 1)
        assert remount(root, "size=64m")
        wait_done(consumer, producer)
        wait_zero(consumer, "tiles_retrying_seconds")
        wait_more(consumer, "tiles_root_size_bytes", 63 << 20)
        wait_more(consumer, "tiles_root_free_bytes", 32 << 20)
        assert consumer.stop() == 0


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system of 8 MiB, or skip the test."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(mounted("tmpfs", folder, "size=8m"))
        except PermissionError as error:
            pytest.skip(str(error))
        yield folder
