"""What the owning thread and the writer process say to each other.

All of it goes through a pipe, so it is small and pickled; voxels lie in memory that both map.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from consumer.blocks import ArrayKey, StoredArray
from consumer.coverage import Box
from consumer.errors import ConsumerError
from consumer.message import Outline
from consumer.placement import BlockIndex

Result = TypeVar("Result")
Done = Callable[[Result | None, ConsumerError | None], None]


@dataclass(frozen=True, slots=True)
class Setup:
    """What the writer is told first: its settings, and the size of the shared memory.

    Attributes
    ----------
    owner : int
        Process id of the owning thread's process.
    """

    output_root: Path
    workers: int
    write_empty_chunks: bool
    file_mode: int
    folder_mode: int
    max_ledger_bytes: int
    log_level: str
    log_format: Any
    memory_bytes: int
    failpoints: str
    owner: int
    consumer_name: str
    lone_attempts: int


@dataclass(frozen=True, slots=True)
class Open:
    """Open an array, and take its store where nothing of it is open.

    Attributes
    ----------
    outline : Outline
        What a message says of the array and its tiles.
    max_block_bytes : int
        The largest block that fits the budget.
    renew : bool
        Whether another run than the one that fills the array may have it count as empty.
    """

    outline: Outline
    max_block_bytes: int
    renew: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """An array that was opened.

    Attributes
    ----------
    taken : str or None
        The store's new epoch, where it was taken for this. Nothing of it is committed before
        `Allow`.
    source, run : str or None
        What the array is bound to, by its ledger.
    replaced : tuple of str
        Earlier runs.
    ledger : str or None
        The ledger's own id.
    partly
        Blocks that its ledger knows to be partly filled, at least some, and which boxes of each,
        relative to it; None where the array was open already, and is what it was.
    completed : bool
        Whether it is complete, and nobody has announced that yet.
    """

    array: StoredArray
    taken: str | None
    source: str | None = None
    run: str | None = None
    replaced: tuple[str, ...] = ()
    ledger: str | None = None
    partly: Mapping[BlockIndex, tuple[Box, ...]] | None = None
    completed: bool = False


@dataclass(frozen=True, slots=True)
class Allow:
    """Let be committed what is written to a store in an epoch: the broker still delivers to us.

    A consumer that was paused, and whose deliveries have long gone to another, takes in vain: what
    it sends to the broker is not answered.
    """

    store: str
    epoch: str


@dataclass(frozen=True, slots=True)
class WriteBlock:
    """Merge, encode and commit a block, as `consumer.blocks.Write` says.

    Attributes
    ----------
    offset : int
        Where the buffer lies in the shared memory. Where it is to be merged, the writer fills its
        holes with what is stored.
    tiles, source, run
        For the ledger.
    """

    array: ArrayKey
    box: Box
    offset: int
    dtype: np.dtype[Any]
    filled: tuple[Box, ...]
    merge: bool
    block: BlockIndex
    tiles: int
    source: str | None
    run: str | None


@dataclass(frozen=True, slots=True)
class Written:
    """A block that is durable.

    Attributes
    ----------
    encoded, committed : int
        Bytes of the voxels in the files written, and of the files.
    filled : int
        Voxels of the array that are filled.
    completed : bool
        Whether the array is complete now, and nobody has announced that yet.
    ledger_bytes : int
        Memory that all ledgers take.
    """

    encoded: int
    committed: int
    seconds: float
    filled: int = 0
    completed: bool = False
    ledger_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Remark:
    """Put down in an array's ledger that it was announced as complete, or that tiles were parked.

    It is durable when it is answered. `announced` is the ledger's id: another one may have begun.
    """

    array: ArrayKey
    announced: str | None = None
    parked: int = 0


@dataclass(frozen=True, slots=True)
class Close:
    """Let go of an array, and with its store's last of the store."""

    array: ArrayKey


@dataclass(frozen=True, slots=True)
class Examine:
    """See whether the root can be used; see `consumer.filesystem.check`.

    Attributes
    ----------
    accepted : str or None
        A kind of file system to take though it was never tested.
    """

    accepted: str | None


@dataclass(frozen=True, slots=True)
class Probe:
    """Try whether the root can be written."""


@dataclass(frozen=True, slots=True)
class Room:
    """What the root's file system has, in bytes, and how much of it this user may still fill."""

    size: int
    free: int


@dataclass(frozen=True, slots=True)
class BeginLone:
    """Note durably that the first of some messages are handled alone; see `consumer.journal`."""

    fingerprints: Sequence[str]


@dataclass(frozen=True, slots=True)
class EndLone:
    """Note that a lone handling has ended in order, and which messages come no more."""

    entry: str
    settled: Sequence[str]


Request: TypeAlias = (
    Open | Allow | WriteBlock | Remark | Close | Examine | Probe | BeginLone | EndLone
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of the request of that number."""

    number: int
    result: Any
    error: ConsumerError | None
