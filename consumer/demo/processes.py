"""Owns the demo's processes: no signal and no failure leaves one running."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.1
# Above the grace that the consumer is given to drain.
_END_S = 30.0


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(DemoError):
    """A signal asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}; nothing was left running",
            exit_code=128 + number,
        )


class Signals:
    """A context in which SIGINT, SIGTERM and SIGHUP are raised where `check` is called.

    Raised anywhere, as Python does by itself, an exception could come between the start of a
    process and the note of it, and that process would stay.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Interrupted` where a signal came."""
        if self._received is not None:
            raise Interrupted(self._received)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._received is None:
            # Not print: a handler may run in the middle of another write to the same stream.
            os.write(2, b"\nstopping; the broker and the processes take a few seconds to end\n")
        self._received = number


@contextmanager
def process(
    command: Sequence[str], *, environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process of its own session, which ends with the context.

    A Ctrl-C in the terminal reaches the demo alone, which ends its processes in order.
    """
    with log.open("wb") as output:
        child = _spawn(command, environment, output)
    try:
        yield child
    finally:
        _end(child)


def wait(child: subprocess.Popen[bytes], signals: Signals, *, timeout_s: float) -> int | None:
    """Return the exit code, or None where the process still runs after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while child.poll() is None and time.monotonic() < deadline:
        signals.check()
        time.sleep(POLL_S)
    return child.poll()


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], output: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - the demo's own programs
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            with suppress(subprocess.TimeoutExpired):
                child.wait(_END_S)
