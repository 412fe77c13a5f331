"""A flow whose storage answers as a test says, and what it does with its deliveries."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from consumer.arena import Arena
from consumer.blocks import ArrayKey, DeliveryId, StoredArray, Write
from consumer.delivery import Delivery
from consumer.errors import ConsumerError, ParkError
from consumer.flow import Flow
from consumer.handles import key_of
from consumer.journal import Begun
from consumer.message import Envelope, Outline, encode
from consumer.metrics import Metrics
from consumer.placement import Layout
from consumer.requests import Opened, Written
from consumer.scratch import Scratch
from consumer.settings import Settings

LIMIT = 4 << 20
KEY = ArrayKey("a.zarr", "x")


class FlowBench:
    """Broker and storage of a flow, of one array of two blocks, side by side, or of more alike.

    Attributes
    ----------
    opened
        What the next openings find: what the array is bound to, or an error. The last one stays.
    openings
        The run of each message that an array was opened for.
    in_the_way
        By array, what its openings end with.
    failing
        By block, store or array, what its writes end with.
    written
        The blocks that were written.
    holding
        Stores of which writes do not end by themselves.
    held_back
        What ends those writes.
    """

    root_writable = True

    def __init__(self, folder: Path, scratch: Scratch, side: int = 4, **settings: Any) -> None:
        self.layout = Layout("YX", (side, 2 * side), np.dtype("uint16"), (side, side), (side, side))
        self.now = 1000.0
        self.opened: list[dict[str, Any] | ConsumerError] = [{}]
        self.openings: list[str | None] = []
        self.in_the_way: dict[str, ConsumerError] = {}
        self.failing: dict[tuple[int, ...] | str, ConsumerError] = {}
        self.written: list[tuple[int, ...]] = []
        self.holding: set[str] = set()
        self.held_back: list[Callable[[], None]] = []
        self.posted: list[Callable[[], None]] = []
        self.requeued: list[DeliveryId] = []
        self.acknowledged: list[DeliveryId] = []
        self.parked: list[str] = []
        self.given_up: list[str] = []
        self._metrics = Metrics()
        broker: Any = SimpleNamespace(
            acknowledge=self._acknowledge,
            requeue=self.requeued.append,
            park=self._park,
            reset=self._reset,
        )
        storage: Any = self
        self.flow = Flow(
            Settings(
                output_root=folder,
                memory_budget_bytes=LIMIT,
                max_message_bytes=1 << 16,
                **settings,
            ),
            broker,
            storage,
            Arena(4 * LIMIT),
            scratch,
            self._metrics,
            post=self.posted.append,
            stop=lambda error: self.parked.append(str(error)),
            clock=lambda: self.now,
        )

    def deliver(
        self, tag: int, tile: dict[str, Any], *, channel: int = 1, count: int = 0, **said: Any
    ) -> None:
        """Deliver a tile that was delivered so often before, and do all that follows."""
        fields = {"store": KEY.store, "array": KEY.path, "axes": "YX", "shape": self.layout.shape}
        message = encode(fields | {"dtype": "uint16", "tiles": [tile | {"fill": 1}]} | said, [])
        as_sent = message.properties
        envelope = Envelope(message.routing_key, as_sent["type"], as_sent["content_type"])
        properties = SimpleNamespace(message_id=None, app_id=None)
        delivery = Delivery(DeliveryId(channel, tag), envelope, properties, count)
        self.flow.deliver(delivery, message.body)
        self.turn()

    def tick(self, seconds: float) -> None:
        """Let time pass, and do all that follows."""
        self.now += seconds
        self.flow.tick()
        self.turn()

    def turn(self) -> None:
        """Run what is posted, and what comes of it."""
        while self.posted:
            self.posted.pop(0)()

    def value(self, metric: str) -> float:
        """Return what a metric says."""
        found = self._metrics.registry.get_sample_value(metric)
        assert found is not None
        return found

    # -- the broker -----------------------------------------------------------------------------

    def _acknowledge(self, identity: DeliveryId) -> bool:
        self.acknowledged.append(identity)
        return True

    def _park(
        self, _delivery: Delivery, _body: bytes, error: ParkError, done: Callable[[bool], None]
    ) -> None:
        self.parked.append(error.reason)
        self.posted.append(lambda: done(True))

    def _reset(self, _channel: int, reason: str, **_hold: object) -> None:
        self.given_up.append(reason)

    # -- the storage ----------------------------------------------------------------------------

    def open(self, outline: Outline, _most: int, done: Callable[..., None], **_as: object) -> None:
        key = key_of(outline)
        self.openings.append(outline.entry.run)
        found: dict[str, Any] | ConsumerError
        if key.path in self.in_the_way:
            found = self.in_the_way[key.path]
        else:
            found = self.opened.pop(0) if len(self.opened) > 1 else self.opened[0]
        if isinstance(found, ConsumerError):
            self.posted.append(lambda: done(None, found))
            return
        opened = Opened(StoredArray(key, self.layout), taken=None, partly={}, **found)
        self.posted.append(lambda: done(opened, None))

    def write(self, write: Write, done: Callable[..., None], **_bound: object) -> None:
        block, array = write.key.block, write.key.array

        def end() -> None:
            errors = (self.failing.get(each) for each in (block, array.store, array.path))
            error = next(filter(None, errors), None)
            if error is None:
                self.written.append(block)
            done(None if error else Written(1, 1, 0.0), error)

        (self.held_back if array.store in self.holding else self.posted).append(end)

    def begin_lone(self, fingerprints: Sequence[str], done: Callable[..., None]) -> None:
        begun = Begun(len(fingerprints), "entry", cut=False)
        self.posted.append(lambda: done(begun, None))

    def end_lone(self, _entry: str, _settled: Sequence[str]) -> None:
        """Forget nothing."""

    def remark(self, _array: ArrayKey, done: Callable[..., None], **_what: object) -> None:
        self.posted.append(lambda: done(None, None))

    def close_array(self, _array: ArrayKey) -> None:
        """Let go of nothing."""
