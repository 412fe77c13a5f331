"""A model of the disk: the epochs of each store, and the voxels and ledger of each array.

Every step is atomic, and others may come between any two. Taking and letting go follow
`consumer.commit` step by step. It checks what must hold at every moment: after an epoch is over
nothing of it appears, and the ledger claims only what is durable.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Any, TypeVar
from unittest.mock import patch
from zlib import crc32

import numpy as np
import numpy.typing as npt
from plan import PLACE_BITS, Letter, Plan, places
from violation import Violation

from consumer import ledger
from consumer.blocks import ArrayKey
from consumer.commit import _order
from consumer.coverage import Box
from consumer.errors import Fenced
from consumer.ledger import Ledger
from consumer.ledger_format import (
    HEADER_NAME,
    SEGMENT_BLOCKS,
    WHOLE,
    Header,
    Segment,
    boxes_of,
    decode_header,
    decode_segment,
    segment_name,
    segment_number,
)
from consumer.placement import Grid, Layout
from consumer.runs import Numbering

UNTOUCHED = 0xFFFFFFFF
LEDGER_AHEAD = "the ledger is ahead of the data"

Result = TypeVar("Result")
# Work that others come between: at each yield.
Steps = Generator[None, None, Result]


@dataclass(eq=False, slots=True)
class ModelArray:
    """An array of the model store. Of each voxel, by place:

    Attributes
    ----------
    wanted : ndarray
        By tile and place: what the tile puts there, or 0. The first and the last row say what was
        there before; in the last, 0 where a tile that was published goes.
    written : ndarray
        When a tile was last written there, as the store counts moments.
    claimed : ndarray
        Whether the stored ledger says that it is filled.
    acknowledged : ndarray
        Whether a tile that goes there was acknowledged.
    files : dict
        The ledger's files: their bytes, or what they say.
    announced : int
        How often it was announced that the array is complete.
    """

    key: ArrayKey
    layout: Layout
    stored: npt.NDArray[np.uint32]
    wanted: npt.NDArray[np.uint32]
    written: npt.NDArray[np.int64]
    claimed: npt.NDArray[np.bool_]
    acknowledged: npt.NDArray[np.bool_]
    files: dict[str, Any] = field(default_factory=dict)
    segments: dict[int, Segment] = field(default_factory=dict)
    announced: int = 0

    def publish(self, letter: Letter) -> None:
        """Take note of what a message's tiles put where."""
        self.wanted[letter.values >> PLACE_BITS, letter.places] = letter.values
        self.wanted[-1, letter.places] = 0

    def wrong(self, at: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Return the places that hold neither what a tile put there nor, rightly, what they did."""
        found = self.stored.reshape(-1)[at]
        tile = np.minimum(found >> PLACE_BITS, len(self.wanted) - 1)
        differs: npt.NDArray[np.bool_] = self.wanted[tile, at] != found
        return at[differs]

    def is_durable(self) -> bool:
        """Whether a tile was written to every voxel."""
        return not (self.stored == UNTOUCHED).any()

    def acknowledge(self, letter: Letter, since: int) -> None:
        """Take note that a message is acknowledged that was delivered at a moment."""
        at, what = letter.places, f"message {letter.number}"
        if self.wrong(at).size:
            raise Violation("acknowledged but not durable", what)
        if np.count_nonzero(self.written.reshape(-1)[at] < since):
            raise Violation("acknowledged but not written", what)
        if np.count_nonzero(self.claimed.reshape(-1)[at]) < at.size:
            raise Violation("acknowledged before the ledger says so", what)
        self.acknowledged[at] = True
        if not self.announced and np.count_nonzero(self.acknowledged) == self.acknowledged.size:
            raise Violation("acknowledged before it is announced", what)

    def put(self, box: Box, values: npt.NDArray[np.uint32]) -> None:
        """Replace files."""
        at = box.slices
        self.stored[at] = values
        if np.count_nonzero(self.claimed[at] & (values == UNTOUCHED)):
            raise Violation(LEDGER_AHEAD, f"{self.key.path}: a claimed voxel is written over")

    def put_ledger(self, name: str, content: Any) -> None:
        """Replace a file of the ledger."""
        self.files[name] = content
        number = segment_number(name)
        if number is None:
            return
        before = self.segments.get(number) or Segment()
        after = self.segments[number] = self._segment(number)
        numbering = _numbering(self.layout.grid)
        bits = after.whole ^ before.whole
        changed = {block for block in range(bits.bit_length()) if bits >> block & 1}
        changed |= {x for x, _ in after.partly.items() ^ before.partly.items()}
        for block in changed:
            self._claim(numbering.box(number * SEGMENT_BLOCKS + block), after.get(block))

    def load_ledger(self, fresh: Header) -> Ledger:
        """Return the ledger as stored; where there is none, one that says nothing."""
        if HEADER_NAME not in self.files:
            return Ledger(self.key.path, fresh)
        segments = {
            number: self._segment(number)
            for name in self.files
            if (number := segment_number(name)) is not None
        }
        return Ledger(self.key.path, self._header(), segments, stored=True)

    def check_ledger(self) -> None:
        """Check that the ledger says in the end what was published, and only that."""
        published = self.wanted[-1].reshape(self.layout.shape) == 0
        if (self.claimed != published).any():
            raise Violation("the ledger is wrong", self.key.path)
        loaded = self.load_ledger(Header.of(self.layout, "", "", ""))
        if loaded.complete != published.all() or loaded.filled_voxels != published.sum():
            raise Violation("the ledger is wrong", f"{self.key.path}: {loaded.percent} percent")
        if loaded.complete and not self.announced:
            raise Violation("never announced", self.key.path)

    def _claim(self, block: Box, known: bytes) -> None:
        at = block.slices
        claimed = self.claimed[at]
        claimed[...] = known == WHOLE
        for box in _boxes_known(known) if known != WHOLE else ():
            claimed[box.slices] = True
        if np.count_nonzero(claimed & (self.stored[at] == UNTOUCHED)):
            raise Violation(LEDGER_AHEAD, f"{self.key.path}: block at {block.start}")

    def _header(self) -> Header:
        content = self.files[HEADER_NAME]
        return content if isinstance(content, Header) else decode_header(content)

    def _segment(self, number: int) -> Segment:
        content = self.files[segment_name(number)]
        if isinstance(content, Segment):
            return Segment(content.whole, dict(content.partly))
        segment = decode_segment(content, number, self._header().ledger)
        return segment or Segment()


class ModelStore:
    """A store: its epochs' folders, by name, and whose each of them is."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.live: dict[str, int] = {}
        self.fenced: set[str] = set()
        self._identities = count(1)

    def take(self) -> Steps["Epoch"]:
        """Take the store.

        Raises
        ------
        Fenced
            Where another takes it at the same time.
        """
        number = max((_order(name)[0] for name in self.live), default=0) + 1
        yield
        own = self._make(number)
        try:
            while lower := (yield from self._lower(own)):
                for name in lower:
                    yield from self.remove(name)
        except Exception:
            yield from self.remove(own.epoch)
            raise
        return own

    def name(self, number: int, identity: int) -> str:
        """Return the name of an epoch: one that never comes again."""
        return f"{number}-{crc32(b'%d' % identity):08x}"

    def remove(self, name: str) -> Steps[None]:
        """Rename an epoch's folder away, and remove it."""
        if self.live.pop(name, None) is not None:
            self.fenced.add(name)
            yield
        self.fenced.discard(name)
        yield

    def _make(self, number: int) -> "Epoch":
        identity = next(self._identities)
        while (name := self.name(number, identity)) in self.live:
            number += 1
        self.live[name] = identity
        return Epoch(self, name, identity)

    def _lower(self, own: "Epoch") -> Steps[list[str]]:
        """Return which folders are to be removed."""
        yield
        live = list(self.live)
        yield
        fenced = list(self.fenced)
        if own.epoch not in live or max(live, key=_order) != own.epoch:
            raise Fenced(f"{self.key}: another consumer takes it at the same time")
        return [name for name in live if name != own.epoch] + fenced


@dataclass(eq=False, slots=True)
class Epoch:
    """One tenure of a store; in the place of `consumer.commit.Commit`.

    Attributes
    ----------
    epoch : str
        The name of its folder.
    identity : int
        Its own, whatever the name.
    lost_channel : int or None
        The owner's channel, where the broker had lost it before.
    """

    store: ModelStore
    epoch: str
    identity: int
    lost_channel: int | None = None

    def check(self) -> None:
        """Raise Fenced where the epoch is over."""
        if self.epoch not in self.store.live:
            raise Fenced(f"{self.store.key}: the epoch {self.epoch} is over")

    def rename(self) -> None:
        """Check what is about to be renamed out of the epoch's folder."""
        self.check()
        if self.store.live[self.epoch] != self.identity:
            raise Violation("written after the fence", f"{self.store.key}: epoch {self.epoch}")

    def release(self) -> Steps[None]:
        """End the epoch."""
        yield from self.store.remove(self.epoch)


@lru_cache(maxsize=8)
def _numbering(grid: Grid) -> Numbering:
    return Numbering(grid)


def model_arrays(plan: Plan) -> Iterator[ModelArray]:
    """Yield a plan's arrays, with nothing written."""
    tiles = max(tile.number for letter in plan.letters for tile in letter.tiles)
    for planned in plan.arrays:
        shape = planned.layout.shape
        size = places(shape).size
        wanted = np.zeros((tiles + 2, size), np.uint32)
        wanted[0] = wanted[-1] = UNTOUCHED
        yield ModelArray(
            planned.key,
            planned.layout,
            np.full(shape, UNTOUCHED, np.uint32),
            wanted,
            np.zeros(shape, np.int64),
            np.zeros(shape, np.bool_),
            np.zeros(size, np.bool_),
        )


@contextmanager
def ledgers_as_objects(short: bool) -> Iterator[None]:
    """Have ledgers' files, and what is known of a block, be objects that nobody has to parse."""
    with ExitStack() as patches:
        for name, object_of in _OBJECTS.items() if short else ():
            patches.enter_context(patch.object(ledger, name, object_of))
        yield


def _boxes_known(known: bytes | tuple[Box, ...]) -> Iterable[Box]:
    """Return the boxes that are filled of a block, known as text or as they are."""
    if isinstance(known, tuple):
        return known
    return boxes_of(known) if known else ()


_OBJECTS: dict[str, Callable[..., Any]] = {
    "encode_header": lambda header: header,
    "encode_segment": lambda segment, *_: Segment(segment.whole, dict(segment.partly)),
    "text_of": tuple,
    "boxes_of": _boxes_known,
}
