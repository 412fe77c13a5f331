"""What is given up, and that it is no more than what must be."""

from types import SimpleNamespace
from typing import Any

from consumer.blocks import DeliveryId
from consumer.delivery import Delivery
from consumer.faults import Faults
from consumer.holdings import Holdings
from consumer.inbox import Held
from consumer.losses import Losses
from consumer.message import Envelope
from consumer.settings import Settings

MAX_AGE_S = 60.0
SETTINGS = Settings.model_construct(max_age_s=MAX_AGE_S, consumer_timeout_s=1800.0, idle_s=5.0)


class Bench:
    """Deliveries of some channels, each to a store of its own, named like it."""

    def __init__(self, **since: float) -> None:
        self.held = Holdings(10)
        self.faults = Faults(30.0)
        self.given_up: list[str] = []
        self.starved = False
        self.storage: Any
        self.assembler: Any
        self.storage = SimpleNamespace(root_writable=True, close_array=lambda _array: None)
        self.assembler = SimpleNamespace(
            writing=0,
            channels=lambda store: [int(store)] if int(store) in self.held.channels else [],
            stores_of=lambda channel: {str(channel)},
            lose=lambda _channel, _stores: None,
        )
        for name, received in since.items():
            properties = SimpleNamespace(message_id=None)
            identity = DeliveryId(int(name[1:]), 1)
            delivery = Delivery(identity, Envelope("a.zarr", "tiles.v1", None), properties, 0)
            self.held.add(Held(delivery, received))
        nothing: Any = SimpleNamespace(
            channel_lost=lambda _channel: None, drop=lambda _channel: None
        )
        broker: Any = SimpleNamespace(reset=self._reset)
        self.losses = Losses(
            SETTINGS,
            broker,
            self.storage,
            nothing,
            self.assembler,
            _NoHandles(),  # type: ignore[arg-type]  # a model
            nothing,
            nothing,
            self.faults,
            self.held,
            starved=lambda: self.starved,
        )

    def _reset(self, channel: int, _reason: str, *, hold: Any) -> None:
        assert not hold()
        self.given_up.append(f"c{channel}")


class _NoHandles(list[Any]):
    def reopen(self, store: str) -> None:
        """Have nothing opened again."""


def test_only_the_channel_of_a_delivery_that_is_too_old_is_given_up() -> None:
    bench = Bench(c1=0.0, c2=800.0)
    bench.losses.watch(901.0)
    assert (bench.given_up, bench.held.channels) == (["c1"], [2])


def test_all_channels_with_deliveries_that_are_too_old_are_given_up_at_once() -> None:
    bench = Bench(c1=0.0, c2=1.0, c3=800.0)
    bench.losses.watch(902.0)
    assert bench.given_up == ["c1", "c2"]


def test_a_store_that_fails_and_takes_all_room_is_given_up_for_the_others() -> None:
    bench = Bench(c1=0.0, c2=0.0)
    bench.faults.note("1", 0.0)
    bench.starved = True
    bench.losses.watch(1.0)
    assert bench.given_up == []
    bench.losses.watch(7.0)
    assert bench.given_up == ["c1"]


def test_a_store_that_fails_is_kept_where_there_is_room_for_others() -> None:
    bench = Bench(c1=0.0, c2=0.0)
    bench.faults.note("1", 0.0)
    for now in (1.0, 7.0, 14.0):
        bench.losses.watch(now)
    assert bench.given_up == []


def test_a_store_that_fails_is_kept_where_nobody_else_waits() -> None:
    bench = Bench(c1=0.0)
    bench.faults.note("1", 0.0)
    bench.starved = True
    for now in (1.0, 7.0, 14.0):
        bench.losses.watch(now)
    assert bench.given_up == []


def test_nothing_is_given_up_for_room_while_a_write_is_to_return() -> None:
    bench = Bench(c1=0.0, c2=0.0)
    bench.faults.note("1", 0.0)
    bench.starved, bench.assembler.writing = True, 1
    for now in (1.0, 7.0, 14.0):
        bench.losses.watch(now)
    assert bench.given_up == []
