"""A subscription that the broker has forgotten is renewed; others are left as they are."""

import os
import time
from pathlib import Path

import pytest

import consumer
from conftest import MakeConsumer
from faults import Image, Oracle, SlowDisk, log_lines, wait_done
from harness import Channel, ConsumerProcess, wait_until

RESUBSCRIBED = "tiles_resubscribed_total"
IMAGE = Image(0, "a.zarr", "x", (256, 256), 64, (("chunks", [1, 64, 64]),))

# The first subscription is cancelled without a word to either end's code: RabbitMQ has no consumer
# then, and this process believes that it is one.
_STALLS = """
from pika import spec
from pika.channel import Channel
from consumer import subscription

_subscribed, _cancel = subscription.Subscription._note_subscribed, Channel.basic_cancel
_stalled = []


def stalls(self, tag):
    _subscribed(self, tag)
    if not _stalled:
        _stalled.append(tag)
        self._channel._send_method(spec.Basic.Cancel(tag, nowait=True))


def deaf(self, consumer_tag, callback=None):
    if consumer_tag not in _stalled or {answered}:
        _cancel(self, consumer_tag, callback)


subscription.Subscription._note_subscribed, Channel.basic_cancel = stalls, deaf
subscription._RENEWAL_S = 1.0
"""


def stalling(folder: Path, *, answered: bool) -> dict[str, str]:
    """Return the environment in which a consumer's first subscription is stalled."""
    (folder / "sitecustomize.py").write_text(_STALLS.format(answered=answered))
    package = Path(consumer.__file__).parents[1]
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(package)])}


def told(process: ConsumerProcess) -> int:
    """How often the log says that messages wait."""
    return sum("messages wait and none comes" in line for line in log_lines(process))


def publish(channel: Channel, oracle: Oracle) -> None:
    """Publish all tiles of the image."""
    for place in IMAGE.places():
        channel.publish(IMAGE.message(place))
        oracle.note(IMAGE, place)


@pytest.mark.parametrize("answered", [True, False], ids=["cancelled", "cancel-is-not-answered"])
def test_a_stalled_subscription_is_renewed(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path, answered: bool
) -> None:
    oracle = Oracle()
    with make_consumer(environment=stalling(tmp_path, answered=answered), stalled_s=1) as process:
        publish(producer, oracle)
        wait_done(process, producer)
        metrics = process.metrics()
        assert metrics[RESUBSCRIBED] == told(process) == 1
        assert metrics['tiles_partition_channels_lost_total{partition="00"}'] == (
            0 if answered else 1
        )
        assert process.stop() == 0
    assert oracle.wrong(tmp_path / "root") == 0


def test_an_idle_consumer_of_an_empty_queue_keeps_its_subscription(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    oracle = Oracle()
    with make_consumer(stalled_s=0.2) as process:
        publish(producer, oracle)
        wait_done(process, producer)
        pass_by(4.0)
        assert process.metrics()[RESUBSCRIBED] == told(process) == 0
        assert process.stop() == 0


def test_a_consumer_that_waits_its_turn_does_not_churn_and_takes_over(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    disk, oracle = SlowDisk(tmp_path), Oracle()
    slow = make_consumer(environment=disk.environment, prefetch_count=2, stalled_s=0.2).start()
    disk.take(float("inf"))
    publish(producer, oracle)
    wait_until(lambda: slow.metrics()["tiles_unacknowledged"] == 2, "two deliveries held")
    with make_consumer(stalled_s=0.2) as waiting:
        pass_by(8.0)
        assert producer.depth(f"{producer.prefix}.00") == len(IMAGE.places()) - 2
        assert slow.metrics()[RESUBSCRIBED] == 0
        assert waiting.metrics()[RESUBSCRIBED] <= 3
        slow.kill()
        wait_done(waiting, producer)
        assert waiting.stop() == 0
    assert oracle.wrong(tmp_path / "root") == 0


def pass_by(seconds: float) -> None:
    """Let time pass in which something might happen that should not."""
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > seconds, f"{seconds:g} s")
