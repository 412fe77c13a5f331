"""Acknowledgements go out in few frames, in time, and never of what is not durable."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from consumer.asking import Counts
from consumer.metrics import Metrics
from consumer.settings import Settings
from consumer.subscription import Partition, Subscription

PREFETCH = 8


class Channel:
    """A channel of pika's: notes what was settled on it."""

    def __init__(self) -> None:
        self.is_open = True
        self.frames: list[tuple[Any, ...]] = []
        self.confirmed: Callable[[Any], None] | None = None
        self.cancelled: list[str] = []

    def basic_consume(self, *_args: Any, callback: Callable[[Any], None], **_named: Any) -> None:
        """Leave it open when the subscription is confirmed."""
        self.confirmed = callback

    def basic_cancel(self, tag: str) -> None:
        """Note the end of a subscription."""
        self.cancelled.append(tag)

    def basic_ack(self, tag: int, multiple: bool = False) -> None:
        """Note an acknowledgement."""
        self.frames.append(("ack", tag, multiple))

    def basic_nack(self, tag: int, *, requeue: bool) -> None:
        """Note that a delivery is given back."""
        assert requeue
        self.frames.append(("nack", tag))

    def close(self) -> None:
        """Note the end."""
        self.is_open = False
        self.frames.append(("close",))

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_named: None


class Bench:
    """A subscription to a partition, with deliveries from 1 on, and time that passes when told."""

    def __init__(self, deliveries: int) -> None:
        self._later: list[tuple[float, Callable[[], None]]] = []
        self.channel = Channel()
        self.connection = SimpleNamespace(
            is_open=True, channel=lambda on_open_callback: on_open_callback(self.channel)
        )
        loop: Any = SimpleNamespace(call_later=lambda s, call: self._later.append((s, call)))
        queue: Any = SimpleNamespace(name="tiles.00")
        self.subscription = Subscription(
            loop,
            Settings.model_construct(prefetch_count=PREFETCH, consumer_name="c"),
            Partition("00", queue, (), 0),
            Metrics(),
            Counts(),
            itertools.count(1),
            subscribed=lambda: None,
            lost=lambda _number: None,
        )
        self.subscription.receiver = SimpleNamespace(deliver=lambda _delivery, _body: None)
        self.subscription.attach(self.connection)
        self.deliver(range(1, deliveries + 1))

    @property
    def frames(self) -> list[tuple[Any, ...]]:
        """What went over the channel."""
        return self.channel.frames

    def deliver(self, tags: range) -> None:
        """Deliver messages."""
        properties = SimpleNamespace(
            headers={}, type="t", content_type="c", content_encoding=None, message_id=None
        )
        for tag in tags:
            method = SimpleNamespace(delivery_tag=tag, routing_key="a.zarr", redelivered=False)
            number = self.subscription.number
            self.subscription._on_message(number, self.channel, method, properties, b"")

    def acknowledge(self, *tags: int) -> None:
        """Have deliveries be acknowledged, and end the turn of the loop."""
        for tag in tags:
            assert self.subscription.acknowledge(tag)
        self.turn(0)

    def turn(self, seconds: float) -> None:
        """Let time pass."""
        due = [call for wait, call in self._later if wait <= seconds]
        self._later = [(wait - seconds, call) for wait, call in self._later if wait > seconds]
        for call in due:
            call()


def test_a_subscription_that_is_confirmed_after_the_end_was_asked_for_is_cancelled() -> None:
    bench = Bench(0)
    bench.subscription._subscribe()
    bench.subscription.cancel()
    assert bench.channel.cancelled == []
    assert bench.channel.confirmed is not None
    bench.channel.confirmed(None)
    assert len(bench.channel.cancelled) == 1


def test_what_came_first_is_acknowledged_in_one_frame_at_once() -> None:
    bench = Bench(5)
    bench.acknowledge(3, 1, 2)
    assert bench.frames == [("ack", 3, True)]


def test_what_joins_those_before_it_soon_goes_out_with_them() -> None:
    bench = Bench(5)
    bench.acknowledge(1, 3, 4)
    bench.acknowledge(2)
    bench.turn(1)
    assert bench.frames == [("ack", 1, True), ("ack", 4, True)]


def test_what_joins_nothing_soon_goes_out_alone() -> None:
    bench = Bench(5)
    bench.acknowledge(3, 5)
    assert bench.frames == []
    bench.turn(1)
    assert bench.frames == [("ack", 3, False), ("ack", 5, False)]


def test_nothing_is_acknowledged_twice() -> None:
    bench = Bench(5)
    bench.acknowledge(2, 3)
    bench.turn(1)
    assert not bench.subscription.acknowledge(2)
    bench.acknowledge(1)
    bench.turn(1)
    assert bench.frames == [("ack", 2, False), ("ack", 3, False), ("ack", 1, True)]


def test_what_waits_leaves_room_for_more_deliveries() -> None:
    bench = Bench(PREFETCH)
    bench.acknowledge(*range(2, PREFETCH - 1))
    assert bench.frames == [("ack", tag, False) for tag in range(2, PREFETCH - 1)]


def test_what_is_given_back_is_not_acknowledged_with_those_around_it() -> None:
    bench = Bench(3)
    bench.acknowledge(3)
    bench.subscription.requeue(2)
    bench.acknowledge(1)
    assert bench.frames == [("nack", 2), ("ack", 3, True)]


def test_what_waits_is_acknowledged_before_a_channel_is_given_up() -> None:
    bench = Bench(3)
    bench.acknowledge(2)
    bench.subscription.reset("for a test")
    assert bench.frames == [("ack", 2, False), ("close",)]


def test_what_waits_is_acknowledged_on_demand() -> None:
    bench = Bench(3)
    bench.acknowledge(2)
    bench.subscription.send_acknowledgements()
    bench.turn(1)
    assert bench.frames == [("ack", 2, False)]


def test_what_waited_on_a_lost_channel_is_never_acknowledged_on_the_next() -> None:
    bench = Bench(3)
    bench.acknowledge(2)
    bench.subscription.detach()
    bench.subscription.attach(bench.connection)
    bench.deliver(range(1, 4))
    bench.turn(1)
    assert bench.frames == []


@pytest.mark.parametrize("order", list(itertools.permutations(range(1, 5))), ids=str)
def test_everything_is_acknowledged_in_the_end_whatever_the_order(order: tuple[int, ...]) -> None:
    bench = Bench(4)
    for tag in order:
        bench.acknowledge(tag)
    bench.turn(1)
    covered: set[int] = set()
    for _, tag, multiple in bench.frames:
        covered |= set(range(1, tag + 1)) if multiple else {tag}
    assert covered == {1, 2, 3, 4}
