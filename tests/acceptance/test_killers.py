"""A message that kills whoever takes it is parked, and none of its neighbours."""

import json
import os
import time
from pathlib import Path

import pytest

import consumer
from conftest import MakeConsumer
from consumer.journal import LONE_FOLDER
from consumer.keys import STATE_FOLDER
from faults import Image, Oracle, SlowDisk, wait_done
from harness import Channel, ConsumerProcess, wait_until

PLAIN = (("chunks", [1, 64, 64]),)
GOOD = Image(0, "good.zarr", "g/x", (1024, 832), 64, PLAIN)
KILLER = Image(1, "killer.zarr", "x", (64, 64), 64, PLAIN)
# Deliveries until it is a suspect; then among all, among few, and three times alone.
MOST_DEATHS = 2 + 2 + 3

_KILLS = """
import os, signal

import {module} as patched

_whole = patched.{function}


def kills(*arguments, **named):
    if {condition}:
        os.kill(os.getpid(), signal.SIGKILL)
    return _whole(*arguments, **named)


patched.{function} = kills
"""
VICTIMS = {
    "owner, which decodes it": ("consumer.intake", "decode", "b'killer.zarr' in arguments[1]"),
    "writer, which encodes it": (
        "consumer.rounds",
        "encode",
        "arguments[1].array.store == 'killer.zarr'",
    ),
}


def killing(folder: Path, victim: str) -> dict[str, str]:
    """Return the environment in which a process of the consumer is killed by the message."""
    module, function, condition = VICTIMS[victim]
    hook = _KILLS.format(module=module, function=function, condition=condition)
    (folder / "sitecustomize.py").write_text(hook)
    package = Path(consumer.__file__).parents[1]
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(package)])}


def revived(process: ConsumerProcess, channel: Channel, timeout_s: float = 300.0) -> int:
    """Start a consumer again whenever it has ended, until all is settled; return how often."""
    deaths, deadline = 0, time.monotonic() + timeout_s
    parked = f"{channel.prefix}.parked"
    while not (channel.depth(parked) and is_idle(process, channel)):
        assert time.monotonic() < deadline, process.tail()
        assert process.process is not None
        if process.process.poll() is not None:
            deaths += 1
            process.start(ready=False)
        time.sleep(0.05)
    return deaths


def is_idle(process: ConsumerProcess, channel: Channel) -> bool:
    """Whether nothing is queued, and nothing held."""
    try:
        found = process.metrics()
    except OSError:
        return False
    return bool(found["tiles_subscribed"]) and not (
        found["tiles_unacknowledged"] or channel.depth(f"{channel.prefix}.00")
    )


def cut_short(root: Path) -> list[int]:
    """How many messages each handling was of that the journal still knows of."""
    files = (root / STATE_FOLDER / LONE_FOLDER).glob("*.json")
    return sorted(len(json.loads(path.read_text())["messages"]) for path in files)


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_message_that_kills_is_parked_alone(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path, victim: str
) -> None:
    oracle, places = Oracle(), GOOD.places()
    with make_consumer():
        pass  # which declares the queue
    for place in places[:100]:
        producer.publish(GOOD.message(place))
    producer.publish(KILLER.message((0, 0)), message_id="the killer")
    for place in places[100:]:
        producer.publish(GOOD.message(place))
    oracle.note(GOOD, *places)

    process = make_consumer(environment=killing(tmp_path, victim)).start(ready=False)
    deaths = revived(process, producer)
    wait_done(process, producer)
    assert process.stop() == 0

    assert oracle.wrong(tmp_path / "root") == 0
    assert len(places) >= 200
    assert 3 <= deaths <= MOST_DEATHS
    [(properties, _)] = producer.drain(f"{producer.prefix}.parked")
    assert properties.message_id == "the killer"
    assert properties.headers["x-tiles-reason"] == "kills_consumer"
    assert "killed 3 times" in properties.headers["x-tiles-detail"]
    assert 1 not in cut_short(tmp_path / "root")


@pytest.mark.parametrize(("grace_s", "code"), [(25, 0), (0.2, 1)], ids=["drained", "in-vain"])
def test_an_orderly_stop_cuts_nothing_short(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path, grace_s: float, code: int
) -> None:
    disk, oracle = SlowDisk(tmp_path), Oracle()
    consumer = make_consumer(environment=disk.environment, grace_s=grace_s).start()
    root = tmp_path / "root"
    message = GOOD.message(GOOD.places()[0])
    disk.take(0.5)
    # The broker's own count takes its place from the first redelivery on.
    suspected = {"headers": {**message.properties["headers"], "x-delivery-count": 2}}
    producer.publish(message, **suspected)
    oracle.note(GOOD, GOOD.places()[0])
    wait_until(lambda: consumer.metrics()["tiles_writes_in_flight"] == 1, "a block written")
    assert cut_short(root) == [1]
    assert consumer.stop() == code
    assert cut_short(root) == []
    disk.take(0)
    consumer.start()
    wait_done(consumer, producer)
    assert consumer.stop() == 0
    assert oracle.wrong(root) == 0
    assert producer.depth(f"{producer.prefix}.parked") == 0
