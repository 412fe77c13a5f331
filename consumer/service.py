"""The process: builds everything from the settings, runs the loop, and shuts down in order.

It subscribes once the output root can be used. A fault of the root that may clear is waited for, at
the start as later.

On SIGTERM or SIGINT: cancel the subscription, flush, acknowledge, release, close, exit 0.
"""

import gc
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

from consumer.arena import Arena, give_memory_back
from consumer.broker import Broker, Loop
from consumer.connection import check_credentials
from consumer.errors import ConsumerError, StopError, UnusableSettings
from consumer.findings import Finding
from consumer.flow import Flow
from consumer.health import Health, serve
from consumer.metrics import Metrics
from consumer.requests import Room
from consumer.scratch import Scratch
from consumer.settings import ENV_PREFIX, Settings
from consumer.storage import Storage
from consumer.topology import labels, topology

TICK_S = 0.2
_CLOSE_S = 2.0
# So many intervals a probe may take until the root counts as one that cannot be written.
_PROBES_MISSED = 6
# Parts of different sizes leave gaps between them.
_ARENA_FACTOR = 2

log = logging.getLogger(__name__)


class Service:
    """One consumer process, on the thread that calls `run`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = Loop()
        self._metrics = Metrics(labels(settings.partitions))
        self._metrics.max_age.set(settings.max_age_s)
        self._metrics.memory_budget.set(settings.memory_budget_bytes)
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
        self._port = 0
        self._examined = self._probing = False
        self._probed = -math.inf
        self._error: StopError | None = None

    def run(self) -> int:
        """Run until told to stop; return the exit code."""
        server = self._serve()
        self._port = server.server_port
        with _signals(self._signal):
            self._tick()
            self._loop.start()
        code = self._finish(server)
        log.info("stopped", extra={"exit_code": code})
        return code

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
        self._metrics.writer_seconds.set(self._storage.oldest_s)
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
        waited, interval = now - self._probed, self._settings.probe_interval_s
        if self._probing:
            if waited > _PROBES_MISSED * interval and self._storage.root_writable:
                self._note_root(f"a probe has hung for {waited:.0f} s")
            return
        if waited < interval:
            return
        self._probing, self._probed = True, now
        if self._examined:
            self._storage.probe(self._on_probe)
        else:
            self._storage.examine(self._settings.accept_filesystem, self._on_examined)

    def _on_examined(self, found: Sequence[Finding] | None, error: ConsumerError | None) -> None:
        """Subscribe, now that writer and root are there; what may clear is waited for."""
        if isinstance(error, StopError):
            self._stop(error)
            return
        self._on_probe(None, error)
        if found is None:
            return
        self._examined = True
        for finding in found:
            log.warning(
                "the output root is not what it should be",
                extra={"check": finding.check, "said": finding.said, "remedy": finding.remedy},
            )
        log.info("started", extra={"health_port": self._port})
        if not self._health.draining:
            self._broker.start(self._flow)

    def _on_probe(self, room: Room | None, error: ConsumerError | None) -> None:
        self._probing = False
        if room is not None:
            self._metrics.root_size.set(room.size)
            self._metrics.root_free.set(room.free)
        self._note_root(None if error is None else str(error))

    def _note_root(self, error: str | None) -> None:
        """Take note of why the root cannot be written, or that it can."""
        writable = error is None
        if writable != self._storage.root_writable:
            log.log(
                logging.INFO if writable else logging.ERROR,
                "the output root is writable again"
                if writable
                else "the output root cannot be written; nothing is acknowledged until it can",
                extra={"output_root": str(self._settings.output_root), "error": error or ""},
            )
        self._storage.root_writable = writable
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
