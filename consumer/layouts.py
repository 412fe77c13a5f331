"""Layouts of stored arrays: what their metadata tells, and whether there is memory for a block."""

import math

import numpy as np

from consumer.blocks import shown
from consumer.budget import least_limit
from consumer.contract import AXES
from consumer.encoder import AnyArray
from consumer.errors import ArrayMismatch, TooLarge
from consumer.placement import Layout


def stored_layout(where: str, array: AnyArray) -> Layout:
    """Return the layout of a stored array.

    Raises
    ------
    ArrayMismatch
        Where tiles cannot be stored in an array of that kind.
    """
    try:
        chunks, shards, dtype = array.chunks, array.shards, np.dtype(array.dtype)
    except (NotImplementedError, TypeError) as error:
        raise ArrayMismatch(f"{where}: a regular chunk grid is wanted ({error})") from error
    if dtype.kind not in "biuf":
        raise ArrayMismatch(f"{where}: the stored dtype {dtype} is not one that tiles can have")
    if 0 in array.shape:
        raise ArrayMismatch(f"{where}: there is no room for a tile in shape {list(array.shape)}")
    return Layout(_stored_axes(array), tuple(array.shape), dtype.newbyteorder("="), chunks, shards)


def _stored_axes(array: AnyArray) -> str:
    """Return the axes by the dimensions' names; nothing where the array does not tell."""
    names = getattr(array.metadata, "dimension_names", None) or ()
    letters = "".join(str(name).upper() for name in names)
    return letters if len(letters) == len(array.shape) and set(letters) <= set(AXES) else ""


def check_block(where: str, layout: Layout, max_block_bytes: int) -> None:
    """Raise TooLarge where one block is larger than what fits the memory budget."""
    block = layout.grid.block
    size = math.prod(block) * layout.dtype.itemsize
    if size > max_block_bytes:
        kind = "shard" if layout.shards else "chunk"
        raise TooLarge(
            f"{where}: a {kind} of {shown(block)} has {size} bytes, over the "
            f"{max_block_bytes} that fit the memory budget; choose smaller ones or raise "
            f"TILES_MEMORY_BUDGET_BYTES to at least {least_limit(size)}"
        )
