"""What scenarios need of the product beyond its settings."""

from collections.abc import Iterator
from pathlib import Path

from consumer.blocks import ArrayKey
from consumer.ledger_files import read

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


class NotRun(Exception):
    """A scenario that cannot be run: the machine does not permit it."""


class NoLedger(Exception):
    """An array without a ledger, or with one that cannot be read."""


def missing(root: Path, store: str, array: str) -> Iterator[tuple[slice, ...]]:
    """Yield the regions that the ledger calls missing; raises NoLedger."""
    ledger, damages = read(root, ArrayKey(store, array))
    if ledger is None or damages:
        raise NoLedger("; ".join(damages) or "there is none")
    return (box.slices for box in ledger.missing())
