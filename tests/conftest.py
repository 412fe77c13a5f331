"""Fixtures for tests that need a broker: one for the session, names of its own for each test."""

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings

from consumer.testing import BrokerMissing, RabbitMQ, server_command
from harness import Channel, ConsumerProcess


def pytest_configure() -> None:
    """Have processes that tests start heed Ctrl-C, also where the tests run in the background.

    How long an example of a property takes is no failure: the machine may be busy.
    """
    settings.register_profile(
        "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("patient")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded of themselves, e.g. how many histories were run."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {value} {name}")


@pytest.fixture(scope="session")
def broker() -> Iterator[RabbitMQ]:
    """A private broker for the whole session; leave it running."""
    try:
        server_command()
    except BrokerMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    with RabbitMQ() as running:
        yield running


@pytest.fixture
def prefix() -> str:
    """First part of this test's exchange and queue names."""
    return f"t{uuid.uuid4().hex[:12]}"


class MakeConsumer(Protocol):
    """Makes a consumer process that is not started yet."""

    def __call__(self, **settings: Any) -> ConsumerProcess:
        """Return the process; `settings` are those of `consumer run`."""


@pytest.fixture
def make_consumer(broker: RabbitMQ, prefix: str, tmp_path: Path) -> Iterator[MakeConsumer]:
    """Make consumers of this test's queue that write below `tmp_path / "root"`; all are ended."""
    made: list[ConsumerProcess] = []

    def make(**settings: Any) -> ConsumerProcess:
        log = tmp_path / f"consumer-{len(made)}.log"
        wanted = {"topology_prefix": prefix} | settings
        process = ConsumerProcess(broker, tmp_path / "root", log, **wanted)
        made.append(process)
        return process

    yield make
    for process in made:
        process.__exit__(None, None, None)


@pytest.fixture
def producer(broker: RabbitMQ, prefix: str) -> Iterator[Channel]:
    """A producer's channel on the session's broker."""
    with Channel(broker, prefix) as channel:
        yield channel
