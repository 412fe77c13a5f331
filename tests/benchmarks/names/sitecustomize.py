"""Has the system know Python's threads by their names, as Python itself does from 3.14 on."""

import ctypes
import threading

_PR_SET_NAME = 15
_MOST_BYTES = 15

_prctl = ctypes.CDLL(None).prctl
_run = threading.Thread.run


def _named(self: threading.Thread) -> None:
    _prctl(_PR_SET_NAME, self.name.encode()[:_MOST_BYTES], 0, 0, 0)
    _run(self)


threading.Thread.run = _named  # type: ignore[method-assign]
