"""A connection to RabbitMQ that comes back, and what pika needs to outlive what it receives."""

import logging
import random
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pika
import pika.data
from pika import frame, spec
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.adapters.utils import io_services_utils
from pika.channel import Channel
from pika.exceptions import AMQPError, InvalidFrameError

from consumer.endpoint import Endpoint, address
from consumer.errors import UnusableSettings

RECEIVE_BYTES = 128 << 10
SEND_BYTES = 64 << 10
# A call to the system costs as much as copying so much.
_COPIED_BYTES = 16 << 10
_FRAME_END = bytes([spec.FRAME_END])
UNREADABLE_HEADERS = "x-tiles-unreadable-headers"

log = logging.getLogger(__name__)


class _InPlace(SelectConnection):  # type: ignore[misc]  # pika is not typed
    """Joins a body once, from the pieces that it was received in, and sends one without a copy.

    pika collects whole frames and copies what is left after each: every byte of a body five times.
    Of a body that it sends it makes two copies, and memory that is new to a process costs most.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._channel = self._left = 0  # of the body frame that is being received
        self._ends = False
        # By channel, of the message that is being received.
        self._missing: dict[int, int] = {}
        self._pieces: dict[int, list[memoryview]] = {}
        super().__init__(*arguments, **named)

    def _on_data_available(self, data_in: bytes) -> None:
        self.bytes_received += len(data_in)  # what pika's heartbeat looks at
        data = memoryview(self._frame_buffer + data_in if self._frame_buffer else data_in)
        self._frame_buffer: bytes = b""
        while data:
            if self._left:
                piece = data[: self._left]
                self._left -= len(piece)
                self._ends = not self._left
                data = data[len(piece) :]
                self._take_piece(self._channel, piece)
            elif self._ends:
                if data[0] != spec.FRAME_END:
                    raise InvalidFrameError("a body frame without its end")
                self._ends, data = False, data[1:]
            else:
                read = self._start_frame(data)
                if not read:
                    self._frame_buffer = bytes(data)
                    return
                data = data[read:]

    def _send_message(self, channel_number: int, method_frame: Any, content: Any) -> None:
        properties, body = content
        if len(body) < _COPIED_BYTES:
            super()._send_message(channel_number, method_frame, content)
            return
        before = frame.Method(channel_number, method_frame).marshal()
        before += frame.Header(channel_number, len(body), properties).marshal()
        pieces: list[bytes | memoryview] = []
        for start in range(0, len(body), self._body_max_length):
            payload = memoryview(body)[start : start + self._body_max_length]
            header = struct.pack(">BHL", spec.FRAME_BODY, channel_number, len(payload))
            pieces += before + header, payload
            before = _FRAME_END
        self._output_marshaled_frames([*pieces, _FRAME_END])

    def drop(self) -> None:
        """Close the socket without a word to the broker."""
        if not self.is_closed:
            self._adapter_disconnect_stream()

    def _take_piece(self, channel: int, piece: memoryview) -> None:
        pieces = self._pieces.setdefault(channel, [])
        pieces.append(piece)
        missing = self._missing[channel] = self._missing.get(channel, 0) - len(piece)
        if missing <= 0:
            del self._pieces[channel]
            self._process_frame(frame.Body(channel, b"".join(pieces)))

    def _start_frame(self, data: memoryview) -> int:
        """Read the start of a body frame or any other frame whole; 0 where more must come."""
        if len(data) < spec.FRAME_HEADER_SIZE:
            return 0
        kind, channel, size = struct.unpack_from(">BHL", data)
        if kind == spec.FRAME_BODY:
            self._channel, self._left, self._ends = channel, size, not size
            return int(spec.FRAME_HEADER_SIZE)
        end = spec.FRAME_HEADER_SIZE + size + spec.FRAME_END_SIZE
        read, value = frame.decode_frame(bytes(data[:end]))
        if isinstance(value, frame.Header):
            self._missing[channel] = value.body_size
            self._pieces.pop(channel, None)
        if value is not None:
            self._process_frame(value)
        return int(read)


class Connection:
    """A connection that comes back: with backoff and jitter, to any of the hosts.

    Parameters
    ----------
    loop : IOLoop
        The owning thread's; everything here runs on it.
    owner, purpose : str
        What the broker lists the connection as.
    opened : callable
        Hears of each new channel.
    lost : callable
        Hears that the channel is gone.
    failed : callable
        Hears why a connection was lost or refused, before it is tried again.
    """

    def __init__(
        self,
        loop: IOLoop,
        endpoint: Endpoint,
        purpose: str,
        *,
        owner: str,
        opened: Callable[[Channel], None],
        lost: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._loop = loop
        self._endpoint = endpoint
        self._purpose = purpose
        self._name = f"{owner} {purpose}"
        self._opened = opened
        self._lost = lost
        self._failed = failed
        self._connection: _InPlace | None = None
        self._attempt: Any = None  # pika's, while it connects
        self._attempts = 0
        self._closing = False

    @property
    def frame_max(self) -> int:
        """Largest frame agreed on, in bytes."""
        return int(self._connection.params.frame_max) if self._connection else 0

    def open(self) -> None:
        """Connect; on failure, again later."""
        if self._closing:
            return
        try:
            hosts = random.sample(self._endpoint.hosts, len(self._endpoint.hosts))
            configs = [parameters(self._endpoint, host, self._name) for host in hosts]
            self._attempt = _InPlace.create_connection(
                configs, self._done, custom_ioloop=self._loop
            )
        except (OSError, ssl.SSLError, ValueError, AMQPError) as error:
            self._later(error)

    def reset(self, reason: str) -> None:
        """Give up the connection and its channel; connect again."""
        log.warning("closing the connection", extra={"purpose": self._purpose, "reason": reason})
        _close(self._connection)

    def works(self) -> None:
        """Take note that the connection is of use: the next loss starts with the first backoff."""
        self._attempts = 0

    def close(self) -> None:
        """Close for good."""
        self._closing = True
        if self._attempt is not None and not shakes_hands(self._attempt):
            self._attempt.abort()
        _close(self._connection)

    def drop(self) -> None:
        """Close without waiting for the broker, which may not read."""
        if self._connection is not None:
            self._connection.drop()

    @property
    def closed(self) -> bool:
        """Whether nothing is open any more."""
        return self._connection is None and self._attempt is None

    def _done(self, result: Any) -> None:
        self._attempt = None
        if isinstance(result, BaseException):
            self._later(result)
            return
        self._connection = result
        result.add_on_close_callback(self._on_close)
        if self._closing:
            _close(result)
            return
        result.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._on_channel_close)
        channel.add_on_cancel_callback(lambda _frame: self.reset("cancelled by the broker"))
        self._opened(channel)

    def _on_channel_close(self, _channel: Channel, reason: Exception) -> None:
        if self._connection is not None and self._connection.is_open and not self._closing:
            self.reset(f"the channel was closed: {reason}")

    def _on_close(self, _connection: SelectConnection, reason: Exception) -> None:
        self._connection = None
        self._lost()
        if not self._closing:
            self._later(reason)

    def _later(self, error: BaseException) -> None:
        if self._closing:
            return
        cause = cause_of(error)
        self._failed(cause)
        waits = self._endpoint
        most = min(waits.reconnect_max_s, waits.reconnect_min_s * 2.0**self._attempts)
        wait = random.uniform(most / 2, most)  # noqa: S311 - jitter
        self._attempts = min(self._attempts + 1, 16)
        log.warning(
            "connection lost or refused; connecting again",
            extra={
                "purpose": self._purpose,
                "hosts": waits.hosts,
                "error": f"{type(cause).__name__}: {cause}",
                "wait_s": round(wait, 2),
            },
        )
        self._loop.call_later(wait, self.open)


def check_credentials(endpoint: Endpoint) -> None:
    """Check that files of user, password and certificates can be used.

    Raises
    ------
    UnusableSettings
        With the setting or file at fault.
    """
    try:
        for host in endpoint.hosts:
            parameters(endpoint, host, "check")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise UnusableSettings(
            "one of username_file, password_file, tls_ca_file, tls_certificate_file and "
            f"tls_key_file cannot be used: {error}"
        ) from error


def parameters(endpoint: Endpoint, host: str, name: str) -> pika.ConnectionParameters:
    """Return pika's parameters for one host; reads the files of user and password."""
    server, port = address(host)
    user = _from_file(endpoint.username_file) or endpoint.username
    password = _from_file(endpoint.password_file) or endpoint.password.get_secret_value()
    return pika.ConnectionParameters(
        host=server,
        port=port or (5671 if endpoint.tls else 5672),
        virtual_host=endpoint.virtual_host,
        credentials=pika.PlainCredentials(user, password),
        heartbeat=endpoint.heartbeat_s,
        ssl_options=_tls(endpoint, server),
        client_properties={"connection_name": name},
    )


def _tls(endpoint: Endpoint, server: str) -> pika.SSLOptions | None:
    if not endpoint.tls:
        return None
    cafile = str(endpoint.tls_ca_file) if endpoint.tls_ca_file else None
    context = ssl.create_default_context(cafile=cafile)
    if endpoint.tls_certificate_file and endpoint.tls_key_file:
        context.load_cert_chain(endpoint.tls_certificate_file, endpoint.tls_key_file)
    return pika.SSLOptions(context, server)


def _from_file(path: Path | None) -> str:
    return path.read_text().strip() if path else ""


def shakes_hands(attempt: Any) -> bool:
    """Whether an attempt to connect is in the middle of AMQP's handshake.

    pika cannot abort it then: it would lose the connection and leave the socket open. It ends by
    itself, and is closed then.
    """
    connector = attempt._connector  # noqa: SLF001 - pika tells nobody
    return connector is not None and connector._amqp_conn is not None  # noqa: SLF001 - as above


def _close(connection: SelectConnection | None) -> None:
    if connection is not None and not (connection.is_closing or connection.is_closed):
        connection.close()


def prepare_pika() -> None:
    """Read and send more than pika does at a time, and outlive headers that it cannot decode.

    All of this reaches into pika, so a test notices when it changes. Header tables may hold a value
    that pika raises on (a timestamp beyond the year 9999), out of the connection's own callback,
    which would end the connection, and again after each redelivery. And it cuts floating-point
    values to whole numbers and sends none, so that a parked copy would not be what was sent.
    """
    transport = io_services_utils._AsyncTransportBase  # noqa: SLF001
    transport._MAX_RECV_BYTES = max(transport._MAX_RECV_BYTES, RECEIVE_BYTES)  # noqa: SLF001
    transport._MAX_CONSUME_BYTES = max(transport._MAX_CONSUME_BYTES, 8 * RECEIVE_BYTES)  # noqa: SLF001
    if not hasattr(transport._produce, "joins"):  # noqa: SLF001
        transport._produce = _joining(transport._produce)  # noqa: SLF001
    if not hasattr(pika.BasicProperties.decode, "lenient"):
        pika.BasicProperties.decode = _lenient(pika.BasicProperties.decode)
        pika.data.long = _number(pika.data.long)
        pika.data.encode_value = _with_floats(pika.data.encode_value)


def _joining(produce: Callable[[Any], None]) -> Callable[[Any], None]:
    def joining(self: Any) -> None:
        """Send what is small in one piece: pika makes a system call for each acknowledgement."""
        buffers = self._tx_buffers  # pika's transport
        if len(buffers) > 1 and self._tx_buffered_byte_count <= SEND_BYTES:
            joined = b"".join(buffers)
            buffers.clear()
            buffers.append(joined)
        produce(self)

    joining.joins = True  # type: ignore[attr-defined]
    return joining


def _lenient(decode: Callable[..., Any]) -> Callable[..., Any]:
    def lenient(self: Any, encoded: bytes, offset: int = 0) -> Any:
        try:
            return decode(self, encoded, offset)
        except Exception as error:  # whatever a foreign header made of pika's decoder
            log.warning("a message's headers cannot be decoded", extra={"error": repr(error)})
            self.headers = {UNREADABLE_HEADERS: True}
            return self

    lenient.lenient = True  # type: ignore[attr-defined]
    return lenient


def _number(long: type) -> type:
    """Return pika's class of wide integers, which leaves floating-point values as they are."""

    class Number(long):  # type: ignore[misc]  # pika is not typed
        def __new__(cls, value: Any) -> Any:
            return value if isinstance(value, float) else super().__new__(cls, value)

    return Number


def _with_floats(encode: Callable[[list[bytes], Any], int]) -> Callable[[list[bytes], Any], int]:
    def encode_value(pieces: list[bytes], value: Any) -> int:
        if not isinstance(value, float):
            return encode(pieces, value)
        pieces.append(struct.pack(">cd", b"d", value))
        return 9

    return encode_value


def cause_of(error: BaseException) -> BaseException:
    """Return what is behind pika's summary of several attempts, or of the last of them."""
    attempts = getattr(error, "exceptions", None) or [
        inner for inner in error.args if isinstance(inner, BaseException)
    ]
    cause = attempts[-1] if attempts else error
    inner = getattr(cause, "exception", None)
    return inner if isinstance(inner, BaseException) else cause
