"""Whether a subscription is stalled: messages wait in the queue, and none comes.

Sans-I/O: what happens and the time go in; whether to ask the broker and whether to subscribe anew
come out.

Which consumer of a queue is the single active one, the broker does not tell, and it may count that
one only. A subscription that was delivered to is, and where the broker counts none, any should be;
else messages that wait are most likely the active one's, and it is asked more often. To subscribe
anew in vain does no harm, but each time it is longer waited for.
"""

from typing import Final

# So many answers in a row must say that messages wait.
_ANSWERS: Final = 2
_ANSWERS_TO_OTHERS: Final = 8
# What passes between them, as a part of the first wait.
_AGAIN: Final = 1 / 4
_LONGEST: Final = 32


class Watchdog:
    """Watches one queue.

    Parameters
    ----------
    stalled_s : float
        How long nothing must have come before the broker is asked, in seconds.
    """

    def __init__(self, stalled_s: float) -> None:
        self._stalled_s = stalled_s
        self._wait = stalled_s
        self._due: float | None = None
        self._waiting = 0
        self._delivered_to = False

    def note_subscribed(self, now: float) -> None:
        """Take note of a new subscription."""
        self._delivered_to = False
        self._restart(now)

    def note_delivery(self, now: float) -> None:
        """Take note that a delivery has come."""
        self._delivered_to = True
        self._wait = self._stalled_s
        self._restart(now)

    def note_busy(self, now: float) -> None:
        """Take note that deliveries are held: what was delivered is worked on."""
        self._restart(now)

    def is_due(self, now: float) -> bool:
        """Whether to ask now; not again before `answered`."""
        if self._due is None or now < self._due:
            return False
        self._due = None
        return True

    def answered(self, ready: int, consumers: int, now: float) -> bool:
        """Take the broker's answer; return whether to subscribe anew.

        Parameters
        ----------
        ready, consumers : int
            Messages that wait in the queue, and its consumers, or those of them that are active.
        """
        if self._due is not None:
            return False  # Something has come since it was asked.
        if not ready:
            self._restart(now)
            return False
        self._waiting += 1
        is_ours = not consumers or self._delivered_to
        if self._waiting < (_ANSWERS if is_ours else _ANSWERS_TO_OTHERS):
            self._due = now + self._stalled_s * _AGAIN
            return False
        self._wait = min(2 * self._wait, _LONGEST * self._stalled_s)
        self._restart(now)
        return True

    def _restart(self, now: float) -> None:
        self._waiting = 0
        self._due = now + self._wait
