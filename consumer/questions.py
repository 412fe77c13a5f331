"""Questions to RabbitMQ whose refusals are answers too; each on a channel of its own.

Every exception of pika ends here.
"""

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

from consumer.connection import cause_of, parameters, prepare_pika
from consumer.endpoint import Endpoint
from consumer.errors import PublishError
from consumer.sender import why_not_connected
from consumer.topology import Binding, Exchange, Queue

FORBIDDEN, NOT_FOUND, LOCKED, DIFFERENT = 403, 404, 405, 406
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

    def taken(self, queue: str) -> Reply:
        """Ask a queue's leader for a message, which goes back; the result says if there is one.

        A count of 0 the broker also gives where the leader is silent; this it refuses then, as it
        does where the queue has a single active consumer.
        """

        def take(channel: Any) -> bool:
            method, _, _ = channel.basic_get(queue)
            if method is not None:
                channel.basic_nack(method.delivery_tag, requeue=True)
            return method is not None

        return self._reply(take)

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


@contextmanager
def reached(endpoint: Endpoint, name: str) -> Iterator[Channels]:
    """Yield channels to the first node that lets us in.

    Raises
    ------
    PublishError
        Where none does, or the connection is lost.
    """
    prepare_pika()
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
