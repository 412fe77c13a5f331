"""Copies of messages for the parking queue, published until each is confirmed.

On a connection of their own: a memory alarm blocks publishers only. What is parked, and when the
original is acknowledged, is the broker's.
"""

import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel

from consumer.connection import UNREADABLE_HEADERS, Connection
from consumer.errors import ParkError
from consumer.metrics import Metrics
from consumer.parking import HEADER_PREFIX, parked_properties
from consumer.settings import Settings
from consumer.topology import Topology

_FRAME_OVERHEAD = 20
_MAX_HEADER_DEPTH = 100
_WINDOW_BYTES = 16 << 20
_WINDOW = 100

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Copy:
    """A message to be parked; `done` is told whether it is."""

    routing_key: str
    body: bytes
    properties: Any
    done: Callable[[bool], None]
    returned: bool = False


@dataclass(slots=True)
class Copies:
    """Publishes copies to the parking exchange until each is confirmed."""

    loop: IOLoop
    settings: Settings
    topology: Topology
    metrics: Metrics
    waiting: deque[Copy] = field(default_factory=deque)
    unconfirmed: OrderedDict[int, Copy] = field(default_factory=OrderedDict)
    channel: Channel | None = None
    published: int = 0
    connection: Connection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = Connection(
            self.loop,
            self.settings,
            "publish",
            owner=self.settings.consumer_name,
            opened=self._opened,
            lost=self._lost,
            failed=lambda _error: self.metrics.reconnects.labels(connection="publish").inc(),
        )

    def publish(self, copy: Copy) -> None:
        """Publish a copy, now or once there is a channel."""
        self.waiting.append(copy)
        self._advance()

    def drop_waiting(self) -> None:
        """Let go of what was not sent yet and will be delivered again."""
        waiting, self.waiting = self.waiting, deque()
        for copy in waiting:
            copy.done(False)

    def _opened(self, channel: Channel) -> None:
        channel.add_on_return_callback(self._on_return)
        self.published = 0
        channel.confirm_delivery(self._on_confirm, callback=lambda _frame: self._ready(channel))

    def _ready(self, channel: Channel) -> None:
        self.channel = channel
        self.connection.works()
        self._advance()

    def _lost(self) -> None:
        self.channel = None
        self.waiting.extendleft(reversed(self.unconfirmed.values()))
        self.unconfirmed.clear()

    def _advance(self) -> None:
        while self.waiting and self.channel is not None and self.channel.is_open:
            held = sum(len(copy.body) for copy in self.unconfirmed.values())
            if self.unconfirmed and (
                held + len(self.waiting[0].body) > _WINDOW_BYTES or len(self.unconfirmed) >= _WINDOW
            ):
                return
            self._send(self.channel, self.waiting.popleft())

    def _send(self, channel: Channel, copy: Copy) -> None:
        copy.returned = False
        self.published += 1
        self.unconfirmed[self.published] = copy
        channel.basic_publish(
            self.topology.parking.name,
            copy.routing_key.encode()[:255].decode(errors="ignore"),
            copy.body,
            copy.properties,
            mandatory=True,
        )

    def _on_return(self, _channel: Channel, _method: Any, properties: Any, _body: bytes) -> None:
        name = f"{HEADER_PREFIX}parking-id"
        for copy in self.unconfirmed.values():
            if copy.properties.headers[name] == properties.headers[name]:
                copy.returned = True

    def _on_confirm(self, frame: Any) -> None:
        tag, positive = frame.method.delivery_tag, isinstance(frame.method, pika.spec.Basic.Ack)
        multiple = frame.method.multiple
        for number in [n for n in self.unconfirmed if n == tag or (multiple and n <= tag)]:
            copy = self.unconfirmed.pop(number)
            if positive and not copy.returned:
                copy.done(True)
            else:
                self._again(copy)
        self._advance()

    def _again(self, copy: Copy) -> None:
        log.error(
            "a parked message was refused or found no parking queue; trying again",
            extra={"exchange": self.topology.parking.name, "returned": copy.returned},
        )
        self.metrics.retries.labels(operation="park").inc()
        self.loop.call_later(self.settings.reconnect_max_s / 4, lambda: self.publish(copy))


def republishable(
    properties: Any,
    headers: Mapping[str, Any],
    error: ParkError,
    *,
    routing_key: str,
    by: str,
    frame_max: int,
) -> Any:
    """Return pika's properties of a message's copy, or None where it cannot be published again.

    Parameters
    ----------
    properties
        The message's own, as pika has them.
    headers : mapping
        Its headers.
    frame_max : int
        Largest frame agreed on, in bytes: properties must fit into one.
    """
    if UNREADABLE_HEADERS in headers or not _is_flat(headers):
        return None
    try:
        copied = pika.BasicProperties(
            **parked_properties(
                properties,
                error,
                parking_id=secrets.token_hex(8),
                routing_key=routing_key,
                by=by,
            )
        )
        size = sum(map(len, copied.encode())) + _FRAME_OVERHEAD
    except Exception:  # whatever a foreign header made of pika's encoder
        log.exception("a parked message's properties cannot be encoded; rejecting it")
        return None
    return copied if size <= frame_max else None


def _is_flat(headers: Any) -> bool:
    """Whether header tables and lists are nested little enough for pika's recursive encoder."""
    level = [headers]
    for _ in range(_MAX_HEADER_DEPTH):
        nested = [v for v in level if isinstance(v, dict | list)]
        if not nested:
            return True
        level = [x for v in nested for x in (v.values() if isinstance(v, dict) else v)]
    return False
