"""The publisher's I/O thread: sends messages until RabbitMQ confirms each, over a connection that
comes back. Every exception of pika ends here.

Messages come from any thread; everything else here runs on the I/O thread. What is unconfirmed
when a connection is lost, refused or returned is sent again: at least once.
"""

import contextlib
import logging
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pika
from pika import exceptions
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel

from consumer.completions import Completions
from consumer.connection import Connection
from consumer.endpoint import Endpoint
from consumer.errors import (
    AccessRefused,
    BrokerBlocked,
    BrokerUnreachable,
    PublishError,
    QueueFull,
    Unconfirmed,
    Unroutable,
)
from consumer.message import Encoded
from consumer.window import Window

_RETRY_MIN_S, _RETRY_MAX_S = 0.1, 2.0
_CLOSE_S = 5.0
_POLL_S = 0.01

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Outgoing:
    """A message that is not confirmed yet, and the bytes that it holds in the window."""

    encoded: Encoded
    nbytes: int
    returned: bool = False


class Sender:
    """Sends on a thread of its own.

    What never worked is a mistake: that there is no queue, no exchange or no access is then raised
    at once. What worked before is an outage, which is waited for.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        window: Window,
        completions: Completions | None,
        *,
        owner: str,
        most_bytes: int,
    ) -> None:
        self._endpoint = endpoint
        self._window = window
        self._completions = completions
        self._owner = owner
        self._most_bytes = most_bytes
        self._waiting: deque[Outgoing] = deque()
        self._later: set[Callable[[], None]] = set()
        self._unconfirmed: OrderedDict[int, Outgoing] = OrderedDict()
        self._channel: Channel | None = None
        self._published = self._sent_bytes = 0
        self._woken = False
        self._blocked = self._paused = self._probing = self._worked = self._closing = False
        self._retry_s = _RETRY_MIN_S
        self._loop, self._connection = self._connect()
        self._thread = threading.Thread(target=self._run, name="tile-publisher", daemon=True)
        self._thread.start()

    def send(self, message: Outgoing) -> None:
        """Take a message; from any thread."""
        self._waiting.append(message)
        if not self._woken:
            self._woken = True
            self._loop.add_callback_threadsafe(self._wake)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call on the I/O thread after a while; from any thread."""

        def call() -> None:
            if call in self._later:
                self._later.discard(call)
                callback()

        self._later.add(call)
        loop = self._loop
        loop.add_callback_threadsafe(lambda: loop.call_later(seconds, call))

    def close(self) -> None:
        """Close the connection and end the thread; from any other thread."""
        self._closing = True
        self._loop.add_callback_threadsafe(self._shut)
        self._thread.join(3 * _CLOSE_S)

    # -- the thread ---------------------------------------------------------------------------

    def _connect(self, wait_s: float = 0.0) -> tuple[IOLoop, Connection]:
        loop = IOLoop()
        connection = Connection(
            loop,
            self._endpoint,
            "tiles",
            owner=self._owner,
            opened=self._opened,
            lost=self._lost,
            failed=self._failed,
        )
        loop.call_later(wait_s, connection.open)
        return loop, connection

    def _run(self) -> None:
        while True:
            try:
                self._loop.start()
            except Exception:  # whatever pika or a callback raised: start over with a new loop
                log.exception("the publisher's connection failed; starting over")
                self._start_over()
            else:
                self._loop.close()
                return

    def _start_over(self) -> None:
        """Go on with a new loop and connection; what the old loop was to call is called by it."""
        self._lost()
        self._paused = False
        _end(self._loop, self._connection)
        self._loop, self._connection = self._connect(self._endpoint.reconnect_min_s)
        # Only now: whoever woke the old loop in vain left a message that goes with the others.
        self._woken = False
        for call in tuple(self._later):
            self._loop.add_callback_threadsafe(call)
        if self._closing:
            self._shut()

    def _shut(self) -> None:
        if self._completions is not None:
            self._completions.unsubscribe()
        self._connection.close()
        # A broker that blocks publishers does not read that we close.
        self._loop.call_later(0 if self._blocked else _CLOSE_S, self._connection.drop)
        self._loop.call_later(2 * _CLOSE_S, self._loop.stop)
        _stop_once_closed(self._loop, self._connection)

    # -- the connection -----------------------------------------------------------------------

    def _opened(self, channel: Channel) -> None:
        connection = channel.connection
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=lambda _frame: self._watch(channel))

    def _watch(self, channel: Channel) -> None:
        """Hear of completed arrays before anything is sent that may complete one."""
        if self._completions is None:
            self._ready(channel)
        else:
            self._completions.subscribe(channel.connection, lambda: self._ready(channel))

    def _ready(self, channel: Channel) -> None:
        if channel.is_open:
            self._channel, self._published = channel, 0
            self._window.clear(BrokerUnreachable)
            self._advance()

    def _lost(self) -> None:
        self._channel = None
        self._blocked = False
        self._waiting.extendleft(reversed(self._unconfirmed.values()))
        self._unconfirmed.clear()
        self._sent_bytes = 0

    def _failed(self, cause: BaseException) -> None:
        # We close it ourselves after the channel was closed, which is reported already.
        if not isinstance(cause, exceptions.ConnectionClosedByClient):
            self._report(why_not_connected(self._endpoint, cause), AccessRefused)

    def _on_channel_closed(self, _channel: Channel, reason: Exception) -> None:
        if isinstance(reason, exceptions.ChannelClosedByBroker):
            self._report(_why_channel_closed(self._endpoint, reason), Unroutable, AccessRefused)

    def _on_blocked(self, _connection: Any, frame: Any) -> None:
        self._blocked = True
        self._window.report(blocked(self._endpoint, frame.method.reason or "no reason given"))

    def _on_unblocked(self, _connection: Any, _frame: Any) -> None:
        self._blocked = False
        self._window.clear(BrokerBlocked)
        self._advance()

    def _report(self, trouble: PublishError, *mistakes: type[PublishError]) -> None:
        final = isinstance(trouble, mistakes) and not self._worked
        self._window.report(trouble, final=final or isinstance(trouble, Unconfirmed))

    # -- messages -----------------------------------------------------------------------------

    def _wake(self) -> None:
        self._woken = False
        self._advance()

    def _advance(self) -> None:
        channel = self._channel
        while self._waiting and channel is not None and channel.is_open:
            if self._blocked or self._paused or self._full(self._waiting[0].nbytes):
                return
            self._publish(channel, self._waiting.popleft())

    def _full(self, nbytes: int) -> bool:
        most = 0 if self._probing else self._most_bytes
        return bool(self._unconfirmed) and self._sent_bytes + nbytes > most

    def _publish(self, channel: Channel, message: Outgoing) -> None:
        message.returned = False
        self._published += 1
        self._unconfirmed[self._published] = message
        self._sent_bytes += message.nbytes
        encoded = message.encoded
        channel.basic_publish(
            self._endpoint.topology_prefix,
            encoded.routing_key,
            encoded.body,
            pika.BasicProperties(**encoded.properties),
            mandatory=True,
        )

    def _on_return(self, _channel: Channel, _method: Any, properties: Any, _body: bytes) -> None:
        for message in self._unconfirmed.values():
            if message.encoded.properties["message_id"] == properties.message_id:
                message.returned = True

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        for number in self._settled(method.delivery_tag, multiple=method.multiple):
            message = self._unconfirmed[number]
            if message.returned:
                self._again(message, no_queue(self._endpoint, message.encoded.routing_key))
            elif isinstance(method, pika.spec.Basic.Nack):
                self._again(message, queue_full(self._endpoint, message.encoded.routing_key))
            else:
                self._confirmed(message)
            del self._unconfirmed[number]
            self._sent_bytes -= message.nbytes
        self._advance()

    def _settled(self, tag: int, *, multiple: bool) -> list[int]:
        if not multiple:
            return [tag] if tag in self._unconfirmed else []
        numbers = []
        for number in self._unconfirmed:  # in the order of publishing
            if number > tag:
                break
            numbers.append(number)
        return numbers

    def _confirmed(self, message: Outgoing) -> None:
        self._connection.works()
        self._worked, self._probing, self._retry_s = True, False, _RETRY_MIN_S
        self._window.confirm(message.nbytes)

    def _again(self, message: Outgoing, trouble: PublishError) -> None:
        """Send once more after a while, and from then on one at a time until one is confirmed."""
        self._waiting.appendleft(message)
        self._report(trouble, Unroutable)
        self._probing = True
        if not self._paused:
            self._paused = True
            self._loop.call_later(self._retry_s, self._resume)
            self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)

    def _resume(self) -> None:
        self._paused = False
        self._advance()


def _end(loop: IOLoop, connection: Connection) -> None:
    """Close the sockets of a loop that a defect ended, as far as that can be done."""
    with contextlib.suppress(Exception):
        connection.close()
        connection.drop()
        loop.call_later(_CLOSE_S, loop.stop)
        loop.call_later(0, partial(_stop_once_closed, loop, connection))
        loop.start()
    with contextlib.suppress(Exception):
        loop.close()


def _stop_once_closed(loop: IOLoop, connection: Connection) -> None:
    if connection.closed:
        loop.stop()
    else:
        loop.call_later(_POLL_S, partial(_stop_once_closed, loop, connection))


def _hosts(endpoint: Endpoint) -> str:
    return ",".join(endpoint.hosts)


def why_not_connected(endpoint: Endpoint, cause: BaseException) -> PublishError:
    """Return what to tell of a connection that was refused or lost."""
    where = f"RabbitMQ at {_hosts(endpoint)}"
    user = "the user of username_file" if endpoint.username_file else f"user {endpoint.username!r}"
    code = _reply_code(cause)
    if code == 403 or isinstance(cause, exceptions.AuthenticationError):
        return AccessRefused(
            f"{where} refuses {user}; check username and password (guest may connect from the "
            "broker's own host only)"
        )
    if code == 530:
        return AccessRefused(
            f"{where} has no virtual host {endpoint.virtual_host!r} for {user}; check "
            "virtual_host and the user's permissions"
        )
    return BrokerUnreachable(
        f"no connection to {where}: {_words(cause)}; start it, or check host, port and tls"
    )


def _reply_code(cause: BaseException) -> int | None:
    """Return AMQP's code with which the broker refused, if it did.

    pika guesses at a wrong password from any connection that is lost in the handshake; what the
    broker said is in the text of its guess.
    """
    said = re.search(r"ConnectionClosedByBroker: \((\d+)\)", str(cause))
    return int(said[1]) if said else getattr(cause, "reply_code", None)


def _words(cause: BaseException) -> str:
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__


def _why_channel_closed(
    endpoint: Endpoint, reason: exceptions.ChannelClosedByBroker
) -> PublishError:
    exchange = endpoint.topology_prefix
    if reason.reply_code == 404:
        return Unroutable(
            f"there is no exchange {exchange!r} in virtual host {endpoint.virtual_host!r}; start "
            "the consumer, which declares it, or check topology_prefix"
        )
    if reason.reply_code == 403:
        return AccessRefused(
            f"user {endpoint.username!r} may not publish to exchange {exchange!r}; give it write "
            f"permission ({reason.reply_text})"
        )
    told = f"RabbitMQ closed the channel: {reason.reply_code} {reason.reply_text}"
    if "larger than" in reason.reply_text:
        told += (
            "; give a max_message_bytes that is no more than RabbitMQ's max_message_size to a new "
            "publisher, and publish what is not confirmed once more"
        )
    return Unconfirmed(told)


def no_queue(endpoint: Endpoint, store: str) -> Unroutable:
    """Return what to tell of a returned message."""
    return Unroutable(
        f"no queue takes store key {store!r} from exchange {endpoint.topology_prefix!r}; start the "
        "consumer, which declares it, or bind the queue"
    )


def blocked(endpoint: Endpoint, reason: str) -> BrokerBlocked:
    """Return what to tell of a broker that takes nothing."""
    return BrokerBlocked(
        f"RabbitMQ at {_hosts(endpoint)} takes nothing from publishers: {reason}; free memory or "
        "disk there, or wait longer"
    )


def queue_full(endpoint: Endpoint, store: str) -> QueueFull:
    """Return what to tell of a refused message."""
    return QueueFull(
        f"the queue behind exchange {endpoint.topology_prefix!r} refuses more for store key "
        f"{store!r}; start or add consumers, raise TILES_QUEUE_MAX_BYTES, or wait longer"
    )
