"""The open blocks: for each its buffer, its coverage, and the deliveries that filled it.

Sans-I/O: tiles, results and the time go in; block writes and settled deliveries come out. One
thread calls it. What is read, encoded or committed, and when the broker hears of it, is the
flow's.

At most one write is under way for a block. Tiles that come meanwhile go to a new buffer over it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from typing import Any

import numpy.typing as npt

from consumer.arena import Arena
from consumer.blocks import ArrayKey, Block, BlockKey, DeliveryId, Reason, Write
from consumer.budget import ENCODING_FACTOR, Budget
from consumer.buffers import Buffers
from consumer.coverage import Box, Coverage
from consumer.message import Tile
from consumer.pace import Paces
from consumer.placed import Placed, PlacedDelivery
from consumer.placement import BlockIndex, Layout
from consumer.stored import Stored


class Assembler:
    """Puts tiles into blocks, and says which block to write next and which delivery is settled.

    Parameters
    ----------
    budget : Budget
        Counts buffers (`blocks`), buffers kept for a later merge (`cached`) or another block
        (`spare`), what writes hold beside their buffer (`encoding`) and what is known of stored
        blocks (`coverage`).
    arena : Arena
        Where buffers lie.
    idle_s, max_age_s : float
        When an array counts as idle, and how old a delivery may grow, in seconds.
    """

    def __init__(self, budget: Budget, arena: Arena, *, idle_s: float, max_age_s: float) -> None:
        self._budget = budget
        self._blocks: dict[BlockKey, Block] = {}
        self._open: dict[ArrayKey, dict[BlockKey, None]] = {}
        self._complete: dict[BlockKey, None] = {}
        self._placed = Placed(max_age_s)
        self._stored = Stored(budget)
        self._buffers = Buffers(budget, arena)
        self._paces = Paces(idle_s)
        self._sizes: Counter[int] = Counter()
        self._writing = 0

    @property
    def open_blocks(self) -> int:
        """Blocks that hold tiles which are not durable."""
        return len(self._blocks)

    @property
    def writing(self) -> int:
        """Writes under way."""
        return self._writing

    @property
    def stores(self) -> set[str]:
        """Stores that have such blocks."""
        return {array.store for array in self._open}

    def deliveries(self) -> Iterator[DeliveryId]:
        """Iterate over the deliveries held, of each channel the oldest first."""
        return iter(self._placed)

    def uses(self, array: ArrayKey) -> bool:
        """Whether a block or delivery of the array is held."""
        return array in self._open or self.holds(array)

    def holds(self, array: ArrayKey) -> bool:
        """Whether a delivery of the array is held: not where only a write is left to return."""
        return self._placed.has(array)

    def channels(self, store: str) -> list[int]:
        """Return the channels of which deliveries to a store are held."""
        return self._placed.channels(store)

    def stores_of(self, channel: int) -> set[str]:
        """Return the stores to which deliveries of a channel are held."""
        return self._placed.stores(channel)

    def release_spare(self) -> None:
        """Give back the memory of buffers that nobody uses."""
        while self._buffers.evict():
            pass

    # -- tiles in -------------------------------------------------------------------------------

    def add(
        self,
        delivery: DeliveryId,
        array: ArrayKey,
        layout: Layout,
        tiles: Iterable[Tile],
        *,
        since: float,
        now: float,
    ) -> bool:
        """Place a delivery's tiles; return whether all of them found room.

        Where not, `resume` goes on later; the tiles' values must live until it returns True.

        Parameters
        ----------
        since : float
            When the delivery was received: it ages from there.
        """
        grid = layout.grid
        pieces = ((tile, piece) for tile in tiles for piece in grid.pieces(tile.box))
        self._placed[delivery] = PlacedDelivery(since, array, layout, pieces, next(pieces, None))
        self._paces.note(array, now)
        return self.resume(delivery)

    def resume(self, delivery: DeliveryId) -> bool:
        """Place what found no room yet; return whether nothing is left."""
        held = self._placed[delivery]
        while held.pending:
            tile, piece = held.pending
            block = self._with_buffer(held, piece.block)
            if block is None:
                return False
            # Noted first, so that no block is left over where memory runs out.
            held.blocks[block.key] = None
            block.put(tile, piece, delivery)
            held.pending = next(held.pieces, None)
            self._note_complete(block)
        return True

    def _with_buffer(self, delivery: PlacedDelivery, index: BlockIndex) -> Block | None:
        key = BlockKey(delivery.array, index)
        block = self._blocks.get(key)
        if block is not None and block.buffer is not None:
            return block
        box = delivery.layout.grid.box(index)
        if block is not None and not block.fits(box, delivery.layout.dtype):
            return None  # until the write of the array that was there before is back
        voxels = box.volume
        nbytes = voxels * delivery.layout.dtype.itemsize
        cached = self._stored.take(key)
        if not self._room_for(nbytes):
            return None
        buffer = cached if cached is not None else self._new_buffer(box, delivery.layout)
        if buffer is None:
            return None
        if block is None:
            block = self._blocks[key] = Block(key, box, nbytes, voxels)
            self._open.setdefault(key.array, {})[key] = None
            self._sizes[nbytes] += 1
        block.whole_base = cached is not None
        block.buffer = buffer
        self._budget.take("blocks", nbytes)
        return block

    def _new_buffer(self, box: Box, layout: Layout) -> npt.NDArray[Any] | None:
        buffer = self._buffers.take(box.shape, layout.dtype)
        while buffer is None and (self._buffers.evict() or self._stored.evict()):
            buffer = self._buffers.take(box.shape, layout.dtype)
        return buffer

    def _room_for(self, nbytes: int) -> bool:
        """Make room for a buffer, beside what writing the largest block will take."""
        largest = max((*self._sizes, nbytes))
        reserve = max(0, ENCODING_FACTOR * largest - self._budget.held["encoding"])
        while self._budget.free_for_blocks < nbytes + reserve:
            if not (self._buffers.evict() or self._stored.evict()):
                return False
        return True

    def _note_complete(self, block: Block) -> None:
        if self._is_complete(block):
            self._complete[block.key] = None

    def _is_complete(self, block: Block) -> bool:
        if block.filled.voxels == block.voxels:
            return True
        # A tile of a block that is durable already does not have it rewritten at once.
        return self._stored.completes(block.key, block.box, block.filled)

    # -- writes out -----------------------------------------------------------------------------

    def next_write(
        self,
        now: float,
        *,
        pressure: bool | Container[int] = False,
        drain: bool = False,
        idle: bool = True,
        paused: Callable[[ArrayKey], bool] = lambda _array: False,
    ) -> Write | None:
        """Return the block to write next, or None; the caller starts the write.

        Complete blocks first. Then, for age, pressure and drain, those of the oldest delivery
        until it can be settled, then the next: so pressure always frees something.

        Parameters
        ----------
        pressure : bool or set of int
            Whether the deliveries of all channels, or of which, are to be settled.
        idle : bool
            Whether to look for idle arrays too: all that are open.
        paused : callable
            Whether an array must be left alone for now.
        """
        for key, reason in self._due(now, pressure, drain, idle):
            if self._ready(self._blocks[key], paused):
                return self._write(self._blocks[key], reason)
        return None

    def _write(self, block: Block, reason: Reason) -> Write | None:
        encoding = ENCODING_FACTOR * block.nbytes
        while self._budget.free_for_blocks < encoding and self._buffers.evict():
            pass
        if self._writing and self._budget.free_for_blocks < encoding:
            return None
        self._complete.pop(block.key, None)
        return self._start(block, reason, encoding)

    def _start(self, block: Block, reason: Reason, encoding: int) -> Write:
        assert block.buffer is not None
        merge = not block.whole_base and block.filled.voxels < block.voxels
        block.write = Write(
            block.key,
            block.box,
            block.buffer,
            block.filled,
            merge,
            reason,
            block.deliveries,
            block.tiles,
        )
        block.buffer, block.filled, block.deliveries = None, Coverage(), set()
        block.tiles = 0
        self._budget.take("encoding", encoding)
        self._writing += 1
        return block.write

    def _due(
        self, now: float, pressure: bool | Container[int], drain: bool, idle: bool
    ) -> Iterator[tuple[BlockKey, Reason]]:
        yield from ((key, Reason.COMPLETE) for key in self._complete)
        yield from self._placed.due(now, pressure, drain)
        for array in self._open if idle else ():
            if self._paces.is_idle(array, now):
                yield from ((key, Reason.IDLE) for key in self._open[array])

    def _ready(self, block: Block, paused: Callable[[ArrayKey], bool]) -> bool:
        return block.buffer is not None and block.write is None and not paused(block.key.array)

    # -- results in -----------------------------------------------------------------------------

    def wrote(self, write: Write) -> list[DeliveryId]:
        """Take note that a write is durable; return the deliveries that it settled."""
        block = self._returned(write)
        current = write.current
        whole = current and self._stored.note(write.key, write.box, write.filled)
        unused = write.buffer
        if block.buffer is None:
            self._drop(block)
            # More tiles of it may come, and go over what is stored.
            if current and not whole and self._room_for(block.nbytes):
                self._stored.keep(block.key, write.buffer)
                return self._settle(block, write.deliveries)
        else:
            self._budget.give("blocks", block.nbytes)
            if current:
                unused = block.buffer
                block.lay_over(write.buffer, Coverage())
                block.whole_base = True
                self._note_complete(block)
        self._buffers.give(unused)
        return self._settle(block, write.deliveries)

    def failed(self, write: Write) -> None:
        """Take back the buffer of a write that failed; nothing of it counts as stored."""
        block = self._returned(write)
        if not write.deliveries:
            # Lost meanwhile: what they filled comes again, perhaps to another array of that name.
            if block.buffer is None:
                self._drop(block)
            else:
                self._budget.give("blocks", block.nbytes)
            return
        # What was read in an earlier tenure may have been written over by another owner.
        covered = write.merge or write.filled.voxels == block.voxels
        base = not covered and write.current
        if block.buffer is not None:
            block.lay_over(write.buffer, write.filled)
            self._budget.give("blocks", block.nbytes)
        else:
            block.buffer, block.filled = write.buffer, write.filled
        block.whole_base = base
        block.deliveries |= write.deliveries
        block.tiles += write.tiles
        self._note_complete(block)

    def condemn(self, write: Write) -> list[DeliveryId]:
        """Give up a block that can never be written; return its deliveries, forgotten."""
        block = self._returned(write)
        concerned = sorted(write.deliveries | block.deliveries)
        if block.buffer is None:
            self._drop(block)
        else:
            self._budget.give("blocks", block.nbytes)
        self.forget(concerned)
        return concerned

    def forget(self, deliveries: Collection[DeliveryId]) -> None:
        """Drop deliveries that will come again, and the blocks that only they filled."""
        for identity in deliveries:
            delivery = self._placed.pop(identity)
            for key in delivery.blocks if delivery else ():
                block = self._blocks.get(key)
                if block is not None:
                    self._forget_in(block, identity)

    def lose(self, channel: int, stores: Container[str]) -> None:
        """Drop a channel's deliveries, and all that was read of stores: others may write them."""
        self.forget(self._placed.of_channel(channel))
        for block in self._blocks.values():
            if block.key.array.store in stores:
                block.forget_base()
        for array in [array for array in self._stored.arrays() if array.store in stores]:
            self._stored.forget(array)

    def learn(self, array: ArrayKey, partly: Mapping[BlockIndex, Iterable[Box]]) -> None:
        """Take over which boxes of which blocks are durable, relative to them, as the ledger says.

        A block that they and its buffer make whole together is written at once.
        """
        self._stored.seed(array, partly)
        for key in self._open.get(array, ()):
            self._note_complete(self._blocks[key])

    def finish(self, array: ArrayKey) -> None:
        """Have an array's blocks written as if it were idle."""
        self._paces.end(array)

    def forget_stored(self, array: ArrayKey) -> None:
        """Drop what is known of an array's stored blocks: its handle was closed or it is gone."""
        self._stored.forget(array)
        for key in self._open.get(array, ()):
            self._blocks[key].forget_base()
        if not self.uses(array):
            self._paces.forget(array)

    def _returned(self, write: Write) -> Block:
        block = self._blocks[write.key]
        assert block.write is write
        block.write = None
        self._writing -= 1
        self._budget.give("encoding", ENCODING_FACTOR * block.nbytes)
        return block

    def _settle(self, block: Block, deliveries: Iterable[DeliveryId]) -> list[DeliveryId]:
        settled = []
        for identity in deliveries:
            delivery = self._placed[identity]
            if identity not in block.deliveries:
                delivery.blocks.pop(block.key, None)
            if not delivery.blocks and not delivery.pending:
                self._placed.pop(identity)
                settled.append(identity)
        return settled

    def _forget_in(self, block: Block, identity: DeliveryId) -> None:
        block.deliveries.discard(identity)
        if block.write is not None:
            block.write.deliveries.discard(identity)
        if block.deliveries or block.buffer is None:
            return
        self._complete.pop(block.key, None)
        if block.write is None:
            self._drop(block)
        else:
            block.buffer, block.filled = None, Coverage()
            self._budget.give("blocks", block.nbytes)

    def _drop(self, block: Block) -> None:
        del self._blocks[block.key]
        of_array = self._open[block.key.array]
        del of_array[block.key]
        if not of_array:
            del self._open[block.key.array]
        self._complete.pop(block.key, None)
        self._budget.give("blocks", block.nbytes)
        self._sizes[block.nbytes] -= 1
        if not self._sizes[block.nbytes]:
            del self._sizes[block.nbytes]
