"""The publisher against a real broker: mistakes told in one line, outages waited out, none lost."""

import contextlib
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pika
import pytest
import zarr

from conftest import MakeConsumer
from consumer.connection import shakes_hands
from consumer.contract import MESSAGE_TYPE
from consumer.errors import NotCompleted, PublishError, QueueFull, Unroutable
from consumer.events import ArrayCompleted, ArrayEvent, ArrayProgress
from consumer.publisher import TilePublisher
from consumer.sender import Sender
from consumer.tensors import read
from consumer.testing import RabbitMQ, free_port
from faults import Proxy
from harness import Channel, wait_until

ARRAY = {"store": "p/a.zarr", "array": "x", "axes": "CYX", "shape": [1, 4096, 4096]}
TILE = np.ones((1, 16, 16), "float32")
QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture
def proxy(broker: RabbitMQ) -> Iterator[Proxy]:
    """A proxy before the session's broker."""
    with Proxy(broker.host) as running:
        yield running


def declare(channel: Channel, **arguments: Any) -> str:
    """Declare exchange and queue as the consumer would; return the queue's name."""
    queue = f"{channel.prefix}.00"
    channel.channel.exchange_declare(channel.prefix, "topic", durable=True)
    channel.channel.queue_declare(queue, durable=True, arguments=QUORUM | arguments)
    channel.channel.queue_bind(queue, channel.prefix, "#")
    return queue


def publisher(channel: Channel, host: str = "", **options: Any) -> TilePublisher:
    """Return a publisher to the test's exchange."""
    wanted: dict[str, Any] = {
        "topology_prefix": channel.prefix,
        "batch_bytes": 0,
        "timeout_s": 20.0,
    } | options
    return TilePublisher(host or channel.broker.host, **wanted)


def places(messages: Sequence[tuple[Any, bytes]]) -> list[tuple[int, ...]]:
    """Return where the tiles of some messages go."""
    texts = [read(body)[1]["tiles"] for _, body in messages]
    return [tuple(tile["stitch_coords"]) for text in texts for tile in json.loads(text)["tiles"]]


def corners(count: int) -> list[tuple[int, int]]:
    """Return places that are all different."""
    return [(i // 4000, i % 4000) for i in range(count)]


# -- mistakes -----------------------------------------------------------------------------------


def told(act: Callable[[], None]) -> str:
    """Return the line that a mistake is told with."""
    with pytest.raises(PublishError) as raised:
        act()
    return str(raised.value)


def one_tile(channel: Channel, host: str = "", **options: Any) -> Callable[[], None]:
    """Return what publishes one tile."""

    def act() -> None:
        with publisher(channel, host, **options) as opened:
            opened.publish(ARRAY, TILE, (0, 0))

    return act


def test_a_broker_that_is_down_is_told(producer: Channel) -> None:
    host = f"127.0.0.1:{free_port()}"

    assert told(one_tile(producer, host, timeout_s=5.0)) == (
        f"no connection to RabbitMQ at {host}: Connection refused; start it, or check host, port "
        "and tls"
    )


def test_a_wrong_password_is_told_at_once(producer: Channel, broker: RabbitMQ) -> None:
    assert told(one_tile(producer, password="wrong", timeout_s=3600)) == (
        f"RabbitMQ at {broker.host} refuses user 'guest'; check username and password (guest may "
        "connect from the broker's own host only)"
    )


def test_a_wrong_virtual_host_is_told_at_once(producer: Channel, broker: RabbitMQ) -> None:
    assert told(one_tile(producer, virtual_host="nowhere", timeout_s=3600)) == (
        f"RabbitMQ at {broker.host} has no virtual host 'nowhere' for user 'guest'; check "
        "virtual_host and the user's permissions"
    )


def test_a_missing_exchange_is_told_at_once(producer: Channel) -> None:
    assert told(one_tile(producer, timeout_s=3600)) == (
        f"there is no exchange {producer.prefix!r} in virtual host '/'; start the consumer, which "
        "declares it, or check topology_prefix"
    )


def test_a_missing_queue_is_told_at_once(producer: Channel) -> None:
    producer.channel.exchange_declare(producer.prefix, "topic", durable=True)

    assert told(one_tile(producer, timeout_s=3600)) == (
        f"no queue takes store key 'p/a.zarr' from exchange {producer.prefix!r}; start the "
        "consumer, which declares it, or bind the queue"
    )


def test_a_full_queue_is_told_when_waiting_did_not_help(producer: Channel) -> None:
    queue = declare(producer, **{"x-max-length": 3, "x-overflow": "reject-publish"})

    def act() -> None:
        with publisher(producer, timeout_s=5.0) as opened:
            for place in corners(10_000):
                opened.publish(ARRAY, TILE, place)

    assert told(act) == (
        f"the queue behind exchange {producer.prefix!r} refuses more for store key 'p/a.zarr'; "
        "start or add consumers, raise TILES_QUEUE_MAX_BYTES, or wait longer"
    )
    assert producer.depth(queue) >= 3


def test_a_blocked_connection_is_told_when_waiting_did_not_help() -> None:
    with (
        RabbitMQ(extra_config="vm_memory_high_watermark.absolute = 1MB\n") as small,
        Channel(small) as channel,
    ):
        said = told(one_tile(channel, timeout_s=10.0))

    assert said == (
        f"RabbitMQ at {small.host} takes nothing from publishers: low on memory; free memory or "
        "disk there, or wait longer"
    )


# -- nothing is lost ----------------------------------------------------------------------------


def test_10_000_tiles_across_a_restart_of_the_broker_are_all_there() -> None:
    wanted = corners(10_000)
    with RabbitMQ() as restarted:
        with Channel(restarted) as channel:
            queue = declare(channel)
            with publisher(channel, timeout_s=120) as opened:
                for place in wanted[:5000]:
                    opened.publish(ARRAY, TILE, place)
                restarted.stop()
                for place in wanted[5000:6000]:
                    opened.publish(ARRAY, TILE, place)
                restarted.start()
                for place in wanted[6000:]:
                    opened.publish(ARRAY, TILE, place)
        with Channel(restarted) as channel:
            found = places(channel.drain(queue))

    assert set(found) == set(wanted)


def test_tiles_survive_connections_cut_again_and_again(producer: Channel, proxy: Proxy) -> None:
    queue, wanted = declare(producer), corners(600)
    with publisher(producer, proxy.host, reconnect_min_s=0.01) as opened:
        for number, place in enumerate(wanted):
            opened.publish(ARRAY, np.ones((1, 128, 128), "float32"), place)
            if number % 100 == 50:
                wait_until(lambda: proxy.cut() > 0, "a connection to cut")

    assert set(places(producer.drain(queue))) == set(wanted)
    assert len(proxy.accepted) > 6


def test_each_loss_after_a_confirmed_tile_is_the_first(producer: Channel, proxy: Proxy) -> None:
    losses, wait_s = 9, 0.05
    declare(producer)
    with publisher(producer, proxy.host, reconnect_min_s=wait_s, reconnect_max_s=60) as opened:
        opened.publish(ARRAY, TILE, (0, 0))
        opened.flush()
        began = time.monotonic()
        for number in range(losses):
            wait_until(lambda: proxy.cut() > 0, "a connection to cut")
            opened.publish(ARRAY, TILE, (0, 16 * number))
            opened.flush()

    # Doubled at each loss the last wait alone would be half as long as this at least.
    assert time.monotonic() - began < wait_s * 2 ** (losses - 1)


def test_a_full_queue_that_empties_takes_the_rest(producer: Channel) -> None:
    limits = {"x-max-length": 50, "x-overflow": "reject-publish"}
    queue, wanted = declare(producer, **limits), corners(500)
    found: list[tuple[Any, bytes]] = []

    def all_confirmed(opened: TilePublisher) -> bool:
        found.extend(producer.drain(queue))
        return opened.held_bytes == 0

    with publisher(producer) as opened:
        for place in wanted:
            opened.publish(ARRAY, TILE, place)
        wait_until(lambda: all_confirmed(opened), "every tile confirmed")
    found += producer.drain(queue)

    assert set(places(found)) == set(wanted)


def test_what_could_not_be_routed_is_published_once_there_is_a_queue(producer: Channel) -> None:
    producer.channel.exchange_declare(producer.prefix, "topic", durable=True)
    with publisher(producer) as opened:
        opened.publish(ARRAY, TILE, (1, 2))
        with pytest.raises(Unroutable):
            opened.flush()
        queue = declare(producer)
        # An attempt from before it was bound may still be told.
        with contextlib.suppress(Unroutable):
            opened.flush()
        opened.flush()

        assert places(producer.drain(queue)) == [(1, 2)]


def test_a_tile_that_found_no_room_was_not_taken(producer: Channel) -> None:
    declare(producer, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    opened = publisher(producer, timeout_s=0.3, window_bytes=1)
    held: list[int] = []

    def act() -> None:
        for place in corners(10_000):
            held.append(opened.held_bytes)
            opened.publish(ARRAY, TILE, place)

    with pytest.raises(QueueFull):
        act()
    assert opened.held_bytes == held[-1]
    with pytest.raises(QueueFull):
        opened.close()


def test_a_defect_in_the_thread_costs_a_connection_and_no_tile(
    producer: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, wanted, raised = declare(producer), corners(50), []
    with publisher(producer) as opened:
        opened.publish(ARRAY, TILE, wanted[0])
        opened.flush()
        sender = opened._states[os.getpid()].sender
        assert sender is not None

        def broken(*_: Any) -> None:
            raised.append(True)
            monkeypatch.undo()
            raise RuntimeError("a defect")

        monkeypatch.setattr(sender, "_confirmed", broken)
        for place in wanted[1:]:
            opened.publish(ARRAY, TILE, place)
        opened.flush()

    assert raised
    # What was being confirmed when the defect struck is counted as held, and sent again.
    assert set(places(producer.drain(queue))) == set(wanted)


def sender_of(opened: TilePublisher) -> Sender:
    """Return what sends."""
    sender = opened._states[os.getpid()].sender
    assert sender is not None
    return sender


def strike(sender: Sender, when: Callable[[], bool] = lambda: True) -> None:
    """Have a defect end the thread's loop as soon as something is so."""

    def broken() -> None:
        if when():
            raise RuntimeError("a defect")
        sender._loop.add_callback_threadsafe(broken)

    sender._loop.add_callback_threadsafe(broken)


def test_a_tile_that_waits_for_company_survives_a_defect_in_the_thread(producer: Channel) -> None:
    queue = declare(producer)
    with publisher(producer, linger_s=1.0, batch_bytes=1 << 20) as opened:
        opened.publish(ARRAY, TILE, (0, 0))
        strike(sender_of(opened))

        wait_until(lambda: producer.depth(queue) == 1, "the tile in the queue")


def test_a_defect_in_the_middle_of_a_handshake_leaves_no_socket_open(producer: Channel) -> None:
    queue = declare(producer)

    def connecting() -> bool:
        attempt = sender._connection._attempt
        return attempt is not None and shakes_hands(attempt)

    with publisher(producer) as opened:
        opened.publish(ARRAY, TILE, (0, 0))
        sender = sender_of(opened)
        before = sender._loop
        strike(sender, connecting)
        wait_until(lambda: producer.depth(queue) == 1, "the tile in the queue")
    assert sender._loop is not before
    gc.collect()  # which warns of sockets that nobody closed; warnings are errors


def test_a_defect_while_a_refused_tile_waits_does_not_stop_sending(producer: Channel) -> None:
    producer.channel.exchange_declare(producer.prefix, "topic", durable=True)
    with publisher(producer) as opened:
        opened.publish(ARRAY, TILE, (0, 0))
        with pytest.raises(Unroutable):
            opened.flush()
        sender = sender_of(opened)
        before = sender._loop
        strike(sender, lambda: sender._paused)
        wait_until(lambda: sender._loop is not before, "a new loop")
        queue = declare(producer)
        wait_until(lambda: opened.held_bytes == 0, "the tile to be confirmed")

    assert places(producer.drain(queue)) == [(0, 0)]


def test_a_tile_that_comes_while_the_thread_starts_over_holds_up_no_later_one(
    producer: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = declare(producer)
    with publisher(producer) as opened:
        opened.publish(ARRAY, TILE, (0, 0))
        opened.flush()
        sender = sender_of(opened)
        connect = sender._connect

        def meanwhile(*wait: float) -> Any:
            monkeypatch.undo()
            opened.publish(ARRAY, TILE, (0, 16))
            return connect(*wait)

        monkeypatch.setattr(sender, "_connect", meanwhile)
        strike(sender)
        wait_until(lambda: opened.held_bytes == 0 and sender._connect == connect, "a confirm")
        opened.publish(ARRAY, TILE, (0, 32))
        opened.flush()

    assert set(places(producer.drain(queue))) == {(0, 0), (0, 16), (0, 32)}


# -- the connection -----------------------------------------------------------------------------


def test_nothing_connects_before_the_first_tile(producer: Channel, proxy: Proxy) -> None:
    with publisher(producer, proxy.host):
        assert proxy.accepted == []


def test_an_idle_producer_keeps_its_connection(producer: Channel, proxy: Proxy) -> None:
    declare(producer)
    with publisher(producer, proxy.host, heartbeat_s=1) as opened:
        opened.publish(ARRAY, TILE, (0, 0))
        opened.flush()
        sender = opened._states[os.getpid()].sender
        assert sender is not None
        connection: Any = sender._connection._connection
        received = connection.bytes_received
        # A heartbeat has eight bytes; the broker sends one in half of the interval.
        wait_until(lambda: connection.bytes_received >= received + 8 * 8, "eight heartbeats")
        opened.publish(ARRAY, TILE, (0, 16))

    assert len(proxy.accepted) == 1


def test_a_forked_child_publishes_its_own_tiles(producer: Channel) -> None:
    queue = declare(producer)
    with publisher(producer, linger_s=3600, batch_bytes=1 << 20) as opened:
        opened.publish(ARRAY, TILE, (0, 0))
        child = os.fork()
        if child == 0:
            try:
                opened.publish(ARRAY, TILE, (0, 16))
                opened.close()
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        opened.publish(ARRAY, TILE, (0, 32))

    assert status == 0
    found = producer.drain(queue)
    assert sorted(places(found)) == [(0, 0), (0, 16), (0, 32)]
    assert len(found) == 2


def test_a_closed_publisher_takes_no_more(producer: Channel) -> None:
    declare(producer)
    opened = publisher(producer)
    opened.publish(ARRAY, TILE, (0, 0))
    opened.close()

    with pytest.raises(ValueError, match="closed"):
        opened.publish(ARRAY, TILE, (0, 0))


def test_an_error_in_the_block_stands_and_says_what_was_not_published(producer: Channel) -> None:
    def act() -> None:
        with publisher(producer) as opened:
            opened.publish(ARRAY, TILE, (0, 0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        act()
    assert raised.value.__notes__ == [
        f"tiles published before were not confirmed: there is no exchange {producer.prefix!r} in "
        "virtual host '/'; start the consumer, which declares it, or check topology_prefix"
    ]


# -- messages -----------------------------------------------------------------------------------


def test_a_lonely_tile_waits_only_for_so_long(producer: Channel) -> None:
    queue = declare(producer)
    with publisher(producer, linger_s=0.05, batch_bytes=1 << 20) as opened:
        opened.publish(ARRAY, TILE, (0, 0))
        wait_until(lambda: producer.depth(queue) == 1, "the tile in the queue")


def test_a_message_says_who_sent_it_and_survives_the_broker(producer: Channel) -> None:
    queue = declare(producer)
    with publisher(producer, app_id="unet") as opened:
        opened.publish(ARRAY, TILE, (0, 0))
        opened.publish(ARRAY, TILE, (0, 16))

    (first, body), (second, _) = producer.drain(queue)
    assert (first.type, first.app_id, first.delivery_mode) == (MESSAGE_TYPE, "unet", 2)
    assert first.message_id != second.message_id
    assert set(first.headers) - {"x-delivery-count"} == {"crc32c"}
    assert json.loads(read(body)[1]["tiles"])["sent_ms"] // 1000 - first.timestamp in {0, -1}


@pytest.mark.parametrize("compress", [False, True])
def test_published_tiles_end_in_the_array(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path, compress: bool
) -> None:
    image = np.random.default_rng(0).random((1, 300, 200)).astype("float32")
    array = ARRAY | {"shape": [1, 300, 200]}
    with make_consumer(max_message_bytes="64KiB") as consumer:
        limits: dict[str, Any] = {"max_message_bytes": 64 << 10, "batch_bytes": 32 << 10}
        with publisher(producer, **limits, compress=compress) as opened:
            opened.publish(array, image[:, :150], (0, 0), crop_coords=[0, 0], crop_size=[140, 200])
            for y in range(140, 300, 10):
                opened.publish(array, image[:, y : y + 10], (y, 0))
        producer.wait_delivered(f"{producer.prefix}.00")
        assert consumer.stop() == 0

    stored = zarr.open_array(tmp_path / "root/p/a.zarr", path="x", mode="r")
    np.testing.assert_array_equal(stored[:], image)
    assert producer.depth(f"{producer.prefix}.parked") == 0


# -- completed arrays ---------------------------------------------------------------------------


def announce(channel: Channel, event: ArrayEvent) -> None:
    """Announce as the consumer does."""
    properties = pika.BasicProperties(message_id=event.identity, delivery_mode=2)
    channel.channel.basic_publish(
        f"{channel.prefix}.events", event.routing_key, event.model_dump_json().encode(), properties
    )


def with_events(channel: Channel) -> None:
    """Declare what the consumer would, events included."""
    declare(channel)
    channel.channel.exchange_declare(f"{channel.prefix}.events", "topic", durable=True)


def test_an_array_is_complete_when_the_consumer_says_so(producer: Channel) -> None:
    with_events(producer)
    with publisher(producer, completions=True) as opened:
        opened.publish(ARRAY | {"run": "1"}, TILE, (0, 0))
        opened.flush()
        announce(producer, ArrayCompleted(store="p/a.zarr", array="x", run="1"))

        opened.wait_completed(120)


def test_another_run_or_array_is_not_what_is_waited_for(producer: Channel) -> None:
    with_events(producer)
    with publisher(producer, completions=True) as opened:
        opened.publish(ARRAY | {"run": "1"}, TILE, (0, 0))
        opened.flush()
        announce(producer, ArrayCompleted(store="p/a.zarr", array="x", run="2"))
        announce(producer, ArrayCompleted(store="p/a.zarr", array="y", run="1"))

        with pytest.raises(NotCompleted) as raised:
            opened.wait_completed(0.5)

    assert str(raised.value) == (
        "not complete after 0.5 s: p/a.zarr/x; are all tiles published, and does a consumer run?"
    )


def test_who_cannot_hear_of_completed_arrays_is_told_at_once(producer: Channel) -> None:
    declare(producer)
    with publisher(producer, completions=True) as opened:
        opened.publish(ARRAY, TILE, (0, 0))

        with pytest.raises(NotCompleted, match=f"no exchange '{producer.prefix}.events'"):
            opened.wait_completed(3600)


def test_who_could_not_hear_of_completed_arrays_hears_of_them_after_a_new_connection(
    producer: Channel, proxy: Proxy
) -> None:
    declare(producer)
    with publisher(producer, proxy.host, completions=True, reconnect_min_s=0.01) as opened:
        opened.publish(ARRAY, TILE, (0, 0))
        with pytest.raises(NotCompleted):
            opened.wait_completed(60)
        with_events(producer)
        subscribed = watch_subscriptions(opened)
        proxy.cut()
        wait_until(lambda: bool(subscribed), "a new subscription")
        announce(producer, ArrayCompleted(store="p/a.zarr", array="x"))

        opened.wait_completed(60)


def watch_subscriptions(opened: TilePublisher) -> list[bool]:
    """Return a list that grows with each channel that is ready, so events are heard."""
    sender, seen = sender_of(opened), []
    ready = sender._ready

    def noted(channel: Any) -> None:
        ready(channel)
        seen.append(True)

    sender._ready = noted  # type: ignore[method-assign]
    return seen


def test_an_event_counts_though_its_queue_was_deleted_before(producer: Channel) -> None:
    with_events(producer)
    with publisher(producer, completions=True, reconnect_min_s=0.01) as opened:
        opened.publish(ARRAY, TILE, (0, 0))
        opened.flush()
        subscribed = watch_subscriptions(opened)
        completions = opened._states[os.getpid()].completions
        assert completions is not None
        producer.channel.queue_delete(completions._queue)
        wait_until(lambda: bool(subscribed), "a new subscription")
        announce(producer, ArrayCompleted(store="p/a.zarr", array="x"))

        opened.wait_completed(60)


def test_an_event_stays_in_the_queue_until_it_is_taken_note_of(
    producer: Channel, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_events(producer)
    with publisher(producer, proxy.host, completions=True, reconnect_min_s=0.01) as opened:
        opened.publish(ARRAY, TILE, (0, 0))
        opened.flush()

        def cut(*_: Any) -> None:
            monkeypatch.undo()
            proxy.cut()
            raise RuntimeError("whoever was to take note of it ended")

        monkeypatch.setattr("consumer.completions._complete", cut)
        announce(producer, ArrayCompleted(store="p/a.zarr", array="x"))

        opened.wait_completed(60)


def test_progress_to_the_last_voxel_is_completion(producer: Channel) -> None:
    with_events(producer)
    with publisher(producer, completions=True) as opened:
        opened.publish(ARRAY, TILE, (0, 0))
        opened.flush()
        told = {"store": "p/a.zarr", "array": "x", "total_voxels": 9}
        announce(producer, ArrayProgress(filled_voxels=8, **told))
        with pytest.raises(NotCompleted):
            opened.wait_completed(0.5)
        announce(producer, ArrayProgress(filled_voxels=9, **told))

        opened.wait_completed(60)


def test_waiting_for_completion_needs_a_subscription(producer: Channel) -> None:
    declare(producer)
    with publisher(producer) as opened, pytest.raises(ValueError, match="completions=True"):
        opened.wait_completed(1)
