"""The publisher without a broker: what it is given, and what becomes of tiles when it is closed."""

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from consumer.batches import Batch
from consumer.endpoint import Endpoint
from consumer.errors import BrokerUnreachable, PublishError, Unconfirmed, UnusableSettings
from consumer.publisher import TilePublisher
from consumer.testing import free_port
from harness import wait_until

ARRAY = {"store": "p/a.zarr", "array": "x", "axes": "CYX", "shape": [1, 4096, 4096]}
TILE = np.ones((1, 16, 16), "float32")


def publisher(**options: Any) -> TilePublisher:
    """Return a publisher to a broker that is not there."""
    return TilePublisher(f"127.0.0.1:{free_port()}", **{"timeout_s": 60.0} | options)


WRONG = {
    "time": ({"timeout_s": -1}, "timeout_s: Input should be greater than 0 (got -1)"),
    "time as text": (
        {"timeout_s": "60"},
        "timeout_s: Input should be a valid number (got '60')",
    ),
    "bytes as text": (
        {"window_bytes": "64MiB"},
        "window_bytes: Input should be a valid integer (got '64MiB')",
    ),
    "no window": (
        {"window_bytes": 0},
        "window_bytes: Input should be greater than or equal to 1 (got 0)",
    ),
    "name that AMQP cannot carry": (
        {"app_id": "x" * 201},
        f"app_id: String should have at most 200 characters (got {'x' * 201!r:.200}…)",
    ),
    "name that is no text": ({"app_id": 5}, "app_id: Input should be a valid string (got 5)"),
    "no broker": (
        {"broker": None},
        "broker: must be host[:port], an AMQP URL or an Endpoint (got one of type NoneType)",
    ),
    "access said twice": (
        {"broker": Endpoint(), "username": "unet"},
        "username: already in the Endpoint; give it there",
    ),
}


@pytest.mark.parametrize(("options", "line"), WRONG.values(), ids=WRONG)
def test_a_wrong_parameter_is_told_at_once(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UnusableSettings) as raised:
        TilePublisher(**options)

    assert str(raised.value) == line


def closing_while(act: Callable[[], None], opened: TilePublisher) -> threading.Thread:
    """Have another thread close the publisher; return once that has begun and `act` is done."""
    state = opened._states[os.getpid()]
    closer = threading.Thread(target=opened.close)
    closer.start()
    wait_until(lambda: state.closed, "closing to begin")
    act()
    return closer


def test_a_tile_that_comes_while_another_thread_closes_is_refused_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = publisher()
    state = opened._state()
    take = state.window.take
    closers: list[threading.Thread] = []

    def room(nbytes: int, timeout_s: float) -> None:
        closers.append(closing_while(lambda: take(nbytes, timeout_s), opened))

    monkeypatch.setattr(state.window, "take", room)

    with pytest.raises(ValueError, match="closed"):
        opened.publish(ARRAY, TILE, (0, 0))

    closers[0].join()
    assert opened._states[os.getpid()].window.held_bytes == 0


def test_a_thread_that_was_late_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = publisher()
    state = opened._state()
    monkeypatch.setattr(opened, "_state", lambda: state)
    opened.close()

    with pytest.raises(ValueError, match="closed"):
        opened.publish(ARRAY, TILE, (0, 0))

    assert state.sender is None


@pytest.mark.parametrize(
    ("error", "told"),
    [(MemoryError(), "MemoryError()"), (KeyboardInterrupt(), "KeyboardInterrupt()")],
    ids=["no memory", "Ctrl-C"],
)
def test_tiles_that_could_not_be_encoded_are_told_as_lost(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, told: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Batch, "encode", fail)
    opened = publisher(linger_s=3600.0)
    opened.publish(ARRAY, TILE, (0, 0))
    if not isinstance(error, Exception):
        with pytest.raises(type(error)):
            opened.flush()

    with pytest.raises(Unconfirmed) as raised:
        opened.close()

    assert str(raised.value) == (
        f"1 tiles of p/a.zarr are lost, since they could not be encoded ({told}); publish them "
        "again"
    )


def test_ctrl_c_while_there_is_no_room_takes_nothing_and_says_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def act() -> None:
        with publisher(timeout_s=0.5, window_bytes=1, batch_bytes=0) as opened:
            opened.publish(ARRAY, TILE, (0, 0))
            monkeypatch.setattr(threading.Condition, "wait", interrupted)
            opened.publish(ARRAY, TILE, (0, 16))

    def interrupted(*_: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        act()

    (note,) = raised.value.__notes__
    assert note.startswith("tiles published before were not confirmed: ")
    assert note.endswith("Connection refused; start it, or check host, port and tls")


def test_tiles_that_no_broker_took_are_told_at_the_end() -> None:
    opened = publisher(timeout_s=0.5)
    opened.publish(ARRAY, TILE, (0, 0))

    with pytest.raises(PublishError) as raised:
        opened.close()

    assert isinstance(raised.value, BrokerUnreachable)
