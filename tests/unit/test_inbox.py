"""Bodies larger than any limit are taken one at a time, and never wait for ever."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from consumer.blocks import DeliveryId
from consumer.budget import Budget
from consumer.delivery import Delivery
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

    def get(self, done: Callable[[Any], None]) -> None:
        body = self.bodies.pop(0)
        done(SimpleNamespace(exception=lambda: None, result=lambda: body))


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


def _held(tag: int) -> Held:
    properties = SimpleNamespace(message_id=None)
    envelope = Envelope("a.zarr", "tiles.v1", None)
    return Held(Delivery(DeliveryId(1, tag), envelope, properties, 0), 0.0)


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
