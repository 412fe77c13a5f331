"""What is known of stores that fail, and what is said of messages that are handled alone."""

import logging
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from consumer.blocks import DeliveryId
from consumer.faults import Faults
from consumer.holdings import Holdings
from consumer.journal import Begun
from consumer.lone import Lone

STORE = "a.zarr"


@pytest.fixture
def faults() -> Faults:
    """Faults after which a store is left alone for 60 s at most."""
    return Faults(60.0)


def test_what_fails_while_a_store_is_left_alone_is_of_the_same_try(faults: Faults) -> None:
    wait = faults.note(STORE, now=0.0)
    assert wait is not None
    assert [faults.note(STORE, now=wait / 2) for _ in range(12)] == [None] * 12
    assert not faults.paused(STORE, now=wait)


def test_what_fails_later_is_another_try_after_which_it_is_left_alone_for_longer(
    faults: Faults,
) -> None:
    waits, now = [], 0.0
    for _ in range(5):
        wait = faults.note(STORE, now)
        assert wait is not None
        waits.append(wait)
        now += wait
    # Half of each is chance.
    assert waits[4] > 4 * waits[0]


def test_another_store_is_another_matter(faults: Faults) -> None:
    assert faults.note(STORE, now=0.0) is not None
    assert faults.note("b.zarr", now=0.0) is not None


class Suspects:
    """Lone handling of suspects that all earlier ended with a consumer, and are never settled."""

    def __init__(self) -> None:
        self.storage = Mock()
        self.inbox = Mock()
        self.lone = Lone(
            Mock(max_age_s=60.0, prefetch_count=1, lone_attempts=3),
            self.storage,
            self.inbox,
            Mock(writing=0, stores=set()),
            _NoHandles(),  # type: ignore[arg-type]
            Mock(),
            _holding(),
            Mock(),
            paused=lambda _store: False,
            park=Mock(),
            failed=Mock(),
            advance=Mock(),
            clock=lambda: 1.0,
        )

    def begin(self, fingerprint: str) -> None:
        """Begin to handle one, which the journal knows."""
        held: Any = SimpleNamespace(
            number=1,
            delivery=SimpleNamespace(id=DeliveryId(1, 1)),
            fingerprint=fingerprint,
            since=0.0,
        )
        self.inbox.head.return_value = self.inbox.first.return_value = held
        self.inbox.suspects.return_value = [held]
        self.lone.advance()
        _fingerprints, done = self.storage.begin_lone.call_args.args
        done(Begun(1, "entry", cut=True), None)


def _holding() -> Holdings:
    holdings = Holdings(1)
    holdings.add(Mock(delivery=Mock(id=DeliveryId(1, 1))))
    return holdings


class _NoHandles:
    opening = False
    waited_for: frozenset[str] = frozenset()


def test_of_a_message_that_is_begun_again_and_again_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    suspects = Suspects()
    with caplog.at_level(logging.WARNING, "consumer.lone"):
        for _ in range(3):
            suspects.begin("first")
            suspects.lone.end()
        assert len(caplog.records) == 1
        suspects.begin("second")
        assert len(caplog.records) == 2
    assert suspects.storage.begin_lone.call_count == 4
