"""The bytes that were handed over for publishing and are not confirmed yet.

Owns the waiting between the producer's threads, which take room and wait, and the publisher's
I/O thread, which gives it back and says what is in the way. No I/O.
"""

import threading
import time
from collections.abc import Callable

from consumer.errors import PublishError, Unconfirmed


class Window:
    """A bounded number of bytes in flight, and the trouble that keeps them there.

    Trouble is *final* where waiting does not help: it is raised at once, and then forgotten, so
    that the next call waits for what became of the next attempt. Other trouble is raised once
    nothing was confirmed for as long as the caller waits. What is *lost* is raised by the next
    call, whatever was confirmed before that; by one that waits for all, once all else is confirmed.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._changed = threading.Condition()
        self._held = 0
        self._confirms = 0
        self._trouble: PublishError | None = None
        self._final = False
        self._lost: PublishError | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes taken and not given back."""
        return self._held

    def take(self, nbytes: int, timeout_s: float) -> None:
        """Take room, waiting for it; what is larger than the window waits for an empty one.

        Raises
        ------
        PublishError
            With the trouble; no room was then taken.
        """
        with self._changed:
            self._raise_lost()
            self._raise_final()
            self._wait(lambda: not self._held or self._held + nbytes <= self._limit, timeout_s)
            self._raise_lost()
            self._held += nbytes

    def wait_empty(self, timeout_s: float) -> None:
        """Return once nothing is held.

        Raises
        ------
        PublishError
            With the trouble that is in the way.
        """
        with self._changed:
            try:
                self._wait(lambda: not self._held, timeout_s)
            except PublishError as trouble:
                if self._lost is None:
                    raise
                lost, self._lost = self._lost, None
                raise type(trouble)(f"{trouble}; {lost}") from None
            self._raise_lost()

    def confirm(self, nbytes: int) -> None:
        """Give room back."""
        with self._changed:
            self._held -= nbytes
            self._confirms += 1
            self._trouble, self._final = None, False
            self._changed.notify_all()

    def give_back(self, nbytes: int) -> None:
        """Give room back that was taken for nothing."""
        with self._changed:
            self._held -= nbytes
            self._changed.notify_all()

    def lose(self, nbytes: int, trouble: PublishError) -> None:
        """Give room back of what will never be confirmed, and say why."""
        with self._changed:
            self._held -= nbytes
            self._lost = self._lost or trouble
            self._changed.notify_all()

    def report(self, trouble: PublishError, *, final: bool = False) -> None:
        """Say what keeps bytes from being confirmed."""
        with self._changed:
            self._trouble, self._final = trouble, final
            self._changed.notify_all()

    def clear(self, kind: type[PublishError]) -> None:
        """Say that trouble of this kind is over."""
        with self._changed:
            if isinstance(self._trouble, kind):
                self._trouble, self._final = None, False

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        confirms, deadline = self._confirms, time.monotonic() + timeout_s
        while not condition():
            self._raise_final()
            if self._confirms != confirms:
                confirms, deadline = self._confirms, time.monotonic() + timeout_s
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._at_timeout(timeout_s)
            self._changed.wait(left)

    def _at_timeout(self, timeout_s: float) -> PublishError:
        trouble = self._trouble
        if trouble is None:
            return Unconfirmed(
                f"RabbitMQ confirmed nothing for {timeout_s:g} s; {self._held} bytes wait"
            )
        return type(trouble)(str(trouble))

    def _raise_lost(self) -> None:
        if self._lost is not None:
            lost, self._lost = self._lost, None
            raise lost

    def _raise_final(self) -> None:
        if self._final and self._trouble is not None:
            trouble, self._trouble, self._final = self._trouble, None, False
            raise trouble
