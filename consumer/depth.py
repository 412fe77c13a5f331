"""How many messages wait in a queue, asked of the broker now and then. The time goes in.

Where a quorum queue's leader is silent, RabbitMQ answers that it has no messages and no consumers;
whoever asks is a consumer, so such an answer says nothing.
"""

import math
from collections.abc import Callable
from typing import Any

_AGAIN_S = 10.0


class Depth:
    """Watches one queue.

    Parameters
    ----------
    note : callable
        Told how many messages wait; NaN where that is not known.
    """

    def __init__(self, queue: str, note: Callable[[float], None]) -> None:
        self._queue = queue
        self._note = note
        self._channel: Any = None
        self._due = math.inf

    def watch(self, channel: Any, now: float) -> None:
        """Ask on a channel, where it is time to and the last question is answered."""
        if channel is not self._channel:
            self._channel, self._due = channel, now
            self._note(math.nan)
        if channel is None or not channel.is_open or now < self._due:
            return
        self._due = math.inf

        def answered(frame: Any) -> None:
            if channel is self._channel:
                self._due = now + _AGAIN_S
                if frame.method.message_count or frame.method.consumer_count:
                    self._note(frame.method.message_count)

        channel.queue_declare(self._queue, passive=True, callback=answered)
