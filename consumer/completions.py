"""Which arrays are complete, as the consumer announces it: heard on the publisher's I/O thread,
waited for on any other.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import ValidationError

from consumer.errors import NotCompleted
from consumer.events import (
    ArrayCompleted,
    ArrayEvent,
    ArrayProgress,
    completions_queue,
    events_exchange,
)

# The queue outlives a lost connection, and goes when nobody came back for so long.
_EXPIRES_MS = 30 * 60 * 1000
_SHOWN = 3
# AMQP's ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED and PRECONDITION_FAILED.
_REFUSED = {403, 404, 405, 406}

log = logging.getLogger(__name__)


class Completions:
    """The arrays that were published to, and those of them that are complete."""

    def __init__(self, prefix: str) -> None:
        self._exchange = events_exchange(prefix)
        self._queue = f"{completions_queue(prefix)}.{secrets.token_hex(8)}"
        self._changed = threading.Condition()
        self._open: set[tuple[str, str, str | None]] = set()
        self._trouble: NotCompleted | None = None
        self._channel: Any = None

    def expect(self, store: str, array: str, run: str | None) -> None:
        """Take note of an array that is published to."""
        with self._changed:
            self._open.add((store, array, run))

    def wait(self, timeout_s: float, deadline: float) -> None:
        """Return once every array that was published to is complete.

        Raises
        ------
        NotCompleted
            With the arrays that are not by `deadline`, or why nobody can tell.
        """
        with self._changed:
            while self._open:
                left = deadline - time.monotonic()
                if self._trouble is not None or left <= 0:
                    raise self._trouble or self._late(timeout_s)
                self._changed.wait(left)

    def subscribe(self, connection: Any, done: Callable[[], None]) -> None:
        """Subscribe on a channel of its own; call `done` once that stands or failed."""
        waiting = [done]

        def finish() -> None:
            if waiting:
                waiting.pop()()

        def subscribed() -> None:
            with self._changed:
                self._trouble = None
            finish()

        def opened(channel: Any) -> None:
            self._channel = channel
            channel.add_on_close_callback(lambda _channel, why: self._closed(why, finish))
            # The queue is gone, or its node: begin anew.
            channel.add_on_cancel_callback(lambda _frame: connection.close())
            _in_turn(self._steps(channel), subscribed)

        connection.channel(on_open_callback=opened)

    def unsubscribe(self) -> None:
        """Remove the queue."""
        if self._channel is not None and self._channel.is_open:
            self._channel.queue_delete(self._queue)

    def _steps(self, channel: Any) -> list[Callable[..., Any]]:
        queue, exchange = self._queue, self._exchange
        expires = {"x-expires": _EXPIRES_MS}
        return [
            partial(channel.queue_declare, queue, durable=True, arguments=expires),
            partial(channel.queue_bind, queue, exchange, f"{ArrayCompleted.event}.#"),
            partial(channel.queue_bind, queue, exchange, f"{ArrayProgress.event}.#"),
            partial(channel.basic_consume, queue, self._on_event),
        ]

    def _closed(self, why: Exception, finish: Callable[[], None]) -> None:
        if getattr(why, "reply_code", None) not in _REFUSED:
            return
        with self._changed:
            self._trouble = NotCompleted(
                f"RabbitMQ does not let us hear of completed arrays on exchange "
                f"{self._exchange!r}: {why}; the user needs to configure, read and write queues "
                f"{self._queue.rpartition('.')[0]}.* and to read that exchange"
            )
            self._changed.notify_all()
        finish()

    def _on_event(self, channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        try:
            event = _complete(method.routing_key, body)
        except ValidationError as error:
            log.warning("an event cannot be understood: %s", error)
            event = None
        if event is not None:
            with self._changed:
                # Whoever names no run waits for the array, be it of a run that others named.
                for run in (event.run, None):
                    self._open.discard((event.store, event.array, run))
                self._changed.notify_all()
        channel.basic_ack(method.delivery_tag)

    def _late(self, timeout_s: float) -> NotCompleted:
        arrays = sorted(f"{store}/{array}" for store, array, _ in self._open)
        more = f" and {len(arrays) - _SHOWN} more" if len(arrays) > _SHOWN else ""
        return NotCompleted(
            f"not complete after {timeout_s:g} s: {', '.join(arrays[:_SHOWN])}{more}; are all "
            "tiles published, and does a consumer run?"
        )


def _complete(routing_key: str, body: bytes) -> ArrayEvent | None:
    """Return the event where its array is complete.

    What was announced as complete before is not again when it is filled once more, but its progress
    is told.
    """
    if routing_key.startswith(f"{ArrayCompleted.event}."):
        return ArrayCompleted.model_validate_json(body)
    progress = ArrayProgress.model_validate_json(body)
    return progress if progress.filled_voxels == progress.total_voxels else None


def _in_turn(steps: list[Callable[..., Any]], done: Callable[[], None]) -> None:
    if not steps:
        done()
        return
    first, *rest = steps
    first(callback=lambda _frame: _in_turn(rest, done))
