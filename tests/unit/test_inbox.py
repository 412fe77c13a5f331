"""Bodies larger than any limit are taken one at a time, and never wait for ever."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from consumer.blocks import DeliveryId
from consumer.budget import Budget, most_bodies
from consumer.delivery import Delivery
from consumer.errors import BrokerLost
from consumer.inbox import Held, Inbox
from consumer.message import Envelope
from consumer.scratch import ScratchFull

RESERVE = 100
BUDGET = 8 * RESERVE


class MemoryScratch:
    """A scratch file in memory."""

    def __init__(self, capacity: int) -> None:
        self.bodies: list[bytes] = []
        self.capacity = capacity

    def keeps_up(self, _window: int, _timeout_s: float) -> bool:
        return True

    def put(self, body: bytes, done: Callable[[None], None]) -> None:
        if sum(map(len, self.bodies)) + len(body) > self.capacity:
            raise ScratchFull("full")
        self.bodies.append(body)
        done(None)

    @property
    def next_size(self) -> int:
        return len(self.bodies[0])

    def skip(self) -> None:
        self.bodies.pop(0)

    def clear(self) -> None:
        self.bodies.clear()

    def get(self, done: Callable[[Any], None]) -> None:
        body = self.bodies.pop(0)
        done(SimpleNamespace(exception=lambda: None, result=lambda: body))


@pytest.mark.parametrize("capacity", [0, 150, 250, 10_000])
@pytest.mark.parametrize("sizes", [(RESERVE,), (60, RESERVE), (RESERVE, 1, 51)], ids=str)
def test_as_many_bodies_as_settings_count_on_find_room(
    capacity: int, sizes: tuple[int, ...]
) -> None:
    inbox, _ = _inbox(capacity)
    most = most_bodies(BUDGET, capacity, RESERVE)
    for number, size in zip(range(most), itertools.cycle(sizes), strict=False):
        inbox.put(_held(number), bytes(size))
    assert len(inbox) == most
    if len(sizes) == 1:
        with pytest.raises(BrokerLost):
            inbox.put(_held(most), bytes(RESERVE))


def test_a_decompressed_head_takes_the_room_that_is_kept_for_it() -> None:
    inbox, _ = _inbox(capacity=0)
    head = _held(1, encoding="zstd")
    inbox.put(head, bytes(RESERVE // 2))
    message: Any = SimpleNamespace(
        nbytes=RESERVE, outline=None, entry=SimpleNamespace(sent_ms=None), tiles=()
    )
    inbox.note_decoded(head, message)
    inbox.put(_held(2), bytes(RESERVE // 2))
    assert len(inbox) == 2


def _inbox(capacity: int = 10_000) -> tuple[Inbox, Budget]:
    budget = Budget(BUDGET)
    failures: list[str] = []
    inbox = Inbox(
        budget,
        MemoryScratch(capacity),  # type: ignore[arg-type]  # a model
        RESERVE,
        post=lambda callback: callback(),
        loaded=lambda: None,
        failed=failures.append,
    )
    return inbox, budget


def _held(tag: int, channel: int = 1, encoding: str | None = None) -> Held:
    properties = SimpleNamespace(message_id=None)
    envelope = Envelope("a.zarr", "tiles.v1", None, encoding)
    return Held(Delivery(DeliveryId(channel, tag), envelope, properties, 0), 0.0)


def _take_all(inbox: Inbox) -> list[int]:
    """Take every delivery out, as if each was placed at once; return the sizes of their bodies."""
    sizes = []
    inbox.load()
    while (held := inbox.head()) is not None:
        assert held.body is not None
        sizes.append(len(held.body))
        inbox.pop()
        inbox.release(held)
        inbox.load()
    return sizes


def test_a_body_beyond_the_bodies_share_comes_back_from_the_scratch_file() -> None:
    inbox, _ = _inbox()
    sizes = [90, 90, 5 * RESERVE, 90]
    for tag, size in enumerate(sizes):
        inbox.put(_held(tag), bytes(size))
    assert _take_all(inbox) == sizes


def test_a_lone_body_beyond_the_bodies_share_is_taken() -> None:
    inbox, _ = _inbox()
    inbox.put(_held(1), bytes(5 * RESERVE))
    assert _take_all(inbox) == [5 * RESERVE]


def test_a_body_beyond_the_scratch_file_too_does_not_cost_the_channel() -> None:
    inbox, budget = _inbox(capacity=0)
    sizes = [90, 5 * RESERVE]
    for tag, size in enumerate(sizes):
        inbox.put(_held(tag), bytes(size))
    assert _take_all(inbox) == sizes
    assert not any(budget.held.values())


def test_a_lost_channel_takes_its_bodies_out_of_memory_and_scratch_file() -> None:
    inbox, budget = _inbox()
    sizes = {(1, 1): 60, (2, 2): 50, (1, 3): 70, (2, 4): 80, (1, 5): 90}
    for (channel, tag), size in sizes.items():
        inbox.put(_held(tag, channel), bytes(size))
    inbox.drop(1)
    assert (inbox.holds(1), inbox.holds(2), len(inbox)) == (False, True, 2)
    assert _take_all(inbox) == [50, 80]
    assert not any(budget.held.values())


def test_the_last_lost_channel_leaves_nothing_in_the_scratch_file() -> None:
    inbox, budget = _inbox()
    for tag in range(5):
        inbox.put(_held(tag, tag % 2), bytes(90))
    inbox.drop(0)
    inbox.drop(1)
    assert (len(inbox), inbox.head(), any(budget.held.values())) == (0, None, False)
    inbox.put(_held(9, 2), bytes(30))
    assert _take_all(inbox) == [30]


def test_a_body_that_is_read_while_its_channel_is_lost_is_dropped() -> None:
    inbox, budget = _inbox()
    posted: list[Callable[[], None]] = []
    for tag in range(4):
        inbox.put(_held(tag, tag % 2), bytes(90))
    inbox._post = posted.append  # from here on answers wait
    while (held := inbox.head()) is not None:
        inbox.pop()
        inbox.release(held)
    inbox.load()
    inbox.drop(0)
    inbox.drop(1)
    for answer in posted:
        answer()
    assert (len(inbox), inbox.head(), any(budget.held.values())) == (0, None, False)
