"""Parked messages: listed, shown, published again, exported and dropped, whatever interrupts it."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pika
import pytest
import zarr

from conftest import MakeConsumer
from consumer.endpoint import Endpoint
from consumer.errors import ArrayMismatch, BrokerBlocked, OutOfBounds, ParkError
from consumer.message import Encoded, encode
from consumer.parked import ParkingQueue
from consumer.parking import parked_properties
from consumer.settings import Settings
from consumer.testing import RabbitMQ
from consumer.topology import topology
from harness import Channel, wait_until

SIDE = 4
OUTSIDE = OutOfBounds("tile 0: stitch_coords [9, 9] leave the array")


@pytest.fixture
def parking(producer: Channel) -> Channel:
    """The producer's channel, with the consumer's exchanges and queues."""
    wanted = topology(Settings(output_root=Path(), topology_prefix=producer.prefix))
    for exchange in (wanted.tiles, wanted.parking, wanted.events):
        producer.channel.exchange_declare(exchange.name, exchange.type, durable=True)
    for queue in wanted.queues:
        producer.channel.queue_declare(queue.name, durable=True, arguments=queue.arguments)
    for binding in wanted.bindings:
        producer.channel.queue_bind(binding.destination, binding.source, binding.routing_key)
    return producer


def message(number: int, *, store: str = "p/a.zarr", array: str = "x") -> Encoded:
    """Return a good message; each number has a place and a value of its own."""
    fields = {"store": store, "array": array, "axes": "YX", "shape": [SIDE, SIDE * 1000]}
    place = {"stitch_coords": [0, SIDE * number]}
    tile = np.full((1, SIDE, SIDE), number + 1, "float32")
    return encode(fields | {"sent_ms": 1795338000123, "tiles": [place]}, [tile], checksum=True)


def park(
    channel: Channel,
    encoded: Encoded,
    *,
    parking_id: str = "",
    error: ParkError = OUTSIDE,
    **changed: Any,
) -> None:
    """Park a message as the consumer does."""
    properties = pika.BasicProperties(**encoded.properties | changed)
    parked = parked_properties(
        properties,
        error,
        parking_id=parking_id or os.urandom(8).hex(),
        routing_key=encoded.routing_key,
        by="c1",
    )
    channel.channel.basic_publish(
        f"{channel.prefix}.parking",
        encoded.routing_key,
        encoded.body,
        pika.BasicProperties(**parked),
        mandatory=True,
    )


def command(channel: Channel, *arguments: str) -> list[str]:
    """Return the words of `consumer parked …` on the test's queues."""
    access = ["--hosts", channel.broker.host, "--topology-prefix", channel.prefix]
    return [sys.executable, "-m", "consumer.cli", "parked", *arguments, *access]


def run(channel: Channel, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `consumer parked …`."""
    return subprocess.run(
        command(channel, *arguments), capture_output=True, text=True, timeout=120, check=False
    )


def listed(channel: Channel, *arguments: str) -> list[dict[str, Any]]:
    """Return what `consumer parked list --json` prints."""
    done = run(channel, "list", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def take(channel: Channel) -> tuple[Any, bytes]:
    """Take the first message of the partition queue."""
    found = channel.channel.consume(tiles_queue(channel), auto_ack=True, inactivity_timeout=120)
    _, properties, body = next(found)
    channel.channel.cancel()
    return properties, body


def parked_queue(channel: Channel) -> str:
    """Return the name of the parking queue."""
    return f"{channel.prefix}.parked"


def tiles_queue(channel: Channel) -> str:
    """Return the name of the partition queue."""
    return f"{channel.prefix}.00"


def wait_parked(channel: Channel, count: int) -> None:
    """Return once so many messages are parked: what was looked at comes back a little later."""
    depth = functools.partial(channel.depth, parked_queue(channel))
    wait_until(lambda: depth() == count, lambda: f"{count} parked messages, not {depth()}")


def test_what_is_listed_stays_in_the_queue_in_order(parking: Channel) -> None:
    for number in range(5):
        park(parking, message(number), parking_id=f"id-{number}")

    assert [row["id"] for row in listed(parking)] == [f"id-{n}" for n in range(5)]
    wait_parked(parking, 5)
    assert [row["id"] for row in listed(parking, "--limit", "2")] == ["id-0", "id-1"]
    wait_parked(parking, 5)
    found = parking.drain(parked_queue(parking))
    assert [p.headers["x-tiles-parking-id"] for p, _ in found] == [f"id-{n}" for n in range(5)]


def test_a_line_says_what_was_parked_and_why(parking: Channel) -> None:
    park(parking, message(0), parking_id="id-0")

    (row,) = listed(parking)
    assert row.pop("parked").startswith("20")
    assert row == {
        "id": "id-0",
        "reason": "out_of_bounds",
        "store": "p/a.zarr",
        "array": "x",
        "bytes": len(message(0).body),
        "detail": str(OUTSIDE),
    }


def test_a_pipe_gets_plain_lines(parking: Channel) -> None:
    park(parking, message(0), parking_id="id-0")

    done = run(parking, "list")

    assert done.stdout.split("\t")[:4] == ["id-0", "out_of_bounds", "p/a.zarr", "x"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        pytest.param(["--reason", "array_mismatch"], ["b"], id="reason"),
        pytest.param(["--store", "p/c.zarr"], ["c"], id="store"),
        pytest.param(["--array", "g/d"], ["d"], id="array"),
        pytest.param(["--older-than-s", "3600"], [], id="older"),
        pytest.param(["--newer-than-s", "3600"], ["a", "b", "c", "d"], id="newer"),
        pytest.param(["a", "d"], ["a", "d"], id="ids"),
        pytest.param(["--reason", "out_of_bounds", "--limit", "2"], ["a", "c"], id="limit"),
    ],
)
def test_messages_are_chosen(parking: Channel, arguments: list[str], wanted: list[str]) -> None:
    park(parking, message(0), parking_id="a")
    park(parking, message(1), parking_id="b", error=ArrayMismatch("another shape is stored"))
    park(parking, message(2, store="p/c.zarr"), parking_id="c")
    park(parking, message(3, array="g/d"), parking_id="d")

    assert [row["id"] for row in listed(parking, *arguments)] == wanted


def test_all_of_a_message_is_shown(parking: Channel) -> None:
    park(parking, message(0), parking_id="id-0", app_id="unet", message_id="m1")

    done = run(parking, "show", "--json", "id-0")

    shown = json.loads(done.stdout)
    assert shown["metadata"]["tiles"] == [{"stitch_coords": [0, 0]}]
    assert (shown["app_id"], shown["message_id"], shown["parked_by"]) == ("unet", "m1", "c1")
    assert shown["published"] == "2026-11-22T09:00:00Z"
    assert shown["headers"]["x-tiles-parking-id"] == "id-0"


def test_a_body_that_nobody_can_read_is_shown_all_the_same(parking: Channel) -> None:
    broken = Encoded("p/a.zarr", b"broken", message(0).properties)
    park(parking, broken, parking_id="id-0")

    assert json.loads(run(parking, "show", "--json").stdout)["metadata"] is None


def test_what_the_broker_dead_lettered_is_listed_with_its_reason(parking: Channel) -> None:
    parking.publish(message(0))
    for method, _, _ in parking.channel.consume(tiles_queue(parking), inactivity_timeout=120):
        parking.channel.basic_reject(method.delivery_tag, requeue=False)
        break
    parking.channel.cancel()
    wait_until(lambda: parking.depth(parked_queue(parking)) == 1, "the dead-lettered message")

    (row,) = listed(parking)
    assert (row["reason"], row["store"], row["array"]) == ("rejected", "p/a.zarr", "x")
    assert row["id"].startswith("body-")
    assert run(parking, "replay", row["id"]).returncode == 0
    properties, body = take(parking)
    assert body == message(0).body
    assert set(properties.headers) - {"x-delivery-count"} == {"crc32c"}


def test_what_is_replayed_is_what_was_published(parking: Channel) -> None:
    encoded = message(0)
    park(parking, encoded, app_id="unet", message_id="m1")

    done = run(parking, "replay")

    assert (done.returncode, done.stderr) == (0, "replayed 1 messages\n")
    properties, body = take(parking)
    assert body == encoded.body
    assert (properties.type, properties.app_id, properties.message_id, properties.headers) == (
        "tiles.v1", "unet", "m1", encoded.properties["headers"],
    )  # fmt: skip
    assert parking.depth(parked_queue(parking)) == 0


def test_a_dry_run_moves_nothing(parking: Channel) -> None:
    park(parking, message(0))

    done = run(parking, "replay", "--dry-run")

    assert (done.returncode, done.stderr) == (0, "would replay 1 messages\n")
    wait_parked(parking, 1)
    assert parking.depth(tiles_queue(parking)) == 0


def test_a_limit_replays_the_oldest(parking: Channel) -> None:
    for number in range(3):
        park(parking, message(number), parking_id=f"id-{number}")

    run(parking, "replay", "--limit", "1")

    wait_parked(parking, 2)
    assert [row["id"] for row in listed(parking)] == ["id-1", "id-2"]


def test_what_finds_no_queue_stays_parked(parking: Channel) -> None:
    park(parking, message(0))
    parking.channel.queue_delete(tiles_queue(parking))

    done = run(parking, "replay")

    assert done.returncode == 1
    assert "no queue takes store key 'p/a.zarr'" in done.stderr
    wait_parked(parking, 1)


def test_exported_messages_are_files_and_stay_parked(parking: Channel, tmp_path: Path) -> None:
    park(parking, message(0), parking_id="../id-0")

    done = run(parking, "export", "--to", str(tmp_path / "files"))

    assert done.returncode == 0
    names = sorted(path.name for path in (tmp_path / "files").iterdir())
    assert names == ["_id-0.body", "_id-0.json"]
    assert (tmp_path / "files/_id-0.body").read_bytes() == message(0).body
    assert json.loads((tmp_path / "files/_id-0.json").read_text())["reason"] == "out_of_bounds"
    wait_parked(parking, 1)


def test_a_folder_that_cannot_be_written_is_told_in_one_line(
    parking: Channel, tmp_path: Path
) -> None:
    park(parking, message(0))
    (tmp_path / "file").touch()

    done = run(parking, "export", "--to", str(tmp_path / "file"))

    assert (done.returncode, done.stderr) == (
        2,
        f"consumer: --to {tmp_path}/file: File exists; choose a folder that can be written, with "
        "room for the bodies\n",
    )
    wait_parked(parking, 1)


def test_what_is_in_the_queue_is_not_asked_of_a_declaration(
    parking: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        park(parking, message(number))
    silent = pika.frame.Method(1, pika.spec.Queue.DeclareOk("", 0, 0))
    access = Endpoint(hosts=(parking.broker.host,), topology_prefix=parking.prefix)
    with ParkingQueue(access) as queue:
        # As RabbitMQ answers while the queue's leader does not.
        monkeypatch.setattr(queue._channel, "queue_declare", lambda *_, **__: silent)

        assert sum(1 for _ in queue.messages()) == 3


def test_what_is_parked_meanwhile_is_left_for_the_next_time(parking: Channel) -> None:
    for number in range(3):
        park(parking, message(number))
    access = Endpoint(hosts=(parking.broker.host,), topology_prefix=parking.prefix)
    with ParkingQueue(access) as queue:
        messages = queue.messages()
        next(messages)
        park(parking, message(3))
        wait_parked(parking, 3)

        assert sum(1 for _ in messages) == 2


def test_a_broker_that_blocks_publishers_is_told_in_time(
    parking: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    park(parking, message(0))
    access = Endpoint(hosts=(parking.broker.host,), topology_prefix=parking.prefix)

    def block(*_: Any, **__: Any) -> None:
        raise pika.exceptions.ConnectionBlockedTimeout

    with ParkingQueue(access) as queue:
        assert queue._connection._impl.params.blocked_connection_timeout == 60
        (found,) = queue.messages()
        monkeypatch.setattr(queue._channel, "basic_publish", block)

        with pytest.raises(BrokerBlocked) as raised:
            queue.replay(found)

    assert str(raised.value) == (
        f"RabbitMQ at {parking.broker.host} takes nothing from publishers: blocked for 60 s; free "
        "memory or disk there, or wait longer"
    )
    wait_parked(parking, 1)


def test_only_who_says_so_drops(parking: Channel) -> None:
    park(parking, message(0), parking_id="a")
    park(parking, message(1), parking_id="b")

    assert run(parking, "drop", "a").returncode == 2
    assert run(parking, "drop", "a", "--dry-run").stderr == "would drop 1 messages\n"
    wait_parked(parking, 2)
    assert run(parking, "drop", "a", "--yes").returncode == 0
    wait_parked(parking, 1)
    assert [row["id"] for row in listed(parking)] == ["b"]


def test_an_id_that_is_not_there_is_told(parking: Channel) -> None:
    done = run(parking, "replay", "nobody")

    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "no parked message matches, or another command looks at it",
    )


def test_a_missing_parking_queue_is_told_in_one_line(producer: Channel) -> None:
    done = run(producer, "list")

    assert done.returncode == 1
    assert done.stderr.startswith("consumer: NOT_FOUND - no queue")
    assert done.stderr.count("\n") == 1


def test_1_000_parked_tiles_are_all_written_though_replay_is_killed_twice(
    parking: Channel, make_consumer: MakeConsumer, tmp_path: Path
) -> None:
    for number in range(1000):
        park(parking, message(number))
    for least in (300, 600):
        with subprocess.Popen(command(parking, "replay"), stderr=subprocess.DEVNULL) as process:
            depth = functools.partial(parking.depth, tiles_queue(parking))
            wait_until(lambda: depth() >= least, f"{least} replayed")  # noqa: B023
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "it had come to its end"
        queues = parked_queue(parking), tiles_queue(parking)
        wait_until(lambda: sum(map(parking.depth, queues)) >= 1000, "what was taken put back")  # noqa: B023

    assert run(parking, "replay").returncode == 0

    assert parking.depth(parked_queue(parking)) == 0
    with make_consumer() as consumer:
        parking.wait_delivered(tiles_queue(parking))
        assert consumer.stop() == 0
    stored = zarr.open_array(tmp_path / "root/p/a.zarr", path="x", mode="r")
    wanted = np.repeat(np.arange(1, 1001, dtype="float32"), SIDE)
    np.testing.assert_array_equal(stored[:], np.tile(wanted, (SIDE, 1)))


def test_no_password_shows(broker: RabbitMQ, producer: Channel) -> None:
    done = run(producer, "list", "--password", "hunter2")

    assert done.returncode == 1
    assert f"RabbitMQ at {broker.host} refuses user 'guest'" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
