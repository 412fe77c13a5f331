"""The process: builds everything from the settings, runs the loop, and shuts down in order.

On SIGTERM or SIGINT: cancel the subscription, flush, acknowledge, release, close, exit 0.
"""

import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

from consumer.arena import Arena, give_memory_back
from consumer.broker import Broker, Loop
from consumer.connection import check_credentials
from consumer.errors import ConsumerError, StopError, UnusableRoot, UnusableSettings
from consumer.filesystem import examine
from consumer.findings import Verdict
from consumer.flow import Flow
from consumer.health import Health, serve
from consumer.metrics import Metrics
from consumer.scratch import Scratch
from consumer.settings import ENV_PREFIX, Settings
from consumer.storage import Storage
from consumer.topology import labels, topology

TICK_S = 0.2
_CLOSE_S = 2.0
# Parts of different sizes leave gaps between them.
_ARENA_FACTOR = 2

log = logging.getLogger(__name__)


class Service:
    """One consumer process, on the thread that calls `run`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = Loop()
        self._metrics = Metrics(labels(settings.partitions))
        self._health = Health(clock=time.monotonic, looped=time.monotonic())
        arena = Arena(_ARENA_FACTOR * settings.memory_budget_bytes)
        self._storage = Storage(settings, arena, self._post, self._stop)
        self._scratch = _scratch(settings)
        self._broker = Broker(self._loop, settings, topology(settings), self._metrics)
        self._flow = Flow(
            settings,
            self._broker,
            self._storage,
            arena,
            self._scratch,
            self._metrics,
            post=self._post,
            stop=self._stop,
        )
        self._deadline = float("inf")
        self._signalled = False
        self._probing = False
        self._probed = time.monotonic()
        self._error: StopError | None = None

    def run(self) -> int:
        """Run until told to stop; return the exit code."""
        server = self._serve()
        with _signals(self._signal):
            # Its answer tells that the writer is there: only then may tiles come.
            self._storage.probe(self._start)
            self._tick()
            log.info("started", extra={"health_port": server.server_port})
            self._loop.start()
        code = self._finish(server)
        log.info("stopped", extra={"exit_code": code})
        return code

    def _start(self, _result: None, error: ConsumerError | None) -> None:
        self._on_probe(None, error)
        if not self._health.draining:
            self._broker.start(self._flow)

    def _serve(self) -> ThreadingHTTPServer:
        settings = self._settings
        try:
            return serve(
                settings.http_host, settings.http_port, self._health, self._metrics.registry
            )
        except OSError as error:
            raise UnusableSettings(
                f"http_host {settings.http_host} and http_port {settings.http_port} cannot be "
                f"listened on: {error}"
            ) from error

    def _post(self, callback: Callable[[], None]) -> None:
        self._loop.add_callback_threadsafe(callback)

    def _tick(self) -> None:
        now = time.monotonic()
        self._health.looped = now
        self._health.subscribed = self._broker.subscribed
        self._health.root_writable = self._storage.root_writable
        self._metrics.subscribed.set(self._health.subscribed)
        self._metrics.root_writable.set(self._health.root_writable)
        if self._signalled and not self._health.draining:
            self._drain()
        self._flow.tick()
        self._broker.watch()
        self._probe(now)
        if self._ended(now):
            self._loop.stop()
        else:
            self._loop.call_later(TICK_S, self._tick)

    def _ended(self, now: float) -> bool:
        if self._error is not None:
            return True
        return self._health.draining and (self._flow.drained or now >= self._deadline)

    def _probe(self, now: float) -> None:
        if self._probing or now - self._probed < self._settings.probe_interval_s:
            return
        self._probing, self._probed = True, now
        self._storage.probe(self._on_probe)

    def _on_probe(self, _result: None, error: ConsumerError | None) -> None:
        self._probing = False
        if (error is None) != self._storage.root_writable:
            log.log(
                logging.INFO if error is None else logging.ERROR,
                "the output root is writable again"
                if error is None
                else "the output root cannot be written; nothing is acknowledged until it can",
                extra={"output_root": str(self._settings.output_root), "error": str(error or "")},
            )
        self._storage.root_writable = error is None
        self._flow.advance()

    def _signal(self) -> None:
        # Python runs this between any two steps of the flow, so it leaves a note and no more.
        self._signalled = True

    def _drain(self) -> None:
        log.info("draining", extra={"grace_s": self._settings.grace_s})
        self._health.draining = True
        self._deadline = time.monotonic() + self._settings.grace_s
        self._broker.cancel()
        self._flow.drain()

    def _stop(self, error: StopError) -> None:
        self._error = error

    def _finish(self, server: ThreadingHTTPServer) -> int:
        drained = self._flow.drained
        self._flow.close()
        self._broker.close()
        self._turn_until(lambda: self._broker.closed and self._storage.idle, _CLOSE_S)
        self._storage.close()
        self._scratch.close()
        server.shutdown()
        server.server_close()
        if self._error is not None:
            raise self._error
        if not drained:
            log.error("the grace time ended before all was written; the broker delivers it again")
        return int(not drained)

    def _turn_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Let the loop run on for a while."""
        deadline = time.monotonic() + seconds

        def check() -> None:
            if condition() or time.monotonic() > deadline:
                self._loop.stop()
            else:
                self._loop.call_later(0.01, check)

        check_soon = self._loop.call_later(0.01, check)
        assert check_soon is not None
        self._loop.start()


def run(settings: Settings) -> int:
    """Run the consumer until SIGTERM; return its exit code.

    Raises
    ------
    StopError
        Where it cannot run as configured.
    """
    unknown = unknown_variables(settings)
    if unknown:
        log.warning("environment variables that are no settings", extra={"variables": unknown})
    if settings.failpoints:
        log.warning("failpoints are set, for tests", extra={"failpoints": settings.failpoints})
    check_credentials(settings)
    check_root(settings)
    give_memory_back()
    # What is loaded by now stays: the collector need not look at it again and again.
    gc.freeze()
    return Service(settings).run()


def unknown_variables(settings: Settings) -> list[str]:
    """Return the variables that look like settings and are none."""
    known = {f"{ENV_PREFIX}{name}".upper() for name in type(settings).model_fields}
    return sorted(
        name
        for name in os.environ
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known
    )


def check_root(settings: Settings) -> None:
    """Check that the output root can be written, and that its file system does what is needed.

    Raises
    ------
    UnusableRoot
        With what to change.
    """
    root = settings.output_root
    findings = list(examine(root, settings.accept_filesystem))
    for finding in findings:
        if finding.verdict is Verdict.FAILED:
            raise UnusableRoot(
                f"output_root {root} cannot be used: {finding.said}; {finding.remedy}"
            )
    for finding in findings:
        if finding.verdict is Verdict.WARNING:
            log.warning(
                "the output root is not what it should be",
                extra={"check": finding.check, "said": finding.said, "remedy": finding.remedy},
            )


def _scratch(settings: Settings) -> Scratch:
    try:
        return Scratch(settings.scratch_folder, settings.scratch_bytes)
    except OSError as error:
        raise UnusableSettings(
            f"scratch_folder {settings.scratch_folder} cannot be written: {error}"
        ) from error


@contextmanager
def _signals(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` on SIGTERM and SIGINT."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: callback()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
