"""A model broker and a model store around the real flow, driven by a seed.

Everything that a process does by itself (inbox, placement, coverage, assembler, handles, flow) is
the product's; the broker, the worker threads, the disk and the clock are models that a random
history drives step by step. The model checks the invariants as it goes.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ByteSize

from consumer.blocks import ArrayKey, DeliveryId, Write
from consumer.broker import Delivery
from consumer.coverage import Box
from consumer.encoder import touched_files
from consumer.errors import ParkError, StopError, StorageFault
from consumer.flow import Flow
from consumer.message import Encoded, Envelope, Message, decode, encode
from consumer.metrics import Metrics
from consumer.placement import Layout
from consumer.scratch import Stored
from consumer.settings import Settings
from consumer.storage import Written

UNTOUCHED = np.uint32(0xFFFFFFFF)
_POSITION_BITS = 13
_POSITION_MASK = (1 << _POSITION_BITS) - 1


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(eq=False)
class ModelArray:
    """An array of the model store."""

    key: ArrayKey
    layout: Layout
    stored: npt.NDArray[Any]

    @property
    def store(self) -> Any:
        """What the flow's handles ask of an open array's store."""
        return SimpleNamespace(key=self.key.store)

    def check(self, entry: Any) -> None:
        """Check as the product does."""
        assert tuple(entry.shape) == self.layout.shape


@dataclass(eq=False)
class Published:
    """A message, and how the broker sees it."""

    number: int
    encoded: Encoded
    message: Message
    key: ArrayKey
    count: int = 0


@dataclass
class Job:
    """Work in a model worker."""

    finish: Callable[[bool], None]


@dataclass
class World:
    """One history: `run` it, then it has either ended well or raised a Violation.

    Attributes
    ----------
    tiles, faults : int
        Tiles published (without duplicates), and crashes, channel losses and failed writes.
    sabotage : callable
        Called with each new flow, to break it on purpose.
    """

    seed: int
    tiles: int = 60
    faults: int = 5
    sabotage: Callable[[Flow], None] = lambda _flow: None
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.now = 1000.0
        self.arrays = [_array(self.random, number) for number in range(3)]
        self.unsent = self._messages()
        self.queue: deque[Published] = deque()
        self.unacked: dict[DeliveryId, Published] = {}
        self.acked: set[int] = set()
        self.parked: list[int] = []
        self.jobs: list[Job] = []
        self.posted: deque[Callable[[], None]] = deque()
        self.channel = 0
        self.prefetch = self.random.choice([4, 10, 30])
        self.settings = Settings.model_construct(
            output_root=Path("/nowhere"),
            memory_budget_bytes=ByteSize(self._budget()),
            prefetch_count=self.prefetch,
            idle_s=5.0,
            max_age_s=60.0,
            consumer_timeout_s=1800.0,
            max_message_bytes=ByteSize(self._largest_body()),
            max_open_arrays=self.random.choice([1, 3]),
            workers=self.random.choice([1, 2, 3]),
            retry_max_s=5.0,
        )
        self.incarnation = 0
        self.flow = self._new_flow()

    # -- the history ----------------------------------------------------------------------------

    def run(self) -> None:
        """Run the history to its end."""
        steps = 0
        while self.unsent or self.faults or self.queue or self.unacked or self.jobs:
            steps += 1
            if steps > 40_000:
                raise Violation(f"stuck: {len(self.queue)} queued, {len(self.unacked)} unacked")
            self._step()
            self._check_budget()
        self._check_end()

    def _step(self) -> None:
        choices: list[tuple[float, Callable[[], None]]] = [(1.0, self._tick)]
        if self.unsent:
            choices.append((4.0, self._publish))
        if self.queue and len(self.unacked) < self.prefetch:
            choices.append((6.0, self._deliver))
        if self.jobs:
            choices.append((3.0, self._finish_job))
        if self.faults:
            choices.append((0.3, self._fault))
        weights = [weight for weight, _ in choices]
        self.random.choices([step for _, step in choices], weights)[0]()
        while self.posted:
            self.posted.popleft()()

    def _publish(self) -> None:
        self.queue.append(self.unsent.pop())

    def _deliver(self) -> None:
        published = self.queue.popleft()
        identity = DeliveryId(self.channel, self.random.getrandbits(60))
        self.unacked[identity] = published
        self.log.append(f"deliver {published.number} of {published.key}")
        envelope = Envelope(
            published.encoded.routing_key, "tiles.v1", published.encoded.properties["content_type"]
        )
        properties = SimpleNamespace(message_id=None, app_id=None)
        delivery = Delivery(identity, envelope, properties, published.count)
        self.flow.deliver(delivery, published.encoded.body)

    def _finish_job(self) -> None:
        self.jobs.pop(self.random.randrange(len(self.jobs))).finish(True)

    def _tick(self) -> None:
        self.now += self.random.choice([0.1, 1.0, 10.0])
        self.flow.tick()

    def _fault(self) -> None:
        self.faults -= 1
        fault = self.random.choice([self._fail_job, self._lose_channel, self._crash])
        fault()

    def _fail_job(self) -> None:
        if self.jobs:
            self.log.append("a job fails")
            self.jobs.pop(self.random.randrange(len(self.jobs))).finish(False)

    def _lose_channel(self) -> None:
        self.log.append("channel lost")
        self._requeue_all()
        self.flow.channel_lost()

    def _crash(self) -> None:
        self.log.append("crash")
        # A write that had begun may still reach the disk, or not.
        for job in self.jobs:
            if self.random.random() < 0.5:
                job.finish(True)
        self.jobs.clear()
        self.posted.clear()
        self._requeue_all()
        self.flow = self._new_flow()

    def _requeue_all(self) -> None:
        for published in self.unacked.values():
            published.count += 1
        again = list(self.unacked.values())
        self.random.shuffle(again)
        self.queue.extendleft(again)
        self.unacked.clear()
        self.channel += 1

    # -- the broker, as the flow sees it --------------------------------------------------------

    def acknowledge(self, identity: DeliveryId) -> bool:
        """Acknowledge: the model checks that the message's tiles are durable."""
        published = self.unacked.pop(identity, None)
        if published is None:
            return False
        self.log.append(f"ack {published.number}")
        self._check_durable(published)
        self.acked.add(published.number)
        return True

    def requeue(self, identity: DeliveryId) -> None:
        """Deliver again."""
        self.queue.append(self.unacked.pop(identity))

    def park(
        self, delivery: Delivery, body: bytes, error: ParkError, done: Callable[[bool], None]
    ) -> None:
        """Park."""
        published = self.unacked.pop(delivery.id, None)
        if published is not None:
            assert body == published.encoded.body
            self.parked.append(published.number)
            raise Violation(f"a good message was parked: {error}")
        done(published is not None)

    def reset(self, reason: str, *, hold: Callable[[], bool]) -> None:
        """Give up the channel."""
        self.log.append(f"reset: {reason}")
        self._requeue_all()

    # -- the workers, as the flow sees them -----------------------------------------------------

    root_writable = True

    def open(self, store: Any, outline: Any, block: int, done: Callable[..., None]) -> None:
        """Open an array of the model store, later."""
        entry = outline.entry
        array = next(a for a in self.arrays if a.key == (entry.store, entry.array))
        self._job(lambda good: done(array, None) if good else done(None, StorageFault("open")))

    def write(self, array: Any, write: Write, done: Callable[..., None]) -> None:
        """Write a block of the model store, later; what is read for a merge is read now."""
        self.log.append(f"write {write.key.block} {write.reason} merge={write.merge}")
        whole = write.buffer
        if write.merge:
            whole = array.stored[write.box.slices].copy()
            for box in write.filled:
                whole[box.slices] = write.buffer[box.slices]

        def finish(good: bool) -> None:
            files = touched_files(array.layout.grid, write.box, write.filled)
            for box in files if good else files[: self.random.randrange(len(files) + 1)]:
                array.stored[box.slices] = whole[box.shifted(write.box.start).slices]
            if good:
                done(Written(whole, 0, 0, 0.0), None)
            else:
                done(None, StorageFault("no space"))

        self._job(finish)

    def release(self, _store: Any) -> None:
        """Nothing to let go of."""

    def _job(self, finish: Callable[[bool], None]) -> None:
        self.jobs.append(Job(finish))

    # -- the process ----------------------------------------------------------------------------

    def _new_flow(self) -> Flow:
        self.incarnation += 1
        incarnation = self.incarnation
        scratch = _ModelScratch()

        def post(callback: Callable[[], None]) -> None:
            if incarnation == self.incarnation:
                self.posted.append(callback)

        stop: Callable[[StopError], None] = _fail
        flow = Flow(
            self.settings,
            self,
            self,  # type: ignore[arg-type]  # the model is broker and workers in one
            scratch,  # type: ignore[arg-type]
            Metrics(),
            post=post,
            stop=stop,
            clock=lambda: self.now,
        )
        self.sabotage(flow)
        return flow

    # -- what must hold -------------------------------------------------------------------------

    def _check_budget(self) -> None:
        budget = self.flow.budget
        if min(budget.free_for_bodies, budget.free_for_blocks) < 0:
            raise Violation(f"invariant 5: {budget.held} pass the budget of {budget.limit}")

    def _check_durable(self, published: Published) -> None:
        array = next(a for a in self.arrays if a.key == published.key)
        for tile in published.message.tiles:
            if not self._allowed(array, tile.box).all():
                raise Violation(f"invariant 1: {published.number} acknowledged, not durable")

    def _check_end(self) -> None:
        for array in self.arrays:
            whole = Box.of_shape(array.layout.shape)
            if not self._allowed(array, whole).all():
                raise Violation(f"invariants 2 and 3: {array.key} is wrong")

    def _allowed(self, array: ModelArray, box: Box) -> npt.NDArray[np.bool_]:
        """Whether each voxel holds what one of its tiles put there, or was never to be touched."""
        owned = self.owned[array.key]
        values = array.stored[box.slices]
        positions = _positions(array.layout.shape)[box.slices]
        known = (values >> _POSITION_BITS <= self.tiles) & (values & _POSITION_MASK == positions)
        tile = np.where(known, values >> _POSITION_BITS, 0)
        covered: npt.NDArray[np.bool_] = np.any(owned, axis=0)
        untouched = ~covered[positions] & (values == UNTOUCHED)
        return np.asarray((known & owned[tile, positions]) | untouched, bool)

    def _budget(self) -> int:
        """Return a budget that holds the largest block and body, just so or with room."""
        block = max(np.prod(a.layout.grid.block) * a.layout.dtype.itemsize for a in self.arrays)
        least = max(int(block) * 16 // 3 + 16, self._largest_body() * 8)
        return int(least * self.random.choice([1.0, 1.5, 8.0]))

    def _largest_body(self) -> int:
        return max(len(message.encoded.body) for message in self.unsent)

    # -- the messages ---------------------------------------------------------------------------

    def _messages(self) -> list[Published]:
        # By tile number (0 is none) and position: whether the tile's crop covers the voxel.
        self.owned = {
            array.key: np.zeros((self.tiles + 1, array.stored.size), bool) for array in self.arrays
        }
        messages = [
            self._message(number, self.arrays[number % len(self.arrays)])
            for number in range(1, self.tiles + 1)
        ]
        again = self.random.sample(messages, len(messages) * 3 // 10)
        messages += [Published(m.number, m.encoded, m.message, m.key) for m in again]
        self.random.shuffle(messages)
        return messages

    def _message(self, number: int, array: ModelArray) -> Published:
        shape = array.layout.shape
        size = [self.random.randint(1, max(1, n * 2 // 3)) for n in shape]
        start = [self.random.randint(0, n - k) for n, k in zip(shape, size, strict=True)]
        box = Box(tuple(start), tuple(a + k for a, k in zip(start, size, strict=True)))
        values = (np.uint32(number) << _POSITION_BITS) | _positions(shape)[box.slices]
        self.owned[array.key][number, _positions(shape)[box.slices].ravel()] = True
        fields = {
            "store": array.key.store,
            "array": array.key.path,
            "axes": array.layout.axes,
            "shape": shape,
            "dtype": "uint32",
            "tiles": [{"stitch_coords": start}],
        }
        encoded = encode(fields, [values[np.newaxis].astype(np.uint32)])
        envelope = Envelope(encoded.routing_key, "tiles.v1", encoded.properties["content_type"])
        return Published(number, encoded, decode(envelope, encoded.body), array.key)


class _ModelScratch:
    """A scratch file that never fails; what is read comes back at once, posted."""

    def __init__(self) -> None:
        self._bodies: deque[bytes] = deque()

    def keeps_up(self, _window: int, _timeout: float) -> bool:
        return True

    def put(self, body: bytes, done: Callable[..., None]) -> Stored:
        self._bodies.append(body)
        done(None)
        return Stored(0, len(body))

    @property
    def next_size(self) -> int:
        return len(self._bodies[0])

    def get(self, done: Callable[[Any], None]) -> None:
        body = self._bodies.popleft()
        done(SimpleNamespace(exception=lambda: None, result=lambda: body))

    def clear(self) -> None:
        self._bodies.clear()


def _array(chance: random.Random, number: int) -> ModelArray:
    axes = chance.choice(["YX", "ZYX"])
    shape = tuple(chance.randint(5, 16) for _ in axes)
    chunks = tuple(chance.randint(2, 5) for _ in axes)
    shards = tuple(c * chance.randint(1, 2) for c in chunks) if chance.random() < 0.5 else None
    key = ArrayKey(f"s{number % 2}.zarr", f"a{number}")
    layout = Layout(axes, shape, np.dtype("uint32"), chunks, shards)
    return ModelArray(key, layout, np.full(shape, UNTOUCHED))


@cache
def _positions(shape: tuple[int, ...]) -> npt.NDArray[np.uint32]:
    return np.arange(int(np.prod(shape)), dtype=np.uint32).reshape(shape)


def _fail(error: StopError) -> None:
    raise Violation(f"stopped: {error}")
