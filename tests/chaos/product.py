"""What scenarios need of the product beyond its settings."""

from collections.abc import Iterator
from pathlib import Path

from consumer.blocks import ArrayKey
from consumer.ledger_files import read
from consumer.ledger_format import HEADER_NAME, LEDGER_ID, segment_number
from consumer.service import TICK_S

# By what happens there: every step of taking a store, of a commit and of acknowledging.
FAILPOINTS = {
    "take": ("take.list", "take.mkdir", "take.remove"),
    "write": ("commit.write",),
    "fsync": ("commit.fsync",),
    "rename": ("commit.rename",),
    "folder fsync": ("commit.sync_folder",),
    "ledger": ("ledger.rename", "ledger.sync_folder"),
    "acknowledge": ("acknowledge",),
}
FENCE_OFF = "fence=off"
# Nobody's epoch is ended then.
UNREACHED_WITHOUT_FENCE = frozenset({"take.remove"})


# Of a consumer whose writer process is gone; see `consumer run --help`.
WRITER_LOST = 2
LAST_ACKNOWLEDGED = "tiles_last_acknowledged_timestamp_seconds"
OLDEST_HELD = "tiles_partition_oldest_unacknowledged_seconds"
LOST_CONNECTIONS = 'tiles_reconnects_total{connection="consume"}'
LOST_CHANNELS = "tiles_partition_channels_lost_total"
# It is given to an array that is opened.
LEDGER_ATTRIBUTE = LEDGER_ID


class NotRun(Exception):
    """A scenario that cannot be run: the machine does not permit it. Never after a first fault."""


class NoLedger(Exception):
    """An array without a ledger, or with one that cannot be read."""


def held_at_most(consumer_timeout_s: float) -> float:
    """Return the seconds after which any delivery is given back, by when that shows."""
    return consumer_timeout_s / 2 + TICK_S


def is_ledger(name: str) -> bool:
    """Whether a file of that name is part of a ledger as it should be, not one set aside."""
    return name == HEADER_NAME or segment_number(name) is not None


def missing(root: Path, store: str, array: str) -> Iterator[tuple[slice, ...]]:
    """Yield the regions that the ledger calls missing; raises NoLedger."""
    ledger, damages = read(root, ArrayKey(store, array))
    if ledger is None or damages:
        raise NoLedger("; ".join(damages) or "there is none")
    return (box.slices for box in ledger.missing())
