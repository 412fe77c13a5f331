"""A producer in a thread of its own: publishes each message until the broker has confirmed it."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias

from pika.exceptions import AMQPError

from chaos.images import Tile
from consumer.testing import RabbitMQ
from faults import Oracle
from harness import Channel

# Publishes one message and takes note of it once it is confirmed; raises where it was not.
Publish: TypeAlias = Callable[[Channel], None]


@dataclass(frozen=True)
class Bad:
    """A message that must be parked.

    Attributes
    ----------
    reasons : frozenset of str
        With any of which it may be parked; "": dead-lettered, without a reason.
    """

    publish: Publish
    reasons: frozenset[str]


MESSAGE_ID = "tile"
_RETRY_S = 0.2


def publish_tile(oracle: Oracle, tile: Tile) -> Publish:
    """Return how to publish a tile."""
    image, place = tile

    def publish(channel: Channel) -> None:
        channel.publish(image.message(place), message_id=MESSAGE_ID)
        oracle.note(image, place)

    return publish


class Producer:
    """Publishes while the block is entered, at a rate; leaving it ends that between two messages.

    Attributes
    ----------
    published : int
        Confirmed so far.
    """

    def __init__(
        self, broker: RabbitMQ, prefix: str, messages: Iterable[Publish], *, rate: float
    ) -> None:
        self._broker = broker
        self._prefix = prefix
        self._messages = messages
        self._pause_s = 1 / rate
        self._ended = threading.Event()
        self._publishing = threading.Lock()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)
        self.published = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self.wait()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Publish nothing while the block is entered."""
        with self._publishing:
            yield

    @property
    def done(self) -> bool:
        """Whether all is published, or it failed."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Return once all is published."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        left = iter(self._messages)
        try:
            message = next(left, None)
            while message is not None and not self._ended.is_set():
                message = self._publish(message, left)
        except Exception as error:
            self._error = error

    def _publish(self, message: Publish, left: Iterator[Publish]) -> Publish | None:
        """Publish over one connection; return the first that is not confirmed."""
        following: Publish | None = message
        try:
            with Channel(self._broker, self._prefix) as channel:
                while following is not None and not self._ended.wait(self._pause_s):
                    with self._publishing:
                        following(channel)
                    self.published += 1
                    following = next(left, None)
        except (AMQPError, OSError):
            self._ended.wait(_RETRY_S)
        return following
