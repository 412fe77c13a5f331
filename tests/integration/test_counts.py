"""A count of 0 is no proof that a queue is empty: its leader may not have answered."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait

import pika
import pytest

from consumer.endpoint import Endpoint
from consumer.parked import ParkingQueue
from faults import silent_leader
from harness import Channel

QUORUM: dict[str, object] = {"x-queue-type": "quorum"}
KINDS: dict[str, Mapping[str, object]] = {
    "plain": QUORUM,
    "single active consumer": QUORUM | {"x-single-active-consumer": True},
}
MESSAGES = 3
# For as long as the broker waits for a leader before it says 0, several times.
LOOK_S = 2.0


@pytest.fixture(params=KINDS)
def queue(request: pytest.FixtureRequest, producer: Channel) -> str:
    """A queue with some messages."""
    return filled(producer, f"{producer.prefix}.parked", KINDS[request.param])


def filled(channel: Channel, name: str, arguments: Mapping[str, object]) -> str:
    """Declare a queue with some messages; return its name."""
    channel.channel.queue_declare(name, durable=True, arguments=arguments)
    for number in range(MESSAGES):
        channel.channel.basic_publish(
            "", name, b"%d" % number, pika.BasicProperties(delivery_mode=2), mandatory=True
        )
    return name


def asked_in_silence(channel: Channel, queue: str, count: Callable[[], int]) -> int:
    """Count while the leader is silent; return what is counted in the end."""
    with ThreadPoolExecutor(1) as pool:
        with silent_leader(channel.broker, queue):
            counted = pool.submit(count)
            wait([counted], LOOK_S)
        return counted.result()


def test_the_broker_says_0_where_the_leader_is_silent(producer: Channel, queue: str) -> None:
    assert producer.said(queue) == (MESSAGES, 0)
    with silent_leader(producer.broker, queue):
        assert producer.said(queue) == (0, 0)


def test_a_count_waits_for_the_leader(producer: Channel, queue: str) -> None:
    assert asked_in_silence(producer, queue, lambda: producer.depth(queue)) == MESSAGES


def test_what_is_empty_counts_as_empty(producer: Channel, queue: str) -> None:
    producer.channel.queue_purge(queue)
    assert producer.depth(queue) == 0


def test_a_missing_queue_is_no_empty_one(producer: Channel) -> None:
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
        producer.depth(f"{producer.prefix}.missing")


def test_parked_messages_are_listed_though_the_leader_was_silent(producer: Channel) -> None:
    queue = filled(producer, f"{producer.prefix}.parked", QUORUM)
    endpoint = Endpoint(hosts=(producer.broker.host,), topology_prefix=producer.prefix)
    with ParkingQueue(endpoint) as parked:
        found = asked_in_silence(producer, queue, lambda: len(list(parked.messages())))
    assert found == MESSAGES
