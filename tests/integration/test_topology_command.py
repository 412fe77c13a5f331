"""`consumer topology` against a real broker: compared, declared, moved, removed only when empty."""

import json

import pytest

from consumer.testing import RabbitMQ
from harness import Channel, wait_until
from operating import Said, topology
from scale.figures import moved
from scale.load import keys, routed

COUNT = 3


@pytest.fixture
def declared(broker: RabbitMQ, producer: Channel) -> Channel:
    """The producer's channel, where everything is declared."""
    assert topology(broker, producer.prefix, "declare", partitions=COUNT).code == 0
    return producer


def verdicts(found: Said) -> dict[str, str]:
    """Return the verdict on each thing, by its name, of what was said in JSON."""
    lines = [json.loads(line) for line in found.said.splitlines()]
    return {line["check"]: line["verdict"] for line in lines}


def test_what_is_missing_is_told_and_declared_and_declared_again(
    broker: RabbitMQ, prefix: str
) -> None:
    before = topology(broker, prefix, "check", "--json", partitions=COUNT)
    assert (before.code, set(verdicts(before).values())) == (1, {"failed"})
    assert "run `consumer topology declare`" in before.said
    for _ in range(2):
        assert topology(broker, prefix, "declare", partitions=COUNT).code == 0
        after = topology(broker, prefix, "check", "--json", partitions=COUNT)
        assert (after.code, set(verdicts(after).values())) == (0, {"ok"})


def test_a_queue_that_differs_is_told_in_plain_words(broker: RabbitMQ, declared: Channel) -> None:
    found = topology(
        broker, declared.prefix, "check", "--json", partitions=COUNT, queue_max_bytes="1GiB"
    )
    assert found.code == 1
    amiss = {name for name, verdict in verdicts(found).items() if verdict == "failed"}
    assert amiss == {f"queue {declared.prefix}.{COUNT}.0{n}" for n in range(COUNT)}
    assert f"x-max-length-bytes is {32 << 30}, wanted is {1 << 30}" in found.said
    assert "TILES_QUEUE_MAX_BYTES" in found.said


def test_tiles_go_to_the_new_partitions_only_after_a_move(
    broker: RabbitMQ, declared: Channel
) -> None:
    prefix = declared.prefix
    moved = topology(broker, prefix, "move", "--from", str(COUNT), partitions=1)
    assert moved.code == 0, moved.said
    declared.channel.basic_publish(prefix, "a.zarr", b"x", mandatory=True)
    wait_until(lambda: declared.depth(f"{prefix}.00") == 1, "the message")
    assert [declared.depth(f"{prefix}.{COUNT}.0{n}") for n in range(COUNT)] == [0] * COUNT


def test_partitions_bound_anew_have_their_keys_again(broker: RabbitMQ, declared: Channel) -> None:
    queues = [f"{declared.prefix}.{COUNT}.0{n}" for n in range(COUNT)]
    first = routed(declared, queues, keys(60))
    for queue in reversed(queues):
        declared.channel.queue_unbind(queue, f"{declared.prefix}.{COUNT}", "1")
        declared.channel.queue_bind(queue, f"{declared.prefix}.{COUNT}", "1")
    topology(broker, declared.prefix, "declare", partitions=COUNT)
    assert moved(first, routed(declared, queues, keys(60)))

    assert topology(broker, declared.prefix, "rebind", partitions=COUNT).code == 0

    assert not moved(first, routed(declared, queues, keys(60)))


def test_a_single_partition_stays_bound(broker: RabbitMQ, prefix: str) -> None:
    assert topology(broker, prefix, "declare", partitions=1).code == 0
    assert topology(broker, prefix, "rebind", partitions=1).code == 2
    with Channel(broker, prefix) as channel:
        channel.channel.basic_publish(prefix, "a.zarr", b"x", mandatory=True)


def test_partitions_that_hold_a_message_are_not_removed(
    broker: RabbitMQ, declared: Channel
) -> None:
    prefix = declared.prefix
    declared.channel.basic_publish(prefix, "a.zarr", b"x", mandatory=True)
    queues = [f"{prefix}.{COUNT}.0{n}" for n in range(COUNT)]
    wait_until(lambda: sum(map(declared.depth, queues)) == 1, "the message")
    topology(broker, prefix, "move", "--from", str(COUNT), partitions=1)
    refused = topology(broker, prefix, "remove", "--from", str(COUNT), partitions=1)
    assert (refused.code, "holds 1 messages" in refused.said) == (1, True)
    assert sum(map(declared.depth, queues)) == 1
    for queue in queues:
        declared.channel.queue_purge(queue)
    removed = topology(broker, prefix, "remove", "--json", "--from", str(COUNT), partitions=1)
    assert (removed.code, set(verdicts(removed).values())) == (0, {"ok"})
    assert topology(broker, prefix, "check", partitions=1).code == 0
    assert topology(broker, prefix, "check", partitions=COUNT).code == 1


def test_partitions_that_somebody_consumes_are_not_removed(
    broker: RabbitMQ, declared: Channel
) -> None:
    queue = f"{declared.prefix}.{COUNT}.01"
    declared.channel.basic_consume(queue, lambda *_: None)
    refused = topology(broker, declared.prefix, "remove", "--from", str(COUNT), partitions=1)
    assert (refused.code, "has a consumer" in refused.said) == (1, True)
    assert declared.depth(queue) == 0


def test_the_partitions_in_use_are_not_removed(broker: RabbitMQ, prefix: str) -> None:
    refused = topology(broker, prefix, "remove", "--from", "4", partitions=4)
    assert (refused.code, "in use" in refused.said) == (2, True)


def test_a_broker_without_the_plugin_is_told_by_name(prefix: str) -> None:
    with RabbitMQ(plugins=()) as bare:
        found = topology(bare, prefix, "declare", partitions=COUNT)
    assert found.code == 1
    assert "rabbitmq-plugins enable rabbitmq_consistent_hash_exchange" in found.said
