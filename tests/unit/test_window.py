"""Waiting for room and for confirms, and which trouble is told when."""

import threading
import time

import pytest

from consumer.errors import BrokerBlocked, QueueFull, Unconfirmed, Unroutable
from consumer.window import Window

SHORT_S = 0.01


def later(action: object) -> threading.Thread:
    """Run a callable on another thread."""
    assert callable(action)
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_what_is_larger_than_the_window_is_taken_when_nothing_else_is_held() -> None:
    window = Window(10)

    window.take(11, SHORT_S)

    assert window.held_bytes == 11


def test_room_is_waited_for() -> None:
    window = Window(10)
    window.take(10, SHORT_S)
    thread = later(lambda: window.confirm(10))

    window.take(10, 60)

    thread.join()
    assert window.held_bytes == 10


def test_no_room_takes_nothing_and_says_how_much_waits() -> None:
    window = Window(10)
    window.take(10, SHORT_S)

    with pytest.raises(Unconfirmed, match=r"confirmed nothing for 0.01 s; 10 bytes wait"):
        window.take(1, SHORT_S)

    assert window.held_bytes == 10


def test_trouble_that_may_pass_is_told_when_time_is_up() -> None:
    window = Window(10)
    window.take(10, SHORT_S)
    window.report(QueueFull("full"))

    with pytest.raises(QueueFull, match="full"):
        window.wait_empty(SHORT_S)
    with pytest.raises(QueueFull, match="full"):
        window.wait_empty(SHORT_S)


def test_final_trouble_is_told_at_once_and_then_once_only() -> None:
    window = Window(10)
    window.take(5, SHORT_S)
    window.report(Unroutable("no queue"), final=True)

    with pytest.raises(Unroutable, match="no queue"):
        window.take(1, 3600)

    window.take(1, SHORT_S)


def test_final_trouble_ends_a_wait_that_began_before() -> None:
    window = Window(10)
    window.take(5, SHORT_S)
    thread = later(lambda: window.report(Unroutable("no queue"), final=True))

    with pytest.raises(Unroutable):
        window.wait_empty(3600)

    thread.join()


def test_a_confirm_ends_the_trouble() -> None:
    window = Window(10)
    window.take(10, SHORT_S)
    window.report(QueueFull("full"))
    window.confirm(5)

    with pytest.raises(Unconfirmed):
        window.wait_empty(SHORT_S)


def test_what_is_lost_is_told_whatever_is_confirmed_before_somebody_asks() -> None:
    window = Window(10)
    window.take(5, SHORT_S)
    window.take(5, SHORT_S)
    window.lose(5, Unconfirmed("lost"))
    window.confirm(5)

    with pytest.raises(Unconfirmed, match="lost"):
        window.wait_empty(SHORT_S)
    window.wait_empty(SHORT_S)


def test_room_that_was_taken_for_nothing_is_given_back() -> None:
    window = Window(10)
    window.take(10, SHORT_S)
    thread = later(lambda: window.give_back(10))

    window.take(10, 60)

    thread.join()
    assert window.held_bytes == 10


def test_only_the_trouble_that_is_over_is_forgotten() -> None:
    window = Window(10)
    window.take(10, SHORT_S)
    window.report(QueueFull("full"))

    window.clear(BrokerBlocked)

    with pytest.raises(QueueFull):
        window.wait_empty(SHORT_S)


def test_each_confirm_starts_the_wait_anew() -> None:
    window = Window(100)
    window.take(100, SHORT_S)
    waits = iter([50, 50])

    class Slow(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            """Confirm a part whenever the time is nearly up."""
            assert timeout is not None
            assert timeout > 0
            window.confirm(next(waits))
            return True

    window._changed = Slow()

    window.wait_empty(SHORT_S)

    assert window.held_bytes == 0


def test_what_is_lost_is_told_once_all_else_is_confirmed() -> None:
    window = Window(100)
    window.take(10, SHORT_S)
    window.take(10, SHORT_S)
    window.lose(10, Unconfirmed("one is lost"))

    def confirm() -> None:
        time.sleep(0.2)
        window.confirm(10)

    thread = later(confirm)
    with pytest.raises(Unconfirmed, match="one is lost"):
        window.wait_empty(60)
    assert window.held_bytes == 0
    thread.join()


def test_what_is_lost_is_told_beside_what_is_not_confirmed() -> None:
    window = Window(100)
    window.take(10, SHORT_S)
    window.take(10, SHORT_S)
    window.lose(10, Unconfirmed("one is lost"))
    with pytest.raises(Unconfirmed, match="10 bytes wait; one is lost"):
        window.wait_empty(SHORT_S)
