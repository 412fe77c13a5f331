"""Several partitions and replicas: one writer for each store, and each loss stays its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from conftest import MakeConsumer
from consumer.testing import RabbitMQ
from consumer.topology import labels
from faults import Image, Oracle, SlowDisk
from harness import Channel, ConsumerProcess, wait_until
from operating import topology
from scale.brokers import version

PLAIN = (("chunks", [1, 64, 64]),)
COUNT = 4
RECONNECTS = 'tiles_reconnects_total{connection="consume"}'
CHANNELS = 'tiles_partition_channels_lost_total{partition="01"}'
ACKNOWLEDGED = "tiles_deliveries_acknowledged_total"


def images(stores: int, *, first: int = 0) -> list[Image]:
    """Return an image for each of some stores."""
    return [
        Image(number, f"s{number}.zarr", "x", (256, 256), 64, PLAIN)
        for number in range(first, first + stores)
    ]


def send(producer: Channel, oracle: Oracle, wanted: list[Image]) -> int:
    """Publish every tile, one of each store in turn; return how many."""
    for places in zip(*(image.places() for image in wanted), strict=True):
        for image, place in zip(wanted, places, strict=True):
            producer.publish(image.message(place))
            oracle.note(image, place)
    return sum(len(image.places()) for image in wanted)


def acknowledged(*consumers: ConsumerProcess) -> float:
    """Return how many deliveries some consumers have acknowledged."""
    return sum(consumer.metrics()[ACKNOWLEDGED] for consumer in consumers)


def wait_acknowledged(count: int, *consumers: ConsumerProcess) -> None:
    """Return once some consumers have acknowledged so many deliveries, and hold none."""
    wait_until(
        lambda: (
            acknowledged(*consumers) >= count
            and not any(consumer.metrics()["tiles_unacknowledged"] for consumer in consumers)
        ),
        lambda: f"{count}, not {acknowledged(*consumers)}:\n{consumers[0].tail()}",
        180.0,
    )


def delivered(metrics: Mapping[str, float]) -> set[str]:
    """Return the partitions of which something came."""
    name = "tiles_partition_last_delivery_timestamp_seconds"
    return {label for label in labels(COUNT) if metrics[f'{name}{{partition="{label}"}}']}


def partitions_of(producer: Channel, count: int = COUNT) -> list[str]:
    """Return the names of the partition queues."""
    return [f"{producer.prefix}.{count}.{label}" for label in labels(count)]


def owners(root: Path, store: str) -> set[str]:
    """Return the epochs in which a store is held."""
    return {entry.name for entry in (root / ".tiles" / store / "epochs").iterdir()}


def make_two(make_consumer: MakeConsumer, **settings: Any) -> list[ConsumerProcess]:
    """Return two replicas that are not started yet."""
    return [
        make_consumer(partitions=COUNT, replica=number, prefetch_count=50, **settings)
        for number in range(2)
    ]


def test_stores_over_all_partitions_are_written_by_two_replicas(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    oracle, wanted = Oracle(), images(12)
    first, second = make_two(make_consumer)
    with first, second:
        sent = send(producer, oracle, wanted)
        wait_acknowledged(sent, first, second)
        seen = delivered(first.metrics()) | delivered(second.metrics())
        assert seen == set(labels(COUNT))
        # Who lost a store to another would have had to try again.
        assert first.metrics()['tiles_retries_total{operation="write"}'] == 0
        assert (first.stop(), second.stop()) == (0, 0)
    assert oracle.wrong(tmp_path / "root") == 0
    for consumer in (first, second):
        assert "taken by another" not in consumer.log.read_text()


def test_when_a_replica_is_killed_another_goes_on_with_its_partitions(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    oracle, wanted = Oracle(), images(8)
    first, second = make_two(make_consumer)
    with first, second:
        send(producer, oracle, wanted[:4])
        wait_until(lambda: acknowledged(first, second) > 0, "a first acknowledgement")
        first.kill()
        send(producer, oracle, wanted[4:])
        wait_until(
            lambda: oracle.wrong(tmp_path / "root") == 0,
            second.tail,
            180.0,
            poll_s=1.0,
        )
        assert second.stop() == 0


def test_a_lost_channel_leaves_the_other_partitions_alone(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    oracle, wanted = Oracle(), images(8)
    with make_consumer(partitions=COUNT, reconnect_min_s=0.1, prefetch_count=50) as consumer:
        sent = send(producer, oracle, wanted)
        wait_acknowledged(sent, consumer)
        queue = partitions_of(producer)[1]
        before = subscribed(consumer)
        producer.channel.queue_delete(queue)
        wait_until(lambda: subscribed(consumer, queue) == 2, "the partition is subscribed anew")
        consumer.wait_ready()
        metrics = consumer.metrics()
        assert (metrics[RECONNECTS], metrics[CHANNELS]) == (0, 1)
        assert subscribed(consumer) == before + 1
        more = images(8, first=8)
        wait_acknowledged(sent + send(producer, oracle, more), consumer)
        assert consumer.stop() == 0
    assert oracle.wrong(tmp_path / "root") == 0


def subscribed(consumer: ConsumerProcess, queue: str = "") -> int:
    """How often the log tells of a subscription, to one queue or to any."""
    lines = (line for line in consumer.log.read_text().splitlines() if '"subscribed"' in line)
    return sum(queue in line for line in lines)


def test_a_partition_that_is_missing_keeps_a_checking_consumer_from_being_ready_for_it_only(
    make_consumer: MakeConsumer, producer: Channel
) -> None:
    with make_consumer(partitions=COUNT) as declaring:
        assert declaring.stop() == 0
    queues = partitions_of(producer)
    producer.channel.queue_delete(queues[2])
    consumer = make_consumer(partitions=COUNT, declare_topology=False).start(ready=False)
    wait_until(lambda: subscribed(consumer) == COUNT - 1, consumer.tail)
    wait_until(lambda: "NOT_FOUND" in consumer.log.read_text(), consumer.tail)
    assert consumer.status("/readyz") == 503
    assert subscribed(consumer, queues[2]) == 0
    assert consumer.stop() == 0


def test_what_waits_is_measured_for_each_partition(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    disk = SlowDisk(tmp_path)
    name = 'tiles_partition_waiting_messages{{partition="{}"}}'
    with make_consumer(
        environment=disk.environment, partitions=COUNT, prefetch_count=1
    ) as consumer:
        disk.take(float("inf"))
        sent = send(producer, Oracle(), images(8))
        queues = partitions_of(producer)

        def measured() -> dict[str, float]:
            metrics = consumer.metrics()
            return {queue: metrics[name.format(queue[-2:])] for queue in queues}

        wait_until(
            lambda: (
                sum(measured().values()) == sent - consumer.metrics()["tiles_unacknowledged"] > 0
                and measured() == {queue: producer.depth(queue) for queue in queues}
            ),
            lambda: f"{measured()} of {sent}: {consumer.tail()}",
        )
        disk.take(0)


def test_a_changed_number_of_partitions_loses_nothing(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path, broker: RabbitMQ
) -> None:
    oracle, wanted = Oracle(), images(12)
    old = make_consumer(partitions=1, prefetch_count=50)
    new = make_consumer(partitions=COUNT, prefetch_count=50)
    with old:
        sent = send(producer, oracle, wanted[:4])
        moved = topology(broker, producer.prefix, "move", "--from", "1", partitions=COUNT)
        assert moved.code == 0, moved.said
        sent += send(producer, oracle, wanted[4:8])
        with new:
            sent += send(producer, oracle, wanted[8:])
            wait_acknowledged(sent, old, new)
            refused = topology(broker, producer.prefix, "remove", "--from", "1", partitions=COUNT)
            assert (refused.code, "consumer" in refused.said) == (1, True)
            assert old.stop() == 0
            removed = topology(broker, producer.prefix, "remove", "--from", "1", partitions=COUNT)
            assert removed.code == 0, removed.said
            assert new.stop() == 0
    assert oracle.wrong(tmp_path / "root") == 0


def test_who_hands_a_partition_over_does_not_keep_it_waiting(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path, broker: RabbitMQ
) -> None:
    if int(version(broker).split(".")[0]) < 4:
        pytest.skip("only RabbitMQ 4 hands partitions over while both replicas live")
    oracle, wanted = Oracle(), images(12)
    # Half of a block's tiles: with nothing else to write it, it is held for very long.
    first, second = make_two(make_consumer, idle_s=300, max_age_s=500)
    with first:
        send_half(producer, oracle, wanted, 0)
        wait_until(lambda: first.metrics()["tiles_unacknowledged"] == len(wanted), first.tail)
        with second:
            send_half(producer, oracle, wanted, 1)
            wait_until(lambda: bool(delivered(second.metrics())), second.tail, 120.0)
            assert (first.stop(), second.stop()) == (0, 0)
    assert oracle.wrong(tmp_path / "root") == 0


def send_half(producer: Channel, oracle: Oracle, wanted: list[Image], half: int) -> None:
    """Publish every other tile of some images, one message for each image."""
    for image in wanted:
        places = image.places()[half::2]
        producer.publish(image.message(*places))
        oracle.note(image, *places)
