"""The demo's broker: a private one, or a running one on which the demo's queues are removed after
use. Owns the connections to it.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pika
from pika.exceptions import AMQPConnectionError, AMQPError

from consumer.demo.processes import DemoError
from consumer.endpoint import address
from consumer.testing import BrokerMissing, RabbitMQ

ACCESS = ("TILES_USERNAME", "TILES_PASSWORD", "TILES_VIRTUAL_HOST")
_DEFAULT_PORT = 5672
_ELSEWHERE = (
    "or start one in a container, docker run --rm -p 5672:5672 rabbitmq:4, and give "
    "--broker localhost:5672"
)


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is, what the demo's exchanges and queues begin with, and the environment
    variables that give access to it."""

    host: str
    prefix: str
    access: dict[str, str]


@contextmanager
def broker(host: str | None) -> Iterator[Broker]:
    """Yield a broker: the running one at `host`, otherwise a private one.

    Raises
    ------
    DemoError
        Where there is none, with the ways to get one.
    """
    if host is not None:
        with _running(host) as running:
            yield running
        return
    with ExitStack() as stack:
        try:
            private = stack.enter_context(RabbitMQ())
        except BrokerMissing as error:
            raise DemoError(f"{error}; {_ELSEWHERE}", exit_code=2) from None
        except RuntimeError as error:
            raise DemoError(f"{error}\n{_ELSEWHERE}") from None
        yield Broker(private.host, "tiles", {})


def connect(host: str) -> pika.BlockingConnection:
    """Return a connection to `host[:port]`, as the user that the environment names."""
    name, port = address(host)
    credentials = pika.PlainCredentials(
        os.environ.get("TILES_USERNAME", "guest"), os.environ.get("TILES_PASSWORD", "guest")
    )
    return pika.BlockingConnection(
        pika.ConnectionParameters(
            name,
            port or _DEFAULT_PORT,
            os.environ.get("TILES_VIRTUAL_HOST", "/"),
            credentials,
            blocked_connection_timeout=60,
        )
    )


@contextmanager
def _running(host: str) -> Iterator[Broker]:
    """Yield the broker with a prefix of our own: its `tiles` may be somebody's real ones."""
    try:
        connect(host).close()
    except (AMQPConnectionError, OSError, ValueError) as error:
        raise DemoError(
            f"there is no RabbitMQ at --broker {host} that takes us: {error!r}; give its host:port "
            f"and, other than guest's, {', '.join(ACCESS)}",
            exit_code=2,
        ) from None
    prefix = f"tiles-demo-{secrets.token_hex(4)}"
    try:
        yield Broker(
            host, prefix, {name: os.environ[name] for name in ACCESS if name in os.environ}
        )
    finally:
        _remove(host, prefix)


def _remove(host: str, prefix: str) -> None:
    try:
        with connect(host) as connection:
            channel = connection.channel()
            for queue in (f"{prefix}.00", f"{prefix}.parked"):
                channel.queue_delete(queue)
            for exchange in (prefix, f"{prefix}.parking", f"{prefix}.events"):
                channel.exchange_delete(exchange)
    except AMQPError as error:
        raise DemoError(
            f"the demo's queues and exchanges {prefix}* remain at {host}: {error!r}"
        ) from None
