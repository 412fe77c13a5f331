"""A stalled subscription is renewed soon, one that waits its turn seldom, an idle one never."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from consumer.watchdog import Watchdog

STALLED_S = 60.0
HOUR = 3600.0

# Messages that wait, and consumers.
Answer = tuple[int, int]


def renewals(
    answer: Callable[[float], Answer],
    *,
    until: float = HOUR,
    deliveries: Callable[[float], bool] = lambda _now: False,
    busy: Callable[[float], bool] = lambda _now: False,
) -> list[float]:
    """Return when a subscription is renewed that the broker answers so, looked at each second."""
    dog, found = Watchdog(STALLED_S), []
    dog.note_subscribed(0.0)
    for second in range(int(until)):
        now = float(second)
        if deliveries(now):
            dog.note_delivery(now)
        if busy(now):
            dog.note_busy(now)
        elif dog.is_due(now) and dog.answered(*answer(now), now):
            found.append(now)
            dog.note_subscribed(now)
    return found


def test_where_the_broker_knows_no_consumer_the_second_answer_decides() -> None:
    assert renewals(lambda _now: (5, 0), until=100) == [75.0]


@pytest.mark.parametrize("consumers", [1, 2])
def test_so_it_does_for_one_that_was_delivered_to(consumers: int) -> None:
    found = renewals(lambda _now: (5, consumers), deliveries=lambda now: now == 10, until=100)
    assert found == [85.0]


def test_each_renewal_in_vain_is_waited_for_longer_up_to_half_an_hour() -> None:
    found = renewals(lambda _now: (5, 0), until=12 * HOUR)
    gaps = [round(later - earlier) for earlier, later in pairwise(found)]
    assert gaps[:5] == [135, 255, 495, 975, 1935]
    assert set(gaps[5:]) == {1935}


def test_a_delivery_makes_the_wait_short_again() -> None:
    found = renewals(lambda _now: (5, 0), deliveries=lambda now: now == 1000, until=1100)
    assert found[-1] == 1075


def test_an_empty_queue_is_no_stall() -> None:
    assert renewals(lambda _now: (0, 1), until=24 * HOUR) == []


def test_a_queue_that_is_empty_now_and_then_is_no_stall() -> None:
    answers = iter([(5, 1), (0, 1)] * 1000)
    assert renewals(lambda _now: next(answers)) == []


def test_nothing_is_asked_while_deliveries_are_held() -> None:
    assert renewals(lambda _now: (5, 1), busy=lambda _now: True) == []


def test_what_comes_while_it_is_asked_makes_the_answer_void() -> None:
    dog = Watchdog(STALLED_S)
    dog.note_subscribed(0.0)
    assert dog.is_due(60.0)
    assert not dog.answered(5, 1, 60.0)
    assert dog.is_due(75.0)
    dog.note_delivery(75.5)
    assert not dog.answered(5, 1, 76.0)
    assert not dog.is_due(135.0)
    assert dog.is_due(135.5)


def test_it_is_not_asked_again_before_the_answer() -> None:
    dog = Watchdog(STALLED_S)
    dog.note_subscribed(0.0)
    assert dog.is_due(60.0)
    assert not dog.is_due(1000.0)


@pytest.mark.parametrize("consumers", [1, 2])
def test_one_that_waits_its_turn_is_renewed_twice_an_hour(consumers: int) -> None:
    found = renewals(lambda _now: (500, consumers), until=24 * HOUR)
    assert found[0] > 2 * STALLED_S
    assert len(found) <= 50
