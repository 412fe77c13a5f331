"""What is published while the broker refuses one of the messages: each other goes at once."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pika
import pytest

from consumer import outgoing
from consumer.metrics import Metrics
from consumer.outgoing import Letter, Outgoing
from consumer.settings import Settings


class RefusingBroker:
    """A broker that closes the channel for one routing key, before it confirms what it took.

    Attributes
    ----------
    taken
        How often each message was taken.
    lost
        How many channels were closed.
    later
        What is to be done after a while.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: Counter[str] = Counter()
        self.lost = 0
        self.later: list[Callable[[], None]] = []
        self._sent: list[str] = []
        self._opened: Callable[[Any], None] = lambda _channel: None
        self._fail: Callable[[], None] = lambda: None
        monkeypatch.setattr(outgoing, "Connection", self._connect)
        loop: Any = SimpleNamespace(call_later=lambda _seconds, act: self.later.append(act))
        settings = Settings(output_root="/output")
        self.outgoing = Outgoing(loop, settings, Metrics())
        self._open()

    def run(self) -> None:
        """Take what was sent, until nothing more comes."""
        while self._sent:
            sent, self._sent = self._sent, []
            if "refused" in sent:
                self.taken.update(sent[: sent.index("refused")])
                self.lost += 1
                self._fail()
                self._open()
            else:
                self.taken.update(sent)
                method = pika.spec.Basic.Ack(self._count, multiple=True)
                self._confirm(SimpleNamespace(method=method))

    def _connect(self, *_given: object, opened: Any, lost: Any, **_named: object) -> Any:
        self._opened, self._fail = opened, lost
        return SimpleNamespace(works=lambda: None)

    def _open(self) -> None:
        self._count = 0
        channel = SimpleNamespace(
            is_open=True,
            add_on_return_callback=lambda _call: None,
            confirm_delivery=self._confirm_delivery,
            basic_publish=self._publish,
        )
        self._opened(channel)

    def _confirm_delivery(self, confirm: Any, callback: Any) -> None:
        self._confirm = confirm
        callback(None)

    def _publish(self, _exchange: str, key: str, *_rest: object, **_named: object) -> None:
        self._count += 1
        self._sent.append(key)


def letter(key: str, done: Callable[[bool], None]) -> Letter:
    """Return a message to be parked."""
    return Letter("park", "tiles", key, b"body", pika.BasicProperties(), done)


def _note(done: list[str], number: int, taken: bool) -> None:
    assert taken
    done.append(f"{number}")


def test_a_refused_message_costs_each_beside_it_one_more_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker, done = RefusingBroker(monkeypatch), list[str]()
    for number in range(50):
        broker.outgoing.publish(letter(f"{number}", partial(_note, done, number)))
    broker.outgoing.publish(letter("refused", lambda _taken: done.append("refused")))
    broker.run()
    assert sorted(done, key=int) == [f"{number}" for number in range(50)]
    assert max(broker.taken.values()) == 2
    assert broker.lost == 2


def test_a_refused_message_is_tried_again_with_nothing_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker, done = RefusingBroker(monkeypatch), list[str]()
    broker.outgoing.publish(letter("refused", lambda _taken: done.append("refused")))
    broker.run()
    for round_ in range(5):
        for number in range(10):
            broker.outgoing.publish(
                letter(f"{round_}-{number}", lambda _taken: done.append("good"))
            )
        broker.later[-1]()
        broker.run()
    assert done == ["good"] * 50
    assert set(broker.taken.values()) == {1}


@pytest.mark.parametrize("refused_first", [True, False])
def test_what_comes_again_is_not_sent_for_a_channel_that_was_lost(
    monkeypatch: pytest.MonkeyPatch, refused_first: bool
) -> None:
    broker, done = RefusingBroker(monkeypatch), list[bool]()
    refused = letter("refused", done.append)
    refused.comes_again_on = 1
    broker.outgoing.publish(refused)
    if refused_first:
        broker.run()
    broker.outgoing.give_up(2)
    assert done == []
    broker.outgoing.give_up(1)
    broker.run()
    for act in broker.later:
        act()
    lost = broker.lost
    broker.run()
    assert done == [False]
    assert broker.lost == lost


def test_what_was_sent_before_the_channel_was_lost_is_told_as_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker, done = RefusingBroker(monkeypatch), list[bool]()
    good = letter("good", done.append)
    good.comes_again_on = 1
    broker.outgoing.publish(good)
    broker.outgoing.give_up(1)
    broker.run()
    assert done == [True]


@pytest.mark.parametrize("refused_first", [True, False])
def test_an_event_is_told_also_where_its_channel_is_lost(
    monkeypatch: pytest.MonkeyPatch, refused_first: bool
) -> None:
    broker, done = RefusingBroker(monkeypatch), list[bool]()
    event = letter("refused", done.append)
    event.operation, event.comes_again_on = "announce", 1
    broker.outgoing.publish(event)
    if refused_first:
        broker.run()
    broker.outgoing.give_up(1)
    if not refused_first:
        broker.run()
    assert done == [False]
    event.routing_key = "taken"
    broker.later[-1]()
    broker.run()
    assert broker.taken["taken"] == 1
    assert done == [False]
