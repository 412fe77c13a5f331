"""A block's way to the disk: read and encoded on its own, then committed with others in a round.

Runs in worker threads. A round is of one tenure of a store: all that its blocks changed, then what
the ledgers of their arrays say now.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy.typing as npt

from consumer.arrays import OpenArray
from consumer.coverage import Box, Coverage
from consumer.encoder import Objects, size, touched_files
from consumer.ledger import Files, Ledger
from consumer.requests import Remark, WriteBlock, Written


@dataclass(frozen=True, eq=False, slots=True)
class WritableArray:
    """An open array and its ledger, which changes in a round only, one at a time.

    One that was opened anew is another, though it may have the same name.
    """

    open: OpenArray
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Encoded:
    """A block ready to be committed, or a remark, which has no objects.

    Attributes
    ----------
    nbytes : int
        Bytes of the voxels in its files.
    seconds : float
        What reading and encoding took.
    """

    array: WritableArray
    request: WriteBlock | Remark
    objects: Objects
    nbytes: int = 0
    seconds: float = 0.0


def encode(array: WritableArray, write: WriteBlock, buffer: npt.NDArray[Any]) -> Encoded:
    """Encode a block; what is stored is read only where the buffer has holes, and put there."""
    started = monotonic()
    if write.merge:
        with array.open.store.commit.judging():
            stored = array.open.read(write.box)
        for hole in Coverage(write.filled).missing(Box.of_shape(write.box.shape)):
            buffer[hole.slices] = stored[hole.slices]
    objects = array.open.encoder.encode(write.box, buffer, write.filled)
    files = touched_files(array.open.layout.grid, write.box, write.filled)
    nbytes = sum(math.prod(box.shape) for box in files) * buffer.itemsize
    return Encoded(array, write, objects, nbytes, monotonic() - started)


def commit(blocks: Sequence[Encoded]) -> list[Written]:
    """Commit blocks of one tenure, then what their arrays' ledgers say of them.

    The arrays must exist before, so that no folders are made for one that was removed, and after,
    so that nothing counts as written that went with it. What did not exist when it was opened is
    made first.

    Raises
    ------
    ConsumerError, OSError
        As the commit gave it; nothing of the round counts as written then.
    """
    started = monotonic()
    arrays = list(dict.fromkeys(block.array for block in blocks))
    paths = {array.open.key.path for array in arrays}
    owned = blocks[0].array.open.store.commit
    with owned.judging():
        for array in arrays:
            array.open.metadata.make()
            array.open.metadata.require()
    objects = {key: parts for block in blocks for key, parts in block.objects.items()}
    try:
        ledgers = _ledger_files(blocks, arrays)
        owned.commit(objects, ledgers, standing=paths)
        for array in arrays:
            array.open.metadata.require()
    except BaseException:
        for array in arrays:
            array.ledger.undo()
        raise
    for array in arrays:
        array.ledger.saved()
    seconds = monotonic() - started
    return [_written(block, block.seconds + seconds) for block in blocks]


def unannounced(ledger: Ledger) -> bool:
    """Whether an array is complete, and nobody has announced that yet."""
    return ledger.complete and not ledger.header.announced


def now_ms() -> int:
    """Return the time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def _written(block: Encoded, seconds: float) -> Written:
    ledger = block.array.ledger
    return Written(
        block.nbytes, size(block.objects), seconds, ledger.filled_voxels, unannounced(ledger)
    )


def _ledger_files(blocks: Iterable[Encoded], arrays: Iterable[WritableArray]) -> Files:
    written_ms = now_ms()
    for block in blocks:
        ledger, request = block.array.ledger, block.request
        if isinstance(request, Remark):
            ledger.count_parked(request.parked)
            # Unless it was emptied meanwhile: then it was another run that is announced.
            if request.announced == ledger.header.ledger and ledger.complete:
                ledger.announce()
            continue
        ledger.bind(request.source, request.run)
        ledger.fill(request.block, request.filled)
        ledger.count(request.tiles, written_ms)
    return {name: content for array in arrays for name, content in array.ledger.dirty().items()}
