"""What the consumer publishes, on a connection of its own: each message until it is confirmed."""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel

from consumer.connection import Connection
from consumer.events import CONTENT_TYPE, Event
from consumer.metrics import Metrics
from consumer.parking import PARKING_ID
from consumer.settings import Settings

_WINDOW_BYTES = 16 << 20
_WINDOW = 100
_MAX_KEY_BYTES = 255

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Letter:
    """A message to be published.

    Attributes
    ----------
    operation : str
        What it is published for: `park` or `announce`.
    comes_again_on : int or None
        The channel with which it is lost: it need not be sent then, it will be asked for again.
    identity : str
        Of a message that must find a queue: also its header `x-tiles-parking-id`.
    alone : bool
        Whether it was lost with others and may be the one that the broker refuses.
    given_up : bool
        Whether it is not to be sent again, should it have to.
    done : callable
        Told whether the broker has taken the message.
    """

    operation: str
    exchange: str
    routing_key: str
    body: bytes
    properties: Any
    done: Callable[[bool], None]
    comes_again_on: int | None = None
    identity: str = ""
    returned: bool = False
    alone: bool = False
    given_up: bool = False

    @property
    def is_copy(self) -> bool:
        """Whether it is of a message, which comes again; an event tells of what has happened."""
        return self.operation == "park"

    def let_go(self) -> None:
        """Tell whoever waits for it that it was not taken; nobody waits then."""
        done, self.done = self.done, _nobody
        self.comes_again_on, self.given_up = None, False
        done(False)


class Outgoing:
    """Publishes messages in their order, so many at a time, each until it is confirmed.

    For a message that it refuses the broker closes the channel, and does not say which it was. So
    each that was lost goes alone from then on, and one that was lost alone waits while the others
    go on.
    """

    def __init__(self, loop: IOLoop, settings: Settings, metrics: Metrics) -> None:
        self._loop = loop
        self._settings = settings
        self._metrics = metrics
        self._waiting: deque[Letter] = deque()
        self._unconfirmed: OrderedDict[int, Letter] = OrderedDict()
        self._later: dict[Letter, None] = {}
        self._channel: Channel | None = None
        self._published = 0
        self.connection = Connection(
            loop,
            settings,
            "publish",
            owner=settings.consumer_name,
            opened=self._opened,
            lost=self._lost,
            failed=lambda _error: metrics.reconnects.labels(connection="publish").inc(),
        )

    def publish(self, letter: Letter) -> None:
        """Publish a message, now or as soon as that can be."""
        self._waiting.append(letter)
        self._advance()

    def announce(
        self,
        event: Event,
        exchange: str,
        done: Callable[[bool], None],
        *,
        comes_again_on: int | None = None,
    ) -> None:
        """Publish an event."""
        properties = pika.BasicProperties(
            content_type=CONTENT_TYPE,
            delivery_mode=2,
            type=event.event,
            message_id=event.identity,
            app_id=self._settings.consumer_name,
            timestamp=int(time.time()),
        )
        body = event.model_dump_json(exclude_none=True).encode()
        self.publish(
            Letter(
                "announce",
                exchange,
                event.routing_key,
                body,
                properties,
                done,
                comes_again_on=comes_again_on,
            )
        )

    def give_up(self, channel: int) -> None:
        """Send no more of what is asked for again, since a channel was lost; but events are sent.

        What is under way may be taken all the same, and its `done` is told so.
        """
        for letter in self._unconfirmed.values():
            letter.given_up |= letter.comes_again_on == channel
        unsent = [x for x in (*self._waiting, *self._later) if x.comes_again_on == channel]
        dropped = {letter for letter in unsent if letter.is_copy}
        self._waiting = deque(x for x in self._waiting if x not in dropped)
        self._later = {x: None for x in self._later if x not in dropped}
        for letter in unsent:
            letter.let_go()

    def _opened(self, channel: Channel) -> None:
        channel.add_on_return_callback(self._on_return)
        self._published = 0
        channel.confirm_delivery(self._on_confirm, callback=lambda _frame: self._ready(channel))

    def _ready(self, channel: Channel) -> None:
        self._channel = channel
        if not (self._waiting and self._waiting[0].alone):
            self.connection.works()
        self._advance()

    def _lost(self) -> None:
        self._channel = None
        lost = list(self._unconfirmed.values())
        self._unconfirmed.clear()
        for letter in reversed(lost):
            if letter.alone or letter.given_up:
                self._again(letter)
            else:
                letter.alone = True
                self._waiting.appendleft(letter)

    def _advance(self) -> None:
        while self._waiting and self._channel is not None and self._channel.is_open:
            if self._unconfirmed and not self._may_join(self._waiting[0]):
                return
            self._send(self._channel, self._waiting.popleft())

    def _may_join(self, letter: Letter) -> bool:
        """Whether a message may be under way beside those that are."""
        held = self._unconfirmed.values()
        if letter.alone or any(each.alone for each in held) or len(held) >= _WINDOW:
            return False
        return sum(len(each.body) for each in held) + len(letter.body) <= _WINDOW_BYTES

    def _send(self, channel: Channel, letter: Letter) -> None:
        letter.returned = False
        self._published += 1
        self._unconfirmed[self._published] = letter
        channel.basic_publish(
            letter.exchange,
            letter.routing_key.encode()[:_MAX_KEY_BYTES].decode(errors="ignore"),
            letter.body,
            letter.properties,
            mandatory=bool(letter.identity),
        )

    def _on_return(self, _channel: Channel, _method: Any, properties: Any, _body: bytes) -> None:
        identity = properties.headers[PARKING_ID]
        for letter in self._unconfirmed.values():
            letter.returned |= letter.identity == identity

    def _on_confirm(self, frame: Any) -> None:
        tag, positive = frame.method.delivery_tag, isinstance(frame.method, pika.spec.Basic.Ack)
        multiple = frame.method.multiple
        for number in [n for n in self._unconfirmed if n == tag or (multiple and n <= tag)]:
            letter = self._unconfirmed.pop(number)
            if positive and not letter.returned:
                self.connection.works()
                letter.done(True)
            else:
                self._again(letter)
        self._advance()

    def _again(self, letter: Letter) -> None:
        if letter.given_up:
            letter.let_go()
            if letter.is_copy:
                return
        log.error(
            "a message was refused or found no queue; trying again",
            extra={
                "operation": letter.operation,
                "exchange": letter.exchange,
                "returned": letter.returned,
            },
        )
        self._metrics.retries.labels(operation=letter.operation).inc()
        self._later[letter] = None
        self._loop.call_later(self._settings.reconnect_max_s / 4, partial(self._retry, letter))

    def _retry(self, letter: Letter) -> None:
        if letter in self._later:
            del self._later[letter]
            self.publish(letter)


def _nobody(_taken: bool) -> None:
    pass
