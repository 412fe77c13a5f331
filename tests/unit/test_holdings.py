"""What is held of each channel, and on which channels no more comes."""

from types import SimpleNamespace
from typing import cast

from consumer.blocks import DeliveryId
from consumer.holdings import Holdings
from consumer.inbox import Held


def held(channel: int, tag: int) -> Held:
    """Return a delivery of which nothing but its identity matters."""
    delivery = SimpleNamespace(id=DeliveryId(channel, tag))
    return cast(Held, SimpleNamespace(delivery=delivery, since=0.0))


def test_a_channel_is_withheld_until_something_comes_on_it() -> None:
    holdings = Holdings(10)
    holdings.add(held(1, 1))
    holdings.withhold(1)
    assert holdings.withheld == {1}
    holdings.add(held(1, 2))
    assert not holdings.withheld


def test_a_channel_of_which_nothing_is_held_is_not_withheld() -> None:
    holdings = Holdings(10)
    holdings.withhold(1)
    assert not holdings.withheld


def test_a_channel_stays_withheld_until_all_of_it_is_settled() -> None:
    holdings = Holdings(10)
    for tag in (1, 2):
        holdings.add(held(1, tag))
    holdings.withhold(1)
    holdings.pop(DeliveryId(1, 1))
    assert holdings.withheld == {1}
    holdings.pop(DeliveryId(1, 2))
    assert not holdings.withheld


def test_a_channel_that_is_lost_is_not_withheld() -> None:
    holdings = Holdings(10)
    holdings.add(held(1, 1))
    holdings.withhold(1)
    holdings.drop(1)
    assert not holdings.withheld
