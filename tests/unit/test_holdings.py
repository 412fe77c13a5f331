"""What is held is known by channel."""

from types import SimpleNamespace

from consumer.blocks import DeliveryId
from consumer.delivery import Delivery
from consumer.holdings import Holdings
from consumer.inbox import Held
from consumer.message import Envelope


def held(channel: int, tag: int, since: float = 0.0) -> Held:
    """Return a delivery."""
    properties = SimpleNamespace(message_id=None)
    envelope = Envelope("a.zarr", "tiles.v1", None)
    return Held(Delivery(DeliveryId(channel, tag), envelope, properties, 0), since)


def holding(*given: Held, prefetch: int = 2) -> Holdings:
    """Return what holds some deliveries."""
    made = Holdings(prefetch)
    for each in given:
        made.add(each)
    return made


def test_the_oldest_is_that_of_the_channel() -> None:
    found = holding(held(1, 1, 5.0), held(1, 2, 6.0), held(2, 1, 7.0))
    assert [found.oldest(channel) for channel in (1, 2, 3)] == [5.0, 7.0, None]
    found.pop(DeliveryId(1, 1))
    assert found.oldest(1) == 6.0


def test_a_channel_is_full_when_the_broker_delivers_no_more_on_it() -> None:
    found = holding(held(1, 1), held(2, 1), held(1, 2))
    assert found.full == {1}
    found.pop(DeliveryId(1, 2))
    assert found.full == set()


def test_a_lost_channel_takes_only_its_own() -> None:
    found = holding(held(1, 1), held(1, 2), held(2, 1))
    assert [each.delivery.id.tag for each in found.drop(1)] == [1, 2]
    assert (found.channels, len(found), found.full) == ([2], 1, set())
    assert DeliveryId(2, 1) in found
    assert DeliveryId(1, 1) not in found


def test_what_is_not_held_is_not_there() -> None:
    assert holding(held(1, 1)).pop(DeliveryId(1, 2)) is None


def test_a_channel_is_withheld_until_something_comes_on_it() -> None:
    found = holding(held(1, 1), prefetch=10)
    found.withhold(1)
    assert found.withheld == {1}
    found.add(held(1, 2))
    assert found.withheld == set()


def test_a_channel_of_which_nothing_is_held_is_not_withheld() -> None:
    found = holding()
    found.withhold(1)
    assert found.withheld == set()


def test_a_channel_stays_withheld_until_all_of_it_is_settled() -> None:
    found = holding(held(1, 1), held(1, 2), prefetch=10)
    found.withhold(1)
    found.pop(DeliveryId(1, 1))
    assert found.withheld == {1}
    found.pop(DeliveryId(1, 2))
    assert found.withheld == set()


def test_a_channel_that_is_lost_is_not_withheld() -> None:
    found = holding(held(1, 1))
    found.withhold(1)
    found.drop(1)
    assert found.withheld == set()
