"""The parking queue, as an operator sees it: messages looked at, published again, or dropped.

What a parked message carries is `consumer.parking`'s. Messages are taken without acknowledging
them, so that whatever ends the process puts them back in their place. One leaves the queue only
after its copy is confirmed, or because it is dropped. Every exception of pika ends here.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import google_crc32c
import pika
from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    ConnectionBlockedTimeout,
    NackError,
    UnroutableError,
)

from consumer.connection import (
    UNREADABLE_HEADERS,
    cause_of,
    check_credentials,
    parameters,
    prepare_pika,
)
from consumer.endpoint import Endpoint
from consumer.errors import AccessRefused, ParkError, PublishError, Unroutable
from consumer.message import MAX_MESSAGE_BYTES, metadata
from consumer.parking import HEADER_PREFIX
from consumer.sender import blocked, no_queue, queue_full, why_not_connected

# What the broker adds when it moves or delivers a message by itself.
_BROKERS_OWN = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-")
# So long a broker that is short of memory or disk is waited for.
_BLOCKED_S = 60
# As much as a consumer may be set to take.
_MOST_BYTES = 32 * MAX_MESSAGE_BYTES
# AMQP's short string.
_MOST_KEY_BYTES = 255


@dataclass(frozen=True)
class ParkedMessage:
    """One message of the parking queue, not acknowledged."""

    tag: int
    arrived_with: str
    properties: Any
    body: bytes

    @property
    def headers(self) -> dict[str, Any]:
        """AMQP's headers."""
        return self.properties.headers or {}

    @property
    def id(self) -> str:
        """The id of its parking; what the broker itself dead-lettered has one of its body."""
        given = self.headers.get(f"{HEADER_PREFIX}parking-id")
        return str(given) if given else f"body-{google_crc32c.value(self.body):08x}"

    @property
    def reason(self) -> str:
        """Why it was parked, in a word."""
        return str(self.headers.get(f"{HEADER_PREFIX}reason") or self._death.get("reason") or "")

    @property
    def detail(self) -> str:
        """Why it was parked, with the value at fault."""
        return str(self.headers.get(f"{HEADER_PREFIX}detail") or "")

    @property
    def routing_key(self) -> str:
        """The store key that it was published with."""
        return str(self.headers.get(f"{HEADER_PREFIX}routing-key") or self.arrived_with)

    @property
    def parked_ms(self) -> int | None:
        """When it was parked, milliseconds of the Unix epoch."""
        given = self.headers.get(f"{HEADER_PREFIX}parked-ms")
        if isinstance(given, int):
            return int(given)
        died = self._death.get("time")
        return int(died.timestamp() * 1000) if isinstance(died, datetime) else None

    @property
    def parked_by(self) -> str:
        """Which consumer parked it, or from which queue the broker took it."""
        return str(self.headers.get(f"{HEADER_PREFIX}parked-by") or self._death.get("queue") or "")

    @property
    def readable(self) -> bool:
        """Whether it can be published as it was: its headers and its key could be decoded."""
        fits = len(self.routing_key.encode()) <= _MOST_KEY_BYTES
        return fits and UNREADABLE_HEADERS not in self.headers

    @cached_property
    def metadata(self) -> dict[str, Any] | None:
        """What it says of its tiles, unchecked; None where that cannot be read."""
        encoding = self.properties.content_encoding
        with contextlib.suppress(ParkError, ValueError, RecursionError):
            found = json.loads(metadata(self.body, encoding, max_bytes=_MOST_BYTES))
            return found if isinstance(found, dict) else None
        return None

    @property
    def array(self) -> str:
        """The array's path, where it can be read."""
        return str((self.metadata or {}).get("array", ""))

    @property
    def original(self) -> Any:
        """AMQP's basic properties as they were published."""
        own = (HEADER_PREFIX, *_BROKERS_OWN)
        headers = {k: v for k, v in self.headers.items() if not str(k).startswith(own)}
        properties = pika.BasicProperties(**vars(self.properties))
        properties.headers, properties.delivery_mode = headers, 2
        # Where the broker itself parked the message: it would refuse it from another user.
        properties.user_id = None
        return properties

    @property
    def _death(self) -> dict[str, Any]:
        deaths = self.headers.get("x-death")
        first = deaths[0] if isinstance(deaths, list) and deaths else {}
        return first if isinstance(first, dict) else {}


class ParkingQueue:
    """The parking queue over a connection of its own: a context manager.

    Raises `PublishError` with one line where RabbitMQ cannot be reached or refuses.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        prepare_pika()
        self._endpoint = endpoint
        self._name = f"{endpoint.topology_prefix}.parked"
        self._connection: Any = None
        self._channel: Any = None
        self._left: Iterator[ParkedMessage] = iter(())

    def __enter__(self) -> Self:
        check_credentials(self._endpoint)
        configs = [parameters(self._endpoint, h, "parked") for h in self._endpoint.hosts]
        for config in configs:
            config.blocked_connection_timeout = _BLOCKED_S
        try:
            self._connection = pika.BlockingConnection(configs)
        except (AMQPError, OSError) as error:
            raise why_not_connected(self._endpoint, cause_of(error)) from None
        with self._translated():
            self._channel = self._connection.channel()
            self._channel.confirm_delivery()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close, which puts back what was not settled."""
        with contextlib.suppress(AMQPError, PublishError):
            # A quorum queue puts what comes back behind what came back before: only where all of
            # it is taken is the order kept.
            for _ in self._left:
                pass
        with contextlib.suppress(AMQPError):
            self._connection.close()

    def messages(self) -> Iterator[ParkedMessage]:
        """Return what is in the queue now, oldest first; what is parked meanwhile is not.

        Raises
        ------
        PublishError
            Where there is no such queue, or the connection was lost.
        """
        self._left = self._taken()
        return self._left

    def replay(self, message: ParkedMessage) -> None:
        """Publish a message as it was; take it out of the queue once that is confirmed.

        Raises
        ------
        PublishError
            Where it was not taken; it stays in the queue.
        """
        with self._translated(message.routing_key):
            self._channel.basic_publish(
                self._endpoint.topology_prefix,
                message.routing_key,
                message.body,
                message.original,
                mandatory=True,
            )
        self.drop(message)

    def drop(self, message: ParkedMessage) -> None:
        """Take a message out of the queue."""
        with self._translated():
            self._channel.basic_ack(message.tag)

    def _taken(self) -> Iterator[ParkedMessage]:
        # How many there are is asked of the message that comes first: declaring a quorum queue
        # passively counts 0 while its leader does not answer.
        left = None
        while left != 0:
            with self._translated():
                method, properties, body = self._channel.basic_get(self._name)
            if method is None:
                return
            left = int(method.message_count) if left is None else left - 1
            yield ParkedMessage(method.delivery_tag, _text(method.routing_key), properties, body)

    @contextlib.contextmanager
    def _translated(self, store: str = "") -> Iterator[None]:
        try:
            yield
        except UnroutableError:
            raise no_queue(self._endpoint, store) from None
        except NackError:
            raise queue_full(self._endpoint, store) from None
        except ChannelClosedByBroker as error:
            raise self._refused(error) from None
        except ConnectionBlockedTimeout:
            raise blocked(self._endpoint, f"blocked for {_BLOCKED_S} s") from None
        except AMQPError as error:
            raise why_not_connected(self._endpoint, cause_of(error)) from None

    def _refused(self, error: ChannelClosedByBroker) -> PublishError:
        kind = Unroutable if error.reply_code == 404 else AccessRefused
        return kind(
            f"{error.reply_text}; check topology_prefix {self._endpoint.topology_prefix!r} and the "
            f"permissions of user {self._endpoint.username!r}"
        )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
