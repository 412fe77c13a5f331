"""Questions to RabbitMQ whose refusals are answers too; each on a channel of its own.

Every exception of pika ends here.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pika
from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    ConnectionBlockedTimeout,
    ConnectionClosedByBroker,
    NackError,
    UnroutableError,
)

from consumer.connection import cause_of, check_credentials, parameters, prepare_pika
from consumer.endpoint import Endpoint
from consumer.errors import PublishError
from consumer.sender import why_not_connected
from consumer.topology import Binding, Exchange, Queue

FORBIDDEN, NOT_FOUND, DIFFERENT = 403, 404, 406
# No code of AMQP's.
SILENT = -1
_LAST = -100_000
_LOOKS = 3
_LEADER_S, _AGAIN_S = 10.0, 0.2
_ANSWER_S = 3.0
_WORD = "doctor"


@dataclass(frozen=True, slots=True)
class Reply:
    """The broker's answer: a result, or the code and words with which it closed the channel."""

    result: Any = None
    code: int = 0
    words: str = ""


class Channels:
    """Asks on a connection, each question on a channel of its own: a refusal closes it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def declared(self, thing: Exchange | Queue, *, passive: bool) -> Reply:
        """Look whether something is there, or declare it."""
        if isinstance(thing, Exchange):
            return self._reply(
                lambda channel: channel.exchange_declare(
                    thing.name, thing.type, passive=passive, durable=True
                )
            )
        return self._reply(
            lambda channel: channel.queue_declare(
                thing.name, passive=passive, durable=True, arguments=thing.arguments
            )
        )

    def bound(self, binding: Binding, *, away: bool = False) -> Reply:
        """Bind what a binding says, or unbind it."""

        def bind(channel: Any) -> None:
            kind = "exchange" if binding.to_exchange else "queue"
            act = getattr(channel, f"{kind}_{'unbind' if away else 'bind'}")
            act(binding.destination, binding.source, binding.routing_key)

        return self._reply(bind)

    def counted(self, queue: str) -> Reply:
        """Count what waits in a queue, and other consumers, as its leader says: a pair.

        Of a quorum queue whose leader is silent RabbitMQ says that nothing waits and nobody
        consumes. So for a moment this is a consumer too, the last that would be delivered to: an
        answer that knows of none is not the leader's. The code is `SILENT` where none is.
        """

        def count(channel: Any) -> tuple[int, int]:
            found = channel.queue_declare(queue, passive=True).method
            if found.message_count or found.consumer_count:
                return found.message_count, found.consumer_count
            got: list[int] = []
            channel.basic_qos(prefetch_count=1)
            tag = channel.basic_consume(
                queue,
                lambda _channel, method, *_: got.append(method.delivery_tag),
                arguments={"x-priority": _LAST},
            )
            ready = _certain(channel, queue)
            # What was delivered meanwhile goes back with the channel.
            channel.basic_cancel(tag)
            others = [
                channel.queue_declare(queue, passive=True).method.consumer_count
                for _ in range(_LOOKS)
            ]
            return ready + len(got), max(others)

        try:
            return self._reply(count)
        except TimeoutError:
            return Reply(code=SILENT, words="the queue's leader is silent")

    def deleted(self, thing: Exchange | Queue) -> Reply:
        """Delete an exchange or a queue, whatever it holds."""
        if isinstance(thing, Exchange):
            return self._reply(lambda channel: channel.exchange_delete(thing.name))
        return self._reply(lambda channel: channel.queue_delete(thing.name))

    def refused_consumer(self, name: str) -> Reply:
        """Ask for a consumer whose priority is none."""
        arguments = {"x-priority": _WORD}
        return self._reply(
            lambda channel: channel.basic_consume(name, lambda *_: None, arguments=arguments)
        )

    def refused_message(self, exchange: str, body: bytes, nobody: str) -> Reply:
        """Publish a message that expires never and is of another user."""
        properties = pika.BasicProperties(expiration=_WORD, user_id=nobody)

        def publish(channel: Any) -> None:
            channel.confirm_delivery()
            channel.basic_publish(exchange, _WORD, body, properties, mandatory=True)

        return self._reply(publish)

    def _reply(self, ask: Callable[[Any], Any]) -> Reply:
        channel = self._connection.channel()
        try:
            result = ask(channel)
        except ConnectionClosedByBroker as error:
            # An unknown type of exchange costs the connection.
            return Reply(code=error.reply_code, words=error.reply_text)
        except (UnroutableError, NackError):
            result = None
        except ChannelClosedByBroker as error:
            return Reply(code=error.reply_code, words=error.reply_text)
        channel.close()
        return Reply(result)


def _certain(channel: Any, queue: str) -> int:
    """Return how many messages wait in a queue that has a consumer, as one that knows it says."""
    deadline = time.monotonic() + _LEADER_S
    while time.monotonic() < deadline:
        found = channel.queue_declare(queue, passive=True).method
        if found.consumer_count:
            return int(found.message_count)
        channel.connection.sleep(_AGAIN_S)
    raise TimeoutError


@contextmanager
def reached(endpoint: Endpoint, name: str) -> Iterator[Channels]:
    """Yield channels to the first node that lets us in.

    Raises
    ------
    PublishError
        Where none does, or the connection is lost.
    """
    prepare_pika()
    check_credentials(endpoint)
    host = next((each for each in endpoint.hosts[:-1] if _answers(endpoint, each, name)), None)
    try:
        with connected(endpoint, host or endpoint.hosts[-1], name) as connection:
            yield Channels(connection)
    except ConnectionBlockedTimeout as error:
        raise PublishError("RabbitMQ takes nothing: it is short of memory or disk") from error


def _answers(endpoint: Endpoint, host: str, name: str) -> bool:
    try:
        with connected(endpoint, host, name):
            return True
    except PublishError:
        return False


@contextmanager
def connected(endpoint: Endpoint, host: str, name: str) -> Iterator[Any]:
    """Yield a connection to one node.

    Raises
    ------
    PublishError
        Where the node cannot be reached, refuses, or is lost.
    """
    here = endpoint.model_copy(update={"hosts": (host,)})
    try:
        config = parameters(here, host, name)
        config.socket_timeout = config.blocked_connection_timeout = _ANSWER_S
        config.stack_timeout = _ANSWER_S
        connection = pika.BlockingConnection(config)
        yield connection
        if connection.is_open:
            connection.close()
    except ConnectionBlockedTimeout:
        raise
    except (AMQPError, OSError, ValueError) as error:
        raise why_not_connected(here, cause_of(error)) from None
