"""What assembling is about: arrays, blocks, deliveries and writes, by name, and a block's buffers.

No I/O and no decisions: when a block is written is the assembler's.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumer.contract import ArrayEntry
from consumer.coverage import Box, Coverage
from consumer.errors import ArrayMismatch
from consumer.message import Tile
from consumer.placement import BlockIndex, Layout, Piece


class ArrayKey(NamedTuple):
    """An array: its store key and its path in the store."""

    store: str
    path: str


class BlockKey(NamedTuple):
    """A block of an array."""

    array: ArrayKey
    block: BlockIndex


class DeliveryId(NamedTuple):
    """A delivery: the channel's number, counted over reconnects, and the delivery tag on it."""

    channel: int
    tag: int


@dataclass(frozen=True)
class StoredArray:
    """An array as it is stored."""

    key: ArrayKey
    layout: Layout

    def check(self, entry: ArrayEntry) -> None:
        """Check what a message says of the array against what is stored.

        Raises
        ------
        ArrayMismatch
            With both values.
        """
        layout = self.layout
        said = {
            "axes": (entry.axes, layout.axes or entry.axes),
            "shape": (entry.shape, layout.shape),
            "dtype": (entry.dtype, layout.dtype_name),
            "chunks": (entry.chunks, layout.chunks),
            "shards": (None if entry.shards == "auto" else entry.shards, layout.shards),
        }
        for name, (given, stored) in said.items():
            if given is not None and given != stored:
                raise ArrayMismatch(
                    f"{self.key.store}/{self.key.path}: {name} {shown(given)} is not the stored "
                    f"{shown(stored)}"
                )


def shown(value: Any) -> str:
    """Return a value as messages write it."""
    return str(list(value)) if isinstance(value, tuple) else repr(value)


class Reason(StrEnum):
    """Why a block is written."""

    COMPLETE = "complete"
    IDLE = "idle"
    AGE = "age"
    PRESSURE = "pressure"
    DRAIN = "drain"


@dataclass(eq=False, slots=True)
class Write:
    """A block to be written.

    Attributes
    ----------
    box : Box
        The block's box in the array.
    buffer : ndarray
        Of the block's shape; nobody else touches it until the write has returned, and then it
        holds the whole block as stored.
    filled : Coverage
        The boxes to be written, relative to the block.
    merge : bool
        Whether what is stored must be read first, since the buffer alone does not cover the block.
    current : bool
        Whether what it read still counts: not once the store may have gone to another owner.
    tiles : int
        Tiles of which the first voxel lies in the boxes.
    """

    key: BlockKey
    box: Box
    buffer: npt.NDArray[Any]
    filled: Coverage
    merge: bool
    reason: Reason
    deliveries: set[DeliveryId]
    tiles: int = 0
    current: bool = True


@dataclass(eq=False, slots=True)
class Block:
    """A block that holds tiles which are not durable.

    Attributes
    ----------
    nbytes, voxels : int
        Of the whole block.
    buffer : ndarray or None
        What tiles are copied to; None while the only buffer is that of the write under way.
    whole_base : bool
        Whether the buffer also holds what is stored, so that nothing need be read to write it.
    filled : Coverage
        The boxes of the buffer that tiles filled, relative to the block.
    deliveries : set of DeliveryId
        Those whose tiles are in the buffer.
    tiles : int
        Tiles in the buffer of which the first voxel lies in this block.
    """

    key: BlockKey
    box: Box
    nbytes: int
    voxels: int
    buffer: npt.NDArray[Any] | None = None
    whole_base: bool = False
    filled: Coverage = field(default_factory=Coverage)
    deliveries: set[DeliveryId] = field(default_factory=set)
    tiles: int = 0
    write: Write | None = None

    def put(self, tile: Tile, piece: Piece, delivery: DeliveryId) -> None:
        """Copy the piece of a tile that falls into this block."""
        buffer, inside = self.buffer, piece.inside
        assert buffer is not None
        values: Any = tile.values
        if isinstance(values, np.ndarray):
            values = values[piece.source.slices]
        if getattr(values, "dtype", None) == buffer.dtype:
            buffer[inside.slices] = values
        else:
            # float64 beyond float32's range becomes infinite, as a cast does.
            with np.errstate(over="ignore"):
                buffer[inside.slices] = values
        self.filled.add(inside)
        self.tiles += not any(piece.source.start)
        self.deliveries.add(delivery)

    def fits(self, box: Box, dtype: np.dtype[Any]) -> bool:
        """Whether it is a block of that box and type: not where an array has changed meanwhile."""
        return self.box == box and (self.write is None or self.write.buffer.dtype == dtype)

    def forget_base(self) -> None:
        """Take what is stored as unknown: another may write it, or have removed it."""
        self.whole_base = False
        if self.write is not None:
            self.write.current = False

    def lay_over(self, below: npt.NDArray[Any], filled_below: Coverage) -> None:
        """Put the buffer's boxes onto an older buffer, which then is the block's."""
        assert self.buffer is not None
        for box in self.filled:
            below[box.slices] = self.buffer[box.slices]
            filled_below.add(box)
        self.buffer, self.filled = below, filled_below
