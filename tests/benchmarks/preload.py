"""Fills a queue of the product's own type, with many publishes unconfirmed at a time."""

from collections.abc import Iterator
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.channel import Channel

from benchmarks.cases import Case
from consumer.declaring import declare
from consumer.message import Encoded
from consumer.settings import Settings
from consumer.topology import topology

_WINDOW_BYTES = 32 << 20


class _Publisher:
    """Publishes every message; stops the loop when the broker has confirmed the last."""

    def __init__(self, settings: Settings, messages: Iterator[Encoded], host: str) -> None:
        self._topology = topology(settings)
        self._messages = messages
        self._loop = IOLoop()
        self._unconfirmed: dict[int, int] = {}
        self._sent = 0
        self._left = True
        self._channel: Any = None
        self.error: BaseException | None = None
        name, port = host.split(":")
        parameters = pika.ConnectionParameters(name, int(port), heartbeat=600)
        self._connection = SelectConnection(
            parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._opened),
            on_open_error_callback=lambda _connection, error: self._failed(error),
            on_close_callback=lambda _connection, error: self._failed(error),
            custom_ioloop=self._loop,
        )

    def run(self) -> int:
        """Return how many messages were published."""
        self._loop.start()
        if self.error is not None:
            raise self.error
        return self._sent

    def _opened(self, channel: Channel) -> None:
        self._channel = channel
        declare(channel, self._topology, self._established)

    def _established(self) -> None:
        self._channel.queue_purge(self._topology.partitions[0].name)
        self._channel.confirm_delivery(self._confirmed, callback=lambda _frame: self._advance())

    def _advance(self) -> None:
        while self._left and sum(self._unconfirmed.values()) < _WINDOW_BYTES:
            message = next(self._messages, None)
            if message is None:
                self._left = False
                break
            self._sent += 1
            self._unconfirmed[self._sent] = len(message.body)
            self._channel.basic_publish(
                self._topology.tiles.name,
                message.routing_key,
                message.body,
                pika.BasicProperties(**message.properties),
            )
        if not self._left and not self._unconfirmed and self._connection.is_open:
            self._connection.close()

    def _confirmed(self, frame: Any) -> None:
        if isinstance(frame.method, pika.spec.Basic.Nack):
            self._failed(RuntimeError("the broker refused a message"))
            return
        tag = frame.method.delivery_tag
        for number in [n for n in self._unconfirmed if n == tag or frame.method.multiple]:
            if number <= tag:
                del self._unconfirmed[number]
        self._advance()

    def _failed(self, error: BaseException) -> None:
        if self._left or self._unconfirmed:
            self.error = error
        self._loop.stop()


def preload(host: str, settings: Settings, case: Case) -> int:
    """Fill the partition queue with a case's messages; return how many there are."""
    return _Publisher(settings, case.messages(), host).run()
