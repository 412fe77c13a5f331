"""Questions to the broker, on channels of their own: on one that delivers, an answer would come
after all bodies that are under way.
"""

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from pika.adapters.select_connection import IOLoop
from pika.channel import Channel

log = logging.getLogger(__name__)


class RoundTrips:
    """Asks for no more than an answer, on the connection that delivers.

    A consumer that was paused learns so that its connection is gone, and which of its channels are:
    the broker says both before it answers.
    """

    def __init__(self, loop: IOLoop) -> None:
        self._loop = loop
        self._channel: Channel | None = None
        # With the channel that each is about.
        self._asked: deque[tuple[int, Callable[[bool], None]]] = deque()

    def use(self, channel: Channel) -> None:
        """Ask on a new channel."""
        self._channel = channel

    def ask(self, about: int | None, done: Callable[[bool], None]) -> None:
        """Ask; `done` is told whether the broker answered while there was the channel `about`."""
        channel = self._channel
        if about is None or channel is None or not channel.is_open:
            self._loop.call_later(0, partial(done, False))
            return
        self._asked.append((about, done))
        # It changes nothing: nobody consumes on this channel.
        channel.basic_qos(callback=lambda _frame: self._answered(channel))

    def channel_lost(self, about: int) -> None:
        """Tell those who ask about a channel that it is gone."""
        asked = [done for number, done in self._asked if number == about]
        self._asked = deque(
            (number, _ignore if number == about else done) for number, done in self._asked
        )
        for done in asked:
            done(False)

    def lost(self) -> None:
        """Tell everybody who asks that the connection is gone."""
        asked, self._asked, self._channel = self._asked, deque(), None
        for _about, done in asked:
            done(False)

    def _answered(self, channel: Channel) -> None:
        if channel is self._channel:
            self._asked.popleft()[1](True)


class Counts:
    """Asks how many messages wait in queues, and how many consumers these have.

    A queue that is gone costs the channel, and nothing but it: the next question opens another.
    """

    def __init__(self) -> None:
        self._connection: Any = None
        self._channel: Channel | None = None
        self._asked: dict[str, Callable[[Any], None]] = {}

    def attach(self, connection: Any) -> None:
        """Ask on a new connection; None where it is gone."""
        self._connection, self._channel = connection, None

    def ask(self, queue: str, answered: Callable[[Any], None]) -> None:
        """Ask about a queue; `answered` gets the broker's answer, if there is one."""
        channel = self._channel
        if channel is None or channel.is_closed or channel.is_closing:
            self._asked.clear()
            self._open()
        if queue in self._asked:
            return  # it has not answered yet
        self._asked[queue] = answered
        if channel is not None and channel.is_open:
            self._send(channel, queue)

    def _open(self) -> None:
        if self._connection is not None and self._connection.is_open:
            self._channel = self._connection.channel(on_open_callback=self._opened)

    def _opened(self, channel: Channel) -> None:
        for queue in self._asked:
            self._send(channel, queue)

    def _send(self, channel: Channel, queue: str) -> None:
        channel.queue_declare(queue, passive=True, callback=partial(self._answered, channel))

    def _answered(self, channel: Channel, frame: Any) -> None:
        answered = self._asked.pop(frame.method.queue, None)
        if channel is self._channel and answered is not None:
            answered(frame.method)


def _ignore(_answered: bool) -> None:
    pass
